// headway/meter/bucket_meter.h: continuous refill, burst at most B: the clock itself.
#ifndef HEADWAY_METER_BUCKET_METER_H_
#define HEADWAY_METER_BUCKET_METER_H_

#include <algorithm>

#include "headway/base/pause.h"
#include "headway/meter/meter.h"

namespace headway {

// GCRA (the ATM Forum's generic cell rate algorithm, TM 4.0): the word is the instant at which all
// that was admitted will have been paid for.
//
//   take(c) at now fits iff max(word, now) + increment(c) <= now + tolerance; then word is the left
//   side. A refund moves the word back; a word in the past is a full bucket, however far back.
//
// Memory ordering: the word is the whole state, so each verb is one successful compare-and-swap on
// it, and that is where it takes effect. Compare-and-swaps are sequentially consistent because the
// waiters flag takes part in a store-then-load handshake with the scheduler (see Meter).
class BucketMeter {
 public:
  static bool Take(Meter& m, Nanos now, std::int64_t amount, bool pass_waiters, Taken& taken) {
    std::uint64_t bits = m.word_.load(std::memory_order_acquire);
    for (;;) {
      const Word word{bits};
      if (word.waiters() && !pass_waiters) return false;
      const Parameters p = m.slots_.Load(word.generation());
      HEADWAY_PAUSE();
      const Nanos increment = p.Increment(amount);
      const Nanos after = increment == kNever ? kNever : std::max(word.value(), now) + increment;
      if (increment == kNever || after > now + p.tolerance) {
        // The parameters were those of this word only if it still stands.
        const std::uint64_t again = m.word_.load(std::memory_order_acquire);
        if (again == bits) return false;
        bits = again;
        continue;
      }
      const Nanos shifted = m.shifted_.load(std::memory_order_relaxed);
      HEADWAY_PAUSE();
      if (m.word_.compare_exchange_weak(bits, word.with_value(after).bits)) {
        taken.amount = amount;
        taken.increment = increment;
        taken.after = after;
        taken.cell = static_cast<std::uint32_t>(shifted);
        taken.period = p.period;
        taken.generation = static_cast<std::uint8_t>(word.generation());
        taken.future = false;
        return true;
      }
    }
  }

  static Nanos ReadyAt(const Meter& m, Nanos now, std::int64_t amount) {
    return Estimate(m, now, 0, amount);
  }
  static Nanos ReserveAt(Meter& m, Nanos now, std::int64_t amount, Taken& taken);
  static bool GiveBack(Meter& m, Nanos now, const Taken& taken, std::int64_t amount, Debt debt,
                       bool cancel);
  static void Sent(Meter& m, const Taken& taken, Nanos counted_by);
  static void Charge(Meter& m, Nanos now, std::int64_t amount);
  static void Raise(Meter& m, Nanos bound);
  static bool Lower(Meter& m, Nanos bound);
  static Nanos Estimate(const Meter& m, Nanos now, std::int64_t ahead, std::int64_t amount);
  static std::int64_t Used(const Meter& m, Nanos now);

  // A word of `value` under `old`, as the same debt under `fresh` (SetLimit). At least `now`: an
  // idle bucket's word moves, so that a thread that slept through eight changes finds another word.
  static Nanos Rescale(Nanos value, Nanos now, const Parameters& old, const Parameters& fresh,
                       Debt debt);

  // Time as units that are not yet paid for, rounded up.
  static std::int64_t Units(Nanos debt, const Parameters& p);
};

}  // namespace headway

#endif  // HEADWAY_METER_BUCKET_METER_H_
