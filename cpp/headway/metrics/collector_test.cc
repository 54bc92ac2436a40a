// headway/metrics/collector_test.cc: what Prometheus reads is what was counted, whoever comes and
// goes.
#include "headway/metrics/collector.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "headway/simulate/random.h"
#include "prometheus/text_serializer.h"

namespace headway {
namespace {

// A bucket of one or more limits that all count requests, and a second resource.
class FakeBucket final : public BucketSource {
 public:
  explicit FakeBucket(std::size_t limits = 1) : counted(limits, 2) {}

  const BucketMetrics& metrics() const override { return counted; }
  std::string LimitName(std::size_t limit) const override {
    return absl::StrCat(limit + 1, " requests/min");
  }
  std::string ResourceName(std::size_t resource) const override {
    return resource == 0 ? "requests" : "";
  }
  BucketGauges Gauges() const override { return gauges; }

  BucketMetrics counted;
  BucketGauges gauges;
};

std::string Text(const Collector& collector) {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, collector.Collect());
  return out.str();
}

TEST(Collector, RendersASmallExampleToTheByte) {
  Collector collector;
  FakeBucket bucket;
  UserCodeErrors errors;
  collector.Register("main", "gpt \"4\"", &bucket);
  collector.Register("main", &errors);
  bucket.counted.Count(RequestOutcome::kSucceeded);
  bucket.counted.Count(RequestOutcome::kSucceeded);
  bucket.counted.Count(RequestOutcome::kTimedOut);
  for (int i = 0; i < 4; ++i) bucket.counted.Count(BucketEvent::kAttempt);
  bucket.counted.Count(BucketEvent::kRetry);
  bucket.counted.Count(BucketEvent::kRefusal);
  bucket.counted.Count(RefusalCause::kChanged);
  bucket.counted.Count(BucketEvent::kCoolDown);
  bucket.counted.Count(BucketEvent::kOddity);
  bucket.counted.CountDenial(0);
  bucket.counted.CountUnits(UnitEvent::kReserved, 0, 1'234'567'890'123);
  bucket.counted.CountUnits(UnitEvent::kSettled, 0, 7);
  bucket.counted.CountUnits(UnitEvent::kRefunded, 0, 3);
  bucket.counted.ObserveWait(0);
  bucket.counted.ObserveWait(1'500 * kMillisecond);
  bucket.counted.ObserveWait(7'200 * kSecond);
  bucket.counted.ObserveLateness(60 * kMicrosecond);
  bucket.gauges.queue_depth = 5;
  bucket.gauges.in_flight = 2;
  bucket.gauges.rooms.push_back({"1 requests/min", "requests", 0.5, 1});
  errors.Count(UserCode::kCallback);
  EXPECT_EQ(Text(collector), R"(# HELP headway_requests_total Requests that ended, by how.
# TYPE headway_requests_total counter
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="succeeded"} 2
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="failed"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="timed_out"} 1
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="cancelled"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="overflowed"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="dropped"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="deadline"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="never_fits"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="breaker"} 0
headway_requests_total{scheduler="main",bucket="gpt \"4\"",outcome="stopped"} 0
# HELP headway_attempts_total Calls that were started.
# TYPE headway_attempts_total counter
headway_attempts_total{scheduler="main",bucket="gpt \"4\""} 4
# HELP headway_retries_total Calls that were not a request's first.
# TYPE headway_retries_total counter
headway_retries_total{scheduler="main",bucket="gpt \"4\""} 1
# HELP headway_refusals_total Calls that the provider refused for its limits.
# TYPE headway_refusals_total counter
headway_refusals_total{scheduler="main",bucket="gpt \"4\""} 1
# HELP headway_refusal_verdicts_total Refusals, by what they come of.
# TYPE headway_refusal_verdicts_total counter
headway_refusal_verdicts_total{scheduler="main",bucket="gpt \"4\"",verdict="ours"} 0
headway_refusal_verdicts_total{scheduler="main",bucket="gpt \"4\"",verdict="capacity"} 0
headway_refusal_verdicts_total{scheduler="main",bucket="gpt \"4\"",verdict="changed"} 1
headway_refusal_verdicts_total{scheduler="main",bucket="gpt \"4\"",verdict="another consumer"} 0
headway_refusal_verdicts_total{scheduler="main",bucket="gpt \"4\"",verdict="unknown"} 0
# HELP headway_cooldowns_total Times that a bucket held still because the provider had said so.
# TYPE headway_cooldowns_total counter
headway_cooldowns_total{scheduler="main",bucket="gpt \"4\""} 1
# HELP headway_answer_oddities_total Values in answers, about limits, that could not be read.
# TYPE headway_answer_oddities_total counter
headway_answer_oddities_total{scheduler="main",bucket="gpt \"4\""} 1
# HELP headway_denials_total Admissions that were denied, by the limit that bound.
# TYPE headway_denials_total counter
headway_denials_total{scheduler="main",bucket="gpt \"4\"",limit="1 requests/min"} 1
# HELP headway_reserved_units_total Units reserved at admission.
# TYPE headway_reserved_units_total counter
headway_reserved_units_total{scheduler="main",bucket="gpt \"4\"",resource="requests"} 1234567890123
# HELP headway_settled_units_total Units that calls turned out to use.
# TYPE headway_settled_units_total counter
headway_settled_units_total{scheduler="main",bucket="gpt \"4\"",resource="requests"} 7
# HELP headway_refunded_units_total Units that were reserved and given back.
# TYPE headway_refunded_units_total counter
headway_refunded_units_total{scheduler="main",bucket="gpt \"4\"",resource="requests"} 3
# HELP headway_wait_seconds From submission to admission.
# TYPE headway_wait_seconds histogram
headway_wait_seconds_count{scheduler="main",bucket="gpt \"4\""} 3
headway_wait_seconds_sum{scheduler="main",bucket="gpt \"4\""} 7201.5
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.001"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.0025"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.005"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.01"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.025"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.05"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.1"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.25"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.5"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="1"} 1
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="2.5"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="5"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="10"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="30"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="60"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="120"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="300"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="600"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="1800"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="3600"} 2
headway_wait_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="+Inf"} 3
# HELP headway_lateness_seconds From an admission until whoever has waited for it goes on.
# TYPE headway_lateness_seconds histogram
headway_lateness_seconds_count{scheduler="main",bucket="gpt \"4\""} 1
headway_lateness_seconds_sum{scheduler="main",bucket="gpt \"4\""} 6e-05
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="1e-05"} 0
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="2.5e-05"} 0
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="5e-05"} 0
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.0001"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.00025"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.0005"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.001"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.0025"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.005"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.01"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.025"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.05"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.1"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.25"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="0.5"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="1"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="2.5"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="5"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="10"} 1
headway_lateness_seconds_bucket{scheduler="main",bucket="gpt \"4\"",le="+Inf"} 1
# HELP headway_queue_depth Requests that wait for admission.
# TYPE headway_queue_depth gauge
headway_queue_depth{scheduler="main",bucket="gpt \"4\""} 5
# HELP headway_in_flight Calls that are out.
# TYPE headway_in_flight gauge
headway_in_flight{scheduler="main",bucket="gpt \"4\""} 2
# HELP headway_remaining_units Units that a limit would admit now.
# TYPE headway_remaining_units gauge
headway_remaining_units{scheduler="main",bucket="gpt \"4\"",limit="1 requests/min",resource="requests"} 0.5
# HELP headway_capacity_units Units that a limit would admit if nothing had been taken.
# TYPE headway_capacity_units gauge
headway_capacity_units{scheduler="main",bucket="gpt \"4\"",limit="1 requests/min",resource="requests"} 1
# HELP headway_user_code_errors_total Exceptions that the user's code raised, by what raised them.
# TYPE headway_user_code_errors_total counter
headway_user_code_errors_total{scheduler="main",origin="provider"} 0
headway_user_code_errors_total{scheduler="main",origin="classifier"} 0
headway_user_code_errors_total{scheduler="main",origin="callback"} 1
headway_user_code_errors_total{scheduler="main",origin="backend"} 0
headway_user_code_errors_total{scheduler="main",origin="strategy"} 0
)");
}

// The value of each series, by name and labels; a histogram is its count.
using Series = std::map<std::string, double>;

Series Read(const Collector& collector) {
  Series series;
  for (const prometheus::MetricFamily& family : collector.Collect())
    for (const prometheus::ClientMetric& metric : family.metric) {
      std::string name = family.name;
      for (const auto& label : metric.label) absl::StrAppend(&name, " ", label.value);
      double value = metric.counter.value;
      if (family.type == prometheus::MetricType::Gauge) value = metric.gauge.value;
      if (family.type == prometheus::MetricType::Histogram)
        value = static_cast<double>(metric.histogram.sample_count);
      EXPECT_TRUE(series.emplace(name, value).second) << name << " is rendered twice";
    }
  return series;
}

void Succeed(FakeBucket& bucket, int times) {
  for (int i = 0; i < times; ++i) {
    bucket.counted.Count(RequestOutcome::kSucceeded);
    bucket.counted.CountDenial(0);
    bucket.counted.CountUnits(UnitEvent::kReserved, 0, 10);
    bucket.counted.ObserveWait(kSecond);
  }
}

TEST(Collector, TheLeastUsedBucketsAreSummedAsOther) {
  Collector collector(/*most_buckets=*/1);
  FakeBucket much;
  FakeBucket little;
  FakeBucket less;
  Succeed(much, 3);
  Succeed(little, 2);
  Succeed(less, 1);
  for (FakeBucket* bucket : {&much, &little, &less}) {
    bucket->gauges.queue_depth = 4;
    bucket->gauges.in_flight = 1;
    bucket->gauges.rooms.push_back({"1 requests/min", "requests", 0, 1});
  }
  collector.Register("s", "much", &much);
  collector.Register("s", "little", &little);
  collector.Register("s", "less", &less);

  Series series = Read(collector);
  EXPECT_EQ(series["headway_requests_total s much succeeded"], 3);
  EXPECT_EQ(series["headway_requests_total s other succeeded"], 3);
  EXPECT_EQ(series["headway_denials_total s other 1 requests/min"], 3);
  EXPECT_EQ(series["headway_reserved_units_total s other requests"], 30);
  EXPECT_EQ(series["headway_wait_seconds s other"], 3);
  EXPECT_EQ(series["headway_queue_depth s other"], 8);
  EXPECT_EQ(series["headway_in_flight s other"], 2);
  EXPECT_EQ(series.count("headway_remaining_units s much 1 requests/min requests"), 1U);
  EXPECT_EQ(series.count("headway_remaining_units s other 1 requests/min requests"), 0U);
  EXPECT_EQ(series.count("headway_requests_total s little succeeded"), 0U);
}

TEST(Collector, WhatAnEvictedBucketCountedStaysInOther) {
  Collector collector;
  {
    FakeBucket evicted;
    UserCodeErrors errors;
    collector.Register("s", "evicted", &evicted);
    collector.Register("s", &errors);
    Succeed(evicted, 2);
    errors.Count(UserCode::kProvider);
    EXPECT_EQ(Read(collector)["headway_requests_total s evicted succeeded"], 2);
    collector.Unregister(&evicted);
    collector.Unregister(&evicted);  // nothing more
    collector.Unregister(&errors);
  }
  FakeBucket again;
  collector.Register("s", "evicted", &again);
  Succeed(again, 1);

  Series series = Read(collector);
  EXPECT_EQ(series["headway_requests_total s other succeeded"], 2);
  EXPECT_EQ(series["headway_denials_total s other 1 requests/min"], 2);
  EXPECT_EQ(series["headway_reserved_units_total s other requests"], 20);
  EXPECT_EQ(series["headway_wait_seconds s other"], 2);
  EXPECT_EQ(series["headway_requests_total s evicted succeeded"], 1);
  EXPECT_EQ(series["headway_user_code_errors_total s provider"], 1);
}

TEST(Collector, ABucketThatRisesOutOfOtherLeavesItsCountsThere) {
  Collector collector(/*most_buckets=*/1);
  FakeBucket first;
  FakeBucket second;
  collector.Register("s", "first", &first);
  collector.Register("s", "second", &second);
  Succeed(first, 2);
  Succeed(second, 1);
  Series series = Read(collector);
  EXPECT_EQ(series["headway_requests_total s first succeeded"], 2);
  EXPECT_EQ(series["headway_requests_total s other succeeded"], 1);

  Succeed(second, 4);
  series = Read(collector);  // 5 of the second are in `other`, and with them the 2 of the first
  EXPECT_EQ(series["headway_requests_total s second succeeded"], 0);
  EXPECT_EQ(series["headway_requests_total s other succeeded"], 7);

  Succeed(second, 1);
  Succeed(first, 1);
  series = Read(collector);
  EXPECT_EQ(series["headway_requests_total s second succeeded"], 1);
  EXPECT_EQ(series["headway_requests_total s other succeeded"], 8);
}

TEST(Collector, OfEqualsWhoeverHadSeriesKeepsThem) {
  Collector collector(/*most_buckets=*/1);
  FakeBucket own;
  Succeed(own, 1);
  collector.Register("s", "own", &own);
  Read(collector);
  std::vector<std::unique_ptr<FakeBucket>> equals;
  for (int i = 0; i < 20; ++i) {
    Succeed(*equals.emplace_back(std::make_unique<FakeBucket>()), 1);
    collector.Register("s", absl::StrCat("equal", i), equals.back().get());
  }
  EXPECT_EQ(Read(collector)["headway_requests_total s own succeeded"], 1);
}

TEST(Collector, SourcesOfTheSameNameAreOneSeries) {
  Collector collector;
  FakeBucket one(2);
  FakeBucket two;
  FakeBucket other;
  for (FakeBucket* bucket : {&one, &two, &other}) {
    Succeed(*bucket, 1);
    bucket->gauges.rooms.push_back({"1 requests/min", "requests", 1, 2});
  }
  collector.Register("s", "same", &one);
  collector.Register("s", "same", &two);
  collector.Register("s", "other", &other);       // a name that a user may well choose
  collector.Register("another", "same", &other);  // registered already: nothing more

  Series series = Read(collector);
  EXPECT_EQ(series["headway_requests_total s same succeeded"], 2);
  EXPECT_EQ(series["headway_denials_total s same 2 requests/min"], 0);
  EXPECT_EQ(series["headway_capacity_units s same 1 requests/min requests"], 4);
  EXPECT_EQ(series["headway_requests_total s other succeeded"], 1);
  EXPECT_EQ(series.count("headway_requests_total another same succeeded"), 0U);
}

TEST(Collector, WithNothingRegisteredNothingIsRendered) { EXPECT_EQ(Text(Collector()), ""); }

// Against the plain truth: whatever comes, goes and is counted, the sums over all buckets are what
// was counted, and nothing of `other` goes down.
TEST(Collector, NoCountIsLostOrGoesDownWhoeverComesAndGoes) {
  for (std::uint64_t run = 0; run < 200; ++run) {
    simulate::Random random(simulate::Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    Collector collector(static_cast<std::size_t>(random.From(0, 3)));
    std::vector<std::unique_ptr<FakeBucket>> buckets;
    double counted = 0;
    Series others;
    for (int step = 0; step < 60; ++step) {
      const std::int64_t what = random.From(0, 9);
      const auto last = std::max<std::int64_t>(1, static_cast<std::int64_t>(buckets.size())) - 1;
      const auto which = static_cast<std::size_t>(random.From(0, last));
      if (what < 2 || buckets.empty()) {
        buckets.push_back(std::make_unique<FakeBucket>(2));
        collector.Register("s", absl::StrCat("b", random.From(0, 9)), buckets.back().get());
      } else if (what == 2) {
        collector.Unregister(buckets[which].get());
        buckets.erase(buckets.begin() + static_cast<std::ptrdiff_t>(which));
      } else if (what < 7) {
        const auto outcome = static_cast<RequestOutcome>(random.From(0, 2));
        const auto limit = static_cast<std::size_t>(random.From(0, 1));
        for (std::int64_t times = random.From(1, 5); times > 0; --times, ++counted) {
          buckets[which]->counted.Count(outcome);
          buckets[which]->counted.CountDenial(limit);
          buckets[which]->counted.CountUnits(UnitEvent::kReserved, 0, 10);
          buckets[which]->counted.ObserveWait(kSecond);
        }
      } else {
        Series sums;
        const Series series = Read(collector);
        for (const auto& [name, value] : series) sums[name.substr(0, name.find(' '))] += value;
        ASSERT_EQ(sums["headway_requests_total"], counted);
        ASSERT_EQ(sums["headway_denials_total"], counted);
        ASSERT_EQ(sums["headway_reserved_units_total"], 10 * counted);
        ASSERT_EQ(sums["headway_wait_seconds"], counted);
        for (const auto& [name, value] : others) {
          const auto found = series.find(name);
          ASSERT_TRUE(found != series.end()) << name;
          ASSERT_GE(found->second, value) << name;
        }
        for (const auto& [name, value] : series)
          if (name.find(" other") != std::string::npos && name.find("_total") != std::string::npos)
            others[name] = value;
      }
    }
  }
}

TEST(Collector, ThreadsCountAndRegisterWhileItCollects) {
  Collector collector(/*most_buckets=*/2);
  std::atomic<int> running{3};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        FakeBucket bucket;
        collector.Register("s", absl::StrCat("b", t), &bucket);
        Succeed(bucket, 5);
        collector.Unregister(&bucket);
      }
      running.fetch_sub(1);
    });
  double last = 0;
  while (running.load() > 0) {
    double sum = 0;
    for (const auto& [name, value] : Read(collector))
      if (name.rfind("headway_requests_total", 0) == 0) sum += value;
    ASSERT_GE(sum, last);
    last = sum;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Read(collector)["headway_requests_total s other succeeded"], 1'500);
}

}  // namespace
}  // namespace headway
