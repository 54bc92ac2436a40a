// headway/meter/meter.cc: each verb, sent to the file of the meter's shape.
#include "headway/meter/meter.h"

#include "headway/meter/bucket_meter.h"
#include "headway/meter/cell_meter.h"
#include "headway/meter/concurrency_meter.h"
#include "headway/meter/credit_meter.h"

namespace headway {

Meter::Meter(const Limit& limit, Nanos wall_offset)
    : shape_(limit.shape == Shape::kUnknown ? Shape::kWindow : limit.shape) {
  slots_.Store(0, Parameters::From(limit, wall_offset));
  // Nothing has been granted yet: all of it is as if it was in use.
  if (shape_ == Shape::kCredit) {
    word_.store(Word{}.with_value(limit.amount).bits);
    promised_.store(kNever);
  }
}

Meter::~Meter() {
  if (has_cells()) delete cells_.load(std::memory_order_relaxed);
}

// Made by the first thread that needs them; a thread that loses the race throws its own away.
Cells& Meter::cells() {
  Cells* present = cells_.load(std::memory_order_acquire);
  if (present != nullptr) return *present;
  auto made = std::make_unique<Cells>();
  if (cells_.compare_exchange_strong(present, made.get())) return *made.release();
  return *present;
}

Parameters Meter::parameters() const {
  for (;;) {
    const std::uint64_t bits = word_.load();
    const Parameters p = slots_.Load(Word{bits}.generation());
    if (Word{word_.load()}.generation() == Word{bits}.generation()) return p;
  }
}

Nanos Meter::ReadyAt(Nanos now, std::int64_t amount, bool answered) {
  if (amount == 0) return now;
  switch (shape_) {
    case Shape::kBucket:
      return BucketMeter::ReadyAt(*this, now, amount, answered);
    case Shape::kCredit:
      return CreditMeter::ReadyAt(*this, now, amount);
    case Shape::kConcurrency:
      return ConcurrencyMeter::ReadyAt(*this, now, amount);
    default:
      return CellMeter::ReadyAt(*this, now, amount);
  }
}

bool Meter::Take(Nanos now, std::int64_t amount, bool pass_waiters, bool answered, Taken& taken,
                 bool begins) {
  taken.amount = 0;
  if (amount == 0) return true;
  switch (shape_) {
    case Shape::kBucket:
      return BucketMeter::Take(*this, now, amount, pass_waiters, answered, begins, taken);
    case Shape::kConcurrency:
      return ConcurrencyMeter::Take(*this, amount, pass_waiters, taken);
    case Shape::kCredit:
      return CreditMeter::Take(*this, now, amount, pass_waiters, begins, taken);
    default:
      return CellMeter::Take(*this, now, amount, pass_waiters, answered, begins, taken);
  }
}

bool Meter::Begin(Nanos now, Taken& taken) {
  if (taken.amount == 0) return false;
  if (has_cells()) CellMeter::Begin(*this, now, taken);
  if (shape_ == Shape::kCredit) CreditMeter::Begin(*this, now, taken);
  return shape_ == Shape::kBucket && BucketMeter::Start(*this, now, taken);
}

void Meter::Force(Nanos now, std::int64_t amount, Taken& taken) {
  taken.amount = 0;
  if (amount == 0) return;
  switch (shape_) {
    case Shape::kBucket:
      return BucketMeter::Force(*this, now, amount, taken);
    case Shape::kConcurrency:
    case Shape::kCredit:
      return ConcurrencyMeter::Force(*this, amount, taken);
    default:
      return CellMeter::Force(*this, now, amount, taken);
  }
}

Nanos Meter::ReserveAt(Nanos now, std::int64_t amount, Taken& taken) {
  taken.amount = 0;
  if (amount == 0) return now;
  return shape_ == Shape::kBucket ? BucketMeter::ReserveAt(*this, now, amount, taken) : kNever;
}

bool Meter::GiveBack(Nanos now, const Taken& taken, std::int64_t amount, Debt debt, bool cancel) {
  if (taken.amount == 0 || (amount == 0 && !cancel)) return false;
  switch (shape_) {
    case Shape::kBucket:
      return BucketMeter::GiveBack(*this, now, taken, amount, debt, cancel);
    case Shape::kConcurrency:
      return ConcurrencyMeter::GiveBack(*this, amount);
    case Shape::kCredit:
      return CreditMeter::GiveBack(*this, taken, amount);
    default:
      return CellMeter::GiveBack(*this, taken, amount, cancel);
  }
}

void Meter::Charge(Nanos now, const Taken& taken, std::int64_t amount) {
  if (amount == 0) return;
  switch (shape_) {
    case Shape::kBucket:
      return BucketMeter::Charge(*this, now, amount);
    case Shape::kConcurrency:
    case Shape::kCredit:
      return;
    default:
      return CellMeter::Charge(*this, now, amount);
  }
  static_cast<void>(taken);
}

void Meter::CountEarlier(Nanos counted_by, std::int64_t amount) {
  if (amount > 0 && has_cells()) CellMeter::CountEarlier(*this, counted_by, amount);
}

std::vector<RunOfCalls> Meter::Runs() {
  return has_cells() ? CellMeter::Runs(*this) : std::vector<RunOfCalls>{};
}

bool Meter::Grant(std::int64_t amount) { return ConcurrencyMeter::GiveBack(*this, amount); }

bool Meter::TakeBack(std::int64_t amount) {
  Taken taken;
  return ConcurrencyMeter::Take(*this, amount, /*pass_waiters=*/true, taken);
}

std::int64_t Meter::Holds(std::vector<Departure>& departures) {
  departures.clear();
  if (has_cells()) return CellMeter::Holds(*this, departures);
  return shape_ == Shape::kConcurrency ? Word{word_.load()}.value() : 0;
}

void Meter::GoesAhead(const Taken& taken) {
  if (taken.amount != 0 && has_cells()) CellMeter::GoesAhead(*this, taken);
}

void Meter::Begun(const Taken& taken, Nanos now, Nanos waited) {
  if (taken.amount == 0 || !has_cells()) return;
  CellMeter::Begun(*this, taken, now, waited);
}

bool Meter::Sent(const Taken& taken, Nanos counted_by) {
  if (taken.amount == 0) return false;
  if (has_cells()) return CellMeter::Sent(*this, taken, counted_by);
  if (shape_ == Shape::kBucket) BucketMeter::Sent(*this, taken, counted_by);
  return false;
}

bool Meter::Answered(const Taken& taken, Nanos at, Answer answer, bool pinned, Nanos began) {
  if (taken.amount == 0 || !has_cells()) return false;
  return CellMeter::Answered(*this, taken, at, answer, pinned, began);
}

void Meter::SetMargin(Nanos margin) {
  if (has_cells()) CellMeter::SetMargin(*this, margin);
}

void Meter::Raise(std::int64_t bound, Nanos at, Nanos seen) {
  if (shape_ == Shape::kBucket) return BucketMeter::Raise(*this, bound, at, seen);
  if (has_cells()) CellMeter::Raise(*this, bound, at);
}

bool Meter::Lower(std::int64_t bound, Nanos seen) {
  if (shape_ == Shape::kBucket) return BucketMeter::Lower(*this, bound, seen);
  return has_cells() && CellMeter::Lower(*this, bound);
}

void Meter::OthersLeaveBy(Nanos at) {
  if (shape_ == Shape::kWindow) CellMeter::OthersLeaveBy(*this, at);
}

std::int64_t Meter::Others() const {
  if (!has_cells()) return 0;
  const Cells* cells = cells_.load(std::memory_order_acquire);
  return cells == nullptr ? 0 : cells->foreign.load();
}

bool Meter::SetLimit(Nanos now, const Limit& limit, Nanos wall_offset, Debt debt) {
  std::uint64_t bits = word_.load();
  const Parameters old = slots_.Load(Word{bits}.generation());
  const bool closes = shape_ == Shape::kBucket && limit.amount == 0;
  const Parameters fresh = closes ? old.Closed() : Parameters::From(limit, wall_offset);
  slots_.Store(Word{bits}.generation() + 1, fresh);
  for (;;) {
    const Word word{bits};
    // One that was full stays full.
    if (shape_ == Shape::kBucket && BucketMeter::IsFull(word, now, old))
      BucketMeter::Begin(*this, now);
    const std::int64_t value = shape_ == Shape::kBucket
                                   ? BucketMeter::Rescale(word.value(), now, old, fresh, debt)
                                   : word.value();
    HEADWAY_PAUSE();
    if (word_.compare_exchange_weak(bits, word.with_value(value).with_next_generation().bits))
      return word.waiters();
  }
}

std::int64_t Meter::Used(Nanos now) {
  switch (shape_) {
    case Shape::kBucket:
      return BucketMeter::Used(*this, now);
    case Shape::kConcurrency:
    case Shape::kCredit:
      return Word{word_.load()}.value();
    default:
      return CellMeter::Used(*this, now);
  }
}

std::int64_t Meter::Capacity() const {
  const Parameters p = parameters();
  return shape_ == Shape::kBucket ? p.burst : p.amount;
}

bool Meter::TakeOwedSignal() {
  if (!has_cells()) return false;
  Cells* cells = cells_.load(std::memory_order_acquire);
  if (cells == nullptr) return false;
  HEADWAY_PAUSE();
  return cells->owes_signal.load() && cells->owes_signal.exchange(false);
}

void Meter::StopTrustingOrder() {
  if (has_cells()) cells().in_order.store(false);
}

}  // namespace headway
