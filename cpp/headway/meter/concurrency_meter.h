// headway/meter/concurrency_meter.h: at most N at once.
#ifndef HEADWAY_METER_CONCURRENCY_METER_H_
#define HEADWAY_METER_CONCURRENCY_METER_H_

#include <algorithm>

#include "headway/base/pause.h"
#include "headway/meter/meter.h"

namespace headway {

// The word is the count. Time plays no part: only giving back brings an admission nearer.
//
// Memory ordering: one sequentially consistent compare-and-swap a verb, as for `bucket`.
class ConcurrencyMeter {
 public:
  static bool Take(Meter& m, std::int64_t amount, bool pass_waiters, Taken& taken) {
    std::uint64_t bits = m.word_.load(std::memory_order_acquire);
    for (;;) {
      const Word word{bits};
      if (word.waiters() && !pass_waiters) return false;
      const std::int64_t limit = m.slots_.Load(word.generation()).amount;
      HEADWAY_PAUSE();
      if (amount > limit || word.value() > limit - amount) {
        const std::uint64_t again = m.word_.load(std::memory_order_acquire);
        if (again == bits) return false;
        bits = again;
        continue;
      }
      if (m.word_.compare_exchange_weak(bits, word.with_value(word.value() + amount).bits)) {
        taken.amount = amount;
        return true;
      }
    }
  }

  static void Force(Meter& m, std::int64_t amount, Taken& taken) {
    m.word_.fetch_add(static_cast<std::uint64_t>(amount) << Word::kValueShift);
    taken.amount = amount;
  }

  static bool GiveBack(Meter& m, std::int64_t amount) {
    // Never below zero: a reservation gives back what it took, once, so the count covers it.
    const std::uint64_t before =
        m.word_.fetch_sub(static_cast<std::uint64_t>(amount) << Word::kValueShift);
    return Word{before}.waiters();
  }

  static Nanos ReadyAt(const Meter& m, Nanos now, std::int64_t amount) {
    for (;;) {
      const Word word{m.word_.load(std::memory_order_acquire)};
      const std::int64_t limit = m.slots_.Load(word.generation()).amount;
      if (m.word_.load(std::memory_order_acquire) != word.bits) continue;
      if (amount > limit) return kNever;
      return word.value() <= limit - amount ? now : kUntold;
    }
  }
};

}  // namespace headway

#endif  // HEADWAY_METER_CONCURRENCY_METER_H_
