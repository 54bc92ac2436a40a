// headway/meter/credit_meter.h: units that somebody else has granted, until they are used.
#ifndef HEADWAY_METER_CREDIT_METER_H_
#define HEADWAY_METER_CREDIT_METER_H_

#include "headway/base/pause.h"
#include "headway/meter/concurrency_meter.h"
#include "headway/meter/meter.h"

namespace headway {

// The word counts what is not granted, or used up, as if it was a concurrency. Whoever grants has
// to know by when something was used, since the provider counts it then: so who waits has used it
// only when he goes on, and until then it is `unbegun_`.
//
// Memory ordering: all sequentially consistent. A unit that is taken is counted as unbegun, or its
// instant stored, before the word says that it is not credit any more; and one that comes back is
// credit again before it is not unbegun any more. So who reads the word first misses none on its
// way in, and who finds the same twice none on its way back.
class CreditMeter {
 public:
  static bool Take(Meter& m, Nanos now, std::int64_t amount, bool pass_waiters, bool begins,
                   Taken& taken) {
    if (now > m.promised_.load() || ConcurrencyMeter::ReadyAt(m, now, amount) > now) return false;
    if (begins) {
      m.began_.store(now);
    } else {
      m.unbegun_.fetch_add(amount);
    }
    HEADWAY_PAUSE();
    if (ConcurrencyMeter::Take(m, amount, pass_waiters, taken)) {
      taken.unbegun = !begins;
      return true;
    }
    if (!begins) m.unbegun_.fetch_sub(amount);
    return false;
  }

  static void Begin(Meter& m, Nanos now, Taken& taken) {
    if (!taken.unbegun) return;
    taken.unbegun = false;
    m.began_.store(now);
    HEADWAY_PAUSE();
    m.unbegun_.fetch_sub(taken.amount);
  }

  static bool GiveBack(Meter& m, const Taken& taken, std::int64_t amount) {
    const bool signal = ConcurrencyMeter::GiveBack(m, amount);
    HEADWAY_PAUSE();
    if (taken.unbegun) m.unbegun_.fetch_sub(amount);
    return signal;
  }

  static Nanos ReadyAt(const Meter& m, Nanos now, std::int64_t amount) {
    if (now > m.promised_.load()) return kUntold;
    return ConcurrencyMeter::ReadyAt(m, now, amount);
  }
};

}  // namespace headway

#endif  // HEADWAY_METER_CREDIT_METER_H_
