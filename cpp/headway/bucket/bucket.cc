// headway/bucket/bucket.cc: admission over several limits.
#include "headway/bucket/bucket.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <new>

#include "headway/base/pause.h"

namespace headway {
namespace {

// Changing a limit is rare; one lock for all buckets serialises the changers of each.
std::mutex& ChangeMutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

Bucket* Bucket::Make(absl::Span<const Limit> limits, absl::Span<const std::uint8_t> resources,
                     Nanos wall_offset, WaiterSignal* signal, int spare, int width) {
  static_assert(alignof(Slot) <= alignof(Bucket) && sizeof(Bucket) % alignof(Slot) == 0);
  const int most = static_cast<int>(limits.size()) + spare;
  const std::size_t bytes = sizeof(Bucket) + static_cast<std::size_t>(most) * sizeof(Slot);
  // One that learns is a scheduler's, where one thread admits while others begin and end calls: its
  // first meter's word then shares its line with nothing that is read at each.
  void* memory =
      spare > 0 ? ::operator new (bytes, std::align_val_t{kCacheLine}) : ::operator new(bytes);
  auto* bucket = new (memory) Bucket(static_cast<int>(limits.size()), most, signal);
  bool cells = false;
  bool credit = false;
  for (std::size_t i = 0; i < limits.size(); ++i) {
    new (bucket->meters() + i) Slot(limits[i], wall_offset, resources[i]);
    cells |= bucket->meters()[i].meter.has_cells();
    credit |= limits[i].shape == Shape::kCredit;
  }
  if (credit) bucket->expenses_ = std::make_unique<Expense[]>(limits.size());
  if (cells || spare > 0) bucket->calls_ = std::make_unique<Calls>();
  if (spare > 0) {
    bucket->history_ = std::make_unique<History>(static_cast<std::size_t>(width));
    bucket->good_ = std::make_unique<RecentCount>();
  }
  bucket->SetTimed();
  return bucket;
}

int Bucket::AddLimit(const Limit& limit, std::uint8_t resource, Nanos wall_offset) {
  const std::lock_guard<std::mutex> lock(ChangeMutex());
  const std::uint16_t at = size_.load(std::memory_order_relaxed);
  if (at == most_) return -1;
  new (meters() + at) Slot(limit, wall_offset, resource);
  size_.store(at + 1, std::memory_order_release);
  SetTimed();
  return at;
}

// A resource counts once, however many limits it has. `amount` of what the first of them takes.
template <typename Amount>
void Bucket::Expect(int limits, int sign, const Amount& amount) {
  if (history_ == nullptr) return;
  std::uint32_t seen = 0;
  for (int i = 0; i < limits; ++i) {
    const std::uint32_t bit = std::uint32_t{1} << resource(i);
    const std::int64_t expected = (seen & bit) == 0 ? amount(i) : 0;
    if (expected != 0) history_->Expect(resource(i), sign * expected);
    seen |= bit;
  }
}

void Bucket::Forget(const Reservation& out) {
  Expect(out.size(), -1, [&](int i) { return out.taken(i).amount; });
}

void Bucket::Remember(Nanos now, Reservation& out) {
  std::uint32_t seen = 0;
  for (int i = 0; i < out.size(); ++i) {
    Taken& taken = out.taken_[static_cast<std::size_t>(i)];
    if (taken.amount == 0) continue;
    const auto r = static_cast<std::size_t>(resource(i));
    const bool first = (seen & (std::uint32_t{1} << r)) == 0;
    seen |= std::uint32_t{1} << r;
    const std::int64_t total = first ? history_->Admit(r, taken.amount) : history_->Total(r);
    if (meter(i).has_cells()) taken.increment = total;
  }
  if (history_->IsDue(now)) {
    std::array<std::int64_t, kMaxResources> own{};
    for (int i = 0; i < out.size(); ++i)
      own[static_cast<std::size_t>(resource(i))] =
          std::max(own[static_cast<std::size_t>(resource(i))],
                   out.taken_[static_cast<std::size_t>(i)].amount);
    history_->Mark(now, own);
  }
  // A limit that was added in between may have been told that this was not there yet.
  for (int i = out.size(); i < size(); ++i)
    for (int k = 0; k < out.size(); ++k)
      if (resource(k) == resource(i)) {
        meter(i).Charge(now, Taken{}, out.taken_[static_cast<std::size_t>(k)].amount);
        break;
      }
  Forget(out);
}

void Bucket::SetTimed() {
  bool timed = false;
  for (int i = 0; i < size(); ++i) {
    timed |= meter(i).has_cells() && meter(i).parameters().amount < Limit::kMaxAmount;
  }
  timed_.store(timed);
}

void Bucket::Unref() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  for (int i = 0; i < size(); ++i) meters()[i].~Slot();
  const bool aligned = history_ != nullptr;
  this->~Bucket();
  if (aligned) {
    ::operator delete (static_cast<void*>(this), std::align_val_t{kCacheLine});
  } else {
    ::operator delete(static_cast<void*>(this));
  }
}

bool Bucket::TryEnter(Nanos now, bool privileged) {
  Taken taken;
  return meter(0).Take(now, 1, privileged, /*answered=*/false, taken);
}

void Bucket::Leave(Nanos now) {
  Taken taken;
  taken.amount = 1;
  if (meter(0).GiveBack(now, taken, 1, Debt::kAbsolute, /*cancel=*/false)) Signal();
}

void Bucket::Deposit(int meter, std::int64_t amount) {
  if (this->meter(meter).Grant(amount)) Signal();
}

std::int64_t Bucket::Withdraw(int meter, std::int64_t amount) {
  for (;;) {
    amount = std::min(amount, Credit(meter));
    if (amount <= 0) return 0;
    if (this->meter(meter).TakeBack(amount)) return amount;
  }
}

Denial Bucket::LookBesideCredit(Nanos now, absl::Span<const std::int64_t> amounts) {
  Denial denial{Denial::kCooling, cooled_until()};
  for (int i = 0; i < size(); ++i) {
    const std::int64_t wanted = amount(i, amounts);
    if (wanted == 0 || meter(i).shape() == Shape::kCredit) continue;
    if (const Nanos at = meter(i).ReadyAt(now, wanted); at > denial.ready_at)
      denial = Denial{i, at};
  }
  SignalIfOwed();
  return denial;
}

void Bucket::Cool(Nanos until) {
  std::uint64_t word = cool_.load();
  while (
      static_cast<Nanos>(word >> 1) < until &&
      !cool_.compare_exchange_weak(word, (static_cast<std::uint64_t>(until) << 1) | (word & 1))) {
  }
}

// When it has cooled down, as far as whoever asks goes: behind others, not before them.
Nanos Bucket::Cooled(Nanos now, bool privileged) {
  std::uint64_t word = cool_.load();
  const auto until = static_cast<Nanos>(word >> 1);
  if (until > now) return until;
  if ((word & 1) != 0) return privileged ? now : now + 1;
  cool_.compare_exchange_strong(word, 0);  // over: the fast path need not look any more
  return now;
}

bool Bucket::has_waiters() const {
  if ((cool_.load() & 1) != 0) return true;
  for (int i = 0; i < size(); ++i)
    if (meters()[i].meter.has_waiters()) return true;
  return false;
}

void Bucket::ClearWaiters() {
  cool_.fetch_and(~std::uint64_t{1});
  for (int i = 0; i < size(); ++i) meter(i).ClearWaiters();
}

void Bucket::SignalOwed() {
  for (int i = 0; i < size(); ++i)
    if (meter(i).TakeOwedSignal()) Signal();
}

// The last request that fits into a `window` for now is held back while nothing is known of how
// long a call takes by itself; see Calls.
bool Bucket::HeldBack(Nanos now, absl::Span<const std::int64_t> amounts, Denial& denial) {
  if (!calls_->HoldsLastBack()) return false;
  for (int i = 0; i < size(); ++i) {
    const std::int64_t wanted = amount(i, amounts);
    const std::int64_t capacity = meter(i).Capacity();
    if (wanted == 0 || meter(i).shape() != Shape::kWindow) continue;
    // Until the others are back, which signals, or until another such request would fit behind it:
    // it is not the last one then.
    const Nanos at = 2 * wanted > capacity ? kUntold : meter(i).ReadyAt(now, 2 * wanted);
    // And not for ever: whoever is out may be waiting for this one.
    const Nanos until = calls_->LatestBegan(now) + Calls::HoldFor(meter(i).parameters().period);
    if (at > now && until > now) {
      denial = Denial{i, std::min(at, until)};
      return true;
    }
  }
  return false;
}

bool Bucket::LookAhead(Nanos patience, bool again) {
  if (again && looks_ahead() && cold_.load() > 0) {
    patience_.store(patience);
    look_again_.store(true);
  }
  const Nanos out = cold_.load();
  // Whoever is to go is waited for as long as is known now.
  if (out == kNobodyOut && looks_ahead()) patience_.store(patience);
  if (out != 0) return false;
  patience_.store(patience);
  cold_hold_.store(patience);
  look_ahead_.store(true);
  Nanos nobody = 0;
  return cold_.compare_exchange_strong(nobody, kNobodyOut);
}

void Bucket::LookAfterFirst(Nanos patience) {
  Nanos out = cold_.load();
  if (out == 0 || looks_ahead()) return;
  patience_.store(patience);
  look_ahead_.store(true);
  // Whoever has gone alone is not waited for any more. Somebody ends it meanwhile: so be it.
  cold_.compare_exchange_strong(out, kNobodyOut);
}

// Whether a request may go, as far as the first answer is concerned. `alone`: nothing is known, or
// nothing new, and it is the one that finds out.
bool Bucket::EnterCold(Nanos now, bool& alone) {
  Nanos out = cold_.load();
  while (out == kNobodyOut) {
    for (int i = 0; i < size() && !looks_ahead(); ++i) {
      if (meter(i).parameters().amount == Limit::kMaxAmount ||
          meter(i).shape() == Shape::kConcurrency)
        continue;
      cold_.store(0);  // something is known after all
      return true;
    }
    alone = cold_.compare_exchange_weak(out, Left(now));
    if (alone) return true;
  }
  return WaitsForFirstUntil() <= now;
}

// An answer has come, or will not (`over`); else who was out alone did not go after all.
void Bucket::LeaveCold(bool over) {
  Nanos out = cold_.load();
  while (out != 0) {
    if (!over && out == kNobodyOut) return;
    HEADWAY_PAUSE();
    if (!cold_.compare_exchange_weak(out, over ? 0 : kNobodyOut)) continue;
    HEADWAY_PAUSE();
    Signal();
    return;
  }
}

// Who went ahead then is back; nothing where somebody else has gone since.
void Bucket::LeaveAhead(Nanos out) {
  const bool again = look_again_.exchange(false);
  if (cold_.compare_exchange_strong(out, again ? kNobodyOut : 0)) Signal();
}

// Who went alone has brought a failure, or nothing, and with it nothing that would be known.
void Bucket::FailCold() { LeaveCold(/*over=*/cold_tries_.fetch_add(1) + 1 >= kMostAlone); }

// Which limit admits last, and when. The instants are those of each meter by itself, so the whole
// may fit later still; whoever waits looks again then.
Denial Bucket::Bind(Nanos now, absl::Span<const std::int64_t> amounts, bool privileged,
                    bool answered) {
  Denial denial{0, now};
  if (cool_.load() != 0) {
    if (const Nanos at = Cooled(now, privileged); at > now) denial = Denial{Denial::kCooling, at};
  }
  for (int i = 0; i < size(); ++i) {
    const std::int64_t wanted = amount(i, amounts);
    if (wanted == 0) continue;
    Nanos at = meter(i).ReadyAt(now, wanted, answered);
    // Behind others that wait: it depends on them.
    if (!privileged && at <= now && meter(i).has_waiters()) at = now + 1;
    if (at > denial.ready_at) denial = Denial{i, at};
  }
  return denial;
}

Denial Bucket::Look(Nanos now, absl::Span<const std::int64_t> amounts, bool answered) {
  Denial denial = Bind(now, amounts, /*privileged=*/true, answered);
  if (denial.ready_at <= now && calls_ != nullptr && !answered) HeldBack(now, amounts, denial);
  const Nanos until = std::max(WaitsForFirstUntil(), opening_.FullUntil());
  if (!answered && until > std::max(now, denial.ready_at)) denial = {Denial::kCooling, until};
  SignalIfOwed();
  return denial;
}

Denial Bucket::NotBefore(Nanos now, bool answered) {
  Denial start{0, now};
  if (cool_.load() != 0) {
    if (const Nanos at = Cooled(now, /*privileged=*/true); at > now)
      start = Denial{Denial::kCooling, at};
  }
  const Nanos full = opening_.FullUntil();
  if (const Nanos until = std::max(WaitsForFirstUntil(), full); !answered && until > now) {
    if (!looks_ahead() || full > now) {
      start = Denial{Denial::kCooling, kUntold};
    } else if (until > start.ready_at) {
      start = Denial{Denial::kCooling, until};
    }
  }
  return start;
}

// What was taken of all meters, last first. What was counted at once holds no pin in its cell.
void Bucket::GiveBackAll(Nanos now, absl::Span<const Taken> taken, bool untimed) {
  bool signal = false;
  const Debt debt = debt_.load();
  for (std::size_t i = taken.size(); i-- > 0;) {
    HEADWAY_PAUSE();
    Meter& one = meter(static_cast<int>(i));
    signal |= one.GiveBack(now, taken[i], taken[i].amount, debt, !untimed || !one.has_cells());
  }
  if (signal) Signal();
}

bool Bucket::TakeAll(Nanos now, absl::Span<const std::int64_t> amounts, bool privileged,
                     bool answered, bool untimed, bool begins, absl::Span<Taken> taken) {
  for (std::size_t i = 0; i < taken.size(); ++i) {
    const int k = static_cast<int>(i);
    const bool counts_now = meter(k).has_cells() ? untimed : answered;
    if (meter(k).Take(now, amount(k, amounts), privileged, counts_now, taken[i],
                      begins || counts_now))
      continue;
    GiveBackAll(now, taken.first(i), untimed);
    return false;
  }
  return true;
}

bool Bucket::TryTake(Nanos now, absl::Span<const std::int64_t> amounts) {
  if (calls_ == nullptr && size() == 1 && cool_.load() == 0) {
    Taken taken;
    return meter(0).Take(now, amount(0, amounts), false, true, taken);
  }
  absl::InlinedVector<Taken, 4> taken(static_cast<std::size_t>(size()));
  for (;;) {
    const Denial denial = Bind(now, amounts, /*privileged=*/false, /*answered=*/true);
    const bool took = denial.ready_at <= now &&
                      TakeAll(now, amounts, false, true, true, true, absl::MakeSpan(taken));
    SignalIfOwed();
    if (took || denial.ready_at > now) return took;
  }
}

void Bucket::BeginLate(Nanos now, Reservation& out) {
  bool signal = false;
  for (int i = 0; i < out.size(); ++i)
    if (!out.untimed_ || !meter(i).has_cells())
      signal |= meter(i).Begin(now, out.taken_[static_cast<std::size_t>(i)]);
  out.began_at_ = now;
  if (history_ != nullptr) Remember(now, out);
  if (!out.untimed_ && calls_ != nullptr) BeginCall(now, out);
  if (out.alone_) GoesAhead(out);
  if (signal) Signal();
  SignalIfOwed();
}

void Bucket::GoesAhead(const Reservation& out) {
  for (int i = 0; i < out.size(); ++i) meter(i).GoesAhead(out.taken(i));
}

void Bucket::BeginCall(Nanos now, Reservation& out) {
  out.call_ = calls_->Begin(now);
  const Nanos waited = Calls::Waited(out.call_.others);
  for (int i = 0; i < out.size(); ++i)
    meter(i).Begun(out.taken_[static_cast<std::size_t>(i)], now, waited);
}

std::optional<Denial> Bucket::TryReserve(Nanos now, absl::Span<const std::int64_t> amounts,
                                         bool privileged, Reservation& out, bool answered,
                                         bool looked) {
  out.taken_.resize(static_cast<std::size_t>(size()));
  const auto taken = absl::MakeSpan(out.taken_);
  // Where limits may be learnt, what is admitted before counts as exactly as what comes after.
  const bool untimed = answered || (calls_ != nullptr && history_ == nullptr &&
                                    !timed_.load(std::memory_order_relaxed));
  // Whoever waits begins when he goes on.
  const bool begins = !privileged || answered;
  // With one limit and nothing else to ask, taking is looking.
  looked |= calls_ == nullptr && size() == 1 && cool_.load() == 0;
  for (;;) {
    Denial denial;
    if (!looked) {
      denial = Bind(now, amounts, privileged, answered);
      if (denial.ready_at > now ||
          (calls_ != nullptr && !untimed && HeldBack(now, amounts, denial))) {
        SignalIfOwed();
        return denial;
      }
    }
    out.place_ = 0;
    if (!answered && !opening_.Enter(now, out.place_)) {
      SignalIfOwed();
      return Denial{Denial::kCooling, std::max(now + 1, opening_.ReadyAt())};
    }
    bool alone = false;
    if (cold_.load() != 0 && !answered && !EnterCold(now, alone)) {
      opening_.Leave(out.place_);
      SignalIfOwed();
      // Where its answer has just come, whoever waits is signalled.
      return Denial{Denial::kCooling, std::max(now + 1, WaitsForFirstUntil())};
    }
    const auto its = [&](int i) { return amount(i, amounts); };
    Expect(out.size(), 1, its);
    HEADWAY_PAUSE();
    const bool took = TakeAll(now, amounts, privileged, answered, untimed, begins, taken);
    if (!took) Expect(out.size(), -1, its);
    if (took) Begin(now, out, untimed, begins);
    if (alone && took) GoesAlone(now, amounts, answered, begins, out);
    if (alone && !took) LeaveCold(/*over=*/false);
    if (!took) opening_.Leave(out.place_);
    SignalIfOwed();
    if (took) return std::nullopt;
    // Lost to another thread, or it never fitted. If it now looks as if it fitted, try again.
    looked = false;
  }
}

void Bucket::Force(Nanos now, absl::Span<const std::int64_t> amounts, Reservation& out) {
  bool alone = false;
  if (cold_.load() != 0) EnterCold(now, alone);
  out.place_ = opening_.Force();
  out.taken_.resize(static_cast<std::size_t>(size()));
  Expect(out.size(), 1, [&](int i) { return amount(i, amounts); });
  for (int i = 0; i < out.size(); ++i)
    meter(i).Force(now, amount(i, amounts), out.taken_[static_cast<std::size_t>(i)]);
  Begin(now, out);
  if (alone) GoesAlone(now, amounts, /*answered=*/false, /*begins=*/true, out);
  SignalIfOwed();
}

// It has entered alone, as EnterCold has it. Where it goes ahead, the others wait for as long as
// they would have had to anyhow, too.
void Bucket::GoesAlone(Nanos now, absl::Span<const std::int64_t> amounts, bool answered,
                       bool begins, Reservation& out) {
  out.alone_ = true;
  if (begins) GoesAhead(out);
  if (!looks_ahead()) return;
  out.ahead_ = Left(now);
  const Nanos next = Bind(now, amounts, /*privileged=*/true, answered).ready_at;
  cold_hold_.store(patience_.load() + (next > now && next < kUntold ? next - now : 0));
}

Nanos Bucket::ReserveAt(Nanos now, absl::Span<const std::int64_t> amounts, Reservation& out) {
  out.taken_.resize(static_cast<std::size_t>(size()));
  // Each meter has to count it at the common instant: at its own earlier one, the units would have
  // been paid for by then, and a full burst of others could go together with it.
  Nanos at = now;
  if (size() > 1) at = Look(now, amounts).ready_at;
  if (at >= kUntold) return kNever;
  for (;;) {
    Nanos latest = at;
    for (std::size_t i = 0; i < out.taken_.size() && latest < kUntold; ++i) {
      const int k = static_cast<int>(i);
      latest = std::max(latest, meter(k).ReserveAt(at, amount(k, amounts), out.taken_[i]));
      HEADWAY_PAUSE();
    }
    if (latest == at || (size() == 1 && latest < kUntold)) {
      Expect(out.size(), 1, [&](int i) { return amount(i, amounts); });
      Begin(latest, out);
      return latest;
    }
    // Another thread was faster, and the instant is a later one; or it is none at all.
    GiveBackAll(now, out.taken_, /*untimed=*/false);
    for (Taken& taken : out.taken_) taken = Taken{};
    if (latest >= kUntold) return kNever;
    at = latest;
  }
}

bool Bucket::EverFits(absl::Span<const std::int64_t> amounts) const {
  for (int i = 0; i < size(); ++i)
    if (amount(i, amounts) > meters()[i].meter.Capacity()) return false;
  return true;
}

std::int64_t Bucket::Used(int meter, Nanos now) {
  const std::int64_t used = this->meter(meter).Used(now);
  SignalIfOwed();
  return used;
}

Nanos Bucket::ReadyAt(int meter, Nanos now, std::int64_t amount) {
  const Nanos at = this->meter(meter).ReadyAt(now, amount);
  SignalIfOwed();
  return at;
}

void Bucket::SetLimit(Nanos now, int meter, const Limit& limit, Nanos wall_offset, Debt debt) {
  bool signal = false;
  {
    const std::lock_guard<std::mutex> lock(ChangeMutex());
    debt_.store(debt);
    signal = this->meter(meter).SetLimit(now, limit, wall_offset, debt);
    SetTimed();
  }
  if (signal) Signal();
}

void Bucket::Raise(int meter, std::int64_t bound, Nanos at, Nanos seen) {
  this->meter(meter).Raise(bound, at, seen);
  SignalIfOwed();
}

void Bucket::Lower(int meter, std::int64_t bound, Nanos seen) {
  if (this->meter(meter).Lower(bound, seen)) Signal();
}

void Bucket::OthersLeaveBy(int meter, Nanos at) {
  this->meter(meter).OthersLeaveBy(at);
  SignalIfOwed();
}

}  // namespace headway
