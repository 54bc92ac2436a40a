// headway/bucket/recent_count_test.cc: counts by the second, beside a list of all of it.
#include "headway/bucket/recent_count.h"

#include <algorithm>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;

TEST(RecentCount, CountsTheSecondsOfLate) {
  for (std::uint64_t run = 0; run < 50; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    RecentCount count;
    std::vector<Nanos> log;
    Nanos now = random.From(0, 1'000) * kSecond;
    const Nanos longest = kMillisecond * random.Magnitude(17);
    for (int i = 0; i < 2'000; ++i) {
      now += random.From(0, longest);
      log.push_back(now);
      count.Add(now);
      const Nanos from = now - random.From(0, 62 * kSecond);
      const auto exactly = [&](Nanos since) {
        return std::count_if(log.begin(), log.end(), [&](Nanos at) { return at >= since; });
      };
      ASSERT_GE(count.Between(from, now), exactly(std::max<Nanos>(from, 0)));
      ASSERT_LE(count.Between(from, now), exactly(from - kSecond));
    }
    EXPECT_EQ(count.Between(now + 2 * kSecond, now + kDay), 0);
    // Who is late by more than what is kept is not counted in the place of another.
    count.Add(now - RecentCount::kSeconds * kSecond);
    EXPECT_EQ(count.Between(now + kSecond, now + 2 * kSecond), 0);
  }
}

TEST(RecentCount, OfManyThreadsCountsAll) {
  RecentCount count;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&count] {
      for (int i = 0; i < 30'000; ++i) count.Add(Nanos{i} * kMillisecond);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count.Between(0, 30 * kSecond), 120'000);
}

}  // namespace
}  // namespace headway
