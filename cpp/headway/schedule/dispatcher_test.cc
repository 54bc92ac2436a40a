// headway/schedule/dispatcher_test.cc: the thread with the real clock; every wait ends exactly
// once.
#include "headway/schedule/dispatcher.h"

#include <atomic>
#include <thread>
#include <unordered_map>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "headway/simulate/limits.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;
using Amounts = std::vector<std::int64_t>;

Limit Make(Shape shape, std::int64_t amount, Nanos period = kSecond,
           std::optional<std::int64_t> burst = std::nullopt) {
  return simulate::MakeLimit(shape, amount, period, burst);
}

Bucket* MakeBucket(const std::vector<Limit>& limits) {
  std::vector<std::uint8_t> resources;
  for (std::size_t i = 0; i < limits.size(); ++i) resources.push_back(static_cast<std::uint8_t>(i));
  return Bucket::Make(limits, resources, 0, &Dispatcher::Get().scheduler());
}

// Sleeps until something is in the mailbox, and takes it.
Waiter* Next(Mailbox& mailbox) {
  for (;;) {
    if (Waiter* w = mailbox.Drain(); w != nullptr) return w;
    mailbox.wake().Wait(kNever);
  }
}

// Drops what is in the mailbox: whoever submitted it has looked at it already.
void LetGo(Mailbox& mailbox) {
  for (Waiter* done = mailbox.Drain(); done != nullptr;) {
    Waiter* next = done->next_in_mailbox;
    done->Unref();
    done = next;
  }
}

// One loop's thread: submits, cancels some, and waits until each of the others has come out.
void Live(Bucket* bucket, WakeFd::Kind kind, std::uint64_t seed, std::atomic<int>& running) {
  Random random(seed);
  Scheduler& scheduler = Dispatcher::Get().scheduler();
  auto* mailbox = new Mailbox(kind);
  std::unordered_map<Waiter*, int> out;  // how often each came out of the mailbox
  std::vector<Waiter*> mine;
  std::vector<std::unique_ptr<Reservation>> held;
  std::size_t expected = 0;
  std::size_t seen = 0;
  std::size_t admitted = 0;
  const auto take = [&](Waiter* w) {
    while (w != nullptr) {
      Waiter* next = w->next_in_mailbox;
      ++out[w];
      ++seen;
      ASSERT_NE(w->outcome(), Outcome::kWaiting);
      if (std::unique_ptr<Reservation> r = w->Claim(MonotonicNow())) {
        ASSERT_EQ(w->outcome(), Outcome::kAdmitted);
        ++admitted;
        held.push_back(std::move(r));
      }
      w->Unref();
      w = next;
    }
    // Let some go, so that others may.
    while (held.size() > 2 || (!held.empty() && random.OneIn(2))) {
      const Nanos now = MonotonicNow();
      if (!random.OneIn(3) || !held.back()->Cancel(now)) held.back()->Settle(now, Amounts{1, 0, 1});
      held.pop_back();
    }
  };
  for (int i = 0; i < 3'000; ++i) {
    const Nanos now = MonotonicNow();
    const Nanos deadline = random.OneIn(3) ? now + random.From(0, 30 * kMillisecond) : kNever;
    Waiter* w = scheduler.Submit(bucket, Amounts{1, random.From(0, 3), random.From(0, 1)},
                                 static_cast<std::int32_t>(random.From(0, 2)), now, deadline,
                                 mailbox, nullptr);
    mine.push_back(w);
    ++expected;
    if (random.OneIn(4)) {
      // Cancelled before it came out: then it never does, and the reservation, if any, is given
      // back.
      Waiter* victim = mine[static_cast<std::size_t>(
          random.From(0, static_cast<std::int64_t>(mine.size()) - 1))];
      if (out.count(victim) == 0) {
        const bool waited = victim->outcome() == Outcome::kWaiting;
        scheduler.Cancel(victim, MonotonicNow());
        if (waited && victim->outcome() == Outcome::kCancelled) --expected;
      }
    }
    take(mailbox->Drain());
  }
  running.fetch_sub(1);
  // While units are held here nobody else gets them, so all are let go before sleeping.
  while (seen < expected) {
    for (auto& r : held) r->Settle(MonotonicNow(), {});
    held.clear();
    take(Next(*mailbox));
  }
  for (auto& r : held) r->Settle(MonotonicNow(), {});
  EXPECT_EQ(mailbox->Drain(), nullptr);
  EXPECT_EQ(seen, expected);
  EXPECT_GT(admitted, 0U);
  for (Waiter* w : mine) {
    EXPECT_NE(w->outcome(), Outcome::kWaiting);
    EXPECT_LE(out[w], 1);
    EXPECT_EQ(out[w] == 0, w->outcome() == Outcome::kCancelled);
    w->Unref();
  }
  mailbox->Unref();
}

TEST(Dispatcher, EveryWaitOfSeveralLoopsEndsExactlyOnce) {
  Dispatcher& dispatcher = Dispatcher::Get();
  dispatcher.Start();
  Random shared(Random::Seed(0));
  SCOPED_TRACE(shared.Describe());
  const std::vector<Limit> limits = {Make(Shape::kConcurrency, 16),
                                     Make(Shape::kBucket, 50'000, kSecond, 30),
                                     Make(Shape::kWindow, 2'000, 20 * kMillisecond)};
  Bucket* bucket = MakeBucket(limits);
  std::atomic<int> running{4};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      Live(bucket, i % 2 == 0 ? WakeFd::DefaultKind() : WakeFd::Kind::kSocketPair,
           shared.seed() * 41 + static_cast<std::uint64_t>(i), running);
    });
  // Limits change meanwhile.
  Random random(shared.seed());
  while (running.load() > 0) {
    bucket->SetLimit(MonotonicNow(), 0, Make(Shape::kConcurrency, random.From(8, 16)), 0,
                     Debt::kAbsolute);
    bucket->SetLimit(
        MonotonicNow(), 1,
        Make(Shape::kBucket, random.From(20'000, 100'000), kSecond, random.From(10, 40)), 0,
        Debt::kAbsolute);
    std::this_thread::yield();
  }
  for (std::thread& t : threads) t.join();
  const Nanos now = MonotonicNow();
  EXPECT_EQ(bucket->Used(0, now), 0);
  EXPECT_EQ(dispatcher.scheduler().Depth(*bucket, now), 0U);
  const Nanos later = now + 3600 * kSecond;
  EXPECT_EQ(bucket->Used(1, later), 0);
  EXPECT_EQ(bucket->Used(2, later), 0);
  bucket->Unref();
}

TEST(Dispatcher, NobodyIsAdmittedBeforeItsInstant) {
  Dispatcher& dispatcher = Dispatcher::Get();
  dispatcher.Start();
  Bucket* bucket = MakeBucket({Make(Shape::kBucket, 1, 5 * kMillisecond)});
  auto* mailbox = new Mailbox;
  std::vector<Waiter*> mine;
  for (int i = 0; i < 10; ++i)
    mine.push_back(dispatcher.scheduler().Submit(bucket, Amounts{1}, 0, MonotonicNow(), kNever,
                                                 mailbox, nullptr));
  std::vector<Nanos> at;
  while (at.size() < mine.size()) {
    for (Waiter* w = Next(*mailbox); w != nullptr;) {
      Waiter* next = w->next_in_mailbox;
      EXPECT_EQ(w, mine[at.size()]);
      EXPECT_LE(w->at(), MonotonicNow());
      at.push_back(w->at());
      if (const auto r = w->Claim(MonotonicNow())) r->Settle(w->at(), {});
      w->Unref();
      w = next;
    }
  }
  for (std::size_t i = 1; i < at.size(); ++i) EXPECT_GE(at[i] - at[i - 1], 5 * kMillisecond);
  for (Waiter* w : mine) w->Unref();
  mailbox->Unref();
  bucket->Unref();
}

// Each submission follows so closely on the last admission that the thread is just going to sleep.
TEST(Dispatcher, ASubmissionWhileItGoesToSleepIsServed) {
  Dispatcher& dispatcher = Dispatcher::Get();
  dispatcher.Start();
  Random random(Random::Seed(0));
  SCOPED_TRACE(random.Describe());
  Bucket* bucket = MakeBucket({Make(Shape::kBucket, 1'000'000'000)});
  auto* mailbox = new Mailbox;
  for (int i = 0; i < 20'000; ++i) {
    Waiter* w = dispatcher.scheduler().Submit(bucket, Amounts{1}, 0, MonotonicNow(), kNever,
                                              mailbox, nullptr);
    const Nanos end = MonotonicNow() + 20 * kSecond;
    while (w->outcome() == Outcome::kWaiting) {
      ASSERT_LT(MonotonicNow(), end) << "submission " << i << " is not served";
      std::this_thread::yield();
    }
    if (const auto r = w->Claim(MonotonicNow())) r->Expire(MonotonicNow());
    w->Unref();
    LetGo(*mailbox);
    for (const Nanos until = MonotonicNow() + random.From(0, 3'000); MonotonicNow() < until;) {
    }
  }
  // Whoever is still on the way into the mailbox comes before the thread is gone.
  dispatcher.Stop();
  LetGo(*mailbox);
  mailbox->Unref();
  bucket->Unref();
}

TEST(Dispatcher, WhatWaitsWhenItStopsGoesOnWhenItStarts) {
  Dispatcher& dispatcher = Dispatcher::Get();
  dispatcher.Stop();
  Bucket* bucket = MakeBucket({Make(Shape::kBucket, 1)});
  auto* mailbox = new Mailbox;
  Waiter* w = dispatcher.scheduler().Submit(bucket, Amounts{1}, 0, MonotonicNow(), kNever, mailbox,
                                            nullptr);
  EXPECT_EQ(mailbox->Drain(), nullptr);
  dispatcher.Start();
  dispatcher.Start();
  EXPECT_EQ(Next(*mailbox), w);
  EXPECT_EQ(w->outcome(), Outcome::kAdmitted);
  w->Unref();
  w->Unref();
  mailbox->Unref();
  bucket->Unref();
  dispatcher.Stop();
  dispatcher.Stop();
}

#if !defined(__SANITIZE_THREAD__)  // which does not follow a process with threads through a fork
TEST(Dispatcher, AForkedChildIsEmptyAndWorksWhenItIsStarted) {
  Dispatcher& dispatcher = Dispatcher::Get();
  dispatcher.Start();
  Bucket* bucket = MakeBucket({Make(Shape::kBucket, 1, 3600 * kSecond)});
  auto* mailbox = new Mailbox;
  const Nanos now = MonotonicNow();
  // Its thread runs by now: as it begins, it holds locks of a sanitizer's allocator, which lets no
  // child of a fork have them.
  Waiter* first =
      dispatcher.scheduler().Submit(bucket, Amounts{1}, 0, now, kNever, mailbox, nullptr);
  ASSERT_EQ(Next(*mailbox), first);
  first->Claim(now);
  first->Unref();
  first->Unref();
  Waiter* w = dispatcher.scheduler().Submit(bucket, Amounts{1}, 0, now, kNever, mailbox, nullptr);
  const unsigned generation = Dispatcher::ForkGeneration();
  dispatcher.BeforeFork();
  const pid_t child = ::fork();
  if (child == 0) {
    dispatcher.AfterForkInChild();
    const auto fail = [](int code) { ::_exit(code); };
    if (Dispatcher::ForkGeneration() != generation + 1) fail(2);
    if (w->outcome() != Outcome::kStopped) fail(3);
    if (dispatcher.scheduler().Depth(*bucket, now) != 0) fail(4);
    auto* own = new Mailbox;
    Bucket* fresh = MakeBucket({Make(Shape::kBucket, 1)});
    Waiter* later =
        dispatcher.scheduler().Submit(fresh, Amounts{1}, 0, MonotonicNow(), kNever, own, nullptr);
    dispatcher.Start();
    if (Next(*own) != later || later->outcome() != Outcome::kAdmitted) fail(5);
    fail(0);
  }
  dispatcher.AfterForkInParent();
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(w->outcome(), Outcome::kWaiting) << "the parent's wait is its own";
  dispatcher.scheduler().Cancel(w, now);
  w->Unref();
  dispatcher.Stop();
  // Nothing drives it now; this takes the cancelled one in.
  EXPECT_EQ(dispatcher.scheduler().Depth(*bucket, now), 0U);
  mailbox->Unref();
  bucket->Unref();
}
#endif

TEST(WakeFd, StaysReadableFromTheSignalUntilItIsCleared) {
  for (const WakeFd::Kind kind : {WakeFd::DefaultKind(), WakeFd::Kind::kSocketPair}) {
    WakeFd wake(kind);
    EXPECT_EQ(wake.Wait(MonotonicNow()), WakeFd::Wake::kTimedOut);
    for (int i = 0; i < 100'000; ++i) wake.Signal();  // more than a socket's buffer holds
    EXPECT_EQ(wake.Wait(kNever), WakeFd::Wake::kSignalled);
    EXPECT_EQ(wake.Wait(MonotonicNow()), WakeFd::Wake::kSignalled);
    wake.Clear();
    EXPECT_EQ(wake.Wait(MonotonicNow()), WakeFd::Wake::kTimedOut);
    const Nanos until = MonotonicNow() + 3 * kMillisecond;
    EXPECT_EQ(wake.Wait(until), WakeFd::Wake::kTimedOut);
    EXPECT_GE(MonotonicNow(), until);
  }
}

}  // namespace
}  // namespace headway
