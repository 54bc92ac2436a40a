// headway/meter/parameters.h: a limit's numbers as a meter reads them, changeable while in use.
#ifndef HEADWAY_METER_PARAMETERS_H_
#define HEADWAY_METER_PARAMETERS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "headway/base/clock.h"
#include "headway/base/limit.h"

namespace headway {

// One consistent set of numbers.
struct Parameters {
  std::int64_t amount = 0;  // the limit, in units of its resource
  Nanos period = 0;         // 0 for concurrency
  // bucket: the time that one unit takes to be paid for, ceil(period / amount); 0 where amount is
  // 0. fixed: an instant at which a window begins, in [0, period).
  Nanos step_or_anchor = 0;
  Nanos tolerance = 0;     // bucket: how far the instant may run ahead of now; burst in time
  std::int64_t burst = 0;  // bucket: the largest cost; 0 where the limit is 0

  static Parameters From(const Limit& limit, Nanos wall_offset);

  // bucket: nothing is admitted any more, at the rate as it was. So what is owed when the limit
  // goes to 0 can still be told in units, given back, and rescaled when the limit comes back.
  Parameters Closed() const;

  Nanos step() const { return step_or_anchor; }
  Nanos anchor() const { return step_or_anchor; }

  // bucket: by how much later than by the book a full bucket's refill is taken to begin, for calls
  // of which only the admission is known. The server's refill begins when it counts the first call
  // of a burst, and a later call may travel faster than that one did (BucketMeter says what follows
  // from it). 1/16 of what may be ahead beyond one unit, so that an even pace (burst 1) stays what
  // it is, and at most 1 s; nothing where that is less than what any network varies by.
  Nanos guard() const {
    const Nanos guard = std::min((tolerance - step()) / 16, kMostGuard);
    return guard < kLeastGuard ? 0 : guard;
  }
  static constexpr Nanos kLeastGuard = 20 * kMillisecond;
  static constexpr Nanos kMostGuard = kSecond;

  // bucket: what `units` cost in time, or kNever where they are more than a full burst.
  //
  // Whole steps while a step is 1 µs or more, so that the units of a burst add up to exactly the
  // tolerance. Above that rate, rounding each step up would cost up to half of the rate, so the
  // amount as a whole is rounded up instead: 1 ns at most.
  Nanos Increment(std::int64_t units) const;
  // The same without regard to the burst, kNever meaning beyond all time (or a limit that was born
  // 0).
  Nanos Cost(std::int64_t units) const;
};

// Two sets, the one in force chosen by the generation in the meter's word. The second is made at
// the first change: most limits never change.
//
// Memory ordering: the writer fills the slot that is not in force (release stores), then publishes
// it by the compare-and-swap on the word that moves the generation. A reader loads the word
// (acquire), then the slot that its generation names (acquire loads). If it is so late that the
// slot is being rewritten for the generation after next, it has read a released store of that
// writer and so sees the word moved on: its compare-and-swap, or its second look at the word,
// fails. Only a thread that sleeps through exactly 8 changes and then finds the same value again is
// fooled, once; see `Meter::SetLimit`, which moves an idle word for that reason.
class ParameterSlots {
 public:
  ParameterSlots() = default;
  ~ParameterSlots() { delete odd_.load(std::memory_order_relaxed); }
  ParameterSlots(const ParameterSlots&) = delete;
  ParameterSlots& operator=(const ParameterSlots&) = delete;

  Parameters Load(unsigned generation) const {
    const Slot& s = (generation & 1) == 0 ? even_ : *odd_.load(std::memory_order_acquire);
    return Parameters{
        s.amount.load(std::memory_order_acquire), s.period.load(std::memory_order_acquire),
        s.step_or_anchor.load(std::memory_order_acquire),
        s.tolerance.load(std::memory_order_acquire), s.burst.load(std::memory_order_acquire)};
  }
  // One writer at a time.
  void Store(unsigned generation, const Parameters& p) {
    Slot& s = (generation & 1) == 0 ? even_ : Odd();
    s.amount.store(p.amount, std::memory_order_release);
    s.period.store(p.period, std::memory_order_release);
    s.step_or_anchor.store(p.step_or_anchor, std::memory_order_release);
    s.tolerance.store(p.tolerance, std::memory_order_release);
    s.burst.store(p.burst, std::memory_order_release);
  }

 private:
  struct Slot {
    std::atomic<std::int64_t> amount{0};
    std::atomic<Nanos> period{0};
    std::atomic<Nanos> step_or_anchor{0};
    std::atomic<Nanos> tolerance{0};
    std::atomic<std::int64_t> burst{0};
  };
  // Whoever has seen a word of an odd generation sees this, too: it was stored before.
  Slot& Odd() {
    Slot* odd = odd_.load(std::memory_order_relaxed);
    if (odd == nullptr) odd_.store(odd = new Slot, std::memory_order_release);
    return *odd;
  }

  Slot even_;
  std::atomic<Slot*> odd_{nullptr};
};

// floor(a * b / c) and ceil(a * b / c) without overflow in between; c > 0, a and b >= 0. The result
// is clamped to kNever.
Nanos MulDivFloor(std::int64_t a, std::int64_t b, std::int64_t c);
Nanos MulDivCeil(std::int64_t a, std::int64_t b, std::int64_t c);

inline Nanos Parameters::Increment(std::int64_t units) const {
  // While these numbers are being rewritten (ParameterSlots) they need not fit together: an amount
  // of 0 may come with a burst, and the product may be more than the tolerance.
  if (units > burst || amount == 0) return kNever;
  if (step() < kMicrosecond) return MulDivCeil(units, period, amount);
  Nanos increment = 0;
  return __builtin_mul_overflow(units, step(), &increment) ? kNever : increment;
}

inline Nanos Parameters::Cost(std::int64_t units) const {
  if (units == 0) return 0;
  if (amount == 0) return kNever;
  return step() >= kMicrosecond ? MulDivFloor(units, step(), 1) : MulDivCeil(units, period, amount);
}

}  // namespace headway

#endif  // HEADWAY_METER_PARAMETERS_H_
