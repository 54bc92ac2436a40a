// headway/schedule/account_test.cc: accounts, gates and cooling, on a virtual clock.
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "headway/schedule/scheduler.h"
#include "headway/simulate/memory.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;
using Amounts = std::vector<std::int64_t>;

constexpr Nanos kStart = 1'000 * kSecond;
constexpr std::uint8_t kRequests = 0;
constexpr std::uint8_t kTokens = 1;
constexpr std::uint8_t kConcurrent = 2;

Limit Read(const char* text) { return Limit::Parse(text).value(); }

// A scheduler, a gate, and any number of buckets and accounts; served as the dispatcher does it.
class Exchange {
 public:
  explicit Exchange(std::int64_t at_once = 1'000'000) { gate = MakeGate(at_once); }
  ~Exchange() {
    running.clear();
    for (Waiter* w : waiters_) w->Unref();
    scheduler.Forget();
    Drain();
    for (const auto& [key, path] : paths_) path->Unref();
    for (Account* a : accounts_) a->Unref();
    for (Bucket* b : buckets_) b->Unref();
    mailbox->Unref();
  }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  Bucket* MakeGate(std::int64_t at_once) {
    Limit limit;
    limit.amount = at_once;
    limit.resource = "concurrency";
    limit.shape = Shape::kConcurrency;
    const std::uint8_t resource = kConcurrent;
    buckets_.push_back(Bucket::Make({&limit, 1}, {&resource, 1}, 0, &scheduler));
    return buckets_.back();
  }
  Bucket* MakeBucket(const std::vector<const char*>& texts) {
    std::vector<Limit> limits;
    std::vector<std::uint8_t> resources;
    for (const char* text : texts) {
      limits.push_back(Read(text));
      resources.push_back(limits.back().resource == "requests" ? kRequests
                          : limits.back().resource == "tokens" ? kTokens
                                                               : kConcurrent);
    }
    buckets_.push_back(Bucket::Make(limits, resources, 0, &scheduler));
    return buckets_.back();
  }
  Account* MakeAccount(double weight, const std::vector<const char*>& limits = {}) {
    accounts_.push_back(new Account(weight, limits.empty() ? nullptr : MakeBucket(limits)));
    return accounts_.back();
  }

  const Path* PathOf(Bucket* bucket, Account* account, Bucket* through) {
    const Path*& path = paths_[{bucket, account, through}];
    if (path == nullptr) path = new Path(bucket, through, account);
    return path;
  }

  Waiter* Submit(Nanos now, Bucket* bucket, Account* account, std::int64_t tokens,
                 std::int32_t priority = 0, Nanos deadline = kNever) {
    return SubmitThrough(gate, now, bucket, account, tokens, priority, deadline);
  }
  Waiter* SubmitThrough(Bucket* through, Nanos now, Bucket* bucket, Account* account,
                        std::int64_t tokens, std::int32_t priority = 0, Nanos deadline = kNever) {
    const Path* path = PathOf(bucket, account, through);
    const Amounts amounts = {1, tokens, 1};
    waiters_.push_back(scheduler.Submit(path, amounts, priority, now, deadline, mailbox, nullptr));
    return waiters_.back();
  }

  // Who is admitted, in that order. Their reservations are in `running`.
  std::vector<Waiter*> Serve(Nanos now) {
    std::vector<Waiter*> out;
    for (int looks = 0; woken || next <= now || scheduler.HasWork(); ++looks) {
      if (looks > 10'000) {
        ADD_FAILURE() << "asks to be looked at again, for ever";
        break;
      }
      woken = false;
      next = scheduler.Advance(now);
      for (Waiter* w : Drain()) {
        if (w->outcome() != Outcome::kAdmitted) continue;
        out.push_back(w);
        running[w] = w->Claim(now);
      }
    }
    return out;
  }

  void End(Waiter* w, Nanos now) {
    EXPECT_TRUE(running.at(w)->Settle(now, {}));
    running.erase(w);
  }

  using Served = std::map<const Account*, int>;

  // From `now` until `end`; each call is over at once. Who was admitted how often.
  Served ServeUntil(Nanos& now, Nanos end) {
    Served served;
    while (now <= end) {
      for (Waiter* w : Serve(now)) {
        ++served[w->path()->account()];
        End(w, now);
      }
      if (!woken && next > now) now = next;
    }
    now = end;
    return served;
  }

  // The next `places` at the gate, one a millisecond, as calls end one by one.
  Served GivePlaces(Nanos& now, int places) {
    Served served;
    for (int i = 0; i < places; ++i) {
      now += kMillisecond;
      End(running.begin()->first, now);
      for (Waiter* w : Serve(now)) ++served[w->path()->account()];
    }
    return served;
  }
  // How many places are given before it has one; `most` where it has none by then.
  int PlacesUntil(const Waiter* w, Nanos& now, int most) {
    int places = 0;
    for (; places < most && w->outcome() == Outcome::kWaiting; ++places) GivePlaces(now, 1);
    return places;
  }

 private:
  std::vector<Waiter*> Drain() {
    std::vector<Waiter*> out;
    for (Waiter* w = mailbox->Drain(); w != nullptr;) {
      Waiter* following = w->next_in_mailbox;
      out.push_back(w);
      w->Unref();
      w = following;
    }
    return out;
  }

  std::vector<Waiter*> waiters_;
  std::vector<Account*> accounts_;
  std::vector<Bucket*> buckets_;
  std::map<std::tuple<Bucket*, Account*, Bucket*>, const Path*> paths_;

 public:
  bool woken = false;
  Nanos next = kNever;
  Scheduler scheduler{[this] { woken = true; }};
  Bucket* gate = nullptr;
  Mailbox* mailbox = new Mailbox;
  std::map<Waiter*, std::unique_ptr<Reservation>> running;
};

double Jain(const std::vector<double>& shares) {
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  double squares = 0;
  for (const double s : shares) squares += s * s;
  return sum * sum / (static_cast<double>(shares.size()) * squares);
}

TEST(Accounts, AreServedByWeightOnWhatTheyNeedMostOf) {
  for (std::uint64_t run = 0; run < 10; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    Exchange x;
    // Some need many tokens, some many requests: each is measured by the one it needs most of.
    Bucket* bucket =
        x.MakeBucket({"1000 requests/s bucket burst 10", "100_000 tokens/s bucket burst 2_000"});
    struct Mine {
      Account* account;
      double weight;
      std::int64_t least;
      std::int64_t most;
      double served = 0;
    };
    std::vector<Mine> accounts;
    std::map<Waiter*, std::pair<std::size_t, double>> whose;
    for (int i = 0; i < 6; ++i) {
      const double weight = static_cast<double>(random.From(1, 8)) / 2;
      const std::int64_t most = random.OneIn(2) ? 50 : 2'000;
      accounts.push_back({x.MakeAccount(weight), weight, most / 10, most});
    }
    // In any order, and never without some who wait.
    Nanos now = kStart;
    const auto submit = [&](std::size_t i) {
      const std::int64_t tokens = random.From(accounts[i].least, accounts[i].most);
      whose[x.Submit(now, bucket, accounts[i].account, tokens)] = {
          i, std::max(1.0 / 1'000, static_cast<double>(tokens) / 100'000)};
    };
    for (int n = 0; n < 120; ++n) submit(static_cast<std::size_t>(random.From(0, 2)));
    for (std::size_t i = 0; i < 6; ++i) submit(i);
    for (int n = 0; n < 120; ++n) submit(static_cast<std::size_t>(random.From(3, 5)));
    while (now < kStart + 40 * kSecond) {
      for (Waiter* w : x.Serve(now)) {
        const auto [i, cost] = whose.at(w);
        accounts[i].served += cost;
        x.End(w, now);
        submit(i);
      }
      if (!x.woken) now = x.next;
    }
    std::vector<double> shares;
    for (const Mine& mine : accounts) shares.push_back(mine.served / mine.weight);
    EXPECT_GE(Jain(shares), 0.99);
    // No two are further apart than the largest request of each.
    for (const Mine& one : accounts)
      for (const Mine& other : accounts)
        EXPECT_LE(one.served / one.weight - other.served / other.weight,
                  static_cast<double>(one.most) / 100'000 / one.weight +
                      static_cast<double>(other.most) / 100'000 / other.weight + 0.004);
  }
}

TEST(Accounts, AFloodCostsAnotherOneRequestOfItsOwnAtMost) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"100_000 tokens/min bucket burst 5_000"});
  Account* flood = x.MakeAccount(1);
  Account* light = x.MakeAccount(1);
  for (int i = 0; i < 50'000; ++i) x.Submit(kStart, bucket, flood, 5'000 - i % 7);
  x.Serve(kStart);
  // The flood's largest takes 3 s to be paid for; the light one's own 60 ms.
  Nanos now = kStart;
  for (int i = 0; i < 60; ++i) {
    now += kSecond;
    Nanos at = now;
    Waiter* w = x.Submit(at, bucket, light, 100);
    x.Serve(at);
    while (w->outcome() == Outcome::kWaiting) {
      at = x.next;
      x.Serve(at);
    }
    EXPECT_LE(w->at() - w->submitted(), 3 * kSecond + 60 * kMillisecond + kMillisecond);
    now = std::max(now, at);
  }
}

TEST(Accounts, AreFirstInFirstOutEach) {
  Random random(Random::Seed(0));
  SCOPED_TRACE(random.Describe());
  Exchange x;
  Bucket* bucket = x.MakeBucket({"10 requests/s bucket burst 1", "1_000 tokens/s bucket"});
  std::vector<Account*> accounts;
  for (int i = 0; i < 5; ++i) accounts.push_back(x.MakeAccount(1 + i));
  std::map<Account*, std::vector<Waiter*>> submitted;
  std::map<Waiter*, Account*> whose;
  std::map<Account*, std::vector<Waiter*>> admitted;
  Nanos now = kStart;
  for (int i = 0; i < 600; ++i) {
    Account* a = accounts[static_cast<std::size_t>(random.From(0, 4))];
    Waiter* w = x.Submit(now, bucket, a, random.From(0, 300));
    submitted[a].push_back(w);
    whose[w] = a;
    if (random.OneIn(3)) now += random.From(0, 100 * kMillisecond);
    for (Waiter* done : x.Serve(now)) admitted[whose[done]].push_back(done);
  }
  while (x.next < kNever) {
    now = x.next;
    for (Waiter* done : x.Serve(now)) admitted[whose[done]].push_back(done);
  }
  // What asks tokens may be passed by what asks none of them, and by nothing else.
  for (Account* a : accounts) {
    for (const bool asks_tokens : {false, true}) {
      std::vector<Waiter*> in;
      std::vector<Waiter*> out;
      for (Waiter* w : submitted[a])
        if ((w->amounts()[kTokens] > 0) == asks_tokens) in.push_back(w);
      for (Waiter* w : admitted[a])
        if ((w->amounts()[kTokens] > 0) == asks_tokens) out.push_back(w);
      EXPECT_EQ(in, out);
    }
  }
}

TEST(Accounts, BorrowWhatOthersLeaveIdle) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* one = x.MakeAccount(1);
  x.MakeAccount(1'000);
  for (int i = 0; i < 20; ++i) x.Submit(kStart, bucket, one, 0);
  std::size_t admitted = x.Serve(kStart).size();
  for (Nanos now = kStart; now < kStart + kSecond; now = x.next) admitted += x.Serve(now).size();
  EXPECT_EQ(admitted, 10U);
}

TEST(Accounts, CarryNoDebtOverIdleTime) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* early = x.MakeAccount(1);
  Account* late = x.MakeAccount(1);
  std::map<Waiter*, Account*> whose;
  // The first has been served alone for ten seconds, though others waited in between.
  for (int i = 0; i < 200; ++i) whose[x.Submit(kStart, bucket, early, 0)] = early;
  Nanos now = kStart;
  x.Serve(now);
  while (now < kStart + 10 * kSecond) {
    now = x.next;
    x.Serve(now);
  }
  for (int i = 0; i < 50; ++i) whose[x.Submit(now, bucket, late, 0)] = late;
  std::map<Account*, int> served;
  for (int i = 0; i < 20; ++i) {
    now = x.next;
    for (Waiter* w : x.Serve(now)) ++served[whose.at(w)];
  }
  EXPECT_NEAR(served[early], served[late], 1);
}

TEST(Accounts, ThatComeOneByOneAreForgottenAgain) {
  for (const bool steady : {false, true}) {
    Exchange x;
    Bucket* const bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
    Account* const always = x.MakeAccount(1);
    Nanos now = kStart;
    std::set<Waiter*> ours;
    const auto one = [&] {
      auto* account = new Account(1);
      auto* path = new Path(bucket, x.gate, account);
      account->Unref();
      ours.insert(x.scheduler.Submit(path, Amounts{1, 0, 1}, 0, now, kNever, x.mailbox, nullptr));
      path->Unref();
    };
    for (int i = 0; i < 3; ++i) one();
    for (int i = 0; steady && i < 10'000; ++i) x.Submit(now, bucket, always, 0);
    x.Serve(now);
    std::size_t before = 0;
    for (int i = 0; i < 12'000; ++i) {
      if (i == 2'000) before = simulate::AllocatedBytes();
      one();
      now = std::max(now, x.next) + kSecond / 10;
      for (Waiter* w : x.Serve(now)) {
        x.End(w, now);
        if (ours.erase(w) != 0) w->Unref();
      }
    }
    EXPECT_LE(simulate::AllocatedBytes(), before + 10'000 * 20U) << steady;
    for (Waiter* w : ours) w->Unref();
  }
}

// An account that is gone leaves a place in memory, which the next one may take.
TEST(Accounts, OfAGoneOneNothingIsTakenOver) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"100 requests/s bucket burst 1"});
  const Amounts amounts = {1, 0, 0};
  Nanos now = kStart;
  // Of nobody's account, so that the shares of their priority do not go.
  std::set<Waiter*> stay;
  for (int i = 0; i < 2; ++i) stay.insert(x.Submit(now, bucket, nullptr, 0, 1));
  for (int round = 0; round < 20; ++round) {
    auto* gone = new Account(1);
    auto* path = new Path(bucket, x.gate, gone);
    gone->Unref();
    std::vector<Waiter*> of_gone;
    for (int i = 0; i < 3; ++i)
      of_gone.push_back(x.scheduler.Submit(path, amounts, 1, now, kNever, x.mailbox, nullptr));
    path->Unref();
    const auto serve = [&] {
      for (Waiter* w : x.Serve(now)) {
        if (stay.erase(w) != 0) stay.insert(x.Submit(now, bucket, nullptr, 0, 1));
        x.End(w, now);
      }
      if (!x.woken && x.next != kNever) now = std::max(now, x.next);
    };
    for (int i = 0; i < 10; ++i) serve();
    for (Waiter* w : of_gone) w->Unref();

    Account* heavy = x.MakeAccount(9);
    Account* light = x.MakeAccount(1);
    std::vector<Waiter*> of_heavy;
    for (int i = 0; i < 40; ++i) {
      of_heavy.push_back(x.Submit(now, bucket, heavy, 0, 1));
      x.Submit(now, bucket, light, 0, 1);
    }
    for (int i = 0; i < 40; ++i) serve();
    EXPECT_GE(std::count_if(of_heavy.begin(), of_heavy.end(),
                            [](Waiter* w) { return w->outcome() == Outcome::kAdmitted; }),
              30);
    for (int i = 0; i < 120; ++i) serve();
  }
}

TEST(Accounts, TheirOwnLimitsHoldOverAllBucketsAndHoldUpNobodyElse) {
  Exchange x;
  Bucket* left = x.MakeBucket({"1_000 requests/s bucket"});
  Bucket* right = x.MakeBucket({"1_000 requests/s bucket"});
  Account* limited = x.MakeAccount(1, {"2 requests/s bucket burst 2", "3 concurrency"});
  Account* free = x.MakeAccount(1);
  std::vector<Waiter*> mine;
  std::vector<Waiter*> others;
  for (int i = 0; i < 8; ++i) {
    mine.push_back(x.Submit(kStart, i % 2 == 0 ? left : right, limited, 10));
    others.push_back(x.Submit(kStart, i % 2 == 0 ? left : right, free, 10));
  }
  const auto over = [&](const std::vector<Waiter*>& those) {
    return std::count_if(those.begin(), those.end(),
                         [](Waiter* w) { return w->outcome() == Outcome::kAdmitted; });
  };
  x.Serve(kStart);
  EXPECT_EQ(over(others), 8);
  EXPECT_EQ(over(mine), 2);
  // A third by its rate after half a second; then its concurrency holds, whatever the rate.
  EXPECT_EQ(x.Serve(kStart + kSecond / 2).size(), 1U);
  EXPECT_EQ(x.Serve(kStart + 5 * kSecond).size(), 0U);
  EXPECT_EQ(x.next, kNever) << "only an answer can tell";
  Waiter* some = nullptr;
  for (Waiter* w : mine)
    if (w->outcome() == Outcome::kAdmitted) some = w;
  x.End(some, kStart + 6 * kSecond);
  EXPECT_TRUE(x.woken);
  EXPECT_EQ(x.Serve(kStart + 6 * kSecond).size(), 1U);
  // Whoever gives up while he is held up leaves nothing behind.
  for (Waiter* w : mine) x.scheduler.Cancel(w, kStart + 7 * kSecond);
  EXPECT_TRUE(x.Serve(kStart + 7 * kSecond).empty());
  EXPECT_EQ(x.scheduler.Depth(*left, kStart + 7 * kSecond), 0U);
  EXPECT_EQ(x.scheduler.Depth(*right, kStart + 7 * kSecond), 0U);
}

TEST(Accounts, HeldUpInSeveralBucketsTheyGoInTheOrderInWhichTheyCame) {
  Exchange x;
  std::vector<Bucket*> buckets;
  for (int i = 0; i < 4; ++i) buckets.push_back(x.MakeBucket({"1_000 requests/s bucket"}));
  Account* limited = x.MakeAccount(1, {"1 requests/s bucket burst 1"});
  x.Submit(kStart, buckets[0], limited, 0);
  x.Serve(kStart);
  std::vector<Waiter*> submitted;
  for (int i = 0; i < 24; ++i)
    submitted.push_back(x.Submit(kStart + i, buckets[static_cast<std::size_t>(i % 4)], limited, 0));
  Waiter* urgent = x.Submit(kStart + kMillisecond, buckets[2], limited, 0, 5);
  submitted.insert(submitted.begin(), urgent);
  std::vector<Waiter*> admitted = x.Serve(kStart + kMillisecond);
  for (int i = 1; i <= 25; ++i)
    for (Waiter* w : x.Serve(kStart + i * kSecond)) admitted.push_back(w);
  EXPECT_EQ(admitted, submitted);
}

TEST(Accounts, WhoeverComesNextIsTriedWhenTheHeadThatWasHeldUpGivesUp) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1_000_000 tokens/s bucket"});
  Account* limited = x.MakeAccount(1, {"1_000 tokens/min bucket"});
  x.Submit(kStart, bucket, limited, 500);
  x.Serve(kStart);
  Waiter* large = x.Submit(kStart, bucket, limited, 900);
  Waiter* late = x.Submit(kStart, bucket, limited, 901, 0, kStart + kSecond * 100);
  Waiter* small = x.Submit(kStart, bucket, limited, 100);
  EXPECT_TRUE(x.Serve(kStart).empty());
  x.scheduler.Cancel(large, kStart);
  EXPECT_TRUE(x.Serve(kStart).empty());
  // Neither when it is cancelled nor when its time is over.
  EXPECT_EQ(late->outcome(), Outcome::kWaiting);
  x.scheduler.Cancel(late, kStart);
  EXPECT_EQ(x.Serve(kStart), std::vector<Waiter*>{small});
}

TEST(Accounts, AreOwedNothingForTheTimeInWhichTheirOwnLimitsHeldThemUp) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1 requests/s bucket burst 1"});
  Account* limited = x.MakeAccount(1, {"50 requests/300s fixed"});
  Account* free = x.MakeAccount(1);
  std::map<Waiter*, Account*> whose;
  for (int i = 0; i < 400; ++i) {
    whose[x.Submit(kStart, bucket, limited, 0)] = limited;
    whose[x.Submit(kStart, bucket, free, 0)] = free;
  }
  Nanos now = kStart;
  std::vector<Account*> order;
  while (order.size() < 400) {
    for (Waiter* w : x.Serve(now)) order.push_back(whose.at(w));
    now = x.next;
  }
  int in_a_row = 0;
  for (std::size_t i = 1; i < order.size(); ++i) {
    in_a_row = order[i] == limited && order[i - 1] == limited ? in_a_row + 1 : 0;
    ASSERT_LE(in_a_row, 2) << "at " << i;
  }
}

TEST(Accounts, WhatAnotherPriorityWasGivenIsNoShareOfThis) {
  Exchange x;
  Bucket* const bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* const steady = x.MakeAccount(1);
  Account* const urgent = x.MakeAccount(0.01);
  Account* const newcomer = x.MakeAccount(1);
  for (int i = 0; i < 2'000; ++i) x.Submit(kStart, bucket, steady, 0);
  for (int i = 0; i < 600; ++i) x.Submit(kStart, bucket, urgent, 0, 10);
  Nanos now = kStart;
  x.ServeUntil(now, kStart + 62 * kSecond);
  for (int i = 0; i < 1'000; ++i) x.Submit(now, bucket, newcomer, 0);
  Exchange::Served served = x.ServeUntil(now, now + 50 * kSecond);
  EXPECT_NEAR(served[steady], served[newcomer], 2);
}

TEST(Accounts, AWaitOfALowPrioritySavesNothingUp) {
  Exchange x;
  Bucket* const bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* const steady = x.MakeAccount(1);
  Account* const saver = x.MakeAccount(1);
  for (int i = 0; i < 2'000; ++i) x.Submit(kStart, bucket, steady, 0);
  x.Submit(kStart, bucket, saver, 0, -100);
  Nanos now = kStart;
  x.ServeUntil(now, kStart + 60 * kSecond);
  for (int i = 0; i < 1'000; ++i) x.Submit(now, bucket, saver, 0);
  Exchange::Served served = x.ServeUntil(now, now + 50 * kSecond);
  EXPECT_NEAR(served[steady], served[saver], 2);
}

TEST(Accounts, WhoHasNoneHasAShareLikeOneOfThem) {
  Exchange x;
  Bucket* const bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* const account = x.MakeAccount(1);
  for (int i = 0; i < 600; ++i) {
    x.Submit(kStart, bucket, account, 0);
    x.Submit(kStart, bucket, nullptr, 0);
  }
  Nanos now = kStart;
  Exchange::Served served = x.ServeUntil(now, kStart + 50 * kSecond);
  EXPECT_NEAR(served[account], served[nullptr], 2);
}

// Each newcomer is owed a request, but so is whoever has been served once.
TEST(Accounts, OneThatWasServedIsNotPassedByNewcomersForEver) {
  Exchange x;
  Bucket* const bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* const old = x.MakeAccount(1);
  Waiter* last = nullptr;
  for (int i = 0; i < 3; ++i) last = x.Submit(kStart, bucket, old, 0);
  Nanos now = kStart;
  x.Serve(now);
  for (int i = 0; i < 3; ++i) x.Submit(now, bucket, x.MakeAccount(1), 0);
  int others = 0;
  for (; others < 100 && last->outcome() == Outcome::kWaiting; ++others) {
    x.Submit(now, bucket, x.MakeAccount(1), 0);
    now = std::max(now, x.next);
    for (Waiter* w : x.Serve(now)) x.End(w, now);
  }
  EXPECT_LE(others, 20);
}

TEST(Accounts, WhatWasQueuedBeforeItsLimitWasKnownCostsWhatItCosts) {
  Exchange x(1);
  Limit unknown = Read("1 requests/min window");
  unknown.amount = Limit::kMaxAmount;
  const std::uint8_t resource = kRequests;
  Bucket* const bucket = Bucket::Make({&unknown, 1}, {&resource, 1}, 0, &x.scheduler);
  Account* const early = x.MakeAccount(1);
  Account* const late = x.MakeAccount(1);
  for (int i = 0; i < 1'001; ++i) x.Submit(kStart, bucket, early, 0);
  x.Serve(kStart);  // one goes, the others wait at the gate
  bucket->SetLimit(kStart, 0, Read("100 requests/min window"), 0, Debt::kAbsolute);
  for (int i = 0; i < 1'000; ++i) x.Submit(kStart, bucket, late, 0);
  Exchange::Served served;
  for (Nanos now = kStart; now < kStart + 600 * kSecond; now += kSecond / 100) {
    while (!x.running.empty()) {
      Waiter* const w = x.running.begin()->first;
      ++served[w->path()->account()];
      x.running.begin()->second->Answered(now, false);
      x.End(w, now);
    }
    x.Serve(now);
  }
  EXPECT_NEAR(served[early], served[late], 3);
  bucket->Unref();
}

TEST(Accounts, ALargeOneIsNotStarvedOnItsOwnLimit) {
  for (const bool elsewhere : {false, true}) {
    Exchange x;
    Bucket* const left = x.MakeBucket({"1_000_000 tokens/s bucket"});
    Bucket* const right = x.MakeBucket({"1_000_000 tokens/s bucket"});
    Account* const account = x.MakeAccount(1, {"1_000 tokens/min bucket"});
    x.Submit(kStart, left, account, 1'000);
    Nanos now = kStart;
    x.ServeUntil(now, kStart);
    Waiter* const large = x.Submit(kStart, left, account, 1'000, 1);
    x.ServeUntil(now, kStart + 2 * kSecond);
    for (int second = 3; second < 60; ++second) {
      x.Submit(now, elsewhere ? right : left, account, 10);  // it would fit, but for the first
      EXPECT_EQ(x.ServeUntil(now, kStart + second * kSecond)[account], 0);
    }
    x.ServeUntil(now, kStart + 62 * kSecond);
    EXPECT_EQ(large->outcome(), Outcome::kAdmitted);
    // And then they go, as fast as the limit allows.
    for (int i = 0; i < 1'000; ++i) x.Submit(now, elsewhere ? right : left, account, 10);
    EXPECT_NEAR(x.ServeUntil(now, now + 60 * kSecond)[account], 100, 4);
  }
}

TEST(Accounts, ThatGiveUpWhileTheHeadIsHeldUpAreForgotten) {
  Exchange x;
  Bucket* const bucket = x.MakeBucket({"1 requests/h bucket burst 1"});
  x.Submit(kStart, bucket, nullptr, 0);
  x.Serve(kStart);
  x.Submit(kStart, bucket, x.MakeAccount(1), 0);
  x.Serve(kStart);
  std::size_t before = 0;
  for (int i = 0; i < 6'000; ++i) {
    if (i == 1'000) before = simulate::AllocatedBytes();
    auto* account = new Account(1);
    auto* path = new Path(bucket, x.gate, account);
    account->Unref();
    Waiter* const w =
        x.scheduler.Submit(path, Amounts{1, 0, 1}, 0, kStart, kNever, x.mailbox, nullptr);
    path->Unref();
    x.Serve(kStart);
    x.scheduler.Cancel(w, kStart);
    w->Unref();
    x.Serve(kStart);
  }
  EXPECT_LE(simulate::AllocatedBytes(), before + 100'000);
}

TEST(Accounts, AnEstimateCountsOthersByTheirWeightOnly) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"10 requests/s bucket burst 1"});
  Account* flood = x.MakeAccount(1);
  Account* light = x.MakeAccount(1);
  for (int i = 0; i < 1'000; ++i) x.Submit(kStart, bucket, flood, 0);
  x.Serve(kStart);
  const Amounts one = {1, 0, 1};
  const Nanos behind =
      x.scheduler.Estimate(*x.PathOf(bucket, flood, x.gate), kStart, 0, one).denial.ready_at;
  const Nanos beside =
      x.scheduler.Estimate(*x.PathOf(bucket, light, x.gate), kStart, 0, one).denial.ready_at;
  EXPECT_EQ(behind, kStart + 100 * kSecond);
  EXPECT_LE(beside, kStart + kSecond / 5);
  // So a deadline that the flood could not meet is met.
  Waiter* w = x.Submit(kStart, bucket, light, 0, 0, kStart + kSecond / 2);
  x.Serve(kStart);
  while (w->outcome() == Outcome::kWaiting) x.Serve(x.next);
  EXPECT_EQ(w->outcome(), Outcome::kAdmitted);
  EXPECT_LE(w->at(), kStart + kSecond / 5);
}

TEST(Gate, AdmitsNoMoreAtOnceThanItSaysAndAlwaysThatMany) {
  for (std::uint64_t run = 0; run < 60; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const std::int64_t at_once = random.From(1, 6);
    Exchange x(at_once);
    std::vector<Bucket*> buckets;
    for (int i = 0; i < 4; ++i)
      buckets.push_back(x.MakeBucket(i == 0
                                         ? std::vector<const char*>{"5 requests/s bucket burst 2"}
                                         : std::vector<const char*>{"1_000 concurrency"}));
    std::vector<Account*> accounts = {x.MakeAccount(1), x.MakeAccount(3),
                                      x.MakeAccount(1, {"2 concurrency"})};
    std::vector<Waiter*> all;
    Nanos now = kStart;
    std::size_t admitted = 0;
    std::size_t cancelled = 0;
    for (int event = 0; event < 400; ++event) {
      if (random.From(0, 9) < 6) {
        all.push_back(x.Submit(now, buckets[static_cast<std::size_t>(random.From(0, 3))],
                               accounts[static_cast<std::size_t>(random.From(0, 2))],
                               random.From(0, 50), static_cast<std::int32_t>(random.From(0, 2))));
      } else if (random.OneIn(5) && !all.empty()) {
        Waiter* w = all[static_cast<std::size_t>(
            random.From(0, static_cast<std::int64_t>(all.size()) - 1))];
        if (w->outcome() == Outcome::kWaiting) ++cancelled;
        if (x.running.count(w) == 0) x.scheduler.Cancel(w, now);
      } else if (!x.running.empty()) {
        auto it = x.running.begin();
        std::advance(it, random.From(0, static_cast<std::int64_t>(x.running.size()) - 1));
        x.End(it->first, now);
      }
      if (random.OneIn(3)) now += random.From(0, kSecond);
      admitted += x.Serve(now).size();
      ASSERT_LE(x.running.size(), static_cast<std::size_t>(at_once));
      ASSERT_EQ(x.gate->Used(0, now), static_cast<std::int64_t>(x.running.size()));
      // With room at the gate, nobody waits in a bucket that would take him, unless his account
      // is at its own limit.
      if (x.running.size() == static_cast<std::size_t>(at_once)) continue;
      std::size_t of_limited = 0;
      for (const auto& [w, r] : x.running)
        of_limited += w->path()->account() == accounts[2] ? 1 : 0;
      for (Waiter* w : all) {
        if (w->outcome() != Outcome::kWaiting || w->bucket() == buckets[0]) continue;
        ASSERT_EQ(w->path()->account(), accounts[2]) << "idle, though somebody waits";
        ASSERT_EQ(of_limited, 2U) << "idle, though somebody waits";
      }
    }
    // Everybody gets through in the end.
    for (int i = 0; i < 5'000 && admitted + cancelled < all.size(); ++i) {
      for (auto it = x.running.begin(); it != x.running.end(); it = x.running.begin())
        x.End(it->first, now);
      now = x.next == kNever ? now + kSecond : std::max(now, x.next);
      admitted += x.Serve(now).size();
    }
    EXPECT_EQ(admitted + cancelled, all.size());
    while (!x.running.empty()) x.End(x.running.begin()->first, now);
    x.Serve(now);
    EXPECT_EQ(x.gate->Used(0, now), 0);
    EXPECT_FALSE(x.gate->has_waiters()) << "the fast path would stay shut";
  }
}

// Several gates to the same buckets, as of schedulers that share them; accounts with limits of
// their own, and somebody else who decides at one of the gates.
void StormAtSeveralGates(Random& random) {
  Exchange x;
  std::vector<Bucket*> gates;
  std::vector<std::int64_t> room;
  for (int i = 0; i < 3; ++i) {
    room.push_back(random.From(1, 4));
    gates.push_back(x.MakeGate(room.back()));
  }
  const std::vector<Bucket*> buckets = {
      x.MakeBucket(
          {"3 concurrency", "5 requests/s bucket burst 3", "100 tokens/s bucket burst 50"}),
      x.MakeBucket({"4 requests/10s window", "100 tokens/s bucket"}),
      x.MakeBucket({"1_000 concurrency", "30 tokens/s bucket burst 40"})};
  const std::vector<Account*> accounts = {nullptr, x.MakeAccount(1), x.MakeAccount(3),
                                          x.MakeAccount(1, {"2 requests/s bucket burst 2"}),
                                          x.MakeAccount(2, {"40 tokens/5s bucket burst 40"})};
  const auto any = [&random](const auto& of) {
    return of[static_cast<std::size_t>(random.From(0, static_cast<std::int64_t>(of.size()) - 1))];
  };
  bool asked = false;
  if (random.OneIn(2))
    x.scheduler.SetChooser(
        *gates[0], [&asked] { asked = true; }, kSecond);
  std::vector<Waiter*> all;
  Nanos now = kStart;
  const auto serve = [&] {
    x.Serve(now);
    if (std::exchange(asked, false) && !random.OneIn(4)) {
      const auto contenders = x.scheduler.Contenders(*gates[0], now);
      if (!contenders.empty()) x.scheduler.Choose(*gates[0], *any(contenders).bucket, now);
      x.Serve(now);
    }
    std::map<const Bucket*, std::int64_t> inside;
    for (const auto& [w, r] : x.running) ++inside[w->path()->gate()];
    for (std::size_t g = 0; g < gates.size(); ++g) {
      ASSERT_LE(inside[gates[g]], room[g]);
      ASSERT_EQ(gates[g]->Used(0, now), inside[gates[g]]);
    }
  };
  const auto end_one = [&] {
    auto it = x.running.begin();
    std::advance(it, random.From(0, static_cast<std::int64_t>(x.running.size()) - 1));
    it->second->Answered(now, false);
    x.End(it->first, now);
  };
  for (int event = 0; event < 400; ++event) {
    now += random.OneIn(3) ? random.From(0, 2 * kSecond) : 0;
    const std::int64_t what = random.From(0, 19);
    if (what < 11) {
      const Nanos deadline = random.OneIn(6) ? now + random.From(0, 20 * kSecond) : kNever;
      const std::int64_t tokens = random.OneIn(2) ? 0 : random.From(1, 35);
      all.push_back(x.SubmitThrough(any(gates), now, any(buckets), any(accounts), tokens,
                                    static_cast<std::int32_t>(random.From(0, 3)), deadline));
    } else if (what < 13 && !all.empty()) {
      Waiter* w = any(all);
      if (x.running.count(w) == 0) x.scheduler.Cancel(w, now);
    } else if (what == 13) {
      any(buckets)->Cool(now + random.From(0, kSecond));
    } else if (what == 14) {
      buckets[0]->SetLimit(
          now, 2,
          Read(random.OneIn(2) ? "100 tokens/s bucket burst 50" : "60 tokens/s bucket burst 45"), 0,
          Debt::kAbsolute);
    } else if (what == 15) {
      if (random.OneIn(3)) x.scheduler.DropOldest(*any(buckets), any(gates), now);
    } else if (!x.running.empty()) {
      end_one();
    }
    ASSERT_NO_FATAL_FAILURE(serve());
  }
  const auto waiting = [&all] {
    return std::count_if(all.begin(), all.end(),
                         [](Waiter* w) { return w->outcome() == Outcome::kWaiting; });
  };
  for (int i = 0; i < 5'000 && waiting() > 0; ++i) {
    while (!x.running.empty()) end_one();
    ASSERT_NO_FATAL_FAILURE(serve());
    if (x.running.empty() && x.next != kNever) now = std::max(now, x.next);
  }
  ASSERT_EQ(waiting(), 0) << "somebody waits for ever";
  while (!x.running.empty()) end_one();
  now += 100 * kSecond;
  x.Serve(now);
  for (Bucket* gate : gates) {
    EXPECT_EQ(gate->Used(0, now), 0);
    EXPECT_FALSE(gate->has_waiters());
  }
  for (Bucket* bucket : buckets) {
    EXPECT_EQ(bucket->Used(0, now), 0);
    EXPECT_FALSE(bucket->has_waiters());
  }
}

TEST(Gates, InAStormEverybodyGetsThroughAndNoneIsEverTooFull) {
  for (std::uint64_t run = 0; run < 100; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(StormAtSeveralGates(random));
  }
}

TEST(Gates, WhoIsChosenGoesThoughSomebodyOfAnotherGateGoesBeforeHim) {
  Exchange x(1);
  x.scheduler.SetChooser(*x.gate, [] {});
  Bucket* const left = x.MakeBucket({"1 requests/s bucket burst 2"});
  Bucket* const right = x.MakeBucket({"1 requests/s bucket burst 2"});
  Bucket* const wide = x.MakeGate(9);
  Waiter* const running = x.Submit(kStart, x.MakeBucket({"9 concurrency"}), nullptr, 0);
  x.Serve(kStart);
  Waiter* const chosen = x.Submit(kStart, left, nullptr, 0);
  x.Submit(kStart, right, nullptr, 0);
  x.Serve(kStart);
  x.End(running, kStart + 1);
  x.Serve(kStart + 1);
  ASSERT_EQ(x.scheduler.Contenders(*x.gate, kStart + 1).size(), 2U);
  // An urgent one is in the intake when the choice is made.
  Waiter* const urgent = x.SubmitThrough(wide, kStart + 1, left, nullptr, 0, 5);
  ASSERT_TRUE(x.scheduler.Contenders(*x.gate, kStart + 1).size() == 2U);
  ASSERT_TRUE(x.scheduler.Choose(*x.gate, *left, kStart + 1));
  x.Serve(kStart + 1);
  EXPECT_EQ(urgent->outcome(), Outcome::kAdmitted);
  EXPECT_EQ(chosen->outcome(), Outcome::kAdmitted);
}

TEST(Gates, OfPrioritiesAndAccountsThatComeAndGoNothingIsKept) {
  Exchange x(1);
  Bucket* const shared = x.MakeBucket({"1_000 concurrency"});
  Waiter* const running = x.Submit(kStart, shared, nullptr, 0);
  x.Serve(kStart);
  x.Submit(kStart, shared, nullptr, 0, -1);  // so that the queue stays, and the shares of -1
  x.Serve(kStart);
  const Amounts amounts = {1, 0, 1};
  std::size_t before = 0;
  for (int i = 0; i < 4'000; ++i) {
    if (i == 1'000) before = simulate::AllocatedBytes();
    // Two accounts, every other time in a class of their own, one of which stands at the gate.
    const std::int32_t priority = i % 2 == 0 ? i : -1;
    std::vector<Waiter*> two;
    for (int k = 0; k < 2; ++k) {
      auto* account = new Account(1);
      auto* path = new Path(shared, x.gate, account);
      account->Unref();
      two.push_back(
          x.scheduler.Submit(path, amounts, priority, kStart, kNever, x.mailbox, nullptr));
      path->Unref();
    }
    x.Serve(kStart);
    for (Waiter* w : two) x.scheduler.Cancel(w, kStart);
    x.scheduler.Demand(*shared, kStart, 9);  // looks while it stands there
    x.Serve(kStart);
    for (Waiter* w : two) w->Unref();
  }
  EXPECT_LE(simulate::AllocatedBytes(), before + 20'000);
  EXPECT_EQ(x.scheduler.Depth(*shared, kStart), 1U);
  x.End(running, kStart);
}

TEST(Gates, AnAccountDoesNotWaitBehindTheFloodOfAnotherInAnotherBucket) {
  Exchange x(2);
  Bucket* const left = x.MakeBucket({"1_000 concurrency"});
  Bucket* const right = x.MakeBucket({"1_000 concurrency"});
  Account* const flood = x.MakeAccount(1);
  Account* const light = x.MakeAccount(1);
  for (int i = 0; i < 500; ++i) x.Submit(kStart, left, flood, 0);
  Nanos now = kStart;
  x.Serve(now);
  const auto end_one = [&] {
    x.End(x.running.begin()->first, now);
    x.Serve(now);
  };
  for (int i = 0; i < 20; ++i) {
    now += kSecond;
    end_one();
    Waiter* const w = x.Submit(now, right, light, 0);
    x.Serve(now);
    // Whoever stands at the gate already has its turn before it, at most.
    now += kSecond;
    end_one();
    now += kSecond;
    end_one();
    EXPECT_NE(w->outcome(), Outcome::kWaiting) << i;
  }
}

TEST(Gates, AccountsInDifferentBucketsGetPlacesByWeightAndUrgentOnesGoFirst) {
  Exchange x(3);
  std::vector<Bucket*> buckets;
  std::vector<Account*> accounts;
  for (int i = 0; i < 3; ++i) accounts.push_back(x.MakeAccount(1 << i));
  // The first waits in two buckets, which gives it no more.
  for (int i = 0; i < 4; ++i) buckets.push_back(x.MakeBucket({"1_000 concurrency"}));
  std::map<Waiter*, std::size_t> whose;
  for (std::size_t i = 0; i < 4; ++i)
    for (int n = 0; n < 500; ++n) whose[x.Submit(kStart, buckets[i], accounts[i % 3], 0)] = i % 3;
  std::vector<double> served(3);
  Nanos now = kStart;
  x.Serve(now);
  for (int i = 0; i < 700; ++i) {
    now += kMillisecond;
    x.End(x.running.begin()->first, now);
    for (Waiter* w : x.Serve(now)) ++served[whose.at(w)];
  }
  std::vector<double> shares;
  for (std::size_t i = 0; i < 3; ++i) shares.push_back(served[i] / static_cast<double>(1 << i));
  EXPECT_GE(Jain(shares), 0.999) << served[0] << " " << served[1] << " " << served[2];
  Waiter* const urgent = x.Submit(now, buckets[2], accounts[2], 0, 1);
  x.Serve(now);
  x.End(x.running.begin()->first, now);
  EXPECT_EQ(x.Serve(now), std::vector<Waiter*>{urgent});
}

TEST(Gates, AnAccountGetsNoMorePlacesForWaitingInManyBuckets) {
  Exchange x(1);
  Account* const flood = x.MakeAccount(1);
  Account* const light = x.MakeAccount(1);
  for (int i = 0; i < 50; ++i) {
    Bucket* const bucket = x.MakeBucket({"1_000 concurrency"});
    for (int n = 0; n < 3; ++n) x.Submit(kStart, bucket, flood, 0);
  }
  Bucket* const other = x.MakeBucket({"1_000 concurrency"});
  x.Serve(kStart);
  for (int i = 0; i < 5; ++i) {
    x.End(x.running.begin()->first, kStart + i);
    EXPECT_EQ(x.Serve(kStart + i)[0]->path()->account(), flood);
    Waiter* const w = x.Submit(kStart + i, other, light, 0);
    x.Serve(kStart + i);
    x.End(x.running.begin()->first, kStart + i);
    EXPECT_EQ(x.Serve(kStart + i), std::vector<Waiter*>{w});
  }
}

// Whoever of a class stands at the gate does not stand there for all of it.
TEST(Gates, AnAccountDoesNotWaitBehindAFloodThatIsInItsBucketToo) {
  for (const int buckets : {1, 50}) {
    Exchange x(1);
    Account* const flood = x.MakeAccount(1);
    Account* const steady = x.MakeAccount(1);
    std::vector<Bucket*> flooded;
    for (int i = 0; i < buckets; ++i) {
      flooded.push_back(x.MakeBucket({"1_000 concurrency"}));
      for (int n = 0; n < 20; ++n) x.Submit(kStart + i, flooded.back(), flood, 0);
    }
    Bucket* const other = x.MakeBucket({"1_000 concurrency"});
    for (int i = 0; i < 500; ++i) x.Submit(kStart, other, steady, 0);
    Nanos now = kStart + buckets;
    x.Serve(now);
    x.GivePlaces(now, 3);
    Waiter* const w = x.Submit(now, flooded.back(), x.MakeAccount(1), 0);
    x.Serve(now);
    EXPECT_LE(x.PlacesUntil(w, now, 50), 3) << buckets;
  }
}

TEST(Gates, AnAccountDoesNotWaitBehindOneOfLittleWeight) {
  for (const double weight : {1.0, 0.01}) {
    Exchange x(1);
    Bucket* const left = x.MakeBucket({"1_000 concurrency"});
    Bucket* const right = x.MakeBucket({"1_000 concurrency"});
    Account* const tiny = x.MakeAccount(weight);
    Account* const steady = x.MakeAccount(1);
    for (int i = 0; i < 10; ++i) x.Submit(kStart, left, tiny, 0);
    for (int i = 0; i < 500; ++i) x.Submit(kStart, right, steady, 0);
    Nanos now = kStart;
    x.Serve(now);
    x.GivePlaces(now, 3);
    Waiter* const w = x.Submit(now, left, x.MakeAccount(1), 0);
    x.Serve(now);
    EXPECT_LE(x.PlacesUntil(w, now, 50), 3) << weight;
  }
}

TEST(Gates, WhatAnotherPriorityWasGivenIsNoShareOfThis) {
  Exchange x(1);
  std::vector<Bucket*> buckets;
  for (int i = 0; i < 4; ++i) buckets.push_back(x.MakeBucket({"1_000 concurrency"}));
  Account* const steady = x.MakeAccount(1);
  Account* const saver = x.MakeAccount(1);
  Account* const urgent = x.MakeAccount(1);
  Account* const newcomer = x.MakeAccount(1);
  // In two buckets, so that it stands there without a break.
  for (int i = 0; i < 500; ++i) x.Submit(kStart, buckets[i % 2 == 0 ? 0 : 3], steady, 0);
  for (int i = 0; i < 100; ++i) x.Submit(kStart, buckets[1], urgent, 0, 10);
  x.Submit(kStart, buckets[2], saver, 0, -100);
  Nanos now = kStart;
  x.Serve(now);
  x.GivePlaces(now, 150);
  for (int i = 0; i < 300; ++i) x.Submit(now, buckets[1], newcomer, 0);
  for (int i = 0; i < 300; ++i) x.Submit(now, buckets[2], saver, 0);
  x.Serve(now);
  Exchange::Served served = x.GivePlaces(now, 90);
  EXPECT_NEAR(served[steady], 30, 2);
  EXPECT_NEAR(served[newcomer], 30, 2);
  EXPECT_NEAR(served[saver], 30, 2);
}

TEST(Gates, OneThatHadAPlaceIsNotPassedByNewcomersForEver) {
  Exchange x(1);
  Bucket* const left = x.MakeBucket({"1_000 concurrency"});
  Bucket* const right = x.MakeBucket({"1_000 concurrency"});
  Account* const old = x.MakeAccount(1);
  Waiter* last = nullptr;
  for (int i = 0; i < 4; ++i) last = x.Submit(kStart, left, old, 0);
  x.Serve(kStart);
  Nanos now = kStart;
  for (int i = 0; i < 3; ++i) x.Submit(now, right, x.MakeAccount(1), 0);
  x.Serve(now);
  int others = 0;
  for (; others < 100 && last->outcome() == Outcome::kWaiting; ++others) {
    x.Submit(now, right, x.MakeAccount(1), 0);
    x.GivePlaces(now, 1);
  }
  EXPECT_LE(others, 20);
}

TEST(Gates, EachCountsThoseWhoComeThroughIt) {
  Exchange x(1);
  Bucket* const shared = x.MakeBucket({"1 requests/s bucket burst 1"});
  Bucket* const other = x.MakeGate(1);
  for (int i = 0; i < 5; ++i) {
    x.Submit(kStart, shared, nullptr, 0, i);
    if (i < 2) x.SubmitThrough(other, kStart, shared, nullptr, i);
  }
  EXPECT_EQ(x.scheduler.Depth(*shared, kStart), 7U);
  EXPECT_EQ(x.scheduler.Depth(*shared, x.gate, kStart), 5U);
  EXPECT_EQ(x.scheduler.Depth(*shared, other, kStart), 2U);
}

TEST(Gate, NoPriorityAndNoAgeingIsTooLargeForTheOrder) {
  Exchange x(1);
  constexpr Nanos kYear = 365 * 24 * 3'600 * kSecond;
  std::vector<const Path*> paths;
  for (int i = 0; i < 3; ++i)
    paths.push_back(new Path(x.MakeBucket({"9 concurrency"}), x.gate, nullptr, kYear));
  Waiter* running = x.Submit(kStart, x.MakeBucket({"9 concurrency"}), nullptr, 0);
  x.Serve(kStart);
  const Amounts amounts = {1, 0, 1};
  std::vector<Waiter*> expected(3);
  for (const int i : {1, 0, 2}) {
    const std::int32_t priority = i == 0 ? INT32_MAX : i == 1 ? 1'000 : INT32_MIN;
    expected[static_cast<std::size_t>(i)] = x.scheduler.Submit(
        paths[static_cast<std::size_t>(i)], amounts, priority, kStart, kNever, x.mailbox, nullptr);
  }
  x.Serve(kStart);
  for (Waiter* w : expected) {
    x.End(running, kStart);
    EXPECT_EQ(x.Serve(kStart), std::vector<Waiter*>{w});
    running = w;
  }
  x.End(running, kStart);
  for (Waiter* w : expected) w->Unref();
  for (const Path* path : paths) path->Unref();
}

TEST(Gate, BucketsTakeTurnsByPriorityThenByAge) {
  Exchange x(1);
  Bucket* left = x.MakeBucket({"1_000 concurrency"});
  Bucket* right = x.MakeBucket({"1_000 concurrency"});
  Waiter* first = x.Submit(kStart, left, nullptr, 0);
  x.Serve(kStart);
  std::vector<Waiter*> expected;
  std::vector<Waiter*> low;
  for (int i = 0; i < 6; ++i) {
    low.push_back(x.Submit(kStart + i, i % 3 == 0 ? right : left, nullptr, 0));
    x.Serve(kStart + i);
  }
  Waiter* urgent = x.Submit(kStart + kSecond, right, nullptr, 0, 5);
  x.Serve(kStart + kSecond);
  expected.push_back(urgent);
  expected.insert(expected.end(), low.begin(), low.end());
  std::vector<Waiter*> admitted;
  x.End(first, kStart + 2 * kSecond);
  for (Nanos now = kStart + 2 * kSecond; admitted.size() < 7; now += kSecond) {
    const std::vector<Waiter*> some = x.Serve(now);
    ASSERT_EQ(some.size(), 1U);
    admitted.push_back(some[0]);
    x.End(some[0], now + 1);
  }
  EXPECT_EQ(admitted, expected);
}

// Nobody waits at the gate, and then several buckets' own limits admit at the same instant. All of
// `waiting`, in the order in which they were submitted, a random priority each.
void FillBuckets(Exchange& x, Random& random, std::vector<Waiter*>& waiting,
                 std::map<Waiter*, std::int64_t>& priorities) {
  std::vector<Bucket*> buckets;
  for (int i = 0; i < 5; ++i) {
    buckets.push_back(x.MakeBucket({"1 requests/s bucket burst 1"}));
    Waiter* first = x.Submit(kStart, buckets.back(), nullptr, 0);
    x.Serve(kStart);
    x.End(first, kStart);
  }
  while (!buckets.empty()) {
    const auto at = buckets.begin() + random.From(0, static_cast<std::int64_t>(buckets.size()) - 1);
    const std::int64_t priority = random.From(0, 2);
    waiting.push_back(x.Submit(kStart + static_cast<Nanos>(waiting.size()), *at, nullptr, 0,
                               static_cast<std::int32_t>(priority)));
    priorities[waiting.back()] = priority;
    buckets.erase(at);
    const bool serves = random.OneIn(2);
    if (serves) {
      EXPECT_TRUE(x.Serve(kStart + 10).empty());
    }
  }
}

TEST(Gate, BucketsThatAreReadyAtTheSameInstantTakeTurnsToo) {
  for (std::uint64_t run = 0; run < 50; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    Exchange x(1);
    std::vector<Waiter*> expected;
    std::map<Waiter*, std::int64_t> priorities;
    FillBuckets(x, random, expected, priorities);
    std::stable_sort(expected.begin(), expected.end(), [&priorities](Waiter* a, Waiter* b) {
      return priorities.at(a) > priorities.at(b);
    });
    for (Waiter* w : expected) {
      EXPECT_EQ(x.Serve(kStart + kSecond), std::vector<Waiter*>{w});
      x.End(w, kStart + kSecond);
    }
    x.Serve(kStart + kSecond);
    EXPECT_FALSE(x.gate->has_waiters());
  }
}

TEST(Gate, WhoeverDecidesIsAskedOfBucketsThatAreReadyAtTheSameInstant) {
  Random random(Random::Seed(0));
  SCOPED_TRACE(random.Describe());
  Exchange x(1);
  int asked = 0;
  x.scheduler.SetChooser(*x.gate, [&asked] { ++asked; });
  std::vector<Waiter*> waiting;
  std::map<Waiter*, std::int64_t> priorities;
  FillBuckets(x, random, waiting, priorities);
  EXPECT_EQ(asked, 0);
  EXPECT_TRUE(x.Serve(kStart + kSecond).empty());
  // While that is being decided nobody passes.
  Waiter* newcomer = x.Submit(kStart + kSecond, x.MakeBucket({"9 concurrency"}), nullptr, 0, 9);
  EXPECT_TRUE(x.Serve(kStart + kSecond).empty());
  x.scheduler.Cancel(newcomer, kStart + kSecond);
  for (std::size_t left = 5; left > 1; --left) {
    EXPECT_TRUE(x.Serve(kStart + kSecond).empty());
    EXPECT_GE(asked, static_cast<int>(6 - left));
    EXPECT_EQ(x.scheduler.Contenders(*x.gate, kStart + kSecond).size(), left);
    Waiter* chosen = waiting[left - 1];
    ASSERT_TRUE(x.scheduler.Choose(*x.gate, *chosen->bucket(), kStart + kSecond));
    EXPECT_EQ(x.Serve(kStart + kSecond), std::vector<Waiter*>{chosen});
    x.End(chosen, kStart + kSecond);
  }
  EXPECT_EQ(x.Serve(kStart + kSecond), std::vector<Waiter*>{waiting[0]});
}

TEST(Gate, ANewcomerOfAnotherBucketDoesNotPassWhoWaitsThere) {
  Exchange x(1);
  Bucket* left = x.MakeBucket({"1_000 concurrency"});
  Bucket* right = x.MakeBucket({"1_000 concurrency"});
  Waiter* first = x.Submit(kStart, left, nullptr, 0);
  x.Serve(kStart);
  Waiter* waits = x.Submit(kStart, left, nullptr, 0);
  x.Serve(kStart);
  x.End(first, kStart + 1);
  x.Submit(kStart + 1, right, nullptr, 0);
  EXPECT_EQ(x.Serve(kStart + 1), std::vector<Waiter*>{waits});
}

TEST(Gate, WhoeverCameBeforeAPlaceWasFreeIsInTimeForIt) {
  Exchange x(1);
  Bucket* left = x.MakeBucket({"1_000 concurrency"});
  Bucket* right = x.MakeBucket({"1_000 concurrency"});
  Waiter* running = x.Submit(kStart, left, nullptr, 0);
  x.Serve(kStart);
  x.Submit(kStart, right, nullptr, 0);
  x.Submit(kStart + 1, left, nullptr, 0);
  x.Serve(kStart + 1);
  Waiter* urgent = x.Submit(kStart + 2, left, nullptr, 0, 5);
  x.End(running, kStart + 3);
  EXPECT_EQ(x.Serve(kStart + 3), std::vector<Waiter*>{urgent});
}

TEST(Gate, SomebodyElseMayDecideWhoGoesNext) {
  Exchange x(1);
  std::vector<Bucket*> buckets;
  for (int i = 0; i < 3; ++i) buckets.push_back(x.MakeBucket({"1_000 concurrency"}));
  int asked = 0;
  x.scheduler.SetChooser(*x.gate, [&asked] { ++asked; });
  Waiter* running = x.Submit(kStart, buckets[0], nullptr, 0);
  EXPECT_EQ(x.Serve(kStart).size(), 1U);
  std::map<Bucket*, std::vector<Waiter*>> waiting;
  for (int i = 0; i < 9; ++i) {
    Bucket* bucket = buckets[static_cast<std::size_t>(i % 3)];
    waiting[bucket].push_back(x.Submit(kStart + i, bucket, nullptr, 0, i / 3));
  }
  EXPECT_TRUE(x.Serve(kStart + 9).empty());
  EXPECT_EQ(asked, 0) << "there is no room";
  EXPECT_TRUE(x.scheduler.Contenders(*x.gate, kStart + 9).empty());
  // The third bucket first, then the second; what is left in one alone needs no decision.
  std::vector<Waiter*> expected;
  std::vector<Waiter*> admitted;
  for (const std::size_t i : {2U, 1U, 0U}) {
    const auto& those = waiting[buckets[i]];
    expected.insert(expected.end(), those.rbegin(), those.rend());  // by priority
  }
  for (Nanos now = kStart + kSecond; admitted.size() < 9; now += kSecond) {
    x.End(running, now);
    std::vector<Waiter*> some = x.Serve(now);
    const auto contenders = x.scheduler.Contenders(*x.gate, now);
    if (some.empty()) {
      ASSERT_GE(asked, 1);
      ASSERT_FALSE(contenders.empty());
      std::size_t chosen = 3;
      for (std::size_t i = 0; i < 3; ++i)
        for (const auto& contender : contenders)
          if (contender.bucket == buckets[i]) chosen = i;
      const auto& left = waiting[buckets[chosen]];
      EXPECT_EQ(contenders.back().waiting > 0, !left.empty());
      ASSERT_TRUE(x.scheduler.Choose(*x.gate, *buckets[chosen], now));
      some = x.Serve(now);
    }
    ASSERT_EQ(some.size(), 1U);
    running = some[0];
    admitted.push_back(running);
    EXPECT_FALSE(x.scheduler.Choose(*x.gate, *buckets[2], now) && x.running.size() > 1);
  }
  EXPECT_EQ(admitted, expected);
  // Left to itself it decides again.
  for (Bucket* bucket : buckets) x.Submit(kStart + 60 * kSecond, bucket, nullptr, 0);
  x.Serve(kStart + 60 * kSecond);
  x.End(running, kStart + 61 * kSecond);
  EXPECT_TRUE(x.Serve(kStart + 61 * kSecond).empty());
  x.scheduler.SetChooser(*x.gate, nullptr);
  EXPECT_EQ(x.Serve(kStart + 61 * kSecond).size(), 1U);
}

TEST(Gate, WhoeverDecidesHasSoLongAndThenTheSchedulerDoesUntilHeLooksAgain) {
  Exchange x(1);
  std::vector<Bucket*> buckets;
  for (int i = 0; i < 3; ++i) buckets.push_back(x.MakeBucket({"1_000 concurrency"}));
  int asked = 0;
  x.scheduler.SetChooser(
      *x.gate, [&asked] { ++asked; }, kSecond);
  Waiter* running = x.Submit(kStart, buckets[0], nullptr, 0);
  EXPECT_EQ(x.Serve(kStart).size(), 1U);
  std::vector<Waiter*> waiting;
  for (std::size_t i = 0; i < 9; ++i)
    waiting.push_back(x.Submit(kStart + static_cast<Nanos>(i), buckets[(i + 1) % 3], nullptr, 0));
  EXPECT_TRUE(x.Serve(kStart + 9).empty());
  EXPECT_EQ(x.next, kNever) << "without room there is nothing to decide";

  Nanos now = kStart + kSecond;
  x.End(running, now);
  EXPECT_TRUE(x.Serve(now).empty());
  EXPECT_EQ(x.next, now + kSecond);
  EXPECT_EQ(x.scheduler.Contenders(*x.gate, now).size(), 3U) << "looked at, and nothing chosen";
  // Whoever comes meanwhile prolongs nothing.
  waiting.push_back(x.Submit(now + kSecond / 2, x.MakeBucket({"9 concurrency"}), nullptr, 0));
  EXPECT_TRUE(x.Serve(now + kSecond / 2).empty());
  EXPECT_EQ(x.next, now + kSecond);
  now += kSecond;
  EXPECT_EQ(x.Serve(now), std::vector<Waiter*>{waiting[0]});
  EXPECT_FALSE(x.scheduler.Choose(*x.gate, *waiting[2]->bucket(), now)) << "decided already";

  // From now on he is asked, and nobody waits for him.
  for (std::size_t i = 1; i < 4; ++i) {
    const int before = asked;
    x.End(waiting[i - 1], now);
    EXPECT_EQ(x.Serve(now), std::vector<Waiter*>{waiting[i]});
    EXPECT_GT(asked, before);
  }
  // Until he looks.
  EXPECT_TRUE(x.scheduler.Contenders(*x.gate, now).empty());
  x.End(waiting[3], now);
  EXPECT_TRUE(x.Serve(now).empty());
  EXPECT_EQ(x.next, now + kSecond);
  ASSERT_TRUE(x.scheduler.Choose(*x.gate, *waiting[5]->bucket(), now + kSecond / 2));
  EXPECT_EQ(x.Serve(now + kSecond / 2), std::vector<Waiter*>{waiting[5]});
  EXPECT_EQ(x.next, kNever);
  // The next place is a decision of its own.
  now += kSecond;
  x.End(waiting[5], now);
  EXPECT_TRUE(x.Serve(now).empty());
  EXPECT_EQ(x.next, now + kSecond);
  // Somebody else in his place has all of his own time, and is asked at once.
  int other = 0;
  x.scheduler.SetChooser(
      *x.gate, [&other] { ++other; }, 2 * kSecond);
  EXPECT_TRUE(x.Serve(now + kSecond / 2).empty());
  EXPECT_GE(other, 1);
  EXPECT_EQ(x.next, now + kSecond / 2 + 2 * kSecond);
}

TEST(Gate, WhateverBecomesOfWhoDecidesNobodyWaitsLongerThanHisPatience) {
  for (std::uint64_t run = 0; run < 100; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    Exchange x(random.From(1, 2));
    std::vector<Bucket*> buckets;
    for (int i = 0; i < 4; ++i)
      buckets.push_back(
          x.MakeBucket({random.OneIn(3) ? "3 requests/s bucket burst 1" : "1_000 concurrency"}));
    bool asked = false;
    const auto ask = [&asked] { asked = true; };
    x.scheduler.SetChooser(*x.gate, ask, kSecond);
    std::size_t submitted = 0;
    std::size_t admitted = 0;
    std::vector<Waiter*> all;
    Nanos free_since = kNever;  // there has been a choice since then
    Nanos now = kStart;
    for (int step = 0; step < 300 || admitted < submitted; ++step) {
      ASSERT_LT(step, 5'000) << "nobody goes any more";
      now += random.From(0, kSecond / 4);
      if (step < 300 && random.OneIn(2)) {
        all.push_back(x.Submit(now, buckets[static_cast<std::size_t>(random.From(0, 3))], nullptr,
                               0, static_cast<std::int32_t>(random.From(0, 2))));
        ++submitted;
      }
      if (random.OneIn(20)) x.scheduler.SetChooser(*x.gate, nullptr);
      if (random.OneIn(20)) {
        x.scheduler.SetChooser(*x.gate, ask, kSecond);
        free_since = kNever;  // a new one has all of his time
      }
      if (!x.running.empty() && random.OneIn(2)) x.End(x.running.begin()->first, now);
      std::size_t some = x.Serve(now).size();
      admitted += some;
      if (asked && random.OneIn(3)) {
        asked = false;
        const auto contenders = x.scheduler.Contenders(*x.gate, now);
        if (!contenders.empty() && !random.OneIn(3)) {
          const auto& chosen = contenders[static_cast<std::size_t>(
              random.From(0, static_cast<std::int64_t>(contenders.size()) - 1))];
          x.scheduler.Choose(*x.gate, *chosen.bucket, now);
        }
        const std::size_t more = x.Serve(now).size();
        admitted += more;
        some += more;
      }
      // Somebody who could go but for the gate, at which there is room.
      bool fits = false;
      for (Waiter* w : all) {
        fits = fits || (w->outcome() == Outcome::kWaiting &&
                        w->path()->Look(now, Amounts{1, 0, 1}).denial.ready_at <= now &&
                        x.gate->meter(0).ReadyAt(now, 1) <= now);
      }
      if (!fits || some > 0) free_since = kNever;
      if (fits && free_since == kNever) free_since = now;
      if (fits) {
        ASSERT_GT(free_since + kSecond, now) << "idle, though somebody waits";
        ASSERT_LE(x.next, free_since + kSecond) << "the driver sleeps too long";
      }
    }
    while (!x.running.empty()) x.End(x.running.begin()->first, now);
    x.Serve(now);
    EXPECT_FALSE(x.gate->has_waiters());
  }
}

TEST(Gate, ABucketThatIsHeldUpByItsLimitsLeavesTheGateToOthers) {
  Exchange x(1);
  Bucket* slow = x.MakeBucket({"1 requests/s bucket burst 1"});
  Bucket* fast = x.MakeBucket({"1_000 concurrency"});
  Waiter* first = x.Submit(kStart, slow, nullptr, 0);
  x.Serve(kStart);
  x.End(first, kStart);
  Waiter* waits = x.Submit(kStart, slow, nullptr, 0);
  x.Serve(kStart);
  Waiter* goes = x.Submit(kStart, fast, nullptr, 0);
  EXPECT_EQ(x.Serve(kStart), std::vector<Waiter*>{goes});
  EXPECT_EQ(waits->outcome(), Outcome::kWaiting);
}

TEST(Cooling, HoldsEverybodyUpUntilThenAndNobodyPassesWhoWaited) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1_000 requests/s bucket"});
  Bucket* other = x.MakeBucket({"1_000 requests/s bucket"});
  bucket->Cool(kStart + 2 * kSecond);
  bucket->Cool(kStart + kSecond);  // never shortened
  EXPECT_EQ(bucket->cooled_until(), kStart + 2 * kSecond);
  Waiter* w = x.Submit(kStart, bucket, nullptr, 0);
  Waiter* elsewhere = x.Submit(kStart, other, nullptr, 0);
  EXPECT_EQ(x.Serve(kStart), std::vector<Waiter*>{elsewhere});
  EXPECT_EQ(x.next, kStart + 2 * kSecond);
  const Amounts one = {1, 0, 1};
  EXPECT_FALSE(bucket->TryTake(kStart, one));
  EXPECT_FALSE(bucket->TryTake(kStart + 2 * kSecond, one)) << "passed the one that waits";
  EXPECT_EQ(x.Serve(kStart + 2 * kSecond), std::vector<Waiter*>{w});
  EXPECT_TRUE(bucket->TryTake(kStart + 2 * kSecond, one));
}

TEST(Cooling, HoldsUpABucketWithoutLimitsToo) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({});
  Waiter* before = x.Submit(kStart, bucket, nullptr, 0);
  EXPECT_EQ(x.Serve(kStart), std::vector<Waiter*>{before});
  bucket->Cool(kStart + kSecond);
  Waiter* after = x.Submit(kStart, bucket, nullptr, 0);
  Waiter* late = x.Submit(kStart, bucket, nullptr, 0, 0, kStart + kSecond / 2);
  EXPECT_TRUE(x.Serve(kStart).empty());
  EXPECT_EQ(late->outcome(), Outcome::kDeadline);
  EXPECT_EQ(x.Serve(kStart + kSecond), std::vector<Waiter*>{after});
  EXPECT_EQ(x.next, kNever);
  EXPECT_FALSE(bucket->has_waiters());
}

TEST(Overflow, DropsTheOneThatWasSubmittedFirst) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1 requests/s bucket burst 1"});
  Account* a = x.MakeAccount(1);
  Account* b = x.MakeAccount(1);
  x.Submit(kStart, bucket, a, 0);
  x.Serve(kStart);
  EXPECT_FALSE(x.scheduler.DropOldest(*bucket, x.gate, kStart));
  Waiter* oldest = x.Submit(kStart, bucket, b, 0);
  Waiter* urgent = x.Submit(kStart, bucket, a, 0, 9);
  EXPECT_TRUE(x.scheduler.DropOldest(*bucket, x.gate, kStart));
  EXPECT_EQ(oldest->outcome(), Outcome::kDropped);
  EXPECT_EQ(x.Serve(kStart + kSecond), std::vector<Waiter*>{urgent});
  EXPECT_FALSE(x.scheduler.DropOldest(*bucket, x.gate, kStart + kSecond));
}

TEST(Overflow, DropsNobodyWhoHasHadATurnNorWhoComesThroughAnotherGate) {
  Exchange x;
  Exchange y;  // its gate
  Bucket* bucket = x.MakeBucket({"1 requests/min bucket burst 1"});
  x.Submit(kStart, bucket, nullptr, 0);
  ASSERT_EQ(x.Serve(kStart).size(), 1U);
  auto* elsewhere = new Path(bucket, y.gate);
  const Amounts amounts = {1, 0, 1};
  Waiter* other = x.scheduler.Submit(elsewhere, amounts, 0, kStart, kNever, x.mailbox, nullptr);
  Waiter* again = x.scheduler.Submit(x.PathOf(bucket, nullptr, x.gate), amounts, 0, kStart, kNever,
                                     x.mailbox, nullptr, /*again=*/true);
  EXPECT_FALSE(x.scheduler.DropOldest(*bucket, x.gate, kStart));
  Waiter* first = x.Submit(kStart, bucket, nullptr, 0);
  Waiter* second = x.Submit(kStart, bucket, nullptr, 0);
  EXPECT_TRUE(x.scheduler.DropOldest(*bucket, x.gate, kStart));
  EXPECT_EQ(first->outcome(), Outcome::kDropped);
  for (Waiter* w : {other, again, second}) {
    EXPECT_EQ(w->outcome(), Outcome::kWaiting);
    x.scheduler.Cancel(w, kStart);
  }
  x.Serve(kStart);
  other->Unref();
  again->Unref();
  elsewhere->Unref();
}

TEST(Path, TakesAllOrNothingThroughGateAccountAndBucket) {
  Exchange x(2);
  Bucket* bucket = x.MakeBucket({"1_000 tokens/s bucket"});
  Account* account = x.MakeAccount(1, {"500 tokens/s bucket"});
  auto* path = new Path(bucket, x.gate, account);
  const auto used = [&] {
    return std::vector<std::int64_t>{x.gate->Used(0, kStart), account->limits()->Used(0, kStart),
                                     bucket->Used(0, kStart)};
  };
  Reservation first;
  EXPECT_FALSE(path->TryReserve(kStart, Amounts{1, 400, 1}, false, first));
  EXPECT_EQ(used(), (std::vector<std::int64_t>{1, 400, 400}));
  Reservation second;
  const auto by_account = path->TryReserve(kStart, Amounts{1, 200, 1}, false, second);
  ASSERT_TRUE(by_account);
  EXPECT_EQ(by_account->by, account->limits());
  EXPECT_EQ(used(), (std::vector<std::int64_t>{1, 400, 400}));
  EXPECT_TRUE(bucket->TryTake(kStart, Amounts{0, 550, 0}));
  Reservation third;
  const auto by_bucket = path->TryReserve(kStart, Amounts{1, 100, 1}, false, third);
  ASSERT_TRUE(by_bucket);
  EXPECT_EQ(by_bucket->by, bucket);
  EXPECT_EQ(used(), (std::vector<std::int64_t>{1, 400, 950}));
  // What is settled is given back everywhere.
  EXPECT_TRUE(first.Settle(kStart, Amounts{1, 100, 1}));
  EXPECT_EQ(used(), (std::vector<std::int64_t>{0, 100, 650}));
  Reservation fourth;
  EXPECT_FALSE(path->TryReserve(kStart, Amounts{1, 50, 1}, false, fourth));
  EXPECT_TRUE(fourth.Cancel(kStart));
  EXPECT_EQ(used(), (std::vector<std::int64_t>{0, 100, 650}));
  path->Unref();
}

TEST(Accounts, WhatIsUrgentIsNotForetoldToCostThePlaceOfWhatIsNot) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1 requests/s bucket"});
  Account* a = x.MakeAccount(1);
  Account* b = x.MakeAccount(1);
  Waiter* first = x.Submit(kStart, bucket, nullptr, 0);
  ASSERT_EQ(x.Serve(kStart).size(), 1U);
  x.End(first, kStart);
  for (int i = 0; i < 5; ++i) x.Submit(kStart, bucket, a, 0, 1);
  for (int i = 0; i < 5; ++i) x.Submit(kStart, bucket, b, 0);
  // Behind the five that are urgent, and one of the other account.
  Waiter* waits = x.Submit(kStart, bucket, a, 0, 0, kStart + 7 * kSecond);
  Nanos now = kStart;
  EXPECT_EQ(x.ServeUntil(now, kStart + 7 * kSecond)[a], 6);
  EXPECT_EQ(waits->outcome(), Outcome::kAdmitted);
}

TEST(Accounts, WhoeverHasNoAccountIsForetoldBehindHisOwn) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1 requests/s bucket"});
  Account* a = x.MakeAccount(1);
  Waiter* first = x.Submit(kStart, bucket, a, 0);
  ASSERT_EQ(x.Serve(kStart).size(), 1U);
  x.End(first, kStart);
  for (int i = 0; i < 5; ++i) x.Submit(kStart, bucket, nullptr, 0);
  for (int i = 0; i < 5; ++i) x.Submit(kStart, bucket, a, 0);
  const Path* path = x.PathOf(bucket, nullptr, x.gate);
  // They take turns.
  const Nanos at = x.scheduler.Estimate(*path, kStart, 0, Amounts{1, 0, 1}).denial.ready_at;
  EXPECT_EQ(at, kStart + 11 * kSecond);
  Waiter* waits = x.Submit(kStart, bucket, nullptr, 0);
  Nanos now = kStart;
  x.ServeUntil(now, at - 1);
  EXPECT_EQ(waits->outcome(), Outcome::kWaiting);
  x.ServeUntil(now, at);
  EXPECT_EQ(waits->outcome(), Outcome::kAdmitted);
}

TEST(Accounts, OfEqualsWhoCameFirstIsForetoldToGoFirst) {
  Exchange x;
  Bucket* bucket = x.MakeBucket({"1 requests/s bucket"});
  std::vector<Account*> accounts;
  for (int i = 0; i < 4; ++i) accounts.push_back(x.MakeAccount(1));
  Waiter* first = x.Submit(kStart, bucket, accounts[0], 0);
  ASSERT_EQ(x.Serve(kStart).size(), 1U);
  x.End(first, kStart);
  for (int i = 1; i < 4; ++i) {
    const Path* path = x.PathOf(bucket, accounts[static_cast<std::size_t>(i)], x.gate);
    const Nanos at = x.scheduler.Estimate(*path, kStart, 0, Amounts{1, 0, 1}).denial.ready_at;
    EXPECT_EQ(at, kStart + i * kSecond);
    Waiter* waits = x.Submit(kStart, bucket, accounts[static_cast<std::size_t>(i)], 0, 0, at);
    EXPECT_TRUE(x.Serve(kStart).empty());
    EXPECT_EQ(waits->outcome(), Outcome::kWaiting);
  }
  for (int i = 1; i < 4; ++i) {
    const std::vector<Waiter*> went = x.Serve(kStart + i * kSecond);
    ASSERT_EQ(went.size(), 1U);
    EXPECT_EQ(went[0]->path()->account(), accounts[static_cast<std::size_t>(i)]);
    x.End(went[0], kStart + i * kSecond);
  }
}

}  // namespace
}  // namespace headway
