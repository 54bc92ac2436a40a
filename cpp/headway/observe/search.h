// headway/observe/search.h: how many requests a provider admits that never says.
#ifndef HEADWAY_OBSERVE_SEARCH_H_
#define HEADWAY_OBSERVE_SEARCH_H_

#include <algorithm>
#include <cstdint>

#include "headway/base/clock.h"
#include "headway/observe/inference.h"

namespace headway {

// A search by refusals, of `amount` requests in any window of `period`.
//
// Until the first refusal nothing is known and nothing is held back: most servers that say nothing
// have no limit. From then on:
//
// - A refusal that names a wait as long as a window of a minute would have it, or none: what was
//   admitted within a minute (or the usual period that holds a longer wait) is the limit. All three
//   kinds of server admit that much in a window.
// - One that names a shorter wait speaks of a bucket or of a shorter period. Of that period, one
//   request is taken for sure, and the search goes up at once.
// - One with plenty left of a limit that is stated shows that it is counted in shorter periods: so
//   many in each as fall to it. That is what "600 a minute, counted as 10 a second" means.
// - Up: where all is used, and the request that was sent since the last step is admitted, the next
//   step follows, of one request. So never more than one request is out beyond what was admitted
//   before, and a step that goes too far costs one refusal. Then it is left alone for kProbes.
// - Refusals of requests that were sent before the last one was known are one event.
//
// A better controller has its room here: nothing else knows how the amount is found.
//
// Not thread-safe.
class RateSearch {
 public:
  // How long after a refusal the amount stays as it is.
  static constexpr Nanos kProbes = 30 * kSecond;

  // Whether anything is limited.
  bool limits() const { return amount_ > 0; }
  std::int64_t amount() const { return amount_; }
  Nanos period() const { return period_; }

  // A request was refused that was sent at `sent`; at `now` this is known. `wait`: which it names;
  // kNever: none. `since(t)`: requests that were sent since t, all answered and refused ones among
  // them, at most. `oldest`: when the first of those was sent that a minute before `sent` holds.
  // `hidden`: what of a limit that it states, of which plenty is left, falls to a shorter period,
  // so that it would explain the refusal; of amount 0: nothing does.
  struct Hidden {
    std::int64_t amount = 0;
    Nanos period = 0;
  };
  template <typename Since>
  void Refused(Nanos now, Nanos sent, Nanos wait, Nanos oldest, const Hidden& hidden,
               const Since& since) {
    if (limits() && sent < event_at_) {
      // Of the same burst: one less was admitted than was thought.
      if (counts_) amount_ = std::max<std::int64_t>(1, amount_ - 1);
      return;
    }
    // Whom it refuses who has sent nothing else, it does not refuse for what he sends.
    if (!limits() && since(sent - Inference::kMinute) <= 1) return;
    const bool was_step = IsStep(sent);
    event_at_ = now;
    quiet_until_ = now + kProbes;
    if (was_step) {
      amount_ = std::max<std::int64_t>(1, amount_ - 1);
      counts_ = false;
      return;
    }
    if (hidden.amount > 0 && (!limits() || hidden.period < period_)) {
      amount_ = hidden.amount;
      period_ = hidden.period;
      counts_ = false;
      return;
    }
    const bool longer = wait != kNever && wait > std::max(2 * period_, Inference::kMinute);
    if (limits() && !longer) {
      // It was lowered, or others use it; or it is a bucket, which was emptied slowly by a few too
      // many in each period: of few, a part has to go.
      const std::int64_t most = std::min(amount_, since(sent - period_));
      const std::int64_t less = most < 60 ? std::max<std::int64_t>(1, most / 6) : 1;
      amount_ = std::max<std::int64_t>(1, most - less);
      counts_ = true;
      return;
    }
    const Nanos expected = oldest + Inference::kMinute - sent;
    if (!limits() && wait != kNever && wait < expected / 2) {
      // Whole seconds are rounded up.
      period_ = std::max(kSecond, Inference::Holds(wait, 0));
      amount_ = 1;
      counts_ = false;
      quiet_until_ = now;
      return;
    }
    period_ = longer ? std::max(Inference::kMinute, Inference::Holds(wait, 0)) : Inference::kMinute;
    amount_ = std::max<std::int64_t>(1, since(sent - period_) - 1);
    counts_ = true;
  }

  // Whether a request that was sent then may have been the latest step.
  bool IsStep(Nanos sent) const {
    return limits() && stepped_at_ > event_at_ && sent >= stepped_at_;
  }

  // One was admitted that was sent at `sent`. `full`: no other fits now. Returns whether the amount
  // is another one.
  bool Admitted(Nanos now, Nanos sent, bool full) {
    if (!limits() || !full || now < quiet_until_ || sent < stepped_at_ || sent < event_at_)
      return false;
    ++amount_;
    stepped_at_ = now;
    return true;
  }

 private:
  std::int64_t amount_ = 0;
  Nanos period_ = Inference::kMinute;
  Nanos event_at_ = -kDay;    // when the latest refusal was known that is no part of another
  Nanos stepped_at_ = -kDay;  // when it last went up
  Nanos quiet_until_ = 0;
  bool counts_ = false;  // in this event, each refusal is one request less that was admitted
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_SEARCH_H_
