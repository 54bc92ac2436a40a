// headway/observe/search.h: how many requests a provider admits in a period that it never states.
#ifndef HEADWAY_OBSERVE_SEARCH_H_
#define HEADWAY_OBSERVE_SEARCH_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "headway/base/clock.h"
#include "headway/observe/inference.h"
#include "headway/observe/pace_search.h"

namespace headway {

// A search by refusals, of `amount` requests in any window of `period`. Until then nothing is known
// and nothing is held back: most servers that say nothing have no limit.
//
// - A refusal with plenty left of a limit that is stated shows that it is counted in periods that
//   are shorter: so many in each as fall to it. That is what "600 a minute, counted as 10 a second"
//   means. Where all of it is used, and the request that was sent since the last step is admitted,
//   the next step follows, of one request. Where the period is still filling, several follow before
//   the first is known to be one too many: each costs one refusal, and each is taken back, down to
//   what was admitted before. Then it is left alone for kProbes.
// - Where nothing is ever stated, one refusal says nothing: it may be for want of capacity, or of a
//   request that no other is like. The second within kTogether begins a PaceSearch, if kPlenty were
//   admitted within a minute: where nothing is, it is an outage, and where little is, a limit saves
//   little. It begins with what was admitted within a period; and that is how far apart the ends of
//   the waits are that both name, the nearest of the usual ones up to a minute; a minute where they
//   name none.
// - Refusals of requests that were admitted before the last one was known are one event.
//
// Not thread-safe.
class RateSearch {
 public:
  // How long after a refusal the amount stays as it is.
  static constexpr Nanos kProbes = PaceSearch::kProbes;
  static constexpr Nanos kTogether = 120 * kSecond;
  static constexpr std::int64_t kPlenty = 10;
  static constexpr Nanos kShort = 3 * kSecond;

  // Whether anything is limited.
  bool limits() const { return amount() > 0; }
  std::int64_t amount() const { return pace_.limits() ? pace_.amount() : amount_; }
  Nanos period() const { return pace_.limits() ? pace_.period() : period_; }
  // How many in a period, evenly; 0: as they come.
  std::int64_t pace() const { return pace_.limits() ? pace_.pace() : 0; }
  // How long nobody is to go after the latest refusal, where it does not say; 0: as after any.
  Nanos wait() const { return pace_.limits() ? pace_.wait() : 0; }

  // What another one has found, where nothing is ever stated. It rises and falls as if it had been
  // found here; but nobody knows how much of it was used before `now`, so for a period refusals say
  // nothing.
  void Recall(Nanos now, std::int64_t amount, Nanos period) {
    pace_.Begin(now + period, amount, period, /*known=*/true);
  }

  // What of a limit that it states, of which plenty is left, falls to a shorter period, so that it
  // would explain a refusal; of amount 0: nothing does.
  struct Hidden {
    std::int64_t amount = 0;
    Nanos period = 0;
  };

  // A request was refused that was sent at `sent`; at `now` this is known. `wait`: which the
  // refusal names; kNever: none. `silent`: nothing is stated, ever. `good(t)`: good answers since
  // t, at most.
  template <typename Good>
  void Refused(Nanos now, Nanos sent, Nanos wait, bool silent, const Hidden& hidden,
               const Good& good) {
    if (pace_.limits() && hidden.amount == 0) {
      if (sent >= event_at_) {
        counts_ = false;
        event_at_ = now;
      }
      return pace_.Refused(now, sent, good);
    }
    if (sent < event_at_) {
      // Of the same burst.
      if (steps_refused_ && sent >= first_step_at_) amount_ = std::max(proven_, amount_ - 1);
      return;
    }
    const bool was_step = IsStep(sent);
    // A series may have begun long ago; by half at most.
    if (was_step) proven_ = std::max(proven_, amount_ / 2);
    const Nanos before = event_at_;
    const Nanos wait_before = wait_;
    if (!limits() && hidden.amount == 0 && !silent) return;
    event_at_ = now;
    wait_ = wait;
    steps_refused_ = was_step;
    if (!limits() && hidden.amount == 0) {
      const Nanos told = wait_before == kNever ? 0 : wait_before;
      if (now - before - told <= kTogether && good(now - Inference::kMinute) >= kPlenty)
        Begin(now, before, wait_before, good);
      return;
    }
    quiet_until_ = now + kProbes;
    pace_.Forget();
    if (hidden.amount > 0 && !was_step && (amount_ == 0 || hidden.period < period_)) {
      amount_ = hidden.amount;
      period_ = hidden.period;
    } else if (was_step) {
      amount_ = std::max<std::int64_t>(1, amount_ - 1);
    } else {
      // It was lowered, or others use it.
      const std::int64_t known = std::min(amount_, Within(now, now - period_, good));
      amount_ = std::max({std::int64_t{1}, amount_ / 2, std::min(amount_ - 1, known)});
    }
  }

  // Whether a request that was sent then may have been one of the latest steps.
  bool IsStep(Nanos sent) const {
    return amount_ > 0 && (stepped_at_ > event_at_ || (steps_refused_ && sent < event_at_)) &&
           sent >= first_step_at_;
  }

  // One was admitted that was sent at `sent`. `full`: no other fits now. `good`: as above. Returns
  // whether the amount is another one.
  template <typename Good>
  bool Admitted(Nanos now, Nanos sent, bool full, const Good& good) {
    if (pace_.limits()) {
      if (sent >= event_at_ || !counts_) return pace_.Admitted(now, sent, full, good);
      // Its answer was on its way: one more was admitted than was known.
      if (sent < event_at_ - period_) return false;
      pace_.Correct(++counted_);
      return true;
    }
    if (amount_ == 0 || sent < event_at_) return false;
    if (!full || now < quiet_until_ || sent < stepped_at_) return false;
    if (now - stepped_at_ >= period_ || stepped_at_ < event_at_) {
      proven_ = mark_ = amount_;
      first_step_at_ = mark_at_ = now;
    } else if (now - mark_at_ >= period_) {
      proven_ = std::exchange(mark_, amount_);
      first_step_at_ = std::exchange(mark_at_, now);
    }
    ++amount_;
    stepped_at_ = now;
    return true;
  }

 private:
  // The ends of two waits in turn are a period apart, which is no shorter than any of them. Where a
  // window had begun, what was admitted before that is no part of it.
  template <typename Good>
  void Begin(Nanos now, Nanos before, Nanos wait_before, const Good& good) {
    period_ = Inference::kMinute;
    Nanos from = now - period_;
    if (wait_ != kNever && wait_before != kNever) {
      const Nanos begun = before + wait_before;
      const Nanos apart = now + wait_ - begun;
      const Nanos longest = std::max(wait_, wait_before) - Inference::kSlack;
      // A longer one would be kept to for as long, on the word of two refusals.
      for (const Nanos usual : Inference::kPeriods)
        if (usual >= longest && usual <= Inference::kMinute &&
            std::abs(usual - apart) < std::abs(period_ - apart))
          period_ = usual;
      from = now - period_;
      // All of it is to come: a window has just begun.
      if (wait_ >= period_ - Inference::kSlack) from = std::max(from, begun - kSecond);
    }
    // Who has waited meanwhile had used all of it before; counted by the second.
    Nanos span = period_;
    if (wait_before != kNever && wait_before < period_ - Inference::kSlack) span -= wait_before;
    const std::int64_t before_that = Within(now, before - span, good) - good(before + kSecond);
    // Of what was admitted so soon before, the most was there already. So from one up.
    counts_ = period_ > kShort;
    counted_ = counts_ ? std::max(Within(now, from, good), before_that) : 1;
    pace_.Begin(now, counted_, period_, /*known=*/false);
  }

  // What was admitted since, and what of a window before that one may be in the same second is not.
  template <typename Good>
  std::int64_t Within(Nanos now, Nanos from, const Good& good) const {
    return now - from < 10 * kSecond ? good(from) : good(from + kSecond);
  }

  PaceSearch pace_;  // where nothing is ever stated
  std::int64_t amount_ = 0;
  Nanos period_ = Inference::kMinute;
  Nanos event_at_ = -kDay;    // when the latest refusal was known that is no part of another...
  Nanos wait_ = kNever;       // ... and how long it said to wait
  Nanos stepped_at_ = -kDay;  // when it last went up...
  // ... and the first step of late, from an amount that was admitted for a period at least. In a
  // series, another is marked once in each period.
  Nanos first_step_at_ = -kDay;
  std::int64_t proven_ = 1;
  Nanos mark_at_ = -kDay;
  std::int64_t mark_ = 1;
  bool steps_refused_ = false;  // the latest event is that such a step was refused
  Nanos quiet_until_ = 0;
  // What was admitted before the event that it began with is still being told: so far.
  bool counts_ = false;
  std::int64_t counted_ = 0;
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_SEARCH_H_
