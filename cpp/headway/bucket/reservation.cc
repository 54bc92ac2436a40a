// headway/bucket/reservation.cc: a reservation's life.
#include "headway/bucket/reservation.h"

#include <algorithm>
#include <new>

#include "headway/base/pause.h"
#include "headway/bucket/bucket.h"

namespace headway {

constinit Stack<Reservations::Memory, &Reservations::Memory::next> Reservations::kept;
constinit std::atomic<int> Reservations::kept_count{0};

void* Reservation::operator new(std::size_t size) { return ::operator new(size); }

void Reservation::operator delete(void* memory) {
  if (Reservations::kKeeps &&
      Reservations::kept_count.load(std::memory_order_relaxed) < Reservations::kKept) {
    Reservations::kept_count.fetch_add(1, std::memory_order_relaxed);
    Reservations::kept.Push(new (memory) Reservations::Memory);
    return;
  }
  ::operator delete(memory);
}

std::unique_ptr<Reservation> Reservations::Make() {
  if (mine_ == nullptr && !kept.empty()) {
    // What is pushed between these two is counted as gone: that many more may be kept.
    mine_ = kept.TakeAll();
    kept_count.store(0, std::memory_order_relaxed);
  }
  if (mine_ == nullptr) return std::make_unique<Reservation>();
  Memory* const memory = std::exchange(mine_, mine_->next);
  return std::unique_ptr<Reservation>(::new (static_cast<void*>(memory)) Reservation);
}

Reservations::~Reservations() {
  while (mine_ != nullptr) ::operator delete(std::exchange(mine_, mine_->next));
}

Calls* Reservation::calls() const {
  return bucket_ == nullptr || untimed_ ? nullptr : bucket_->calls_.get();
}

int Reservation::out_now() const {
  const Calls* const calls = this->calls();
  return calls == nullptr ? 1 : calls->out();
}

std::int64_t Reservation::others_unanswered() const {
  const Calls* const calls = this->calls();
  if (calls == nullptr) return 1;
  const bool answered = (state_.load() & (kAnswered | kEnded)) != 0;
  return std::max<std::int64_t>(0, calls->in_flight() - (answered ? 0 : 1));
}

void Reservation::Begin(Nanos now) {
  if (begun_) return;
  begun_ = true;
  bucket_->BeginLate(now, *this);
}

bool Reservation::Sent(Nanos now, Nanos network_delay) {
  if (bucket_ == nullptr) return false;
  Calls* calls = this->calls();
  const bool marks = network_delay >= 0 && calls != nullptr;
  std::uint8_t held = 0;
  if (!state_.compare_exchange_strong(held, marks ? kSent | kMarking : kSent)) return false;
  HEADWAY_PAUSE();
  sent_at_.store(now);
  if (network_delay < 0) {
    // It begins only now, whoever was admitted and answered meanwhile.
    for (int i = 0; calls != nullptr && i < size(); ++i)
      bucket_->meter(i).Begun(taken_[static_cast<std::size_t>(i)], now,
                              Calls::Waited(call_.others));
    return true;
  }
  const Nanos counted_by = now + std::max(network_delay, Calls::kLeastNetworkDelay);
  if (!marks) {
    for (int i = 0; i < size(); ++i) {
      // A cell that it was only counted in is not its to move.
      if (untimed_ && bucket_->meter(i).has_cells()) continue;
      if (bucket_->meter(i).Sent(taken_[static_cast<std::size_t>(i)], counted_by))
        bucket_->Signal();
    }
    return true;
  }
  bool signal = calls->SawTransport();
  counted_by_.store(counted_by);
  HEADWAY_PAUSE();
  for (int i = 0; i < size(); ++i)
    signal |= bucket_->meter(i).Sent(taken_[static_cast<std::size_t>(i)], counted_by);
  HEADWAY_PAUSE();
  const std::uint8_t before = state_.fetch_and(static_cast<std::uint8_t>(~kMarking));
  if ((before & kAnswered) != 0) TellAnswered(before & (kRefused | kLost));
  if (signal) bucket_->Signal();
  return true;
}

bool Reservation::Answered(Nanos now, bool refused) {
  return AnsweredAs(now, refused ? kRefused : 0);
}

bool Reservation::AnsweredAs(Nanos now, std::uint8_t how) {
  if (bucket_ == nullptr) return false;
  // Whoever loses to another answer must not move its instant; where two race, either is one.
  if ((state_.load() & (kAnswered | kEnded)) != 0) return false;
  answered_at_.store(now, std::memory_order_release);  // read by whoever sees kAnswered
  HEADWAY_PAUSE();
  const std::uint8_t before = state_.fetch_or(static_cast<std::uint8_t>(kAnswered | kSent | how));
  if ((before & (kAnswered | kEnded)) != 0) return false;
  if ((before & kMarking) == 0) TellAnswered(how);
  // Relaxed, as it is a hint: of two refusals, either will do.
  if ((how & kRefused) != 0) bucket_->refused_at_.store(now, std::memory_order_relaxed);
  // After a refusal, others wait until it is known for how long.
  if (how != 0) return true;
  if (bucket_->good_ != nullptr && !failed_.load()) bucket_->good_->Add(now);
  if (!failed_.load() && bucket_->opening_.Answered(now, place_)) bucket_->Signal();
  if (ahead_ != 0) {
    bucket_->LeaveAhead(ahead_);
  } else if (bucket_->cold_.load() != 0 && !failed_.load() && !bucket_->looks_ahead()) {
    bucket_->LeaveCold(/*over=*/true);
  }
  return true;
}

void Reservation::TellAnswered(std::uint8_t how) {
  const bool refused = (how & kRefused) != 0;
  const bool lost = (how & kLost) != 0;
  if (this->calls() == nullptr) return;
  Calls& calls = *this->calls();
  const Nanos answered_at = answered_at_.load();
  const Nanos counted_by = counted_by_.load();
  const bool pinned = counted_by == kNever;
  const Nanos began = sent_at_.load() == kNever ? began_at_ : sent_at_.load();
  const int crowd = calls.Crowd(call_);
  const Nanos waited = Calls::Waited(crowd);
  const bool trusted = !calls.transport() && !calls.refused();
  Answer answer = refused ? Answer::kRefused : pinned && !lost ? Answer::kOpaque : Answer::kBounded;
  const bool learnt =
      answer == Answer::kOpaque && answered_at > began &&
      calls.Learn(call_, trusted && crowd <= Calls::kFewOthers, answered_at, answered_at - began);
  if (answer == Answer::kOpaque && trusted && waited < kUntold) answer = Answer::kQuiet;
  if (refused) calls.SawRefusal();
  // The answer may be in before the network's delay is over, and long after.
  const Nanos at = answer == Answer::kBounded ? std::min(answered_at, counted_by) : answered_at;
  bool signal = calls.End(/*answered=*/!lost) || learnt;
  for (int i = 0; i < size(); ++i) {
    Meter& meter = bucket_->meter(i);
    // Before the answer, so that it is never taken with more than what is known.
    if (pinned && !refused && calls.Knows()) meter.SetMargin(calls.Margin());
    // With a transport's marks in the bucket, or after a refusal, nothing is assumed about the
    // order.
    if (refused || calls.transport()) meter.StopTrustingOrder();
    signal |= meter.Answered(taken_[static_cast<std::size_t>(i)], at, answer, pinned,
                             answer == Answer::kQuiet ? began + waited : kNever);
  }
  if (signal && bucket_->has_waiters()) bucket_->Signal();
}

bool Reservation::Settle(Nanos now, absl::Span<const std::int64_t> actual, bool answered) {
  if (bucket_ == nullptr) return false;
  if (calls() == nullptr) {
    // Nobody asks when it was answered, so all of it is said at once.
    if ((state_.exchange(kSent | kAnswered | kEnded) & kEnded) != 0) return false;
  } else {
    // Nobody has said that it was answered. The server counts it by what `Sent` knew, or until now.
    const Nanos counted_by = counted_by_.load();
    AnsweredAs(counted_by == kNever ? now : std::max(now, counted_by), answered ? 0 : kLost);
    if ((state_.fetch_or(kEnded) & kEnded) != 0) return false;
  }
  if (!begun_) {
    bucket_->Forget(*this);  // nobody said that it began
  } else if (calls() != nullptr) {
    calls()->Finish();
  }
  const Debt debt = bucket_->debt_.load();
  bool signal = false;
  std::uint32_t remembered = 0;
  for (int i = 0; i < size(); ++i) {
    const Taken& taken = taken_[static_cast<std::size_t>(i)];
    Meter& meter = bucket_->meter(i);
    const auto resource = static_cast<std::size_t>(bucket_->resource(i));
    const std::uint32_t bit = std::uint32_t{1} << resource;
    const std::int64_t used = resource < actual.size() ? actual[resource] : -1;
    if (meter.shape() == Shape::kCredit) {  // used up, whatever was used of it
      if (!begun_) static_cast<void>(meter.Begin(now, taken_[static_cast<std::size_t>(i)]));
      bucket_->Spend(i, taken.amount, used < 0 ? taken.amount : used);
      continue;
    }
    if (meter.shape() == Shape::kConcurrency) {
      signal |= meter.GiveBack(now, taken, taken.amount, debt, /*cancel=*/false);
      continue;
    }
    if (used < 0) continue;
    if (used < taken.amount) {
      signal |= meter.GiveBack(now, taken, taken.amount - used, debt, /*cancel=*/false);
    } else if (used > taken.amount) {
      meter.Charge(now, taken, used - taken.amount);
      // What was used beyond the estimate is ours as well, once for each resource.
      if (bucket_->history() != nullptr && (remembered & bit) == 0)
        bucket_->history()->AdmitMore(resource, used - taken.amount);
      remembered |= bit;
    }
  }
  bucket_->SignalIfOwed();
  signal |= bucket_->opening_.Leave(place_);
  if (signal) bucket_->Signal();
  if (bucket_->cold_.load() != 0) {
    const bool good = answered && !failed_.load() && (state_.load() & (kRefused | kLost)) == 0;
    if (bucket_->looks_ahead()) {
      if (ahead_ != 0) bucket_->LeaveAhead(ahead_);
    } else if (good) {
      bucket_->LeaveCold(/*over=*/true);
    } else if (alone_) {
      bucket_->FailCold();
    }
  }
  if (of_account_ != nullptr) of_account_->Settle(now, actual);
  if (gate_ != nullptr) gate_->Leave(now);
  return true;
}

void Reservation::LetOthersWait(Nanos hold) {
  if (alone_ && !bucket_->looks_ahead()) bucket_->cold_hold_.store(hold);
}

bool Reservation::IsCalledOff() const {
  return held() && bucket_->refused_at_.load(std::memory_order_relaxed) > began_at_;
}

bool Reservation::ExpiresInTime() const {
  if (ended() || bucket_ == nullptr) return false;
  return calls() != nullptr || (of_account_ != nullptr && of_account_->ExpiresInTime());
}

bool Reservation::Cancel(Nanos now) {
  std::uint8_t held = 0;
  if (bucket_ == nullptr || !state_.compare_exchange_strong(held, kSent | kAnswered | kEnded))
    return false;
  HEADWAY_PAUSE();
  const Debt debt = bucket_->debt_.load();
  bool signal = calls() != nullptr && calls()->End(/*answered=*/false);
  if (begun_ && calls() != nullptr) calls()->Finish();
  for (int i = size() - 1; i >= 0; --i) {
    const Taken& taken = taken_[static_cast<std::size_t>(i)];
    Meter& meter = bucket_->meter(i);
    // An untimed one holds no pin in its cell that could end.
    const bool cancel = !untimed_ || !meter.has_cells();
    signal |= meter.GiveBack(now, taken, taken.amount, debt, cancel);
  }
  // Only now: in between it counts twice at most, and is not given back twice.
  if (!begun_) bucket_->Forget(*this);
  signal |= bucket_->opening_.Leave(place_);
  if (signal) bucket_->Signal();
  if (alone_) bucket_->LeaveCold(/*over=*/false);
  if (of_account_ != nullptr) of_account_->Cancel(now);
  if (gate_ != nullptr) gate_->Leave(now);
  return true;
}

}  // namespace headway
