// headway/schedule/scheduler.h: who waits, who may go, and when to look again. Passive: no thread.
#ifndef HEADWAY_SCHEDULE_SCHEDULER_H_
#define HEADWAY_SCHEDULE_SCHEDULER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "headway/base/stack.h"
#include "headway/bucket/bucket.h"
#include "headway/schedule/bucket_queue.h"
#include "headway/schedule/waiter.h"

namespace headway {

// The order of admission over any number of buckets:
// - strict priority classes, a wait gaining one step for each `ageing` it has waited: a step of
//   priority is worth as much as having been submitted that much earlier;
// - among the accounts of a class, whoever has been given least (see Share), and first in, first
//   out within an account;
// - nobody passes the head of the top class on a meter that binds it, or has bound it. Those who
//   ask nothing of that meter's resource may go;
// - an account that its own limits hold up keeps nobody else waiting;
// - buckets whose heads a common gate holds up take turns at it.
//
// Passive: whoever drives it calls `Advance(now)`, which admits what can be admitted, posts it to
// the mailboxes, and says when to come back. The dispatcher drives it with the real clock and the
// tests with a virtual one, so that what they prove holds in production.
//
// Thread-safe. Submit, Cancel and Signal are lock-free and may be called from anywhere; the others
// take the scheduler's lock.
//
// No wake-up is lost: Submit, Cancel and Signal push first and wake then; the driver must look at
// `HasWork` after it has said that it is going to sleep and before it does.
class Scheduler final : public WaiterSignal {
 public:
  static constexpr Nanos kAgeing = 30 * kSecond;

  // `wake` is called, from any thread, when Advance should be called soon. It must not block.
  explicit Scheduler(std::function<void()> wake, Nanos ageing = kAgeing)
      : wake_(std::move(wake)), ageing_(ageing) {}
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues a wait; see Waiter. `deadline` is an instant, or kNever: the last at which it may be
  // admitted. If by the estimate at submission it cannot be met, the wait ends with kDeadline at
  // once; with kNever where no waiting would help.
  Waiter* Submit(Bucket* bucket, absl::Span<const std::int64_t> amounts, std::int32_t priority,
                 Nanos now, Nanos deadline, Mailbox* mailbox, void* cookie) {
    return Push(bucket, nullptr, amounts, priority, now, deadline, mailbox, cookie);
  }
  // The same through a gate and on an account.
  Waiter* Submit(const Path* path, absl::Span<const std::int64_t> amounts, std::int32_t priority,
                 Nanos now, Nanos deadline, Mailbox* mailbox, void* cookie, bool again = false) {
    return Push(path->bucket(), path, amounts, priority, now, deadline, mailbox, cookie, again);
  }

  // Ends a wait. Afterwards it is not admitted, or what it was admitted to is given back. `now` is
  // for that. Idempotent.
  void Cancel(Waiter* waiter, Nanos now);

  void Signal(Bucket& bucket) override;

  // Does all that is due at `now`. Returns the next instant at which something can be due, or
  // kNever.
  Nanos Advance(Nanos now);

  bool HasWork() const {
    return !intake_.empty() || !cancelled_.empty() || !touched_.empty() || nudged_.load();
  }

  // What would bind a newcomer behind all that waits, and when it would be admitted (see Forecast;
  // nobody has aged by then). On a path, where the gate is full only answers can tell. `line`:
  // behind that instead, to which it is added.
  Denial Estimate(Bucket& bucket, Nanos now, std::int32_t priority,
                  absl::Span<const std::int64_t> amounts);
  Refusal Estimate(const Path& path, Nanos now, std::int32_t priority,
                   absl::Span<const std::int64_t> amounts, Forecast* line = nullptr);
  // Of all that goes in front of a newcomer, for those that are to be added behind it.
  Forecast Ahead(const Path& path, Nanos now, std::int32_t priority);

  // How many wait on this bucket; of them only those who come through this gate.
  std::size_t Depth(Bucket& bucket, Nanos now);
  std::size_t Depth(Bucket& bucket, const Bucket* gate, Nanos now);

  // Ends the wait on this bucket that was submitted first, as kDropped: of those that come through
  // the same gate, and not for another turn. False where there is none.
  bool DropOldest(Bucket& bucket, const Bucket* gate, Nanos now);

  // From now on somebody else decides which bucket goes next at this gate. `ask` is called when two
  // or more wait there and there is room, from any thread; it must not block and must not call
  // back. Whoever is asked looks at the Contenders and chooses one, until there are none. Null: the
  // scheduler decides again.
  //
  // Where he has not chosen within `patience`, or never for kNever, the scheduler decides, and goes
  // on doing so, and asking, until he looks at the Contenders again: one that is gone costs the
  // others one patience, not one for each of them.
  void SetChooser(Bucket& gate, std::function<void()> ask, Nanos patience = kNever);
  struct Contender {
    Bucket* bucket;
    std::size_t waiting;    // there, to come through this gate
    std::int32_t priority;  // of the head
    Nanos submitted;        // the head was
  };
  // The buckets that the next place at the gate is between; empty where there is nothing to choose.
  std::vector<Contender> Contenders(Bucket& gate, Nanos now);
  // The head of this bucket goes next. False where it does not contend, or the scheduler has
  // decided since the Contenders were looked at.
  bool Choose(Bucket& gate, Bucket& bucket, Nanos now);

  // `ask` is called, from any thread, when the head of this bucket waits for credit, or will within
  // `ahead` when all else lets it go; it must not block and must not call back. Null ends that.
  void SetSupplier(Bucket& bucket, std::function<void()> ask, Nanos ahead = 0);
  // What the first `most` in this bucket's queue ask of those whom credit would let go.
  struct Demanded {
    std::vector<Asked> asked;
    bool at_gate;  // its head is held up there, with the credit that it needs
  };
  Demanded Demand(Bucket& bucket, Nanos now, std::size_t most);

  // For the fork handlers: nothing moves while locked. In the child, `Forget` drops all waits
  // (their owners see kStopped) after `Unlock`.
  void Lock() { mutex_.lock(); }
  void Unlock() { mutex_.unlock(); }
  void Forget();

 private:
  Waiter* Push(Bucket* bucket, const Path* path, absl::Span<const std::int64_t> amounts,
               std::int32_t priority, Nanos now, Nanos deadline, Mailbox* mailbox, void* cookie,
               bool again = false);
  template <typename T>
  T& PlaceOf(Bucket* bucket);
  BucketQueue& QueueOf(Bucket* bucket) { return PlaceOf<BucketQueue>(bucket); }
  BucketQueue* Find(Bucket& bucket);
  BucketQueue* FindNow(Bucket& bucket, Nanos now);
  void TakeIn(Nanos now);
  void Queue(Waiter* waiter, Nanos now);
  void TakeTouched();
  void FireTimers(Nanos now);
  void FailDeadlines(Nanos until);
  void AdmitDirty(Nanos now);
  void Admit(BucketQueue& queue, Nanos now);
  void AdmitAtGate(GateQueue& gate, Nanos now);
  void GiveTurn(BucketQueue& queue, GateQueue& gate, Nanos now);
  void ChargeAtGate(const Waiter& waiter);
  bool LeavesToChooser(GateQueue& gate, Nanos now);
  void AdmitAccount(AccountPlace& place, Nanos now);
  void TakeOut(BucketQueue& queue, Waiter* waiter);
  enum class Try : std::uint8_t { kDone, kDenied, kAccount, kGate };
  void AskForCredit(Bucket& bucket);
  Try TryHead(BucketQueue& queue, ClassQueue& heads, Nanos now, Denial& denial);
  std::optional<Refusal> Reserve(BucketQueue& queue, const Waiter& waiter, Nanos now);
  bool StandsBehindItsOwn(ClassQueue& heads);
  void ParkAccount(ClassQueue& heads, Bucket* limits, const Denial& denial);
  void Nudge();
  void Finish(Waiter* waiter);
  void PostBatch();
  void SetTimer(Place& place, Nanos at);
  void MarkDirty(Place& place);
  GateQueue& OpenGate(Bucket* gate);
  void Drop(Place& place);

  const std::function<void()> wake_;
  const Nanos ageing_;

  Stack<Waiter, &Waiter::next_> intake_;
  std::atomic<std::uint32_t> pushed_{0};  // about so many
  Stack<Waiter, &Waiter::next_cancelled_> cancelled_;
  Stack<Bucket, &Bucket::next_touched> touched_;

  std::atomic<bool> nudged_{
      false};  // a look from outside took something in that Advance must serve

  std::mutex mutex_;  // guards all below
  Reservations reservations_;
  std::unique_ptr<Reservation> spare_;
  std::uint64_t taken_in_ = 0;
  absl::flat_hash_map<Bucket*, std::unique_ptr<Place>> places_;
  struct Chooser {
    std::function<void()> ask;
    Nanos patience;
    bool absent = false;  // he has not chosen in time, and has not looked since
  };
  absl::flat_hash_map<Bucket*, Chooser> choosers_;  // by gate
  struct Supplier {
    std::function<void()> ask;
    Nanos ahead;
  };
  absl::flat_hash_map<Bucket*, Supplier> suppliers_;
  std::deque<Place*> dirty_;
  std::size_t dirty_buckets_ = 0;  // of them
  absl::btree_set<std::pair<Nanos, Place*>> timers_;
  absl::btree_set<std::pair<Nanos, Waiter*>> deadlines_;
  // Finished waits on their way to one mailbox, oldest first.
  Mailbox* batch_mailbox_ = nullptr;
  Waiter* batch_newest_ = nullptr;
  Waiter* batch_oldest_ = nullptr;
  int batch_size_ = 0;
};

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_SCHEDULER_H_
