// headway/meter/bucket_meter.h: continuous refill, burst at most B: the clock itself.
#ifndef HEADWAY_METER_BUCKET_METER_H_
#define HEADWAY_METER_BUCKET_METER_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <thread>

#include "headway/base/pause.h"
#include "headway/meter/meter.h"

namespace headway {

class MeterForecast;

// GCRA (the ATM Forum's generic cell rate algorithm, TM 4.0): the word is the instant at which all
// that was admitted will have been paid for.
//
//   take(c) at now fits iff max(word, now) + increment(c) <= now + tolerance; then word is the left
//   side. A refund moves the word back; a word in the past is a full bucket, however far back.
//
// That is exact for a server that counts at `now`. One that counts later, by an unknown time that
// differs from call to call by at most the guard D (Parameters::guard), would refuse some. What it
// is sure to accept, and all that it is sure to accept, is: over every interval t of admissions, at
// most burst + rate * max(0, t - D). (Calls counted in an interval t were admitted in one of at
// most t + D.) A full burst therefore goes out at once, and its refill begins D later:
//
//   take(c) at now fits iff increment(c) <= tolerance and word + increment(c) <= from + tolerance,
//   from = max(now - D, began), began = when it was last taken from after it had been full for D.
//
// This never passes that bound, and is a little below it where the bucket was full for less than D:
// it then counts as if its last D had not been paid for, so up to rate * D of a burst follow within
// D.
//
// With D = 0 the two are the same.
//
// Calls that were admitted for whoever waits may all begin at once, when a busy event loop goes on,
// long after the refill that let them in. So what has not begun is owed as of now: with u units of
// that, nothing is taken on top of less than now + increment(u), which never exceeds the burst. And
// when one begins late the word is moved up to there, so that its refill begins with it.
//
// Memory ordering: the word is the whole state, so each verb is one successful compare-and-swap on
// it, and that is where it takes effect. Compare-and-swaps are sequentially consistent because the
// waiters flag takes part in a store-then-load handshake with the scheduler (see Meter). What has
// not begun is counted up before the word's compare-and-swap, and down after the word was moved up
// for it; whoever reads it does so after the word, and takes by a compare-and-swap on that: so
// whatever he has not seen counted makes that fail. What he sees counted and is not in the word yet
// would be counted twice, and nobody could tell ever after: a unit of a month's limit is minutes.
// So whoever takes says while he is in between, which is a few nanoseconds, and that is waited for,
// if not for ever.
class BucketMeter {
 public:
  // Meter::unbegun_: how many of these have not begun; how many threads are between counting them
  // and the word (63 at most; the scheduler's lock lets in one); and whether somebody depends on
  // their beginning, who is to be signalled.
  static constexpr std::int64_t kUnit = 128;
  static constexpr std::int64_t kLanding = 2;
  static constexpr std::int64_t kLandings = kUnit - kLanding;
  static constexpr std::int64_t kDepended = 1;

  static bool Take(Meter& m, Nanos now, std::int64_t amount, bool pass_waiters, bool answered,
                   bool begins, Taken& taken) {
    std::uint64_t bits = m.word_.load(std::memory_order_acquire);
    for (;;) {
      const Word word{bits};
      if (word.waiters() && !pass_waiters) return false;
      const Parameters p = m.slots_.Load(word.generation());
      HEADWAY_PAUSE();
      const Nanos increment = p.Increment(amount);
      const bool full = IsFull(word, now, p);
      const Nanos from = full || answered ? now : RefillFrom(m, now, p.guard());
      const Nanos unbegun = Unbegun(m, p);
      const Nanos before = unbegun == 0 ? word.value() : std::max(word.value(), now + unbegun);
      if (increment > p.tolerance || before + increment > from + p.tolerance) {
        // The parameters were those of this word only if it still stands.
        const std::uint64_t again = m.word_.load(std::memory_order_acquire);
        if (again == bits) return false;
        bits = again;
        continue;
      }
      // Before the word, so that whoever finds the bucket no longer full knows since when.
      if (full) Begin(m, now);
      const Nanos after = std::max(before, now) + increment;
      const Nanos shifted = m.shifted_.load(std::memory_order_relaxed);
      if (!begins) m.unbegun_.fetch_add(kUnit * amount + kLanding);
      HEADWAY_PAUSE();
      if (m.word_.compare_exchange_weak(bits, word.with_value(after).bits)) {
        if (!begins) m.unbegun_.fetch_sub(kLanding);
        Fill(taken, amount, increment, after, p, word);
        taken.cell = static_cast<std::uint32_t>(shifted);
        taken.unbegun = !begins;
        taken.full_for_or_lap = static_cast<std::uint32_t>(
            std::clamp<Nanos>(now - word.value(), 0, std::numeric_limits<std::uint32_t>::max()));
        return true;
      }
      if (!begins) m.unbegun_.fetch_sub(kUnit * amount + kLanding);
    }
  }
  // What was taken so begins. Returns whether to signal.
  static bool Start(Meter& m, Nanos now, Taken& taken);

  static Nanos ReserveAt(Meter& m, Nanos now, std::int64_t amount, Taken& taken);
  static bool GiveBack(Meter& m, Nanos now, const Taken& taken, std::int64_t amount, Debt debt,
                       bool cancel);
  static void Sent(Meter& m, const Taken& taken, Nanos counted_by);
  static void Charge(Meter& m, Nanos now, std::int64_t amount);
  static void Force(Meter& m, Nanos now, std::int64_t amount, Taken& taken);
  static void Raise(Meter& m, Nanos bound, Nanos at, Nanos seen);
  static bool Lower(Meter& m, Nanos bound, Nanos seen);
  static Nanos ReadyAt(Meter& m, Nanos now, std::int64_t amount, bool answered);
  static void Foresee(Meter& m, Nanos now, bool answered, MeterForecast& out);
  static std::int64_t Used(const Meter& m, Nanos now);

  // A word of `value` under `old`, as the same debt under `fresh` (SetLimit). At least `now`: an
  // idle bucket's word moves, so that a thread that slept through eight changes finds another word.
  static Nanos Rescale(Nanos value, Nanos now, const Parameters& old, const Parameters& fresh,
                       Debt debt);
  // What was taken at once of a bucket whose word was `word`, by a call that has begun.
  static void Fill(Taken& taken, std::int64_t amount, Nanos increment, Nanos after,
                   const Parameters& p, Word word) {
    taken.amount = amount;
    taken.increment = increment;
    taken.after = after;
    taken.period = p.period;
    taken.cell = 0;
    taken.full_for_or_lap = 0;
    taken.generation = static_cast<std::uint8_t>(word.generation());
    taken.future = false;
    taken.unbegun = false;
  }
  // Whether it has been full for so long that nothing taken before can matter any more.
  static bool IsFull(Word word, Nanos now, const Parameters& p) {
    // Nothing has been taken yet, on a clock that has not run for as long as the guard.
    return word.value() == 0 || word.value() + p.guard() <= now;
  }
  // It is full at `now`, and what is taken from now on may be a full burst.
  static void Begin(Meter& m, Nanos now) {
    Nanos seen = m.began_.load(std::memory_order_relaxed);
    while (seen < now && !m.began_.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
    }
  }

 private:
  // Up to which instant the refill counts at `now`, where the bucket is not full. Never later than
  // `now`, so that threads which disagree about the time pass no limit. Memory ordering: `began_`
  // is stored before the compare-and-swap that takes, so whoever has read (acquire) a word with
  // that take in it reads that instant, or a later one.
  static Nanos RefillFrom(const Meter& m, Nanos now, Nanos guard) {
    return std::max(now - guard, std::min(m.began_.load(std::memory_order_relaxed), now));
  }

  // How long what has not begun takes to be paid for, beyond a lateness that is let pass where a
  // whole burst takes less than that.
  static Nanos Unbegun(const Meter& m, const Parameters& p) {
    const std::int64_t units = Landed(m) / kUnit;
    if (units == 0) return 0;
    return std::max<Nanos>(
        0, std::min(p.Cost(units), Word::kMaxValue / 4) - std::max<Nanos>(0, kSoon - p.tolerance));
  }
  // What has not begun, once nobody is between counting it and the word. Who was stopped there
  // keeps nobody for more than a fraction of a millisecond: then too much is returned.
  static std::int64_t Landed(const Meter& m) {
    std::int64_t counted = m.unbegun_.load();
    for (int tries = 0; (counted & kLandings) != 0 && tries < 512; ++tries) {
      if (tries >= 64) std::this_thread::yield();
      counted = m.unbegun_.load();
    }
    return counted;
  }
  // So many units less have not begun. Returns whether somebody depends on that.
  static bool CountDown(Meter& m, std::int64_t amount) {
    if ((m.unbegun_.fetch_sub(kUnit * amount) & kDepended) == 0) return false;
    HEADWAY_PAUSE();
    m.unbegun_.fetch_and(~kDepended);
    return true;
  }

  // Time as units that are not yet paid for, rounded up.
  static std::int64_t Units(Nanos debt, const Parameters& p);
};

}  // namespace headway

#endif  // HEADWAY_METER_BUCKET_METER_H_
