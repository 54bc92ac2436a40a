// headway/schedule/waiter.h: one wait for admission, and the mailbox that it is handed over
// through.
#ifndef HEADWAY_SCHEDULE_WAITER_H_
#define HEADWAY_SCHEDULE_WAITER_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "headway/base/stack.h"
#include "headway/bucket/bucket.h"
#include "headway/bucket/path.h"
#include "headway/bucket/reservation.h"
#include "headway/schedule/wake_fd.h"

namespace headway {

class Mailbox;
struct Flow;

enum class Outcome : std::uint8_t {
  kWaiting,
  kAdmitted,
  kCancelled,  // by its owner
  kDeadline,   // could not be, or was not, admitted in time
  kNever,      // the limit was lowered below what it needs
  kStopped,    // the scheduler was
  kDropped,    // to make room for another
};

// One wait. Two references exist: the owner's and the scheduler's, which passes to the mailbox when
// the wait is over. A reservation that nobody claims is cancelled when the waiter goes.
//
// Memory ordering: `outcome_` leaves kWaiting once, by a sequentially consistent compare-and-swap;
// whoever makes that move wrote `reservation` or `at` before it, and whoever sees it may read them.
// So many of those that wait, one after another, ask the same amounts, by resource.
struct Asked {
  std::size_t count;
  absl::InlinedVector<std::int64_t, Bucket::kFewResources> amounts;
};

class Waiter {
 public:
  // On `path`, or, where that is null, through nothing but `bucket`.
  Waiter(Bucket* bucket, const Path* path, absl::Span<const std::int64_t> amounts,
         std::int32_t priority, Nanos submitted, Nanos deadline, Mailbox* mailbox, void* cookie,
         bool again);

  void Unref() {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  Outcome outcome() const { return outcome_.load(); }
  Bucket* bucket() const { return bucket_; }
  const Path* path() const { return path_; }
  absl::Span<const std::int64_t> amounts() const { return amounts_; }
  Nanos submitted() const { return submitted_; }
  // When it was admitted; for kDeadline, when it would have been as far as was known (kUntold:
  // not).
  Nanos at() const { return at_; }
  // After kAdmitted, once: by the owner, whose call begins at `now`; null if a cancel came first.
  std::unique_ptr<Reservation> Claim(Nanos now) {
    std::unique_ptr<Reservation> claimed = Unclaimed();
    if (claimed != nullptr) claimed->Begin(now);
    return claimed;
  }

  // For whoever is going to look at it next, while he looks at another: both come from another
  // core.
  void Prefetch() const { PrefetchLines(this, sizeof(Waiter)); }
  // What its owner is going to claim, once that is looked at.
  void PrefetchReservation() const {
    if (const void* claimed = reservation_.load(std::memory_order_relaxed); claimed != nullptr)
      PrefetchLines(claimed, sizeof(Reservation));
  }

  // The owner's own word, for whoever drains the mailbox; changed only where the mailbox is
  // drained.
  void* cookie;
  Waiter* next_in_mailbox = nullptr;

 private:
  friend class Scheduler;
  friend class ClassQueue;
  friend class BucketQueue;
  friend class Mailbox;
  friend struct Flow;

  ~Waiter();
  static void PrefetchLines(const void* first, std::size_t size) {
    for (std::size_t at = 0; at < size; at += 64)
      __builtin_prefetch(static_cast<const char*>(first) + at);
  }
  std::unique_ptr<Reservation> Unclaimed() {
    return std::unique_ptr<Reservation>(reservation_.exchange(nullptr));
  }
  bool Finish(Outcome outcome) {
    Outcome waiting = Outcome::kWaiting;
    return outcome_.compare_exchange_strong(waiting, outcome);
  }

  // What is handed over comes first: it is fetched from another core, all of it at once.
  std::atomic<Reservation*> reservation_{nullptr};
  Nanos at_ = kUntold;
  std::atomic<std::uint16_t> references_{2};
  std::atomic<Outcome> outcome_{Outcome::kWaiting};
  const bool again_;  // it has had its turn before: it makes no room for others
  const std::int32_t priority_;
  Bucket* const bucket_;
  const Path* const path_;
  Mailbox* const mailbox_;
  const Nanos submitted_;
  const Nanos deadline_;
  // In the intake, then in its class's queue. In the mailbox, of the oldest of those that were
  // posted together: the oldest of the next that were, and the newest of these.
  Waiter* next_ = nullptr;
  Waiter* previous_ = nullptr;
  Waiter* next_cancelled_ = nullptr;
  Flow* flow_ = nullptr;        // while queued
  std::uint64_t sequence_ = 0;  // in the order in which waits were taken in
  float cost_ = 0;              // while queued, on an account: see Share
  absl::InlinedVector<std::int64_t, Bucket::kFewResources> amounts_;
};

// Where finished waits are handed over: one per event loop or blocked thread. Posting never blocks
// and never touches the loop; it writes the descriptor only when the mailbox was empty.
//
// Thread-safe; `Drain` is for its one consumer. Reference-counted: a waiter holds a reference.
class Mailbox {
 public:
  explicit Mailbox(WakeFd::Kind kind = WakeFd::DefaultKind()) : wake_(kind) {}

  void Ref() { references_.fetch_add(1, std::memory_order_relaxed); }
  void Unref() {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  WakeFd& wake() { return wake_; }

  // Posts those from `oldest` to `newest`, linked by next_in_mailbox.
  void Post(Waiter* oldest, Waiter* newest) {
    newest->next_in_mailbox = nullptr;
    oldest->previous_ = newest;
    if (!finished_.Push(oldest)) return;
    HEADWAY_PAUSE();
    wake_.Signal();
  }
  // What was posted, oldest first, and in `last` the newest of it; the caller takes over a
  // reference to each.
  Waiter* Drain(Waiter** last = nullptr) {
    wake_.Clear();
    HEADWAY_PAUSE();
    return TakeAll(last);
  }
  // The same for the last time, which leaves the descriptor as it is.
  //
  // Only the ends of each batch are looked at: another core has just written to all of them, and to
  // fetch one takes as long as all else that is done for it here.
  Waiter* TakeAll(Waiter** last = nullptr) {
    Waiter* const first = finished_.TakeAll();
    Waiter* newest = nullptr;
    for (Waiter* oldest = first; oldest != nullptr; oldest = oldest->next_) {
      if (newest != nullptr) newest->next_in_mailbox = oldest;
      newest = oldest->previous_;
    }
    if (last != nullptr) *last = newest;
    return first;
  }

 private:
  ~Mailbox();

  std::atomic<std::uint32_t> references_{1};
  WakeFd wake_;
  Stack<Waiter, &Waiter::next_> finished_;
};

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_WAITER_H_
