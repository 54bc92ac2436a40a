// headway/metrics/counter_test.cc: nothing counted is lost, and nothing is counted twice.
#include "headway/metrics/counter.h"

#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <functional>
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

// As many threads that count at once as are wanted: `count` is called by each, and none ends before
// all have.
void AtOnce(int threads, const std::function<void()>& count) {
  std::barrier<> together(threads);
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t)
    all.emplace_back([&] {
      together.arrive_and_wait();
      count();
      together.arrive_and_wait();
    });
  for (std::thread& thread : all) thread.join();
}

// More threads than shards, all of which count for the first time at once: those that find none of
// their own share one, and of two that make it, the one that loses counts in the other's.
TEST(Counters, ThreadsThatShareAShardLoseNothing) {
  constexpr int kThreads = 3 * kShards;
  ThisShard();  // this thread has one of its own, as long as it lives
  for (int run = 0; run < 20; ++run) {
    Counters counters(1);
    AtOnce(kThreads, [&] {
      for (int i = 0; i < 1'000; ++i) counters.Add(0);
    });
    ASSERT_EQ(counters.Value(0), 1'000U * kThreads);
    ASSERT_EQ(counters.shards(), kShards - 1);
  }
}

// Or a program that makes a thread for each request would soon count in the shared one alone.
TEST(Counters, AShardIsFreeAgainWhenItsThreadHasEnded) {
  const unsigned mine = ThisShard();
  ASSERT_NE(mine, kShared);
  Counters counters(1);
  for (int t = 0; t < 5 * static_cast<int>(kShards); ++t) {
    unsigned its = kNoShard;
    std::thread([&] {
      counters.Add(0);
      its = ThisShard();
    }).join();
    ASSERT_NE(its, kShared);
    ASSERT_NE(its, mine);
  }
  EXPECT_EQ(counters.Value(0), 5 * kShards);
  EXPECT_EQ(counters.shards(), 1U);
}

// What a thread's own objects count as they go comes after its shard is another's.
TEST(Counters, AThreadThatEndsCountsInTheSharedShard) {
  struct Last {
    unsigned* shard = nullptr;
    ~Last() {
      if (shard != nullptr) *shard = ThisShard();
    }
  };
  unsigned last = kNoShard;
  std::thread([&] {
    thread_local Last at_the_end;  // made first, so it goes last
    at_the_end.shard = &last;
    ThisShard();
  }).join();
  EXPECT_EQ(last, kShared);
}

#if !defined(__SANITIZE_THREAD__)  // which does not follow a process with threads through a fork

// The threads of the parent are not in the child, and never give theirs back there.
TEST(Counters, AForkedChildHasTheShardsOfItsParentsThreads) {
  const unsigned mine = ThisShard();
  pid_t child = -1;
  std::barrier<> counted(kShards);
  std::barrier<> forked(kShards);
  std::vector<std::thread> others;
  for (unsigned t = 1; t < kShards; ++t)
    others.emplace_back([&] {
      ThisShard();
      counted.arrive_and_wait();
      forked.arrive_and_wait();
    });
  counted.arrive_and_wait();
  child = ::fork();
  if (child == 0) {
    FreeShardsAfterForkInChild();
    unsigned its = kNoShard;
    std::thread([&] { its = ThisShard(); }).join();
    ::_exit(its != kShared && its != mine && ThisShard() == mine ? 0 : 1);
  }
  forked.arrive_and_wait();
  for (std::thread& thread : others) thread.join();
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

#endif  // !__SANITIZE_THREAD__

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
