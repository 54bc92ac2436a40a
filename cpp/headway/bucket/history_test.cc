// headway/bucket/history_test.cc: bounds on what had been admitted, beside a list of all of it.
#include "headway/bucket/history.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;

void Call(History& history, Nanos at, std::int64_t amount) {
  history.Expect(1, amount);
  history.Admit(1, amount);
  history.Mark(at, std::vector<std::int64_t>{0, amount});
  history.Expect(1, -amount);
}

TEST(History, BoundsWhatHadBeenAdmittedByAnyInstant) {
  for (std::uint64_t run = 0; run < 20; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    History history(2);
    std::vector<std::pair<Nanos, std::int64_t>> log;
    Nanos now = 1'000 * kSecond;
    const Nanos longest = kMillisecond * random.Magnitude(12);
    for (int i = 0; i < 20'000; ++i) {
      // Bursts, too.
      if (random.OneIn(2)) now += random.From(0, longest);
      const std::int64_t amount = random.From(0, 9);
      log.emplace_back(now, amount);
      Call(history, now, amount);
    }
    std::int64_t total = 0;
    for (const auto& [at, amount] : log) total += amount;
    EXPECT_EQ(history.Total(1), total);
    EXPECT_EQ(history.Total(0), 0);
    for (int i = 0; i < 500; ++i) {
      const Nanos at = random.From(log.front().first - kSecond, now);
      const auto sum_until = [&](Nanos until) {
        std::int64_t sum = 0;
        for (const auto& [when, amount] : log)
          if (when <= until) sum += amount;
        return sum;
      };
      const std::int64_t least = history.AtLeast(1, at);
      const std::int64_t most = history.AtMost(1, at);
      EXPECT_LE(least, sum_until(at));
      EXPECT_GE(most, sum_until(at - 1));
      // Off by no more than what the marks' distance allows; and where none of the calls is near,
      // only at most.
      const Nanos off = std::max(History::kGrain, (now - at) / History::kPerAge) * 3;
      EXPECT_GE(least, sum_until(at - off));
      EXPECT_LE(most, sum_until(at + std::max(off, longest * 3)));
    }
  }
}

// Only the first of a burst is sure to make a mark.
TEST(History, KnowsThatABurstHadBegunThoughNobodyFollows) {
  for (const bool followed : {false, true}) {
    History history(2);
    const Nanos at = 1'000 * kSecond;
    for (int i = 0; i < 100; ++i) Call(history, at + i * kMicrosecond, 1);
    if (followed) Call(history, at + kSecond, 1);
    EXPECT_EQ(history.AtLeast(1, at + History::kGrain), 100) << followed;
    EXPECT_EQ(history.AtLeast(1, at + kSecond / 2), 100) << followed;
  }
}

TEST(History, KnowsByWhenAllHasBegun) {
  History history(2);
  const Nanos at = 1'000 * kSecond;
  EXPECT_LT(history.BegunBy(1, at), at) << "nothing has, long ago";
  for (int i = 0; i < 100; ++i) Call(history, at + i * kMicrosecond, 1);
  EXPECT_EQ(history.BegunBy(1, at + kMillisecond), at + kMillisecond);
  EXPECT_EQ(history.BegunBy(1, at + kSecond), at + History::kGrain);
  // What one has taken more than was known says nothing of when others have begun.
  history.AdmitMore(0, 5);
  EXPECT_EQ(history.BegunBy(0, at + kSecond), at + kSecond);
  EXPECT_EQ(history.BegunBy(1, at + kSecond), at + History::kGrain);
  history.Expect(1, 3);  // admitted for somebody who waits
  EXPECT_EQ(history.BegunBy(1, at + kSecond), at + kSecond);
  history.Admit(1, 3);
  const std::int64_t own[] = {0, 3};
  history.Mark(at + kSecond, own);
  history.Expect(1, -3);
  EXPECT_EQ(history.BegunBy(1, at + 2 * kSecond), at + kSecond + History::kGrain);
}

TEST(History, TakesWhatMayNotHaveBegunForNothing) {
  History history(1);
  const auto call = [&](Nanos at) {
    history.Expect(0, 1);
    history.Admit(0, 1);
    const std::int64_t own = 1;
    history.Mark(at, {&own, 1});
    history.Expect(0, -1);
  };
  for (int i = 0; i < 10; ++i) call(kSecond);
  EXPECT_EQ(history.AtLeast(0, kSecond), 1);
  EXPECT_EQ(history.AtLeast(0, 2 * kSecond), 10);
  history.Expect(0, 5);                                  // admitted for those who wait
  EXPECT_EQ(history.AdmittedSince(0, 2 * kSecond), 10);  // or any of the ten may be of those
  history.Admit(0, 5);
  EXPECT_EQ(history.AdmittedSince(0, 2 * kSecond), 10);
  history.Expect(0, -5);
  EXPECT_EQ(history.AdmittedSince(0, 0), 15);
  // Whoever is between taking it and looking at the marks may have begun at any time.
  history.Expect(0, 1);
  history.Admit(0, 1);
  call(3 * kSecond);
  EXPECT_EQ(history.AtLeast(0, 2 * kSecond), 15);
  EXPECT_EQ(history.AtLeast(0, 3 * kSecond), 17);
}

TEST(History, KnowsWhatABucketIsOwed) {
  constexpr Nanos kMinute = 60 * kSecond;
  constexpr Nanos kHour = 60 * kMinute;
  History history(2);
  EXPECT_EQ(history.Owed(1, 60, kMinute, kSecond), 0);
  Call(history, kSecond, 10);
  Call(history, kSecond, 20);  // there is a mark already
  EXPECT_EQ(history.Owed(1, 60, kMinute, kSecond), 30);
  EXPECT_EQ(history.Owed(1, 60, kMinute, 11 * kSecond), 20);
  // Idle time is not saved up.
  EXPECT_EQ(history.Owed(1, 60, kMinute, kHour), 0);
  Call(history, kHour, 40);
  Call(history, kHour, 5);
  EXPECT_EQ(history.Owed(1, 60, kMinute, kHour + 15 * kSecond), 30);
  EXPECT_EQ(history.Owed(0, 60, kMinute, kHour), 0);
}

TEST(History, KnowsWhatHasBegunSince) {
  History history(2);
  EXPECT_EQ(history.Since(1, 0), 0);
  Call(history, kSecond, 10);
  Call(history, kSecond, 20);
  Call(history, 3 * kSecond, 5);
  Call(history, 3 * kSecond, 2);
  EXPECT_EQ(history.Since(1, 0), 37);
  EXPECT_EQ(history.Since(1, 2 * kSecond), 7);
  EXPECT_EQ(history.Since(1, 3 * kSecond), 7);
  EXPECT_EQ(history.Since(1, 4 * kSecond), 0);
  EXPECT_EQ(history.Since(0, 0), 0);
}

TEST(History, OfManyThreadsCountsAll) {
  History history(1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&history] {
      for (Nanos i = 1; i <= 20'000; ++i) {
        history.Expect(0, 1);
        history.Admit(0, 1);
        const std::int64_t one = 1;
        history.Mark(i * kMillisecond, {&one, 1});
        history.Expect(0, -1);
        if (i % 100 == 0) {
          const std::int64_t least = history.AtLeast(0, i * kMillisecond);
          EXPECT_LE(least, history.Total(0));
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(history.Total(0), 80'000);
  EXPECT_EQ(history.AtMost(0, kDay), 80'000);
}

}  // namespace
}  // namespace headway
