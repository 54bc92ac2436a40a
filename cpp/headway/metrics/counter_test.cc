// headway/metrics/counter_test.cc: nothing counted is lost, and nothing is counted twice.
#include "headway/metrics/counter.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "headway/base/pause.h"
#include "headway/simulate/explorer.h"

namespace headway {
namespace {

TEST(Counters, FourThreadsSumExactly) {
  constexpr std::uint64_t kRounds = 50'000;
  Counters counters(3);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (std::uint64_t i = 0; i < kRounds; ++i) {
        counters.Add(0);
        counters.Add(2, i);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counters.Values(),
            (std::vector<std::uint64_t>{4 * kRounds, 0, 4 * (kRounds * (kRounds - 1) / 2)}));
  EXPECT_EQ(counters.Value(0), 4 * kRounds);
}

// More threads than shards, all of which count for the first time at once: of two that make the
// same shard, the one that loses counts in the other's.
TEST(Counters, ThreadsThatShareAShardLoseNothing) {
  constexpr int kThreads = 3 * kShards;
  for (int run = 0; run < 20; ++run) {
    Counters counters(1);
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&] {
        while (!go.load()) std::this_thread::yield();
        for (int i = 0; i < 100; ++i) counters.Add(0);
      });
    go.store(true);
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(counters.Value(0), 100U * kThreads);
    ASSERT_EQ(counters.shards(), kShards);
  }
}

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

// The explorer's threads are one thread to the system, and so are of one shard.
TEST(Interleaving, TwoThatMakeTheSameShardCountInOne) {
  const auto result = simulate::Explorer::Explore(
      [] {
        auto counters = std::make_shared<Counters>(1);
        const auto add = [counters] { counters->Add(0); };
        return simulate::Interleaving{
            {add, add}, [counters] { return counters->Value(0) == 2 ? "" : "a count was lost"; }};
      },
      /*preemptions=*/-1);
  EXPECT_EQ(result.failure, "");
  EXPECT_GT(result.schedules, 1U);
}

#endif  // HEADWAY_PAUSE_POINTS

TEST(Counters, NeverGoDownForOneReader) {
  Counters counters(2);
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (int t = 0; t < 3; ++t)
    writers.emplace_back([&] {
      for (int i = 0; i < 30'000; ++i) counters.Add(1);
      done.store(true);
    });
  std::uint64_t last = 0;
  bool again = true;
  while (again) {
    again = !done.load();
    const std::uint64_t value = counters.Value(1);
    ASSERT_GE(value, last);
    last = value;
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(counters.Value(1), 90'000U);
}

TEST(Counters, AThreadAloneMakesOneBlock) {
  Counters counters(100);
  EXPECT_EQ(counters.shards(), 0U);
  EXPECT_EQ(counters.Value(99), 0U);
  for (std::size_t i = 0; i < 100; ++i) counters.Add(i, i);
  EXPECT_EQ(counters.shards(), 1U);
  EXPECT_EQ(counters.Value(99), 99U);
}

}  // namespace
}  // namespace headway
