// headway/bucket/stress_test.cc: threads at one bucket, for the sanitizers and for conservation.
#include <array>
#include <atomic>
#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "headway/base/pause.h"
#include "headway/bucket/bucket.h"
#include "headway/simulate/limits.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;
using Amounts = std::vector<std::int64_t>;

constexpr int kThreads = 4;
constexpr Nanos kNow = 1'000 * kSecond;

Limit Make(Shape shape, std::int64_t amount, Nanos period = kSecond,
           std::optional<std::int64_t> burst = std::nullopt) {
  return simulate::MakeLimit(shape, amount, period, burst);
}

class Ignored final : public WaiterSignal {
 public:
  void Signal(Bucket&) override { signals.fetch_add(1); }
  std::atomic<std::int64_t> signals{0};
};

// Runs `work(thread)` on several threads at once, each beginning when all are there.
template <typename Work>
void OnThreads(Work work) {
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      ready.fetch_add(1);
      while (ready.load() < kThreads) std::this_thread::yield();
      work(i);
    });
  for (std::thread& t : threads) t.join();
}

// An admission happened at some instant between these two readings of the shared clock.
struct Admission {
  Nanos from;
  Nanos to;
  std::int64_t amount;
};

TEST(Stress, NoIntervalAdmitsMoreThanItsLimit) {
  for (std::uint64_t run = 0; run < 3; ++run) {
    for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed}) {
      Random shared(Random::Seed(run));
      SCOPED_TRACE(shared.Describe());
      const Limit limit = Make(shape, shared.From(1, 60), kMillisecond);
      Ignored signal;
      Bucket* bucket = Bucket::Make({&limit, 1}, std::vector<std::uint8_t>{0}, 0, &signal);
      std::atomic<Nanos> clock{kNow};
      std::array<std::vector<Admission>, kThreads> admitted;
      OnThreads([&](int i) {
        Random random(shared.seed() * 31 + static_cast<std::uint64_t>(i));
        auto& mine = admitted[static_cast<std::size_t>(i)];
        for (int n = 0; n < 6'000; ++n) {
          const Nanos now =
              random.OneIn(3) ? clock.fetch_add(random.From(0, 20 * kMicrosecond)) : clock.load();
          const std::int64_t amount = random.From(1, std::max<std::int64_t>(1, limit.amount / 8));
          if (bucket->TryTake(now, Amounts{amount})) mine.push_back({now, clock.load(), amount});
        }
      });
      std::vector<Admission> all;
      for (const auto& mine : admitted) all.insert(all.end(), mine.begin(), mine.end());
      std::sort(all.begin(), all.end(),
                [](const Admission& a, const Admission& b) { return a.from < b.from; });
      ASSERT_FALSE(all.empty());
      if (shape == Shape::kBucket) {
        // By their own clocks' readings: sum <= burst + what was refilled, over every interval.
        for (std::size_t first = 0; first < all.size(); first += 7) {
          std::int64_t sum = 0;
          for (std::size_t last = first; last < all.size(); ++last) {
            sum += all[last].amount;
            ASSERT_LE((sum - limit.amount) * limit.period,
                      (all[last].from - all[first].from) * limit.amount);
          }
        }
      } else {
        // What surely lies within one window, however late its thread was.
        for (const Admission& end : all) {
          const Nanos begin =
              shape == Shape::kWindow ? end.to - limit.period : end.to - end.to % limit.period - 1;
          std::int64_t sum = 0;
          for (auto a = std::upper_bound(all.begin(), all.end(), begin,
                                         [](Nanos t, const Admission&x) { return t < x.from; });
               a != all.end() && a->from <= end.to; ++a)
            if (a->to <= end.to) sum += a->amount;
          ASSERT_LE(sum, limit.amount);
        }
      }
      const Nanos later = clock.load() + 10 * limit.period;
      EXPECT_EQ(bucket->Used(0, later), 0);
      EXPECT_TRUE(bucket->TryTake(later, Amounts{limit.amount}));
      bucket->Unref();
    }
  }
}

// Everything that a reservation can live through, at once, while limits change; in the end nothing
// is lost and nothing too much.
TEST(Stress, WhateverHappensToReservationsAllOfItComesBack) {
  const std::vector<std::vector<Limit>> cases = {
      {Make(Shape::kConcurrency, 6), Make(Shape::kBucket, 1'000'000),
       Make(Shape::kWindow, 500, kMillisecond), Make(Shape::kFixed, 700, kMillisecond)},
      {Make(Shape::kWindow, 20, kMillisecond), Make(Shape::kWindow, 100, 20 * kMillisecond)},
      {Make(Shape::kConcurrency, 3), Make(Shape::kBucket, 1'000, kSecond, 20)},
  };
  for (const std::vector<Limit>& limits : cases) {
    Random shared(Random::Seed(0));
    SCOPED_TRACE(shared.Describe());
    // One rule a run, as a provider has: a debt that grew in time under one rule when the limit
    // fell would stay as long under the other when it rises again, and in the end be more than is
    // waited.
    const Debt debt = shared.OneIn(2) ? Debt::kAbsolute : Debt::kProportional;
    std::vector<std::uint8_t> resources;
    for (std::size_t i = 0; i < limits.size(); ++i)
      resources.push_back(static_cast<std::uint8_t>(i));
    Ignored signal;
    Bucket* bucket = Bucket::Make(limits, resources, 0, &signal);
    std::atomic<Nanos> clock{kNow};
    std::atomic<std::int64_t> at_once{0};
    std::atomic<std::int64_t> most_at_once{0};
    // Some reservations are ended by another thread than the one that made them, or by two.
    std::array<std::atomic<Reservation*>, 8> shelf{};
    OnThreads([&](int thread) {
      Random random(shared.seed() * 37 + static_cast<std::uint64_t>(thread));
      for (int n = 0; n < 20'000; ++n) {
        const Nanos now = clock.fetch_add(random.From(0, 3 * kMicrosecond));
        Amounts amounts(limits.size());
        for (std::size_t i = 0; i < limits.size(); ++i)
          amounts[i] =
              limits[i].shape == Shape::kConcurrency
                  ? 1
                  : random.From(0, std::max<std::int64_t>(1, limits[i].burst_or_amount() / 10));
        if (random.OneIn(200)) {
          const auto i = static_cast<std::size_t>(
              random.From(0, static_cast<std::int64_t>(limits.size()) - 1));
          Limit changed = limits[i];
          changed.amount = random.From(1, 2 * changed.amount);
          if (changed.shape == Shape::kConcurrency) changed.amount = limits[i].amount;
          bucket->SetLimit(now, static_cast<int>(i), Limit::Make(changed).value(), 0, debt);
        }
        auto r = std::make_unique<Reservation>();
        if (bucket->TryReserve(now, amounts, /*privileged=*/random.OneIn(5), *r)) continue;
        if (limits[0].shape == Shape::kConcurrency) {
          const std::int64_t here = at_once.fetch_add(1) + 1;
          std::int64_t seen = most_at_once.load();
          while (seen < here && !most_at_once.compare_exchange_weak(seen, here)) {
          }
        }
        if (random.OneIn(50))
          bucket->SetWaiters(
              static_cast<int>(random.From(0, static_cast<std::int64_t>(limits.size()) - 1)));
        if (random.OneIn(20)) bucket->ClearWaiters();
        // One of those who waited may find, when he goes on, that it was given back.
        if (random.OneIn(20)) {
          if (limits[0].shape == Shape::kConcurrency) at_once.fetch_sub(1);
          EXPECT_TRUE(r->Cancel(clock.load()));
          continue;
        }
        r->Begin(clock.load());
        if (random.OneIn(3)) r->Sent(now, random.OneIn(2) ? random.From(0, kMillisecond) : -1);
        if (random.OneIn(3)) r->Answered(clock.load(), random.OneIn(10));
        // Counted out before it ends: the count errs downwards, never upwards.
        if (limits[0].shape == Shape::kConcurrency) at_once.fetch_sub(1);
        for (std::int64_t& a : amounts) a = random.OneIn(4) ? -1 : random.From(0, a + a / 4);
        const std::int64_t end = random.From(0, 3);
        if (end == 0 && r->Cancel(clock.load())) continue;
        if (end == 1) {
          r->Expire(clock.load());
          continue;
        }
        // Put on the shelf; what lay there is ended here, perhaps while its owner still tells of
        // it.
        Reservation* other =
            shelf[static_cast<std::size_t>(random.From(0, 7))].exchange(r.release());
        if (other != nullptr) {
          const std::unique_ptr<Reservation> ended(other);
          ended->Answered(clock.load(), false);
          ended->Settle(clock.load(), amounts);
        }
      }
    });
    for (auto& place : shelf)
      if (const std::unique_ptr<Reservation> left(place.load()); left != nullptr)
        left->Settle(clock.load(), {});
    bucket->ClearWaiters();
    for (std::size_t i = 0; i < limits.size(); ++i)
      bucket->SetLimit(clock.load(), static_cast<int>(i), limits[i], 0, debt);
    const Nanos later = clock.load() + 1'000 * kSecond;
    Amounts full;
    for (std::size_t i = 0; i < limits.size(); ++i) {
      EXPECT_EQ(bucket->Used(static_cast<int>(i), later), 0) << limits[i].Format();
      full.push_back(limits[i].burst_or_amount());
    }
    EXPECT_LE(most_at_once.load(), limits[0].amount);
    Reservation all;
    EXPECT_FALSE(bucket->TryReserve(later, full, false, all)) << "not all of it fits again";
    all.Cancel(later);
    bucket->Unref();
  }
}

TEST(Stress, OneReservationToldOfByManyThreadsEndsOnce) {
  const std::vector<Limit> limits = {Make(Shape::kConcurrency, 1),
                                     Make(Shape::kWindow, 5, kMillisecond)};
  Ignored signal;
  Bucket* bucket = Bucket::Make(limits, std::vector<std::uint8_t>{0, 1}, 0, &signal);
  Nanos now = kNow;
  for (int round = 0; round < 300; ++round) {
    Reservation r;
    ASSERT_FALSE(bucket->TryReserve(now, Amounts{1, 5}, false, r));
    std::atomic<int> ended{0};
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    const auto tell = [&](auto verb) {
      threads.emplace_back([&, verb] {
        ready.fetch_add(1);
        while (ready.load() < 4) std::this_thread::yield();
        ended.fetch_add(verb());
      });
    };
    tell([&] { return r.Sent(now, kMillisecond) ? 0 : 0; });
    tell([&] { return r.Answered(now + 1, false) ? 0 : 0; });
    tell([&] { return r.Settle(now + 1, Amounts{1, 2}) ? 1 : 0; });
    tell(
        [&] { return round % 2 == 0 ? (r.Cancel(now + 1) ? 1 : 0) : (r.Expire(now + 1) ? 1 : 0); });
    for (std::thread& t : threads) t.join();
    ASSERT_EQ(ended.load(), 1);
    ASSERT_EQ(bucket->Used(0, now + 1), 0);
    now += kSecond;
    ASSERT_EQ(bucket->Used(1, now), 0);
  }
  bucket->Unref();
}

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS
// Stops the thread that it is given to at its nth pause point, until it is let go.
struct Hold {
  explicit Hold(int n) : left(n) {}
  static void Hook(void* self) {
    auto& hold = *static_cast<Hold*>(self);
    if (--hold.left != 0) return;
    hold.there.release();
    hold.go.acquire();
  }
  int left;
  bool reached = false;
  std::binary_semaphore there{0};
  std::binary_semaphore go{0};
};

TEST(Stress, AThreadHeldAtAnyPausePointKeepsNobodyElseFromFinishing) {
  for (const std::size_t count : {1, 2}) {
    const std::vector<Limit> limits(count, Make(Shape::kBucket, 1'000));
    std::vector<std::uint8_t> resources;
    for (std::size_t i = 0; i < count; ++i) resources.push_back(static_cast<std::uint8_t>(i));
    const Amounts one(count, 1);
    int points = 0;
    for (bool reached = true; reached;) {
      Ignored signal;
      Bucket* bucket = Bucket::Make(limits, resources, 0, &signal);
      Hold hold(points + 1);
      std::atomic<bool> held{false};
      std::thread held_up([&] {
        thread_pause = {&Hold::Hook, &hold};
        Reservation r;
        EXPECT_FALSE(bucket->TryReserve(kNow, one, false, r));
        EXPECT_TRUE(r.Settle(kNow, Amounts(count, 0)));
        Reservation cancelled;
        EXPECT_FALSE(bucket->TryReserve(kNow, one, false, cancelled));
        EXPECT_TRUE(cancelled.Cancel(kNow));
        thread_pause = {};
        if (hold.left > 0) hold.there.release();
      });
      hold.there.acquire();
      reached = hold.left <= 0;
      // Were the others kept, this would not return.
      for (int i = 0; i < 100; ++i) {
        ASSERT_TRUE(bucket->TryTake(kNow, one));
        Reservation r;
        ASSERT_FALSE(bucket->TryReserve(kNow, one, false, r));
        ASSERT_TRUE(i % 2 == 0 ? r.Settle(kNow, one) : r.Cancel(kNow));
      }
      hold.go.release();
      held_up.join();
      EXPECT_EQ(bucket->Used(0, kNow), 150) << "held at point " << points;
      bucket->Unref();
      if (reached) ++points;
    }
    EXPECT_GE(points, 6);
    std::printf("  %zu limits: held at each of %d pause points\n", count, points);
  }
}
#endif

}  // namespace
}  // namespace headway
