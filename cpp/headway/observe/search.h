// headway/observe/search.h: how many requests a provider admits in a period that it never states.
#ifndef HEADWAY_OBSERVE_SEARCH_H_
#define HEADWAY_OBSERVE_SEARCH_H_

#include <algorithm>
#include <cstdint>

#include "headway/base/clock.h"
#include "headway/observe/inference.h"

namespace headway {

// A search by refusals, of `amount` requests in any window of `period`.
//
// - A refusal with plenty left of a limit that is stated shows that it is counted in periods that
//   are shorter: so many in each as fall to it. That is what "600 a minute, counted as 10 a second"
//   means. Where nothing is stated, a refusal tells too little: it may be for want of capacity.
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

  // What of a limit that it states, of which plenty is left, falls to a shorter period, so that it
  // would explain a refusal; of amount 0: nothing does.
  struct Hidden {
    std::int64_t amount = 0;
    Nanos period = 0;
  };

  // A request was refused that was sent at `sent`; at `now` this is known. `since(t)`: requests
  // that were sent since t, refused ones among them, at most.
  template <typename Since>
  void Refused(Nanos now, Nanos sent, const Hidden& hidden, const Since& since) {
    if (limits() && sent < event_at_) return;  // of the same burst
    const bool was_step = IsStep(sent);
    if (!limits() && hidden.amount == 0) return;
    event_at_ = now;
    quiet_until_ = now + kProbes;
    if (was_step) {
      amount_ = std::max<std::int64_t>(1, amount_ - 1);
    } else if (hidden.amount > 0 && (!limits() || hidden.period < period_)) {
      amount_ = hidden.amount;
      period_ = hidden.period;
    } else {
      // It was lowered, or others use it.
      amount_ = std::max<std::int64_t>(1, std::min(amount_, since(sent - period_)) - 1);
    }
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
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_SEARCH_H_
