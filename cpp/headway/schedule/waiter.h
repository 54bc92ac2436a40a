// headway/schedule/waiter.h: one wait for admission, and the mailbox that it is handed over
// through.
#ifndef HEADWAY_SCHEDULE_WAITER_H_
#define HEADWAY_SCHEDULE_WAITER_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "headway/bucket/bucket.h"
#include "headway/bucket/path.h"
#include "headway/bucket/reservation.h"
#include "headway/schedule/stack.h"
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
  std::unique_ptr<Reservation> Unclaimed() {
    return std::unique_ptr<Reservation>(reservation_.exchange(nullptr));
  }
  bool Finish(Outcome outcome) {
    Outcome waiting = Outcome::kWaiting;
    return outcome_.compare_exchange_strong(waiting, outcome);
  }

  Bucket* const bucket_;
  const Path* const path_;
  Mailbox* const mailbox_;
  const Nanos submitted_;
  const Nanos deadline_;
  Nanos at_ = kUntold;
  std::atomic<Reservation*> reservation_{nullptr};
  Waiter* previous_ = nullptr;
  Waiter* next_cancelled_ = nullptr;
  Waiter* next_ = nullptr;      // in the intake, then in its class's queue
  Flow* flow_ = nullptr;        // while queued
  std::uint64_t sequence_ = 0;  // in the order in which waits were taken in
  float cost_ = 0;              // while queued, on an account: see Share
  const std::int32_t priority_;
  const bool again_;  // it has had its turn before: it makes no room for others
  std::atomic<std::uint16_t> references_{2};
  std::atomic<Outcome> outcome_{Outcome::kWaiting};
  absl::InlinedVector<std::int64_t, 2> amounts_;
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

  void Post(Waiter* newest, Waiter* oldest) {
    if (!finished_.PushChain(newest, oldest)) return;
    HEADWAY_PAUSE();
    wake_.Signal();
  }
  // What was posted, oldest first; the caller takes over a reference to each.
  Waiter* Drain() {
    wake_.Clear();
    HEADWAY_PAUSE();
    return finished_.TakeAll();
  }
  // The same for the last time, which leaves the descriptor as it is.
  Waiter* TakeAll() { return finished_.TakeAll(); }

 private:
  ~Mailbox();

  std::atomic<std::uint32_t> references_{1};
  WakeFd wake_;
  Stack<Waiter, &Waiter::next_in_mailbox> finished_;
};

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_WAITER_H_
