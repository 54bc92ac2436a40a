// headway/observe/learner_test.cc: a bucket that learns, in front of toy servers, in virtual time.
#include "headway/observe/learner.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "headway/base/pause.h"
#include "headway/simulate/explorer.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;

constexpr Nanos kStart = 1'000'000 * kSecond + 123'456'789;
constexpr Nanos kMinute = 60 * kSecond;

// A provider that counts requests, with a plain list of time stamps.
class Server {
 public:
  Server(Shape shape, std::int64_t limit, Nanos period, Nanos anchor, bool when_full = false)
      : shape_(shape), limit_(limit), period_(period), anchor_(anchor), when_full_(when_full) {}

  struct Answer {
    bool refused;
    std::int64_t limit;
    std::int64_t remaining;
    Nanos reset;
    Nanos retry_after;  // of a refusal
  };

  Answer Count(Nanos now) {
    while (!counted_.empty() && Gone(counted_.front(), now)) counted_.pop_front();
    const bool refused = Used(now) + 1 > static_cast<double>(limit_) + 1e-9;
    if (!refused) {
      counted_.push_back(now);
      owed_ = Owed(now) + 1;
      owed_at_ = now;
    }
    return Says(now, refused);
  }

  // What it says later than it has counted.
  Answer SaysLater(Nanos now) const {
    Server then = *this;
    while (!then.counted_.empty() && then.Gone(then.counted_.front(), now))
      then.counted_.pop_front();
    return then.Says(now);
  }

  Answer Says(Nanos now, bool refused = false) {
    const double used = std::ceil(Used(now) - 1e-9);
    Nanos reset = 0;
    if (shape_ == Shape::kBucket) {
      reset = static_cast<Nanos>(Owed(now) * static_cast<double>(period_) /
                                 static_cast<double>(limit_));
    } else if (shape_ == Shape::kFixed) {
      reset = period_ - (now - anchor_) % period_;
    } else if (!counted_.empty()) {
      reset = (when_full_ ? counted_.back() : counted_.front()) + period_ - now;
    }
    Nanos wait = reset;
    if (shape_ == Shape::kBucket) {
      const double more = Owed(now) + 1 - static_cast<double>(limit_);
      wait = static_cast<Nanos>(more * static_cast<double>(period_) / static_cast<double>(limit_));
    } else if (refused && shape_ == Shape::kWindow &&
               counted_.size() >= static_cast<std::size_t>(limit_)) {
      // A limit that was lowered has to lose more than one.
      wait = counted_[counted_.size() - static_cast<std::size_t>(limit_)] + period_ - now;
    }
    return {refused, limit_, std::max<std::int64_t>(0, limit_ - static_cast<std::int64_t>(used)),
            reset, std::max<Nanos>(0, wait)};
  }

  // The latest was not admitted after all.
  void Uncount() {
    counted_.pop_back();
    owed_ -= 1;
  }

  // `proportional`: what is owed is scaled with it. What is counted by now stays so in units, also
  // in another `period`.
  void SetLimit(Nanos now, std::int64_t limit, bool proportional, Nanos period = 0) {
    while (!counted_.empty() && Gone(counted_.front(), now)) counted_.pop_front();
    owed_ = Owed(now);
    owed_at_ = now;
    if (period > 0) period_ = period;
    if (proportional) owed_ *= static_cast<double>(limit) / static_cast<double>(limit_);
    limit_ = limit;
  }

 private:
  double Owed(Nanos now) const {
    const double paid = static_cast<double>(now - owed_at_) * static_cast<double>(limit_) /
                        static_cast<double>(period_);
    return std::max(0.0, owed_ - paid);
  }
  double Used(Nanos now) const {
    return shape_ == Shape::kBucket ? Owed(now) : static_cast<double>(counted_.size());
  }
  bool Gone(Nanos counted, Nanos now) const {
    if (shape_ != Shape::kFixed) return counted + period_ <= now;
    return (counted - anchor_) / period_ != (now - anchor_) / period_;
  }

  Shape shape_;
  std::int64_t limit_;
  Nanos period_;
  Nanos anchor_;
  bool when_full_;
  std::deque<Nanos> counted_;
  double owed_ = 0;
  Nanos owed_at_ = 0;
};

struct Setting {
  Shape shape = Shape::kWindow;
  std::int64_t limit = 600;
  Nanos period = kMinute;
  Nanos anchor = 17 * kSecond;
  Nanos latency = 50 * kMillisecond;  // there and back, with the model's work
  Nanos spread = 0;                   // more of it, at most, by chance
  Nanos work = 0;                     // of the client's loop, for each request and each answer
  int burst = 0;                      // after so many...
  Nanos pause = 0;                    // ... we send nothing, for so long at most
  Nanos grain = 1;                    // resets are rounded up to multiples of it
  bool told_late = false;             // it says what is so as it answers, not as it counts
  bool dated = false;                 // resets are told as instants
  bool when_full = false;             // the reset of a `window` is when all of it has left
  double ratio = 1.0;
  Nanos every = 0;  // we send one so often; 0: always as many as we may
  Nanos other = 0;  // somebody else with our key sends one so often; 0: nobody
  Nanos other_until = kNever;
  const char* given = nullptr;
  // What is sent in the first second gets there, and back, so much later, at most, by chance.
  Nanos stall = 0;
  bool tells_wait = true;        // with a refusal, in whole seconds
  bool floors = false;           // rounded down, and it is not asked any sooner than that
  const char* hidden = nullptr;  // a second limit, of which it says nothing
  bool silent = false;           // it says nothing at all
  int at_once = 0;               // it admits no more than so many at once, either; 0: any number
  Nanos down_from = kNever;      // an outage: everything is refused, from then...
  Nanos down_to = 0;             // ... to then

  std::string Describe() const {
    return std::string(ShapeName(shape)) + ", latency " + std::to_string(latency / kMillisecond) +
           " ms, grain " + std::to_string(grain) + " ns";
  }
};

// A client, the bucket that it asks, and the provider that it calls.
class World {
 public:
  World(const Setting& setting, std::uint64_t seed)
      : setting_(setting),
        server(setting.shape, setting.limit, setting.period, setting.anchor, setting.when_full),
        as_told(server),
        random_(seed) {
    Limit limit = Limit::Parse(setting.given == nullptr ? "1 requests/min" : setting.given).value();
    if (setting.given == nullptr) limit.amount = Limit::kMaxAmount;
    const std::uint8_t requests = 0;
    bucket_ = Bucket::Make({&limit, 1}, {&requests, 1}, 0, nullptr, /*spare=*/8, /*width=*/2);
    learner =
        std::make_unique<Learner>(bucket_, std::vector<std::string>{"requests", "concurrency"},
                                  Learner::Options{setting.ratio, Debt::kAbsolute});
    // The first goes alone: nothing is known before it is answered.
    if (setting.given == nullptr) bucket_->StartCold(kMinute);
    if (setting.hidden != nullptr) {
      const Limit other = Limit::Parse(setting.hidden).value();
      hidden_.emplace(other.shape, other.amount, other.period, 0);
    }
    if (setting.other > 0) At(kStart, [this] { OtherSends(); });
  }
  ~World() {
    events_.clear();
    bucket_->Unref();
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  void Recall(const Limit& limit) { learner->Recall(now, 0, {&limit, 1}, kSecond); }

  void At(Nanos when, std::function<void()> what) { events_.emplace(when, std::move(what)); }

  void RunUntil(Nanos end) {
    while (now < end) {
      Nanos next = end;
      while (in_flight_ < 1'000) {
        if (due_ > now) {
          next = std::min(next, due_);
          break;
        }
        const std::array<std::int64_t, 2> one = {1, 1};
        auto call = std::make_shared<Reservation>();
        if (const auto denial = bucket_->TryReserve(now, one, false, *call)) {
          next = std::min(next, denial->ready_at);
          break;
        }
        if (setting_.every > 0) due_ = now + setting_.every;
        if (setting_.burst > 0 && ++sent_ % setting_.burst == 0)
          due_ = now + Chance(setting_.pause);
        Send(std::move(call));
      }
      if (!events_.empty()) next = std::min(next, events_.begin()->first);
      now = std::max(now, next);
      while (!events_.empty() && events_.begin()->first <= now) {
        const auto what = std::move(events_.begin()->second);
        events_.erase(events_.begin());
        what();
      }
    }
  }

  std::int64_t Admitted(Nanos from, Nanos to) const {
    return std::count_if(admitted.begin(), admitted.end(),
                         [&](Nanos at) { return at >= from && at < to; });
  }
  // How many were refused that were sent so long after the beginning.
  std::ptrdiff_t Refused(Nanos from, Nanos to) const {
    return std::count_if(refused.begin(), refused.end(),
                         [&](Nanos at) { return at >= kStart + from && at < kStart + to; });
  }
  // The most that were admitted within any period.
  std::int64_t MostWithin(Nanos period) const {
    std::int64_t most = 0;
    for (std::size_t first = 0, i = 0; i < admitted.size(); ++i) {
      while (admitted[first] + period <= admitted[i]) ++first;
      most = std::max(most, static_cast<std::int64_t>(i - first + 1));
    }
    return most;
  }
  Finding Found() const { return learner->Findings().at(0); }

 private:
  const Setting setting_;

 public:
  Nanos now = kStart;
  Server server;
  std::unique_ptr<Learner> learner;
  std::vector<Nanos> admitted;                   // when the server counted each of ours
  std::vector<Nanos> refused;                    // when each of ours was sent that it refused
  std::vector<std::pair<Nanos, Nanos>> answers;  // when each was sent and answered
  Nanos told_of_change = kStart;  // when an answer first said the limit that holds now...
  Server as_told;                 // ... and what that was

 private:
  static Nanos WholeSeconds(Nanos wait) { return (wait + kSecond - 1) / kSecond * kSecond; }
  Nanos Stalled() { return now < kStart + kSecond ? Chance(setting_.stall) : 0; }
  Nanos Chance(Nanos most) { return random_.From(0, most); }

  void OtherSends() {
    if (now >= setting_.other_until) return;
    server.Count(now);
    At(now + setting_.other, [this] { OtherSends(); });
  }

  // The client's loop does one thing after another.
  void Work(std::function<void()> what) {
    if (setting_.work == 0) return what();
    busy_until_ = std::max(busy_until_, now) + setting_.work;
    At(busy_until_, std::move(what));
  }
  void Send(std::shared_ptr<Reservation> call) {
    ++in_flight_;
    Work([this, call] { Leave(call); });
  }
  void Leave(const std::shared_ptr<Reservation>& call) {
    call->Sent(now, 20 * kMillisecond);
    At(now + kMillisecond + Chance(15 * kMillisecond) + Stalled(),
       [this, call, sent = now] { Arrive(call, sent); });
  }
  void Arrive(const std::shared_ptr<Reservation>& call, Nanos sent) {
    const bool down = now >= setting_.down_from && now < setting_.down_to;
    Server::Answer answer = down ? server.Says(now, /*refused=*/true) : server.Count(now);
    if (hidden_ && !answer.refused) {
      if (const Server::Answer other = hidden_->Count(now); other.refused) {
        server.Uncount();
        answer = server.Says(now);
        answer.refused = true;
        answer.retry_after = other.retry_after;
      }
    }
    if (!answer.refused && setting_.at_once > 0 && working_ == setting_.at_once) {
      server.Uncount();
      answer = server.Says(now);
      answer.refused = true;
    }
    if (!answer.refused) admitted.push_back(now);
    // A refusal needs no model.
    const Nanos back =
        answer.refused ? 5 * kMillisecond : setting_.latency + Chance(setting_.spread);
    if (!answer.refused) {
      ++working_;
      At(now + back, [this] { --working_; });
    }
    const auto told = std::make_shared<Server::Answer>(answer);
    if (setting_.told_late && !answer.refused)
      At(now + back, [this, told] { *told = server.SaysLater(now); });
    const Nanos full = now + answer.reset;
    At(now + back + Chance(5 * kMillisecond) + Stalled(), [this, call, sent, told, full] {
      if (setting_.dated) told->reset = full - now;
      Work([this, call, sent, told] { Read(call, sent, *told); });
    });
  }
  void Read(const std::shared_ptr<Reservation>& call, Nanos sent, const Server::Answer& answer) {
    --in_flight_;
    if (answer.limit != last_limit_) {
      told_of_change = now;
      as_told = server;
    }
    last_limit_ = answer.limit;
    if (answer.refused) refused.push_back(sent);
    answers.emplace_back(sent, now);
    Reading reading;
    reading.limit = answer.limit;
    reading.remaining = answer.remaining;
    // An instant is rounded as such.
    const Nanos now_or_0 = setting_.dated ? now : 0;
    const Nanos up = answer.reset + now_or_0 + setting_.grain - 1;
    const Nanos reset = up - up % setting_.grain - now_or_0;
    reading.reset = std::max<Nanos>(0, reset);
    reading.dated = setting_.dated;
    if (setting_.dated && setting_.grain == kSecond) reading.coarse = kSecond;
    reading.ago = std::max<Nanos>(0, -reset);
    call->Answered(now, answer.refused);
    std::optional<Nanos> refused_for;
    if (answer.refused)
      refused_for = !setting_.tells_wait ? kNever
                    : setting_.floors    ? answer.retry_after / kSecond * kSecond
                                         : WholeSeconds(answer.retry_after);
    const absl::Span<const Reading> readings(&reading, setting_.silent ? 0 : 1);
    if (!readings.empty() || answer.refused || learner->searches())
      learner->Observe(now, /*wall_offset=*/0, AnsweredCall::Of(*call, now), readings, refused_for);
    const std::int64_t used = answer.refused ? 0 : 1;
    call->Settle(now, {&used, 1});
    if (!answer.refused) return;
    const Nanos told = setting_.floors ? *refused_for : answer.retry_after;
    bucket_->Cool(now + (setting_.tells_wait ? told : kSecond / 2));
  }

  Random random_;
  std::optional<Server> hidden_;
  Bucket* bucket_;
  std::multimap<Nanos, std::function<void()>> events_;
  std::size_t in_flight_ = 0;
  int working_ = 0;  // the server, on so many requests
  Nanos due_ = 0;
  Nanos busy_until_ = 0;
  int sent_ = 0;
  std::int64_t last_limit_ = 0;
};

class Learns : public testing::TestWithParam<Setting> {};
// Of servers that tell nothing that could be rounded.
class LearnsUntold : public Learns {};

TEST_P(Learns, ALimitAndUsesAllOfItWithoutARefusal) {
  for (std::uint64_t run = 0; run < 5; ++run) {
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE(GetParam().Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(GetParam(), seed);
    world.RunUntil(kStart + 10 * kMinute);
    EXPECT_EQ(world.refused.size(), 0U);
    EXPECT_GE(world.Admitted(kStart + kMinute, kStart + 9 * kMinute), 4800 * 99 / 100);
    if (GetParam().shape == Shape::kBucket) {
      EXPECT_EQ(world.Found().verdict.shape, Shape::kBucket);
    }
  }
}

TEST_P(Learns, OfAChangeFromTheFirstAnswerThatTellsOfIt) {
  for (const bool proportional : {false, true}) {
    for (const std::int64_t limit : {300, 1200}) {
      const std::uint64_t seed = Random::Seed(0);
      SCOPED_TRACE(GetParam().Describe() + ", to " + std::to_string(limit) +
                   (proportional ? ", proportional" : "") +
                   ", HEADWAY_SEED=" + std::to_string(seed));
      World world(GetParam(), seed);
      const Nanos change = kStart + 310 * kSecond;
      world.At(change, [&] { world.server.SetLimit(world.now, limit, proportional); });
      world.RunUntil(kStart + 15 * kMinute);
      // Whatever was in flight then has been answered.
      const Nanos settled =
          world.told_of_change + GetParam().latency + GetParam().spread + 100 * kMillisecond;
      // Where the server scales what is owed, and we take it for so many units, the first bound
      // that corrects this may come one call late (1 of 2,000 such runs).
      EXPECT_LE(std::count_if(world.refused.begin(), world.refused.end(),
                              [&](Nanos sent) { return sent > settled; }),
                proportional ? 1 : 0);
      EXPECT_GE(world.Admitted(change + 2 * kMinute, change + 9 * kMinute), 7 * limit * 99 / 100);
    }
  }
}

// One goes ahead of each burst, and hears of what has changed since the last.
TEST_P(Learns, OfAChangeBeforeABurstMeetsIt) {
  for (std::uint64_t run = 0; run < 5; ++run) {
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE(GetParam().Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(GetParam(), seed);
    world.At(kStart + 310 * kSecond, [&] { world.server.SetLimit(world.now, 300, false); });
    world.RunUntil(kStart + 10 * kMinute);
    EXPECT_LE(world.refused.size(), 1U);
    EXPECT_GE(world.Admitted(kStart + 6 * kMinute, kStart + 10 * kMinute), 4 * 300 * 95 / 100);
  }
}

// Somebody else with our key asks for a third of it, evenly, and we take all that is left.
TEST_P(Learns, WhatOthersTakeOfTheSameKey) {
  Setting setting = GetParam();
  setting.other = kSecond * 3 / 10;
  const bool far = setting.latency >= kSecond;
  for (std::uint64_t run = 0; run < 3; ++run) {
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(setting, seed);
    world.RunUntil(kStart + 12 * kMinute);
    // That there are others, nobody can know as the first burst goes out; nor, of a `fixed` limit,
    // when its windows end.
    const std::ptrdiff_t at_first = setting.shape == Shape::kBucket ? (far ? 3 : 0) : far ? 30 : 1;
    EXPECT_LE(world.Refused(0, 2 * kMinute), at_first);
    // From then on one a window, of a `fixed` one. Where answers take seconds, its kind may be
    // known a window later: of 60 runs, three have more than ten, 16 at the most.
    const std::ptrdiff_t rest = setting.shape == Shape::kFixed           ? (far ? 16 : 10)
                                : far && setting.shape == Shape::kWindow ? 3
                                                                         : 1;
    EXPECT_LE(world.Refused(2 * kMinute, 12 * kMinute), rest);
    if (!far && setting.shape != Shape::kFixed) {
      EXPECT_LE(world.refused.size(), 1U);
    }
    EXPECT_GE(world.Admitted(kStart + kMinute, kStart + 12 * kMinute), 4'390);
    // A bucket has room for them again and again, and there we leave them theirs.
    if (setting.shape == Shape::kBucket) {
      EXPECT_LE(world.Admitted(kStart + kMinute, kStart + 12 * kMinute), 4'410);
    }
  }
}

// In a shorter window an answer takes longer than its burst would wait otherwise.
TEST(Learner, WaitsForWhoGoesAheadInAFixedWindowThatOthersUse) {
  for (const Nanos period : {10 * kSecond, 15 * kSecond, 20 * kSecond, 30 * kSecond}) {
    Setting setting;
    setting.shape = Shape::kFixed;
    setting.period = period;
    setting.limit = 10 * period / kSecond;
    setting.latency = 2 * kSecond;
    setting.anchor = period / 3;
    setting.other = kSecond * 3 / 10;
    SCOPED_TRACE(period / kSecond);
    World world(setting, Random::Seed(0));
    world.RunUntil(kStart + 14 * period);
    EXPECT_LE(world.Refused(4 * period, 14 * period), 10);
    // What others have until the answer is in, a tenth of the shortest, is theirs.
    EXPECT_GE(world.Admitted(kStart + 4 * period, kStart + 14 * period), 9 * setting.limit);
  }
}

// The same in a `window`, which all that follows waits for: what others are known to use is not
// forgotten until those who go now have been answered.
TEST(Learner, LeavesOthersTheirsInAWindowOfSecondsHoweverLateItIsAnswered) {
  for (const Nanos latency : {50 * kMillisecond, 2 * kSecond})
    for (const Nanos period : {6 * kSecond, 10 * kSecond, 15 * kSecond, 20 * kSecond, 30 * kSecond})
      for (std::uint64_t run = 0; run < 5; ++run) {
        Setting setting;
        setting.period = period;
        setting.limit = 10 * period / kSecond;
        setting.latency = latency;
        setting.other = kSecond * 3 / 10;
        const std::uint64_t seed = Random::Seed(run);
        SCOPED_TRACE(setting.Describe() + ", " + std::to_string(period / kSecond) +
                     " s, HEADWAY_SEED=" + std::to_string(seed));
        World world(setting, seed);
        world.RunUntil(kStart + 30 * period);
        // The period is long known by then.
        EXPECT_LE(world.Refused(14 * period, 30 * period), 2);
        // Of so short a window, what others have until the answer is in is much.
        const std::int64_t left = 16 * setting.limit * 2 / 3;
        EXPECT_GE(world.Admitted(kStart + 14 * period, kStart + 30 * period),
                  left * (period == 6 * kSecond ? 80 : 88) / 100);
      }
}

// Where answers take seconds, a third of the period, it is known as the first burst's come; and
// what that has used is known to leave, or to come back, since it was counted.
TEST(Learner, UsesTheSecondPeriodThoughTheFirstIsAnsweredLate) {
  for (const Shape shape : {Shape::kWindow, Shape::kBucket})
    for (const bool when_full : {false, true})
      for (std::uint64_t run = 0; run < 10; ++run) {
        Setting setting;
        setting.shape = shape;
        setting.period = 6 * kSecond;
        setting.limit = 60;
        setting.latency = 2 * kSecond;
        setting.when_full = when_full;
        SCOPED_TRACE(setting.Describe() + (when_full ? ", when full" : "") +
                     ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
        World world(setting, Random::Seed(run));
        world.RunUntil(kStart + 9 * kSecond);
        EXPECT_EQ(world.refused.size(), 0U);
        // The first is counted at once, the others after 2 s, all that goes then after 8 s; a
        // bucket is full after 8 s again.
        EXPECT_GE(world.Admitted(kStart, kStart + 9 * kSecond),
                  shape == Shape::kBucket ? 123 : 117);
        // And it goes on as the first burst's answers come: 22 have been paid for by then.
        if (shape == Shape::kBucket) {
          EXPECT_GE(world.Admitted(kStart, kStart + 4'500 * kMillisecond), 78);
        }
      }
}

// Sixty in six seconds, of which nothing is known, whatever a server is and however it tells it,
// and however long its answers take, each of them or all.
TEST(Learner, KeepsToAPeriodOfSecondsHoweverLateItIsAnswered) {
  constexpr int kRuns = 5;
  std::vector<Setting> settings;
  for (const Shape shape : {Shape::kWindow, Shape::kFixed, Shape::kBucket})
    for (const Nanos latency : {50 * kMillisecond, 300 * kMillisecond, 2 * kSecond})
      for (const Nanos spread : {Nanos{0}, 2 * kSecond})
        for (const Nanos grain : {Nanos{1}, kSecond})
          for (const bool dated : {false, true}) {
            // Of so short a window, instants in whole seconds tell too little.
            if (dated && grain == kSecond && shape != Shape::kBucket) continue;
            Setting setting;
            setting.shape = shape;
            setting.limit = 60;
            setting.period = 6 * kSecond;
            setting.latency = latency;
            setting.spread = spread;
            setting.grain = grain;
            setting.dated = dated;
            settings.push_back(setting);
          }
  for (Setting& setting : settings) {
    SCOPED_TRACE(setting.Describe() + ", spread " + std::to_string(setting.spread) +
                 (setting.dated ? ", dated" : "") +
                 ", HEADWAY_SEED=" + std::to_string(Random::Seed(0)));
    std::size_t refused = 0;
    std::int64_t used = 0;
    for (std::uint64_t run = 0; run < kRuns; ++run) {
      setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
      World world(setting, Random::Seed(run));
      world.RunUntil(kStart + 2 * kMinute);
      refused += world.refused.size();
      used += world.Admitted(kStart + 12 * kSecond, kStart + 2 * kMinute);
    }
    // Until its end is known, who goes ahead may come too early for a fixed one, once; and where
    // answers come in any order, a window of it may be lost.
    const bool fixed = setting.shape == Shape::kFixed;
    const bool late = setting.spread > 0 && (fixed || setting.dated);
    EXPECT_LE(refused, fixed ? kRuns : 0);
    EXPECT_GE(used, kRuns * 18 * 60 * (late ? 93 : 99) / 100);
  }
}

// The first burst meets the end of a fixed window that nobody knows: what the second has used of it
// is known by its answers, though what they say of the first is heard in between.
TEST(Learner, KnowsWhatABurstInTwoWindowsHasUsedOfTheSecond) {
  for (const Nanos latency : {50 * kMillisecond, 2 * kSecond})
    for (Nanos phase = 0; phase < 36 * kMillisecond; phase += kMillisecond)
      for (std::uint64_t run = 0; run < 10; ++run) {
        Setting setting;
        setting.shape = Shape::kFixed;
        setting.limit = 60;
        setting.period = 6 * kSecond;
        setting.latency = latency;
        setting.dated = run % 2 == 0;
        // The first takes so long, or some milliseconds more; then the others go.
        setting.anchor = kStart + latency + phase;
        SCOPED_TRACE(setting.Describe() + ", phase " + std::to_string(phase) +
                     ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
        World world(setting, Random::Seed(run));
        world.RunUntil(kStart + 10 * kSecond);
        EXPECT_LE(world.refused.size(), 1U);
      }
}

// When a fixed window ends is told to the millisecond, by answers that come a third of it later, or
// anything up to that: none of another period fits in between. In whole seconds one may, but what
// is out as it is found to be another one is not forgotten.
TEST(Learner, TakesNoFixedWindowForOneOfAnotherPeriod) {
  for (const Nanos spread : {Nanos{0}, 2 * kSecond})
    for (const Nanos grain : {Nanos{1}, kSecond})
      for (std::uint64_t run = 0; run < 30; ++run) {
        Setting setting;
        setting.shape = Shape::kFixed;
        setting.limit = 60;
        setting.period = 6 * kSecond;
        setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
        setting.latency = 2 * kSecond - spread / 2;
        setting.spread = spread;
        setting.grain = grain;
        SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
        World world(setting, Random::Seed(run));
        for (int second = 1; second <= 60; ++second) {
          world.RunUntil(kStart + second * kSecond);
          if (world.answers.empty() || grain == kSecond) continue;
          const Inference::Verdict verdict = world.Found().verdict;
          if (verdict.shape != Shape::kFixed) continue;
          EXPECT_EQ(verdict.period, setting.period);
          const Nanos late = (verdict.anchor - setting.anchor) % setting.period;
          EXPECT_LT(std::min(late, setting.period - late), 30 * kMillisecond);
        }
        EXPECT_LE(world.refused.size(), spread == 0 && grain < kSecond ? 0U : 1U);
      }
}

// A burst that goes just before a fixed window ends, and one just after: what is heard of the first
// meanwhile, that it is over, lets nobody go into the second. Seldom met, so of one seed.
TEST(Learner, LetsNobodyGoForWhatAnOlderAnswerSays) {
  Setting setting;
  setting.shape = Shape::kFixed;
  setting.limit = 60;
  setting.period = 6 * kSecond;
  setting.anchor = Random(4'240).From(0, setting.period);
  setting.latency = 300 * kMillisecond;
  setting.spread = 2 * kSecond;
  World world(setting, 56);
  world.RunUntil(kStart + kMinute);
  EXPECT_LE(world.refused.size(), 1U);
}

// Ten a second, of a bucket: what a burst says of its end rises with all that it uses.
TEST(Learner, FindsALimitOfAFewUnitsASecondHoweverLateItIsAnswered) {
  for (const Nanos latency : {50 * kMillisecond, 2 * kSecond})
    for (std::uint64_t run = 0; run < 20; ++run) {
      Setting setting;
      setting.shape = Shape::kBucket;
      setting.limit = 10;
      setting.period = kSecond;
      setting.latency = latency;
      SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
      World world(setting, Random::Seed(run));
      world.RunUntil(kStart + 30 * kSecond);
      EXPECT_EQ(world.refused.size(), 0U);
      EXPECT_GE(world.Admitted(kStart + 5 * kSecond, kStart + 30 * kSecond), 250 * 8 / 10);
    }
}

// A server that says what is so as it answers, not as it counts. Its bucket is known as any, its
// fixed windows by one call that comes too early and is told so at once: no window is lost by that.
TEST(Learner, FindsOutThatItIsToldWhatIsSoAsItIsAnswered) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed}) {
    int good = 0;
    for (std::uint64_t run = 0; run < 20; ++run) {
      Setting setting;
      setting.shape = shape;
      setting.limit = 60;
      setting.period = 6 * kSecond;
      setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
      setting.told_late = true;
      SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
      World world(setting, Random::Seed(run));
      world.RunUntil(kStart + 2 * kMinute);
      EXPECT_LE(world.refused.size(), shape == Shape::kFixed ? 1U : 0U);
      const std::int64_t used = world.Admitted(kStart + 12 * kSecond, kStart + 2 * kMinute);
      good += used >= 18 * 60 * 97 / 100 ? 1 : 0;
    }
    // One in a hundred fixed ones is taken for one of a minute, until that is over.
    EXPECT_GE(good, 18) << ShapeName(shape) << ", HEADWAY_SEED=" << Random::Seed(0);
  }
}

// Nor is one of its fixed windows a bucket, of which each answer of a burst tells another reset,
// because each took another time.
TEST(Learner, TakesNoFixedWindowThatIsToldLateForABucket) {
  int buckets = 0;
  for (std::uint64_t run = 0; run < 20; ++run) {
    Setting setting;
    setting.shape = Shape::kFixed;
    setting.limit = 60;
    setting.period = 6 * kSecond;
    setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
    setting.spread = 2 * kSecond;
    setting.told_late = true;
    World world(setting, Random::Seed(run));
    for (int second = 1; second <= 60; ++second) {
      world.RunUntil(kStart + second * kSecond);
      if (!world.answers.empty() && world.Found().verdict.shape == Shape::kBucket) ++buckets;
    }
  }
  EXPECT_LE(buckets, 20 * 60 / 20) << "HEADWAY_SEED=" << Random::Seed(0);
}

// A client of which each call takes some milliseconds sends a burst a fifth of a second late, and
// its answers come in any order: none of that is others' use, and each burst follows a period after
// the one before, within a fiftieth.
TEST(Learner, UsesAllOfAWindowThoughTheClientIsBusy) {
  for (const Nanos latency : {50 * kMillisecond, 300 * kMillisecond, 2 * kSecond})
    for (const Nanos work : {kMillisecond, 3 * kMillisecond})
      for (std::uint64_t run = 0; run < 8; ++run) {
        Setting setting;
        setting.limit = 60;
        setting.period = 6 * kSecond;
        setting.latency = latency;
        setting.work = work;
        SCOPED_TRACE(setting.Describe() + ", work " + std::to_string(work) +
                     ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
        World world(setting, Random::Seed(run));
        world.RunUntil(kStart + 2 * kMinute);
        EXPECT_EQ(world.refused.size(), 0U);
        // 18 windows' worth, from the end of the first on.
        ASSERT_GE(world.admitted.size(), 19U * 60);
        EXPECT_LE(world.admitted[19 * 60 - 1] - world.admitted[60 - 1],
                  18 * setting.period * 101 / 100);
      }
}

// A limit that was given without its shape is kept as a window, and what a server of another kind
// has let go of by then is nobody else's use of it.
TEST(Learner, UsesAllOfAGivenLimitHoweverItsServerCounts) {
  for (const Shape shape : {Shape::kWindow, Shape::kFixed, Shape::kBucket})
    for (const Nanos latency : {50 * kMillisecond, 2 * kSecond})
      for (const Nanos work : {kMillisecond, 3 * kMillisecond})
        for (std::uint64_t run = 0; run < 8; ++run) {
          Setting setting;
          setting.shape = shape;
          setting.limit = 60;
          setting.period = 6 * kSecond;
          setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
          setting.latency = latency;
          setting.work = work;
          setting.every = 2 * work;
          setting.given = "60 requests/6s";
          SCOPED_TRACE(setting.Describe() + ", work " + std::to_string(work) +
                       ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
          World world(setting, Random::Seed(run));
          world.RunUntil(kStart + 2 * kMinute);
          EXPECT_EQ(world.refused.size(), 0U);
          // Each burst follows a period after the one before, within a hundredth, and is whole.
          const std::size_t bursts = world.admitted.size() / 60;
          ASSERT_GE(bursts, 19U);
          EXPECT_LE(world.admitted[bursts * 60 - 1] - world.admitted[60 - 1],
                    static_cast<Nanos>(bursts - 1) * setting.period * 101 / 100);
        }
}

// What was once taken for others' use, while nothing was known yet, is not for ever.
TEST(Learner, UsesAllOfAWindowOnceNobodyElseDoes) {
  for (const Nanos work : {Nanos{0}, 3 * kMillisecond})
    for (std::uint64_t run = 0; run < 20; ++run) {
      Setting setting;
      setting.period = 6 * kSecond;
      setting.limit = 60;
      setting.spread = 5 * kMillisecond;
      setting.work = work;
      SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)));
      World world(setting, Random::Seed(run));
      world.RunUntil(kStart + 80 * kSecond);
      EXPECT_EQ(world.refused.size(), 0U);
      // Five periods after they were last seen; burst by burst.
      Nanos from = kStart + 40 * kSecond;
      for (int burst = 0; burst < 5; ++burst) {
        from = *std::lower_bound(world.admitted.begin(), world.admitted.end(), from);
        EXPECT_EQ(world.Admitted(from, from + setting.period / 2), setting.limit) << burst;
        from += setting.period / 2;
      }
    }
}

// They stop, and what they took is ours.
TEST_P(Learns, ThatOthersHaveStopped) {
  Setting setting = GetParam();
  setting.other = kSecond * 3 / 10;
  setting.other_until = kStart + 6 * kMinute;
  for (std::uint64_t run = 0; run < 3; ++run) {
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(setting, seed);
    world.RunUntil(kStart + 12 * kMinute);
    EXPECT_EQ(world.Refused(7 * kMinute, 12 * kMinute), 0);
    EXPECT_GE(world.Admitted(kStart + 7 * kMinute, kStart + 12 * kMinute), 2'970);
  }
}

// The same in some seconds, which nobody says: before it is known, what others use may be what
// comes free so soon.
TEST(Learner, FindsAPeriodOfSecondsThoughOthersUseIt) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    for (const auto& [limit, period] :
         {std::pair{60, 6 * kSecond}, {60, 10 * kSecond}, {12, kSecond}}) {
      Setting setting;
      setting.shape = shape;
      setting.spread = 25 * kMillisecond;
      setting.limit = limit;
      setting.period = period;
      setting.anchor = period / 3;
      setting.other = 3 * period / limit;
      SCOPED_TRACE(setting.Describe() + ", " + std::to_string(period / kSecond) + " s");
      World world(setting, Random::Seed(0));
      for (Nanos at = kStart - 2 * period; at < kStart; at += setting.other) world.server.Count(at);
      world.RunUntil(kStart + 3 * kMinute);
      const std::int64_t ours = 2 * kMinute / period * limit * 2 / 3;
      const std::int64_t got = world.Admitted(kStart + kMinute, kStart + 3 * kMinute);
      // Of a window of one second, what others do within an answer's time is a good part.
      const bool hasty = period == kSecond;
      EXPECT_GE(got, ours * (hasty ? 4 : 9) / 10);
      if (!hasty) {
        EXPECT_LE(world.refused.size(), 40U);  // a burst, where it was thought shorter
      }
    }
  }
}

// With nothing left of a limit that was lowered, more is counted than it says.
TEST(Learner, TakesALimitThatIsLoweredForNoShorterPeriod) {
  for (std::uint64_t run = 0; run < 5; ++run) {
    Setting setting;
    setting.other = kSecond;
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE("HEADWAY_SEED=" + std::to_string(seed));
    World world(setting, seed);
    for (const Nanos at : {200 * kSecond, 330 * kSecond})
      world.At(kStart + at, [&world] {
        world.server.SetLimit(world.now, world.as_told.Says(0).limit / 4, false);
      });
    world.RunUntil(kStart + 8 * kMinute);
    EXPECT_EQ(world.Found().verdict.period, kMinute);
    EXPECT_EQ(world.Found().verdict.shape, Shape::kWindow);
  }
}

// All of it has been spent, by somebody who has left: us before a restart, mostly. The answers tell
// when it comes back.
TEST_P(Learns, WhenQuotaThatWasSpentBeforeComesBack) {
  constexpr Nanos kAgo = 50 * kSecond;
  for (const char* const given : {static_cast<const char*>(nullptr), "600 requests/min"}) {
    Setting setting = GetParam();
    setting.given = given;
    setting.anchor = kStart - kAgo;
    SCOPED_TRACE(setting.Describe() + (given == nullptr ? "" : ", given"));
    World world(setting, Random::Seed(0));
    const bool bucket = setting.shape == Shape::kBucket;
    for (int i = 0; i < 600; ++i) world.server.Count(bucket ? kStart : kStart - kAgo);
    // A bucket's comes back from the first instant on, that of the others ten seconds later.
    const Nanos back = bucket ? kStart : kStart + kMinute - kAgo;
    world.RunUntil(back + 30 * kSecond);
    // Where a limit is given, the first burst has gone out when the first answer is in.
    EXPECT_LE(world.refused.size(), given == nullptr ? 2U : 602U);
    // One goes to see after each told wait, and the others wait for its answer.
    ASSERT_GE(world.admitted.size(), bucket ? 200U : 595U);
    if (!bucket) {
      EXPECT_LT(world.admitted[594], back + 3 * kSecond + 2 * setting.latency);
    }
  }
}

// It was spent by the run that has learnt it.
TEST_P(Learns, ToKeepToAPeriodOfSecondsThatWasRecalledThoughItIsSpent) {
  for (const Nanos period : {kSecond, 6 * kSecond}) {
    Setting setting = GetParam();
    if (setting.latency > kSecond) setting.latency = setting.spread = 300 * kMillisecond;
    setting.limit = 60;
    setting.period = period;
    setting.anchor = kStart - period / 3;
    SCOPED_TRACE(setting.Describe() + ", " + std::to_string(period / kSecond) + " s");
    World world(setting, Random::Seed(0));
    for (int i = 0; i < 60; ++i) world.server.Count(kStart - period / 3);
    Limit limit;
    limit.amount = 60;
    limit.resource = "requests";
    limit.shape = Shape::kWindow;
    limit.period = period;
    world.Recall(limit);
    world.RunUntil(kStart + kMinute);
    EXPECT_LE(world.Found().verdict.period, period);
    // Of ten windows one is gone, and two calls in one run of a hundred.
    EXPECT_GE(world.admitted.size(), kMinute / period * 60 * 9 / 10 - 2);
    EXPECT_LE(world.refused.size(), 2U);
  }
}

// A wait that is rounded down is over too early, and in the last second is none at all.
TEST(Learner, LooksOnceASecondWhereWaitsAreRoundedDown) {
  for (const char* const given : {static_cast<const char*>(nullptr), "60 requests/min"}) {
    Setting setting;
    setting.shape = Shape::kFixed;
    setting.limit = 60;
    setting.given = given;
    setting.floors = true;
    setting.anchor = kStart - 50 * kSecond - kSecond / 2;
    World world(setting, Random::Seed(0));
    for (int i = 0; i < 60; ++i) world.server.Count(kStart - 20 * kSecond);
    world.RunUntil(kStart + 30 * kSecond);
    EXPECT_LE(world.refused.size(), given == nullptr ? 3U : 63U);
    EXPECT_GE(world.admitted.size(), 58U);
  }
}

TEST(Learner, SeesWhenQuotaOfADayThatWasSpentBeforeComesBack) {
  constexpr Nanos kHour = 60 * kMinute;
  for (const char* const given : {static_cast<const char*>(nullptr), "200 requests/day"}) {
    for (const Shape shape : {Shape::kWindow, Shape::kFixed, Shape::kBucket}) {
      Setting setting;
      setting.shape = shape;
      setting.limit = 200;
      setting.period = kDay;
      setting.given = given;
      setting.anchor = kStart - 20 * kHour;
      SCOPED_TRACE(setting.Describe() + (given == nullptr ? "" : ", given"));
      World world(setting, Random::Seed(0));
      const bool bucket = shape == Shape::kBucket;
      for (int i = 0; i < 200; ++i) world.server.Count(bucket ? kStart : setting.anchor);
      world.RunUntil(kStart + 6 * kHour);
      EXPECT_LE(world.refused.size(), given == nullptr ? 2U : 202U);
      ASSERT_GE(world.admitted.size(), bucket ? 45U : 198U);
      if (!bucket) {
        EXPECT_LT(world.admitted[197], kStart + 4 * kHour + kMinute);
      }
    }
  }
}

// The same in six seconds, which nobody says: 20 of them.
TEST_P(Learns, APeriodOfSeconds) {
  Setting setting = GetParam();
  if (setting.latency > kSecond) setting.latency = setting.spread = 300 * kMillisecond;
  setting.limit = 60;
  setting.period = 6 * kSecond;
  setting.anchor = 2 * kSecond;
  for (std::uint64_t run = 0; run < 30; ++run) {
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(setting, seed);
    world.RunUntil(kStart + 2 * kMinute);
    // Whole seconds, and answers that take a tenth of it, tell too little of so short a period to
    // use all of it from the first on, or to know it at all; of 20 bursts, one may be refused.
    const bool plain = setting.grain < kSecond && setting.latency < kSecond / 4;
    EXPECT_LE(world.refused.size(), plain ? 1U : 60U);
    const std::int64_t part = plain ? 97 : setting.shape == Shape::kBucket ? 5 : 25;
    EXPECT_GE(world.Admitted(kStart + 6 * kSecond, kStart + 2 * kMinute), 1140 * part / 100);
  }
}

// Bursts of 40, whenever: where they meet the end of a fixed window, they are in two of them, and
// whoever thinks that it begins later than it does has two bursts in one.
TEST(Learner, KeepsBurstsAtAnyTimeToALimitOfSeconds) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    for (const Nanos grain : {Nanos{1}, kSecond}) {
      std::size_t refused = 0;
      std::size_t admitted = 0;
      for (std::uint64_t run = 0; run < 50; ++run) {
        Setting setting;
        setting.shape = shape;
        setting.limit = 60;
        setting.period = 6 * kSecond;
        setting.spread = 25 * kMillisecond;
        setting.grain = grain;
        setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
        setting.burst = 40;
        setting.pause = 9 * kSecond;
        World world(setting, Random::Seed(run));
        world.RunUntil(kStart + 5 * kMinute);
        refused += world.refused.size();
        admitted += world.admitted.size();
      }
      // Of a bucket, one burst in 100,000 or so is one too many.
      EXPECT_LE(refused, shape == Shape::kFixed ? admitted / 250 : 1)
          << ShapeName(shape) << ", grain " << grain << " ns, HEADWAY_SEED=" << Random::Seed(0);
    }
  }
}

// Of which no answer says anything but that it is reached, however many want to go.
TEST_P(LearnsUntold, ALimitThatIsNeverStated) {
  constexpr int kSettings = 12;
  double use = 0;
  std::ptrdiff_t refused = 0;
  for (const bool tells_wait : {true, false})
    for (const std::int64_t limit : {60, 600, 3'000})
      for (const bool always : {true, false}) {
        Setting setting = GetParam();
        setting.silent = true;
        setting.tells_wait = tells_wait;
        setting.limit = limit;
        if (!always) setting.every = kMinute * 2 / 3 / limit;
        const std::uint64_t seed = Random::Seed(0);
        SCOPED_TRACE(setting.Describe() + ", " + std::to_string(limit) +
                     (always ? ", always" : "") + (tells_wait ? ", tells the wait" : "") +
                     ", HEADWAY_SEED=" + std::to_string(seed));
        World world(setting, seed);
        world.RunUntil(kStart + 20 * kMinute);
        // It costs a burst or two to find out, of no more than the limit and as many again.
        EXPECT_LE(world.Refused(0, 3 * kMinute), std::max<std::ptrdiff_t>(2 * limit, 150));
        // Then one in each half minute is risked, and mostly none is. Of thousands, what is on its
        // way as the first refusal comes may be refused, too.
        const std::ptrdiff_t later = world.Refused(3 * kMinute, 20 * kMinute);
        EXPECT_LE(later, 34);
        for (Nanos from = 3 * kMinute; from < 20 * kMinute; from += RateSearch::kProbes)
          EXPECT_LE(world.Refused(from, from + RateSearch::kProbes),
                    std::max<std::int64_t>(5, limit / 100))
              << from / kSecond;
        const std::int64_t admitted = world.Admitted(kStart + 3 * kMinute, kStart + 20 * kMinute);
        EXPECT_GE(admitted, 17 * limit * 88 / 100);
        use += static_cast<double>(admitted) / static_cast<double>(17 * limit) / kSettings;
        refused += later;
      }
  EXPECT_GE(use, 0.92) << "HEADWAY_SEED=" << Random::Seed(0);
  EXPECT_LE(refused, 34 * kSettings / 2) << "HEADWAY_SEED=" << Random::Seed(0);
}

// Halved, and then four times as much.
TEST_P(LearnsUntold, WhatBecomesOfALimitThatIsNeverStated) {
  for (const bool tells_wait : {true, false}) {
    Setting setting = GetParam();
    setting.silent = true;
    setting.tells_wait = tells_wait;
    SCOPED_TRACE(setting.Describe() + (tells_wait ? ", tells the wait" : "") +
                 ", HEADWAY_SEED=" + std::to_string(Random::Seed(0)));
    World world(setting, Random::Seed(0));
    world.At(kStart + 15 * kMinute, [&] { world.server.SetLimit(world.now, 300, false); });
    world.At(kStart + 30 * kMinute, [&] { world.server.SetLimit(world.now, 1'200, false); });
    world.RunUntil(kStart + 60 * kMinute);
    EXPECT_LE(world.Refused(15 * kMinute, 30 * kMinute), 30);
    EXPECT_GE(world.Admitted(kStart + 20 * kMinute, kStart + 30 * kMinute), 3'000 * 85 / 100);
    EXPECT_LE(world.Refused(30 * kMinute, 60 * kMinute), 30);
    EXPECT_GE(world.Admitted(kStart + 45 * kMinute, kStart + 60 * kMinute), 18'000 * 85 / 100);
  }
}

// Of which no answer says anything, either: so many at once, however many a minute that makes.
TEST_P(Learns, HowManyAtOnceThatIsNeverStated) {
  for (const int at_once : {2, 12, 100}) {
    for (std::uint64_t run = 0; run < 5; ++run) {
      Setting setting = GetParam();
      setting.silent = true;
      setting.tells_wait = false;
      setting.limit = 1'000'000;
      setting.at_once = at_once;
      const std::uint64_t seed = Random::Seed(run);
      SCOPED_TRACE(setting.Describe() + ", " + std::to_string(at_once) +
                   " at once, HEADWAY_SEED=" + std::to_string(seed));
      World world(setting, seed);
      world.RunUntil(kStart + 4 * kMinute);
      for (Nanos from = kMinute; from < 4 * kMinute; from += RateSearch::kProbes)
        EXPECT_LE(world.Refused(from, from + RateSearch::kProbes), 1 + at_once / 50)
            << from / kSecond;
      // Each takes its time at the server, and what it needs to get there and back.
      const Nanos takes = setting.latency + setting.spread / 2 + 12 * kMillisecond;
      EXPECT_GE(world.Admitted(kStart + kMinute, kStart + 4 * kMinute),
                at_once * (3 * kMinute / takes) * 90 / 100);
      ASSERT_EQ(world.learner->Findings().size(), 1U);
      EXPECT_EQ(world.Found().verdict.shape, Shape::kConcurrency);
    }
  }
}

// What admits nothing says nothing of a limit, and a refusal now and then says little.
TEST_P(Learns, NoLimitOfAnOutage) {
  for (std::uint64_t run = 0; run < 24; ++run) {
    // From the first request on, of all that may go; or later, of a few.
    const Nanos begins = run % 2 == 0 ? 0 : 2 * kMinute;
    Setting setting = GetParam();
    setting.silent = true;
    setting.tells_wait = false;
    setting.limit = 6'000;
    setting.every = begins == 0 ? 0 : 200 * kMillisecond;
    setting.down_from = kStart + begins;
    setting.down_to = setting.down_from + kMinute;
    const std::uint64_t seed = Random::Seed(run);
    SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(setting, seed);
    world.RunUntil(kStart + (begins == 0 ? kMinute : 6 * kMinute));
    // One goes ahead after each pause of half a second. Where the first five of all fail, nothing
    // can be told by them, and all that may be under way go once.
    EXPECT_LE(world.refused.size(), begins == 0 ? 1'150U : 150U);
    if (begins > 0) {
      EXPECT_GE(world.Admitted(kStart + 4 * kMinute, kStart + 6 * kMinute), 600 * 95 / 100);
    }
  }
}

TEST_P(Learns, NoLimitOfARefusalNowAndThen) {
  Setting setting = GetParam();
  setting.silent = true;
  setting.tells_wait = false;
  setting.limit = 6'000;
  setting.every = 200 * kMillisecond;
  World world(setting, Random::Seed(0));
  for (const Nanos at : {100 * kSecond, 260 * kSecond}) {
    world.At(kStart + at, [&] { world.server.SetLimit(world.now, 1, false); });
    world.At(kStart + at + 300 * kMillisecond,
             [&] { world.server.SetLimit(world.now, 6'000, false); });
  }
  world.RunUntil(kStart + 6 * kMinute);
  if (setting.shape != Shape::kBucket) {
    EXPECT_GE(world.refused.size(), 2U);
  }
  EXPECT_TRUE(world.learner->Findings().empty());
}

// 600 a minute, counted as 10 a second as well.
TEST_P(Learns, AShorterPeriodBehindTheStatedOne) {
  for (const bool tells_wait : {true, false}) {
    Setting setting = GetParam();
    setting.hidden = "10 requests/s window";
    setting.tells_wait = tells_wait;
    const std::uint64_t seed = Random::Seed(0);
    SCOPED_TRACE(setting.Describe() + ", HEADWAY_SEED=" + std::to_string(seed));
    World world(setting, seed);
    world.RunUntil(kStart + 5 * kMinute);
    for (Nanos from = kMinute; from < 5 * kMinute; from += RateSearch::kProbes)
      EXPECT_LE(world.Refused(from, from + RateSearch::kProbes), 3) << from / kSecond;
    EXPECT_GE(world.Admitted(kStart + kMinute, kStart + 5 * kMinute), 2'400 * 92 / 100);
  }
}

std::vector<Setting> Servers(const std::vector<Nanos>& grains) {
  std::vector<Setting> all;
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow})
    for (const Nanos latency : {50 * kMillisecond, 2 * kSecond})
      for (const Nanos grain : grains) {
        Setting setting;
        setting.shape = shape;
        setting.latency = latency;
        setting.spread = latency / 2;
        setting.grain = grain;
        all.push_back(setting);
      }
  return all;
}

std::string NameOf(const testing::TestParamInfo<Setting>& info) {
  return std::string(ShapeName(info.param.shape)) +
         (info.param.latency < kSecond ? "_near" : "_far") +
         (info.param.grain < kSecond ? "_exact" : "_rounded");
}

INSTANTIATE_TEST_SUITE_P(Servers, Learns, testing::ValuesIn(Servers({Nanos{1}, kSecond})), NameOf);
INSTANTIATE_TEST_SUITE_P(Servers, LearnsUntold, testing::ValuesIn(Servers({Nanos{1}})), NameOf);

// How one run by limits that change went by one of them.
struct Step {
  double used = 0;  // of what it would have admitted
  std::ptrdiff_t late =
      0;  // refusals of what was sent after all that was on its way as it was told
};

// 60 in six seconds, halved, doubled again, and made 300 a day.
std::array<Step, 4> ThroughChanges(const Setting& setting, std::uint64_t seed) {
  constexpr std::array<std::int64_t, 4> kLimits = {60, 30, 60, 300};
  World world(setting, seed);
  const Nanos phase = Random(seed).From(0, 2 * kSecond);
  const std::array<Nanos, 5> begins = {kStart, kStart + 15 * kSecond + phase,
                                       kStart + 33 * kSecond + phase, kStart + 48 * kSecond + phase,
                                       kStart + kMinute};
  std::array<Step, 4> steps;
  std::size_t at = 0;
  const auto judge = [&] {
    const Nanos told = world.told_of_change;
    Nanos settled = told;
    for (const auto& [sent, answered] : world.answers)
      if (at > 0 && sent <= told) settled = std::max(settled, answered);
    // What is sent just before a change may be counted after it.
    for (const Nanos sent : world.refused)
      steps[at].late += sent >= settled && sent < begins[at + 1] - 50 * kMillisecond ? 1 : 0;
    // As many as it would have admitted, had it been asked all the time; but for the last moments.
    Server asked = world.as_told;
    const Nanos end = begins[at + 1] - setting.period / 10;
    std::int64_t best = 0;
    for (Nanos now = told; now < end; now += kMillisecond)
      while (!asked.Count(now).refused) ++best;
    steps[at].used =
        static_cast<double>(world.Admitted(told, begins[at + 1])) / static_cast<double>(best);
  };
  for (std::size_t i = 1; i < 4; ++i)
    world.At(begins[i], [&, i] {
      judge();
      at = i;
      world.server.SetLimit(world.now, kLimits[i], false, i == 3 ? kDay : 0);
    });
  world.RunUntil(begins[4]);
  judge();
  return steps;
}

TEST(Learner, FollowsALimitOfSecondsThroughItsChanges) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    // A client that is slow at sending, too: the last of a burst leave long after the first.
    for (const Nanos work : {Nanos{0}, 3 * kMillisecond, 10 * kMillisecond}) {
      int unused = 0;
      int refused = 0;
      std::string told;
      for (std::uint64_t run = 0; run < 60; ++run) {
        Setting setting;
        setting.shape = shape;
        setting.limit = 60;
        setting.period = 6 * kSecond;
        setting.anchor = Random(Random::Seed(run)).From(0, setting.period);
        setting.spread = 5 * kMillisecond;
        setting.work = work;
        const std::array<Step, 4> steps = ThroughChanges(setting, Random::Seed(run));
        for (std::size_t i = 0; i < 4; ++i) {
          // Where the first burst of all meets the end of a fixed window, one window is lost.
          const bool used = steps[i].used >= (shape == Shape::kFixed && i == 0 ? 0.7 : 0.9);
          unused += used ? 0 : 1;
          refused += steps[i].late > 0 ? 1 : 0;
          if (!used || steps[i].late > 0)
            told += "step " + std::to_string(i) + " used " + std::to_string(steps[i].used) +
                    ", refused " + std::to_string(steps[i].late) +
                    ", HEADWAY_SEED=" + std::to_string(Random::Seed(run)) + "\n";
        }
      }
      // Of 10,000 such runs, two have one.
      EXPECT_LE(unused, 1) << ShapeName(shape) << ", work " << work << " ns\n" << told;
      EXPECT_LE(refused, 1) << ShapeName(shape) << ", work " << work << " ns\n" << told;
    }
  }
}

// Of a burst, the last leave seconds after they began: what was counted of them late is no
// stranger's.
TEST(Learner, DoubtsNoPeriodOfSecondsForABusyClient) {
  Setting setting;
  setting.limit = 60;
  setting.period = 6 * kSecond;
  setting.work = 25 * kMillisecond;
  for (std::uint64_t run = 0; run < 20; ++run) {
    SCOPED_TRACE(run);
    World world(setting, Random::Seed(run));
    int doubted = 0;
    for (int i = 1; i <= 20; ++i) {
      world.RunUntil(kStart + kMinute + i * setting.period);
      doubted += world.Found().verdict.period == kMinute ? 1 : 0;
    }
    EXPECT_EQ(doubted, 0);
  }
}

// What another one has learnt is kept to from the first request on, and followed as it changes.
TEST(Learner, BeginsWithWhatIsRecalled) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    for (const bool changed : {false, true}) {
      SCOPED_TRACE(std::string(ShapeName(shape)) + (changed ? ", changed" : ""));
      Setting setting;
      setting.shape = shape;
      setting.limit = 60;
      setting.period = 6 * kSecond;
      setting.spread = 25 * kMillisecond;
      World before(setting, Random::Seed(0));
      before.RunUntil(kStart + kMinute);
      const Finding found = before.Found();
      Limit learnt;
      learnt.amount = found.limit;
      learnt.resource = "requests";
      learnt.shape = found.verdict.shape;
      learnt.period = found.verdict.period;
      if (shape == Shape::kFixed) learnt.anchor = found.verdict.anchor;
      if (changed) setting.limit = 40;
      World world(setting, Random::Seed(1));
      world.Recall(learnt);
      world.RunUntil(kStart + kMinute);
      EXPECT_EQ(world.refused.size(), 0U);
      EXPECT_EQ(world.Found().limit, setting.limit);
      EXPECT_EQ(world.Found().verdict.shape, shape);
      EXPECT_EQ(world.Found().verdict.period, 6 * kSecond);
      // From the first second on: ten periods.
      EXPECT_GE(world.Admitted(kStart, kStart + kMinute), 10 * setting.limit * 97 / 100);
    }
  }
}

// What two answers of one burst say of the end of a window that it meets, where the server counted
// the later one first. The window that has begun is the newest, whatever comes of the one before.
TEST(Inference, AWindowThatHasBegunIsNoLongerTheOneBefore) {
  Inference inference;
  Reading reading;
  reading.limit = 60;
  const auto note = [&](Nanos sent, Nanos counted, std::int64_t remaining, Nanos end) {
    reading.remaining = remaining;
    reading.reset = end - counted;
    inference.Note(
        {reading, 60, sent, counted + 200 * kMillisecond, counted + 200 * kMillisecond, 0, 1},
        [](Nanos, Nanos) { return true; });
  };
  const Nanos end = kStart + 100 * kMillisecond;
  for (int i = 0; i < 5; ++i)
    note(kStart + i * kMillisecond, kStart + (2 + i) * kMillisecond, 59 - i, end);
  note(end - 10 * kMillisecond, end, 59, end + 6 * kSecond);
  note(end - 5 * kMillisecond, end - kMillisecond, 54, end);
  for (int i = 1; i < 30; ++i)
    note(end + i * kMillisecond, end + (2 + i) * kMillisecond, 59 - i, end + 6 * kSecond);
  EXPECT_EQ(inference.verdict().period, 6 * kSecond);
}

// Where answers take seconds, the resets of a window of six look like those of a bucket of a
// minute, of which as much is used each time. That would say longer ones, too.
TEST(Inference, ALongerBucketIsNotSeenUntilAResetIsLonger) {
  constexpr Nanos kReset = 5'896'666'666;
  for (const auto& [shape, longer] :
       {std::pair{Shape::kWindow, false}, {Shape::kWindow, true}, {Shape::kFixed, false}}) {
    Inference inference;
    inference.Recall({shape, 6 * kSecond, shape == Shape::kFixed ? kStart + kReset : 0});
    Reading reading;
    reading.limit = 360;
    for (int window = 0; window < 20; ++window) {
      reading.remaining = longer && window > 10 ? 360 - 200 + window : 320;
      reading.reset = (360 - reading.remaining) * kMinute / 360 - (longer ? 0 : 770 * kMillisecond);
      const Nanos sent = kStart + window * 6 * kSecond;
      inference.Note({reading, 360, sent, sent + 2 * kSecond, sent + 2 * kSecond, 0, 1},
                     [](Nanos, Nanos) { return true; });
    }
    EXPECT_EQ(inference.verdict().shape, longer ? Shape::kBucket : shape);
    EXPECT_EQ(inference.verdict().period, longer ? kMinute : 6 * kSecond);
  }
}

// An answer, so long after its call was sent, that `used` of a limit of 60 are.
void SayOf60(Inference& inference, Nanos sent, Nanos latency, std::int64_t used, Nanos reset) {
  Reading reading;
  reading.limit = 60;
  reading.remaining = 60 - used;
  reading.reset = reset;
  inference.Note({reading, 60, sent, sent + 20 * kMillisecond, sent + latency, 0, 1},
                 [](Nanos, Nanos) { return true; });
}

// What one answer says after another fits a bucket of a minute by chance, three of them in a row: a
// window of six seconds that is answered late, just as it begins again.
TEST(Inference, ThreeThatFitAreNoBucket) {
  Inference inference;
  inference.Recall({Shape::kWindow, 6 * kSecond, 0});
  const auto say = [&](Nanos sent, std::int64_t used, Nanos reset) {
    SayOf60(inference, kStart + sent, 2'010 * kMillisecond, used, reset);
  };
  for (int used = 2; used <= 60; ++used)
    say(2 * kSecond + used * kMillisecond / 4, used,
        3'990 * kMillisecond - used * kMillisecond / 4);
  say(8'006 * kMillisecond, 4, kMillisecond / 10);
  say(8'029 * kMillisecond, 10, 5'988 * kMillisecond);
  say(8'029 * kMillisecond, 6, 5'989 * kMillisecond);
  EXPECT_EQ(inference.verdict().shape, Shape::kWindow);
  EXPECT_EQ(inference.verdict().period, 6 * kSecond);
}

// Of an hour, the server's clock is a little behind ours: that is no reason to doubt it each time.
TEST(Inference, AnHourThatBeginsAMomentLaterIsKept) {
  Inference inference;
  Reading reading;
  reading.limit = 10'000;
  reading.remaining = 9'000;
  const Nanos hour = kStart - kStart % Inference::kHour + 30 * kMillisecond;
  int changes = 0;
  for (int i = 0; i < 3'600; ++i) {
    const Nanos sent = kStart + i * 3 * kSecond;
    reading.reset = Inference::kHour - (sent + 10 * kMillisecond - hour) % Inference::kHour;
    changes += inference.Note({reading, 10'000, sent, sent + 20 * kMillisecond,
                               sent + 20 * kMillisecond, 0, 1},
                              [](Nanos, Nanos) { return false; })
                   ? 1
                   : 0;
  }
  EXPECT_EQ(inference.verdict().shape, Shape::kFixed);
  EXPECT_LE(changes, 3);
}

// Of two calls that an answer ten seconds late makes one window of by chance, nothing follows for
// how all others are told.
TEST(Inference, OneChanceDoesNotDecideWhenResetsAreTold) {
  Inference inference;
  inference.Recall({Shape::kWindow, 10 * kSecond, 0});
  Reading reading;
  reading.limit = 1'000;
  reading.remaining = 900;
  constexpr Nanos kPeriod = 10 * kSecond;
  int fixed = 0;
  const auto say = [&](Nanos at, Nanos latency) {
    const Nanos sent = kStart + at;
    reading.reset = kPeriod - at % kPeriod;
    inference.Note({reading, 1'000, sent, sent + 20 * kMillisecond, sent + latency, 0, 1},
                   [](Nanos, Nanos) { return false; });
    fixed += inference.verdict().shape == Shape::kFixed ? 1 : 0;
  };
  say(3 * kSecond, 10 * kSecond);
  say(12 * kSecond, kSecond / 10);
  for (int i = 0; i < 480; ++i)
    say(2 * kPeriod + i / 8 * kPeriod + i % 8 * 1'100 * kMillisecond + kSecond / 5,
        (1 + i * 37 % 50) * kSecond / 10);
  EXPECT_GE(fixed, 450);
}

// A bucket that was lowered owes for longer than its period, and is a window of that, all the same,
// once it is none any more. Instants in whole seconds are up to one longer.
TEST(Inference, ABucketThatIsNoneAnyMoreIsAWindowOfItsPeriod) {
  Inference inference;
  Reading reading;
  reading.limit = 100;
  reading.dated = true;
  reading.coarse = kSecond;
  Nanos at = kStart - kStart % kSecond + 50 * kMillisecond;
  const auto say = [&](std::int64_t used, Nanos reset) {
    reading.remaining = 100 - used;
    const Nanos answered = at + 50 * kMillisecond;
    const Nanos end = at + 10 * kMillisecond + reset + kSecond - 1;
    reading.reset = end - end % kSecond - answered;
    inference.Note({reading, 100, at, at + 20 * kMillisecond, answered, 0, 1},
                   [](Nanos, Nanos) { return true; });
    at += kSecond;
  };
  for (int used = 20; used < 50; used += 3) say(used, used * kMinute / 100);
  ASSERT_EQ(inference.verdict().shape, Shape::kBucket);
  say(100, kMinute);
  say(99, 99 * kMinute / 100);
  for (int i = 0; i < 20; ++i) say(60, 10 * kSecond);
  EXPECT_EQ(inference.verdict().shape, Shape::kWindow);
  EXPECT_EQ(inference.verdict().period, kMinute);
}

// Nobody owes for longer than it takes to be refilled.
TEST(Inference, ABucketIsNoShorterThanAResetOfLate) {
  for (const Nanos longest : {kSecond, 5'900 * kMillisecond}) {
    Inference inference;
    inference.Recall({Shape::kWindow, 6 * kSecond, 0});
    const auto say = [&](Nanos sent, std::int64_t used, Nanos reset) {
      SayOf60(inference, kStart + sent, 20 * kMillisecond, used, reset);
    };
    for (int i = 0; i < 5; ++i) say(i * kMillisecond, 60, longest - i * kMillisecond);
    for (int used = 20; used <= 60; ++used)
      say(8 * kSecond + used * kMillisecond / 8, used, used * kSecond / 30);
    EXPECT_EQ(inference.verdict().shape, longest < 2 * kSecond ? Shape::kBucket : Shape::kWindow);
  }
}

// A burst of which the answers come after more than a third of the time in which all that it has
// used comes back: that is to be seen by what each says, and no window that ends later for each.
TEST(Inference, ABucketOfSecondsIsKnownHoweverLateItsFirstBurstIsAnswered) {
  for (const Nanos latency : {20 * kMillisecond, kSecond, 2'250 * kMillisecond, 3 * kSecond})
    for (const Nanos grain : {Nanos{1}, kMillisecond}) {
      SCOPED_TRACE(std::to_string(latency) + ", " + std::to_string(grain));
      Inference inference;
      Reading reading;
      reading.limit = 60;
      const auto say = [&](Nanos sent, Nanos answered, std::int64_t used) {
        reading.remaining = 60 - used;
        reading.reset = (used * 100 * kMillisecond + grain - 1) / grain * grain;
        inference.Note({reading, 60, sent, answered, answered, 0, 1},
                       [](Nanos, Nanos) { return true; });
      };
      say(kStart, kStart + latency, 1);
      const Nanos sent = kStart + latency + kMillisecond;
      for (int used = 1; used < 60; ++used) {
        say(sent + used * kMillisecond / 16, sent + latency + used * kMillisecond, used);
        // Until it is known, it is longer.
        EXPECT_GE(inference.verdict().period, 6 * kSecond) << used;
      }
      EXPECT_EQ(inference.verdict().shape, Shape::kBucket);
      EXPECT_EQ(inference.verdict().period, 6 * kSecond);
    }
}

// A limit of 40 is lowered to 10 in the midst of a burst: twelve of the one are no third of the
// other.
TEST(Inference, UseOfAnotherLimitTellsNothing) {
  Inference inference;
  Reading reading;
  const auto say = [&](std::int64_t limit, std::int64_t used, Nanos reset) {
    reading.limit = limit;
    reading.remaining = limit - used;
    reading.reset = reset;
    inference.Note({reading, limit, kStart, kStart + kSecond / 10, kStart + kSecond / 10, 0, 1},
                   [](Nanos, Nanos) { return true; });
  };
  for (int used = 1; used <= 12; ++used) say(40, used, 1'500 * kMillisecond);
  say(10, 3, 1'499 * kMillisecond);
  EXPECT_EQ(inference.verdict().period, kMinute);
}

// The answers to what was sent before the second refusal come after it, and count all the same.
TEST(RateSearch, CountsWhatIsOnItsWayAsItBegins) {
  RateSearch search;
  const auto good = [](Nanos) { return 20; };
  Nanos now = kStart;
  search.Refused(now, now - 2, kNever, true, {}, good);
  now += kSecond;
  search.Refused(now, now - 1, kNever, true, {}, good);
  ASSERT_EQ(search.amount(), 20);
  for (int i = 1; i <= 40; ++i) {
    EXPECT_TRUE(search.Admitted(now + kSecond, now - kMillisecond, false, good));
    ASSERT_EQ(search.amount(), 20 + i);
  }
  EXPECT_FALSE(search.Admitted(now + kSecond, now + kMillisecond, false, good));
  EXPECT_EQ(search.pace(), 60);
}

// Who has waited for as long as he was told, and then for somewhat more, had used all before that.
TEST(RateSearch, CountsWhatWasUsedBeforeTheFirstWait) {
  RateSearch search;
  // 600 in the first 40 s, and three after 60 s.
  const auto good = [](Nanos since) {
    return since <= kStart + 40 * kSecond ? (kStart + 40 * kSecond - since) * 15 / kSecond + 3 : 3;
  };
  const Nanos first = kStart + 40 * kSecond;
  search.Refused(first, first - 2, 20 * kSecond, true, {}, good);
  const Nanos second = first + 21 * kSecond;
  search.Refused(second, second - 2, 60 * kSecond, true, {}, good);
  EXPECT_EQ(search.period(), kMinute);
  EXPECT_NEAR(static_cast<double>(search.amount()), 600, 20);
}

// A step that was refused is taken back; for half a minute the pace is lower still, and from then
// on what held before. An outage takes nothing.
TEST(PaceSearch, IsEasedForAWhileAfterARefusal) {
  PaceSearch search;
  const auto good = [](Nanos) { return 640; };
  search.Begin(kStart, 640, kMinute, /*known=*/true);
  Nanos now = kStart + 2 * kMinute;
  ASSERT_TRUE(search.Admitted(now, now - 1, true, good));
  ASSERT_EQ(search.amount(), 650);
  now += kSecond;
  search.Refused(now, now - kMillisecond, good);
  EXPECT_EQ(search.amount(), 640);
  EXPECT_EQ(search.pace(), 600);
  EXPECT_GT(search.wait(), 0);
  for (int i = 0; i < 5; ++i) {
    now += 5 * kSecond;
    search.Refused(now, now - kMillisecond, good);
    EXPECT_EQ(search.amount(), 640) << "nothing was admitted in between";
  }
  EXPECT_EQ(search.wait(), PaceSearch::kProbes);
  now += PaceSearch::kProbes + 1;
  EXPECT_TRUE(search.Admitted(now, now - kMillisecond, false, good));
  EXPECT_EQ(search.pace(), 640);
  // One that is no step: to what was admitted, and soon by a part as well.
  now += 3 * kMinute;
  search.Refused(now, now - kMillisecond, good);
  EXPECT_EQ(search.amount(), 639);
  std::int64_t last = 639;
  for (const std::int64_t parts : {1, 3, 3}) {
    now += PaceSearch::kProbes + 1;
    search.Admitted(now, now - kMillisecond, false, good);
    now += kSecond;
    search.Refused(now, now - kMillisecond, good);
    EXPECT_NEAR(static_cast<double>(search.amount()), static_cast<double>(last * (16 - parts)) / 16,
                2);
    last = search.amount();
  }
}

// Where several more were tried before the first of them was known to be one too many, all of them
// were: the amount is what was admitted before.
TEST(RateSearch, TakesBackEachStepThatIsRefused) {
  RateSearch search;
  Nanos now = kStart;
  RateSearch::Hidden hidden = {10, kSecond};
  const auto good = [](Nanos) { return 10; };
  const auto refused = [&](Nanos sent) {
    search.Refused(now, sent, kNever, false, hidden, good);
    hidden = {};
  };
  refused(now - kMillisecond);
  ASSERT_EQ(search.amount(), 10);
  ASSERT_EQ(search.pace(), 0);
  now += kMinute;
  for (int steps = 1; steps <= 3; ++steps) {
    ASSERT_TRUE(search.Admitted(now, now - kMillisecond / 2, true, good));
    ASSERT_EQ(search.amount(), 10 + steps);
    now += kMillisecond;
  }
  const Nanos sent = now;
  now += kSecond;
  for (const std::int64_t left : {12, 11, 10, 10, 10}) {
    refused(sent);
    EXPECT_EQ(search.amount(), left);
  }
}

// A burst over cold connections to a busy server is counted in any order. Whoever takes what was
// not counted yet for what never was spends it twice.
TEST(Learner, ABurstThatIsCountedInAnyOrderIsSpentOnce) {
  Setting setting;
  setting.shape = Shape::kBucket;
  setting.limit = 60;
  setting.latency = 20 * kMillisecond;
  setting.every = 10 * kMillisecond;
  setting.stall = 800 * kMillisecond;
  std::size_t refused = 0;
  for (std::uint64_t run = 0; run < 200; ++run) {
    World world(setting, Random::Seed(run));
    world.RunUntil(kStart + 2 * kMinute);
    refused += world.refused.size();
    EXPECT_GE(world.admitted.size(), 60 + 116U) << run;
  }
  // Where the slowest of all is still on its way, this cannot be known.
  EXPECT_LE(refused, 20U);
}

// We send 6 a second and somebody else with our key 3.
TEST(Learner, SeesInAWindowWhatOthersUseOfIt) {
  Setting setting;
  setting.every = kSecond / 6;
  setting.other = kSecond / 3;
  World world(setting, Random::Seed(0));
  world.RunUntil(kStart + 5 * kMinute);
  EXPECT_EQ(world.refused.size(), 0U);
  EXPECT_NEAR(static_cast<double>(world.Found().foreign), 180, 5);
  // And when they have stopped: nothing, a period later.
  Setting alone = setting;
  alone.other = 0;
  World world_alone(alone, Random::Seed(1));
  world_alone.RunUntil(kStart + 5 * kMinute);
  EXPECT_EQ(world_alone.Found().foreign, 0);
}

// A bucket of requests, of which nothing is known.
Bucket* Unknown() {
  Limit limit = Limit::Parse("1 requests/min window").value();
  limit.amount = Limit::kMaxAmount;
  const std::uint8_t requests = 0;
  return Bucket::Make({&limit, 1}, {&requests, 1}, 0, nullptr, /*spare=*/8, /*width=*/1);
}

TEST(Learner, TakesWhatItBeganLaterAndTheServerCountedBeforeForItsOwn) {
  Bucket* const bucket = Unknown();
  Learner learner(bucket, {"requests"}, {});
  const std::int64_t one = 1;
  std::array<Reservation, 20> calls;
  for (Reservation& call : calls) {
    ASSERT_FALSE(bucket->TryReserve(kStart, {&one, 1}, false, call));
    call.Sent(kStart, 20 * kMillisecond);
  }
  // The first of them is counted last.
  Reading reading;
  reading.limit = 100;
  reading.remaining = 80;
  learner.Observe(kStart + 50 * kMillisecond, 0,
                  AnsweredCall::Of(calls[0], kStart + 50 * kMillisecond), {&reading, 1});
  EXPECT_EQ(learner.Findings().at(0).foreign, 0);
  reading.remaining = 75;
  learner.Observe(kStart + 60 * kMillisecond, 0,
                  AnsweredCall::Of(calls[1], kStart + 60 * kMillisecond), {&reading, 1});
  EXPECT_EQ(learner.Findings().at(0).foreign, 5);
  for (Reservation& call : calls) call.Settle(kStart + kSecond, {});
  bucket->Unref();
}

// A bucket, and somebody who says what he likes of it.
class Said {
 public:
  explicit Said(const char* given = nullptr, double ratio = 1.0) {
    Limit limit = Limit::Parse(given == nullptr ? "1 requests/min" : given).value();
    if (given == nullptr) limit.amount = Limit::kMaxAmount;
    const std::uint8_t requests = 0;
    bucket = Bucket::Make({&limit, 1}, {&requests, 1}, 0, nullptr, /*spare=*/8, /*width=*/1);
    learner.emplace(bucket, std::vector<std::string>{"requests"}, Learner::Options{ratio, {}});
  }
  ~Said() { bucket->Unref(); }
  Said(const Said&) = delete;
  Said& operator=(const Said&) = delete;

  // A request of one unit that uses `used`, and its answer, at whose instant another one begins.
  void Say(const Reading& reading, std::int64_t used = 1) {
    const std::int64_t one = 1;
    Reservation call;
    Reservation other;
    ASSERT_FALSE(bucket->TryReserve(now, {&one, 1}, false, call));
    now += delay;
    if (at_once) {
      ASSERT_FALSE(bucket->TryReserve(now, {&one, 1}, false, other));
    }
    call.Answered(now, false);
    learner->Observe(now, 0, AnsweredCall::Of(call, now), {&reading, 1});
    call.Settle(now, {&used, 1});
    if (at_once) other.Settle(now, {});
  }
  // How long until `amount` fits.
  Nanos Wait(std::int64_t amount) {
    const Nanos at = bucket->Look(now, {&amount, 1}, /*answered=*/true).ready_at;
    return at >= kUntold ? at : std::max<Nanos>(0, at - now);
  }

  Bucket* bucket;
  std::optional<Learner> learner;
  bool at_once = false;
  Nanos delay = 50 * kMillisecond;
  Nanos now = kStart;
};

Reading Of(std::int64_t limit, std::int64_t remaining) {
  Reading reading;
  reading.limit = limit;
  reading.remaining = remaining;
  return reading;
}

// Whoever is to go ahead, of several limits of one answer, is waited for as long as one of them
// needs, and no longer than the next answer says.
TEST(Learner, WaitsForWhoGoesAheadAsLongAsAnyLimitNeeds) {
  for (const bool tokens_first : {false, true}) {
    std::array<Limit, 2> limits = {Limit::Parse("1 requests/min").value(),
                                   Limit::Parse("1 tokens/min").value()};
    for (Limit& limit : limits) limit.amount = Limit::kMaxAmount;
    const std::array<std::uint8_t, 2> resources = {0, 1};
    Bucket* const bucket = Bucket::Make(limits, resources, 0, nullptr, /*spare=*/8, /*width=*/2);
    Learner learner(bucket, {"requests", "tokens"}, {});
    // All that remains of requests is others' use, which may leave any time. Of tokens it is ours.
    std::array<Reading, 2> said = {Of(60, 0), Of(1'000, 0)};
    said[0].reset = 40 * kSecond;
    said[1].reset = 40 * kSecond;
    said[1].resource = 1;
    if (tokens_first) std::swap(said[0], said[1]);
    const std::array<std::int64_t, 2> amounts = {1, 1'000};
    Nanos now = kStart;
    Reservation call;
    ASSERT_FALSE(bucket->TryReserve(now, amounts, false, call));
    now += 50 * kMillisecond;
    call.Answered(now, false);
    learner.Observe(now, 0, AnsweredCall::Of(call, now), said);
    call.Settle(now, amounts);
    // One goes, and the others wait for its answer for longer than the tokens alone ask for.
    now += 2 * kMinute;
    Reservation first;
    ASSERT_FALSE(bucket->TryReserve(now, amounts, false, first));
    EXPECT_GT(bucket->WaitsForFirstUntil(), now + kSecond);
    first.Settle(now, amounts);
    bucket->Unref();
  }
}

// What calls have given back was never used, so it is no part of what others have: of 100,000
// tokens an hour, 75,000 were reserved for a call that used 10,000, and others use 50,000.
TEST(Learner, TakesNoRefundForItsOwnUse) {
  for (const bool given : {false, true}) {
    Limit limit = Limit::Parse(given ? "100000 tokens/h window" : "1 tokens/min").value();
    if (!given) limit.amount = Limit::kMaxAmount;
    const std::uint8_t tokens = 0;
    Bucket* const bucket = Bucket::Make({&limit, 1}, {&tokens, 1}, 0, nullptr, 8, 1);
    Learner learner(bucket, {"tokens"}, {});
    // A machine that has been up for an hour's half.
    const Nanos begin = Inference::kHour / 2;
    std::int64_t counted = 0;
    const auto say = [&](Nanos at, std::int64_t estimate, std::int64_t used) {
      Reservation call;
      ASSERT_FALSE(bucket->TryReserve(begin + at, {&estimate, 1}, false, call));
      call.Sent(begin + at, 20 * kMillisecond);
      const Nanos now = begin + at + 50 * kMillisecond;
      call.Answered(now, false);
      counted += used;
      Reading reading = Of(100'000, 100'000 - counted);
      reading.period = Inference::kHour;
      reading.reset = Inference::kHour - at;
      learner.Observe(now, 0, AnsweredCall::Of(call, now), {&reading, 1});
      call.Settle(now, {&used, 1});
    };
    say(0, 1'000, 1'000);
    say(kMinute, 75'000, 10'000);
    counted += 50'000;  // others, at half past
    say(40 * kMinute, 1'000, 1'000);
    // At 61 minutes 11,000 of ours have left, and none of theirs.
    const std::int64_t much = 60'000;
    const Nanos at = begin + 61 * kMinute + kSecond;
    EXPECT_GT(bucket->Look(at, {&much, 1}, /*answered=*/true).ready_at, at + 20 * kMinute);
    bucket->Unref();
  }
}

// The windows begin at other instants by now.
TEST(Learner, FindsOutThatARecalledWindowBeginsElsewhere) {
  for (const Nanos shift : {kSecond, 2 * kSecond, 4 * kSecond, 5 * kSecond, kSecond + kSecond / 2,
                            4 * kSecond + kSecond / 2}) {
    SCOPED_TRACE(shift / kMillisecond);
    Setting setting;
    setting.shape = Shape::kFixed;
    setting.limit = 60;
    setting.period = 6 * kSecond;
    setting.spread = 25 * kMillisecond;
    if (shift % kSecond != 0) setting.latency = 2 * kSecond;
    setting.burst = 40;
    setting.pause = 9 * kSecond;
    World world(setting, Random::Seed(0));
    Limit learnt = Limit::Parse("60 requests/6s fixed").value();
    learnt.anchor = setting.anchor + shift;
    world.Recall(learnt);
    world.RunUntil(kStart + 2 * kMinute);
    EXPECT_LE(world.refused.size(), 60U);
    const Finding found = world.Found();
    if (found.verdict.shape == Shape::kFixed) {
      EXPECT_LT((found.verdict.anchor - setting.anchor) % setting.period, kSecond / 2);
    }
  }
}

TEST(Learner, RecallsEachLimitByWhatIsSaidOfIt) {
  Said said;
  Limit of_a_day = Limit::Parse("14400 requests/day fixed").value();
  Limit of_a_minute = Limit::Parse("30 requests/min window").value();
  Limit unknown = Limit::Parse("30 tokens/min window").value();
  const std::vector<Limit> limits{of_a_day, of_a_minute, unknown};
  EXPECT_EQ(said.learner->Recall(said.now, 0, limits, 0).size(), 2U);
  EXPECT_EQ(said.Wait(30), 0);
  EXPECT_GT(said.Wait(31), 0);
  said.Say(Of(30, 29));
  Reading second = Of(14'400, 13'000);
  second.family = 1;
  said.Say(second);
  const std::vector<Finding> findings = said.learner->Findings();
  ASSERT_EQ(findings.size(), 2U);
  EXPECT_EQ(findings[0].verdict.period, kMinute);
  EXPECT_EQ(findings[1].verdict.period, kDay);
  EXPECT_EQ(findings[1].verdict.shape, Shape::kFixed);
  EXPECT_EQ(findings[1].limit, 14'400);
  // Given limits win.
  Said given("100 requests/min window");
  EXPECT_TRUE(given.learner->Recall(given.now, 0, limits, 0).empty());
}

// What refusals have shown another one is kept to from the first second on, and searched on: it
// rises where the server admits more, and falls where it admits less.
TEST(Learner, SearchesOnFromWhatIsRecalled) {
  const Limit found = Limit::Parse("600 requests/min window").value();
  for (const std::int64_t limit : {500, 600, 700}) {
    SCOPED_TRACE(limit);
    Setting setting;
    setting.silent = true;
    setting.limit = limit;
    World world(setting, Random::Seed(0));
    world.learner->Recall(world.now, 0, {}, kSecond, found);
    EXPECT_TRUE(world.learner->searches());
    EXPECT_TRUE(world.Found().searched);
    // Evenly, from the beginning on.
    world.RunUntil(kStart + 30 * kSecond);
    EXPECT_NEAR(static_cast<double>(world.admitted.size()), 300, 20);
    EXPECT_EQ(world.refused.size(), 0U);
    world.RunUntil(kStart + 60 * kMinute);
    // A refusal that meets a step up takes more back than the step.
    EXPECT_NEAR(static_cast<double>(world.Found().limit), static_cast<double>(limit),
                static_cast<double>(limit) * 0.08);
  }
  // Begun anew while the server still counts what another one has sent: that lowers nothing.
  Setting setting;
  setting.silent = true;
  setting.limit = 600;
  World world(setting, Random::Seed(0));
  for (int i = 0; i < 590; ++i) world.server.Count(world.now);
  world.learner->Recall(world.now, 0, {}, kSecond, found);
  world.RunUntil(kStart + kMinute - kSecond);
  EXPECT_GT(world.refused.size(), 0U);
  EXPECT_EQ(world.Found().limit, 600);
  // Given limits win.
  Said given("100 requests/min window");
  EXPECT_TRUE(given.learner->Recall(given.now, 0, {}, 0, found).empty());
}

TEST(Learner, TakesNothingOfAnotherPeriodForAGivenLimit) {
  Said said("30 requests/min window");
  Reading of_a_day = Of(14'400, 10);
  of_a_day.period = kDay;
  said.Say(of_a_day);
  EXPECT_EQ(said.Wait(20), 0);
  Reading unsaid = Of(14'400, 10);
  unsaid.family = 1;
  unsaid.reset = 10 * kMinute;
  said.Say(unsaid);
  EXPECT_EQ(said.Wait(20), 0);
  // And of its own, what others use.
  Reading of_it = Of(30, 5);
  of_it.period = kMinute;
  of_it.family = 2;
  said.Say(of_it);
  EXPECT_GT(said.Wait(20), 0);
}

TEST(Learner, SeesWhatOthersUseAgainAfterTheirFirstHasLeft) {
  Said said;
  said.Say(Of(100, 49));
  EXPECT_EQ(said.learner->Findings().at(0).foreign, 50);
  said.now += 2 * kMinute;
  EXPECT_EQ(said.bucket->Used(0, said.now), 0);
  said.Say(Of(100, 59));
  EXPECT_EQ(said.learner->Findings().at(0).foreign, 40);
  EXPECT_EQ(said.bucket->Used(0, said.now), 41);
}

// One goes to see, and is told nothing.
TEST(Learner, KeepsWhatOthersHaveUsedWhereALookTellsNothing) {
  for (const std::optional<Nanos> refused : {std::optional<Nanos>(), std::optional(2 * kSecond)}) {
    Said said;
    said.Say(Of(30, 0));
    ASSERT_EQ(said.learner->Findings().at(0).foreign, 29);
    const Nanos wait = said.Wait(1);
    EXPECT_LE(wait, 2 * kSecond);
    said.now += wait;
    const std::int64_t one = 1;
    Reservation look;
    Reservation other;
    ASSERT_FALSE(said.bucket->TryReserve(said.now, {&one, 1}, false, look));
    EXPECT_TRUE(said.bucket->TryReserve(said.now, {&one, 1}, false, other));  // it waits for that
    said.now += kSecond / 2;
    EXPECT_TRUE(said.learner->searches());
    if (refused) look.Answered(said.now, true);
    said.learner->Observe(said.now, 0, AnsweredCall::Of(look, said.now), {}, refused);
    if (!refused) look.Answered(said.now, false);
    look.Settle(said.now, {});
    EXPECT_GE(said.bucket->Used(0, said.now), 29);
    EXPECT_TRUE(said.bucket->TryReserve(said.now, {&one, 1}, false, other));
  }
}

TEST(Learner, IsNotShutForLongByOneAnswer) {
  for (const char* const given : {"600 requests/min bucket", static_cast<const char*>(nullptr)}) {
    Said said(given, 0.9);
    Reading reading = Of(600, 0);
    reading.shape = Shape::kBucket;
    reading.period = kMinute;
    reading.reset = 365 * kDay;
    said.Say(reading);
    EXPECT_LE(said.Wait(1), 2 * kMinute);
  }
}

// What remains is told in thousands, and when all of it is there again in seconds.
TEST(Learner, TellsByTheResetWhatIsUsedWhereWhatRemainsIsRounded) {
  Reading reading = Of(3000, 3000);
  reading.rounding = 500;
  reading.shape = Shape::kBucket;
  reading.period = kMinute;
  reading.reset = kSecond;
  Said said(nullptr);
  said.Say(reading);
  const auto used = [&] {
    return static_cast<double>(said.bucket->Used(said.bucket->size() - 1, said.now));
  };
  // A second's worth, what clocks may differ by, and the guard.
  EXPECT_GE(used(), 50);
  EXPECT_LE(used(), 161);
  // Others have used 1,450: it may be 1,000 by what remains.
  reading.remaining = 2000;
  reading.reset = 30 * kSecond;
  said.Say(reading);
  EXPECT_NEAR(used(), 1500, 61);
  // Nobody believes a reset that contradicts it by more than that.
  reading.remaining = 1000;
  reading.reset = 0;
  said.Say(reading);
  EXPECT_GE(used(), 1499.0);
}

// By what it is rounded, more than all time may be owed: one a month, told in five thousands.
TEST(Learner, OwesNoMoreThanAllTimeByWhatIsRounded) {
  Reading reading = Of(1, 6000);
  reading.rounding = 5000;
  reading.shape = Shape::kBucket;
  reading.period = 31 * kDay;
  Said said(nullptr);
  said.Say(reading);
  // It may all be used.
  EXPECT_GT(said.Wait(1), kDay);
}

// An answer says that two minutes' worth was used in two seconds, and not by us.
TEST(Learner, ForeseesNoOthersWhoAreFasterThanTheLimit) {
  Said said(nullptr);
  said.delay = 2 * kSecond;
  Reading honest = Of(600, 590);
  honest.shape = Shape::kBucket;
  honest.period = kMinute;
  Reading lie = honest;
  lie.remaining = 0;
  lie.reset = 2 * kMinute;
  said.Say(honest);
  said.Say(honest);
  said.Say(lie);
  said.now += 3 * kMinute;
  said.Say(honest);
  // It was owed one second two seconds ago.
  EXPECT_LE(said.Wait(590), 2 * kSecond);
}

TEST(Learner, OfAKindThatItHadBeforeRemembersNothing) {
  Said said(nullptr, 0.9);
  said.at_once = true;
  for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kBucket, Shape::kWindow}) {
    Reading reading = Of(600, 590);
    reading.shape = shape;
    reading.period = kMinute;
    said.Say(reading);
    EXPECT_LE(said.Wait(1), kSecond) << ShapeName(shape);
    said.Say(reading);
    EXPECT_LE(said.Wait(1), kSecond) << ShapeName(shape);
  }
  EXPECT_LE(said.bucket->size(), 2);
}

// Others are admitted by threads of their own while the limit moves from meter to meter.
TEST(Learner, LetsNobodyInWhileItChangesItsMind) {
  int admitted = 0;
  for (int run = 0; run < 500; ++run) {
    Bucket* const bucket = Unknown();
    Learner learner(bucket, {"requests"}, {});
    const std::int64_t one = 1;
    std::array<Reservation, 60> calls;
    for (Reservation& call : calls) {
      ASSERT_FALSE(bucket->TryReserve(kStart, {&one, 1}, false, call));
      call.Sent(kStart, 20 * kMillisecond);
    }
    const Nanos now = kStart + 50 * kMillisecond;
    Reading reading = Of(60, 0);
    reading.period = kMinute;
    learner.Observe(now, 0, AnsweredCall::Of(calls[0], now), {&reading, 1});
    std::atomic<int> state{0};
    std::thread other([&] {
      state.store(1);
      while (state.load() == 1) {
        Reservation call;
        if (!bucket->TryReserve(now, {&one, 1}, false, call)) ++admitted;
      }
    });
    while (state.load() == 0) std::this_thread::yield();
    reading.shape = Shape::kBucket;
    learner.Observe(now, 0, AnsweredCall::Of(calls[1], now), {&reading, 1});
    state.store(2);
    other.join();
    bucket->Unref();
  }
  EXPECT_EQ(admitted, 0);
}

// Whoever waited and is let in holds his place in the limit before his call begins, and no answer
// tells of it.
TEST(Learner, LeavesRoomForThoseWhoAreAdmittedAndHaveNotBegun) {
  for (const Shape first : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    for (const Shape then : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
      SCOPED_TRACE(std::string(ShapeName(first)) + " " + std::string(ShapeName(then)));
      Said said;
      Reading reading = Of(60, 60);
      reading.period = kMinute;
      reading.shape = first;
      const std::int64_t one = 1;
      std::array<Reservation, 59> calls;
      const auto send = [&](std::size_t from, std::size_t to) {
        for (std::size_t i = from; i < to; ++i) {
          ASSERT_FALSE(said.bucket->TryReserve(said.now, {&one, 1}, false, calls[i]));
          calls[i].Sent(said.now, 20 * kMillisecond);
          said.now += History::kGrain;  // or it is not known how many came before which
        }
      };
      send(0, 28);
      const auto answer = [&](std::size_t i, std::int64_t used) {
        said.now += kMillisecond;
        reading.remaining = reading.limit - used;
        said.learner->Observe(said.now, 0, AnsweredCall::Of(calls[i], said.now), {&reading, 1});
      };
      said.now += 30 * kMillisecond;
      answer(0, 1);
      said.now += kSecond;
      send(28, 29);
      for (std::size_t i = 29; i < 59; ++i) {
        ASSERT_FALSE(said.bucket->TryReserve(said.now, {&one, 1}, /*privileged=*/true, calls[i]));
      }
      reading.shape = then;
      answer(28, 29);
      EXPECT_EQ(said.Wait(1), 0);
      EXPECT_GT(said.Wait(6), 0);
      for (std::size_t i = 29; i < 59; ++i) {
        if (i % 2 == 0) {
          calls[i].Cancel(said.now);  // nobody is left who would make it
          continue;
        }
        calls[i].Begin(said.now);
        said.now += History::kGrain;
      }
      // Nobody has yet to begin.
      EXPECT_EQ(said.bucket->history()->AdmittedSince(0, said.now), 0);
      for (Reservation& call : calls) call.Settle(said.now, {});
    }
  }
}

// It is thought to begin after that call was counted; but what the call's answer says is of it.
TEST(Learner, CountsTheCallByWhichAFixedWindowIsFound) {
  Said said;
  const std::int64_t one = 1;
  Reservation call;
  ASSERT_FALSE(said.bucket->TryReserve(said.now, {&one, 1}, false, call));
  call.Sent(said.now, 20 * kMillisecond);
  Reading reading = Of(60, 59);
  reading.shape = Shape::kFixed;
  reading.period = kMinute;
  reading.anchor = said.now + 40 * kMillisecond;
  said.now += 50 * kMillisecond;
  said.learner->Observe(said.now, 0, AnsweredCall::Of(call, said.now), {&reading, 1});
  EXPECT_EQ(said.Wait(59), 0);
  EXPECT_GT(said.Wait(60), 0);
  call.Settle(said.now, {});
}

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS
// While an answer is made use of that tells of five of ten, another thread admits somebody who
// waits, and a third one comes.
TEST(Learner, ForgetsNobodyWhoComesMeanwhile) {
  using simulate::Explorer;
  using simulate::Interleaving;
  struct State {
    Said said;
    std::array<Reservation, 6> calls;
    int admitted = 0;
  };
  std::uint64_t schedules = 0;
  for (const Shape first : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    for (const Shape then : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
      // Whether the call that is answered then was sent before anything was known.
      const auto make = [&](bool early) {
        auto state = std::make_shared<State>();
        Reading reading = Of(10, 6);
        reading.period = kMinute;
        reading.shape = first;
        const std::int64_t one = 1;
        const auto send = [state, one](std::size_t i) {
          if (state->said.bucket->TryReserve(state->said.now, {&one, 1}, false, state->calls[i]))
            std::abort();
          state->calls[i].Sent(state->said.now, 20 * kMillisecond);
          state->said.now += kSecond;
        };
        const auto answer = [state](std::size_t i, const Reading& said) {
          state->said.learner->Observe(
              state->said.now, 0, AnsweredCall::Of(state->calls[i], state->said.now), {&said, 1});
        };
        for (std::size_t i = 0; i < 4; ++i) send(i);
        if (early) send(4);
        answer(3, reading);
        if (!early) send(4);
        reading.shape = then;
        reading.remaining = 5;
        const auto admit = [state, one](bool privileged) {
          Reservation call;
          if (!state->said.bucket->TryReserve(state->said.now, {&one, 1}, privileged, call)) {
            ++state->admitted;
            HEADWAY_PAUSE();
            call.Begin(state->said.now);
          }
        };
        Interleaving interleaving;
        interleaving.threads = {[=] { answer(4, reading); }, [=] { admit(true); },
                                [=] { admit(false); }};
        interleaving.check = [state]() -> std::string {
          const std::int64_t more = 10 - 5 - state->admitted + 1;
          return state->said.Wait(more) > 0 ? "" : std::to_string(more) + " fit";
        };
        return interleaving;
      };
      for (const bool early : {false, true}) {
        const Explorer::Result result = Explorer::Explore([&] { return make(early); }, 2, 200'000);
        EXPECT_EQ(result.failure, "") << ShapeName(first) << " " << ShapeName(then) << early;
        EXPECT_TRUE(result.complete);
        schedules += result.schedules;
      }
    }
  }
  std::printf("  %llu schedules\n", static_cast<unsigned long long>(schedules));
}
#endif

TEST(Learner, TakesWhatWasUsedBeyondTheEstimateForItsOwn) {
  Said said;
  for (int i = 1; i <= 5; ++i) said.Say(Of(1'000, 1'000 - 100 * i), 100);
  EXPECT_LE(said.learner->Findings().at(0).foreign, 100);  // of the last one, not settled then
}

TEST(Learner, TakesOneLongResetForNoPeriod) {
  Said said;
  Reading reading = Of(600, 590);
  reading.reset = 2 * 3600 * kSecond;
  said.Say(reading);
  EXPECT_EQ(said.learner->Findings().at(0).verdict.period, kMinute);
  said.Say(reading);
  EXPECT_EQ(said.learner->Findings().at(0).verdict.period, kDay);
}

TEST(Learner, KeepsABufferFreeWhateverTheServerWouldStillAdmit) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow}) {
    Setting setting;
    setting.shape = shape;
    setting.ratio = 0.9;
    World world(setting, Random::Seed(0));
    world.RunUntil(kStart + 10 * kMinute);
    EXPECT_EQ(world.refused.size(), 0U);
    // What is found out in between costs a little, once.
    const std::int64_t minutes = world.Admitted(kStart + 4 * kMinute, kStart + 9 * kMinute);
    EXPECT_GE(minutes, 5 * 540 * 99 / 100) << ShapeName(shape);
    EXPECT_LE(minutes, 5 * 540 + 1) << ShapeName(shape);
    if (shape == Shape::kWindow) {
      EXPECT_LE(world.MostWithin(kMinute), 540) << ShapeName(shape);
    }
  }
}

// 14,400 requests a day, from midnight to midnight, of which nothing but the header's name says
// that they are requests.
TEST(Learner, RecognisesALimitOfADayAndWhenItsDayBegins) {
  Setting setting;
  setting.shape = Shape::kFixed;
  setting.limit = 14'400;
  setting.period = kDay;
  setting.anchor = 0;
  setting.every = 20 * kSecond;
  World world(setting, Random::Seed(0));
  world.RunUntil(kStart + kMinute);
  EXPECT_EQ(world.Found().verdict.period, kDay);
  world.RunUntil(kStart + 30 * kMinute);
  const Finding found = world.Found();
  EXPECT_EQ(found.verdict.shape, Shape::kFixed);
  EXPECT_EQ(found.verdict.anchor % kDay, 0);
}

// The headers of OpenAI's smallest tier: 200 a day, refilled one by one.
TEST(Learner, RecognisesABucketOfADay) {
  Setting setting;
  setting.shape = Shape::kBucket;
  setting.limit = 200;
  setting.period = kDay;
  setting.every = 5 * kMinute;
  World world(setting, Random::Seed(0));
  world.RunUntil(kStart + kDay / 2);
  EXPECT_EQ(world.Found().verdict.shape, Shape::kBucket);
  EXPECT_EQ(world.Found().verdict.period, kDay);
  EXPECT_EQ(world.refused.size(), 0U);
}

// A burst takes no time, in which nothing else could be told apart; but what is used shows.
TEST(Learner, RecognisesABucketByOneBurst) {
  for (const Shape shape : {Shape::kBucket, Shape::kWindow, Shape::kFixed}) {
    Said said;
    const Nanos begin = said.now;
    for (std::int64_t used = 1; used <= 40; ++used) {
      Reading reading = Of(60, 60 - used);
      reading.reset = shape == Shape::kBucket   ? used * kSecond
                      : shape == Shape::kWindow ? 60 * kSecond
                                                : begin + 31 * kSecond - said.now;
      said.Say(reading);
    }
    const Shape found = said.learner->Findings()[0].verdict.shape;
    EXPECT_EQ(found, shape == Shape::kBucket ? Shape::kBucket : Shape::kWindow);
    if (shape == Shape::kBucket) {
      // What may have been sent with the last one and not been counted is left out.
      EXPECT_LE(said.Wait(21), 11 * kSecond);
    }
  }
}

// The first burst of all meets the end of a window of six seconds, and its answers come in any
// order.
TEST(Learner, RecognisesAPeriodOfSecondsByABurstInTwoOfThem) {
  Said said;
  const std::int64_t one = 1;
  std::array<Reservation, 61> calls;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    ASSERT_FALSE(said.bucket->TryReserve(said.now, {&one, 1}, false, calls[i]));
    calls[i].Sent(said.now, 20 * kMillisecond);
    said.now += kMillisecond;
  }
  const Nanos end = said.now - 30 * kMillisecond;
  said.now += 20 * kMillisecond;
  const auto answer = [&](std::size_t i) {
    const bool before = calls[i].sent_at() < end;
    const auto used = static_cast<std::int64_t>(before ? i + 1 : i - 30);
    Reading reading = Of(60, 60 - used);
    reading.reset = end + (before ? 0 : 6 * kSecond) - calls[i].sent_at();
    said.learner->Observe(said.now, 0, AnsweredCall::Of(calls[i], said.now), {&reading, 1});
  };
  answer(0);
  for (std::size_t i = 1; i < 30; ++i) {
    answer(30 + i);
    answer(i);
  }
  EXPECT_EQ(said.learner->Findings().at(0).verdict.period, 6 * kSecond);
  for (Reservation& call : calls) call.Settle(said.now, {});
}

// What is found out of 360 requests and 6,000 tokens by so many calls, one after another, of which
// each uses a request and 100 tokens. `resets(used, now)`: what is said of both.
template <typename Resets>
std::vector<Finding> FindBoth(std::int64_t calls, Nanos apart, const Resets& resets) {
  Limit limit = Limit::Parse("1 requests/min").value();
  limit.amount = Limit::kMaxAmount;
  Limit tokens = limit;
  tokens.resource = "tokens";
  const std::vector<Limit> limits{limit, tokens};
  const std::vector<std::uint8_t> resources{0, 1};
  Bucket* const bucket = Bucket::Make(limits, resources, 0, nullptr, /*spare=*/8, /*width=*/2);
  Learner learner(bucket, {"requests", "tokens"}, {});
  const std::vector<std::int64_t> cost{1, 100};
  Nanos now = kStart;
  for (std::int64_t used = 1; used <= calls; ++used) {
    Reservation call;
    EXPECT_FALSE(bucket->TryReserve(now, cost, false, call));
    call.Sent(now, 20 * kMillisecond);
    std::array<Reading, 2> readings{Of(360, 360 - used), Of(6'000, 6'000 - 100 * used)};
    readings[1].resource = 1;
    std::tie(readings[0].reset, readings[1].reset) = resets(used, now);
    now += apart;
    learner.Observe(now, 0, AnsweredCall::Of(call, now), readings);
    call.Settle(now, {});
  }
  std::vector<Finding> findings = learner.Findings();
  bucket->Unref();
  return findings;
}

// The same where both are refilled continuously. Requests of a minute say that they take longer.
TEST(Learner, TakesAPeriodOfSecondsFromABucketThatIsRefilledInIt) {
  for (const Inference::Verdict& truth :
       {Inference::Verdict{Shape::kBucket, 6 * kSecond, 0},
        Inference::Verdict{Shape::kBucket, kMinute, 0}, Inference::Verdict{}}) {
    const auto findings = FindBoth(40, kMillisecond, [&](std::int64_t used, Nanos now) {
      return std::pair(
          truth.shape == Shape::kBucket ? used * truth.period / 360 : kStart + truth.period - now,
          used * 100 * 6 * kSecond / 6'000);
    });
    EXPECT_EQ(findings.at(1).verdict, (Inference::Verdict{Shape::kBucket, 6 * kSecond, 0}));
    EXPECT_EQ(findings.at(0).verdict, truth);
  }
}

// Of requests so little is used, where tokens bind, that their period would not show.
TEST(Learner, TakesAPeriodOfSecondsFromALimitThatEndsWithIt) {
  const Nanos end = kStart + 5 * kSecond + 987 * kMillisecond;
  for (const bool together : {true, false}) {
    const auto findings = FindBoth(30, 20 * kMillisecond, [&](std::int64_t, Nanos now) {
      return std::pair(end - now + (together ? 0 : 3 * kSecond), end - now);
    });
    EXPECT_EQ(findings.at(1).verdict.period, 6 * kSecond);
    EXPECT_EQ(findings.at(0).verdict.period, together ? 6 * kSecond : kMinute);
  }
}

// Where little is sent, all kinds of server say nearly the same.
TEST(Learner, TakesNoWindowForABucketForBeingIdle) {
  for (const std::int64_t limit : {60, 600, 60'000}) {
    for (const Nanos every : {kSecond, 10 * kSecond, 50 * kSecond}) {
      Setting setting;
      setting.limit = limit;
      setting.every = every;
      setting.grain = kSecond;
      World world(setting, Random::Seed(0));
      world.RunUntil(kStart + 20 * kMinute);
      EXPECT_EQ(world.Found().verdict.shape, Shape::kWindow) << limit << " " << every;
    }
  }
}

TEST(Learner, LeavesALimitThatWasGivenAsItIs) {
  Setting setting;
  setting.limit = 6'000;
  setting.given = "60 requests/min window";
  World world(setting, Random::Seed(0));
  world.RunUntil(kStart + 10 * kMinute);
  EXPECT_LE(world.MostWithin(kMinute), 60);
  EXPECT_GE(world.Admitted(kStart, kStart + 10 * kMinute), 590);
}

// Whatever is said, and in whatever order, a limit that was given is never passed, and nothing is
// lost for ever.
TEST(Learner, StandsWhateverIsSaid) {
  for (std::uint64_t run = 0; run < 30; ++run) {
    Random random(Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    const char* const texts[] = {"50 requests/min window", "50 requests/min bucket burst 10",
                                 "50 requests/min fixed"};
    Limit limit = Limit::Parse(texts[run % 3]).value();
    const std::uint8_t requests = 0;
    Bucket* const bucket = Bucket::Make({&limit, 1}, {&requests, 1}, 0, nullptr, 8, 1);
    Learner learner(bucket, {"requests"}, {});
    std::deque<std::shared_ptr<Reservation>> calls;
    std::deque<Nanos> admitted;
    Nanos now = kStart;
    const auto any = [&](std::int64_t most) {
      return random.OneIn(5) ? random.Magnitude(53) : random.From(-1, most);
    };
    for (int step = 0; step < 3'000; ++step) {
      now += random.From(0, kSecond);
      const std::int64_t one = 1;
      auto call = std::make_shared<Reservation>();
      if (!bucket->TryReserve(now, {&one, 1}, false, *call)) {
        admitted.push_back(now);
        calls.push_back(std::move(call));
      }
      if (calls.empty() || random.OneIn(3)) continue;
      const std::size_t which =
          static_cast<std::size_t>(random.From(0, static_cast<std::int64_t>(calls.size()) - 1));
      const std::shared_ptr<Reservation> told = calls[which];
      calls.erase(calls.begin() + static_cast<std::ptrdiff_t>(which));
      std::vector<Reading> readings(static_cast<std::size_t>(random.From(0, 3)));
      for (Reading& reading : readings) {
        reading.family = static_cast<std::uint8_t>(random.From(0, 255));
        reading.limit = any(100);
        reading.remaining = any(100);
        reading.rounding = random.OneIn(4) ? random.From(0, 1'000) : 0;
        reading.reset = random.OneIn(4) ? kNever : random.From(0, random.OneIn(3) ? kDay : kMinute);
        if (random.OneIn(5)) reading.period = random.From(kMillisecond, Limit::kMaxPeriod);
      }
      told->Answered(now, random.OneIn(5));
      learner.Observe(now, random.From(-kDay, kDay), AnsweredCall::Of(*told, now), readings);
      told->Settle(now, {});
    }
    // A bucket's refill comes on top of its burst, and a fixed window may end within any minute.
    const std::array<std::size_t, 3> most_by_shape = {50, 61, 100};
    const std::size_t most = most_by_shape[run % 3];
    for (std::size_t first = 0, i = 0; i < admitted.size(); ++i) {
      while (admitted[first] + kMinute <= admitted[i]) ++first;
      EXPECT_LE(i - first + 1, most);
    }
    // What others were said to use leaves, too.
    for (auto& call : calls) call->Settle(now, {});
    now += 40 * kDay;
    const std::int64_t few = 10;
    Reservation last;
    EXPECT_FALSE(bucket->TryReserve(now, {&few, 1}, false, last));
    last.Settle(now, {});
    calls.clear();
    bucket->Unref();
  }
}

}  // namespace
}  // namespace headway
