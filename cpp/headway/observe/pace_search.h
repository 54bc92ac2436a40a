// headway/observe/pace_search.h: how fast a provider may be asked that never says so.
#ifndef HEADWAY_OBSERVE_PACE_SEARCH_H_
#define HEADWAY_OBSERVE_PACE_SEARCH_H_

#include <algorithm>
#include <cstdint>

#include "headway/base/clock.h"
#include "headway/base/limit.h"

namespace headway {

// A search by refusals for what is admitted in a period, where nothing else tells: of at most
// `amount` in any window, at an even `pace` of so many in a period. Whatever a provider counts in,
// an even pace of no more than its limit is admitted; and one that is a little too fast has one
// request refused, where a burst would have all refused that is beyond it.
//
// - Up: where all is used, by a step. Before the first refusal it is a half, every kFirstPause, as
//   what was begun with may be far too little. Then a 64th, which is tried for a period at least;
//   steps that hold double, up to a quarter; and after one that was refused, the next is a quarter
//   of it, and comes after a longer pause.
// - Down: after a refused step, to what held. After any other refusal to what was admitted within
//   the last period, but by a 32nd at most; where the next one follows soon, by a part as well that
//   doubles with each, by half at most: the provider is a bucket, which for a while admits more
//   than it can, or the limit was lowered. Not at all where nothing was admitted since the last:
//   that is an outage.
// - For kProbes after each refusal the pace is lower still, that the next is not refused at once: a
//   16th less than the amount, or what it was before it began to climb.
//
// Additive increase, multiplicative decrease; a better controller has its room here.
//
// Not thread-safe.
class PaceSearch {
 public:
  // At most one refusal is risked in so long.
  static constexpr Nanos kProbes = 30 * kSecond;

  bool limits() const { return amount_ > 0; }
  std::int64_t amount() const { return amount_; }
  std::int64_t pace() const { return easing_ ? eased_ : amount_; }
  Nanos period() const { return period_; }

  // What refusals that were known at `now` have shown for a beginning, of which all may have been
  // used just now. `known`: it is no first guess.
  void Begin(Nanos now, std::int64_t amount, Nanos period, bool known) {
    *this = PaceSearch();
    period_ = period;
    known_ = known;
    Correct(amount);
    // For a period nothing goes that could be refused for it.
    event_at_ = stepped_at_ = failed_at_ = now;
    quiet_until_ = now + (period >= kProbes ? period : 0) + Pause();
  }
  void Forget() { amount_ = 0; }

  // It is found to be another amount after all; for as long as nothing else has changed it.
  void Correct(std::int64_t amount) {
    amount_ = held_ = climbed_from_ = std::max<std::int64_t>(1, amount);
    step_ = known_ ? LargestStep() : FirstStep();
  }

  // A request was refused that was sent at `sent`; at `now` this is known. `good(t)`: good answers
  // since t, at most.
  template <typename Good>
  void Refused(Nanos now, Nanos sent, const Good& good) {
    if (sent < event_at_) return;  // of the same burst
    event_at_ = now;
    if (good_at_ < failed_at_) {
      vain_ = std::min(vain_ + 1, kMostVain);
      return;
    }
    vain_ = 0;
    const bool again = now - failed_at_ <= period_ + 2 * kProbes;
    failed_at_ = now;
    const std::int64_t before = amount_;
    if (!known_) {
      // It has gone up fast, and of what was admitted of late the last is the least.
      amount_ = std::max<std::int64_t>(1, std::min<std::int64_t>(amount_ - 1, good(now - period_)));
      step_ = std::max(LargestStep(), (before - amount_) / 8);
      eased_ = Eased();
    } else if (amount_ > held_ && sent >= stepped_at_) {
      const std::int64_t step = amount_ - held_;
      amount_ = held_;
      step_ = std::max<std::int64_t>(1, step / 4);
      eased_ = std::max(amount_ / 2, std::min(climbed_from_, Eased()));
      pauses_ = std::min(2 * pauses_, kMostPauses);
      downs_ = 0;
    } else {
      downs_ = again ? std::min(downs_ + 1, 2) : 0;
      // What was admitted of late is counted at most, and not at all where nothing went for a
      // while.
      std::int64_t least = amount_ - std::max<std::int64_t>(1, amount_ / 32);
      std::int64_t next = std::min<std::int64_t>(amount_ - 1, good(now - period_));
      if (again) {
        least = amount_ / 2;
        next -= ((amount_ << downs_) - amount_) / 16;
      }
      amount_ = std::max({std::int64_t{1}, least, next});
      step_ = std::max(LargestStep(), (before - amount_) / 4);
      eased_ = Eased();
      pauses_ = 1;
    }
    // So long before the end of a window all of it was used, or somewhat more.
    until_free_ = std::min(MulDivFloor(period_, before - amount_, before) + 4 * kSecond, kProbes);
    known_ = true;
    easing_ = eased_ > 0;
    climbed_from_ = held_ = amount_;
    climbs_ = 0;
    quiet_until_ = now + kProbes + Pause();
  }

  // How long nobody is to go after the latest refusal, where it does not say; 0: as after any.
  Nanos wait() const {
    return vain_ == 0 ? until_free_ : std::min((4 * kSecond) << vain_, kProbes);
  }

  // One was admitted that was sent at `sent`. `full`: no other fits now. Returns whether the amount
  // or the pace is another one.
  template <typename Good>
  bool Admitted(Nanos now, Nanos sent, bool full, const Good& good) {
    good_at_ = std::max(good_at_, sent);
    if (easing_ && now >= event_at_ + kProbes) {
      easing_ = false;
      return true;
    }
    if (!full || now < quiet_until_ || sent < std::max(stepped_at_, event_at_)) return false;
    if (known_) {
      // A client that is too slow for it shows nothing.
      if (good(now - period_) < amount_ - amount_ / 8) return false;
      // What follows the last step has held for a whole period.
      if (amount_ > held_) {
        if (++climbs_ >= 2) step_ = std::min(2 * step_, std::max(step_, amount_ / 4));
        pauses_ = 1;
      }
    } else {
      step_ = FirstStep();
    }
    held_ = amount_;
    amount_ = std::min(amount_ + step_, Limit::kMaxAmount - 1);
    stepped_at_ = now;
    quiet_until_ = now + Pause();
    return true;
  }

 private:
  static constexpr Nanos kFirstPause = 10 * kSecond;
  static constexpr int kMostPauses = 8;
  static constexpr int kMostVain = 3;

  std::int64_t FirstStep() const { return std::max<std::int64_t>(1, amount_ / 2); }
  std::int64_t LargestStep() const { return std::max<std::int64_t>(1, amount_ / 64); }
  std::int64_t Eased() const { return amount_ - std::max<std::int64_t>(1, amount_ / 16); }
  // How long a step is tried, at least, or waited for.
  Nanos Pause() const {
    if (!known_) return std::min(2 * period_, kFirstPause);
    return std::max(period_, pauses_ * kProbes);
  }

  std::int64_t amount_ = 0;
  Nanos period_ = 0;
  std::int64_t held_ = 0;  // what held for as long as a step is tried
  std::int64_t step_ = 1;
  bool known_ = false;  // something has been refused since it began
  bool easing_ = false;
  std::int64_t eased_ = 0;
  int climbs_ = 0;                 // steps in turn that have held
  std::int64_t climbed_from_ = 0;  // what it was after the latest refusal
  int pauses_ = 1;
  int downs_ = 0;             // refusals in turn that were of no step
  Nanos event_at_ = -kDay;    // when the latest refusal was known that is no part of another
  Nanos failed_at_ = -kDay;   // the same, but of outages
  Nanos stepped_at_ = -kDay;  // when it last went up
  Nanos good_at_ = -kDay;     // when the latest was sent that was admitted
  Nanos until_free_ = 0;
  int vain_ = 0;  // refusals in turn, beside the first, with none admitted in between
  Nanos quiet_until_ = 0;
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_PACE_SEARCH_H_
