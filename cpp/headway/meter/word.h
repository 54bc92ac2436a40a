// headway/meter/word.h: how a meter's one atomic word is laid out.
#ifndef HEADWAY_METER_WORD_H_
#define HEADWAY_METER_WORD_H_

#include <cstdint>

namespace headway {

// bit 0        somebody waits on this meter
// bits 1..3    generation of the limit's parameters
// bits 4..63   the value: an instant (bucket), or an amount in use (the other shapes)
//
// The flag is in the word so that whoever compares the word sees it: nobody can pass the queue
// between looking and taking. The generation is in it because a full bucket's word does not change
// when its limit does, and a compare-and-swap worked out from old parameters has to fail.
struct Word {
  static constexpr int kValueShift = 4;
  static constexpr std::uint64_t kWaiters = 1;
  static constexpr std::uint64_t kGenerationUnit = 2;
  static constexpr std::uint64_t kGenerationMask = 0xE;
  static constexpr std::uint64_t kLowMask = kWaiters | kGenerationMask;
  static constexpr std::int64_t kMaxValue = (std::int64_t{1} << 60) - 1;

  std::uint64_t bits = 0;

  std::int64_t value() const { return static_cast<std::int64_t>(bits >> kValueShift); }
  bool waiters() const { return (bits & kWaiters) != 0; }
  unsigned generation() const { return static_cast<unsigned>((bits & kGenerationMask) >> 1); }

  // The same flag and generation with another value, which must be from 0 to kMaxValue.
  Word with_value(std::int64_t value) const {
    return Word{(static_cast<std::uint64_t>(value) << kValueShift) | (bits & kLowMask)};
  }
  Word with_waiters() const { return Word{bits | kWaiters}; }
  Word without_waiters() const { return Word{bits & ~kWaiters}; }
  Word with_next_generation() const {
    return Word{(bits & ~kGenerationMask) | ((bits + kGenerationUnit) & kGenerationMask)};
  }
};

}  // namespace headway

#endif  // HEADWAY_METER_WORD_H_
