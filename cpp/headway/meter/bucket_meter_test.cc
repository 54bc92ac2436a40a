// headway/meter/bucket_meter_test.cc: a bucket admits what the oracle admits, to the nanosecond.
#include "headway/meter/bucket_meter.h"

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/oracle.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::BucketOracle;
using simulate::Random;

Limit Make(std::int64_t amount, Nanos period, std::optional<std::int64_t> burst = std::nullopt) {
  Limit limit;
  limit.amount = amount;
  limit.resource = "requests";
  limit.period = period;
  limit.shape = Shape::kBucket;
  limit.burst = burst;
  return Limit::Make(limit).value();
}

bool Take(Meter& m, Nanos now, std::int64_t amount, bool answered = true) {
  Taken taken;
  return m.Take(now, amount, /*pass_waiters=*/false, answered, taken);
}
// When it would fit for one that is counted at once.
Nanos ReadyAt(Meter& m, Nanos now, std::int64_t amount) {
  return m.ReadyAt(now, amount, /*answered=*/true);
}

// The design's price of a unit: whole nanoseconds while that is 1 µs or more, else the exact ratio.
struct Price {
  explicit Price(const Limit& limit) {
    const Nanos step = (limit.period + limit.amount - 1) / limit.amount;
    numerator = step >= 1'000 ? step : limit.period;
    denominator = step >= 1'000 ? 1 : limit.amount;
  }
  std::int64_t numerator = 0;
  std::int64_t denominator = 1;
};

Nanos GuardOf(const Limit& limit, bool answered) {
  return answered ? 0 : BucketOracle::Guard(limit.amount, limit.period, limit.burst_or_amount());
}

BucketOracle OracleOf(const Limit& limit, bool answered = true) {
  const Price price(limit);
  return {price.numerator, price.denominator, limit.burst_or_amount(), GuardOf(limit, answered)};
}

struct Held {
  Taken taken;
  Price price;
  Nanos period;
  BucketOracle::Receipt receipt{};
};

// One random life of one meter beside the oracle. `changes`: the limit changes, too. `answered`:
// all of it is counted at once, so that no guard is needed.
void LiveBesideTheOracle(Random& random, bool changes, Debt debt) {
  const bool answered = random.OneIn(2);
  // Where the limit changes, by no more than a factor of a million: a debt is whole nanoseconds,
  // and what rounding it costs is scaled with it.
  const auto some_limit = [&] {
    if (!changes) return simulate::AnyLimit(random, Shape::kBucket, 40);
    return Make(random.Magnitude(20), random.From(1, 1000) * kMillisecond,
                random.OneIn(2) ? std::optional(random.Magnitude(20)) : std::nullopt);
  };
  Limit limit = some_limit();
  const bool proportional = changes && debt == Debt::kProportional;
  Meter meter(limit, 0);
  BucketOracle oracle = OracleOf(limit, answered);
  Nanos now = random.From(0, Nanos{1} << 56);
  // The meter rounds to whole nanoseconds, to its own disadvantage; where a unit costs less than 1
  // µs, each take by up to one of them, which a later refund takes along.
  Nanos slack = 0;
  Nanos most_guard = 0;
  bool fractions = Price(limit).denominator != 1;
  std::vector<Held> held;
  for (int op = 0; op < 50; ++op) {
    const std::int64_t burst = std::max<std::int64_t>(1, limit.burst_or_amount());
    std::int64_t cost = random.OneIn(3)   ? burst
                        : random.OneIn(3) ? random.Magnitude(53)
                                          : random.From(1, burst);
    if (random.OneIn(8)) cost = burst + 1;
    if (cost > Limit::kMaxAmount) cost = Limit::kMaxAmount;

    const Nanos ready = meter.ReadyAt(now, cost, answered);
    const Nanos expected = oracle.ReadyAt(now, cost);
    if (expected == simulate::kOracleNever) {
      ASSERT_EQ(ready, kNever);
    } else {
      // Debts of decades end where the word does.
      if (expected - now > Nanos{1} << 58) {
        ASSERT_GT(ready - now, Nanos{1} << 57);
        return;
      }
      const bool whole = limit.amount == 0 || Price(limit).denominator == 1;
      // What was rounded may make one of the two take a bucket for full for the guard, and the
      // other not quite.
      most_guard = std::max(most_guard, GuardOf(limit, answered));
      const Nanos off = slack > 0 ? slack + most_guard : 0;
      ASSERT_GE(ready, whole && !fractions ? expected : expected - off - 1);
      ASSERT_LE(ready, expected + off);
      fractions |= !whole;
      if (ready > now) {
        ASSERT_EQ(meter.ReadyAt(ready, cost, answered), ready)
            << "does not fit when it said it would";
        ASSERT_EQ(meter.ReadyAt(ready - 1, cost, answered), ready) << "fits earlier than it said";
      }
    }
    switch (random.From(0, 9)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        Held h{{}, Price(limit.amount > 0 ? limit : Make(1, kSecond)), limit.period};
        const bool took = meter.Take(now, cost, false, answered, h.taken);
        ASSERT_EQ(took, ready <= now);
        if (!took) break;
        h.receipt = oracle.Take(now, cost);
        if (h.price.denominator != 1) ++slack;
        held.push_back(h);
        break;
      }
      case 4:
      case 5: {
        if (held.empty()) break;
        const auto at =
            static_cast<std::size_t>(random.From(0, static_cast<std::int64_t>(held.size()) - 1));
        const Held h = held[at];
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
        const std::int64_t back = random.OneIn(2) ? h.taken.amount : random.From(0, h.taken.amount);
        const bool cancel = back == h.taken.amount && !changes;
        EXPECT_FALSE(meter.GiveBack(now, h.taken, back, debt, cancel));
        if (cancel) {
          oracle.Cancel(now, back, h.receipt);
        } else if (proportional) {
          const Nanos common = std::gcd(limit.period, h.period);
          oracle.GiveBackTime(now,
                              simulate::Wide{back} * h.price.numerator * (limit.period / common),
                              simulate::Wide{h.price.denominator} * (h.period / common));
        } else {
          oracle.GiveBack(now, back);
        }
        slack += 2 + (proportional ? limit.period / h.period : 0);
        if (!changes && h.price.denominator == 1) slack -= 2;
        break;
      }
      case 6: {
        const std::int64_t more = std::max<std::int64_t>(1, burst / 16);
        if (expected > now + (Nanos{1} << 56)) break;
        meter.Charge(now, Taken{}, more);
        oracle.Take(now, more);
        if (Price(limit).denominator != 1) ++slack;
        break;
      }
      case 7: {
        if (!changes) break;
        const Limit before = limit;
        limit = some_limit();
        EXPECT_FALSE(meter.SetLimit(now, limit, 0, debt));
        const Price price(limit);
        if (proportional) {
          oracle.SetProportional(now, price.numerator, price.denominator, limit.burst_or_amount(),
                                 limit.period, before.period, GuardOf(limit, answered));
          slack = slack * limit.period / before.period + 3;
        } else {
          oracle.SetAbsolute(now, price.numerator, price.denominator, limit.burst_or_amount(),
                             GuardOf(limit, answered));
          // What was rounded before is scaled with the debt.
          const Price old(before);
          const double ratio =
              static_cast<double>(price.numerator) / static_cast<double>(price.denominator) /
              (static_cast<double>(old.numerator) / static_cast<double>(old.denominator));
          slack = static_cast<Nanos>(static_cast<double>(slack) * ratio) + 3;
        }
        break;
      }
      case 8:
        if (ready < kUntold && ready - now < 365 * kDay)
          now = ready - random.From(0, now < ready ? 1 : 0);
        break;
      default:
        if (random.OneIn(3)) break;  // the clock stands still
        now += random.OneIn(4) ? 3600 * kSecond : random.From(0, limit.period);
    }
  }
}

TEST(BucketMeter, AdmitsExactlyWhatTheOracleAdmits) {
  for (std::uint64_t run = 0; run < 4'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheOracle(random, /*changes=*/false, Debt::kAbsolute));
  }
}

TEST(BucketMeter, FollowsTheOracleWhenTheLimitChangesAndUnitsAreOwed) {
  for (std::uint64_t run = 0; run < 4'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheOracle(random, /*changes=*/true, Debt::kAbsolute));
  }
}

TEST(BucketMeter, FollowsTheOracleWhenTheLimitChangesAndSharesAreOwed) {
  for (std::uint64_t run = 0; run < 4'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheOracle(random, /*changes=*/true, Debt::kProportional));
  }
}

TEST(BucketMeter, AdmitsTheLastUnitOfEveryBurst) {
  for (std::int64_t amount = 1; amount <= 1000; ++amount) {
    const Nanos step = (60 * kSecond + amount - 1) / amount;
    for (std::int64_t burst = 1; burst <= 1000; ++burst) {
      Meter meter(Make(amount, 60 * kSecond, burst), 0);
      const Nanos now = amount * 7919 + burst;
      ASSERT_TRUE(burst == 1 || Take(meter, now, burst - 1));
      ASSERT_TRUE(Take(meter, now, 1)) << burst << " of " << amount;
      ASSERT_FALSE(Take(meter, now, 1)) << burst << " of " << amount;
      ASSERT_EQ(ReadyAt(meter, now, 1), now + step);
      ASSERT_EQ(ReadyAt(meter, now, burst), now + burst * step);
      ASSERT_EQ(ReadyAt(meter, now, burst + 1), kNever);
    }
  }
}

TEST(BucketMeter, AdmitsTheLastUnitOfEveryBurstTakenOneByOne) {
  for (std::int64_t burst = 1; burst <= 1000; ++burst) {
    Random random(Random::Seed(static_cast<std::uint64_t>(burst)));
    SCOPED_TRACE(random.Describe());
    Meter meter(Make(random.From(1, 1000), kSecond * random.From(1, 60), burst), 0);
    // On a clock that starts at 0, too.
    const Nanos now = random.From(0, random.OneIn(2) ? kSecond : kDay);
    const bool answered = random.OneIn(2);
    for (std::int64_t i = 0; i < burst; ++i)
      ASSERT_TRUE(Take(meter, now, 1, answered)) << i << " of " << burst;
    ASSERT_FALSE(Take(meter, now, 1, answered)) << burst;
  }
}

TEST(BucketMeter, NeverExceedsTheLimitOverAnyIntervalOnAClockThatStepsBack) {
  for (std::uint64_t run = 0; run < 1'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const Limit limit =
        Make(random.From(1, 1000), random.From(1, 1000) * kMillisecond, random.From(1, 100));
    const bool answered = random.OneIn(2);
    Meter meter(limit, 0);
    std::vector<std::pair<Nanos, std::int64_t>> admitted;
    Nanos now = kDay;
    for (int i = 0; i < 200; ++i) {
      now += random.OneIn(3) ? -random.From(0, 50 * kMillisecond) : random.From(0, limit.period);
      const std::int64_t cost = random.From(1, limit.burst_or_amount());
      if (Take(meter, now, cost, answered)) admitted.emplace_back(now, cost);
    }
    // By the definition: between any two admissions, no more than the burst and what was refilled.
    std::sort(admitted.begin(), admitted.end());
    for (std::size_t first = 0; first < admitted.size(); ++first) {
      simulate::Wide sum = 0;
      for (std::size_t last = first; last < admitted.size(); ++last) {
        sum += admitted[last].second;
        const Nanos span = admitted[last].first - admitted[first].first;
        ASSERT_LE(sum * limit.period, simulate::Wide{limit.burst_or_amount()} * limit.period +
                                          simulate::Wide{limit.amount} * span);
      }
    }
  }
}

TEST(BucketMeter, StandsAbsurdLimits) {
  for (const Nanos period : {Limit::kMinPeriod, 60 * kSecond, Limit::kMaxPeriod}) {
    Meter none(Make(0, period), 0);
    EXPECT_EQ(none.ReadyAt(0, 1), kNever);
    EXPECT_EQ(none.ReadyAt(0, 0), 0);
    EXPECT_FALSE(Take(none, 5, 1));
    EXPECT_TRUE(Take(none, 5, 0));
    EXPECT_EQ(none.Capacity(), 0);
    none.Charge(0, Taken{}, 1);
    EXPECT_EQ(none.Used(0), 0);

    Meter one(Make(1, period), 0);
    EXPECT_TRUE(Take(one, 0, 1));
    EXPECT_FALSE(Take(one, period - 1, 1));
    EXPECT_TRUE(Take(one, period, 1));
    EXPECT_EQ(ReadyAt(one, 0, 2), kNever);
    EXPECT_EQ(one.ReadyAt(0, Limit::kMaxAmount), kNever);

    Meter most(Make(Limit::kMaxAmount, period), 0);
    EXPECT_EQ(most.Capacity(), Limit::kMaxAmount);
    EXPECT_TRUE(Take(most, 0, Limit::kMaxAmount));
    EXPECT_FALSE(Take(most, 0, 1));
    EXPECT_LE(ReadyAt(most, 0, Limit::kMaxAmount), period + 1);

    // Above what a nanosecond can tell, a cost above the burst is still refused for ever.
    Meter fast(Make(Limit::kMaxAmount, period, 1), 0);
    EXPECT_EQ(fast.ReadyAt(0, 2), kNever);
    EXPECT_TRUE(Take(fast, 0, 1));
  }
}

TEST(BucketMeter, AnOverageHoweverAbsurdIsOwed) {
  Meter meter(Make(1, Limit::kMaxPeriod), 0);
  meter.Charge(0, Taken{}, Limit::kMaxAmount);
  EXPECT_GT(meter.ReadyAt(0, 1), 365 * kDay);
  meter.Charge(0, Taken{}, Limit::kMaxAmount);
  meter.Charge(0, Taken{}, Limit::kMaxAmount);
  EXPECT_GT(meter.ReadyAt(0, 1), 365 * kDay);
}

TEST(BucketMeter, ARefundNeverLiftsWhatIsAvailableAboveTheBurst) {
  Meter meter(Make(10, kSecond), 0);
  Taken first;
  ASSERT_TRUE(meter.Take(0, 10, false, false, first));
  // All of it is paid for; giving it back now gives nothing.
  EXPECT_FALSE(meter.GiveBack(5 * kSecond, first, 10, Debt::kAbsolute, false));
  EXPECT_TRUE(Take(meter, 5 * kSecond, 10));
  EXPECT_FALSE(Take(meter, 5 * kSecond, 1));
}

TEST(BucketMeter, AnIdleBucketWhoseLimitWasClosedOwesNothingAndOpensFull) {
  Meter meter(Make(10, kSecond), 0);
  EXPECT_FALSE(meter.SetLimit(0, Make(0, kSecond), 0, Debt::kAbsolute));
  EXPECT_EQ(meter.ReadyAt(0, 1), kNever);
  EXPECT_EQ(meter.Capacity(), 0);
  EXPECT_FALSE(meter.SetLimit(0, Make(10, kSecond), 0, Debt::kAbsolute));
  EXPECT_TRUE(Take(meter, 0, 10));
}

TEST(BucketMeter, WhatIsOwedOutlivesALimitOfZero) {
  Meter meter(Make(10, kSecond), 0);
  Taken kept;
  Taken cancelled;
  ASSERT_TRUE(meter.Take(0, 4, false, false, kept));
  ASSERT_TRUE(meter.Take(0, 6, false, false, cancelled));
  EXPECT_FALSE(meter.SetLimit(0, Make(0, kSecond), 0, Debt::kAbsolute));
  EXPECT_FALSE(meter.GiveBack(0, cancelled, 6, Debt::kAbsolute, true));
  // Four units are owed, at a rate of one a second now.
  EXPECT_FALSE(meter.SetLimit(0, Make(10, 10 * kSecond), 0, Debt::kAbsolute));
  EXPECT_EQ(meter.Used(0), 4);
  EXPECT_EQ(ReadyAt(meter, 0, 10), 4 * kSecond);
}

// Ten reservations of 6 at 100 a minute, the limit multiplied, five settle at 1 and five cancel.
// All at one instant, so that what is left is exact: 5 units where units are owed; where shares
// are, 5 at the old price.
TEST(BucketMeter, KeepsItsBooksThroughALimitChangeWithTenInFlight) {
  for (const auto& [amount, debt] :
       std::vector<std::pair<std::int64_t, Debt>>{{50, Debt::kAbsolute},
                                                  {1000, Debt::kAbsolute},
                                                  {50, Debt::kProportional},
                                                  {1000, Debt::kProportional}}) {
    SCOPED_TRACE(amount);
    const Nanos now = 77 * kSecond;
    Meter meter(Make(100, 60 * kSecond), 0);
    std::vector<Taken> taken(10);
    for (Taken& t : taken) ASSERT_TRUE(meter.Take(now, 6, false, false, t));
    EXPECT_FALSE(meter.SetLimit(now, Make(amount, 60 * kSecond), 0, debt));
    // 60 units of before are owed, by their number or by their share.
    const std::int64_t owed = debt == Debt::kAbsolute ? 60 : 60 * amount / 100;
    EXPECT_EQ(meter.Used(now), owed);
    EXPECT_EQ(ReadyAt(meter, now, amount), now + owed * 60 * kSecond / amount);
    for (std::size_t i = 0; i < taken.size(); ++i)
      EXPECT_FALSE(meter.GiveBack(now, taken[i], i % 2 == 0 ? 5 : 6, debt, i % 2 != 0));
    const Nanos left = debt == Debt::kAbsolute ? 5 * 60 * kSecond / amount : 5 * 60 * kSecond / 100;
    EXPECT_EQ(ReadyAt(meter, now, amount), now + left);
  }
}

TEST(BucketMeter, ARefundIsWorkedOutAnewAfterEightChanges) {
  // The generation in the word has three bits; eight changes later it is the same again.
  Meter meter(Make(100, kSecond), 0);
  Taken taken;
  ASSERT_TRUE(meter.Take(0, 50, false, false, taken));
  for (int i = 0; i < 7; ++i)
    EXPECT_FALSE(meter.SetLimit(0, Make(100 + i, kSecond), 0, Debt::kAbsolute));
  EXPECT_FALSE(meter.SetLimit(0, Make(1000, kSecond), 0, Debt::kAbsolute));
  EXPECT_FALSE(meter.GiveBack(0, taken, 25, Debt::kAbsolute, false));
  EXPECT_EQ(meter.Used(0), 25);
}

TEST(BucketMeter, AnObservationOnlyRaisesOrLowers) {
  constexpr Nanos kPeriod = 100 * kMillisecond;  // so short that there is no guard
  Meter meter(Make(10, kPeriod), 0);
  const Nanos now = 100 * kSecond;
  meter.Raise(now + kPeriod, now);
  EXPECT_EQ(meter.Used(now), 10);
  meter.Raise(now, now);
  EXPECT_EQ(meter.Used(now), 10);
  EXPECT_FALSE(meter.Lower(now + 2 * kPeriod));
  EXPECT_EQ(meter.Used(now), 10);
  EXPECT_FALSE(meter.Lower(now + kPeriod / 2));
  EXPECT_EQ(meter.Used(now), 5);
  meter.SetWaiters();
  EXPECT_TRUE(meter.Lower(now));
  EXPECT_TRUE(Take(meter, now, 0));
  EXPECT_FALSE(Take(meter, now, 1)) << "somebody waits";
}

// Reserved slots go out at their instants, whatever was cancelled or settled in between, and others
// take what the meter lets them; all of it together is what a bucket server would have admitted.
void SlotsBesideTheServer(Random& random, int slots, bool settles) {
  const Limit limit = Make(random.From(1, 20), kSecond, random.From(1, 20));
  const std::int64_t burst = limit.burst_or_amount();
  Meter meter(limit, 0);
  Nanos now = kDay;
  struct Slot {
    Nanos at;
    Taken taken;
  };
  std::vector<Slot> reserved;
  std::vector<std::pair<Nanos, std::int64_t>>
      sent;  // negative: a refund, which the server sees at once
  std::vector<Taken> settleable;
  const auto others = [&](int most) {
    while (most-- > 0) {
      Taken taken;
      const std::int64_t cost = random.From(1, burst);
      if (!meter.Take(now, cost, false, false, taken)) return;
      sent.emplace_back(now, cost);
      settleable.push_back(taken);
    }
  };
  others(3);
  for (int i = 0; i < slots; ++i) {
    Slot slot;
    slot.at = meter.ReserveAt(now, random.From(1, burst), slot.taken);
    ASSERT_GE(slot.at, now);
    reserved.push_back(slot);
    if (random.OneIn(4)) now += random.From(0, kSecond / 4);
  }
  std::shuffle(reserved.begin(), reserved.end(), random.engine());
  for (int step = 0; step < 400; ++step) {
    // What is due goes out; of the rest, one may be cancelled.
    for (std::size_t i = 0; i < reserved.size();) {
      if (reserved[i].at <= now) {
        sent.emplace_back(reserved[i].at, reserved[i].taken.amount);
      } else if (random.OneIn(25)) {
        EXPECT_FALSE(meter.GiveBack(now, reserved[i].taken, reserved[i].taken.amount,
                                    Debt::kAbsolute, true));
      } else {
        ++i;
        continue;
      }
      reserved.erase(reserved.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (settles && !settleable.empty() && random.OneIn(3)) {
      const Taken taken = settleable.back();
      settleable.pop_back();
      const std::int64_t back = random.From(0, taken.amount);
      EXPECT_FALSE(meter.GiveBack(now, taken, back, Debt::kAbsolute, false));
      sent.emplace_back(now, -back);
    }
    others(2);
    now += random.From(0, kSecond / 2);
  }
  std::stable_sort(sent.begin(), sent.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  BucketOracle server = OracleOf(limit);
  for (const auto& [at, cost] : sent) {
    if (cost < 0) {
      server.GiveBack(at, -cost);
      continue;
    }
    ASSERT_TRUE(server.Fits(at, cost)) << cost << " at " << at << " of " << limit.Format();
    server.Take(at, cost);
  }
}

TEST(BucketMeter, FiftySlotsReservedAndCancelledAdmitNothingTooMany) {
  for (std::uint64_t run = 0; run < 150; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(SlotsBesideTheServer(random, 50, /*settles=*/false));
  }
}

TEST(BucketMeter, RefundsTakeNothingFromUnderAReservedSlot) {
  for (std::uint64_t run = 0; run < 150; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(SlotsBesideTheServer(random, 10, /*settles=*/true));
  }
}

TEST(BucketMeter, FiftySlotsCancelledLastFirstAreAllGivenBack) {
  Meter meter(Make(1, kSecond), 0);
  std::vector<Taken> taken(50);
  for (std::size_t i = 0; i < taken.size(); ++i)
    ASSERT_EQ(meter.ReserveAt(0, 1, taken[i]), static_cast<Nanos>(i) * kSecond);
  for (std::size_t i = taken.size(); i-- > 0;)
    EXPECT_FALSE(meter.GiveBack(0, taken[i], 1, Debt::kAbsolute, true));
  EXPECT_EQ(meter.ReadyAt(0, 1), 0);
}

TEST(BucketMeter, FiftySlotsCancelledFirstFirstGiveBackOnlyTheLast) {
  // Whoever holds a later slot holds its instant; what it stands on cannot be taken away.
  Meter meter(Make(1, kSecond), 0);
  std::vector<Taken> taken(50);
  for (Taken& t : taken) meter.ReserveAt(0, 1, t);
  for (Taken& t : taken) EXPECT_FALSE(meter.GiveBack(0, t, 1, Debt::kAbsolute, true));
  EXPECT_EQ(meter.ReadyAt(0, 1), 49 * kSecond);
}

TEST(BucketMeter, ASlotCancelledAfterTheLimitRoseTakesNothingFromLaterOnes) {
  Meter meter(Make(1, 10 * kSecond), 0);
  Taken first;
  Taken second;
  meter.ReserveAt(0, 1, first);
  EXPECT_EQ(meter.ReserveAt(0, 1, second), 10 * kSecond);
  EXPECT_FALSE(meter.SetLimit(0, Make(1, kSecond), 0, Debt::kAbsolute));
  EXPECT_EQ(meter.Used(0), 2);
  EXPECT_FALSE(meter.GiveBack(0, first, 1, Debt::kAbsolute, true));
  EXPECT_EQ(meter.Used(0), 2);
}

TEST(BucketMeter, AFullBurstGoesOutAtOnceAndItsRefillBeginsAGuardLater) {
  Meter meter(Make(600, 60 * kSecond), 0);
  for (int i = 0; i < 600; ++i) ASSERT_TRUE(Take(meter, kDay, 1, /*answered=*/false));
  const Nanos next = kDay + 1'100 * kMillisecond;
  EXPECT_EQ(meter.ReadyAt(kDay, 1), next);
  EXPECT_EQ(meter.Used(kDay + 999 * kMillisecond), 600);
  EXPECT_FALSE(Take(meter, next - 1, 1, /*answered=*/false));
  EXPECT_TRUE(Take(meter, next, 1, /*answered=*/false));
  EXPECT_FALSE(Take(meter, next, 1, /*answered=*/false));
  // All of it in one piece, too; and once everything is paid for and the guard over, again.
  const Nanos full = meter.ReadyAt(kDay, 600);
  EXPECT_EQ(full, kDay + 61'100 * kMillisecond);
  EXPECT_TRUE(Take(meter, full, 600, /*answered=*/false));
}

TEST(BucketMeter, AnEvenPaceAndQuickBurstsNeedNoGuard) {
  Meter even(Make(10, kSecond, 1), 0);
  ASSERT_TRUE(Take(even, kDay, 1, /*answered=*/false));
  EXPECT_EQ(even.ReadyAt(kDay, 1), kDay + 100 * kMillisecond);
  Meter quick(Make(100, kSecond, 10), 0);
  ASSERT_TRUE(Take(quick, kDay, 10, /*answered=*/false));
  EXPECT_EQ(quick.ReadyAt(kDay, 1), kDay + 10 * kMillisecond);
}

// A server that counts each call later than it was admitted, by times that differ by no more than
// the guard, in whatever order they arrive, refuses none; and by no more than the guard does
// anybody wait longer than for a server that counts at once.
TEST(BucketMeter, AServerThatCountsLaterRefusesNothingWithinTheGuard) {
  int late = 0;
  for (std::uint64_t run = 0; run < 1'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const Limit limit = Make(random.From(1, 1000), random.From(1, 60) * kSecond,
                             random.OneIn(2) ? std::optional(random.From(1, 100)) : std::nullopt);
    const std::int64_t burst = limit.burst_or_amount();
    const Nanos guard = GuardOf(limit, /*answered=*/false);
    const Nanos least = random.From(0, kSecond);
    Meter meter(limit, 0);
    BucketOracle at_once = OracleOf(limit);
    std::vector<std::pair<Nanos, std::int64_t>> counted;
    Nanos now = kDay;
    for (int i = 0; i < 150; ++i) {
      const std::int64_t cost = random.OneIn(6) ? random.From(1, burst) : 1;
      const Nanos ready = meter.ReadyAt(now, cost);
      ASSERT_LE(ready, at_once.ReadyAt(now, cost) + guard);
      if (ready > now) now = random.OneIn(8) ? ready + random.From(0, 2 * limit.period) : ready;
      ASSERT_TRUE(Take(meter, now, cost, /*answered=*/false));
      at_once.Take(now, cost);
      // Mostly as bad as can be: the early ones late, and the late ones early.
      const Nanos delay = random.OneIn(3) ? random.From(0, guard) : random.OneIn(2) ? 0 : guard;
      counted.emplace_back(now + least + delay, cost);
    }
    std::sort(counted.begin(), counted.end());
    BucketOracle server = OracleOf(limit);
    for (const auto& [at, cost] : counted) {
      ASSERT_TRUE(server.Fits(at, cost)) << cost << " at " << at << " of " << limit.Format();
      server.Take(at, cost);
    }
    late += guard > 0 ? 1 : 0;
  }
  EXPECT_GT(late, 500);
}

TEST(BucketMeter, ABurstThatIsSentLaterThanTheGuardIsOwedFromThen) {
  // Ten at once of ten a second, with a guard of 56.25 ms. What the server counts 100 ms later it
  // refills so much later. It is moved once, not once for each; and by a burst at most.
  std::vector<Taken> taken(10);
  for (const auto& [sent, refilled] :
       std::vector<std::pair<Nanos, Nanos>>{{40 * kMillisecond, kSecond + 56'250 * kMicrosecond},
                                            {100 * kMillisecond, kSecond + 100 * kMillisecond},
                                            {5 * kSecond, 2 * kSecond + 56'250 * kMicrosecond}}) {
    Meter meter(Make(10, kSecond), 0);
    for (Taken& t : taken) ASSERT_TRUE(meter.Take(kDay, 1, false, false, t));
    for (const Taken& t : taken) EXPECT_FALSE(meter.Sent(t, kDay + sent));
    EXPECT_EQ(meter.ReadyAt(kDay, 10), kDay + refilled);
  }
}

// Some wait, and go on when their event loops do: those of one that was busy all at once. The
// server counts when they begin, and allows for no more than is let pass.
TEST(BucketMeter, AServerRefusesNobodyHoweverLateAnybodyGoesOn) {
  for (std::uint64_t run = 0; run < 400; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const std::int64_t amount = random.From(1, 1'000);
    const Limit limit = Make(amount, random.From(1, 60) * kSecond,
                             random.OneIn(3) ? random.From(1, 10) : random.From(1, amount));
    const Nanos step = (limit.period + limit.amount - 1) / limit.amount;
    const Nanos burst = step * *limit.burst;
    if (burst < kSoon) continue;
    Meter meter(limit, 0);
    Nanos now = kDay;
    Nanos paid = 0;  // by then, in the server's books
    const auto begins = [&](std::int64_t units) {
      paid = std::max(paid, now) + units * step;
      ASSERT_LE(paid, now + burst + kSoon);
    };
    std::multimap<Nanos, Taken> waiting;  // by when they go on
    const auto go_on = [&] {
      while (!waiting.empty() && waiting.begin()->first <= now) {
        Taken taken = waiting.begin()->second;
        waiting.erase(waiting.begin());
        if (random.OneIn(10)) {
          // Somebody has looked, and perhaps depends on it.
          static_cast<void>(
              meter.GiveBack(now, taken, taken.amount, Debt::kAbsolute, /*cancel=*/true));
        } else {
          static_cast<void>(meter.Begin(now, taken));
          ASSERT_NO_FATAL_FAILURE(begins(taken.amount));
        }
      }
    };
    std::array<Nanos, 3> busy_until{};
    for (int op = 0; op < 300; ++op) {
      const std::int64_t cost = random.OneIn(8)
                                    ? *limit.burst
                                    : random.From(1, std::max<std::int64_t>(1, *limit.burst / 6));
      for (;;) {
        const Nanos ready = meter.ReadyAt(now, cost);
        if (ready <= now) break;
        const Nanos next = waiting.empty() ? kNever : waiting.begin()->first;
        ASSERT_LT(std::min(next, ready), kUntold) << "nobody is left who could begin";
        now = std::max(now, std::min(next, ready));
        ASSERT_NO_FATAL_FAILURE(go_on());
      }
      Nanos& busy = busy_until[static_cast<std::size_t>(random.From(0, 2))];
      if (random.OneIn(20)) busy = now + random.From(kSoon, 3 * burst);
      const bool waits = random.OneIn(2);
      Taken taken;
      ASSERT_TRUE(meter.Take(now, cost, true, false, taken, !waits));
      if (!waits) {
        ASSERT_NO_FATAL_FAILURE(begins(cost));
      } else {
        waiting.emplace(std::max(now, busy), taken);
      }
      if (random.OneIn(4)) now += random.From(0, burst / 4);
      ASSERT_NO_FATAL_FAILURE(go_on());
    }
    while (!waiting.empty()) {
      now = std::max(now, waiting.begin()->first);
      ASSERT_NO_FATAL_FAILURE(go_on());
    }
    now += 2 * burst + 2 * kSecond;
    EXPECT_EQ(meter.Used(now), 0);
    EXPECT_TRUE(Take(meter, now, *limit.burst)) << "nothing is left behind";
  }
}

// One thread admits a whole burst for those who wait, as the scheduler does, and meanwhile the
// first of them goes on, later by the clock. What is counted before it is taken must not be taken
// twice: the last unit of a month's limit would come minutes late. (It is, where a thread is
// stopped in between for longer than others wait for it.)
TEST(BucketMeter, AWholeBurstIsAdmittedWhileItsFirstGoesOn) {
  constexpr int kBurst = 64;
  constexpr int kRounds = 20'000;
  struct Round {
    explicit Round(int burst) : meter(Make(burst, 31 * kDay, burst), 0) {}
    Meter meter;
    Taken first;
    std::atomic<int> admitted{0};
    std::atomic<bool> begun{false};
  };
  std::vector<std::unique_ptr<Round>> rounds(kRounds);
  for (auto& round : rounds) round = std::make_unique<Round>(kBurst);
  std::thread goes_on([&] {
    for (int r = 0; r < kRounds; ++r) {
      Round& round = *rounds[static_cast<std::size_t>(r)];
      for (int spins = 1; round.admitted.load() <= r % (kBurst - 8); ++spins)
        if (spins % 256 == 0) std::this_thread::yield();
      static_cast<void>(round.meter.Begin(kDay + 2 * kSecond, round.first));
      round.begun.store(true);
    }
  });
  int late = 0;
  for (auto& round : rounds) {
    Nanos now = kDay;
    Taken taken;
    while (round->admitted.load() < kBurst && now < kDay + 10 * kSecond) {
      if (round->meter.Take(now, 1, true, false, taken, /*begins=*/false)) {
        if (round->admitted.load() == 0) round->first = taken;
        round->admitted.fetch_add(1);
      } else {
        now = round->meter.ReadyAt(now, 1);
      }
    }
    late += round->admitted.load() < kBurst ? 1 : 0;
    while (!round->begun.load()) std::this_thread::yield();
  }
  goes_on.join();
  EXPECT_LE(late, kRounds / 1000) << "bursts";
}

TEST(BucketMeter, IsAFewWordsHoweverMuchItServes) { EXPECT_LE(sizeof(Meter), 128); }

}  // namespace
}  // namespace headway
