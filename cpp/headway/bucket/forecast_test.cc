// headway/bucket/forecast_test.cc: what is foretold is what comes.
#include "headway/bucket/forecast.h"

#include <algorithm>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/limits.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;
using Amounts = std::vector<std::int64_t>;

constexpr Nanos kNow = 1'000 * kSecond;
constexpr Nanos kMinute = 60 * kSecond;
constexpr Nanos kHour = 60 * kMinute;

Limit Make(Shape shape, std::int64_t amount, Nanos period,
           std::optional<std::int64_t> burst = std::nullopt) {
  return simulate::MakeLimit(shape, amount, period, burst);
}

struct Unref {
  void operator()(Bucket* bucket) const { bucket->Unref(); }
};
using Held = std::unique_ptr<Bucket, Unref>;

Held MakeBucket(const std::vector<Limit>& limits, const std::vector<std::uint8_t>& resources) {
  return Held(Bucket::Make(limits, resources, 0, nullptr));
}

// Admits it as soon as it fits, from `now` on, counted at once; returns when.
Nanos Admit(Bucket& bucket, Nanos now, const Amounts& amounts) {
  for (int looks = 0; looks < 1'000; ++looks) {
    const Nanos at = bucket.Look(now, amounts).ready_at;
    if (at > now) {
      now = at;
      continue;
    }
    Reservation taken;
    if (!bucket.TryReserve(now, amounts, /*privileged=*/false, taken)) {
      EXPECT_TRUE(taken.Settle(now, amounts));
      return now;
    }
  }
  ADD_FAILURE() << "it never fits";
  return kNever;
}

TEST(Forecast, IsWhatComes) {
  for (std::uint64_t run = 0; run < 2'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    // One or two resources, each counted by one or two limits; costs up to whole limits.
    const std::int64_t resources = random.From(1, 2);
    std::vector<Limit> limits;
    std::vector<std::uint8_t> counted;
    Amounts most(static_cast<std::size_t>(resources), Limit::kMaxAmount);
    for (std::int64_t r = 0; r < resources; ++r) {
      for (std::int64_t n = random.From(1, 2); n > 0; --n) {
        const Shape shape = random.OneIn(3)   ? Shape::kBucket
                            : random.OneIn(2) ? Shape::kWindow
                                              : Shape::kFixed;
        limits.push_back(Make(shape, random.From(1, 200), random.From(1, 60) * kSecond));
        counted.push_back(static_cast<std::uint8_t>(r));
        auto& bound = most[static_cast<std::size_t>(r)];
        bound = std::min(bound, limits.back().burst_or_amount());
      }
    }
    const Held bucket = MakeBucket(limits, counted);
    const auto some = [&] {
      Amounts amounts;
      for (const std::int64_t bound : most)
        amounts.push_back(random.From(0, random.OneIn(2) ? bound : (bound + 3) / 4));
      if (std::all_of(amounts.begin(), amounts.end(), [](auto a) { return a == 0; }))
        amounts[0] = 1;
      return amounts;
    };
    Nanos now = random.From(0, kDay);
    for (std::int64_t i = random.From(0, 10); i > 0; --i) {
      now = Admit(*bucket, now, some());
      now += random.From(0, limits[0].period / 4);
    }
    std::vector<Amounts> queue(static_cast<std::size_t>(random.From(1, 20)));
    for (Amounts& amounts : queue) amounts = some();
    // First in, first out by resource: those who ask nothing of what another waits for pass him. So
    // that the bucket itself can be asked, all ask for both.
    for (Amounts& amounts : queue)
      for (std::int64_t& amount : amounts) amount = std::max<std::int64_t>(1, amount);
    Forecast forecast(now);
    for (const Amounts& amounts : queue) {
      const Nanos foretold = forecast.Add(*bucket, nullptr, amounts).denial.ready_at;
      now = Admit(*bucket, now, amounts);
      ASSERT_EQ(foretold, now);
    }
  }
}

TEST(Forecast, KnowsThatWhatDoesNotFitLeavesARestFree) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    const Held bucket = MakeBucket({Make(shape, 1'000, kMinute)}, {0});
    Forecast forecast(kNow / kMinute * kMinute);
    Nanos last = 0;
    for (int i = 0; i < 10; ++i)
      last = forecast.Add(*bucket, nullptr, Amounts{600}).denial.ready_at;
    EXPECT_EQ(last, kNow / kMinute * kMinute + 9 * kMinute);
  }
}

TEST(Forecast, ThoseWhoAskNothingOfWhatBindsAreNotHeldUp) {
  const Held bucket =
      MakeBucket({Make(Shape::kWindow, 1, kMinute), Make(Shape::kWindow, 10, kMinute)}, {0, 1});
  Forecast forecast(kNow);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{1, 0}).denial.ready_at, kNow);
  const Denial second = forecast.Add(*bucket, nullptr, Amounts{1, 1}).denial;
  EXPECT_EQ(second.ready_at, kNow + kMinute);
  EXPECT_EQ(second.meter, 0);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{0, 0}).denial.ready_at, kNow);
  // Nor by the second, for what else that asks; and what they take is not there for it.
  for (int i = 0; i < 10; ++i)
    EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{0, 1}).denial.ready_at, kNow);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{0, 1}).denial.ready_at, kNow + kMinute);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{1, 1}).denial.ready_at, kNow + 2 * kMinute);
}

TEST(Forecast, WhoIsHeldUpByHisOwnLimitsIsPassed) {
  const Held bucket = MakeBucket({Make(Shape::kWindow, 3, kMinute)}, {0});
  const Held own = MakeBucket({Make(Shape::kBucket, 1, kHour, 1)}, {0});
  Forecast forecast(kNow);
  EXPECT_EQ(forecast.Add(*bucket, own.get(), Amounts{1}).denial.ready_at, kNow);
  EXPECT_EQ(forecast.Add(*bucket, own.get(), Amounts{1}).denial.ready_at, kNow + kHour);
  EXPECT_EQ(forecast.Add(*bucket, own.get(), Amounts{1}).denial.ready_at, kNow + 2 * kHour);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{2}).denial.ready_at, kNow);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{1}).denial.ready_at, kNow + kMinute);
  EXPECT_EQ(own->Used(0, kNow), 0) << "nothing was taken";
  EXPECT_EQ(bucket->Used(0, kNow), 0);
}

TEST(Forecast, KnowsTheLimitsOfManyAccountsApart) {
  const Held bucket = MakeBucket({Make(Shape::kWindow, 1'000, kMinute)}, {0});
  std::vector<Held> own;
  for (int i = 0; i < 40; ++i) own.push_back(MakeBucket({Make(Shape::kBucket, 1, kHour, 1)}, {0}));
  Forecast forecast(kNow);
  for (int turn = 0; turn < 3; ++turn)
    for (const Held& each : own)
      EXPECT_EQ(forecast.Add(*bucket, each.get(), Amounts{1}).denial.ready_at, kNow + turn * kHour);
}

TEST(Forecast, WhatOnlyAnswersTellHoldsUpAllWhoAskForThat) {
  const Held bucket =
      MakeBucket({Make(Shape::kConcurrency, 2, 0), Make(Shape::kWindow, 10, kMinute)}, {0, 1});
  Forecast forecast(kNow);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{2, 1}).denial.ready_at, kNow);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{1, 1}).denial.ready_at, kUntold);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{0, 1}).denial.ready_at, kNow);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{3, 0}).denial.ready_at, kNever);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{0, 11}).denial.ready_at, kNever);

  // Of a window, what an unanswered call has taken.
  const Held window = MakeBucket({Make(Shape::kWindow, 10, kMinute)}, {0});
  Reservation out;
  ASSERT_FALSE(window->TryReserve(kNow, Amounts{6}, false, out));
  Forecast behind(kNow);
  EXPECT_EQ(behind.Add(*window, nullptr, Amounts{4}).denial.ready_at, kNow);
  // As if it was answered now; it began before the other.
  EXPECT_EQ(behind.Add(*window, nullptr, Amounts{4}).denial.ready_at, kNow + kMinute);
  EXPECT_EQ(behind.Add(*window, nullptr, Amounts{5}).denial.ready_at, kNow + kMinute);
  EXPECT_EQ(behind.Add(*window, nullptr, Amounts{5}).denial.ready_at, kNow + 2 * kMinute);
  // It takes longer than a period.
  const Nanos late = kNow + kMinute + kSecond;
  Forecast later(late);
  EXPECT_EQ(later.Add(*window, nullptr, Amounts{4}).denial.ready_at, late);
  EXPECT_EQ(later.Add(*window, nullptr, Amounts{4}).denial.ready_at, kUntold);
  EXPECT_EQ(later.Add(*window, nullptr, Amounts{1}).denial.ready_at, kUntold);
  EXPECT_TRUE(out.Settle(late, {}));
}

TEST(Forecast, WaitsUntilABucketHasCooledDown) {
  const Held bucket = MakeBucket({Make(Shape::kWindow, 10, kMinute)}, {0});
  bucket->Cool(kNow + kHour);
  Forecast forecast(kNow);
  const Denial first = forecast.Add(*bucket, nullptr, Amounts{10}).denial;
  EXPECT_EQ(first.ready_at, kNow + kHour);
  EXPECT_EQ(first.meter, Denial::kCooling);
  EXPECT_EQ(forecast.Add(*bucket, nullptr, Amounts{1}).denial.ready_at, kNow + kHour + kMinute);
}

TEST(Forecast, AQueueLongerThanTimeIsNotTakenForImpossible) {
  const Held bucket = MakeBucket({Make(Shape::kBucket, 1, Limit::kMaxPeriod, 1)}, {0});
  Forecast forecast(0);
  Nanos last = 0;
  for (int i = 0; i < 5'000; ++i) last = forecast.Add(*bucket, nullptr, Amounts{1}).denial.ready_at;
  EXPECT_EQ(last, kUntold - 1);
}

}  // namespace
}  // namespace headway
