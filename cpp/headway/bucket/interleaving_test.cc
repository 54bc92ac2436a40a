// headway/bucket/interleaving_test.cc: every order of steps of a few threads at one bucket.
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "headway/base/pause.h"
#include "headway/bucket/bucket.h"
#include "headway/simulate/explorer.h"

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

namespace headway {
namespace {

using simulate::Explorer;
using simulate::Interleaving;

Limit Make(Shape shape, std::int64_t amount, Nanos period = 10 * kSecond) {
  Limit limit;
  limit.amount = amount;
  limit.resource = shape == Shape::kConcurrency ? "concurrency" : "requests";
  limit.period = shape == Shape::kConcurrency ? 0 : period;
  limit.shape = shape;
  return Limit::Make(limit).value();
}

// A bucket with a signal that counts. Resource i is counted by limit i.
class Stage final : public WaiterSignal {
 public:
  explicit Stage(const std::vector<Limit>& limits, int spare = 0) {
    std::vector<std::uint8_t> resources;
    for (std::size_t i = 0; i < limits.size(); ++i)
      resources.push_back(static_cast<std::uint8_t>(i));
    bucket_ = Bucket::Make(limits, resources, 0, this, spare, static_cast<int>(limits.size()));
  }
  ~Stage() { bucket_->Unref(); }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  void Signal(Bucket&) override { ++signals; }
  Bucket& operator*() { return *bucket_; }
  Bucket* operator->() { return bucket_; }

  int signals = 0;

 private:
  Bucket* bucket_;
};

constexpr Nanos kNow = 100 * kSecond;
using Amounts = std::vector<std::int64_t>;

bool Reserve(Stage& stage, const Amounts& amounts, Reservation& out, Nanos now = kNow) {
  return !stage->TryReserve(now, amounts, /*privileged=*/false, out);
}

// Explores, says how many schedules there were, and expects none to fail.
void Explore(const std::string& what, int preemptions, const std::function<Interleaving()>& make) {
  const Explorer::Result result = Explorer::Explore(make, preemptions, 400'000);
  EXPECT_EQ(result.failure, "") << what;
  EXPECT_TRUE(result.complete) << what << ": more than " << result.schedules << " schedules";
  std::printf("  %-60s %8llu schedules, %llu steps\n", what.c_str(),
              static_cast<unsigned long long>(result.schedules),
              static_cast<unsigned long long>(result.steps));
}

// Never more are out than there are places for, and who has ended gives back one, once: of its own
// beginning.
TEST(Interleaving, NoMoreAreOutThanABucketThatOpensHasPlacesFor) {
  for (const bool narrows : {false, true}) {
    Explore(narrows ? "opening, begun anew" : "opening", 4, [narrows] {
      struct State {
        Opening opening;
        std::uint16_t first = 0;
        std::uint16_t taken[2] = {0, 0};
        bool in[2] = {false, false};
      };
      auto state = std::make_shared<State>();
      state->opening.Narrow(kNow, kSecond);
      EXPECT_TRUE(state->opening.Enter(kNow, state->first));
      const auto enters = [state](int i) {
        state->in[i] = state->opening.Enter(kNow, state->taken[i]);
      };
      return Interleaving{{[enters] { enters(0); }, [enters] { enters(1); },
                           [state, narrows] {
                             if (narrows) {
                               state->opening.Narrow(kNow, kSecond);
                             } else {
                               state->opening.Answered(kNow, state->first);
                             }
                             state->opening.Leave(state->first);
                           }},
                          [state, narrows]() -> std::string {
                            // One place of a new beginning, or two that the first's answer has made
                            // of its own.
                            const int places = narrows ? 1 : 2;
                            const int in = state->in[0] + state->in[1];
                            if (in > places) return "too many";
                            for (int i = 0; i < 2; ++i)
                              if (state->in[i]) state->opening.Leave(state->taken[i]);
                            // All of them are free again, and no more.
                            std::uint16_t taken = 0;
                            int free = 0;
                            while (free <= places && state->opening.Enter(kNow, taken)) ++free;
                            return free == places ? "" : "free in the end: " + std::to_string(free);
                          }};
    });
  }
}

// Runs whole threads one after another in every order, and expects of all other schedules that they
// come out like one of those. `outcome` tells what is observable at the end.
struct Observed {
  std::vector<std::function<void()>> threads;
  std::function<std::string()> outcome;
};
void ExpectLinearizable(const std::string& what, int preemptions,
                        const std::function<Observed()>& make) {
  std::set<std::string> sequential;
  Explorer::Explore(
      [&] {
        Observed o = make();
        return Interleaving{o.threads, [&sequential, outcome = o.outcome] {
                              sequential.insert(outcome());
                              return "";
                            }};
      },
      0);
  Explore(what, preemptions, [&] {
    Observed o = make();
    return Interleaving{o.threads, [&sequential, outcome = o.outcome]() -> std::string {
                          const std::string seen = outcome();
                          return sequential.count(seen) != 0
                                     ? ""
                                     : "came out as no order of whole steps does: " + seen;
                        }};
  });
}

std::string Shapes(const std::vector<Limit>& limits) {
  std::string out;
  for (const Limit& limit : limits)
    out += (out.empty() ? "" : "+") + std::string(ShapeName(limit.shape));
  return out;
}

const std::vector<Shape> kAllShapes = {Shape::kBucket, Shape::kWindow, Shape::kFixed,
                                       Shape::kConcurrency};

TEST(Interleaving, TheLastUnitGoesToExactlyOneOfTwo) {
  for (const Shape shape : kAllShapes) {
    Explore("last unit, " + Shapes({Make(shape, 1)}), shape == Shape::kBucket ? -1 : 4, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : stage(limits) {}
        Stage stage;
        Reservation first, second;
        int admitted = 0;
      };
      auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 1)});
      return Interleaving{{[s] { s->admitted += Reserve(s->stage, {1}, s->first); },
                           [s] { s->admitted += Reserve(s->stage, {1}, s->second); }},
                          [s]() -> std::string {
                            if (s->admitted != 1)
                              return std::to_string(s->admitted) + " were admitted";
                            return s->stage->Used(0, kNow) == 1 ? "" : "used is not 1";
                          }};
    });
  }
}

// Whoever adds a limit is told of it, or it counts there.
TEST(Interleaving, WhatIsReservedWhileALimitIsAddedIsMissedByNobody) {
  for (const Shape shape : {Shape::kBucket, Shape::kWindow}) {
    Explore("a limit is added, " + Shapes({Make(shape, 1)}), 4, [shape] {
      struct State {
        Stage stage{{Make(Shape::kWindow, Limit::kMaxAmount)}, 1};
        Reservation reservation;
        std::int64_t told = 0;
      };
      auto s = std::make_shared<State>();
      return Interleaving{{[s] { Reserve(s->stage, {1}, s->reservation); },
                           [s, shape] {
                             s->stage->AddLimit(Make(shape, 9), 0, 0);
                             HEADWAY_PAUSE();
                             s->told = s->stage->history()->Total(0);
                           }},
                          [s]() -> std::string {
                            return s->stage->Used(1, kNow) + s->told >= 1 ? "" : "it was missed";
                          }};
    });
  }
}

// A burst counts as begun before the next mark; a call that found no lock to leave one does not.
TEST(Interleaving, WhatBeganLaterIsNeverTakenForEarlier) {
  Explore("two calls begin while somebody looks", 3, [] {
    struct Scene {
      History history{1};
      std::int64_t least = 0;
    };
    auto scene = std::make_shared<Scene>();
    const auto call = [scene](Nanos at) {
      const std::int64_t one = 1;
      scene->history.Expect(0, 1);
      HEADWAY_PAUSE();
      scene->history.Admit(0, 1);
      HEADWAY_PAUSE();
      scene->history.Mark(at, {&one, 1});
      HEADWAY_PAUSE();
      scene->history.Expect(0, -1);
    };
    call(kNow);
    call(kNow);
    Interleaving interleaving;
    interleaving.threads = {
        [scene] { scene->least = scene->history.AtLeast(0, kNow + kSecond); },
        [call] { call(kNow + 2 * kSecond); },
        [call] { call(kNow + 2 * kSecond + kMillisecond); },
    };
    interleaving.check = [scene, call]() -> std::string {
      call(kNow + 4 * kSecond);
      const std::int64_t later = scene->history.AtLeast(0, kNow + kSecond);
      if (scene->least > 2 || later > 2)
        return "two had begun, and " + std::to_string(scene->least) + ", then " +
               std::to_string(later) + " are said to have";
      return "";
    };
    return interleaving;
  });
}

TEST(Interleaving, OfTwoThatNeedBothLimitsExactlyOneGetsBothAndTheOtherLeavesNothing) {
  const std::vector<std::vector<Limit>> cases = {
      {Make(Shape::kBucket, 2), Make(Shape::kBucket, 1)},
      {Make(Shape::kBucket, 1), Make(Shape::kBucket, 1)},
      {Make(Shape::kConcurrency, 2), Make(Shape::kBucket, 1)},
      {Make(Shape::kWindow, 2), Make(Shape::kBucket, 1)},
      {Make(Shape::kBucket, 2), Make(Shape::kFixed, 1)},
  };
  for (const std::vector<Limit>& limits : cases) {
    Explore("two limits, " + Shapes(limits), 4, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : stage(limits) {}
        Stage stage;
        Reservation first, second;
        int admitted = 0;
      };
      auto s = std::make_shared<State>(limits);
      return Interleaving{{[s] {
                             s->admitted += Reserve(s->stage, {1, 1}, s->first);
                           },
                           [s] {
                             s->admitted += Reserve(s->stage, {1, 1}, s->second);
                           }},
                          [s]() -> std::string {
                            if (s->admitted != 1)
                              return std::to_string(s->admitted) + " were admitted";
                            if (s->stage->Used(0, kNow) != 1 || s->stage->Used(1, kNow) != 1)
                              return "something leaked";
                            return "";
                          }};
    });
  }
}

TEST(Interleaving, WhoeverIsRefusedForAnotherLimitTouchesNothing) {
  // The second limit is used up. Whoever needs only the first is never refused, whatever others
  // try.
  for (const Shape shape : kAllShapes) {
    Explore("refused beside, " + Shapes({Make(shape, 1)}), 5, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : stage(limits) {}
        Stage stage;
        Reservation refused, admitted;
        bool took = false;
        bool took_both = false;
      };
      auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 1), Make(Shape::kBucket, 1)});
      if (!s->stage->TryTake(kNow, Amounts{0, 1})) std::abort();
      return Interleaving{{[s] {
                             s->took_both = Reserve(s->stage, {1, 1}, s->refused);
                           },
                           [s] {
                             s->took = Reserve(s->stage, {1, 0}, s->admitted);
                           }},
                          [s]() -> std::string {
                            if (s->took_both) return "admitted over a limit that was used up";
                            return s->took ? "" : "refused although nothing stood in its way";
                          }};
    });
  }
}

// Somebody waits: sets the flag, looks, and sleeps until the instant that the look told or until it
// is signalled. Whatever another thread does meanwhile, it must not sleep past the instant at which
// it would have fitted in the end.
struct Waiting {
  Stage stage;
  std::vector<std::unique_ptr<Reservation>> held;
  Nanos told = 0;
  int signals_before = 0;

  explicit Waiting(const std::vector<Limit>& limits) : stage(limits) {}
  Reservation& Hold(const Amounts& amounts, Nanos now = kNow) {
    held.push_back(std::make_unique<Reservation>());
    if (!Reserve(stage, amounts, *held.back(), now)) std::abort();
    return *held.back();
  }
  void Wait(const Amounts& amounts, Nanos now) {
    for (;;) {
      signals_before = stage.signals;
      const Denial denial = stage->Look(now, amounts);
      told = denial.ready_at;
      if (told <= now || stage->meter(denial.meter).has_waiters()) return;
      stage->SetWaiters(denial.meter);
      HEADWAY_PAUSE();
    }
  }
  std::string Check(const Amounts& amounts, Nanos now) {
    if (stage.signals > signals_before) return "";
    const Nanos ready = stage->Look(now, amounts).ready_at;
    if (ready >= told) return "";
    return "sleeps until " + std::to_string(told - now) + " and would fit at " +
           std::to_string(ready - now);
  }
};

struct Handshake {
  std::string what;
  std::vector<Limit> limits;
  std::function<void(Waiting&)> before;
  std::function<void(Waiting&)> meanwhile;
  Amounts wanted;
  Nanos now = kNow;
};

void ExpectNoLostWakeUp(const Handshake& h, int preemptions = 5) {
  Explore(h.what + ", " + Shapes(h.limits), preemptions, [&] {
    auto s = std::make_shared<Waiting>(h.limits);
    h.before(*s);
    return Interleaving{{[s, &h] { s->Wait(h.wanted, h.now); }, [s, &h] { h.meanwhile(*s); }},
                        [s, &h] { return s->Check(h.wanted, h.now); }};
  });
}

TEST(Interleaving, NoWakeUpIsLostToACancel) {
  for (const Shape shape : kAllShapes)
    ExpectNoLostWakeUp({"cancel",
                        {Make(shape, 1)},
                        [](Waiting& w) { w.Hold({1}); },
                        [](Waiting& w) { w.held[0]->Cancel(kNow); },
                        {1}});
}

TEST(Interleaving, NoWakeUpIsLostToASettlement) {
  for (const Shape shape : kAllShapes)
    ExpectNoLostWakeUp({"settle",
                        {Make(shape, 2)},
                        [](Waiting& w) { w.Hold({2}); },
                        [](Waiting& w) { w.held[0]->Settle(kNow, Amounts{1}); },
                        {1}});
}

TEST(Interleaving, NoWakeUpIsLostToAnAnswer) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    ExpectNoLostWakeUp({"answer",
                        {Make(shape, 1)},
                        [](Waiting& w) { w.Hold({1}); },
                        [](Waiting& w) { w.held[0]->Answered(kNow, false); },
                        {1}});
    ExpectNoLostWakeUp({"sent",
                        {Make(shape, 1)},
                        [](Waiting& w) { w.Hold({1}); },
                        [](Waiting& w) { w.held[0]->Sent(kNow, kMillisecond); },
                        {1}});
    ExpectNoLostWakeUp({"sent and answered",
                        {Make(shape, 1)},
                        [](Waiting& w) {
                          w.Hold({1});
                          w.held[0]->Sent(kNow, kSecond);
                        },
                        [](Waiting& w) { w.held[0]->Answered(kNow + kMillisecond, false); },
                        {1}});
    // The first call's order tells of the second.
    ExpectNoLostWakeUp({"later answer",
                        {Make(shape, 2)},
                        [](Waiting& w) {
                          w.Hold({1});
                          w.held[0]->Answered(kNow, false);
                          w.Hold({1});
                          w.Hold({0});
                        },
                        [](Waiting& w) { w.held[1]->Answered(kNow + 1, false); },
                        {2}});
  }
}

TEST(Interleaving, NoWakeUpIsLostToAChangedLimit) {
  for (const Shape shape : kAllShapes)
    ExpectNoLostWakeUp(
        {"raised limit",
         {Make(shape, 1)},
         [](Waiting& w) { w.Hold({1}); },
         [shape](Waiting& w) { w.stage->SetLimit(kNow, 0, Make(shape, 5), 0, Debt::kAbsolute); },
         {1}});
}

TEST(Interleaving, NoWakeUpIsLostToAnObservation) {
  ExpectNoLostWakeUp({"lowered",
                      {Make(Shape::kBucket, 1)},
                      [](Waiting& w) { w.Hold({1}); },
                      [](Waiting& w) { w.stage->Lower(0, kNow); },
                      {1}});
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    ExpectNoLostWakeUp({"lowered",
                        {Make(shape, 1)},
                        [](Waiting& w) { w.stage->Raise(0, 1, kNow); },
                        [](Waiting& w) { w.stage->Lower(0, 0); },
                        {1}});
    // While others' use is being entered, nobody can tell when it leaves.
    ExpectNoLostWakeUp({"raised",
                        {Make(shape, 1)},
                        [](Waiting&) {},
                        [](Waiting& w) { w.stage->Raise(0, 1, kNow); },
                        {1}});
  }
}

TEST(Interleaving, NoWakeUpIsLostToAnAdmissionUnderWay) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    ExpectNoLostWakeUp({"taken",
                        {Make(shape, 1)},
                        [](Waiting&) {},
                        [](Waiting& w) { w.stage->TryTake(kNow, Amounts{1}); },
                        {1}});
    ExpectNoLostWakeUp({"charged",
                        {Make(shape, 3)},
                        [](Waiting& w) {
                          w.Hold({2});
                          w.held[0]->Answered(kNow, false);
                        },
                        [](Waiting& w) { w.held[0]->Settle(kNow, Amounts{3}); },
                        {1}});
  }
}

TEST(Interleaving, NoWakeUpIsLostToACellThatLeaves) {
  // A full window is due; another thread lets go of it while we look.
  for (const Shape shape : {Shape::kWindow, Shape::kFixed})
    for (const bool takes : {false, true})
      ExpectNoLostWakeUp(
          {takes ? "freed by a take" : "freed by a look",
           {Make(shape, 2)},
           [](Waiting& w) {
             if (!w.stage->TryTake(kNow, Amounts{1}) || !w.stage->TryTake(kNow, Amounts{1}))
               std::abort();
           },
           [takes](Waiting& w) {
             if (takes) {
               w.stage->TryTake(kNow + 10 * kSecond, Amounts{2});
             } else {
               w.stage->Used(0, kNow + 10 * kSecond);
             }
           },
           {2},
           kNow + 10 * kSecond},
          4);
}

TEST(Interleaving, NoWakeUpIsLostToARollback) {
  // The one that rolls back, because another was faster at the second limit, had the first one's
  // last unit for a moment.
  for (const Shape shape : kAllShapes)
    Explore("rollback, " + Shapes({Make(shape, 1)}), 3, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : waiting(limits) {}
        Waiting waiting;
        Reservation first, second;
        int admitted = 0;
      };
      auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 2), Make(Shape::kBucket, 1)});
      s->waiting.Hold({1, 0});
      if (shape == Shape::kWindow || shape == Shape::kFixed)
        s->waiting.held[0]->Answered(kNow, false);
      return Interleaving{{[s] {
                             s->admitted += Reserve(s->waiting.stage, {1, 1}, s->first);
                           },
                           [s] {
                             s->admitted += Reserve(s->waiting.stage, {0, 1}, s->second);
                           },
                           [s] {
                             s->waiting.Wait({1, 0}, kNow);
                           }},
                          [s]() -> std::string {
                            if (s->admitted > 1) return "too many";
                            return s->waiting.Check({1, 0}, kNow);
                          }};
    });
}

// Cells that are entered, closed and freed by several threads at once.
TEST(Interleaving, CellsKeepEveryUnitWhileTheyAreEnteredClosedAndFreed) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    // Limit 4; two units of before are due at kLater. A, at kLater, takes two; B reads its clock
    // early and enters late; C cancels what it held.
    constexpr Nanos kLater = kNow + 10 * kSecond;
    Explore("enter, free and cancel, " + Shapes({Make(shape, 4)}), 2, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : stage(limits) {}
        Stage stage;
        Reservation cancelled;
        bool a = false, b = false;
      };
      auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 4)});
      if (!s->stage->TryTake(kNow, Amounts{1}) || !s->stage->TryTake(kNow, Amounts{1}))
        std::abort();
      if (!Reserve(s->stage, {1}, s->cancelled, kNow + 1)) std::abort();
      return Interleaving{{[s] { s->a = s->stage->TryTake(kLater, Amounts{2}); },
                           [s] { s->b = s->stage->TryTake(kNow + 2, Amounts{1}); },
                           [s] { s->cancelled.Cancel(kLater); }},
                          [s]() -> std::string {
                            // Of what was admitted, B's unit is inside until its own window is
                            // over.
                            const std::int64_t inside =
                                (s->a ? 2 : 0) +
                                (s->b && s->stage->meter(0).shape() == Shape::kWindow ? 1 : 0);
                            if (s->stage->Used(0, kLater) < inside)
                              return "units were lost: too much fits";
                            if (s->stage->Used(0, kLater + 10 * kSecond + 2) != 0)
                              return "units were kept: too little fits";
                            return s->stage->TryTake(kLater + 10 * kSecond + 2, Amounts{4})
                                       ? ""
                                       : "not all of it fits again";
                          }};
    });
  }
}

TEST(Interleaving, AMemberThatComesWhileItsCellIsEmptiedIsNotLost) {
  // The open cell is due. One thread lets go of it; another, whose clock is behind, joins it.
  constexpr Nanos kLater = kNow + 10 * kSecond;
  Explore("join what leaves", 6, [&] {
    struct State {
      Stage stage{{Make(Shape::kWindow, 32)}};
      bool joined = false;
    };
    auto s = std::make_shared<State>();
    if (!s->stage->TryTake(kNow, Amounts{1})) std::abort();
    return Interleaving{{[s] { s->stage->meter(0).Used(kLater); },
                         [s] { s->joined = s->stage->TryTake(kNow + 1, Amounts{1}); }},
                        [s]() -> std::string {
                          if (!s->joined) return "not admitted";
                          // With it, its cell may stay until it has left.
                          if (s->stage->Used(0, kLater) < 1) return "lost";
                          return s->stage->Used(0, kLater + 1) == 0 ? "" : "never leaves";
                        }};
  });
}

TEST(Interleaving, AStaleEntrantFindsTheOpenCell) {
  // While one thread is about to enter the open cell, that is closed, freed and fresh again.
  Explore("stale entrant", 4, [&] {
    struct State {
      Stage stage{{Make(Shape::kWindow, 3)}};
      bool first = false, second = false;
    };
    auto s = std::make_shared<State>();
    return Interleaving{{[s] { s->first = s->stage->TryTake(kNow, Amounts{1}); },
                         [s] {
                           s->second = s->stage->TryTake(kNow, Amounts{1});
                           s->stage->TryTake(kNow + 11 * kSecond, Amounts{3});
                         }},
                        [s]() -> std::string {
                          if (!s->first && !s->second) return "nobody was admitted";
                          if (s->stage->Used(0, kNow + 30 * kSecond) != 0) return "units were kept";
                          return s->stage->TryTake(kNow + 30 * kSecond, Amounts{3})
                                     ? ""
                                     : "not all of it fits again";
                        }};
  });
}

TEST(Interleaving, AnObservationRepeatedWhileItsUnitsLeaveKeepsThem) {
  constexpr Nanos kLater = kNow + 10 * kSecond;
  Explore("observed again", -1, [&] {
    struct State {
      Stage stage{{Make(Shape::kWindow, 5)}};
      bool took = false;
    };
    auto s = std::make_shared<State>();
    s->stage->Raise(0, 3, kNow);
    return Interleaving{
        {[s] { s->stage->meter(0).Used(kLater); }, [s] { s->stage->Raise(0, 3, kLater); }},
        [s]() -> std::string {
          if (s->stage->Used(0, kLater) != 3)
            return "used " + std::to_string(s->stage->Used(0, kLater));
          return s->stage->Used(0, kLater + 10 * kSecond) == 0 ? "" : "never leaves";
        }};
  });
}

TEST(Interleaving, ATakeAndAChangedLimitComeOutInOneOfTheirOrders) {
  for (const Shape shape : kAllShapes)
    for (const std::int64_t amount : {1, 8})
      for (const Debt debt : {Debt::kAbsolute, Debt::kProportional})
        ExpectLinearizable("take and limit, " + Shapes({Make(shape, 4)}), -1, [&] {
          struct State {
            explicit State(const std::vector<Limit>& limits) : stage(limits) {}
            Stage stage;
            Taken held, taken;
            bool took = false;
          };
          auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 4)});
          // At the meter itself, where a take is one step; with two units held before.
          if (!s->stage->meter(0).Take(kNow, 2, false, true, s->held)) std::abort();
          return Observed{
              {[s] { s->took = s->stage->meter(0).Take(kNow, 2, false, true, s->taken); },
               [s, shape, amount, debt] {
                 s->stage->SetLimit(kNow, 0, Make(shape, amount), 0, debt);
               }},
              [s] {
                return std::to_string(s->took) + " used " +
                       std::to_string(s->stage->Used(0, kNow)) + " one more at " +
                       std::to_string(s->stage->ReadyAt(0, kNow, 1));
              }};
        });
}

TEST(Interleaving, ARefundAndAChangedLimitComeOutInOneOfTheirOrders) {
  for (const std::int64_t amount : {1, 8})
    for (const Debt debt : {Debt::kAbsolute, Debt::kProportional})
      ExpectLinearizable("refund and limit", -1, [&] {
        struct State {
          Stage stage{{Make(Shape::kBucket, 4)}};
          Taken taken;
        };
        auto s = std::make_shared<State>();
        if (!s->stage->meter(0).Take(kNow, 4, false, false, s->taken)) std::abort();
        return Observed{
            {[s, debt] {
               static_cast<void>(s->stage->meter(0).GiveBack(kNow, s->taken, 2, debt, false));
             },
             [s, amount, debt] {
               s->stage->SetLimit(kNow, 0, Make(Shape::kBucket, amount), 0, debt);
             }},
            [s] { return std::to_string(s->stage->ReadyAt(0, kNow, 1)); }};
      });
}

TEST(Interleaving, AnIdleBucketWhoseLimitFallsAdmitsNoStaleBurst) {
  // The word of a full bucket does not change with its limit; the generation in it does.
  Explore("full bucket, lowered", -1, [&] {
    struct State {
      Stage stage{{Make(Shape::kBucket, 10)}};
      Taken taken;
      bool took = false;
      bool changed_first = false, changed = false;
    };
    auto s = std::make_shared<State>();
    return Interleaving{{[s] {
                           s->changed_first = s->changed;
                           s->took = s->stage->meter(0).Take(kNow, 10, false, true, s->taken);
                         },
                         [s] {
                           s->stage->SetLimit(kNow, 0, Make(Shape::kBucket, 1), 0, Debt::kAbsolute);
                           s->changed = true;
                         }},
                        [s]() -> std::string {
                          if (s->changed_first && s->took) return "took ten of one";
                          // Taken before, ten units are owed at one in ten seconds.
                          if (s->took && s->stage->ReadyAt(0, kNow, 1) != kNow + 100 * kSecond)
                            return "the debt is not ten units";
                          return "";
                        }};
  });
}

TEST(Interleaving, AReservationEndsExactlyOnce) {
  for (const Shape shape : kAllShapes)
    Explore("cancel, settle and expire, " + Shapes({Make(shape, 2)}), 4, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : stage(limits) {}
        Stage stage;
        Reservation r;
        int ended = 0;
      };
      auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 2)});
      if (!Reserve(s->stage, {2}, s->r)) std::abort();
      return Interleaving{{[s] { s->ended += s->r.Cancel(kNow); },
                           [s] { s->ended += s->r.Settle(kNow, Amounts{1}); },
                           [s] { s->ended += s->r.Expire(kNow); }},
                          [s, shape]() -> std::string {
                            if (s->ended != 1)
                              return "ended " + std::to_string(s->ended) + " times";
                            const std::int64_t used = s->stage->Used(0, kNow);
                            if (shape == Shape::kConcurrency)
                              return used == 0 ? "" : "concurrency was not given back";
                            if (used < 0 || used > 2) return "used " + std::to_string(used);
                            return s->stage->TryTake(kNow + 20 * kSecond, Amounts{2})
                                       ? ""
                                       : "not all of it fits again";
                          }};
    });
}

TEST(Interleaving, SendingAndAnsweringMayRace) {
  // A transport says "sent" while another thread gives up and lets the reservation expire.
  for (const Shape shape : {Shape::kWindow, Shape::kFixed})
    Explore("sent, answered and expired, " + Shapes({Make(shape, 2)}), 4, [&] {
      struct State {
        explicit State(const std::vector<Limit>& limits) : stage(limits) {}
        Stage stage;
        Reservation r;
      };
      auto s = std::make_shared<State>(std::vector<Limit>{Make(shape, 2)});
      if (!Reserve(s->stage, {2}, s->r)) std::abort();
      return Interleaving{{[s] { s->r.Sent(kNow, kMillisecond); },
                           [s] { s->r.Answered(kNow + 1, false); }, [s] { s->r.Expire(kNow + 2); }},
                          [s]() -> std::string {
                            const Nanos ready = s->stage->ReadyAt(0, kNow + 3, 2);
                            if (ready >= kUntold) return "a pin was left";
                            if (s->stage->Used(0, kNow + 30 * kSecond) != 0)
                              return "units were kept";
                            Reservation again;
                            if (!Reserve(s->stage, {2}, again, kNow + 30 * kSecond))
                              return "not all of it fits again";
                            return s->stage->ReadyAt(0, kNow + 30 * kSecond, 1) == kUntold
                                       ? ""
                                       : "the next one holds nothing";
                          }};
    });
}

TEST(Interleaving, SlotsReservedByTwoThreadsNeverShareAnInstant) {
  Explore("reserve at", 4, [&] {
    struct State {
      Stage stage{{Make(Shape::kBucket, 1, kSecond), Make(Shape::kBucket, 2, kSecond)}};
      Reservation a, b;
      Nanos at_a = 0, at_b = 0;
    };
    auto s = std::make_shared<State>();
    return Interleaving{
        {[s] {
           s->at_a = s->stage->ReserveAt(kNow, Amounts{1, 1}, s->a);
         },
         [s] {
           s->at_b = s->stage->ReserveAt(kNow, Amounts{1, 1}, s->b);
         }},
        [s]() -> std::string {
          const Nanos apart = s->at_a > s->at_b ? s->at_a - s->at_b : s->at_b - s->at_a;
          return apart >= kSecond ? "" : "two slots " + std::to_string(apart) + " ns apart";
        }};
  });
}

}  // namespace
}  // namespace headway

#endif  // HEADWAY_PAUSE_POINTS
