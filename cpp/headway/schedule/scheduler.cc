// headway/schedule/scheduler.cc: intake, order, admission, hand-over.
#include "headway/schedule/scheduler.h"

#include <algorithm>

namespace headway {
namespace {

// Waits posted in one go: enough that a loop that drains while more are admitted is rarely woken in
// vain, few enough that it starts early.
constexpr int kBatch = 64;

std::uint64_t PackBlocked(std::int32_t priority, std::uint32_t resources) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(priority)) << 32) | resources;
}

bool StandsBehind(std::uint64_t blocked, std::int32_t priority, std::uint32_t asks) {
  return (static_cast<std::uint32_t>(blocked) & asks) != 0 &&
         priority <= static_cast<std::int32_t>(static_cast<std::uint32_t>(blocked >> 32));
}

}  // namespace

Scheduler::~Scheduler() { Forget(); }

Waiter* Scheduler::Submit(Bucket* bucket, absl::Span<const std::int64_t> amounts,
                          std::int32_t priority, Nanos now, Nanos deadline, Mailbox* mailbox,
                          void* cookie) {
  auto* waiter = new Waiter(bucket, amounts, priority, now, deadline, mailbox, cookie);
  const std::uint32_t asks = Asks(amounts);
  // From now on nobody passes by on the meter that binds, even if what is asked comes free before
  // the driver has taken this in. The driver takes the flag away again when nobody waits any more.
  if (const Denial binding = bucket->Look(now, amounts); binding.ready_at > now)
    bucket->SetWaiters(binding.meter);
  HEADWAY_PAUSE();
  intake_.Push(waiter);
  HEADWAY_PAUSE();
  // Behind a blocked head nothing is to be done until that head's time comes, so nobody is woken: a
  // submission then costs the push. Looked at after the push: whoever unblocks the bucket looks
  // into the intake afterwards.
  if (deadline != kNever || !StandsBehind(bucket->blocked.load(), priority, asks)) wake_();
  return waiter;
}

void Scheduler::Cancel(Waiter* waiter, Nanos now) {
  if (waiter->Finish(Outcome::kCancelled)) {
    HEADWAY_PAUSE();
    cancelled_.Push(waiter);
    HEADWAY_PAUSE();
    wake_();
    return;
  }
  if (waiter->outcome() == Outcome::kAdmitted) {
    if (const std::unique_ptr<Reservation> unclaimed = waiter->Claim()) unclaimed->Cancel(now);
  }
}

void Scheduler::Signal(Bucket& bucket) {
  if (bucket.touched.exchange(true)) return;
  HEADWAY_PAUSE();
  bucket.Ref();
  touched_.Push(&bucket);
  HEADWAY_PAUSE();
  wake_();
}

BucketQueue& Scheduler::QueueOf(Bucket* bucket) {
  std::unique_ptr<BucketQueue>& queue = queues_[bucket];
  if (queue == nullptr) queue = std::make_unique<BucketQueue>(bucket);
  return *queue;
}

void Scheduler::MarkDirty(BucketQueue& queue) {
  if (queue.dirty) return;
  queue.dirty = true;
  dirty_.push_back(&queue);
}

void Scheduler::SetTimer(BucketQueue& queue, Nanos at) {
  if (queue.wake_at == at) return;
  if (queue.wake_at != kNever) timers_.erase({queue.wake_at, &queue});
  queue.wake_at = at >= kUntold ? kNever : at;
  if (queue.wake_at != kNever) timers_.insert({queue.wake_at, &queue});
}

void Scheduler::Drop(BucketQueue& queue) {
  SetTimer(queue, kNever);
  Bucket* bucket = queue.bucket();
  bucket->ClearWaiters();
  HEADWAY_PAUSE();
  bucket->blocked.store(0);
  queues_.erase(bucket);
}

// Hands a finished wait, and the scheduler's reference with it, to its mailbox.
void Scheduler::Finish(Waiter* waiter) {
  if (waiter->deadline_ != kNever) deadlines_.erase({waiter->deadline_, waiter});
  if (batch_mailbox_ != waiter->mailbox_ || batch_size_ == kBatch) PostBatch();
  batch_mailbox_ = waiter->mailbox_;
  waiter->next_in_mailbox = batch_newest_;
  batch_newest_ = waiter;
  if (batch_oldest_ == nullptr) batch_oldest_ = waiter;
  ++batch_size_;
}

void Scheduler::PostBatch() {
  if (batch_newest_ != nullptr) {
    // Its consumer may drop the last other reference as soon as the batch is in it.
    batch_mailbox_->Ref();
    batch_mailbox_->Post(batch_newest_, batch_oldest_);
    batch_mailbox_->Unref();
  }
  batch_mailbox_ = nullptr;
  batch_newest_ = batch_oldest_ = nullptr;
  batch_size_ = 0;
}

void Scheduler::Queue(Waiter* waiter, Nanos now) {
  BucketQueue& queue = QueueOf(waiter->bucket_);
  MarkDirty(queue);
  waiter->sequence_ = ++taken_in_;
  if (!waiter->bucket_->EverFits(waiter->amounts_)) {
    if (waiter->Finish(Outcome::kNever)) Finish(waiter);
    return;
  }
  if (waiter->deadline_ != kNever) {
    const auto ahead = queue.Ahead(waiter->priority_, waiter->amounts_.size());
    const Denial estimate = waiter->bucket_->Estimate(now, ahead, waiter->amounts_);
    // Behind others the estimate is for the whole queue in front; kUntold is let in.
    if (waiter->deadline_ < now ||
        (estimate.ready_at < kUntold && estimate.ready_at > waiter->deadline_)) {
      waiter->at_ = estimate.ready_at;
      if (waiter->Finish(Outcome::kDeadline)) Finish(waiter);
      return;
    }
    deadlines_.insert({waiter->deadline_, waiter});
  }
  queue.Append(waiter);
}

void Scheduler::TakeTouched() {
  for (Bucket* bucket = touched_.TakeAll(); bucket != nullptr;) {
    Bucket* next = bucket->next_touched;
    bucket->touched.store(false);
    HEADWAY_PAUSE();
    if (const auto found = queues_.find(bucket); found != queues_.end()) MarkDirty(*found->second);
    bucket->Unref();
    bucket = next;
  }
}

void Scheduler::TakeIn(Nanos now) {
  TakeTouched();
  // The cancelled ones are taken before the intake, so that each of them has been taken in by then.
  Waiter* cancelled = cancelled_.TakeAll();
  HEADWAY_PAUSE();
  for (Waiter* waiter = intake_.TakeAll(); waiter != nullptr;) {
    Waiter* next = waiter->next_;
    Queue(waiter, now);
    waiter = next;
  }
  while (cancelled != nullptr) {
    Waiter* waiter = cancelled;
    cancelled = cancelled->next_cancelled_;
    if (waiter->queued_) {
      BucketQueue& queue = QueueOf(waiter->bucket_);
      queue.Unlink(waiter);
      MarkDirty(queue);
    }
    if (waiter->deadline_ != kNever) deadlines_.erase({waiter->deadline_, waiter});
    waiter->Unref();
  }
}

void Scheduler::FireTimers(Nanos now) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    BucketQueue& queue = *timers_.begin()->second;
    SetTimer(queue, kNever);
    MarkDirty(queue);
  }
}

// Ends the waits whose deadline lies at or before `until`.
void Scheduler::FailDeadlines(Nanos until) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= until) {
    Waiter* waiter = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    if (!waiter->Finish(Outcome::kDeadline))
      continue;  // cancelled: its owner has pushed it, or will
    BucketQueue& queue = QueueOf(waiter->bucket_);
    queue.Unlink(waiter);
    MarkDirty(queue);
    Finish(waiter);
  }
}

// Tries the head of a class. Returns whether it is done with (admitted, or over in another way);
// else `denial` says why not.
bool Scheduler::AdmitHead(BucketQueue& queue, ClassQueue& heads, Nanos now, Denial& denial) {
  Waiter* waiter = heads.head();
  if (waiter->outcome() != Outcome::kWaiting) {
    // Cancelled: its owner pushes it, and the reference goes there.
    queue.Unlink(waiter);
    return true;
  }
  if (spare_ == nullptr) spare_ = std::make_unique<Reservation>();
  const std::optional<Denial> denied =
      waiter->bucket_->TryReserve(now, waiter->amounts_, /*privileged=*/true, *spare_);
  if (denied && !denied->never()) {
    denial = *denied;
    return false;
  }
  queue.Unlink(waiter);
  if (!denied) {
    waiter->at_ = now;
    waiter->reservation_.store(spare_.release());
  }
  HEADWAY_PAUSE();
  if (waiter->Finish(denied ? Outcome::kNever : Outcome::kAdmitted)) {
    Finish(waiter);
  } else if (const std::unique_ptr<Reservation> unclaimed = waiter->Claim()) {
    unclaimed->Cancel(now);  // cancelled meanwhile: gives its place back
  }
  return true;
}

void Scheduler::Admit(BucketQueue& queue, Nanos now) {
  Bucket& bucket = *queue.bucket();
  while (queue.depth() > 0) {
    const absl::Span<ClassQueue* const> order = queue.Ordered(now, ageing_);
    const bool alone = order.size() == 1;
    std::uint32_t blocked = 0;
    std::int32_t lowest = INT32_MAX;
    Nanos next = kNever;
    bool moved = false;
    int flagged = -1;
    for (ClassQueue* heads : order) {
      if ((heads->asks() & blocked) != 0) continue;
      Denial denial;
      for (;;) {
        if (AdmitHead(queue, *heads, now, denial)) {
          moved = true;
          // With one class there is nobody whose turn could come in between.
          if (alone && heads->head() != nullptr) continue;
          break;
        }
        moved = false;
        // Denied by a look that was taken with the flag on the meter that binds: what is given back
        // from now on signals. Otherwise set the flag and look again. (A flag that is seen here may
        // be a newcomer's, set after the look: only one that was set here before it counts.)
        if (denial.meter == flagged) break;
        bucket.SetWaiters(denial.meter);
        flagged = denial.meter;
        HEADWAY_PAUSE();
      }
      if (moved) break;
      heads->held |= std::uint32_t{1} << bucket.resource(denial.meter);
      blocked |= heads->held;
      lowest = std::min(lowest, heads->priority());
      next = std::min(next, denial.ready_at);
    }
    if (moved) continue;
    // Ageing may bring another head to the front before this one fits.
    if (!alone)
      for (const ClassQueue* heads : order) next = std::min(next, heads->NextStep(now, ageing_));
    SetTimer(queue, next);
    bucket.blocked.store(PackBlocked(lowest, blocked));
    return;
  }
}

void Scheduler::AdmitDirty(Nanos now) {
  while (!dirty_.empty()) {
    BucketQueue& queue = *dirty_.back();
    dirty_.pop_back();
    queue.dirty = false;
    Admit(queue, now);
    if (queue.depth() == 0) Drop(queue);
  }
}

Nanos Scheduler::Advance(Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  nudged_.store(false);
  TakeIn(now);
  FireTimers(now);
  // A deadline is the last instant at which a wait may be admitted, so it is tried at it once more.
  FailDeadlines(now - 1);
  AdmitDirty(now);
  FailDeadlines(now);
  AdmitDirty(now);
  PostBatch();
  Nanos next = kNever;
  if (!timers_.empty()) next = timers_.begin()->first;
  if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  return next;
}

void Scheduler::Nudge() {
  if (dirty_.empty()) return;
  nudged_.store(true);
  wake_();
}

Denial Scheduler::Estimate(Bucket& bucket, Nanos now, std::int32_t priority,
                           absl::Span<const std::int64_t> amounts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeIn(now);
  PostBatch();
  Nudge();
  const auto found = queues_.find(&bucket);
  if (found == queues_.end()) return bucket.Look(now, amounts);
  return bucket.Estimate(now, found->second->Ahead(priority, amounts.size()), amounts);
}

std::size_t Scheduler::Depth(Bucket& bucket, Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeIn(now);
  PostBatch();
  Nudge();
  const auto found = queues_.find(&bucket);
  return found == queues_.end() ? 0 : found->second->depth();
}

// Hands nothing over: after a fork the mailboxes' descriptors are the parent's, too.
void Scheduler::Forget() {
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeTouched();
  const auto stop = [](Waiter* waiter) {
    if (waiter->Finish(Outcome::kStopped)) waiter->Unref();
  };
  Waiter* cancelled = cancelled_.TakeAll();
  for (Waiter* waiter = intake_.TakeAll(); waiter != nullptr;) {
    Waiter* next = waiter->next_;
    stop(waiter);
    waiter = next;
  }
  deadlines_.clear();
  timers_.clear();
  dirty_.clear();
  for (auto& [bucket, queue] : queues_) {
    while (queue->depth() > 0) {
      Waiter* waiter = queue->Ordered(0, ageing_)[0]->head();
      queue->Unlink(waiter);
      stop(waiter);
    }
    bucket->ClearWaiters();
    bucket->blocked.store(0);
  }
  queues_.clear();
  while (cancelled != nullptr) {
    Waiter* next = cancelled->next_cancelled_;
    cancelled->Unref();
    cancelled = next;
  }
}

}  // namespace headway
