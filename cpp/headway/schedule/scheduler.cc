// headway/schedule/scheduler.cc: intake, order, admission, hand-over.
#include "headway/schedule/scheduler.h"

#include <algorithm>

namespace headway {
namespace {

// Waits posted in one go: enough that a loop that drains while more are admitted is rarely woken in
// vain, few enough that it starts early.
constexpr int kBatch = 64;

// So many come before they are taken in, where there is nothing else to do for them.
constexpr std::uint32_t kIntake = 1'024;

std::uint64_t PackBlocked(std::int32_t priority, std::uint32_t resources) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(priority)) << 32) | resources;
}

bool StandsBehind(std::uint64_t blocked, std::int32_t priority, std::uint32_t asks) {
  return (static_cast<std::uint32_t>(blocked) & asks) != 0 &&
         priority <= static_cast<std::int32_t>(static_cast<std::uint32_t>(blocked >> 32));
}

}  // namespace

Scheduler::~Scheduler() { Forget(); }

Waiter* Scheduler::Push(Bucket* bucket, const Path* path, absl::Span<const std::int64_t> amounts,
                        std::int32_t priority, Nanos now, Nanos deadline, Mailbox* mailbox,
                        void* cookie, bool again) {
  auto* waiter = new Waiter(bucket, path, amounts, priority, now, deadline, mailbox, cookie, again);
  const std::uint32_t asks = Asks(amounts);
  // From now on nobody passes by on the meter that binds, even if what is asked comes free before
  // the driver has taken this in. The driver takes the flag away again when nobody waits any more.
  const Refusal binding =
      path == nullptr ? Refusal{bucket->Look(now, amounts), bucket} : path->LookAll(now, amounts);
  if (binding.denial.ready_at > now) binding.by->SetWaiters(binding.denial.meter);
  HEADWAY_PAUSE();
  intake_.Push(waiter);
  HEADWAY_PAUSE();
  // Behind a blocked head nothing is to be done until that head's time comes, so nobody is woken: a
  // submission then costs the push. Looked at after the push: whoever unblocks the bucket looks
  // into the intake afterwards. But for one now and then, so that taking in all who have come does
  // not keep them waiting when their time comes. Of two that count at once, one may be missed.
  const std::uint32_t pushed = pushed_.load(std::memory_order_relaxed) + 1;
  pushed_.store(pushed, std::memory_order_relaxed);
  if (deadline != kNever || pushed % kIntake == 0 ||
      !StandsBehind(bucket->blocked.load(), priority, asks))
    wake_();
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
    if (const std::unique_ptr<Reservation> unclaimed = waiter->Unclaimed()) unclaimed->Cancel(now);
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

template <typename T>
T& Scheduler::PlaceOf(Bucket* bucket) {
  std::unique_ptr<Place>& place = places_[bucket];
  if (place == nullptr) place = std::make_unique<T>(bucket);
  return static_cast<T&>(*place);
}

BucketQueue* Scheduler::Find(Bucket& bucket) {
  const auto found = places_.find(&bucket);
  if (found == places_.end() || found->second->kind != Place::Kind::kBucket) return nullptr;
  return static_cast<BucketQueue*>(found->second.get());
}

// The same with all who have come by now.
BucketQueue* Scheduler::FindNow(Bucket& bucket, Nanos now) {
  TakeIn(now);
  PostBatch();
  Nudge();
  return Find(bucket);
}

void Scheduler::MarkDirty(Place& place) {
  if (place.dirty) return;
  place.dirty = true;
  dirty_.push_back(&place);
  if (place.kind == Place::Kind::kBucket) ++dirty_buckets_;
}

void Scheduler::SetTimer(Place& place, Nanos at) {
  if (place.wake_at == at) return;
  if (place.wake_at != kNever) timers_.erase({place.wake_at, &place});
  place.wake_at = at >= kUntold ? kNever : at;
  if (place.wake_at != kNever) timers_.insert({place.wake_at, &place});
}

// Nobody waits there any more.
void Scheduler::Drop(Place& place) {
  SetTimer(place, kNever);
  if (place.kind == Place::Kind::kBucket) {
    // Its accounts may be held up elsewhere, with nobody left to go on.
    static_cast<BucketQueue&>(place).ForEachFlow([](Flow& flow) {
      if (flow.parked_at == nullptr) return;
      flow.parked_at->Remove(&flow);
    });
  }
  Bucket* bucket = place.bucket;
  bucket->ClearWaiters();
  HEADWAY_PAUSE();
  bucket->blocked.store(0);
  places_.erase(bucket);
}

// Hands a finished wait, and the scheduler's reference with it, to its mailbox.
void Scheduler::Finish(Waiter* waiter) {
  if (waiter->deadline_ != kNever) deadlines_.erase({waiter->deadline_, waiter});
  if (batch_mailbox_ != waiter->mailbox_ || batch_size_ == kBatch) PostBatch();
  batch_mailbox_ = waiter->mailbox_;
  (batch_newest_ != nullptr ? batch_newest_->next_in_mailbox : batch_oldest_) = waiter;
  batch_newest_ = waiter;
  ++batch_size_;
}

void Scheduler::PostBatch() {
  if (batch_newest_ != nullptr) {
    // Its consumer may drop the last other reference as soon as the batch is in it.
    batch_mailbox_->Ref();
    batch_mailbox_->Post(batch_oldest_, batch_newest_);
    batch_mailbox_->Unref();
  }
  batch_mailbox_ = nullptr;
  batch_newest_ = batch_oldest_ = nullptr;
  batch_size_ = 0;
}

void Scheduler::Queue(Waiter* waiter, Nanos now) {
  BucketQueue& queue = QueueOf(waiter->bucket_);
  // Submitting it may have set their flags; who is there takes them away again, after the queue has
  // been tried.
  const Path* const path = waiter->path_;
  if (queue.ageing == 0)
    queue.ageing = path != nullptr && path->ageing() != 0 ? path->ageing() : ageing_;
  if (path != nullptr) {
    if (path->gate() != nullptr && path->gate()->has_waiters())
      MarkDirty(PlaceOf<GateQueue>(path->gate()));
    if (path->limits() != nullptr && path->limits()->has_waiters())
      MarkDirty(PlaceOf<AccountPlace>(path->limits()));
  }
  MarkDirty(queue);
  waiter->sequence_ = ++taken_in_;
  if (!waiter->bucket_->EverFits(waiter->amounts_) ||
      (waiter->path_ != nullptr && !waiter->path_->EverFits(waiter->amounts_))) {
    if (waiter->Finish(Outcome::kNever)) Finish(waiter);
    return;
  }
  if (waiter->deadline_ != kNever) {
    const Denial estimate = queue.Estimate(*waiter, now).denial;
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
    if (const auto found = places_.find(bucket); found != places_.end()) MarkDirty(*found->second);
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
    if (waiter->flow_ != nullptr) {
      BucketQueue& queue = QueueOf(waiter->bucket_);
      TakeOut(queue, waiter);
    }
    if (waiter->deadline_ != kNever) deadlines_.erase({waiter->deadline_, waiter});
    waiter->Unref();
  }
}

void Scheduler::FireTimers(Nanos now) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Place& place = *timers_.begin()->second;
    SetTimer(place, kNever);
    MarkDirty(place);
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
    TakeOut(queue, waiter);
    Finish(waiter);
  }
}

// Takes what the waiter asks into `spare_`. Through the gate only when it is this bucket's turn, or
// no other bucket contends for it.
std::optional<Refusal> Scheduler::Reserve(BucketQueue& queue, const Waiter& waiter, Nanos now) {
  if (spare_ == nullptr) spare_ = reservations_.Make();
  const Path* path = waiter.path_;
  if (path == nullptr) {
    const std::optional<Denial> denied =
        waiter.bucket_->TryReserve(now, waiter.amounts_, /*privileged=*/true, *spare_);
    return denied ? std::optional<Refusal>({*denied, waiter.bucket_}) : std::nullopt;
  }
  if (path->gate() == nullptr)
    return path->TryReserve(now, waiter.amounts_, /*privileged=*/true, *spare_);
  // Entering the gate and leaving it again would signal those who wait there for nothing.
  if (const Refusal refusal = path->Look(now, waiter.amounts_); refusal.denial.ready_at > now)
    return refusal;
  const auto found = places_.find(path->gate());
  auto* gate = found == places_.end() ? nullptr : static_cast<GateQueue*>(found->second.get());
  if (queue.turn != path->gate() && ((gate != nullptr && !gate->empty()) || queue.contends)) {
    if (gate == nullptr) OpenGate(path->gate());
    return Refusal{Denial{0, kUntold}, path->gate()};
  }
  for (;;) {
    const auto refusal =
        path->TryReserve(now, waiter.amounts_, /*privileged=*/true, *spare_, /*looked=*/true);
    if (!refusal || refusal->by != path->gate()) return refusal;
    // Looked at with the flag set: whoever leaves from now on signals.
    if (gate != nullptr) {
      gate->full = true;
      return refusal;
    }
    gate = &OpenGate(path->gate());
  }
}

// Somebody is going to be held up there. It is looked at soon, and dropped again, with the flag, if
// nobody is after all.
GateQueue& Scheduler::OpenGate(Bucket* gate) {
  auto& place = PlaceOf<GateQueue>(gate);
  gate->SetWaiters(0);
  MarkDirty(place);
  HEADWAY_PAUSE();
  return place;
}

// Tries the head of a class. kDone: it is done with (admitted, or over in another way). kAccount,
// kGate: it is held up there. Else `denial` says why not, and the flag of the limit that binds was
// set before it was looked at.
Scheduler::Try Scheduler::TryHead(BucketQueue& queue, ClassQueue& heads, Nanos now,
                                  Denial& denial) {
  Waiter* waiter = heads.head();
  Bucket* flagged_in = nullptr;
  int flagged = 0;
  for (;;) {
    if (waiter->outcome() != Outcome::kWaiting) {
      // Cancelled: its owner pushes it, and the reference goes there.
      queue.Unlink(waiter);
      return Try::kDone;
    }
    if (StandsBehindItsOwn(heads)) return Try::kAccount;
    const std::optional<Refusal> refusal = Reserve(queue, *waiter, now);
    const bool never = refusal && refusal->denial.never();
    if (refusal && !never) {
      if (waiter->path_ != nullptr && refusal->by == waiter->path_->gate()) return Try::kGate;
      denial = refusal->denial;
      // Denied by a look that was taken with the flag on the meter that binds: what is given back
      // from now on signals. Otherwise set the flag and look again. (A flag that is seen here may
      // be a newcomer's, set after the look: only one that was set here before it counts.)
      if (refusal->by != flagged_in || denial.meter != flagged) {
        flagged_in = refusal->by;
        flagged = denial.meter;
        flagged_in->SetWaiters(flagged);
        HEADWAY_PAUSE();
        continue;
      }
      if (refusal->by == waiter->bucket_) return Try::kDenied;
      ParkAccount(heads, refusal->by, denial);
      return Try::kAccount;
    }
    if (!refusal) {
      queue.Charge(waiter);
      ChargeAtGate(*waiter);
      if (waiter->path_ != nullptr && waiter->path_->gate() == queue.turn) queue.turn = nullptr;
    }
    queue.Unlink(waiter);
    if (!refusal) {
      waiter->at_ = now;
      waiter->reservation_.store(spare_.release());
    }
    HEADWAY_PAUSE();
    if (waiter->Finish(never ? Outcome::kNever : Outcome::kAdmitted)) {
      Finish(waiter);
    } else if (const std::unique_ptr<Reservation> unclaimed = waiter->Unclaimed()) {
      unclaimed->Cancel(now);  // cancelled meanwhile: gives its place back
    }
    return Try::kDone;
  }
}

// It has got a place at its gate; where others wait there, that counts.
void Scheduler::ChargeAtGate(const Waiter& waiter) {
  const Path* const path = waiter.path_;
  if (path == nullptr || path->gate() == nullptr) return;
  if (const auto found = places_.find(path->gate()); found != places_.end())
    static_cast<GateQueue&>(*found->second).Charge(path->account(), waiter.priority_);
}

// Whether another request of the account is held up by the account's own limits, and the head of
// this class has to stay behind it.
bool Scheduler::StandsBehindItsOwn(ClassQueue& heads) {
  const Waiter& head = *heads.head();
  Bucket* const limits = head.path_ == nullptr ? nullptr : head.path_->limits();
  if (limits == nullptr) return false;
  const auto found = places_.find(limits);
  if (found == places_.end()) return false;
  auto& place = static_cast<AccountPlace&>(*found->second);
  const Turn turn = TurnOf(head, heads.priority(), heads.queue()->ageing);
  if (!place.HoldsUp(heads.asks(), turn)) return false;
  place.Park(heads, 0);
  return true;
}

// The account of a class's head is held up by its own limits until then.
void Scheduler::ParkAccount(ClassQueue& heads, Bucket* limits, const Denial& denial) {
  auto& place = PlaceOf<AccountPlace>(limits);
  place.Park(heads, limits->Binding(denial));
  SetTimer(place, std::min(place.wake_at, denial.ready_at));
}

void Scheduler::Admit(BucketQueue& queue, Nanos now) {
  Bucket& bucket = *queue.bucket;
  if (queue.gate != nullptr) {
    // Whoever is left there may have nobody beside him any more, and so nobody who chooses.
    if (!choosers_.empty()) MarkDirty(*queue.gate);
    queue.gate->Unpark(&queue);
  }
  while (queue.depth() > 0) {
    const absl::Span<ClassQueue* const> order = queue.Ordered();
    std::uint32_t blocked = 0;
    std::int32_t lowest = INT32_MAX;
    Nanos next = kNever;
    bool moved = false;
    bool lacks_credit = false;
    for (ClassQueue* heads : order) {
      if ((heads->asks() & blocked) != 0) continue;
      Denial denial;
      Try tried = TryHead(queue, *heads, now, denial);
      // With one class there is nobody whose turn could come in between.
      while (queue.OfOneClass() && tried == Try::kDone && heads->head() != nullptr)
        tried = TryHead(queue, *heads, now, denial);
      if (tried == Try::kGate) {
        auto& gate = PlaceOf<GateQueue>(heads->head()->path_->gate());
        heads->ElectAtGate(gate.SharesOf(heads->priority()));
        gate.Park(&queue, *heads);
        SetTimer(queue, kNever);
        bucket.blocked.store(PackBlocked(heads->priority(), ~std::uint32_t{0}));
        // Who was tried before it must not wait for the gate, too.
        if (lacks_credit) AskForCredit(bucket);
        return;
      }
      moved = tried != Try::kDenied;
      if (moved) break;
      heads->elsewhere =
          denial.meter == Denial::kCooling || bucket.meter(denial.meter).shape() != Shape::kCredit;
      if (!heads->elsewhere) {
        // Whoever may not go yet anyway asks when he may: what is granted now would be used late.
        // Or so much earlier as the answer takes.
        const auto supplier = suppliers_.find(&bucket);
        const Nanos ahead = supplier == suppliers_.end() ? 0 : supplier->second.ahead;
        const Denial beside = bucket.LookBesideCredit(now, heads->head()->amounts());
        heads->elsewhere = beside.ready_at > now + ahead;
        if (heads->elsewhere) {
          denial = beside;
          if (denial.ready_at < kUntold) denial.ready_at -= ahead;
          bucket.SetWaiters(denial.meter);
        }
      }
      lacks_credit |= !heads->elsewhere;
      heads->held |= bucket.Binding(denial);
      blocked |= heads->held;
      lowest = std::min(lowest, heads->priority());
      next = std::min(next, denial.ready_at);
    }
    if (moved) continue;
    SetTimer(queue, next);
    bucket.blocked.store(PackBlocked(lowest, blocked));
    if (lacks_credit) AskForCredit(bucket);
    return;
  }
}

void Scheduler::AskForCredit(Bucket& bucket) {
  if (const auto supplier = suppliers_.find(&bucket); supplier != suppliers_.end())
    supplier->second.ask();
}

// Whether somebody else decides who goes next at this gate, if anybody can; he has been asked.
bool Scheduler::LeavesToChooser(GateQueue& gate, Nanos now) {
  const auto found = choosers_.find(gate.bucket);
  // Looked at with the flag set, as long as somebody waits there.
  const bool room = gate.size() > 1 && gate.bucket->meter(0).ReadyAt(now, 1) <= now;
  if (found == choosers_.end() || !room) {
    gate.choose_by = kNever;
    SetTimer(gate, kNever);
    return found != choosers_.end() && gate.size() > 1;
  }
  Chooser& chooser = found->second;
  chooser.ask();
  // Of the first time that he was asked for this place: whoever comes meanwhile prolongs nothing.
  if (gate.choose_by == kNever && chooser.patience < kNever - now)
    gate.choose_by = now + chooser.patience;
  chooser.absent |= gate.choose_by <= now;
  if (chooser.absent) gate.choose_by = kNever;
  SetTimer(gate, gate.choose_by);
  return !chooser.absent;
}

// The buckets at a gate take turns, one head each, until it is full.
void Scheduler::AdmitAtGate(GateQueue& gate, Nanos now) {
  gate.full = false;
  if (LeavesToChooser(gate, now)) return;
  while (!gate.empty() && !gate.full) GiveTurn(*gate.Next(), gate, now);
}

void Scheduler::GiveTurn(BucketQueue& queue, GateQueue& gate, Nanos now) {
  queue.turn = gate.bucket;
  Admit(queue, now);
  queue.turn = nullptr;
  if (queue.depth() == 0) MarkDirty(queue);
}

void Scheduler::SetSupplier(Bucket& bucket, std::function<void()> ask, Nanos ahead) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ask == nullptr) {
    suppliers_.erase(&bucket);
  } else {
    suppliers_[&bucket] = Supplier{std::move(ask), ahead};
  }
}

Scheduler::Demanded Scheduler::Demand(Bucket& bucket, Nanos now, std::size_t most) {
  const std::lock_guard<std::mutex> lock(mutex_);
  BucketQueue* queue = FindNow(bucket, now);
  if (queue == nullptr) return {{}, false};
  return {queue->Demand(most), queue->gate != nullptr};
}

void Scheduler::SetChooser(Bucket& gate, std::function<void()> ask, Nanos patience) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ask != nullptr) {
    choosers_[&gate] = Chooser{std::move(ask), patience};
  } else if (choosers_.erase(&gate) == 0) {
    return;
  }
  // What was left for another one to choose from, who may have been asked already.
  if (const auto found = places_.find(&gate); found != places_.end()) {
    static_cast<GateQueue&>(*found->second).choose_by = kNever;
    MarkDirty(*found->second);
  }
  Nudge();
}

std::vector<Scheduler::Contender> Scheduler::Contenders(Bucket& gate, Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeIn(now);
  PostBatch();
  Nudge();
  std::vector<Contender> out;
  if (const auto chooser = choosers_.find(&gate); chooser != choosers_.end())
    chooser->second.absent = false;
  const auto found = places_.find(&gate);
  if (found == places_.end()) return out;
  const auto& parked = static_cast<const GateQueue&>(*found->second);
  if (parked.size() < 2 || gate.meter(0).ReadyAt(now, 1) > now) return out;
  parked.ForEach([&out, &gate](const BucketQueue& queue) {
    // Whoever was there may have been cancelled since, and the queue not been looked at again.
    const Waiter* head = queue.at_gate_for->head();
    if (head == nullptr) return;
    out.push_back(
        {queue.bucket, queue.depth(&gate), queue.at_gate_for->priority(), head->submitted()});
  });
  return out;
}

bool Scheduler::Choose(Bucket& gate, Bucket& bucket, Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = places_.find(&gate);
  BucketQueue* queue = Find(bucket);
  if (found == places_.end() || queue == nullptr) return false;
  auto& parked = static_cast<GateQueue&>(*found->second);
  if (!parked.Holds(*queue)) return false;
  if (const auto chooser = choosers_.find(&gate);
      chooser != choosers_.end() && chooser->second.absent)
    return false;
  parked.full = false;
  parked.choose_by = kNever;  // the next place is another decision
  GiveTurn(*queue, parked, now);
  MarkDirty(parked);
  AdmitDirty(now);
  PostBatch();
  // Timers may have been set that the driver does not know of.
  nudged_.store(true);
  wake_();
  return true;
}

// Whoever an account's own limits have held up is tried again, in the order in which they came, a
// step of priority counting as much as what it is aged by: else one of several buckets could always
// be the last.
void Scheduler::AdmitAccount(AccountPlace& place, Nanos now) {
  place.LookAgain();
  while (Flow* flow = place.Next()) {
    BucketQueue& queue = *flow->of->queue();
    const bool over = flow->head == nullptr;
    flow->of->Unpark(flow);
    if (!over) Admit(queue, now);
    if (over || queue.depth() == 0) MarkDirty(queue);
  }
}

// Takes a wait out of its queue that does not go through it to its end.
void Scheduler::TakeOut(BucketQueue& queue, Waiter* waiter) {
  // Its account may be held up for it, and not for whoever comes next.
  AccountPlace* place = waiter->flow_->parked_at;
  if (place != nullptr && waiter->flow_->head == waiter) MarkDirty(*place);
  queue.Unlink(waiter);
  MarkDirty(queue);
}

void Scheduler::AdmitDirty(Nanos now) {
  while (!dirty_.empty()) {
    Place& place = *dirty_.front();
    dirty_.pop_front();
    place.dirty = false;
    switch (place.kind) {
      case Place::Kind::kBucket: {
        auto& queue = static_cast<BucketQueue&>(place);
        // Whoever else may go at this instant is to be at the gate before it is decided there.
        queue.contends = --dirty_buckets_ > 0;
        Admit(queue, now);
        queue.contends = false;
        if (queue.depth() == 0) Drop(queue);
        break;
      }
      case Place::Kind::kGate: {
        auto& gate = static_cast<GateQueue&>(place);
        // Whoever is going to stand there must do so before it is decided who goes next.
        if (dirty_buckets_ > 0) {
          MarkDirty(gate);
          break;
        }
        AdmitAtGate(gate, now);
        if (gate.empty()) Drop(gate);
        break;
      }
      case Place::Kind::kAccount: {
        auto& account = static_cast<AccountPlace&>(place);
        AdmitAccount(account, now);
        if (account.empty()) Drop(account);
        break;
      }
    }
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
  BucketQueue* queue = FindNow(bucket, now);
  if (queue == nullptr) return bucket.Look(now, amounts);
  return Forecast(queue->Ahead(priority, nullptr, now)).Add(bucket, nullptr, amounts).denial;
}

Forecast Scheduler::Ahead(const Path& path, Nanos now, std::int32_t priority) {
  const std::lock_guard<std::mutex> lock(mutex_);
  BucketQueue* queue = FindNow(*path.bucket(), now);
  return queue == nullptr ? Forecast(now) : queue->Ahead(priority, path.account(), now);
}

Refusal Scheduler::Estimate(const Path& path, Nanos now, std::int32_t priority,
                            absl::Span<const std::int64_t> amounts, Forecast* line) {
  const auto look = [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    BucketQueue* queue = FindNow(*path.bucket(), now);
    if (queue == nullptr) return path.Look(now, amounts);
    Forecast its = queue->Ahead(priority, path.account(), now);
    return its.Add(*path.bucket(), path.limits(), amounts);
  };
  Refusal estimate = line == nullptr ? look() : line->Add(*path.bucket(), path.limits(), amounts);
  const bool full = path.gate() != nullptr && path.gate()->meter(0).ReadyAt(now, 1) > now;
  if (full && estimate.denial.ready_at < kUntold) estimate.denial.ready_at = kUntold;
  return estimate;
}

std::size_t Scheduler::Depth(Bucket& bucket, Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const BucketQueue* queue = FindNow(bucket, now);
  return queue == nullptr ? 0 : queue->depth();
}

std::size_t Scheduler::Depth(Bucket& bucket, const Bucket* gate, Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const BucketQueue* queue = FindNow(bucket, now);
  return queue == nullptr ? 0 : queue->depth(gate);
}

bool Scheduler::DropOldest(Bucket& bucket, const Bucket* gate, Nanos now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeIn(now);
  bool dropped = false;
  if (BucketQueue* queue = Find(bucket)) {
    while (!dropped) {
      Waiter* oldest = queue->OldestNewcomer(gate);
      if (oldest == nullptr) break;
      TakeOut(*queue, oldest);
      dropped = oldest->Finish(Outcome::kDropped);
      if (dropped) Finish(oldest);  // else it was cancelled, and its owner pushes it
    }
  }
  PostBatch();
  Nudge();
  return dropped;
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
  dirty_buckets_ = 0;
  for (auto& [bucket, place] : places_) {
    if (place->kind == Place::Kind::kBucket) {
      static_cast<BucketQueue&>(*place).Empty(stop);
    }
    bucket->ClearWaiters();
    bucket->blocked.store(0);
  }
  places_.clear();
  while (cancelled != nullptr) {
    Waiter* next = cancelled->next_cancelled_;
    cancelled->Unref();
    cancelled = next;
  }
}

}  // namespace headway
