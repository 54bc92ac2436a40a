// headway/bucket/bucket.h: the limits that a provider counts together; admission takes all or none.
#ifndef HEADWAY_BUCKET_BUCKET_H_
#define HEADWAY_BUCKET_BUCKET_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "headway/base/limit.h"
#include "headway/bucket/calls.h"
#include "headway/bucket/history.h"
#include "headway/bucket/opening.h"
#include "headway/bucket/recent_count.h"
#include "headway/bucket/reservation.h"
#include "headway/meter/meter.h"

namespace headway {

// Why a cost is not admitted now: a value, not an error.
struct Denial {
  // As `meter`: the bucket is cooling down after a refusal, whatever its limits say; or waits for
  // its first answer.
  static constexpr int kCooling = -1;

  int meter = 0;            // the limit that binds: the one that would admit last
  Nanos ready_at = kNever;  // when it would fit; kUntold, kNever: see clock.h

  bool never() const { return ready_at == kNever; }
};

// Told when something has happened that can bring an admission nearer for whoever waits on a
// bucket.
class WaiterSignal {
 public:
  // Thread-safe, must not block and must not call back into the bucket.
  virtual void Signal(Bucket& bucket) = 0;

 protected:
  ~WaiterSignal() = default;
};

// Of what resources something is asked, as bits.
inline std::uint32_t Asks(absl::Span<const std::int64_t> amounts) {
  std::uint32_t asks = 0;
  for (std::size_t i = 0; i < amounts.size(); ++i)
    if (amounts[i] > 0) asks |= std::uint32_t{1} << i;
  return asks;
}

// A set of limits over a few resources (at most kMaxResources), counted together.
//
// Thread-safe and lock-free, except SetLimit, which takes a lock of its own. Reference-counted:
// made by `Make` with one reference.
//
// The commit protocol: look at every meter first and refuse without touching anything if one does
// not fit; then take them in their order, and if one was lost to another thread meanwhile, give
// back those taken and look again. All threads take in the same order (concurrency first), so a
// thread that loses does so to one that has got further, and some thread always gets through.
class Bucket {
 public:
  static constexpr int kMaxResources = 32;
  // No more than these (requests, tokens, input and output tokens) need no memory of their own: so
  // many every bucket has that may learn what is counted.
  static constexpr int kFewResources = 4;

  // `resources[i]` says which resource `limits[i]` counts, from 0 to kMaxResources - 1. Limits of
  // shape kConcurrency should come first (a refusal there is the cheapest to roll back).
  //
  // `spare`: so many limits more may be added later, as they are learnt, over resources below
  // `width`; then what is admitted is remembered, too (history).
  static Bucket* Make(absl::Span<const Limit> limits, absl::Span<const std::uint8_t> resources,
                      Nanos wall_offset, WaiterSignal* signal, int spare = 0, int width = 0);

  void Ref() { references_.fetch_add(1, std::memory_order_relaxed); }
  void Unref();

  // How many limits it has by now. Whoever sees more of them than a reservation has taken sees what
  // was admitted before they were there. Memory ordering: acquire, of the meters below it.
  int size() const { return size_.load(std::memory_order_acquire); }
  int resource(int meter) const { return meters()[meter].resource; }
  Meter& meter(int i) { return meters()[i].meter; }
  const Meter& meter(int i) const { return meters()[i].meter; }
  // What `amounts` asks of the resource that this meter counts. Where the list ends before it: 0.
  std::int64_t amount(int meter, absl::Span<const std::int64_t> amounts) const {
    const auto at = static_cast<std::size_t>(resource(meter));
    return at < amounts.size() ? amounts[at] : 0;
  }
  // What nobody may ask who stands behind a head that is denied so, as bits by resource.
  std::uint32_t Binding(const Denial& denial) const {
    return denial.meter == Denial::kCooling ? ~std::uint32_t{0}
                                            : std::uint32_t{1} << resource(denial.meter);
  }

  // Takes the amounts (one for each resource) if all of it fits and nobody waits. There is no
  // answer to come: a `window` counts it at `now`. Concurrency must not be among the limits.
  bool TryTake(Nanos now, absl::Span<const std::int64_t> amounts);

  // Takes the amounts into `out` (fresh), or says why not. `privileged` is for the scheduler alone:
  // it may pass those who wait, and admits for one of them, who has Reservation::Begin called when
  // he goes on. `answered`: nobody but the caller counts it, and he does so now.
  // `looked`: Look has just said that it fits.
  std::optional<Denial> TryReserve(Nanos now, absl::Span<const std::int64_t> amounts,
                                   bool privileged, Reservation& out, bool answered = false,
                                   bool looked = false);

  // Takes the amounts into `out` (fresh) whether or not they fit, and whoever waits: the request
  // goes out anyway, and is to be counted. One goes alone, or ahead, as among those that are
  // admitted.
  void Force(Nanos now, absl::Span<const std::int64_t> amounts, Reservation& out);

  // Takes the amounts for the first instant at which all of it fits, and returns that instant, or
  // kNever and takes nothing. For buckets whose limits are all of shape kBucket. Where one of
  // several limits makes it wait, the others count it at that later instant, too: until then they
  // admit less.
  Nanos ReserveAt(Nanos now, absl::Span<const std::int64_t> amounts, Reservation& out);

  // For a bucket of one limit, of shape kConcurrency, that many others share: enters, or does not,
  // and leaves. No reservation is kept of it.
  bool TryEnter(Nanos now, bool privileged);
  void Leave(Nanos now);

  // For a meter of shape kCredit: so many units more, or less, are granted. Taking back takes no
  // more than there is, and returns how much that is.
  void Deposit(int meter, std::int64_t amount);
  std::int64_t Withdraw(int meter, std::int64_t amount);
  // What is granted and not used.
  std::int64_t Credit(int meter) const {
    return this->meter(meter).Capacity() - Word{this->meter(meter).bits()}.value();
  }
  // As Look, as far as all but credit goes.
  Denial LookBesideCredit(Nanos now, absl::Span<const std::int64_t> amounts);
  // Of credit, what reservations have taken that have been settled since, in all, and what of it
  // they have used: whoever granted it is to be told. What is neither credit nor spent is held.
  struct Spent {
    std::int64_t taken;
    std::int64_t used;
  };
  Spent spent(int meter) const {
    const Expense& expense = expenses_[static_cast<std::size_t>(meter)];
    const std::int64_t taken = expense.taken.load(std::memory_order_acquire);
    return {taken, expense.used.load(std::memory_order_relaxed)};
  }

  // Admits nothing before `until`: a refusal has said so. Only ever moves forward.
  void Cool(Nanos until);
  // The last instant that was given to Cool; in the past, or 0, where nothing cools.
  Nanos cooled_until() const { return static_cast<Nanos>(cool_.load() >> 1); }

  // Nothing is known of its limits, and answers will tell: until a good one has come, or for
  // `hold`, since whoever is out may be waiting for others, one request is out alone. Before
  // anybody uses it.
  // Where that tells of no limit, more and more go (Opening).
  void StartCold(Nanos hold) {
    cold_hold_.store(hold);
    cold_.store(kNobodyOut);
    opening_.Start(hold);
  }
  // A refusal is known that nothing explains: few go, and more and more as answers come. Where none
  // comes for `hold`, somewhat more go all the same.
  void Narrow(Nanos now, Nanos hold) { opening_.Narrow(now, hold); }
  // Something is known, so that holds, or nobody cares: all may go.
  void EndOpening() {
    if (opening_.End()) Signal();
  }
  bool is_opening() const { return opening_.on(); }
  // What is known of its limits will be old when the next request fits: that one goes ahead of the
  // others, which wait for its answer for `patience` longer than they would have waited anyhow.
  // Nothing, and false, where somebody is to go ahead, or has gone, already; unless it is his own
  // answer that says so (`again`): then the next one does when he is back.
  bool LookAhead(Nanos patience, bool again);
  // The same where nothing was known so far: the first answer is in, and says that one is to look.
  void LookAfterFirst(Nanos patience);
  // So many that go alone may fail, one after another; then answers cannot be expected to tell.
  static constexpr int kMostAlone = 5;
  // Nobody waits for that answer any more, nor for those that open it.
  void EndCold() {
    EndOpening();
    LeaveCold(/*over=*/true);
  }
  // Until when the others wait for the answer of the one that is out ahead; 0 where none is.
  Nanos WaitsForFirstUntil() const {
    const Nanos out = cold_.load();
    return out > 0 ? out + cold_hold_.load() : 0;
  }
  // Looks only: what would bind, and when it would fit (`now` or earlier: it fits).
  Denial Look(Nanos now, absl::Span<const std::int64_t> amounts, bool answered = false);

  // For a Forecast: nothing goes before that, whatever the limits say.
  Denial NotBefore(Nanos now, bool answered);
  // Whoever looks at a meter himself owes that to those who wait.
  void SignalIfOwed() {
    if (calls_ != nullptr) SignalOwed();
  }

  // Changes one limit (same shape and resource) while in use.
  void SetLimit(Nanos now, int meter, const Limit& limit, Nanos wall_offset, Debt debt);

  // Adds a limit while in use, and returns its place; -1: no spare place is left. What was admitted
  // before is not in it: whoever adds it says how much of it is used (Raise).
  int AddLimit(const Limit& limit, std::uint8_t resource, Nanos wall_offset);
  // What has been admitted, over time; null where no limit can be added.
  History* history() { return history_.get(); }
  // How many good answers came from `from` to `to`, of the last two minutes: at most, and off by
  // less than two seconds' worth. Where there is a history.
  std::int64_t Good(Nanos from, Nanos to) const { return good_->Between(from, to); }

  // Whether the amounts could ever be admitted together.
  bool EverFits(absl::Span<const std::int64_t> amounts) const;

  // Of one limit, see Meter: units in use, and when `amount` would fit as far as this limit goes.
  // To be preferred to the meter's own verbs, which cannot signal those who wait when they free a
  // cell.
  std::int64_t Used(int meter, Nanos now);
  Nanos ReadyAt(int meter, Nanos now, std::int64_t amount);

  // An observation of one limit; see Meter.
  void Raise(int meter, std::int64_t bound, Nanos at, Nanos seen = kNever);
  void Lower(int meter, std::int64_t bound, Nanos seen = kNever);
  void OthersLeaveBy(int meter, Nanos at);

  // The scheduler's: whoever waits has the flag set on the meter that binds, and clears all of
  // them.
  void SetWaiters(int meter) {
    if (meter == Denial::kCooling) {
      cool_.fetch_or(1);
    } else {
      this->meter(meter).SetWaiters();
    }
  }
  void ClearWaiters();
  bool has_waiters() const;

  // The scheduler's: which newcomers need not wake it, because they stand behind a head that is
  // blocked. A priority in the upper half (the lowest of the blocked heads') and the resources that
  // bind in the lower, as bits; 0 resources: nobody is blocked.
  std::atomic<std::uint64_t> blocked{0};
  // Links this bucket into the scheduler's list of touched ones.
  Bucket* next_touched = nullptr;
  std::atomic<bool> touched{false};

 private:
  friend class Reservation;

  struct Slot {
    Slot(const Limit& limit, Nanos wall_offset, std::uint8_t r)
        : meter(limit, wall_offset), resource(r) {}
    [[no_unique_address]] Meter meter;  // `resource` lies in its padding
    const std::uint8_t resource;
  };
  struct Expense {
    std::atomic<std::int64_t> taken{0};
    std::atomic<std::int64_t> used{0};
  };

  Bucket(int size, int most, WaiterSignal* signal)
      : size_(static_cast<std::uint16_t>(size)),
        most_(static_cast<std::uint16_t>(most)),
        signal_(signal) {}
  ~Bucket() = default;

  Slot* meters() { return reinterpret_cast<Slot*>(this + 1); }
  const Slot* meters() const { return reinterpret_cast<const Slot*>(this + 1); }

  bool TakeAll(Nanos now, absl::Span<const std::int64_t> amounts, bool privileged, bool answered,
               bool untimed, bool begins, absl::Span<Taken> taken);
  Denial Bind(Nanos now, absl::Span<const std::int64_t> amounts, bool privileged, bool answered);
  Nanos Cooled(Nanos now, bool privileged);
  bool HeldBack(Nanos now, absl::Span<const std::int64_t> amounts, Denial& denial);
  bool EnterCold(Nanos now, bool& alone);
  void LeaveCold(bool over);
  void LeaveAhead(Nanos out);
  void GoesAhead(const Reservation& out);
  void GoesAlone(Nanos now, absl::Span<const std::int64_t> amounts, bool answered, bool begins,
                 Reservation& out);
  bool looks_ahead() const { return look_ahead_.load(); }
  void FailCold();
  void BeginCall(Nanos now, Reservation& out);
  void BeginLate(Nanos now, Reservation& out);
  void Begin(Nanos now, Reservation& out, bool untimed = false, bool begins = true) {
    out.bucket_ = this;
    out.began_at_ = now;
    out.begun_ = begins;
    if (begins && history_ != nullptr) Remember(now, out);
    if (untimed) {
      out.untimed_ = true;
    } else if (calls_ != nullptr) {
      calls_->Admit();
      if (begins) BeginCall(now, out);
    }
  }
  void Signal() {
    if (signal_ != nullptr) signal_->Signal(*this);
  }
  void SignalOwed();

  // Memory ordering: whoever sees `taken` (acquire) sees what was used of it.
  void Spend(int meter, std::int64_t taken, std::int64_t used) {
    Expense& expense = expenses_[static_cast<std::size_t>(meter)];
    expense.used.fetch_add(used, std::memory_order_relaxed);
    expense.taken.fetch_add(taken, std::memory_order_release);
  }

  template <typename Amount>
  void Expect(int limits, int sign, const Amount& amount);
  void Remember(Nanos now, Reservation& out);
  // It is not expected to begin any more: it has, or it was cancelled before.
  void Forget(const Reservation& out);
  void SetTimed();
  void GiveBackAll(Nanos now, absl::Span<const Taken> taken, bool untimed);

  // In this order, and `touched` before, they leave no gaps.
  std::atomic<Debt> debt_{Debt::kAbsolute};
  std::atomic<std::uint16_t> size_;
  const std::uint16_t most_;  // limits that there is memory for
  std::atomic<std::uint32_t> references_{1};
  // Bit 0: somebody waits for it to have cooled down. The rest: until when it does; 0: not.
  std::atomic<std::uint64_t> cool_{0};
  // 0: an answer has come. kNobodyOut; or 1 ns after the instant at which the one left that goes
  // alone.
  static constexpr Nanos kNobodyOut = -1;
  std::atomic<Nanos> cold_{0};
  static Nanos Left(Nanos now) { return std::max<Nanos>(now, 0) + 1; }
  // It goes alone because what is known is old (LookAhead), not because nothing is: only its own
  // answer tells, and whatever becomes of it the others follow. Written while cold_ is 0.
  std::atomic<bool> look_ahead_{false};
  std::atomic<Nanos> patience_{0};
  std::atomic<bool> look_again_{false};
  std::atomic<Nanos> cold_hold_{0};
  Opening opening_;
  std::atomic<Nanos> refused_at_{0};  // when a refusal was known last
  std::atomic<int> cold_tries_{0};    // of requests that went alone, and brought no answer
  WaiterSignal* const signal_;
  std::unique_ptr<Calls> calls_;  // only where a `window` or `fixed` limit is among them
  // Whether one of those is a limit indeed. One that is not known yet (of kMaxAmount) refuses
  // nobody, so nobody need ask when its requests were answered.
  std::atomic<bool> timed_{false};
  std::unique_ptr<History> history_;     // only where limits can be added
  std::unique_ptr<RecentCount> good_;    // good answers; there as well
  std::unique_ptr<Expense[]> expenses_;  // by meter; only where credit is among them
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_BUCKET_H_
