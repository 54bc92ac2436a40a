// headway/schedule/handshake_test.cc: in every order of steps, the scheduler is woken when it has
// to be.
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "headway/base/pause.h"
#include "headway/schedule/scheduler.h"
#include "headway/simulate/explorer.h"

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

namespace headway {
namespace {

using simulate::Explorer;
using simulate::Interleaving;
using Amounts = std::vector<std::int64_t>;

constexpr Nanos kNow = 100 * kSecond;

Limit Make(Shape shape, std::int64_t amount) {
  Limit limit;
  limit.amount = amount;
  limit.resource = shape == Shape::kConcurrency ? "concurrency" : "requests";
  limit.period = shape == Shape::kConcurrency ? 0 : 10 * kSecond;
  limit.shape = shape;
  return Limit::Make(limit).value();
}

// A scheduler whose driver goes to sleep as the dispatcher does, and whoever wakes it is noted.
struct Night {
  explicit Night(const Limit& limit, int spare = 0)
      : scheduler([this] {
          if (asleep) woken = true;
        }),
        bucket(Bucket::Make({&limit, 1}, std::vector<std::uint8_t>{0}, 0, &scheduler, spare, 1)) {}
  ~Night() {
    for (Waiter* w : waiters)
      if (w != nullptr) w->Unref();
    Drain();
    scheduler.Forget();
    mailbox->Unref();
    bucket->Unref();
  }
  Night(const Night&) = delete;
  Night& operator=(const Night&) = delete;

  void Drain() {
    for (Waiter* w = mailbox->Drain(); w != nullptr;) {
      Waiter* next = w->next_in_mailbox;
      ++posted;
      w->Unref();
      w = next;
    }
  }

  // As the dispatcher: serve, say that one sleeps, look once more, sleep.
  void DriveUntilAsleep() {
    for (;;) {
      asleep = false;
      next = scheduler.Advance(kNow);
      HEADWAY_PAUSE();
      asleep = true;
      HEADWAY_PAUSE();
      if (!scheduler.HasWork()) return;
    }
  }

  void Submit(std::size_t i, std::int32_t priority = 0) {
    waiters.resize(std::max(waiters.size(), i + 1));
    Waiter* w = scheduler.Submit(bucket, Amounts{1}, priority, kNow, kNever, mailbox, nullptr);
    waiters[i] = w;
  }

  // Everybody has gone to bed. If the driver was woken it serves; then nobody may be left who fits,
  // nor who would fit before the driver wakes by itself.
  std::string Morning() {
    if (woken) DriveUntilAsleep();
    for (Waiter* w : waiters) {
      if (w == nullptr || w->outcome() != Outcome::kWaiting) continue;
      const Nanos ready = bucket->Look(kNow, Amounts{1}).ready_at;
      if (ready <= kNow) return "somebody sleeps who would fit";
      if (ready < next && ready < kUntold) return "the driver sleeps too long";
    }
    return "";
  }

  bool asleep = false;
  bool woken = false;
  int posted = 0;
  Nanos next = kNever;
  Scheduler scheduler;
  Bucket* bucket;
  Mailbox* mailbox = new Mailbox;
  std::vector<Waiter*> waiters;
  Reservation held;
};

void Explore(const std::string& what, int preemptions, const std::function<Interleaving()>& make) {
  const Explorer::Result result = Explorer::Explore(make, preemptions, 400'000);
  EXPECT_EQ(result.failure, "") << what;
  EXPECT_TRUE(result.complete) << what;
  std::printf("  %-60s %8llu schedules, %llu steps\n", what.c_str(),
              static_cast<unsigned long long>(result.schedules),
              static_cast<unsigned long long>(result.steps));
}

const std::vector<Shape> kAllShapes = {Shape::kBucket, Shape::kWindow, Shape::kFixed,
                                       Shape::kConcurrency};

// One unit is held, somebody waits for it, and another thread makes it available.
void ExpectWoken(
    const std::string& what, Shape shape, const std::function<void(Night&)>& meanwhile,
    const std::function<void(Night&)>& before = [](Night&) {}) {
  Explore(what + ", " + std::string(ShapeName(shape)), 4, [&] {
    auto n = std::make_shared<Night>(Make(shape, 1));
    if (n->bucket->TryReserve(kNow, Amounts{1}, false, n->held)) std::abort();
    before(*n);
    n->Submit(0);
    return Interleaving{
        {[n] { n->DriveUntilAsleep(); }, [n, &meanwhile] { meanwhile(*n); }}, [n]() -> std::string {
          const std::string wrong = n->Morning();
          if (!wrong.empty()) return wrong;
          return n->bucket->Used(0, kNow) <= n->bucket->meter(0).Capacity() ? "" : "too many";
        }};
  });
}

TEST(Handshake, TheDriverIsWokenByACancel) {
  for (const Shape shape : kAllShapes)
    ExpectWoken("cancel", shape, [](Night& n) { n.held.Cancel(kNow); });
}

TEST(Handshake, TheDriverIsWokenByASettlement) {
  for (const Shape shape : kAllShapes)
    ExpectWoken("settle", shape, [](Night& n) { n.held.Settle(kNow, Amounts{0}); });
}

TEST(Handshake, TheDriverIsWokenByAnAnswer) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    ExpectWoken("answer", shape, [](Night& n) { n.held.Answered(kNow, false); });
    ExpectWoken("sent", shape, [](Night& n) { n.held.Sent(kNow, 0); });
    ExpectWoken(
        "answer to what was sent", shape, [](Night& n) { n.held.Answered(kNow + 1, false); },
        [](Night& n) { n.held.Sent(kNow, kSecond); });
  }
}

// The unit that somebody waits for was admitted for another, who goes on only now.
TEST(Handshake, TheDriverIsWokenByWhoeverGoesOnLate) {
  for (const bool stays : {false, true})
    for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed})
      Explore(std::string(stays ? "goes on, is answered, " : "goes on, cancels, ") +
                  std::string(ShapeName(shape)),
              4, [&] {
                auto n = std::make_shared<Night>(Make(shape, 1));
                // Of a `bucket` the refill has let the next one in by now.
                const Nanos admitted = shape == Shape::kBucket ? kNow - 10 * kSecond : kNow;
                if (n->bucket->TryReserve(admitted, Amounts{1}, /*privileged=*/true, n->held))
                  std::abort();
                n->Submit(0);
                return Interleaving{{[n] { n->DriveUntilAsleep(); },
                                     [n, stays] {
                                       n->held.Begin(kNow);
                                       if (stays) {
                                         n->held.Answered(kNow, false);
                                       } else {
                                         n->held.Cancel(kNow);
                                       }
                                     }},
                                    [n]() -> std::string {
                                      const std::string wrong = n->Morning();
                                      if (!wrong.empty()) return wrong;
                                      return n->bucket->Used(0, kNow) == 1 ? "" : "used is not 1";
                                    }};
              });
}

TEST(Handshake, TheDriverIsWokenByARaisedLimit) {
  for (const Shape shape : kAllShapes)
    ExpectWoken("raised limit", shape, [shape](Night& n) {
      n.bucket->SetLimit(kNow, 0, Make(shape, 9), 0, Debt::kAbsolute);
    });
}

TEST(Handshake, TheDriverIsWokenByASubmission) {
  for (const Shape shape : kAllShapes)
    Explore("submit, " + std::string(ShapeName(shape)), 4, [&] {
      auto n = std::make_shared<Night>(Make(shape, 1));
      return Interleaving{
          {[n] { n->DriveUntilAsleep(); }, [n] { n->Submit(0); }}, [n]() -> std::string {
            const std::string wrong = n->Morning();
            if (!wrong.empty()) return wrong;
            return n->waiters[0]->outcome() == Outcome::kAdmitted ? "" : "not admitted";
          }};
    });
}

// While nothing is known, one is out alone; its answer, or its giving up, lets others go.
TEST(Handshake, TheDriverIsWokenByTheFirstAnswer) {
  for (const bool answers : {true, false}) {
    const auto make = [answers] {
      Limit open = Make(Shape::kWindow, 1);
      open.amount = Limit::kMaxAmount;
      auto night = std::make_shared<Night>(open, 2);
      night->bucket->StartCold(15 * kSecond);
      EXPECT_FALSE(night->bucket->TryReserve(kNow, Amounts{1}, false, night->held));
      return Interleaving{{[night] { night->DriveUntilAsleep(); }, [night] { night->Submit(0); },
                           [night, answers] {
                             if (answers) {
                               night->held.Answered(kNow, /*refused=*/false);
                             } else {
                               night->held.Cancel(kNow);
                             }
                           }},
                          [night] { return night->Morning(); }};
    };
    Explore(answers ? "the first answer" : "a first that does not go", 3, make);
  }
}

// Where few may be out as nothing is known: a good answer makes room, and so does whoever ends.
TEST(Handshake, TheDriverIsWokenAsTheBucketOpens) {
  const std::vector<std::pair<std::string, std::function<void(Night&)>>> ways = {
      {"a good answer", [](Night& night) { night.held.Answered(kNow, /*refused=*/false); }},
      {"a failure",
       [](Night& night) {
         night.held.Failed();
         night.held.Settle(kNow, {});
       }},
      {"a cancel", [](Night& night) { night.held.Cancel(kNow); }},
      {"what is known", [](Night& night) { night.bucket->EndOpening(); }},
  };
  for (const auto& [what, way] : ways) {
    const auto make = [&way = way] {
      Limit open = Make(Shape::kWindow, 1);
      open.amount = Limit::kMaxAmount;
      auto night = std::make_shared<Night>(open, 2);
      night->bucket->Narrow(kNow, 15 * kSecond);
      EXPECT_FALSE(night->bucket->TryReserve(kNow, Amounts{1}, false, night->held));
      return Interleaving{
          {[night] { night->DriveUntilAsleep(); }, [night] { night->Submit(0); },
           [night, &way] { way(*night); }},
          [night]() -> std::string {
            const std::string wrong = night->Morning();
            if (!wrong.empty()) return wrong;
            return night->waiters[0]->outcome() == Outcome::kAdmitted ? "" : "not admitted";
          }};
    };
    Explore("opens by " + what, 3, make);
  }
}

TEST(Handshake, ANewcomerWhoWakesNobodyIsFoundWhenTheHeadGoes) {
  // It stands behind a blocked head, so it wakes nobody; meanwhile that head goes, or gives up.
  for (const bool cancels : {false, true})
    for (const Shape shape : {Shape::kBucket, Shape::kConcurrency})
      Explore(
          std::string(cancels ? "head gives up, " : "head goes, ") + std::string(ShapeName(shape)),
          3, [&] {
            auto n = std::make_shared<Night>(Make(shape, 1));
            if (n->bucket->TryReserve(kNow, Amounts{1}, false, n->held)) std::abort();
            n->Submit(0);
            n->waiters.resize(2);
            n->DriveUntilAsleep();
            return Interleaving{{[n] { n->DriveUntilAsleep(); }, [n] { n->Submit(1); },
                                 [n, cancels] {
                                   if (cancels) n->scheduler.Cancel(n->waiters[0], kNow);
                                   n->held.Cancel(kNow);
                                 }},
                                [n]() -> std::string {
                                  const std::string wrong = n->Morning();
                                  if (!wrong.empty()) return wrong;
                                  const bool first = n->waiters[0]->outcome() == Outcome::kAdmitted;
                                  const bool second =
                                      n->waiters[1]->outcome() == Outcome::kAdmitted;
                                  return first != second ? "" : "not exactly one was admitted";
                                }};
          });
}

TEST(Handshake, ACancelledWaitIsAdmittedOrCancelledAndItsUnitIsNeverLost) {
  for (const Shape shape : kAllShapes)
    Explore("cancel a wait, " + std::string(ShapeName(shape)), 4, [&] {
      auto n = std::make_shared<Night>(Make(shape, 1));
      n->Submit(0);
      n->Submit(1);
      return Interleaving{
          {[n] { n->DriveUntilAsleep(); }, [n] { n->scheduler.Cancel(n->waiters[0], kNow); }},
          [n, shape]() -> std::string {
            std::string wrong = n->Morning();
            if (!wrong.empty()) return wrong;
            // Whether it was admitted or not, it has given its unit back.
            if (n->waiters[0]->Claim(kNow) != nullptr)
              return "a reservation was left to the one who cancelled";
            if (n->waiters[0]->outcome() == Outcome::kWaiting) return "still waits";
            if (n->waiters[1]->outcome() != Outcome::kAdmitted) return "the next was not admitted";
            return n->bucket->Used(0, kNow) == 1
                       ? ""
                       : "used " + std::to_string(n->bucket->Used(0, kNow));
          }};
    });
}

TEST(Handshake, TwoWhoGiveBackAtOnceLoseNoSignal) {
  for (const Shape shape : {Shape::kBucket, Shape::kConcurrency})
    Explore("two give back, " + std::string(ShapeName(shape)), 3, [&] {
      auto n = std::make_shared<Night>(Make(shape, 2));
      auto other = std::make_shared<Reservation>();
      if (n->bucket->TryReserve(kNow, Amounts{1}, false, n->held)) std::abort();
      if (n->bucket->TryReserve(kNow, Amounts{1}, false, *other)) std::abort();
      n->Submit(0);
      n->Submit(1);
      return Interleaving{{[n] { n->DriveUntilAsleep(); }, [n] { n->held.Cancel(kNow); },
                           [n, other] { other->Cancel(kNow); }},
                          [n]() -> std::string {
                            const std::string wrong = n->Morning();
                            if (!wrong.empty()) return wrong;
                            for (Waiter* w : n->waiters)
                              if (w->outcome() != Outcome::kAdmitted)
                                return "somebody was not admitted";
                            return "";
                          }};
    });
}

// A gate with one place, which is taken, and two buckets with somebody who waits for it.
struct GateNight {
  GateNight() {
    const Limit one = Make(Shape::kConcurrency, 1);
    gate = Bucket::Make({&one, 1}, std::vector<std::uint8_t>{0}, 0, &scheduler);
    scheduler.SetChooser(
        *gate, [this] { asked = true; }, kSecond);
    for (int i = 0; i < 2; ++i) {
      buckets.push_back(Bucket::Make({}, std::vector<std::uint8_t>{}, 0, &scheduler));
      paths.push_back(new Path(buckets.back(), gate, nullptr));
    }
    if (paths[0]->TryReserve(kNow, Amounts{1}, false, held)) std::abort();
    for (const Path* path : paths)
      waiters.push_back(scheduler.Submit(path, Amounts{1}, 0, kNow, kNever, mailbox, nullptr));
  }
  ~GateNight() {
    for (Waiter* w : waiters) w->Unref();
    scheduler.Forget();
    for (Waiter* w = mailbox->Drain(); w != nullptr;) {
      Waiter* next = w->next_in_mailbox;
      w->Unref();
      w = next;
    }
    mailbox->Unref();
    for (const Path* path : paths) path->Unref();
    for (Bucket* bucket : buckets) bucket->Unref();
    gate->Unref();
  }
  GateNight(const GateNight&) = delete;
  GateNight& operator=(const GateNight&) = delete;

  void DriveUntilAsleep(Nanos now = kNow) {
    for (;;) {
      asleep = false;
      next = scheduler.Advance(now);
      HEADWAY_PAUSE();
      asleep = true;
      HEADWAY_PAUSE();
      if (!scheduler.HasWork()) return;
    }
  }
  // Whoever decides looks, when he was asked, and chooses the last.
  void Decide() {
    if (!asked) return;
    asked = false;
    const auto contenders = scheduler.Contenders(*gate, kNow);
    HEADWAY_PAUSE();
    if (!contenders.empty()) scheduler.Choose(*gate, *contenders.back().bucket, kNow);
  }
  int Admitted() const {
    int count = 0;
    for (Waiter* w : waiters) count += w->outcome() == Outcome::kAdmitted ? 1 : 0;
    return count;
  }

  bool asleep = false;
  bool woken = false;
  bool asked = false;
  Nanos next = kNever;
  Scheduler scheduler{[this] {
    if (asleep) woken = true;
  }};
  Bucket* gate;
  std::vector<Bucket*> buckets;
  std::vector<const Path*> paths;
  std::vector<Waiter*> waiters;
  Mailbox* mailbox = new Mailbox;
  Reservation held;
};

TEST(Handshake, WhoDecidesAtTheGateIsAskedAndWhereHeDoesNotTheDriverWakesInTime) {
  for (const bool decides : {true, false})
    Explore(decides ? "a place at the gate, chosen" : "a place at the gate, not chosen", 3, [&] {
      auto n = std::make_shared<GateNight>();
      Interleaving all;
      // What takes the scheduler's lock cannot be held up between its steps: it comes in the
      // driver's thread, after whatever the other one has done by then.
      all.threads.emplace_back([n, decides] {
        n->DriveUntilAsleep();
        if (decides) {
          n->Decide();
        } else {
          // Somebody takes his place, who has to be asked anew.
          n->asked = false;
          n->scheduler.SetChooser(
              *n->gate, [n = n.get()] { n->asked = true; }, kSecond);
        }
        n->woken = true;
      });
      all.threads.emplace_back([n] { n->held.Cancel(kNow); });
      all.check = [n]() -> std::string {
        if (n->woken) n->DriveUntilAsleep();
        if (n->Admitted() == 1) return "";
        if (n->Admitted() > 1) return "more than there is room for";
        if (!n->asked) return "nobody was asked";
        if (n->next != kNow + kSecond) return "the driver sleeps for another time";
        n->DriveUntilAsleep(n->next);
        return n->Admitted() == 1 ? "" : "nobody went after his patience";
      };
      return all;
    });
}

TEST(Handshake, ANewcomerWhoWakesNobodyAtAFullGateIsFoundWhenItOpens) {
  // He stands behind somebody at the gate; meanwhile a place is free there, or that one gives up.
  for (const bool cancels : {false, true})
    Explore(cancels ? "a newcomer, who stands there gives up" : "a newcomer, a place comes free", 3,
            [&] {
              auto n = std::make_shared<GateNight>();
              n->scheduler.SetChooser(*n->gate, nullptr);
              n->scheduler.Cancel(n->waiters[1], kNow);  // the only one at the other bucket
              n->DriveUntilAsleep();
              n->waiters.reserve(3);
              return Interleaving{
                  {[n] { n->DriveUntilAsleep(); },
                   [n] {
                     n->waiters.push_back(n->scheduler.Submit(n->paths[0], Amounts{1}, 0, kNow,
                                                              kNever, n->mailbox, nullptr));
                   },
                   [n, cancels] {
                     if (cancels) n->scheduler.Cancel(n->waiters[0], kNow);
                     n->held.Cancel(kNow);
                   }},
                  [n, cancels]() -> std::string {
                    if (n->woken) n->DriveUntilAsleep();
                    // Who was cancelled when he had been admitted already has left his place.
                    const auto gone =
                        static_cast<int>(cancels && n->waiters[0]->outcome() == Outcome::kAdmitted);
                    return n->Admitted() - gone == 1 ? "" : "not exactly one was admitted";
                  }};
            });
}

TEST(Handshake, AMailboxIsReadableWheneverSomethingIsInIt) {
  // Posting and draining at once: what is in it at the end is announced by the descriptor.
  Explore("post and drain", -1, [] {
    auto n = std::make_shared<Night>(Make(Shape::kConcurrency, 9));
    n->Submit(0);
    n->Submit(1);
    return Interleaving{
        {[n] {
           n->scheduler.Advance(kNow);
           n->Submit(2);
           n->scheduler.Advance(kNow);
         },
         [n] { n->Drain(); }},
        [n]() -> std::string {
          if (n->posted < 3 && n->mailbox->wake().Wait(0) != WakeFd::Wake::kSignalled)
            return "something is in it and nobody is told";
          n->Drain();
          return n->posted == 3 ? "" : std::to_string(n->posted) + " of 3 came out";
        }};
  });
}

}  // namespace
}  // namespace headway

#endif  // HEADWAY_PAUSE_POINTS
