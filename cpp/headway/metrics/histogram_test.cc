// headway/metrics/histogram_test.cc: each duration falls where it belongs.
#include "headway/metrics/histogram.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace headway {
namespace {

constexpr Nanos kBounds[] = {10, 100, 1'000};

struct Observed {
  // A word in front, so that a histogram which writes below its own would be seen.
  Counters counters{1 + Histogram::Words(std::size(kBounds))};
  Histogram histogram{kBounds, 1};

  void Observe(Nanos duration) { histogram.Observe(counters, duration); }
  HistogramSnapshot Read() const { return histogram.Read(counters.Values()); }
};

TEST(Histogram, ABoundBelongsToTheDurationsBelowIt) {
  Observed observed;
  for (const Nanos duration :
       {Nanos{0}, Nanos{10}, Nanos{11}, Nanos{100}, Nanos{101}, Nanos{1'000}, Nanos{1'001}, kDay})
    observed.Observe(duration);
  const HistogramSnapshot snapshot = observed.Read();
  EXPECT_EQ(snapshot.cumulative, (std::vector<std::uint64_t>{2, 4, 6}));
  EXPECT_EQ(snapshot.count, 8U);
  EXPECT_DOUBLE_EQ(snapshot.sum_seconds, 86'400 + 2'223e-9);
  EXPECT_EQ(observed.counters.Value(0), 0U);
}

TEST(Histogram, ANegativeDurationIsNone) {
  Observed observed;
  observed.Observe(-5);
  observed.Observe(20);
  const HistogramSnapshot snapshot = observed.Read();
  EXPECT_EQ(snapshot.cumulative, (std::vector<std::uint64_t>{1, 2, 2}));
  EXPECT_DOUBLE_EQ(snapshot.sum_seconds, 20e-9);
}

TEST(Histogram, FourThreadsAddUpExactly) {
  Observed observed;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (Nanos i = 0; i < 20'000; ++i) observed.Observe(i % 2'000);
    });
  for (std::thread& thread : threads) thread.join();
  const HistogramSnapshot snapshot = observed.Read();
  EXPECT_EQ(snapshot.cumulative, (std::vector<std::uint64_t>{440, 4'040, 40'040}));
  EXPECT_EQ(snapshot.count, 80'000U);
  EXPECT_DOUBLE_EQ(snapshot.sum_seconds, 40 * 1'999'000e-9);
}

TEST(Histogram, TheBoundsAscendOverTheirWholeRange) {
  EXPECT_TRUE(std::is_sorted(std::begin(kWaitBounds), std::end(kWaitBounds)));
  EXPECT_EQ(*std::begin(kWaitBounds), kMillisecond);
  EXPECT_EQ(*std::rbegin(kWaitBounds), 3'600 * kSecond);
  EXPECT_TRUE(std::is_sorted(std::begin(kLatenessBounds), std::end(kLatenessBounds)));
  EXPECT_EQ(*std::begin(kLatenessBounds), 10 * kMicrosecond);
  EXPECT_EQ(*std::rbegin(kLatenessBounds), 10 * kSecond);
}

}  // namespace
}  // namespace headway
