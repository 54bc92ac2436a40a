// headway/schedule/scheduler_test.cc: who goes when, on a virtual clock, beside a slow scheduler.
#include "headway/schedule/scheduler.h"

#include <algorithm>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include <gtest/gtest.h>
#include <poll.h>

#include "headway/simulate/memory.h"
#include "headway/simulate/oracle.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;
using Amounts = std::vector<std::int64_t>;

constexpr Nanos kStart = 1'000 * kSecond;

Limit Make(Shape shape, std::int64_t amount, Nanos period = kSecond,
           std::optional<std::int64_t> burst = std::nullopt) {
  Limit limit;
  limit.amount = amount;
  limit.resource = shape == Shape::kConcurrency ? "concurrency" : "requests";
  limit.period = period;
  limit.shape = shape;
  limit.burst = burst;
  return Limit::Make(limit).value();
}

// A scheduler with one bucket and one mailbox, driven as the dispatcher drives it: only when it
// asks for it, or at the instants that it names.
class Office {
 public:
  Office(const std::vector<Limit>& limits, const std::vector<std::uint8_t>& resources,
         Nanos ageing = Scheduler::kAgeing)
      : resources_(*std::max_element(resources.begin(), resources.end()) + 1),
        scheduler([this] { woken = true; }, ageing),
        bucket(Bucket::Make(limits, resources, 0, &scheduler)) {}
  ~Office() {
    for (Waiter* w : waiters_) w->Unref();
    Drain();
    scheduler.Forget();
    Drain();
    mailbox->Unref();
    bucket->Unref();
  }
  Office(const Office&) = delete;
  Office& operator=(const Office&) = delete;

  Waiter* Submit(Nanos now, Amounts amounts, std::int32_t priority = 0, Nanos deadline = kNever) {
    amounts.resize(resources_);
    waiters_.push_back(
        scheduler.Submit(bucket, amounts, priority, now, deadline, mailbox, nullptr));
    return waiters_.back();
  }

  // Serves what asks for it. Returns who is over with, in the order in which they came out. Who is
  // admitted goes on at once, with what is in `claimed` then.
  std::vector<Waiter*> Serve(Nanos now) {
    std::vector<Waiter*> out;
    while (woken || next <= now || scheduler.HasWork()) {
      woken = false;
      next = scheduler.Advance(now);
      EXPECT_GT(next, now) << "asks to come back at once";
      const std::vector<Waiter*> some = Drain();
      out.insert(out.end(), some.begin(), some.end());
      for (Waiter* w : some)
        if (w->outcome() == Outcome::kAdmitted) claimed[w] = w->Claim(now);
    }
    return out;
  }

  // Who is in the mailbox. The references that come with them are dropped: `waiters_` has its own.
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

  bool TryTake(Nanos now, Amounts amounts) {
    amounts.resize(resources_);
    return bucket->TryTake(now, amounts);
  }

 private:
  std::size_t resources_;
  std::vector<Waiter*> waiters_;

 public:
  bool woken = false;
  Nanos next = kNever;
  Scheduler scheduler;
  Bucket* bucket;
  Mailbox* mailbox = new Mailbox;
  std::unordered_map<Waiter*, std::unique_ptr<Reservation>> claimed;
};

// The slow scheduler: a flat list, looked through from the front for every decision.
struct Limiter {
  Limit limit;
  std::uint8_t resource;
  std::unique_ptr<simulate::BucketOracle> bucket;
  std::int64_t in_use = 0;
  Nanos last = 0;  // that it was taken from

  Nanos ReadyAt(Nanos now, std::int64_t units) const {
    if (units == 0 || now >= kUntold) return now;
    if (bucket != nullptr) return bucket->ReadyAt(now, units);
    if (units > limit.amount) return kNever;
    return in_use + units <= limit.amount ? now : kUntold;
  }
  void Take(Nanos now, std::int64_t units) {
    last = std::max(last, now);
    if (units == 0 || now >= kUntold) return;
    if (bucket != nullptr) bucket->Take(now, units);
    in_use += units;
  }
};

class SlowScheduler {
 public:
  struct Wait {
    int id;
    Amounts amounts;
    std::int32_t priority;
    Nanos submitted;
    Nanos deadline;
    bool looked_at = false;    // at submission
    std::vector<bool> held{};  // resources of the limits that have bound it
  };

  SlowScheduler(std::vector<Limiter> limiters, std::size_t resources, Nanos ageing)
      : limiters_(std::move(limiters)), resources_(resources), ageing_(ageing) {}

  void Submit(Wait wait) {
    wait.held.resize(resources_);
    waiting.push_back(std::move(wait));
  }
  void Cancel(int id) {
    waiting.erase(
        std::remove_if(waiting.begin(), waiting.end(), [id](const Wait& w) { return w.id == id; }),
        waiting.end());
  }
  void GiveBack(int id, Nanos now, const Amounts& amounts, const Amounts& used, bool cancel) {
    for (std::size_t i = 0; i < limiters_.size(); ++i) {
      Limiter& l = limiters_[i];
      const std::int64_t taken = amounts[l.resource];
      if (taken == 0) continue;
      if (l.bucket == nullptr) {
        l.in_use -= taken;
      } else if (cancel) {
        l.bucket->Cancel(now, taken, takes_.at({id, i}));
      } else {
        l.bucket->GiveBack(now, taken - used[l.resource]);
      }
    }
  }

  // All that is due at `now`: who is admitted, in order, and who has failed.
  void Advance(Nanos now, std::vector<int>& admitted, std::vector<int>& failed) {
    for (std::size_t i = 0; i < waiting.size(); ++i) {
      Wait& w = waiting[i];
      if (w.looked_at) continue;
      w.looked_at = true;
      if (w.deadline == kNever) continue;
      const Nanos estimate = Estimate(now, i);
      if (w.deadline < now || (estimate < kUntold && estimate > w.deadline)) {
        failed.push_back(w.id);
        waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i--));
      }
    }
    Fail(now - 1, failed);
    Admit(now, admitted);
    Fail(now, failed);
    Admit(now, admitted);
  }

  // The first instant after `now` at which somebody may go or has to fail, if nothing happens until
  // then.
  Nanos Ideal(Nanos now) const {
    Nanos ideal = kUntold;
    for (const Wait& w : waiting) ideal = std::min(ideal, std::max(now, w.deadline));
    std::vector<bool> blocked(resources_);
    for (const Wait* w : Order()) {
      if (!w->looked_at && w->deadline != kNever) return now;
      if (Asks(*w, blocked)) continue;
      const auto [ready, binds] = Bound(now, *w);
      ideal = std::min(ideal, ready);
      blocked[binds] = true;
      for (std::size_t r = 0; r < resources_; ++r) blocked[r] = blocked[r] || w->held[r];
    }
    return ideal >= kUntold ? kNever : ideal;
  }

  std::vector<Wait> waiting;

 private:
  // By what a copy of all limits admits to those before it, one after another.
  Nanos Estimate(Nanos now, std::size_t newcomer) const {
    std::vector<const Wait*> order;
    for (std::size_t k = 0; k <= newcomer; ++k)
      if (waiting[k].priority >= waiting[newcomer].priority) order.push_back(&waiting[k]);
    std::stable_sort(order.begin(), order.end(),
                     [](const Wait* a, const Wait* b) { return a->priority > b->priority; });
    // Who waits for one resource is passed by those who do not ask for it: of each limit a second
    // copy, without those.
    struct Both {
      Limiter all, passing;
      std::vector<bool> behind;
      Nanos until = kNever;
    };
    const auto copy = [](const Limiter& l) {
      Limiter made{l.limit, l.resource, nullptr, l.in_use, l.last};
      if (l.bucket != nullptr) made.bucket = std::make_unique<simulate::BucketOracle>(*l.bucket);
      return made;
    };
    std::vector<Both> copies;
    for (const Limiter& l : limiters_)
      copies.push_back({copy(l), copy(l), std::vector<bool>(resources_), kNever});
    Nanos at = now;
    for (const Wait* w : order) {
      at = now;
      int bound = -1;
      const auto passes = [&](const Both& l) {
        for (std::size_t r = 0; r < resources_; ++r)
          if (l.behind[r] && w->amounts[r] == 0) return true;
        return false;
      };
      for (const Both& l : copies) {
        const std::int64_t units = w->amounts[l.all.resource];
        if (units == 0) continue;
        const auto ready = [&](const Limiter& one) {
          return std::max(at, one.ReadyAt(std::max(at, one.last), units));
        };
        Nanos its = ready(l.passing);
        if (!passes(l) || its > l.until) its = ready(l.all);
        if (its > at) bound = l.all.resource;
        at = std::max(at, its);
      }
      Nanos others_until = 0;
      std::vector<bool> others(resources_);
      for (const Both& l : copies) {
        if (w->amounts[l.all.resource] == 0 || l.all.resource == bound) continue;
        if (l.all.last > others_until) others.assign(resources_, false);
        if (l.all.last >= others_until) others[l.all.resource] = true;
        others_until = std::max(others_until, l.all.last);
      }
      for (Both& l : copies) {
        const std::int64_t units = w->amounts[l.all.resource];
        if (units == 0) continue;
        const bool others_pass =
            bound == l.all.resource &&
            (others_until > (passes(l) ? l.passing : l.all).last ||
             (!passes(l) && std::find(l.behind.begin(), l.behind.end(), true) != l.behind.end()));
        if (bound >= 0 && bound != l.all.resource) {
          l.behind[static_cast<std::size_t>(bound)] = true;
        } else if (others_pass) {
          for (std::size_t r = 0; r < resources_; ++r) l.behind[r] = l.behind[r] || others[r];
          l.until = std::min(l.until, others_until);
        } else {
          l.passing.Take(at, units);
        }
        l.all.Take(at, units);
      }
    }
    return at;
  }

  void Fail(Nanos until, std::vector<int>& failed) {
    for (std::size_t i = 0; i < waiting.size(); ++i) {
      if (waiting[i].deadline > until) continue;
      failed.push_back(waiting[i].id);
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i--));
    }
  }

  std::vector<const Wait*> Order() const {
    std::vector<const Wait*> order;
    for (const Wait& w : waiting) order.push_back(&w);
    std::stable_sort(order.begin(), order.end(), [&](const Wait* a, const Wait* b) {
      return a->submitted - a->priority * ageing_ < b->submitted - b->priority * ageing_;
    });
    return order;
  }

  static bool Asks(const Wait& w, const std::vector<bool>& resources) {
    for (std::size_t r = 0; r < resources.size(); ++r)
      if (resources[r] && w.amounts[r] > 0) return true;
    return false;
  }

  // When all limits admit it, and the resource of the first of those that admit last.
  std::pair<Nanos, std::uint8_t> Bound(Nanos now, const Wait& w) const {
    Nanos ready = now;
    std::uint8_t binds = 0;
    for (const Limiter& l : limiters_) {
      const Nanos at = l.ReadyAt(now, w.amounts[l.resource]);
      if (at > ready) {
        ready = at;
        binds = l.resource;
      }
    }
    return {ready, binds};
  }

  void Admit(Nanos now, std::vector<int>& admitted) {
    for (bool moved = true; moved;) {
      moved = false;
      std::vector<bool> blocked(resources_);
      for (const Wait* w : Order()) {
        if (Asks(*w, blocked)) continue;
        const auto [ready, binds] = Bound(now, *w);
        if (ready <= now) {
          for (std::size_t i = 0; i < limiters_.size(); ++i) {
            Limiter& l = limiters_[i];
            if (w->amounts[l.resource] == 0) continue;
            if (l.bucket != nullptr) {
              takes_[{w->id, i}] = l.bucket->Take(now, w->amounts[l.resource]);
            }
            l.in_use += w->amounts[l.resource];
          }
          admitted.push_back(w->id);
          Cancel(w->id);
          moved = true;
          break;
        }
        const_cast<Wait*>(w)->held[binds] = true;
        for (std::size_t r = 0; r < resources_; ++r) blocked[r] = blocked[r] || w->held[r];
      }
    }
  }

  std::vector<Limiter> limiters_;
  std::size_t resources_;
  Nanos ageing_;
  std::map<std::pair<int, std::size_t>, simulate::BucketOracle::Receipt> takes_;  // by limiter, too
};

void LiveBesideTheSlowScheduler(Random& random, bool deadlines) {
  // Up to three resources, each counted by one or two limits; steps are whole nanoseconds.
  const auto resources = static_cast<std::size_t>(random.From(1, 3));
  std::vector<Limit> limits;
  std::vector<std::uint8_t> counted;
  std::vector<Limiter> limiters;
  std::vector<std::int64_t> most(resources, 1'000);
  for (std::size_t r = 0; r < resources; ++r)
    for (std::int64_t n = random.From(1, 2); n > 0; --n) {
      const Limit limit = random.OneIn(3) ? Make(Shape::kConcurrency, random.From(1, 20))
                                          : Make(Shape::kBucket, random.From(1, 50),
                                                 random.From(1, 10) * kSecond, random.From(1, 50));
      limits.push_back(limit);
      counted.push_back(static_cast<std::uint8_t>(r));
      Limiter l{limit, static_cast<std::uint8_t>(r), nullptr, 0};
      if (limit.shape == Shape::kBucket)
        l.bucket = std::make_unique<simulate::BucketOracle>(
            (limit.period + limit.amount - 1) / limit.amount, 1, limit.burst_or_amount(),
            simulate::BucketOracle::Guard(limit.amount, limit.period, limit.burst_or_amount()));
      limiters.push_back(std::move(l));
      most[r] = std::min(most[r], limit.burst_or_amount());
    }
  const std::int64_t spread = random.OneIn(3) ? 100 : 2;
  const Nanos ageing = random.OneIn(2) ? Scheduler::kAgeing : random.From(1, 5) * kSecond;
  Office office(limits, counted, ageing);
  SlowScheduler slow(std::move(limiters), resources, ageing);

  struct Mine {
    Waiter* waiter;
    Amounts amounts;
    std::unique_ptr<Reservation> reservation;
  };
  std::map<int, Mine> all;
  std::map<Waiter*, int> ids;
  std::vector<int> queued;
  std::vector<int> running;
  Nanos now = kStart;
  const auto serve = [&] {
    std::vector<int> admitted;
    std::vector<int> failed;
    std::vector<int> core_admitted;
    std::vector<int> core_failed;
    // What the core does not ask to be driven for, the slow one has nothing to do for, either.
    if (!office.woken && office.next > now && !office.scheduler.HasWork()) return;
    for (Waiter* w : office.Serve(now)) {
      const int id = ids.at(w);
      (w->outcome() == Outcome::kAdmitted ? core_admitted : core_failed).push_back(id);
      if (w->outcome() == Outcome::kAdmitted) {
        EXPECT_EQ(w->at(), now);
        all.at(id).reservation = std::move(office.claimed.at(w));
        running.push_back(id);
      } else {
        EXPECT_EQ(w->outcome(), Outcome::kDeadline);
      }
      queued.erase(std::remove(queued.begin(), queued.end(), id), queued.end());
    }
    slow.Advance(now, admitted, failed);
    std::sort(failed.begin(), failed.end());
    std::sort(core_failed.begin(), core_failed.end());
    ASSERT_EQ(core_admitted, admitted) << "at " << now - kStart;
    ASSERT_EQ(core_failed, failed) << "at " << now - kStart;
  };
  for (int event = 0; event < 120; ++event) {
    const std::int64_t what = random.From(0, 9);
    if (what < 5) {
      Amounts amounts(resources);
      for (std::size_t r = 0; r < resources; ++r)
        amounts[r] = random.OneIn(3)   ? 0
                     : random.OneIn(4) ? most[r]
                                       : random.From(1, std::max<std::int64_t>(1, most[r] / 4));
      amounts[static_cast<std::size_t>(random.From(0, static_cast<std::int64_t>(resources) - 1))] =
          1;
      const auto priority = static_cast<std::int32_t>(random.From(-spread, spread));
      const Nanos deadline =
          deadlines && random.OneIn(2) ? now + random.From(0, 60 * kSecond) : kNever;
      const int id = event;
      Waiter* w = office.Submit(now, amounts, priority, deadline);
      all[id] = {w, amounts, nullptr};
      ids[w] = id;
      queued.push_back(id);
      slow.Submit({id, amounts, priority, now, deadline});
    } else if (what < 6 && !queued.empty()) {
      const int id = queued[static_cast<std::size_t>(
          random.From(0, static_cast<std::int64_t>(queued.size()) - 1))];
      office.scheduler.Cancel(all.at(id).waiter, now);
      EXPECT_EQ(all.at(id).waiter->outcome(), Outcome::kCancelled);
      queued.erase(std::remove(queued.begin(), queued.end(), id), queued.end());
      slow.Cancel(id);
    } else if (what < 8 && !running.empty()) {
      const auto at =
          static_cast<std::size_t>(random.From(0, static_cast<std::int64_t>(running.size()) - 1));
      const int id = running[at];
      Mine& mine = all.at(id);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(at));
      const bool cancel = random.OneIn(4);
      Amounts used(resources);
      for (std::size_t r = 0; r < resources; ++r) used[r] = random.From(0, mine.amounts[r]);
      EXPECT_TRUE(cancel ? mine.reservation->Cancel(now) : mine.reservation->Settle(now, used));
      slow.GiveBack(id, now, mine.amounts, used, cancel);
    }
    ASSERT_NO_FATAL_FAILURE(serve());
    // Then time passes, through every instant that the core names.
    Nanos until = random.OneIn(3) ? now : now + random.From(0, 3 * kSecond);
    if (random.OneIn(60)) until = now + 600 * kSecond;
    for (;;) {
      ASSERT_LE(office.next, std::max(slow.Ideal(now), now + 1))
          << "sleeps past the instant at which somebody would fit";
      if (office.next > until) break;
      now = office.next;
      ASSERT_NO_FATAL_FAILURE(serve());
    }
    now = until;
  }
  ASSERT_EQ(office.scheduler.Depth(*office.bucket, now), slow.waiting.size());
}

TEST(Scheduler, AdmitsWhomTheSlowSchedulerAdmitsAtTheSameInstantInTheSameOrder) {
  for (std::uint64_t run = 0; run < 250; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheSlowScheduler(random, /*deadlines=*/false));
  }
}

TEST(Scheduler, FailsDeadlinesAsTheSlowSchedulerDoes) {
  for (std::uint64_t run = 0; run < 250; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheSlowScheduler(random, /*deadlines=*/true));
  }
}

TEST(Scheduler, AdmitsAtOnceWhatFits) {
  Office office({Make(Shape::kBucket, 10)}, {0});
  Waiter* w = office.Submit(kStart, {10});
  EXPECT_TRUE(office.woken);
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{w});
  EXPECT_EQ(w->outcome(), Outcome::kAdmitted);
  EXPECT_EQ(office.next, kNever) << "an idle scheduler sleeps for ever";
}

TEST(Scheduler, IsFirstInFirstOutWithinAPriority) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  std::vector<Waiter*> submitted;
  for (int i = 0; i < 20; ++i) submitted.push_back(office.Submit(kStart, {1}));
  std::vector<Waiter*> admitted = office.Serve(kStart);
  while (office.next < kNever) {
    const std::vector<Waiter*> more = office.Serve(office.next);
    admitted.insert(admitted.end(), more.begin(), more.end());
  }
  EXPECT_EQ(admitted, submitted);
}

TEST(Scheduler, IsFirstInFirstOutAmongThoseWhoAskDifferentThingsAtOneInstant) {
  // All at the same reading of the clock: one needs requests, the next tokens too, and so on.
  Office office({Make(Shape::kBucket, 1), Make(Shape::kBucket, 100)}, {0, 1});
  ASSERT_TRUE(office.TryTake(kStart, {1, 0}));
  std::vector<Waiter*> submitted;
  for (int i = 0; i < 12; ++i) submitted.push_back(office.Submit(kStart, {1, i % 3}));
  std::vector<Waiter*> admitted = office.Serve(kStart);
  while (office.next < kNever) {
    const std::vector<Waiter*> more = office.Serve(office.next);
    admitted.insert(admitted.end(), more.begin(), more.end());
  }
  EXPECT_EQ(admitted, submitted);
}

TEST(Scheduler, HigherPrioritiesGoFirst) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  Waiter* low = office.Submit(kStart, {1}, -1);
  Waiter* middle = office.Submit(kStart, {1}, 0);
  Waiter* high = office.Submit(kStart, {1}, 5);
  EXPECT_TRUE(office.Serve(kStart).empty());
  EXPECT_EQ(office.Serve(kStart + kSecond), std::vector<Waiter*>{high});
  EXPECT_EQ(office.Serve(kStart + 2 * kSecond), std::vector<Waiter*>{middle});
  EXPECT_EQ(office.Serve(kStart + 3 * kSecond), std::vector<Waiter*>{low});
}

TEST(Scheduler, AStepOfPriorityIsWorthSoMuchWaiting) {
  Office office({Make(Shape::kBucket, 1)}, {0}, /*ageing=*/10 * kSecond);
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  Waiter* old = office.Submit(kStart, {1}, 0);
  std::vector<Waiter*> admitted;
  Nanos now = kStart;
  // An urgent newcomer each second would otherwise keep it waiting for ever.
  for (int i = 0; i < 40 && std::find(admitted.begin(), admitted.end(), old) == admitted.end();
       ++i) {
    office.Submit(now, {1}, 2);
    now += kSecond;
    const std::vector<Waiter*> some = office.Serve(now);
    admitted.insert(admitted.end(), some.begin(), some.end());
  }
  ASSERT_NE(std::find(admitted.begin(), admitted.end(), old), admitted.end());
  // Two steps of ten seconds make it equal to whoever comes then, and it was taken in first.
  EXPECT_EQ(old->at(), kStart + 21 * kSecond);
}

TEST(Scheduler, NobodyPassesTheHeadOnTheLimitThatBindsItAndOthersMay) {
  Office office({Make(Shape::kBucket, 10), Make(Shape::kBucket, 10)}, {0, 1});
  ASSERT_TRUE(office.TryTake(kStart, {10, 0}));
  Waiter* head = office.Submit(kStart, {10, 5});
  Waiter* behind = office.Submit(kStart, {1, 0});
  Waiter* beside = office.Submit(kStart, {0, 5});
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{beside});
  // Not on the fast path, either.
  EXPECT_FALSE(office.TryTake(kStart + kSecond / 2, {1, 0}));
  EXPECT_TRUE(office.TryTake(kStart + kSecond / 2, {0, 5}));
  // The guard of ten a second is 56.25 ms.
  const Nanos full = kStart + kSecond + 56'250 * kMicrosecond;
  EXPECT_EQ(office.Serve(full - 1), std::vector<Waiter*>{});
  EXPECT_EQ(office.Serve(full), std::vector<Waiter*>{head});
  EXPECT_EQ(office.Serve(full + 156'250 * kMicrosecond - 1), std::vector<Waiter*>{});
  EXPECT_EQ(office.Serve(full + 156'250 * kMicrosecond), std::vector<Waiter*>{behind});
}

TEST(Scheduler, ALargeOneIsNotStarvedByOnesThatTakeTurnsOnItsTwoLimits) {
  // It needs much of both; small ones of one each are always there, and each limit binds in turn.
  Office office({Make(Shape::kBucket, 10), Make(Shape::kBucket, 10)}, {0, 1});
  ASSERT_TRUE(office.TryTake(kStart, {10, 10}));
  Waiter* large = office.Submit(kStart, {5, 6});
  Nanos now = kStart;
  for (int i = 0; i < 400 && large->outcome() == Outcome::kWaiting; ++i) {
    office.Submit(now, {1, 0});
    office.Submit(now, {0, 1});
    office.TryTake(now, {1, 0});
    office.TryTake(now, {0, 1});
    office.Serve(now);
    now += 50 * kMillisecond;
  }
  EXPECT_EQ(large->outcome(), Outcome::kAdmitted);
  EXPECT_LE(large->at(), kStart + 3 * kSecond);
}

TEST(Scheduler, ANewcomerBehindABlockedHeadDoesNotWakeAnybody) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  office.Submit(kStart, {1});
  office.Serve(kStart);
  office.Submit(kStart, {1});
  EXPECT_FALSE(office.woken);
  office.Submit(kStart, {1}, 1);
  EXPECT_TRUE(office.woken) << "a more urgent one may go first";
}

TEST(Scheduler, ADeadlineThatCannotBeMetFailsAtSubmissionWithTheInstantItWouldHaveTaken) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  Waiter* ahead = office.Submit(kStart, {1});
  Waiter* late = office.Submit(kStart, {1}, 0, kStart + 2 * kSecond - 1);
  Waiter* just = office.Submit(kStart, {1}, 0, kStart + 2 * kSecond);
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{late});
  EXPECT_EQ(late->outcome(), Outcome::kDeadline);
  EXPECT_EQ(late->at(), kStart + 2 * kSecond);
  EXPECT_EQ(office.Serve(kStart + kSecond), std::vector<Waiter*>{ahead});
  // At its deadline it still goes.
  EXPECT_EQ(office.Serve(kStart + 2 * kSecond), std::vector<Waiter*>{just});
  EXPECT_EQ(just->outcome(), Outcome::kAdmitted);
}

TEST(Scheduler, ADeadlineThatIsReachedFailsAtThatInstant) {
  Office office({Make(Shape::kConcurrency, 1)}, {0});
  Waiter* holder = office.Submit(kStart, {1});
  ASSERT_EQ(office.Serve(kStart), std::vector<Waiter*>{holder});
  const std::unique_ptr<Reservation> held = std::move(office.claimed.at(holder));
  Waiter* w = office.Submit(kStart, {1}, 0, kStart + 5 * kSecond);
  EXPECT_TRUE(office.Serve(kStart).empty());
  EXPECT_EQ(office.next, kStart + 5 * kSecond);
  EXPECT_EQ(office.Serve(kStart + 5 * kSecond), std::vector<Waiter*>{w});
  EXPECT_EQ(w->outcome(), Outcome::kDeadline);
  EXPECT_EQ(w->at(), kUntold);
  EXPECT_TRUE(held->Settle(kStart + 6 * kSecond, {}));
  EXPECT_TRUE(office.TryTake(kStart + 6 * kSecond, {0})) << "nobody waits any more";
}

TEST(Scheduler, WhatCanNeverFitFailsAtOnceEvenBehindOthers) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  office.Submit(kStart, {1});
  Waiter* never = office.Submit(kStart, {2}, -5);
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{never});
  EXPECT_EQ(never->outcome(), Outcome::kNever);
}

TEST(Scheduler, WhoNoLongerFitsALoweredLimitFailsWhenItsTurnComes) {
  Office office({Make(Shape::kBucket, 10)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {10}));
  Waiter* large = office.Submit(kStart, {10});
  Waiter* small = office.Submit(kStart, {1});
  EXPECT_TRUE(office.Serve(kStart).empty());
  office.bucket->SetLimit(kStart, 0, Make(Shape::kBucket, 5), 0, Debt::kProportional);
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{large});
  EXPECT_EQ(large->outcome(), Outcome::kNever);
  EXPECT_EQ(office.Serve(office.next), std::vector<Waiter*>{small});
}

TEST(Scheduler, ARaisedLimitAdmitsAtOnce) {
  Office office({Make(Shape::kBucket, 1, 100 * kSecond)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  Waiter* w = office.Submit(kStart, {1});
  EXPECT_TRUE(office.Serve(kStart).empty());
  office.bucket->SetLimit(kStart, 0, Make(Shape::kBucket, 10, 100 * kSecond), 0, Debt::kAbsolute);
  EXPECT_TRUE(office.woken);
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{w});
}

TEST(Scheduler, ACancelledWaitIsNeverAdmittedAndGivesItsPlaceToTheNext) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  Waiter* first = office.Submit(kStart, {1});
  Waiter* second = office.Submit(kStart, {1});
  office.Serve(kStart);
  office.scheduler.Cancel(first, kStart);
  office.scheduler.Cancel(first, kStart);
  EXPECT_EQ(office.Serve(kStart + kSecond), std::vector<Waiter*>{second});
  EXPECT_EQ(first->outcome(), Outcome::kCancelled);
  EXPECT_EQ(office.scheduler.Depth(*office.bucket, kStart), 0U);
}

TEST(Scheduler, AnAdmissionThatIsCancelledBeforeItIsClaimedIsGivenBack) {
  Office office({Make(Shape::kBucket, 1), Make(Shape::kConcurrency, 1)}, {0, 1});
  Waiter* first = office.Submit(kStart, {1, 1});
  office.scheduler.Advance(kStart);
  office.Drain();
  ASSERT_EQ(first->outcome(), Outcome::kAdmitted);
  office.scheduler.Cancel(first, kStart);
  EXPECT_EQ(first->Claim(kStart), nullptr);
  Waiter* second = office.Submit(kStart, {1, 1});
  EXPECT_EQ(office.Serve(kStart), std::vector<Waiter*>{second});
  EXPECT_EQ(office.bucket->Used(1, kStart), 1);
}

TEST(Scheduler, AnAdmissionThatNobodyEverClaimsIsGivenBack) {
  Office office({Make(Shape::kConcurrency, 1)}, {0});
  Waiter* w = office.scheduler.Submit(office.bucket, Amounts{1}, 0, kStart, kNever, office.mailbox,
                                      nullptr);
  office.scheduler.Advance(kStart);
  office.Drain();
  EXPECT_EQ(office.bucket->Used(0, kStart), 1);
  w->Unref();
  EXPECT_EQ(office.bucket->Used(0, kStart), 0);
}

TEST(Scheduler, WhatIsLeftWhenItForgetsIsStopped) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  Waiter* queued = office.Submit(kStart, {1});
  office.Serve(kStart);
  Waiter* fresh = office.Submit(kStart, {1}, 0, kStart);
  Waiter* cancelled = office.Submit(kStart, {1});
  office.scheduler.Cancel(cancelled, kStart);
  office.scheduler.Forget();
  EXPECT_EQ(queued->outcome(), Outcome::kStopped);
  EXPECT_EQ(fresh->outcome(), Outcome::kStopped);
  EXPECT_EQ(cancelled->outcome(), Outcome::kCancelled);
  EXPECT_TRUE(office.Drain().empty()) << "a child must not write to its parent's descriptors";
  EXPECT_FALSE(office.bucket->has_waiters());
  Waiter* later = office.Submit(kStart + kSecond, {1});
  EXPECT_EQ(office.Serve(kStart + kSecond), std::vector<Waiter*>{later});
}

TEST(Scheduler, TheEstimateCountsThoseAhead) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  for (int i = 0; i < 5; ++i) office.Submit(kStart, {1}, i % 2);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 0, Amounts{1}).ready_at,
            kStart + 6 * kSecond);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 1, Amounts{1}).ready_at,
            kStart + 3 * kSecond);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 2, Amounts{1}).ready_at,
            kStart + kSecond);
  EXPECT_EQ(office.scheduler.Depth(*office.bucket, kStart), 5U);
}

TEST(Scheduler, WhoDoesNotAskForWhatBindsIsNotRefusedForThoseHePasses) {
  for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed}) {
    // One request a second, and a minute's tokens are gone.
    Office office({Make(Shape::kBucket, 1), Make(shape, 1'000, 60 * kSecond)}, {0, 1});
    ASSERT_TRUE(office.TryTake(kStart, {1, 1'000}));
    for (int i = 0; i < 3; ++i) office.Submit(kStart, {1, 1'000});
    office.Serve(kStart);
    EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 0, Amounts{1, 0}).ready_at,
              kStart + kSecond);
    // Those who ask for no tokens stand behind each other only.
    for (int i = 1; i <= 4; ++i) {
      Waiter* w = office.Submit(kStart, {1, 0}, 0, kStart + i * kSecond);
      office.Serve(kStart);
      ASSERT_EQ(w->outcome(), Outcome::kWaiting) << i;
    }
    for (int i = 1; i <= 4; ++i) EXPECT_EQ(office.Serve(kStart + i * kSecond).size(), 1U) << i;
  }
}

// Deadlines are refused by what is foretold, so it should not be later than what comes. Who asks
// for what in a mixed queue is known in part only; in order of all, every other one was too late.
TEST(Scheduler, LittleIsForetoldLaterThanItComes) {
  int all = 0;
  int late = 0;
  for (std::uint64_t run = 0; run < 200; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    std::vector<Limit> limits;
    for (int r = 0; r < 2; ++r) {
      const Shape shape = random.OneIn(3)   ? Shape::kBucket
                          : random.OneIn(2) ? Shape::kWindow
                                            : Shape::kFixed;
      limits.push_back(Make(shape, random.From(1, 20), random.From(1, 60) * kSecond));
    }
    Office office(limits, {0, 1});
    std::map<Waiter*, Nanos> foretold;
    for (int i = 0; i < 40; ++i) {
      Amounts amounts(2);
      for (std::size_t r = 0; r < 2; ++r)
        if (random.OneIn(2)) amounts[r] = random.From(1, (limits[r].burst_or_amount() + 1) / 2);
      if (amounts == Amounts(2)) amounts[0] = 1;
      const Nanos at = office.scheduler.Estimate(*office.bucket, kStart, 0, amounts).ready_at;
      foretold[office.Submit(kStart, amounts)] = at;
    }
    const auto next = [&](Nanos now) {
      return office.woken || office.scheduler.HasWork() ? now : office.next;
    };
    std::size_t over = 0;
    for (Nanos now = kStart; over < foretold.size(); now = next(now)) {
      ASSERT_LT(now, kUntold);
      for (Waiter* w : office.Serve(now)) {
        ++over;
        EXPECT_TRUE(office.claimed.at(w)->Settle(now, {}));
        ++all;
        late += foretold.at(w) > now ? 1 : 0;
      }
    }
  }
  EXPECT_LT(late * 6, all);
}

TEST(Scheduler, WhatOnlyAnswersTellHoldsUpNobodyWhoDoesNotAskForIt) {
  Office office({Make(Shape::kBucket, 1), Make(Shape::kConcurrency, 1)}, {0, 1});
  auto out = std::make_unique<Reservation>();
  ASSERT_FALSE(office.bucket->TryReserve(kStart, Amounts{1, 1}, false, *out));
  office.Submit(kStart, {1, 1});
  office.Serve(kStart);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 0, Amounts{1, 1}).ready_at, kUntold);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 0, Amounts{1, 0}).ready_at,
            kStart + kSecond);
  EXPECT_TRUE(out->Settle(kStart, {}));
}

TEST(Scheduler, ALongQueueIsForetoldNotForEachNewcomerAndStillRightly) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  constexpr int kWaiting = 5'000;
  std::vector<Waiter*> waiting;
  for (int i = 0; i < kWaiting; ++i) waiting.push_back(office.Submit(kStart, {1}));
  office.Serve(kStart);
  // Every other one could only have gone a second earlier.
  int accepted = 0;
  for (int i = 0; i < 2'000; ++i) {
    const Nanos turn = kStart + (kWaiting + accepted + 1) * kSecond;
    const bool early = i % 2 == 0;
    Waiter* w = office.Submit(kStart, {1}, 0, turn - (early ? kSecond : 0));
    office.Serve(kStart);
    ASSERT_EQ(w->outcome(), early ? Outcome::kDeadline : Outcome::kWaiting) << i;
    if (!early) ++accepted;
  }
  // Who stands in front of all of them is none of the newcomers' line that was foretold.
  office.Submit(kStart, {1}, 1);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 1, Amounts{1}).ready_at,
            kStart + 2 * kSecond);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, kStart, 0, Amounts{1}).ready_at,
            kStart + (kWaiting + accepted + 2) * kSecond);
  // What is foretold so is old soon: those who gave up are not counted for ever.
  for (int i = 0; i < 4'000; ++i)
    office.scheduler.Cancel(waiting[static_cast<std::size_t>(i)], kStart);
  const Nanos later = kStart + 20 * kMillisecond;
  office.Serve(later);
  EXPECT_EQ(office.scheduler.Estimate(*office.bucket, later, 0, Amounts{1}).ready_at,
            kStart + (kWaiting + accepted + 2 - 4'000) * kSecond);
}

TEST(Scheduler, ALongQueueIsForetoldRightlyToNewcomersOfSeveralPrioritiesInTurn) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  constexpr int kWaiting = 2'000;
  for (int i = 0; i < kWaiting; ++i) office.Submit(kStart, {1});
  office.Serve(kStart);
  // More priorities than lines are kept of, each with newcomers that could and could not go.
  constexpr int kPriorities = 20;
  std::vector<int> of(kPriorities);
  of[0] = kWaiting;
  for (int i = 0; i < 2'000; ++i) {
    const std::int32_t priority = i % 7 == 0 ? i / 7 % kPriorities : i % 2;
    const bool early = i % 3 == 0;
    Nanos turn = kStart + kSecond;
    for (int p = priority; p < kPriorities; ++p) turn += of[static_cast<std::size_t>(p)] * kSecond;
    Waiter* w = office.Submit(kStart, {1}, priority, turn - (early ? kSecond : 0));
    office.Serve(kStart);
    ASSERT_EQ(w->outcome(), early ? Outcome::kDeadline : Outcome::kWaiting) << i;
    if (!early) ++of[static_cast<std::size_t>(priority)];
  }
}

TEST(Scheduler, HandsOverInOneBatchAndWritesTheDescriptorOnce) {
  for (const WakeFd::Kind kind : {WakeFd::DefaultKind(), WakeFd::Kind::kSocketPair}) {
    Office office({Make(Shape::kBucket, 1'000)}, {0});
    auto* mailbox = new Mailbox(kind);
    std::vector<Waiter*> waiters;
    for (int i = 0; i < 1'000; ++i)
      waiters.push_back(
          office.scheduler.Submit(office.bucket, Amounts{1}, 0, kStart, kNever, mailbox, nullptr));
    pollfd watched{mailbox->wake().fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&watched, 1, 0), 0);
    office.scheduler.Advance(kStart);
    EXPECT_EQ(::poll(&watched, 1, 0), 1);
    std::vector<Waiter*> drained;
    for (Waiter* w = mailbox->Drain(); w != nullptr; w = w->next_in_mailbox) drained.push_back(w);
    EXPECT_EQ(drained, waiters);
    EXPECT_EQ(::poll(&watched, 1, 0), 0);
    for (Waiter* w : waiters) {
      w->Unref();
      w->Unref();
    }
    mailbox->Unref();
  }
}

// Each time that it is driven, several batches, which nobody has drained in between.
TEST(Scheduler, SeveralBatchesComeOutInTheirOrder) {
  Office office({Make(Shape::kBucket, 1'000)}, {0});
  std::vector<Waiter*> waiters;
  for (int time = 0; time < 4; ++time) {
    for (int i = 0; i < 250; ++i) waiters.push_back(office.Submit(kStart, {1}));
    office.scheduler.Advance(kStart);
  }
  EXPECT_EQ(office.Drain(), waiters);
}

// Who comes behind a blocked head wakes nobody, but for one now and then: what is to be done for
// all of them is not left for the instant at which the head can go.
TEST(Scheduler, WhoComesMeanwhileIsTakenInBeforeItIsTimeToGo) {
  Office office({Make(Shape::kBucket, 1)}, {0});
  ASSERT_TRUE(office.TryTake(kStart, {1}));
  office.Submit(kStart, {1});
  office.Serve(kStart);
  int woken = 0;
  for (int i = 0; i < 10'000; ++i) {
    office.Submit(kStart, {1});
    if (!office.woken) continue;
    ++woken;
    EXPECT_TRUE(office.Serve(kStart).empty());
    EXPECT_FALSE(office.scheduler.HasWork());
  }
  EXPECT_GE(woken, 9);
  EXPECT_LE(woken, 20);
}

TEST(Scheduler, AMillionWaitsTakeTwoHundredBytesEach) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr std::size_t kMany = 100'000;  // their allocators take most of the time
#else
  constexpr std::size_t kMany = 1'000'000;
#endif
  EXPECT_LE(sizeof(Waiter), 168U);
  Office office({Make(Shape::kBucket, 1'000'000, 60 * kSecond, 1), Make(Shape::kBucket, 1'000)},
                {0, 1});
  // By resource, as where limits may be learnt.
  const Amounts wanted{1, 0, 0, 0};
  ASSERT_TRUE(office.TryTake(kStart, wanted));
  std::vector<Waiter*> waiters;
  waiters.reserve(kMany);
  const std::size_t before = simulate::AllocatedBytes();
  for (std::size_t i = 0; i < kMany; ++i)
    waiters.push_back(
        office.scheduler.Submit(office.bucket, wanted, 0, kStart, kNever, office.mailbox, nullptr));
  office.Serve(kStart);
  EXPECT_EQ(office.scheduler.Depth(*office.bucket, kStart), kMany);
  EXPECT_LE(simulate::AllocatedBytes() - before, 200 * kMany);
  // A third is cancelled, the rest is served; then the memory is back.
  for (std::size_t i = 0; i < kMany; ++i)
    if (i % 3 == 0) office.scheduler.Cancel(waiters[i], kStart);
  std::size_t admitted = office.Serve(kStart + 60 * kSecond).size();
  while (office.next < kNever) {
    office.claimed.clear();
    admitted += office.Serve(office.next + 60 * kMillisecond).size();
  }
  office.claimed.clear();
  EXPECT_EQ(admitted, kMany - (kMany + 2) / 3);
  for (Waiter* w : waiters) w->Unref();
  EXPECT_LE(simulate::AllocatedBytes(), before + 100'000);
}

TEST(Scheduler, CreditIsAskedForWhomItWouldLetGoAndForNobodyElse) {
  Limit credit;
  credit.amount = Limit::kMaxAmount;
  credit.resource = "requests";
  credit.shape = Shape::kCredit;
  Office o({Make(Shape::kBucket, 1, 3'600 * kSecond), credit}, {1, 0});
  int asked = 0;
  o.scheduler.SetSupplier(*o.bucket, [&asked] { ++asked; });
  o.bucket->Deposit(1, 1);
  EXPECT_TRUE(o.TryTake(kStart, {1, 1}));
  o.Submit(kStart, {1, 1});
  EXPECT_TRUE(o.Serve(kStart).empty());
  EXPECT_EQ(asked, 0) << "it may not go for an hour";
  Waiter* other = o.Submit(kStart, {1, 0});
  EXPECT_TRUE(o.Serve(kStart).empty());
  EXPECT_EQ(asked, 1);
  const std::vector<Asked> demand = o.scheduler.Demand(*o.bucket, kStart, 50).asked;
  ASSERT_EQ(demand.size(), 1U);
  EXPECT_EQ(demand[0].count, 1U);
  EXPECT_EQ(demand[0].amounts, (absl::InlinedVector<std::int64_t, 4>{1, 0}));
  o.bucket->Deposit(1, 1);
  EXPECT_EQ(o.Serve(kStart), std::vector<Waiter*>{other});
  EXPECT_EQ(asked, 1);
  EXPECT_TRUE(o.Serve(kStart + 3'600 * kSecond).empty());
  EXPECT_EQ(asked, 2) << "now it may";
  EXPECT_EQ(o.bucket->spent(1).taken, 0) << "nothing has ended";
}

TEST(Scheduler, CreditIsAskedForSoMuchAheadAsTheAnswerTakes) {
  Limit credit;
  credit.amount = Limit::kMaxAmount;
  credit.resource = "requests";
  credit.shape = Shape::kCredit;
  Office o({Make(Shape::kBucket, 1, kSecond), credit}, {0, 0});
  int asked = 0;
  constexpr Nanos kAhead = kSecond / 10;
  o.scheduler.SetSupplier(
      *o.bucket, [&asked] { ++asked; }, kAhead);
  o.bucket->Deposit(1, 1);
  EXPECT_TRUE(o.TryTake(kStart, {1}));
  Waiter* const next = o.Submit(kStart, {1});
  EXPECT_TRUE(o.Serve(kStart).empty());
  EXPECT_TRUE(o.Serve(kStart + kSecond - kAhead - 1).empty());
  EXPECT_EQ(asked, 0);
  EXPECT_TRUE(o.Serve(kStart + kSecond - kAhead).empty());
  EXPECT_EQ(asked, 1);
  o.bucket->Deposit(1, 1);
  EXPECT_TRUE(o.Serve(kStart + kSecond - 1).empty());
  EXPECT_EQ(o.Serve(kStart + kSecond), std::vector<Waiter*>{next});
}

TEST(Scheduler, CreditIsNotUsedAfterTheInstantUntilWhichItHolds) {
  Limit credit;
  credit.amount = Limit::kMaxAmount;
  credit.resource = "requests";
  credit.shape = Shape::kCredit;
  Office o({credit}, {0});
  o.bucket->Deposit(0, 3);
  o.bucket->meter(0).HoldsUntil(kStart + 5);
  EXPECT_TRUE(o.TryTake(kStart + 5, {1}));
  EXPECT_EQ(o.bucket->meter(0).last_begun(), kStart + 5);
  EXPECT_FALSE(o.TryTake(kStart + 6, {1}));
  EXPECT_EQ(o.bucket->meter(0).last_begun(), kStart + 5);
  EXPECT_EQ(o.bucket->ReadyAt(0, kStart + 6, 1), kUntold);
  EXPECT_EQ(o.bucket->Credit(0), 2) << "it is there to be given back";
  o.bucket->meter(0).HoldsUntil(kStart + 9);
  EXPECT_TRUE(o.TryTake(kStart + 6, {1}));
}

TEST(Scheduler, CreditIsUsedWhenWhoWaitedForItGoesOn) {
  Limit credit;
  credit.amount = Limit::kMaxAmount;
  credit.resource = "requests";
  credit.shape = Shape::kCredit;
  Office o({credit}, {0});
  Meter& meter = o.bucket->meter(0);
  Waiter* const first = o.Submit(kStart, {2});
  Waiter* const second = o.Submit(kStart, {3});
  EXPECT_TRUE(o.Serve(kStart).empty());
  o.bucket->Deposit(0, 5);
  o.scheduler.Advance(kStart + 1);
  EXPECT_EQ(o.Drain(), (std::vector<Waiter*>{first, second}));
  EXPECT_EQ(o.bucket->Credit(0), 0);
  EXPECT_EQ(meter.unbegun(), 5);
  EXPECT_EQ(meter.last_begun(), 0);
  const std::unique_ptr<Reservation> gone_on = first->Claim(kStart + 7);
  EXPECT_EQ(meter.unbegun(), 3);
  EXPECT_EQ(meter.last_begun(), kStart + 7);
  o.scheduler.Cancel(second, kStart + 8);
  EXPECT_EQ(meter.unbegun(), 0);
  EXPECT_EQ(o.bucket->Credit(0), 3);
  EXPECT_EQ(meter.last_begun(), kStart + 7);
  EXPECT_TRUE(gone_on->Settle(kStart + 9, {}));
  EXPECT_EQ(o.bucket->spent(0).taken, 2);
  EXPECT_EQ(o.bucket->Withdraw(0, 9), 3);
  EXPECT_EQ(meter.last_begun(), kStart + 7) << "nobody has used that";
}

}  // namespace
}  // namespace headway
