// headway/bucket/bucket_test.cc: all or nothing over several limits, and a reservation's life.
#include "headway/bucket/bucket.h"

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "headway/bucket/forecast.h"
#include "headway/simulate/limits.h"
#include "headway/simulate/memory.h"
#include "headway/simulate/oracle.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;
using Amounts = std::vector<std::int64_t>;

constexpr Nanos kNow = 1'000 * kSecond;

Limit Make(Shape shape, std::int64_t amount, Nanos period = 10 * kSecond,
           std::optional<std::int64_t> burst = std::nullopt) {
  return simulate::MakeLimit(shape, amount, period, burst);
}

// A bucket whose signals are counted.
class Counted final : public WaiterSignal {
 public:
  Counted(const std::vector<Limit>& limits, const std::vector<std::uint8_t>& resources)
      : bucket_(Bucket::Make(limits, resources, 0, this)) {}
  explicit Counted(const Limit& limit) : Counted({limit}, {0}) {}
  ~Counted() { bucket_->Unref(); }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  void Signal(Bucket&) override { ++signals; }
  Bucket* operator->() { return bucket_; }

  int signals = 0;

 private:
  Bucket* bucket_;
};

std::optional<Denial> Reserve(Counted& bucket, Nanos now, const Amounts& amounts,
                              Reservation& out) {
  return bucket->TryReserve(now, amounts, /*privileged=*/false, out);
}

// What one limit would say, by the oracle of its shape. Calls are answered when they are admitted.
struct One {
  Limit limit;
  std::uint8_t resource;
  std::unique_ptr<simulate::BucketOracle> bucket;
  std::unique_ptr<simulate::FixedOracle> fixed;
  std::int64_t in_use = 0;

  Nanos ReadyAt(Nanos now, std::int64_t units) const {
    if (units == 0) return now;
    if (bucket != nullptr) return bucket->ReadyAt(now, units);
    if (fixed != nullptr) return fixed->ReadyAt(now, units);
    return units > limit.amount ? kNever : in_use + units <= limit.amount ? now : kUntold;
  }
  void Add(Nanos now, std::int64_t units) {
    if (bucket != nullptr) bucket->Take(now, units);
    if (fixed != nullptr) fixed->Add(now, units);
    in_use += units;
  }
};

void LiveBesideTheOracles(Random& random) {
  const auto resources = static_cast<std::size_t>(random.From(1, 3));
  std::vector<Limit> limits;
  std::vector<std::uint8_t> counted;
  std::vector<One> oracles;
  for (std::int64_t n = random.From(1, 5); n > 0; --n) {
    constexpr Shape kShapes[] = {Shape::kBucket, Shape::kFixed, Shape::kConcurrency};
    const Limit limit =
        Make(kShapes[random.From(0, 2)], random.From(1, 30), random.From(1, 10) * kSecond);
    const auto resource =
        static_cast<std::uint8_t>(random.From(0, static_cast<std::int64_t>(resources) - 1));
    One one{limit, resource, nullptr, nullptr, 0};
    if (limit.shape == Shape::kBucket)
      one.bucket = std::make_unique<simulate::BucketOracle>(
          (limit.period + limit.amount - 1) / limit.amount, 1, limit.amount,
          simulate::BucketOracle::Guard(limit.amount, limit.period, limit.amount));
    if (limit.shape == Shape::kFixed)
      one.fixed = std::make_unique<simulate::FixedOracle>(limit.amount, limit.period, 0);
    limits.push_back(limit);
    counted.push_back(resource);
    oracles.push_back(std::move(one));
  }
  Counted bucket(limits, counted);
  struct Held {
    std::unique_ptr<Reservation> reservation;
    Amounts amounts;
    Nanos at;
  };
  std::vector<Held> held;
  Nanos now = kNow;
  for (int op = 0; op < 150; ++op) {
    Amounts amounts(resources);
    for (std::int64_t& a : amounts) a = random.OneIn(4) ? random.From(0, 35) : random.From(0, 4);
    // The one that admits last binds; the first of those, where several do.
    Nanos expected = now;
    std::size_t binds = 0;
    for (std::size_t i = 0; i < oracles.size(); ++i)
      if (const Nanos at = oracles[i].ReadyAt(now, amounts[counted[i]]); at > expected) {
        expected = at;
        binds = i;
      }
    const Denial look = bucket->Look(now, amounts);
    ASSERT_EQ(look.ready_at, expected);
    if (expected > now) {
      ASSERT_EQ(static_cast<std::size_t>(look.meter), binds);
    }
    if (random.OneIn(2)) {
      std::vector<std::int64_t> before;
      for (std::size_t i = 0; i < limits.size(); ++i)
        before.push_back(bucket->Used(static_cast<int>(i), now));
      Held h{std::make_unique<Reservation>(), amounts, now};
      const std::optional<Denial> denied = Reserve(bucket, now, amounts, *h.reservation);
      ASSERT_EQ(!denied, expected <= now);
      if (denied) {
        ASSERT_EQ(denied->ready_at, expected);
        ASSERT_FALSE(h.reservation->held());
        for (std::size_t i = 0; i < limits.size(); ++i)
          ASSERT_EQ(bucket->Used(static_cast<int>(i), now), before[i])
              << "a refusal took something";
      } else {
        if (random.OneIn(4)) {
          ASSERT_TRUE(h.reservation->Cancel(now));
          ASSERT_FALSE(h.reservation->Cancel(now) || h.reservation->Settle(now, {}))
              << "ended twice";
          continue;
        }
        // Answered at once, so that `fixed` knows where it belongs.
        ASSERT_TRUE(h.reservation->Answered(now, false));
        for (One& one : oracles) one.Add(now, amounts[one.resource]);
        held.push_back(std::move(h));
      }
    } else if (!held.empty()) {
      const auto at =
          static_cast<std::size_t>(random.From(0, static_cast<std::int64_t>(held.size()) - 1));
      Held h = std::move(held[at]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
      Amounts used(resources);
      for (std::size_t r = 0; r < resources; ++r) used[r] = random.From(0, h.amounts[r] + 2);
      ASSERT_FALSE(h.reservation->Cancel(now)) << "the provider has counted it";
      ASSERT_TRUE(h.reservation->Settle(now, used));
      ASSERT_FALSE(h.reservation->Cancel(now) || h.reservation->Settle(now, used) ||
                   h.reservation->Expire(now))
          << "ended twice";
      for (One& one : oracles) {
        const std::int64_t back = h.amounts[one.resource] - used[one.resource];
        if (h.amounts[one.resource] == 0 && back == 0) continue;
        one.in_use -= h.amounts[one.resource];
        if (one.bucket != nullptr) {
          if (back > 0) one.bucket->GiveBack(now, back);
          if (back < 0) one.bucket->Take(now, -back);
        }
        if (one.fixed != nullptr) one.fixed->Add(back > 0 ? h.at : now, -back);
      }
    }
    if (random.OneIn(3)) {
      now += random.OneIn(10) ? 3600 * kSecond : random.From(0, 3 * kSecond);
    }
  }
}

TEST(Bucket, AdmitsAllOrNothingAsTheOraclesOfItsLimitsDo) {
  for (std::uint64_t run = 0; run < 1'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheOracles(random));
  }
}

TEST(Bucket, NamesTheLimitThatAdmitsLast) {
  Counted bucket({Make(Shape::kBucket, 10), Make(Shape::kBucket, 5)}, {0, 1});
  ASSERT_TRUE(bucket->TryTake(kNow, Amounts{10, 5}));
  Reservation out;
  const std::optional<Denial> denied = Reserve(bucket, kNow, {1, 2}, out);
  ASSERT_TRUE(denied);
  EXPECT_EQ(denied->meter, 1);
  // Two units of 2 s each, and the guard.
  EXPECT_EQ(denied->ready_at, kNow + 4 * kSecond + 500 * kMillisecond);
  EXPECT_TRUE(Reserve(bucket, kNow, {1, 6}, out)->never());
  EXPECT_FALSE(bucket->EverFits(Amounts{1, 6}));
  EXPECT_TRUE(bucket->EverFits(Amounts{10, 5}));
}

TEST(Bucket, WhoeverWaitsIsNotPassedOnTheLimitItWaitsFor) {
  Counted bucket({Make(Shape::kBucket, 10), Make(Shape::kBucket, 10)}, {0, 1});
  bucket->SetWaiters(0);
  EXPECT_FALSE(bucket->TryTake(kNow, Amounts{1, 0}));
  EXPECT_FALSE(bucket->TryTake(kNow, Amounts{1, 1}));
  EXPECT_TRUE(bucket->TryTake(kNow, Amounts{0, 1}));
  Reservation privileged;
  EXPECT_FALSE(bucket->TryReserve(kNow, Amounts{1, 1}, /*privileged=*/true, privileged));
  bucket->ClearWaiters();
  EXPECT_TRUE(bucket->TryTake(kNow, Amounts{1, 1}));
}

TEST(Bucket, MixesShapesUnderATransport) {
  // A `bucket` limit keeps by how much sending has moved it where the others keep their cells.
  Counted bucket({Make(Shape::kConcurrency, 50), Make(Shape::kBucket, 100),
                  Make(Shape::kWindow, 50), Make(Shape::kFixed, 50)},
                 {0, 0, 0, 0});
  std::vector<std::unique_ptr<Reservation>> held;
  for (int i = 0; i < 50; ++i) {
    held.push_back(std::make_unique<Reservation>());
    ASSERT_FALSE(Reserve(bucket, kNow, {1}, *held.back()));
    // Later than the guard of the `bucket` allows for (619 ms).
    EXPECT_TRUE(held.back()->Sent(kNow + 800 * kMillisecond, 50 * kMillisecond));
  }
  EXPECT_EQ(bucket->Used(1, kNow), 53) << "moved by 231 ms";
  EXPECT_FALSE(bucket->TryTake(kNow, Amounts{1}));
  for (auto& r : held) EXPECT_TRUE(r->Answered(kNow + kSecond, false));
  for (auto& r : held) EXPECT_TRUE(r->Settle(kNow + kSecond, {}));
  const Nanos then = kNow + 20 * kSecond;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(bucket->Used(i, then), 0);
  EXPECT_TRUE(bucket->TryTake(then, Amounts{50}));
}

TEST(Bucket, ATransportFreesASlotAWindowAfterTheNetworkDelayHoweverLongTheAnswerTakes) {
  Counted bucket(Make(Shape::kWindow, 1));
  Reservation r;
  ASSERT_FALSE(Reserve(bucket, kNow, {1}, r));
  EXPECT_EQ(bucket->ReadyAt(0, kNow, 1), kUntold);
  EXPECT_TRUE(r.Sent(kNow, 30 * kMillisecond));
  const Nanos ready = kNow + 30 * kMillisecond + 10 * kSecond;
  EXPECT_EQ(bucket->ReadyAt(0, kNow, 1), ready);
  EXPECT_TRUE(r.Answered(kNow + 2 * kSecond, false));
  EXPECT_EQ(bucket->ReadyAt(0, kNow + 2 * kSecond, 1), ready);
}

TEST(Bucket, ANetworkIsGrantedTwentyMillisecondsAndEarlierHeadersTellMore) {
  Counted bucket(Make(Shape::kWindow, 1));
  Reservation r;
  ASSERT_FALSE(Reserve(bucket, kNow, {1}, r));
  EXPECT_TRUE(r.Sent(kNow, 0));
  EXPECT_EQ(bucket->ReadyAt(0, kNow, 1), kNow + 20 * kMillisecond + 10 * kSecond);
  EXPECT_TRUE(r.Answered(kNow + kMillisecond, false));
  EXPECT_EQ(bucket->ReadyAt(0, kNow + kMillisecond, 1), kNow + kMillisecond + 10 * kSecond);
}

TEST(Bucket, ARefusalThatIsBackBeforeTheDelayIsCountedWhenItArrives) {
  Counted bucket(Make(Shape::kWindow, 1));
  Reservation r;
  ASSERT_FALSE(Reserve(bucket, kNow, {1}, r));
  EXPECT_TRUE(r.Answered(kNow + 3 * kSecond, /*refused=*/true));
  EXPECT_EQ(bucket->ReadyAt(0, kNow + 3 * kSecond, 1), kNow + 13 * kSecond);
}

TEST(Bucket, TheLastCallOfAFirstBurstWaitsUntilTheOthersAreBack) {
  Counted bucket(Make(Shape::kWindow, 3));
  Reservation calls[4];
  ASSERT_FALSE(Reserve(bucket, kNow, {1}, calls[0]));
  ASSERT_FALSE(Reserve(bucket, kNow, {1}, calls[1]));
  const std::optional<Denial> held_back = Reserve(bucket, kNow, {1}, calls[2]);
  ASSERT_TRUE(held_back);
  // Nor for ever: they may be waiting for it.
  const Nanos until = kNow + 10 * kSecond / 6;
  EXPECT_EQ(held_back->ready_at, until);
  EXPECT_EQ(bucket->Look(kNow, Amounts{1}).ready_at, until) << "looking agrees with trying";
  EXPECT_GT(bucket->Look(until - 1, Amounts{1}).ready_at, until - 1);
  EXPECT_LE(bucket->Look(until, Amounts{1}).ready_at, until);
  bucket->SetWaiters(0);
  calls[0].Answered(kNow + kSecond, false);
  const int before = bucket.signals;
  calls[1].Answered(kNow + kSecond, false);
  EXPECT_GT(bucket.signals, before);
  bucket->ClearWaiters();
  EXPECT_FALSE(Reserve(bucket, kNow + kSecond, {1}, calls[2]));
}

// Admitted first, and for somebody who goes on only long after a later call was answered.
TEST(Bucket, WhatWasAdmittedForAWaiterLeavesAWindowAfterHeHasGoneOn) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    Counted bucket(Make(shape, 4));
    // How long a call takes is known.
    Reservation alone;
    ASSERT_FALSE(Reserve(bucket, kNow - 40 * kSecond, {1}, alone));
    EXPECT_TRUE(alone.Settle(kNow - 39 * kSecond, {}));
    Reservation late;
    ASSERT_FALSE(bucket->TryReserve(kNow, Amounts{1}, /*privileged=*/true, late));
    Reservation others[3];
    for (int i = 0; i < 3; ++i) {
      const Nanos at = kNow + (i + 1) * kSecond;  // each in a cell of its own
      ASSERT_FALSE(Reserve(bucket, at, {1}, others[i]));
      EXPECT_TRUE(others[i].Settle(at + kSecond, {}));
    }
    EXPECT_EQ(bucket->Used(0, kNow + 15 * kSecond), 1);
    EXPECT_EQ(bucket->ReadyAt(0, kNow + 15 * kSecond, 4), kUntold) << "he has not gone on";
    late.Begin(kNow + 15 * kSecond);
    EXPECT_EQ(late.began_at(), kNow + 15 * kSecond);
    EXPECT_EQ(bucket->Used(0, kNow + 24 * kSecond), 1);
    EXPECT_TRUE(late.Settle(kNow + 16 * kSecond, {}));
    EXPECT_EQ(bucket->Used(0, kNow + 18 * kSecond), 1);
    EXPECT_EQ(bucket->Used(0, kNow + 27 * kSecond), 0);
  }
}

TEST(Bucket, WhatWasAdmittedForAWaiterWhoNeverGoesOnIsGivenBack) {
  for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed, Shape::kConcurrency}) {
    Counted bucket(Make(shape, 1));
    Reservation first;
    Reservation next;
    ASSERT_FALSE(bucket->TryReserve(kNow, Amounts{1}, /*privileged=*/true, first));
    bucket->SetWaiters(0);
    const int before = bucket.signals;
    EXPECT_TRUE(first.Cancel(kNow));
    EXPECT_GT(bucket.signals, before);
    EXPECT_EQ(bucket->Used(0, kNow), 0);
    bucket->ClearWaiters();
    EXPECT_FALSE(Reserve(bucket, kNow, {1}, next));
  }
}

TEST(Bucket, AWaiterWhoGoesOnLateStartsTheRefillThen) {
  Counted bucket(Make(Shape::kBucket, 100));
  std::vector<std::unique_ptr<Reservation>> held;
  for (int i = 0; i < 100; ++i) {
    held.push_back(std::make_unique<Reservation>());
    ASSERT_FALSE(bucket->TryReserve(kNow, Amounts{1}, /*privileged=*/true, *held.back()));
  }
  const Nanos ready = bucket->ReadyAt(0, kNow, 1);
  EXPECT_EQ(bucket->ReadyAt(0, ready, 1), kUntold) << "all of them may begin at once";
  bucket->SetWaiters(0);
  const int before = bucket.signals;
  for (auto& r : held) r->Begin(kNow + 10 * kMillisecond);
  EXPECT_GT(bucket.signals, before);
  EXPECT_EQ(bucket->ReadyAt(0, kNow, 1), ready) << "as late as that is allowed for";
}

TEST(Bucket, AWaiterWhoGoesOnLateMovesTheRefillOnce) {
  Counted bucket(Make(Shape::kBucket, 100));
  std::vector<std::unique_ptr<Reservation>> held;
  for (int i = 0; i < 50; ++i) {
    held.push_back(std::make_unique<Reservation>());
    ASSERT_FALSE(bucket->TryReserve(kNow, Amounts{1}, /*privileged=*/true, *held.back()));
  }
  for (auto& r : held) r->Begin(kNow + kSecond);
  EXPECT_EQ(bucket->Used(0, kNow), 60) << "moved by 1 s";
}

TEST(Bucket, WhatIsForcedCountsBeyondWhatFits) {
  for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed}) {
    SCOPED_TRACE(ShapeName(shape));
    Counted bucket({Make(shape, 10), Make(Shape::kConcurrency, 2)}, {0, 1});
    std::vector<std::unique_ptr<Reservation>> out;
    for (int i = 0; i < 15; ++i) {
      out.push_back(std::make_unique<Reservation>());
      bucket->Force(kNow, Amounts{1, 1}, *out.back());
      ASSERT_TRUE(out.back()->Sent(kNow, 0));
    }
    EXPECT_EQ(bucket->Used(0, kNow), 15);
    EXPECT_EQ(bucket->Used(1, kNow), 15);
    Reservation refused;
    ASSERT_TRUE(Reserve(bucket, kNow, {1, 0}, refused));
    // As late as if all of them had fitted: none of a period's has left before that is over.
    const Nanos ready =
        Forecast(kNow).Add(*bucket.operator->(), nullptr, Amounts{1, 0}).denial.ready_at;
    EXPECT_GE(ready, kNow + (shape == Shape::kBucket ? 6 : 10) * kSecond);
    EXPECT_LT(ready, kNow + 11 * kSecond);
    // It is settled like anything that was admitted.
    for (auto& each : out) EXPECT_TRUE(each->Settle(kNow, Amounts{0, 1}));
    EXPECT_EQ(bucket->Used(1, kNow), 0);
    EXPECT_EQ(bucket->Used(0, kNow), 0);
    Reservation admitted;
    EXPECT_FALSE(Reserve(bucket, kNow + 11 * kSecond, {10, 2}, admitted));
  }
}

TEST(Bucket, WhatIsForcedCanBeGivenBack) {
  for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed}) {
    SCOPED_TRACE(ShapeName(shape));
    Counted bucket(Make(shape, 10));
    Reservation whole;
    ASSERT_FALSE(Reserve(bucket, kNow, {10}, whole));
    Reservation more;
    bucket->Force(kNow, Amounts{7}, more);
    EXPECT_EQ(bucket->Used(0, kNow), 17);
    EXPECT_TRUE(more.Cancel(kNow));
    EXPECT_EQ(bucket->Used(0, kNow), 10);
  }
}

TEST(Bucket, OneThatIsForcedGoesAloneAndTells) {
  Bucket* const bucket = Bucket::Make({}, {}, 0, nullptr, /*spare=*/2, /*width=*/1);
  bucket->StartCold(kSecond);
  Reservation first;
  Reservation second;
  bucket->Force(kNow, Amounts{1}, first);
  EXPECT_EQ(Forecast(kNow).Add(*bucket, nullptr, Amounts{1}).denial.ready_at, kUntold);
  bucket->Force(kNow, Amounts{1}, second);
  EXPECT_TRUE(first.alone());
  EXPECT_FALSE(second.alone());
  EXPECT_TRUE(first.Answered(kNow, /*refused=*/false));
  EXPECT_LE(Forecast(kNow).Add(*bucket, nullptr, Amounts{1}).denial.ready_at, kNow);
  EXPECT_TRUE(first.Settle(kNow, {}));
  EXPECT_TRUE(second.Settle(kNow, {}));
  bucket->Unref();
}

TEST(Bucket, ALimitThatIsLearntLaterFindsWhatWasUsed) {
  Counted bucket({Make(Shape::kWindow, Limit::kMaxAmount)}, {0});
  // Nobody is held back, nobody is asked when it was answered.
  std::vector<std::unique_ptr<Reservation>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(std::make_unique<Reservation>());
    ASSERT_FALSE(Reserve(bucket, kNow, Amounts{i < 4 ? 2 : 1}, *calls.back()));
  }
  EXPECT_FALSE(calls[0]->ExpiresInTime());
  EXPECT_TRUE(calls[0]->Cancel(kNow));
  EXPECT_TRUE(calls[1]->Settle(kNow, Amounts{0}));
  EXPECT_TRUE(calls[2]->Sent(kNow, 0));
  EXPECT_TRUE(calls[2]->Answered(kNow, false));
  EXPECT_EQ(bucket->Used(0, kNow), 8);
  bucket->SetLimit(kNow, 0, Make(Shape::kWindow, 10), 0, Debt::kAbsolute);
  Reservation fits;
  Reservation more;
  EXPECT_FALSE(Reserve(bucket, kNow + kSecond, Amounts{1}, fits));
  EXPECT_TRUE(Reserve(bucket, kNow + kSecond, Amounts{2}, more));
  // Those that are still out leave a window after their admission, ended or not.
  EXPECT_TRUE(calls[3]->Cancel(kNow + kSecond));
  EXPECT_EQ(bucket->Used(0, kNow + kSecond), 7);
  EXPECT_TRUE(fits.Answered(kNow + 2 * kSecond, false));
  EXPECT_EQ(bucket->Used(0, kNow + 11 * kSecond), 1);
  for (const auto& call : calls) call->Settle(kNow + 12 * kSecond, {});
  EXPECT_EQ(bucket->Used(0, kNow + 13 * kSecond), 0);
}

TEST(Reservation, GoesFromHeldToSentToAnsweredToEndedOnce) {
  Counted bucket(Make(Shape::kWindow, 10));
  Reservation r;
  EXPECT_FALSE(r.held());
  EXPECT_FALSE(r.Sent(kNow, 0) || r.Answered(kNow, false) || r.Settle(kNow, {}) || r.Cancel(kNow));
  ASSERT_FALSE(Reserve(bucket, kNow, {5}, r));
  EXPECT_TRUE(r.held());
  EXPECT_EQ(r.began_at(), kNow);
  EXPECT_TRUE(r.Sent(kNow + 1, 0));
  EXPECT_FALSE(r.Sent(kNow + 2, 0));
  EXPECT_EQ(r.sent_at(), kNow + 1);
  EXPECT_FALSE(r.Cancel(kNow + 2)) << "the provider has counted it";
  EXPECT_TRUE(r.Answered(kNow + 3, false));
  EXPECT_FALSE(r.Answered(kNow + 4, false));
  EXPECT_TRUE(r.Settle(kNow + 5, Amounts{2}));
  EXPECT_TRUE(r.ended());
  EXPECT_FALSE(r.Settle(kNow + 5, Amounts{0}));
  EXPECT_FALSE(r.Expire(kNow + 5));
  EXPECT_EQ(bucket->Used(0, kNow + 5), 2);
}

TEST(Reservation, NegativeOrMissingAmountsSettleAtTheEstimate) {
  for (const Amounts& actual : {Amounts{}, Amounts{-1}}) {
    Counted bucket(Make(Shape::kBucket, 10));
    Reservation r;
    ASSERT_FALSE(Reserve(bucket, kNow, {5}, r));
    EXPECT_TRUE(r.Settle(kNow, actual));
    EXPECT_EQ(bucket->Used(0, kNow), 5);
  }
}

TEST(Reservation, WhatExpiresKeepsItsRatesAndGivesItsConcurrencyBack) {
  Counted bucket({Make(Shape::kConcurrency, 1), Make(Shape::kBucket, 10), Make(Shape::kWindow, 10)},
                 {0, 1, 2});
  Reservation r;
  ASSERT_FALSE(Reserve(bucket, kNow, {1, 4, 4}, r));
  EXPECT_TRUE(r.Expire(kNow));
  EXPECT_EQ(bucket->Used(0, kNow), 0);
  EXPECT_EQ(bucket->Used(1, kNow), 4);
  EXPECT_EQ(bucket->Used(2, kNow), 4);
  EXPECT_EQ(bucket->Used(2, kNow + 10 * kSecond), 0);
}

TEST(Reservation, SlotsOverSeveralLimitsAreWhatAServerWouldAdmit) {
  // At the common instant each limit counts it; nobody may use what it stands on up before.
  for (std::uint64_t run = 0; run < 300; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    std::vector<Limit> limits;
    for (int i = 0; i < 3; ++i)
      limits.push_back(Make(Shape::kBucket, random.From(1, 20), random.From(1, 5) * kSecond,
                            random.From(1, 10)));
    Counted bucket(limits, {0, 1, 2});
    std::vector<std::pair<Nanos, Amounts>> sent;
    std::vector<std::unique_ptr<Reservation>> reserved;
    Nanos now = kNow;
    for (int step = 0; step < 100; ++step) {
      Amounts amounts(3);
      for (std::size_t i = 0; i < 3; ++i) amounts[i] = random.From(0, limits[i].burst_or_amount());
      if (random.OneIn(4)) {
        reserved.push_back(std::make_unique<Reservation>());
        const Nanos at = bucket->ReserveAt(now, amounts, *reserved.back());
        ASSERT_GE(at, now);
        ASSERT_LT(at, kUntold);
        if (random.OneIn(4) && at > now) {
          ASSERT_TRUE(reserved.back()->Cancel(now));
        } else {
          sent.emplace_back(at, amounts);
        }
      } else if (bucket->TryTake(now, amounts)) {
        sent.emplace_back(now, amounts);
      }
      now += random.From(0, kSecond);
    }
    std::stable_sort(sent.begin(), sent.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t i = 0; i < 3; ++i) {
      const Limit& limit = limits[i];
      simulate::BucketOracle server((limit.period + limit.amount - 1) / limit.amount, 1,
                                    limit.burst_or_amount());
      for (const auto& [at, amounts] : sent) {
        ASSERT_TRUE(server.Fits(at, amounts[i])) << limit.Format() << " at " << at - kNow;
        server.Take(at, amounts[i]);
      }
    }
  }
}

TEST(Reservation, ASlotThatCanNeverBeTakesNothing) {
  Counted bucket({Make(Shape::kBucket, 10), Make(Shape::kBucket, 1)}, {0, 1});
  Reservation r;
  EXPECT_EQ(bucket->ReserveAt(kNow, Amounts{5, 2}, r), kNever);
  EXPECT_FALSE(r.held());
  EXPECT_EQ(bucket->Used(0, kNow), 0);
}

constexpr Nanos kHold = 15 * kSecond;
constexpr Nanos kMostHold = 60 * kSecond;

// A bucket of limits that are not known, whose answers will tell.
class Cold {
 public:
  Cold() {
    Limit open = Make(Shape::kWindow, Limit::kMaxAmount, 60 * kSecond);
    bucket_ = Bucket::Make({&open, 1}, std::vector<std::uint8_t>{0}, 0, &signals_, 2, 1);
    bucket_->StartCold(kHold);
  }
  ~Cold() { bucket_->Unref(); }
  Cold(const Cold&) = delete;
  Cold& operator=(const Cold&) = delete;

  Bucket* operator->() { return bucket_; }
  std::optional<Denial> Reserve(Nanos now, Reservation& out) {
    return bucket_->TryReserve(now, Amounts{1}, false, out);
  }
  int signals() const { return signals_.count; }

 private:
  struct Signals final : WaiterSignal {
    void Signal(Bucket&) override { ++count; }
    int count = 0;
  };
  Signals signals_;
  Bucket* bucket_;
};

TEST(Bucket, SendsOneAloneUntilItsAnswerTells) {
  Cold bucket;
  Reservation first;
  Reservation second;
  EXPECT_EQ(bucket->Look(kNow, Amounts{1}).ready_at, kNow);
  ASSERT_FALSE(bucket.Reserve(kNow, first));
  const std::optional<Denial> held = bucket.Reserve(kNow + kSecond, second);
  ASSERT_TRUE(held);
  EXPECT_EQ(held->meter, Denial::kCooling);
  EXPECT_NEAR(held->ready_at, kNow + kHold, 1);
  EXPECT_EQ(bucket->Look(kNow + kSecond, Amounts{1}).ready_at, held->ready_at);
  EXPECT_EQ(Forecast(kNow + kSecond).Add(*bucket.operator->(), nullptr, Amounts{1}).denial.ready_at,
            kUntold)
      << "only the answer can tell";
  EXPECT_TRUE(first.Answered(kNow + 2 * kSecond, /*refused=*/false));
  EXPECT_GE(bucket.signals(), 1);
  EXPECT_FALSE(bucket.Reserve(kNow + 2 * kSecond, second));
  EXPECT_TRUE(first.Settle(kNow + 3 * kSecond, {}));
}

// Four times as many after each round of answers, and soon any number.
TEST(Bucket, OpensAsAnswersComeThatTellOfNoLimit) {
  Cold bucket;
  Nanos now = kNow;
  std::deque<Reservation> calls(5'000);
  std::size_t sent = 0;
  std::size_t answered = 0;
  std::vector<std::size_t> rounds;
  while (rounds.size() < 7) {
    std::optional<Denial> held;
    while (sent < calls.size() && !(held = bucket.Reserve(now, calls[sent]))) ++sent;
    rounds.push_back(sent - answered);
    if (held) {
      EXPECT_EQ(held->meter, Denial::kCooling);
      EXPECT_EQ(bucket->Look(now, Amounts{1}).ready_at, held->ready_at);
    }
    const int signals = bucket.signals();
    now += kSecond;
    for (; answered < sent; ++answered) {
      EXPECT_TRUE(calls[answered].Answered(now, /*refused=*/false));
      EXPECT_TRUE(calls[answered].Settle(now, {}));
    }
    if (held) {
      EXPECT_GT(bucket.signals(), signals) << "who waits is told";
    }
  }
  EXPECT_EQ(rounds, (std::vector<std::size_t>{1, 8, 32, 128, 512, 4'319, 0}));
}

TEST(Bucket, OpensWithoutAnswersAsWell) {
  Cold bucket;
  Nanos now = kNow;
  std::deque<Reservation> calls(2'000);
  std::size_t sent = 0;
  ASSERT_FALSE(bucket.Reserve(now, calls[sent++]));
  now += kHold + 1;  // as long as the first is waited for
  std::vector<std::size_t> out;
  for (int i = 0; i < 9; ++i) {
    while (sent < calls.size() && !bucket.Reserve(now, calls[sent])) ++sent;
    out.push_back(sent);
    now += kHold;
  }
  EXPECT_EQ(out, (std::vector<std::size_t>{10, 20, 40, 80, 160, 320, 640, 2'000, 2'000}));
}

// After a refusal that nothing explains: one, two, four, and whoever was on his way makes no place.
TEST(Bucket, OpensAnewAfterARefusal) {
  Cold bucket;
  Reservation first;
  ASSERT_FALSE(bucket.Reserve(kNow, first));
  ASSERT_TRUE(first.Answered(kNow, /*refused=*/false));
  std::array<Reservation, 5> before;
  for (Reservation& each : before) ASSERT_FALSE(bucket.Reserve(kNow, each));
  bucket->Narrow(kNow, kHold);
  std::deque<Reservation> calls(100);
  ASSERT_FALSE(bucket.Reserve(kNow, calls[0]));
  for (Reservation& each : before) EXPECT_TRUE(each.Answered(kNow, /*refused=*/false));
  for (Reservation& each : before) EXPECT_TRUE(each.Settle(kNow, {}));
  EXPECT_TRUE(bucket.Reserve(kNow, calls[1]));
  std::size_t sent = 1;
  std::size_t answered = 0;
  for (const std::size_t round : {2U, 4U, 8U}) {
    for (; answered < sent; ++answered) {
      EXPECT_TRUE(calls[answered].Answered(kNow, /*refused=*/false));
      EXPECT_TRUE(calls[answered].Settle(kNow, {}));
    }
    while (!bucket.Reserve(kNow, calls[sent])) ++sent;
    EXPECT_EQ(sent - answered, round);
  }
  // A failure makes no place, but gives back its own.
  calls[answered].Failed();
  EXPECT_TRUE(calls[answered].Settle(kNow, {}));
  EXPECT_FALSE(bucket.Reserve(kNow, calls[sent++]));
  EXPECT_TRUE(bucket.Reserve(kNow, calls[sent]));
  const int signals = bucket.signals();
  bucket->EndOpening();
  EXPECT_GT(bucket.signals(), signals);
  for (int i = 0; i < 50; ++i) EXPECT_FALSE(bucket.Reserve(kNow, calls[sent++]));
}

TEST(Bucket, WaitsNoLongerForItsFirstAnswerThanItMay) {
  Cold bucket;
  Reservation first;
  Reservation second;
  ASSERT_FALSE(bucket.Reserve(kNow, first));
  EXPECT_TRUE(bucket.Reserve(kNow + kHold, second));
  EXPECT_FALSE(bucket.Reserve(kNow + kHold + 1, second));
}

TEST(Bucket, AFirstThatIsRefusedLetsNobodyGoBeforeItIsOver) {
  Cold bucket;
  Reservation first;
  Reservation second;
  ASSERT_FALSE(bucket.Reserve(kNow, first));
  EXPECT_TRUE(first.Answered(kNow + kSecond, /*refused=*/true));
  EXPECT_TRUE(bucket.Reserve(kNow + kSecond, second));
  bucket->Cool(kNow + 9 * kSecond);
  EXPECT_TRUE(first.Settle(kNow + kSecond, {}));
  const std::optional<Denial> cools = bucket.Reserve(kNow + kSecond, second);
  ASSERT_TRUE(cools);
  EXPECT_EQ(cools->ready_at, kNow + 9 * kSecond);
  EXPECT_FALSE(bucket.Reserve(kNow + 9 * kSecond, second));
}

TEST(Bucket, OneGoesAheadWhereWhatIsKnownIsOld) {
  const Limit limit = Limit::Parse("10 requests/min window").value();
  Counted bucket(limit);
  const std::int64_t one = 1;
  const auto reserve = [&](Nanos now, Reservation& out) {
    return bucket->TryReserve(now, {&one, 1}, /*privileged=*/false, out);
  };
  std::array<Reservation, 7> calls;
  EXPECT_TRUE(bucket->LookAhead(/*patience=*/kSecond, /*again=*/false));
  EXPECT_FALSE(bucket->LookAhead(kSecond, /*again=*/false));  // somebody is to, already
  ASSERT_FALSE(reserve(kNow, calls[0]));
  EXPECT_TRUE(calls[0].alone());
  const std::optional<Denial> waits = reserve(kNow, calls[1]);
  ASSERT_TRUE(waits);
  EXPECT_EQ(waits->meter, Denial::kCooling);
  EXPECT_NEAR(static_cast<double>(waits->ready_at - kNow), 1e9, 2);
  // Its answer is in, and says that all is used: the next goes ahead as well.
  EXPECT_FALSE(bucket->LookAhead(kSecond, /*again=*/true));
  const int signals = bucket.signals;
  calls[0].Answered(kNow, /*refused=*/false);
  EXPECT_GT(bucket.signals, signals);
  calls[0].Settle(kNow, {});
  ASSERT_FALSE(reserve(kNow, calls[2]));
  EXPECT_TRUE(calls[2].alone());
  ASSERT_TRUE(reserve(kNow, calls[3]));
  // Whatever becomes of it, nobody waits for longer than that.
  ASSERT_FALSE(reserve(kNow + kSecond + 1, calls[3]));
  EXPECT_FALSE(calls[3].alone());
  calls[2].Settle(kNow + kSecond + 1, {}, /*answered=*/false);
  ASSERT_FALSE(reserve(kNow + kSecond + 1, calls[4]));
  ASSERT_FALSE(reserve(kNow + kSecond + 1, calls[5]));
  EXPECT_FALSE(calls[5].alone());
}

TEST(Bucket, AFirstThatDoesNotGoLeavesItToTheNext) {
  Cold bucket;
  Reservation first;
  Reservation second;
  Reservation third;
  ASSERT_FALSE(bucket.Reserve(kNow, first));
  EXPECT_TRUE(first.Cancel(kNow));
  EXPECT_GE(bucket.signals(), 1);
  ASSERT_FALSE(bucket.Reserve(kNow, second));
  EXPECT_TRUE(bucket.Reserve(kNow, third));
  EXPECT_TRUE(second.Expire(kNow));
  EXPECT_FALSE(bucket.Reserve(kNow, third)) << "no answer will come";
  Reservation fourth;
  EXPECT_TRUE(bucket.Reserve(kNow, fourth)) << "so the next one goes alone";
}

// A failure says nothing of limits; but where all fail, there is nothing to wait for.
TEST(Bucket, AFirstThatFailsLeavesItToTheNextAFewTimes) {
  Cold bucket;
  for (int i = 0; i < Bucket::kMostAlone; ++i) {
    Reservation first;
    Reservation second;
    ASSERT_FALSE(bucket.Reserve(kNow, first));
    ASSERT_TRUE(bucket.Reserve(kNow, second)) << i;
    first.Failed();
    EXPECT_TRUE(first.Answered(kNow, /*refused=*/false));
    ASSERT_TRUE(bucket.Reserve(kNow, second)) << "it is not over";
    EXPECT_TRUE(first.Settle(kNow, {}));
  }
  Reservation out[3];
  for (Reservation& one : out) EXPECT_FALSE(bucket.Reserve(kNow, one));
}

// What is nothing but a request waits for nobody, so that others can wait longer for it.
TEST(Bucket, WhoGoesAloneMayLetOthersWaitLonger) {
  Cold bucket;
  Reservation first;
  Reservation second;
  second.LetOthersWait(kMostHold);
  ASSERT_FALSE(bucket.Reserve(kNow, first));
  first.LetOthersWait(kMostHold);
  EXPECT_TRUE(bucket.Reserve(kNow + kHold + 1, second));
  EXPECT_EQ(bucket->Look(kNow + kHold + 1, Amounts{1}).ready_at, kNow + 1 + kMostHold);
  EXPECT_FALSE(bucket.Reserve(kNow + kMostHold + 1, second));
}

// By whichever thread; and what is made of it is as new. No more is kept than a few.
TEST(Reservations, AreMadeOfWhatOthersHaveLetGoOf) {
  const Limit limit = Make(Shape::kBucket, 100'000);
  Counted bucket(limit);
  Reservations some;
  Reservations others;
  std::set<const void*> seen;
  std::vector<std::unique_ptr<Reservation>> held;
  for (int i = 0; i < 5'000; ++i) {
    held.push_back((i % 2 == 0 ? some : others).Make());
    ASSERT_FALSE(bucket->TryReserve(kNow, Amounts{1}, false, *held.back()));
    EXPECT_TRUE(seen.insert(held.back().get()).second);
  }
  const std::size_t before = simulate::AllocatedBytes();
  std::thread([&] { held.clear(); }).join();
  EXPECT_LE(simulate::AllocatedBytes(), before - 3'900 * sizeof(Reservation));
  std::size_t again = 0;
  for (int i = 0; i < 5'000; ++i) {
    held.push_back(others.Make());
    EXPECT_FALSE(held.back()->held() || held.back()->ended() || held.back()->size() > 0);
    again += seen.contains(held.back().get()) ? 1 : 0;
    if (i == 1'100) {
      EXPECT_GE(again, Reservations::kKeeps ? 1'000U : 0U);
    }
  }
}

// One thread makes them, as many others let go of them: nothing is made of what is still in use.
TEST(Reservations, AreNotMadeOfWhatIsInUse) {
  Reservations reservations;
  std::array<std::atomic<Reservation*>, 256> places{};
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      Random random(Random::Seed(t));
      while (!done.load()) {
        auto& place = places[static_cast<std::size_t>(random.From(0, 255))];
        delete place.exchange(nullptr);
      }
    });
  std::set<const void*> in_use;
  for (int i = 0; i < 100'000; ++i) {
    auto& place = places[static_cast<std::size_t>(i) % places.size()];
    if (place.load() != nullptr) continue;
    std::unique_ptr<Reservation> made = reservations.Make();
    for (const auto& other : places) ASSERT_NE(other.load(), made.get());
    place.store(made.release());
  }
  done.store(true);
  for (std::thread& thread : threads) thread.join();
  for (auto& place : places) delete place.exchange(nullptr);
}

TEST(Bucket, WhereSomethingIsKnownNobodyGoesAlone) {
  Cold bucket;
  bucket->SetLimit(kNow, 0, Make(Shape::kWindow, 3, 60 * kSecond), 0, Debt::kAbsolute);
  Reservation out[4];
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(bucket.Reserve(kNow, out[i]));
}

}  // namespace
}  // namespace headway
