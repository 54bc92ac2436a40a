// headway/meter/cell_meter_test.cc: `window` and `fixed` admit what a server's own list would.
#include "headway/meter/cell_meter.h"

#include <map>
#include <queue>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/memory.h"
#include "headway/simulate/oracle.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::FixedOracle;
using simulate::Random;
using simulate::WindowOracle;

Limit Make(Shape shape, std::int64_t amount, Nanos period,
           std::optional<Nanos> anchor = std::nullopt) {
  Limit limit;
  limit.amount = amount;
  limit.resource = "requests";
  limit.period = period;
  limit.shape = shape;
  limit.anchor = anchor;
  return Limit::Make(limit).value();
}

// An admission that needs no answer.
bool Take(Meter& m, Nanos now, std::int64_t amount) {
  Taken taken;
  return m.Take(now, amount, /*pass_waiters=*/false, /*answered=*/true, taken);
}

// One that waits for its answer.
Taken Hold(Meter& m, Nanos now, std::int64_t amount) {
  Taken taken;
  EXPECT_TRUE(m.Take(now, amount, false, /*answered=*/false, taken));
  return taken;
}

bool Cancel(Meter& m, Nanos now, const Taken& taken) {
  return m.GiveBack(now, taken, taken.amount, Debt::kAbsolute, /*cancel=*/true);
}

struct Admitted {
  Nanos at;
  Taken taken;
  std::int64_t left;
};

// A random life beside the oracle, of admissions that are counted when they are admitted. `late`:
// how much later than the oracle the meter may admit.
template <typename Oracle>
void LiveBesideTheOracle(Random& random, const Limit& limit, Oracle oracle, Nanos late) {
  Meter meter(limit, 0);
  Nanos now = random.From(0, Nanos{1} << 56);
  std::vector<Admitted> admitted;
  for (int op = 0; op < 150; ++op) {
    std::int64_t cost = random.OneIn(4)
                            ? limit.amount
                            : random.From(1, std::max<std::int64_t>(1, limit.amount / 8));
    if (random.OneIn(10)) cost = std::min(limit.amount + 1, Limit::kMaxAmount);
    const Nanos ready = meter.ReadyAt(now, cost);
    const Nanos expected = oracle.ReadyAt(now, cost);
    if (expected == simulate::kOracleNever) {
      ASSERT_EQ(ready, kNever);
    } else {
      ASSERT_GE(ready, expected);
      ASSERT_LE(ready, expected + late);
    }
    switch (random.From(0, 7)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        if (ready > now && ready < kUntold && random.OneIn(2)) {
          // A look lets go of what has left, so it counts as the clock having been there.
          ASSERT_EQ(meter.ReadyAt(ready - 1, cost), ready) << "fits earlier than it said";
          ASSERT_FALSE(Take(meter, ready - 1, cost));
          now = ready;
        }
        const bool fits = meter.ReadyAt(now, cost) <= now;
        Admitted a{now, {}, cost};
        ASSERT_EQ(meter.Take(now, cost, false, true, a.taken), fits);
        if (!fits) break;
        oracle.Add(now, cost);
        admitted.push_back(a);
        break;
      }
      case 4: {
        if (admitted.empty()) break;
        Admitted& a = admitted[static_cast<std::size_t>(
            random.From(0, static_cast<std::int64_t>(admitted.size()) - 1))];
        // At most half, so that what is left still fills cells.
        const std::int64_t back = random.From(0, a.left - (a.taken.amount + 1) / 2);
        EXPECT_FALSE(meter.GiveBack(now, a.taken, back, Debt::kAbsolute, false));
        oracle.Add(a.at, -back);
        a.left -= back;
        break;
      }
      case 5:
        if (!random.OneIn(4)) break;
        meter.Charge(now, Taken{}, std::max<std::int64_t>(1, limit.amount / 16));
        oracle.Add(now, std::max<std::int64_t>(1, limit.amount / 16));
        break;
      default:
        if (random.OneIn(4)) break;  // the clock stands still
        now += random.OneIn(10) ? 3600 * kSecond : random.From(0, limit.period / 4);
    }
  }
  const Nanos empty = now + 2 * limit.period;
  EXPECT_EQ(meter.Used(empty), 0);
}

TEST(WindowMeter, AdmitsWhatTheOracleAdmitsAndASixteenthOfAWindowLaterAtMost) {
  for (std::uint64_t run = 0; run < 1'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const Limit limit =
        simulate::AnyLimit(random, random.OneIn(2) ? Shape::kWindow : Shape::kUnknown);
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheOracle(
        random, limit, WindowOracle(limit.amount, limit.period), limit.period / Cells::kSplit));
  }
}

TEST(FixedMeter, AdmitsExactlyWhatTheOracleAdmits) {
  for (std::uint64_t run = 0; run < 1'000; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const Limit limit = simulate::AnyLimit(random, Shape::kFixed);
    ASSERT_NO_FATAL_FAILURE(LiveBesideTheOracle(
        random, limit, FixedOracle(limit.amount, limit.period, limit.anchor.value_or(0)),
        /*late=*/0));
  }
}

TEST(FixedMeter, ItsAnchorIsToldOnTheWallClock) {
  // The monotonic clock began 250 s after an anchor's instant.
  Meter meter(Make(Shape::kFixed, 1, 100 * kSecond, 1'000 * kSecond),
              /*wall_offset=*/1'250 * kSecond);
  ASSERT_TRUE(Take(meter, 0, 1));
  EXPECT_EQ(meter.ReadyAt(0, 1), 50 * kSecond);
  EXPECT_EQ(meter.ReadyAt(50 * kSecond - 1, 1), 50 * kSecond);
  EXPECT_TRUE(Take(meter, 50 * kSecond, 1));
}

// The wall clock is read when a limit is made or changed. A step in between moves nothing; one that
// a change of the limit brings along moves the windows, and none of the new ones admits too much.
TEST(FixedMeter, AdmitsWhatTheOracleAdmitsWhileTheWallClockSteps) {
  for (std::uint64_t run = 0; run < 500; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const Limit limit = Make(Shape::kFixed, random.From(1, 40), random.From(1, 60) * kSecond);
    Nanos wall = random.From(0, 365 * kDay);
    Meter meter(limit, wall);
    FixedOracle oracle(limit.amount, limit.period, -wall);
    bool told = false;
    Nanos now = random.From(0, kDay);
    for (int op = 0; op < 150; ++op) {
      now += random.OneIn(20) ? 3600 * kSecond : random.From(0, limit.period / 4);
      if (random.OneIn(10)) wall += random.From(-3600 * kSecond, 3600 * kSecond);
      if (random.OneIn(30)) {
        EXPECT_FALSE(meter.SetLimit(now, limit, wall, Debt::kAbsolute));
        oracle = FixedOracle(limit.amount, limit.period, -wall);
        told = true;
      }
      const std::int64_t cost = random.From(1, limit.amount);
      const bool fits = oracle.ReadyAt(now, cost) == now;
      const bool took = Take(meter, now, cost);
      // What was used before the windows moved still counts in them.
      ASSERT_TRUE(told ? !took || fits : took == fits);
      if (took) oracle.Add(now, cost);
    }
    ASSERT_LE(oracle.Most(), limit.amount);
    ASSERT_TRUE(Take(meter, now + 2 * limit.period, limit.amount));
  }
}

TEST(WindowMeter, SaysWhatItHoldsAndWhatOfThatLeavesWhen) {
  for (std::uint64_t run = 0; run < 200; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    constexpr Nanos kPeriod = 100 * kSecond;
    Meter meter(Make(Shape::kWindow, 1'000'000, kPeriod), 0);
    struct Member {
      Nanos counted;  // kUntold: not answered
      Taken taken;
    };
    std::vector<Member> members;
    std::map<std::uint64_t, Nanos> left;  // by run: when it did
    Nanos now = kSecond;
    for (int op = 0; op < 100; ++op) {
      now += random.From(0, 3 * kSecond);
      if (random.OneIn(2)) {
        members.push_back({kUntold, Hold(meter, now, random.From(1, 9))});
      } else if (!members.empty()) {
        Member& one = members[static_cast<std::size_t>(
            random.From(0, static_cast<std::int64_t>(members.size()) - 1))];
        if (one.counted == kUntold) {
          static_cast<void>(meter.Answered(one.taken, now, Answer::kBounded, /*pinned=*/true));
          one.counted = now;
        }
      }
      std::vector<Departure> departures;
      const std::int64_t held = meter.Holds(departures);
      std::int64_t inside = 0;
      std::int64_t open = 0;
      for (const Member& one : members) {
        if (one.counted == kUntold) open += one.taken.amount;
        if (one.counted > now - kPeriod) inside += one.taken.amount;
      }
      EXPECT_GE(held, inside);
      std::int64_t leaving = 0;
      for (const Departure& each : departures) {
        EXPECT_GT(each.at, 0);
        EXPECT_LE(each.at, now + kPeriod);
        EXPECT_EQ(left.count(each.run), 0U) << "a number is not used twice";
        leaving += each.amount;
      }
      EXPECT_GE(held - leaving, open) << "what is not answered leaves at no known instant";
      for (const Departure& each : departures)
        if (each.at <= now) left[each.run] = each.at;
      static_cast<void>(meter.Used(now));  // lets go of what has left
    }
  }
}

TEST(FixedMeter, ACellEndsWithItsWindow) {
  // One just before the boundary and one just after it, in what would be one cell elsewhere.
  Meter meter(Make(Shape::kFixed, 160, 10 * kSecond), 0);
  const Nanos boundary = kDay;
  ASSERT_TRUE(Take(meter, boundary - 100 * kMillisecond, 100));
  ASSERT_TRUE(Take(meter, boundary - 50 * kMillisecond, 4));
  ASSERT_TRUE(Take(meter, boundary + 50 * kMillisecond, 1));
  EXPECT_EQ(meter.Used(boundary + 50 * kMillisecond), 1);
  EXPECT_TRUE(Take(meter, boundary + 60 * kMillisecond, 159));
}

TEST(WindowMeter, ReusesASlotExactlyOneWindowLater) {
  Meter meter(Make(Shape::kWindow, 3, 10 * kSecond), 0);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Take(meter, i * kSecond, 1));
  EXPECT_FALSE(Take(meter, 10 * kSecond - 1, 1));
  EXPECT_TRUE(Take(meter, 10 * kSecond, 1));
  EXPECT_EQ(meter.ReadyAt(10 * kSecond, 1), 11 * kSecond);
  EXPECT_EQ(meter.ReadyAt(10 * kSecond, 2), 12 * kSecond);
  EXPECT_EQ(meter.ReadyAt(10 * kSecond, 4), kNever);
}

TEST(CellMeter, AdmitsTheLastUnitOfEveryBurst) {
  for (std::int64_t amount = 1; amount <= 1000; ++amount) {
    for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
      Meter meter(Make(shape, amount, 60 * kSecond), 0);
      const Nanos now = 60 * kSecond * amount;
      for (std::int64_t i = 0; i < amount; ++i)
        ASSERT_TRUE(Take(meter, now, 1)) << i << " of " << amount;
      ASSERT_FALSE(Take(meter, now, 1)) << amount;
      ASSERT_EQ(meter.ReadyAt(now, 1), now + 60 * kSecond);
      ASSERT_EQ(meter.ReadyAt(now, amount), now + 60 * kSecond);
    }
  }
}

TEST(CellMeter, StandsAbsurdLimits) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    for (const Nanos period : {Limit::kMinPeriod, Limit::kMaxPeriod}) {
      Meter none(Make(shape, 0, period), 0);
      EXPECT_EQ(none.ReadyAt(0, 1), kNever);
      EXPECT_FALSE(Take(none, 0, 1));
      EXPECT_TRUE(Take(none, 0, 0));
      none.Charge(0, Taken{}, 5);
      EXPECT_EQ(none.Used(0), 5);
      EXPECT_EQ(none.Used(period), 0);

      Meter most(Make(shape, Limit::kMaxAmount, period), 0);
      EXPECT_TRUE(Take(most, 0, Limit::kMaxAmount));
      EXPECT_EQ(most.ReadyAt(0, Limit::kMaxAmount), period);
      for (int i = 0; i < 300; ++i) most.Charge(0, Taken{}, Limit::kMaxAmount);
      EXPECT_GT(most.Used(0), Limit::kMaxAmount);
      EXPECT_TRUE(Take(most, period, Limit::kMaxAmount));
    }
  }
}

TEST(WindowMeter, NeverExceedsTheLimitOnAClockThatStepsBack) {
  for (std::uint64_t run = 0; run < 500; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const Limit limit =
        Make(Shape::kWindow, random.From(1, 100), random.From(1, 1000) * kMillisecond);
    Meter meter(limit, 0);
    std::vector<std::pair<Nanos, std::int64_t>> admitted;
    Nanos now = kDay;
    Nanos latest = now;
    Nanos furthest = 0;
    for (int i = 0; i < 300; ++i) {
      now +=
          random.OneIn(3) ? -random.From(0, limit.period / 50) : random.From(0, limit.period / 20);
      latest = std::max(latest, now);
      furthest = std::max(furthest, latest - now);
      const std::int64_t cost = random.From(1, std::max<std::int64_t>(1, limit.amount / 4));
      if (Take(meter, now, cost)) admitted.emplace_back(now, cost);
    }
    // What left by the later clock is not taken back by the earlier one, so a window may lack the
    // step.
    WindowOracle oracle(limit.amount, limit.period - furthest);
    for (const auto& [at, cost] : admitted) oracle.Add(at, cost);
    ASSERT_LE(oracle.Most(), limit.amount);
  }
}

// A server that counts with a list, at instants of its own between sending and answering.
struct Call {
  Taken taken;
  Nanos began;
  Nanos counted;
  Nanos answered;
  bool bounded;
  Nanos counted_by;
  bool refused;
  bool operator>(const Call& other) const { return answered > other.answered; }
};

enum class How { kTransport, kOpaqueInOrder, kOpaqueInAnyOrder, kOpaqueCalm, kMixed };

void ServeCalls(Random& random, Shape shape, How how) {
  const Limit limit = Make(shape, random.Magnitude(8), random.From(1, 60) * kSecond);
  Meter meter(limit, 0);
  WindowOracle window(limit.amount, limit.period);
  FixedOracle fixed(limit.amount, limit.period, 0);
  // The server takes at least this long for its work, which is what the margin may say.
  const Nanos work = random.OneIn(2) ? random.From(0, 3 * kSecond) : 0;
  if (random.OneIn(2)) meter.SetMargin(random.From(0, work));
  const bool calm = how == How::kOpaqueCalm;
  const bool in_order = how == How::kOpaqueInOrder || calm;
  if (!in_order) meter.StopTrustingOrder();
  const Nanos network = random.From(
      0, calm ? std::clamp(limit.period / 100, 20 * kMillisecond, 250 * kMillisecond) : kSecond);
  std::priority_queue<Call, std::vector<Call>, std::greater<>> out;
  Nanos now = random.From(0, kDay);
  Nanos last_counted = now;
  const auto begin = [&](Call call) {
    call.bounded = how == How::kTransport || (how == How::kMixed && random.OneIn(2));
    call.refused = !in_order && random.OneIn(20);
    call.began = now;
    if (calm) meter.Begun(call.taken, now, 0);
    call.counted = now + random.From(0, network);
    if (in_order) call.counted = last_counted = std::max(call.counted, last_counted);
    call.answered = call.counted + work + random.From(0, random.OneIn(3) ? 90 * kSecond : kSecond);
    // Where the network's delay is known, a refusal is counted within it like everything else.
    if (call.refused && !call.bounded) call.counted = call.answered;
    if (call.bounded) {
      call.counted_by = now + network;
      EXPECT_FALSE(meter.Sent(call.taken, call.counted_by));
    }
    out.push(call);
    // The worst that may be: what the server refused, it counted nevertheless.
    window.Add(call.counted, call.taken.amount);
    fixed.Add(call.counted, call.taken.amount);
  };
  // Admitted for those who go on only later, and when they do.
  std::multimap<Nanos, Taken> late;
  const auto go_on = [&] {
    now = std::max(now, late.begin()->first);
    Call call;
    call.taken = late.begin()->second;
    late.erase(late.begin());
    if (random.OneIn(10)) {
      EXPECT_FALSE(Cancel(meter, now, call.taken));
      return;
    }
    EXPECT_FALSE(meter.Begin(now, call.taken));
    begin(call);
  };
  int served = 0;
  while (served < 200) {
    const std::int64_t cost = random.OneIn(6)
                                  ? limit.amount
                                  : random.From(1, std::max<std::int64_t>(1, limit.amount / 4));
    // Nothing but answers and time makes it fit.
    for (;;) {
      const Nanos ready = meter.ReadyAt(now, cost);
      if (ready <= now) break;
      const Nanos next = out.empty() ? kNever : out.top().answered;
      if (!late.empty() && late.begin()->first <= std::min(next, ready)) {
        go_on();
        continue;
      }
      if (next <= ready) {
        ASSERT_LT(next, kUntold) << "waits for an answer, and none is out";
        const Call call = out.top();
        out.pop();
        now = std::max(now, call.answered);
        if (call.refused) {
          EXPECT_FALSE(meter.Answered(call.taken, call.answered, Answer::kRefused, !call.bounded));
        } else if (call.bounded) {
          EXPECT_FALSE(meter.Answered(call.taken, std::min(call.answered, call.counted_by),
                                      Answer::kBounded, false));
        } else {
          EXPECT_FALSE(meter.Answered(call.taken, call.answered,
                                      calm ? Answer::kQuiet : Answer::kOpaque, true, call.began));
        }
        if (random.OneIn(3)) {
          // Less was used than was estimated; the server is told nothing, which is the worse for
          // us.
          EXPECT_FALSE(meter.GiveBack(now, call.taken, 0, Debt::kAbsolute, false));
        }
        continue;
      }
      ASSERT_FALSE(Take(meter, ready - 1, cost));
      now = ready;
    }
    Call call;
    const bool waits = random.OneIn(4);
    ASSERT_TRUE(meter.Take(now, cost, false, false, call.taken, !waits));
    if (waits) {
      late.emplace(now + random.From(0, random.OneIn(3) ? 3 * limit.period : kSecond), call.taken);
    } else {
      begin(call);
    }
    ++served;
    if (random.OneIn(3)) now += random.From(0, limit.period / 8);
    while (!late.empty() && late.begin()->first <= now) go_on();
  }
  while (!late.empty()) go_on();
  ASSERT_LE(shape == Shape::kFixed ? fixed.Most() : window.Most(), limit.amount) << limit.Format();
  for (; !out.empty(); out.pop()) {
    const Call& call = out.top();
    now = std::max(now, call.answered);
    EXPECT_FALSE(meter.Answered(call.taken, now, call.bounded ? Answer::kBounded : Answer::kOpaque,
                                !call.bounded));
  }
  ASSERT_EQ(meter.ReadyAt(now + 2 * limit.period, limit.amount), now + 2 * limit.period);
  ASSERT_EQ(meter.Used(now + 2 * limit.period), 0);
}

void ServeManyCalls(How how) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    for (std::uint64_t run = 0; run < 300; ++run) {
      Random random(Random::Seed(run));
      SCOPED_TRACE(random.Describe());
      ASSERT_NO_FATAL_FAILURE(ServeCalls(random, shape, how));
    }
  }
}

TEST(CellMeter, TheServerNeverCountsTooMuchThroughATransport) { ServeManyCalls(How::kTransport); }
TEST(CellMeter, TheServerNeverCountsTooMuchOfOpaqueCallsInOrder) {
  ServeManyCalls(How::kOpaqueInOrder);
}
TEST(CellMeter, TheServerNeverCountsTooMuchOfOpaqueCallsInAnyOrder) {
  ServeManyCalls(How::kOpaqueInAnyOrder);
}
TEST(CellMeter, TheServerNeverCountsTooMuchOfCalmCallsThatAreNotAnsweredYet) {
  ServeManyCalls(How::kOpaqueCalm);
}
TEST(CellMeter, TheServerNeverCountsTooMuchOfAMixture) { ServeManyCalls(How::kMixed); }

constexpr Nanos kWindow = 10 * kSecond;

TEST(WindowMeter, ACallThatWasSentLeavesAWindowAfterTheNetworkDelay) {
  Meter meter(Make(Shape::kWindow, 1, kWindow), 0);
  const Taken taken = Hold(meter, 0, 1);
  EXPECT_EQ(meter.ReadyAt(0, 1), kUntold);
  EXPECT_FALSE(meter.Sent(taken, 20 * kMillisecond));
  EXPECT_EQ(meter.ReadyAt(0, 1), 20 * kMillisecond + kWindow);
  // Headers that are in earlier tell more.
  EXPECT_FALSE(meter.Answered(taken, 5 * kMillisecond, Answer::kBounded, false));
  EXPECT_EQ(meter.ReadyAt(0, 1), 5 * kMillisecond + kWindow);
}

TEST(WindowMeter, AnOpaqueCallLeavesAWindowAfterItsAnswerLessTheMargin) {
  Meter meter(Make(Shape::kWindow, 1, kWindow), 0);
  meter.SetMargin(3 * kSecond);
  const Taken taken = Hold(meter, kSecond, 1);
  EXPECT_EQ(meter.ReadyAt(kSecond, 1), kUntold);
  EXPECT_FALSE(meter.Answered(taken, 7 * kSecond, Answer::kOpaque, true));
  EXPECT_EQ(meter.ReadyAt(7 * kSecond, 1), 4 * kSecond + kWindow);
  // A larger margin later changes nothing, a smaller one does.
  meter.SetMargin(5 * kSecond);
  EXPECT_EQ(meter.ReadyAt(7 * kSecond, 1), 4 * kSecond + kWindow);
  meter.SetMargin(kSecond);
  EXPECT_EQ(meter.ReadyAt(7 * kSecond, 1), 6 * kSecond + kWindow);
}

TEST(WindowMeter, AnOpaqueCallIsNeverCountedBeforeItWasAdmitted) {
  Meter meter(Make(Shape::kWindow, 1, kWindow), 0);
  meter.SetMargin(3 * kSecond);
  const Taken taken = Hold(meter, kSecond, 1);
  EXPECT_FALSE(meter.Answered(taken, 2 * kSecond, Answer::kOpaque, true));
  EXPECT_EQ(meter.ReadyAt(2 * kSecond, 1), kSecond + kWindow);
}

TEST(WindowMeter, LaterAnswersTellOfEarlierCallsWhileTheOrderIsTrusted) {
  for (const bool trusted : {true, false}) {
    Meter meter(Make(Shape::kWindow, 2, kWindow), 0);
    if (!trusted) meter.StopTrustingOrder();
    const Taken first = Hold(meter, 0, 1);
    const Taken second = Hold(meter, kSecond, 1);
    EXPECT_FALSE(meter.Answered(second, 2 * kSecond, Answer::kOpaque, true));
    EXPECT_EQ(meter.ReadyAt(2 * kSecond, 1), 2 * kSecond + kWindow);
    // Both have left soon after if calls are counted nearly in the order in which they start:
    // within 1 % of the window.
    const Nanos then = 2 * kSecond + kWindow / 100 + kWindow;
    EXPECT_EQ(meter.ReadyAt(2 * kSecond, 2), trusted ? then : kUntold);
    EXPECT_EQ(meter.Used(then), trusted ? 0 : 1);
    // Its own answer, long after it has left, changes nothing any more.
    EXPECT_FALSE(meter.Answered(first, then + kSecond, Answer::kOpaque, true));
    EXPECT_EQ(meter.ReadyAt(then + kSecond, 2),
              trusted ? then + kSecond : then + kSecond + kWindow);
  }
}

TEST(WindowMeter, ACalmCallLeavesUnansweredOnceALaterOneIsAnswered) {
  constexpr Nanos kGuard = 250 * kMillisecond;
  const Nanos later = kDay + 5 * kSecond;
  const auto first_leaves = [&](Nanos waited, Nanos waited_later) {
    Meter meter(Make(Shape::kWindow, 160, 60 * kSecond), 0);
    Taken first;
    Taken second;
    EXPECT_TRUE(meter.Take(kDay, 10, false, false, first));
    meter.Begun(first, kDay, waited);
    EXPECT_EQ(meter.ReadyAt(kDay, 160), kUntold);
    EXPECT_TRUE(meter.Take(later, 10, false, false, second));
    meter.Begun(second, later, waited_later);
    EXPECT_EQ(meter.ReadyAt(later, 150), kUntold) << "nothing shows yet that the network works";
    EXPECT_FALSE(meter.Answered(second, later + kSecond, Answer::kQuiet, true, later));
    return meter.ReadyAt(later + kSecond, 150);
  };
  EXPECT_EQ(first_leaves(0, 0), kDay + kGuard + 60 * kSecond);
  EXPECT_EQ(first_leaves(kSecond, 0), kDay + kSecond + kGuard + 60 * kSecond);
  // A crowd long after it does not touch it; in a crowd itself, the order alone tells.
  EXPECT_EQ(first_leaves(0, kSecond), kDay + kGuard + 60 * kSecond);
  EXPECT_EQ(first_leaves(kUntold, 0), later + kGuard + 60 * kSecond);
}

TEST(WindowMeter, ACrowdTellsOfThoseJustBeforeIt) {
  Meter meter(Make(Shape::kWindow, 160, 60 * kSecond), 0);
  std::vector<Taken> taken(4);
  for (std::size_t i = 0; i < taken.size(); ++i) {
    // Four cells of ten, 20 ms apart: the last one's crowd reaches back over two of them.
    const Nanos now = kDay + static_cast<Nanos>(i) * 20 * kMillisecond;
    ASSERT_TRUE(meter.Take(now, 10, false, false, taken[i]));
    meter.Begun(taken[i], now, i == 3 ? kUntold : 0);
  }
  Taken later;
  const Nanos then = kDay + 5 * kSecond;
  ASSERT_TRUE(meter.Take(then, 10, false, false, later));
  meter.Begun(later, then, 0);
  EXPECT_FALSE(meter.Answered(later, then + kSecond, Answer::kQuiet, true, then));
  // 110 are free; with the first cell 120; with the crowd, when the later call tells of it, 150.
  const Nanos guard = 250 * kMillisecond;
  EXPECT_EQ(meter.ReadyAt(then, 120), kDay + guard + 60 * kSecond);
  EXPECT_EQ(meter.ReadyAt(then, 130), then + guard + 60 * kSecond);
  EXPECT_EQ(meter.ReadyAt(then, 150), then + guard + 60 * kSecond);
}

TEST(WindowMeter, AReservationHeldThroughFourThousandGenerationsGivesNothingBack) {
  Meter meter(Make(Shape::kWindow, 16, kSecond), 0);
  Taken held;
  Nanos now = kDay;
  ASSERT_TRUE(meter.Take(now, 1, false, false, held));
  EXPECT_FALSE(meter.Answered(held, now, Answer::kBounded, true));
  // The same cell, until its twelve bits are the same again.
  for (int round = 0; round < 4096 * 64; ++round) {
    now += 2 * kSecond;
    ASSERT_TRUE(Take(meter, now, 1));
  }
  EXPECT_EQ(meter.Used(now), 1);
  EXPECT_FALSE(meter.GiveBack(now, held, 1, Debt::kAbsolute, false));
  EXPECT_EQ(meter.Used(now), 1);
}

TEST(WindowMeter, ARefusedCallIsCountedWhenItsRefusalArrives) {
  Meter meter(Make(Shape::kWindow, 1, kWindow), 0);
  meter.SetMargin(3 * kSecond);
  const Taken taken = Hold(meter, 0, 1);
  EXPECT_FALSE(meter.Answered(taken, 5 * kSecond, Answer::kRefused, true));
  EXPECT_EQ(meter.ReadyAt(5 * kSecond, 1), 5 * kSecond + kWindow);
}

TEST(FixedMeter, ACallThatMayBeCountedInTheNextWindowHoldsItsSlotThere) {
  Meter meter(Make(Shape::kFixed, 1, kWindow), 0);
  const Taken taken = Hold(meter, kWindow - kSecond, 1);
  EXPECT_EQ(meter.ReadyAt(kWindow, 1), kUntold);
  EXPECT_FALSE(meter.Sent(taken, kWindow + kSecond));
  EXPECT_EQ(meter.ReadyAt(kWindow, 1), 2 * kWindow);
  EXPECT_FALSE(meter.Answered(taken, kWindow - 1, Answer::kBounded, false));
  EXPECT_EQ(meter.ReadyAt(kWindow, 1), kWindow);
}

TEST(CellMeter, AThousandCostsCancelledOutOfClosedCellsAreAllGivenBack) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    for (std::uint64_t run = 0; run < 20; ++run) {
      Random random(Random::Seed(run));
      SCOPED_TRACE(random.Describe());
      const Limit limit = Make(shape, 1'000'000, 60 * kSecond);
      Meter meter(limit, 0);
      std::vector<Taken> taken;
      std::int64_t sum = 0;
      Nanos now = 0;
      for (int i = 0; i < 1'000; ++i) {
        const std::int64_t cost = random.From(1, 900);
        taken.push_back(Hold(meter, now, cost));
        sum += cost;
        now += random.From(0, 110 * kMillisecond);
      }
      ASSERT_EQ(meter.Used(now), sum);
      std::shuffle(taken.begin(), taken.end(), random.engine());
      for (const Taken& t : taken) {
        EXPECT_FALSE(Cancel(meter, now, t));
        sum -= t.amount;
        ASSERT_EQ(meter.Used(now), sum);
      }
      ASSERT_TRUE(Take(meter, now, 1'000'000));
      ASSERT_FALSE(Take(meter, now, 1));
    }
  }
}

TEST(CellMeter, KeepsItsBooksThroughALimitChangeWithTenInFlight) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    for (const std::int64_t amount : {50, 1000}) {
      const Nanos now = 6 * kWindow;
      Meter meter(Make(shape, 100, kWindow), 0);
      std::vector<Taken> taken;
      for (int i = 0; i < 10; ++i) taken.push_back(Hold(meter, now, 6));
      EXPECT_FALSE(meter.SetLimit(now, Make(shape, amount, kWindow), 0, Debt::kAbsolute));
      EXPECT_EQ(meter.Used(now), 60);
      EXPECT_EQ(meter.ReadyAt(now, 1), amount < 60 ? kUntold : now);
      for (std::size_t i = 0; i < taken.size(); ++i) {
        if (i % 2 == 0) {
          EXPECT_FALSE(meter.Answered(taken[i], now, Answer::kOpaque, true));
        }
        EXPECT_FALSE(
            meter.GiveBack(now, taken[i], i % 2 == 0 ? 5 : 6, Debt::kAbsolute, i % 2 != 0));
      }
      EXPECT_EQ(meter.Used(now), 5);
      EXPECT_EQ(meter.ReadyAt(now, amount - 5), now);
      EXPECT_EQ(meter.ReadyAt(now, amount - 4), now + kWindow);
    }
  }
}

TEST(CellMeter, OthersUseIsOneCellThatTheNextObservationReplaces) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    Meter meter(Make(shape, 10, kWindow), 0);
    meter.Raise(4, kSecond);
    EXPECT_EQ(meter.Used(kSecond), 4);
    meter.Raise(3, 2 * kSecond);
    EXPECT_EQ(meter.Used(2 * kSecond), 4);
    meter.Raise(7, 3 * kSecond);
    EXPECT_EQ(meter.Used(3 * kSecond), 7);
    EXPECT_EQ(meter.ReadyAt(3 * kSecond, 4),
              shape == Shape::kFixed ? kWindow : 3 * kSecond + kWindow);
    meter.SetWaiters();
    EXPECT_FALSE(meter.Lower(8));
    EXPECT_TRUE(meter.Lower(2));
    EXPECT_EQ(meter.Used(4 * kSecond), 2);
    // That it is no more says of none that it is still there.
    EXPECT_EQ(meter.Used(3 * kSecond + kWindow), 0);
    EXPECT_TRUE(meter.TakeOwedSignal()) << "it left while somebody waited";
  }
}

TEST(CellMeter, UsesMoreThanNinetyEightHundredthsOfTheLimit) {
  // Under steady pressure from single units, whatever the shape.
  for (const Shape shape : {Shape::kWindow, Shape::kFixed}) {
    Meter meter(Make(shape, 600, 60 * kSecond), 0);
    std::int64_t admitted = 0;
    Nanos now = 0;
    while (now < 3600 * kSecond) {
      now = meter.ReadyAt(now, 1);
      if (now < 3600 * kSecond && Take(meter, now, 1)) ++admitted;
      now += 7 * kMillisecond;
    }
    EXPECT_GE(admitted, 36'000 * 98 / 100);
    EXPECT_LE(admitted, 36'000);
  }
}

TEST(CellMeter, NothingGrowsWithWhatItServes) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed, Shape::kBucket}) {
    Meter meter(Make(shape, 1'000, kSecond), 0);
    Take(meter, 0, 1);
    const std::size_t before = simulate::AllocatedBytes();
    Nanos now = 0;
    for (int i = 0; i < 100'000; ++i) {
      now += kMillisecond;
      Taken taken;
      if (!meter.Take(now, 1, false, i % 2 == 0, taken)) continue;
      if (i % 2 != 0) {
        EXPECT_FALSE(meter.Answered(taken, now, Answer::kOpaque, true));
      }
    }
    EXPECT_EQ(simulate::AllocatedBytes(), before);
  }
}

TEST(CellMeter, AFullRingOfUnansweredCellsAdmitsOnAndLosesNothing) {
  // Stragglers hold every cell; what comes then joins the open one.
  Meter meter(Make(Shape::kWindow, 10'000, kWindow), 0);
  std::vector<Taken> taken;
  Nanos now = 0;
  for (int i = 0; i < 500; ++i) {
    taken.push_back(Hold(meter, now, 1));
    now += kWindow / 16;
  }
  EXPECT_EQ(meter.Used(now), 500);
  for (const Taken& t : taken) EXPECT_FALSE(meter.Answered(t, now, Answer::kOpaque, true));
  EXPECT_EQ(meter.Used(now + kWindow), 0);
  EXPECT_TRUE(Take(meter, now + kWindow, 10'000));
}

}  // namespace
}  // namespace headway
