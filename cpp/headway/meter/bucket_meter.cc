// headway/meter/bucket_meter.cc: the verbs of `bucket` that are not on the hottest path.
#include "headway/meter/bucket_meter.h"

#include "headway/meter/forecast.h"

namespace headway {

Nanos BucketMeter::ReadyAt(Meter& m, Nanos now, std::int64_t amount, bool answered) {
  for (;;) {
    const Word word{m.word_.load(std::memory_order_acquire)};
    const Parameters p = m.slots_.Load(word.generation());
    const Nanos guard = answered ? 0 : p.guard();
    const Nanos increment = p.Increment(amount);
    const Nanos from = answered || IsFull(word, now, p) ? now : RefillFrom(m, now, p.guard());
    const Nanos unbegun = Unbegun(m, p);
    if (m.word_.load(std::memory_order_acquire) != word.bits) continue;
    if (increment > p.tolerance) return kNever;
    if (word.value() + increment > from + p.tolerance)
      return std::max(now, word.value() + guard + increment - p.tolerance);
    if (unbegun == 0 || now + unbegun + increment <= from + p.tolerance) return now;
    // Until enough of it has begun, which signals whoever has said here that he depends on it. Or
    // until the bucket is full, where that is only for its guard.
    if ((m.unbegun_.fetch_or(kDepended) & kDepended) == 0) continue;
    return unbegun + increment > p.tolerance ? kUntold : std::max(now + 1, word.value() + guard);
  }
}

// What has not begun is taken to begin now.
void BucketMeter::Foresee(Meter& m, Nanos now, bool answered, MeterForecast& out) {
  for (;;) {
    const Word word{m.word_.load(std::memory_order_acquire)};
    out.p_ = m.slots_.Load(word.generation());
    out.guard_ = answered ? 0 : out.p_.guard();
    out.began_ = m.began_.load(std::memory_order_relaxed);
    const Nanos unbegun = Unbegun(m, out.p_);
    out.word_ = unbegun == 0 ? word.value() : std::max(word.value(), now + unbegun);
    if (m.word_.load(std::memory_order_acquire) == word.bits) return;
  }
}

bool BucketMeter::Start(Meter& m, Nanos now, Taken& taken) {
  if (!taken.unbegun) return false;
  taken.unbegun = false;
  // Little is let pass, or every wake-up would cost its time.
  const Nanos late = std::max<Nanos>(0, now - (taken.after - taken.increment));
  const Nanos from = late > kSoon ? now : now - late;
  // So that marks which tell when it was sent move the word by what is later still.
  if (late > kSoon) taken.after = now + taken.increment;
  std::uint64_t bits = m.word_.load();
  for (;;) {
    const Word word{bits};
    const Nanos owed = from + Unbegun(m, m.slots_.Load(word.generation()));
    HEADWAY_PAUSE();
    if (word.value() >= owed || m.word_.compare_exchange_weak(bits, word.with_value(owed).bits))
      break;
  }
  HEADWAY_PAUSE();
  return CountDown(m, taken.amount);
}

Nanos BucketMeter::ReserveAt(Meter& m, Nanos now, std::int64_t amount, Taken& taken) {
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  for (;;) {
    const Word word{bits};
    const Parameters p = m.slots_.Load(word.generation());
    const Nanos increment = p.Increment(amount);
    // On top of the latest slot that is still to come, even where cancelled ones have lowered the
    // word.
    Nanos promised = m.promised_.load();
    const Nanos base =
        std::max(std::max(word.value(), now), promised - p.tolerance > now ? promised : 0);
    const Nanos after = increment == kNever ? kNever : base + increment;
    if (after > Word::kMaxValue) {
      const std::uint64_t again = m.word_.load(std::memory_order_acquire);
      if (again == bits) return kNever;
      bits = again;
      continue;
    }
    HEADWAY_PAUSE();
    // Before the word, so that whoever lowers the word knows.
    while (promised < after && !m.promised_.compare_exchange_weak(promised, after)) {
    }
    HEADWAY_PAUSE();
    if (!m.word_.compare_exchange_weak(bits, word.with_value(after).bits)) continue;
    Fill(taken, amount, increment, after, p, word);
    taken.future = true;
    return std::max(now, after - p.tolerance);
  }
}

namespace {

// The time that `amount` of what was taken is worth. Where the limit has changed since, the debt
// was rescaled, and so is what is given back of it.
Nanos Refund(const Parameters& p, const Taken& taken, std::int64_t amount, Debt debt,
             bool changed) {
  if (!changed && amount == taken.amount) return taken.increment;
  const bool share = changed && debt == Debt::kProportional;
  if (!share && p.step() >= kMicrosecond) return p.Cost(amount);
  if (changed && !share) return p.amount > 0 ? MulDivFloor(amount, p.period, p.amount) : 0;
  const Nanos of_taken = MulDivFloor(taken.increment, amount, taken.amount);
  return share ? MulDivFloor(of_taken, p.period, taken.period) : of_taken;
}

}  // namespace

bool BucketMeter::GiveBack(Meter& m, Nanos now, const Taken& taken, std::int64_t amount, Debt debt,
                           bool cancel) {
  const bool signal = taken.unbegun && CountDown(m, taken.amount);
  const bool slot = taken.future && cancel;  // one that was used is refunded like any other
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  for (;;) {
    const Word word{bits};
    const Parameters p = m.slots_.Load(word.generation());
    HEADWAY_PAUSE();
    // Eight changes later the generation is the same again; the numbers then tell.
    const bool changed = word.generation() != taken.generation || p.period != taken.period ||
                         p.Cost(taken.amount) != taken.increment;
    Nanos refund = Refund(p, taken, amount, debt, changed);
    if (slot) {
      // Later slots hold instants that were promised on top of this one; what they stand on cannot
      // be taken away any more, even if the word has been lowered for others that were cancelled.
      // How much that is, nobody knows after the limit has changed.
      Nanos promised = m.promised_.load();
      const Nanos on_top = std::max(word.value(), promised) - taken.after;
      refund = changed ? 0 : std::max<Nanos>(0, refund - std::max<Nanos>(0, on_top));
      // The latest: from now on, the one below it is. Before the word, so that no new one comes
      // between.
      if (promised == taken.after)
        m.promised_.compare_exchange_strong(promised, promised - taken.increment);
    }
    const Nanos before = word.value();
    // 0 would say that nothing was ever taken.
    Nanos after = std::max(cancel ? 0 : std::min<Nanos>(1, before), before - refund);
    // As if it had never been: as long full as before, unless others came meanwhile.
    if (cancel && !slot && !changed && before == taken.after)
      after = std::max<Nanos>(0, after - taken.full_for_or_lap);
    // While a slot that was reserved for later is still to come, so do its units: what it stands on
    // cannot be given away before.
    if (const Nanos promised = m.promised_.load(); !slot && promised - p.tolerance > now)
      after = std::max(after, std::min(before, promised));
    HEADWAY_PAUSE();
    if (m.word_.compare_exchange_weak(bits, word.with_value(after).bits))
      return signal || word.waiters();
  }
}

// The server's word is at least counted + increment, where ours is base + increment with base at
// the admission for a bucket that was full, and the guard is allowed for. In a burst only the first
// few are affected, and what one of them has moved the others count as done (the low 32 bits of the
// sum tell: 4 s of moves). No more than a burst, whatever is told.
void BucketMeter::Sent(Meter& m, const Taken& taken, Nanos counted_by) {
  const Parameters p = m.slots_.Load(Word{m.word_.load()}.generation());
  if (taken.future || p.tolerance == 0) return;
  const Nanos wanted = std::min(
      {counted_by - (taken.after - taken.increment) - p.guard(), p.tolerance, 2 * kSecond});
  Nanos shifted = m.shifted_.load();
  Nanos missing = 0;
  do {
    missing = wanted - static_cast<std::uint32_t>(static_cast<std::uint32_t>(shifted) - taken.cell);
    if (missing <= 0) return;
  } while (!m.shifted_.compare_exchange_weak(shifted, shifted + missing));
  HEADWAY_PAUSE();
  std::uint64_t bits = m.word_.load();
  while (!m.word_.compare_exchange_weak(
      bits, Word{bits}.with_value(std::min(Word{bits}.value() + missing, Word::kMaxValue)).bits)) {
  }
}

void BucketMeter::Charge(Meter& m, Nanos now, std::int64_t amount) {
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  for (;;) {
    const Word word{bits};
    const Parameters p = m.slots_.Load(word.generation());
    const Nanos cost = p.Cost(amount);
    if (IsFull(word, now, p)) Begin(m, now);
    if (p.amount == 0) return;  // a limit that was born 0 knows no rate, and admits nothing anyway
    const Nanos after = std::min(std::max(word.value(), now) + std::min(cost, Word::kMaxValue / 2),
                                 Word::kMaxValue);
    HEADWAY_PAUSE();
    if (m.word_.compare_exchange_weak(bits, word.with_value(after).bits)) return;
  }
}

void BucketMeter::Force(Meter& m, Nanos now, std::int64_t amount, Taken& taken) {
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  for (;;) {
    const Word word{bits};
    const Parameters p = m.slots_.Load(word.generation());
    if (p.amount == 0) return;  // as in Charge
    if (IsFull(word, now, p)) Begin(m, now);
    const Nanos increment = std::min(p.Cost(amount), Word::kMaxValue / 2);
    const Nanos after = std::min(std::max(word.value(), now) + increment, Word::kMaxValue);
    const Nanos shifted = m.shifted_.load(std::memory_order_relaxed);
    HEADWAY_PAUSE();
    if (!m.word_.compare_exchange_weak(bits, word.with_value(after).bits)) continue;
    Fill(taken, amount, increment, after, p, word);
    taken.cell = static_cast<std::uint32_t>(shifted);
    return;
  }
}

void BucketMeter::Raise(Meter& m, Nanos bound, Nanos at, Nanos seen) {
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  bound = std::min(bound, Word::kMaxValue);
  for (;;) {
    // What was paid for at `at` counts from there.
    const Nanos since =
        seen == kNever ? 0
                       : std::max<Nanos>(0, std::max(Word{bits}.value(), at) - std::max(seen, at));
    const Nanos value = std::min(bound + since, Word::kMaxValue);
    if (Word{bits}.value() >= value ||
        m.word_.compare_exchange_weak(bits, Word{bits}.with_value(value).bits))
      return;
    HEADWAY_PAUSE();
  }
}

bool BucketMeter::Lower(Meter& m, Nanos bound, Nanos seen) {
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  bound = std::max<Nanos>(bound, 0);
  for (;;) {
    const Nanos since = seen == kNever ? 0 : std::max<Nanos>(0, Word{bits}.value() - seen);
    if (Word{bits}.value() <= bound + since) return false;
    HEADWAY_PAUSE();
    if (m.word_.compare_exchange_weak(bits, Word{bits}.with_value(bound + since).bits))
      return Word{bits}.waiters();
  }
}

namespace {

// What one unit costs; 64 bits of mantissa are less than a nanosecond off in four years.
long double UnitCost(const Parameters& p) {
  if (p.step() >= kMicrosecond) return static_cast<long double>(p.step());
  return static_cast<long double>(p.period) / static_cast<long double>(p.amount);
}

}  // namespace

Nanos BucketMeter::Rescale(Nanos value, Nanos now, const Parameters& old, const Parameters& fresh,
                           Debt debt) {
  if (value <= now) return std::max(now, value);
  const Nanos owed = value - now;
  Nanos scaled = owed;
  if (debt == Debt::kProportional) {
    scaled = MulDivCeil(owed, fresh.period, old.period);
  } else if (old.amount > 0 && fresh.amount > 0) {
    // units = owed / old step; owed again = units * fresh step. Below 1 µs a step is a ratio.
    if (old.step() >= kMicrosecond && fresh.step() >= kMicrosecond) {
      scaled = MulDivCeil(owed, fresh.step(), old.step());
    } else {
      const long double wide = static_cast<long double>(owed) * UnitCost(fresh) / UnitCost(old);
      scaled = wide > 5e17L ? Word::kMaxValue / 2 : static_cast<Nanos>(wide) + 1;
    }
  }
  return now + std::min(scaled, Word::kMaxValue / 2);
}

std::int64_t BucketMeter::Units(Nanos debt, const Parameters& p) {
  if (debt <= 0 || p.amount == 0) return 0;
  return p.step() >= kMicrosecond ? MulDivCeil(debt, 1, p.step())
                                  : MulDivCeil(debt, p.amount, p.period);
}

std::int64_t BucketMeter::Used(const Meter& m, Nanos now) {
  const Word word{m.word_.load(std::memory_order_acquire)};
  const Parameters p = m.slots_.Load(word.generation());
  if (IsFull(word, now, p)) return 0;
  // What only the guard adds is never more than a burst: calls that need none may fill all of it.
  const std::int64_t guarded = Units(word.value() - RefillFrom(m, now, p.guard()), p);
  return std::max(Units(word.value() - now, p), std::min(guarded, p.burst));
}

}  // namespace headway
