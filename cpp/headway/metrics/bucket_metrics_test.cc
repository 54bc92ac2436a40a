// headway/metrics/bucket_metrics_test.cc: what is counted is found where its name says.
#include "headway/metrics/bucket_metrics.h"

#include <cstdint>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace headway {
namespace {

TEST(BucketMetrics, EveryCounterHasAPlaceOfItsOwn) {
  const BucketMetrics metrics(3, 2);
  std::multiset<std::size_t> places;
  for (std::size_t i = 0; i < kBucketEvents; ++i)
    places.insert(BucketMetrics::EventAt(static_cast<BucketEvent>(i)));
  for (std::size_t i = 0; i < kRequestOutcomes; ++i)
    places.insert(BucketMetrics::OutcomeAt(static_cast<RequestOutcome>(i)));
  for (std::size_t i = 0; i < kRefusalCauses; ++i)
    places.insert(BucketMetrics::CauseAt(static_cast<RefusalCause>(i)));
  for (std::size_t resource = 0; resource < 2; ++resource)
    for (std::size_t i = 0; i < kUnitEvents; ++i)
      places.insert(metrics.UnitsAt(static_cast<UnitEvent>(i), resource));
  for (std::size_t limit = 0; limit < 3; ++limit) places.insert(metrics.DenialsAt(limit));
  EXPECT_EQ(std::set(places.begin(), places.end()).size(), places.size());
  EXPECT_EQ(*places.rbegin() + 1, metrics.Values().size());
  // The histograms have what is left.
  EXPECT_EQ(
      metrics.Values().size() - places.size(),
      Histogram::Words(std::size(kWaitBounds)) + Histogram::Words(std::size(kLatenessBounds)));
}

TEST(BucketMetrics, EachEventMovesItsOwnCounter) {
  BucketMetrics metrics(2, 2);
  metrics.Count(RequestOutcome::kSucceeded);
  metrics.Count(RequestOutcome::kStopped);
  metrics.Count(RequestOutcome::kStopped);
  metrics.Count(BucketEvent::kRefusal);
  metrics.Count(RefusalCause::kAnotherConsumer);
  metrics.CountDenial(1);
  metrics.CountUnits(UnitEvent::kReserved, 1, 500);
  metrics.CountUnits(UnitEvent::kRefunded, 1, 0);
  metrics.CountUnits(UnitEvent::kSettled, 0, -3);  // nothing was used, whatever was said
  metrics.ObserveWait(2 * kSecond);
  metrics.ObserveLateness(30 * kMicrosecond);

  const std::vector<std::uint64_t> values = metrics.Values();
  EXPECT_EQ(metrics.Requests(), 3U);
  EXPECT_EQ(values[BucketMetrics::OutcomeAt(RequestOutcome::kSucceeded)], 1U);
  EXPECT_EQ(values[BucketMetrics::OutcomeAt(RequestOutcome::kStopped)], 2U);
  EXPECT_EQ(values[BucketMetrics::EventAt(BucketEvent::kRefusal)], 1U);
  EXPECT_EQ(values[BucketMetrics::CauseAt(RefusalCause::kAnotherConsumer)], 1U);
  EXPECT_EQ(values[BucketMetrics::CauseAt(RefusalCause::kOurs)], 0U);
  EXPECT_EQ(values[metrics.DenialsAt(0)], 0U);
  EXPECT_EQ(values[metrics.DenialsAt(1)], 1U);
  EXPECT_EQ(values[metrics.UnitsAt(UnitEvent::kReserved, 1)], 500U);
  EXPECT_EQ(values[metrics.UnitsAt(UnitEvent::kRefunded, 1)], 0U);
  EXPECT_EQ(values[metrics.UnitsAt(UnitEvent::kSettled, 0)], 0U);
  EXPECT_EQ(BucketMetrics::kWait.Read(values).count, 1U);
  EXPECT_DOUBLE_EQ(BucketMetrics::kWait.Read(values).sum_seconds, 2);
  EXPECT_EQ(BucketMetrics::kLateness.Read(values).count, 1U);
  EXPECT_DOUBLE_EQ(BucketMetrics::kLateness.Read(values).sum_seconds, 30e-6);
}

TEST(BucketMetrics, FourThreadsCountExactly) {
  BucketMetrics metrics(1, 1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20'000; ++i) {
        metrics.CountUnits(UnitEvent::kReserved, 0, 10);
        metrics.Count(BucketEvent::kAttempt);
        metrics.ObserveWait(i * kMicrosecond);
        metrics.Count(RequestOutcome::kSucceeded);
      }
    });
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::uint64_t> values = metrics.Values();
  EXPECT_EQ(metrics.Requests(), 80'000U);
  EXPECT_EQ(values[metrics.UnitsAt(UnitEvent::kReserved, 0)], 800'000U);
  EXPECT_EQ(values[BucketMetrics::EventAt(BucketEvent::kAttempt)], 80'000U);
  EXPECT_EQ(BucketMetrics::kWait.Read(values).count, 80'000U);
}

TEST(BucketMetrics, EveryLabelIsAnother) {
  std::set<std::string> outcomes;
  for (std::size_t i = 0; i < kRequestOutcomes; ++i)
    outcomes.emplace(RequestOutcomeName(static_cast<RequestOutcome>(i)));
  EXPECT_EQ(outcomes.size(), kRequestOutcomes);
  EXPECT_EQ(outcomes.count("unknown"), 0U);
  std::set<std::string> causes;
  for (std::size_t i = 0; i < kRefusalCauses; ++i)
    causes.emplace(RefusalCauseName(static_cast<RefusalCause>(i)));
  EXPECT_EQ(causes.size(), kRefusalCauses);
  EXPECT_EQ(causes.count(""), 0U);
  std::set<std::string> origins;
  for (std::size_t i = 0; i < kUserCodes; ++i)
    origins.emplace(UserCodeName(static_cast<UserCode>(i)));
  EXPECT_EQ(origins.size(), kUserCodes);
  EXPECT_EQ(origins.count("unknown"), 0U);
}

}  // namespace
}  // namespace headway
