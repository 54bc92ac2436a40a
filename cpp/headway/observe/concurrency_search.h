// headway/observe/concurrency_search.h: how many requests at once a provider admits that never says
// so.
#ifndef HEADWAY_OBSERVE_CONCURRENCY_SEARCH_H_
#define HEADWAY_OBSERVE_CONCURRENCY_SEARCH_H_

#include <algorithm>
#include <cstdint>

#include "headway/base/clock.h"
#include "headway/observe/search.h"

namespace headway {

// A search by refusals, of `amount` requests at once, where nothing is ever stated.
//
// A provider that counts what is under way refuses a request while as many others are out as it
// admits, or more; one that counts a rate refuses even the only one that is out. So:
//
// - The first refusals say how many it may be: so many are out beside those that were refused.
// - If as many are out when the next is refused, that is the limit. Else, and as soon as one is
//   refused while fewer are out, it is a rate (RateSearch). Where so many at once are just the rate
//   that a provider admits, the two are the same.
// - Up by one where all is used, once in RateSearch::kProbes. Who is on his way there or back is
//   not at the provider, so several steps may go well until all set out together, as after a
//   refusal: then down by a sixteenth, or to what was counted.
// - One that was lowered, or that others use, too, or that was counted as calls came back, is
//   lowered to what was out, or by a part that doubles; if that happens again and again, each
//   within RateSearch::kTogether of the one before, it was none.
//
// Requests are out when the one that is refused leaves, and when that is known; it is one of them.
// As they overtake each other, whichever is more was out before it.
//
// Not thread-safe.
class ConcurrencySearch {
 public:
  bool limits() const { return amount_ > 0; }
  std::int64_t amount() const { return amount_; }

  // Goes on from what another one has found.
  void Recall(std::int64_t amount) { amount_ = proven_ = amount; }

  // Whether it is to be told of all that is admitted.
  bool listens() const { return limits() || event_at_ > -kDay; }

  // A request was refused that was sent at `sent`, when `out_before` were out; at `now` this is
  // known, and `out_now` are. `long_wait`: it says to wait for longer than answers take, which
  // makes room for others: so it is none. Returns whether a limit of requests at once explains it.
  bool Refused(Nanos now, Nanos sent, std::int64_t out_before, std::int64_t out_now,
               bool long_wait) {
    if (long_wait) {
      event_at_ = -kDay;
      return Forget();
    }
    const std::int64_t out = std::max(out_before, out_now);
    if (sent < event_at_) {
      least_ = std::min(least_, out_now);
      if (limits() && Fewer(out)) return Forget();
      return limits();
    }
    const std::int64_t found = std::max(least_ - 1, admitted_);
    const Nanos before = event_at_;
    event_at_ = now;
    least_ = out_now;
    admitted_ = 0;
    if (!limits()) {
      // One at once would be kept to for long, on little evidence.
      if (now - before > RateSearch::kTogether || found < 2) return false;
      amount_ = proven_ = found;
      lowered_ = 0;
      quiet_until_ = now + RateSearch::kProbes;
      return Fewer(out) ? Forget() : true;
    }
    // Those are out that went before it was kept to.
    if (out > amount_) return true;
    if (Fewer(out)) return Forget();
    const bool again = now - before < RateSearch::kTogether;
    if (amount_ > proven_) {
      amount_ = again ? proven_ : std::max(proven_, amount_ - 1 - amount_ / 16);
    } else {
      lowered_ = again ? lowered_ + 1 : 1;
      if (lowered_ > kMostLowered) return Forget();
      const std::int64_t part = (amount_ << lowered_) / 64;
      amount_ = proven_ = std::max<std::int64_t>(1, std::min(amount_ - part, out - 1));
    }
    quiet_until_ = now + RateSearch::kProbes;
    return true;
  }

  // One was admitted that was sent at `sent`. `full`: no other may go now. Returns whether the
  // amount is another one.
  bool Admitted(Nanos now, Nanos sent, bool full) {
    if (sent < event_at_) ++admitted_;
    if (!limits() || !full || now < quiet_until_ || sent < stepped_at_) return false;
    ++amount_;
    stepped_at_ = now;
    quiet_until_ = now + RateSearch::kProbes;
    return true;
  }

 private:
  static constexpr int kMostLowered = 3;

  bool Fewer(std::int64_t out) const { return 4 * out <= 3 * amount_; }

  bool Forget() {
    amount_ = 0;
    return false;
  }

  std::int64_t amount_ = 0;
  // When the latest refusal was known that is no part of an earlier burst; of its burst, the least
  // that were out, and what was admitted of what was on its way then.
  Nanos event_at_ = -kDay;
  std::int64_t least_ = 1;
  std::int64_t admitted_ = 0;
  Nanos stepped_at_ = -kDay;
  std::int64_t proven_ = 1;  // what was counted; what it is beyond that, it has gone up since
  int lowered_ = 0;          // in turn
  Nanos quiet_until_ = 0;
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_CONCURRENCY_SEARCH_H_
