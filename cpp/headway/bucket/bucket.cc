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

constexpr std::array<std::int64_t, Bucket::kMaxResources> kNothing{};

}  // namespace

Bucket* Bucket::Make(absl::Span<const Limit> limits, absl::Span<const std::uint8_t> resources,
                     Nanos wall_offset, WaiterSignal* signal) {
  static_assert(alignof(Slot) <= alignof(Bucket) && sizeof(Bucket) % alignof(Slot) == 0);
  void* memory = ::operator new(sizeof(Bucket) + limits.size() * sizeof(Slot));
  auto* bucket = new (memory) Bucket(static_cast<int>(limits.size()), signal);
  bool cells = false;
  for (std::size_t i = 0; i < limits.size(); ++i) {
    new (bucket->meters() + i) Slot(limits[i], wall_offset, resources[i]);
    const Shape shape = bucket->meters()[i].meter.shape();
    cells |= shape == Shape::kWindow || shape == Shape::kFixed;
  }
  if (cells) bucket->calls_ = std::make_unique<Calls>();
  return bucket;
}

void Bucket::Unref() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  for (int i = 0; i < size_; ++i) meters()[i].~Slot();
  this->~Bucket();
  ::operator delete(static_cast<void*>(this));
}

bool Bucket::has_waiters() const {
  for (int i = 0; i < size_; ++i)
    if (meters()[i].meter.has_waiters()) return true;
  return false;
}

void Bucket::ClearWaiters() {
  for (int i = 0; i < size_; ++i) meter(i).ClearWaiters();
}

void Bucket::SignalIfOwed() {
  if (calls_ == nullptr) return;
  for (int i = 0; i < size_; ++i)
    if (meter(i).TakeOwedSignal()) Signal();
}

// The last request that fits into a `window` for now is held back while nothing is known of how long
// a call takes by itself; see Calls.
bool Bucket::HeldBack(absl::Span<const std::int64_t> amounts, Denial& denial) {
  if (calls_ == nullptr || !calls_->HoldsLastBack()) return false;
  for (int i = 0; i < size_; ++i) {
    const std::int64_t wanted = amount(i, amounts);
    if (wanted == 0 || meter(i).shape() != Shape::kWindow) continue;
    // Looked at without `now`: whether cells could be freed does not matter in a first burst.
    if (meter(i).Used(0) > meter(i).Capacity() - 2 * wanted) {
      denial = Denial{i, kUntold};
      return true;
    }
  }
  return false;
}

// Which limit admits last, and when. The instants are those of each meter by itself, so the whole
// may fit later still; whoever waits looks again then.
Denial Bucket::Bind(Nanos now, absl::Span<const std::int64_t> ahead, absl::Span<const std::int64_t> amounts,
                    bool privileged) {
  Denial denial{0, now};
  for (int i = 0; i < size_; ++i) {
    const std::int64_t wanted = amount(i, amounts);
    if (wanted == 0) continue;
    const std::int64_t queued = amount(i, ahead);
    Nanos at = queued == 0 ? meter(i).ReadyAt(now, wanted) : meter(i).Estimate(now, queued, wanted);
    // Behind others that wait: it depends on them.
    if (!privileged && at <= now && meter(i).has_waiters()) at = now + 1;
    if (at > denial.ready_at) denial = Denial{i, at};
  }
  return denial;
}

Denial Bucket::Look(Nanos now, absl::Span<const std::int64_t> amounts) {
  const Denial denial = Bind(now, kNothing, amounts, /*privileged=*/true);
  SignalIfOwed();
  return denial;
}

Denial Bucket::Estimate(Nanos now, absl::Span<const std::int64_t> ahead,
                        absl::Span<const std::int64_t> amounts) {
  const Denial denial = Bind(now, ahead, amounts, /*privileged=*/true);
  SignalIfOwed();
  return denial;
}

bool Bucket::TakeAll(Nanos now, absl::Span<const std::int64_t> amounts, bool privileged, bool answered,
                     absl::Span<Taken> taken) {
  for (int i = 0; i < size_; ++i) {
    if (meter(i).Take(now, amount(i, amounts), privileged, answered, taken[static_cast<std::size_t>(i)]))
      continue;
    bool signal = false;
    const Debt debt = debt_.load(std::memory_order_relaxed);
    for (int k = i - 1; k >= 0; --k) {
      HEADWAY_PAUSE();
      const Taken& mine = taken[static_cast<std::size_t>(k)];
      // What was taken as answered holds no pin in its cell.
      signal |= meter(k).GiveBack(now, mine, mine.amount, debt, /*cancel=*/!answered);
    }
    if (signal) Signal();
    return false;
  }
  return true;
}

bool Bucket::TryTake(Nanos now, absl::Span<const std::int64_t> amounts) {
  if (size_ == 1 && calls_ == nullptr) {
    Taken taken;
    return meter(0).Take(now, amount(0, amounts), false, true, taken);
  }
  absl::InlinedVector<Taken, 4> taken(static_cast<std::size_t>(size_));
  for (;;) {
    const Denial denial = Bind(now, kNothing, amounts, /*privileged=*/false);
    const bool took =
        denial.ready_at <= now && TakeAll(now, amounts, false, true, absl::MakeSpan(taken));
    SignalIfOwed();
    if (took || denial.ready_at > now) return took;
  }
}

void Bucket::Begin(Nanos now, Reservation& out) {
  out.bucket_ = this;
  out.admitted_at_ = now;
  if (calls_ != nullptr) out.tells_ = calls_->Begin();
}

std::optional<Denial> Bucket::TryReserve(Nanos now, absl::Span<const std::int64_t> amounts,
                                         bool privileged, Reservation& out) {
  out.taken_.resize(static_cast<std::size_t>(size_));
  for (;;) {
    Denial denial;
    if (size_ > 1 || calls_ != nullptr) {
      denial = Bind(now, kNothing, amounts, privileged);
      if (denial.ready_at <= now && HeldBack(amounts, denial)) return denial;
      if (denial.ready_at > now) {
        SignalIfOwed();
        return denial;
      }
    }
    const bool took = TakeAll(now, amounts, privileged, false, absl::MakeSpan(out.taken_));
    SignalIfOwed();
    if (took) {
      Begin(now, out);
      return std::nullopt;
    }
    // Lost to another thread, or it never fitted. If it now looks as if it fitted, try again.
    denial = Bind(now, kNothing, amounts, privileged);
    if (denial.ready_at > now) return denial;
  }
}

Nanos Bucket::ReserveAt(Nanos now, absl::Span<const std::int64_t> amounts, Reservation& out) {
  out.taken_.resize(static_cast<std::size_t>(size_));
  Nanos at = now;
  for (int i = 0; i < size_; ++i) {
    const Nanos mine =
        meter(i).ReserveAt(now, amount(i, amounts), out.taken_[static_cast<std::size_t>(i)]);
    if (mine == kNever) {
      for (int k = i - 1; k >= 0; --k) {
        const Taken& taken = out.taken_[static_cast<std::size_t>(k)];
        if (meter(k).GiveBack(now, taken, taken.amount, debt_.load(), /*cancel=*/true)) Signal();
      }
      return kNever;
    }
    at = std::max(at, mine);
  }
  Begin(at, out);
  return at;
}

void Bucket::SetLimit(Nanos now, int meter, const Limit& limit, Nanos wall_offset, Debt debt) {
  bool signal = false;
  {
    const std::lock_guard<std::mutex> lock(ChangeMutex());
    debt_.store(debt);
    signal = this->meter(meter).SetLimit(now, limit, wall_offset, debt);
  }
  if (signal) Signal();
}

void Bucket::Lower(int meter, std::int64_t bound, Nanos at) {
  if (this->meter(meter).Lower(bound, at)) Signal();
}

}  // namespace headway
