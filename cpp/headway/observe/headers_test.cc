// headway/observe/headers_test.cc: headers as providers write them, and as nobody should.
#include "headway/observe/headers.h"

#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;

constexpr double kNow = 1'800'000'000;

std::vector<Reading> Read(const StatedLimit& stated,
                          const std::map<std::string, std::string>& given,
                          int* oddities = nullptr) {
  return ReadStated(
      {stated},
      [&](absl::string_view name) -> std::optional<absl::string_view> {
        const auto found = given.find(std::string(name));
        if (found == given.end()) return std::nullopt;
        return absl::string_view(found->second);
      },
      kNow, oddities);
}

StatedLimit Requests(ResetForm form) {
  StatedLimit stated;
  stated.resource = 1;
  stated.family = 2;
  stated.limit = "limit";
  stated.remaining = "remaining";
  stated.reset = "reset";
  stated.reset_form = form;
  return stated;
}

TEST(Headers, EachValueThatCannotBeReadIsCounted) {
  StatedLimit stated = Requests(ResetForm::kDuration);
  stated.period_in = "period";
  const std::map<std::string, std::string> good{
      {"limit", "60"}, {"remaining", "5"}, {"reset", "6s"}, {"period", "60"}};
  int oddities = 0;
  EXPECT_EQ(Read(stated, good, &oddities).size(), 1U);
  EXPECT_EQ(oddities, 0);
  for (const std::string name : {"limit", "remaining", "reset", "period", "date"}) {
    auto bad = good;
    bad[name] = "soon";
    oddities = 0;
    EXPECT_EQ(Read(stated, bad, &oddities).size(), name == "limit" ? 0U : 1U);
    EXPECT_EQ(oddities, 1) << name;
    bad[name] = "-1";  // not known
    oddities = 0;
    Read(stated, bad, &oddities);
    EXPECT_EQ(oddities, 0) << name;
  }
}

TEST(Headers, EachFormOfAResetIsATimeFromNow) {
  const std::vector<std::tuple<ResetForm, std::string, Nanos>> good = {
      {ResetForm::kDuration, "6m0s", 360 * kSecond},
      {ResetForm::kDuration, "12ms", 12 * kMillisecond},
      {ResetForm::kDuration, "1.5", 1'500 * kMillisecond},
      {ResetForm::kMilliseconds, "1500", 1'500 * kMillisecond},
      {ResetForm::kEpoch, "1800000030", 30 * kSecond},
      {ResetForm::kEpochMillis, "1800000030500", 30'500 * kMillisecond},
      {ResetForm::kDate, "2027-01-15T08:00:45Z", 45 * kSecond},
      {ResetForm::kAny, "1800000030", 30 * kSecond},
      {ResetForm::kAny, "30", 30 * kSecond},
      {ResetForm::kAny, "2027-01-15T08:00:45Z", 45 * kSecond},
      {ResetForm::kDate, "2027-01-15T07:59:59Z", 0},  // full already, as Anthropic sends it
  };
  for (const auto& [form, text, in] : good) {
    const auto readings = Read(Requests(form), {{"remaining", "5"}, {"reset", text}});
    ASSERT_EQ(readings.size(), 1U);
    EXPECT_EQ(readings[0].reset, in) << text;
  }
  for (const auto& [form, text] : std::vector<std::pair<ResetForm, std::string>>{
           {ResetForm::kEpoch, "30"},          // no instant of this century
           {ResetForm::kEpoch, "1799999000"},  // long past: the clocks differ
           {ResetForm::kDuration, "-1"},
           {ResetForm::kDuration, "1800000030"},  // 57 years
           {ResetForm::kDate, "soon"},
           {ResetForm::kMilliseconds, "6m0s"}}) {
    const auto readings = Read(Requests(form), {{"remaining", "5"}, {"reset", text}});
    ASSERT_EQ(readings.size(), 1U);
    EXPECT_EQ(readings[0].reset, kNever) << text;
  }
}

TEST(Headers, APeriodMayBeStatedByAHeader) {
  StatedLimit stated = Requests(ResetForm::kAny);
  stated.period = 60 * kSecond;
  stated.period_in = "period";
  const auto period_of = [&](const std::string& text) {
    return Read(stated, {{"limit", "5"}, {"period", text}}).at(0).period;
  };
  EXPECT_EQ(period_of("10"), 10 * kSecond);
  EXPECT_EQ(period_of("0.5"), kSecond / 2);
  for (const std::string text : {"0", "-1", "soon", "1e9", ""})
    EXPECT_EQ(period_of(text), 60 * kSecond) << text;
}

TEST(Headers, OneLimitMayBeStatedOnlyWithOrWithoutAnotherHeader) {
  StatedLimit stated = Requests(ResetForm::kAny);
  stated.when = "a";
  stated.unless = "b";
  EXPECT_TRUE(Read(stated, {{"limit", "5"}}).empty());
  EXPECT_EQ(Read(stated, {{"limit", "5"}, {"a", ""}}).size(), 1U);
  EXPECT_TRUE(Read(stated, {{"limit", "5"}, {"a", ""}, {"b", ""}}).empty());
}

TEST(Headers, WhatRemainsOfALimitThatIsNotKnownIsNotKnown) {
  const StatedLimit stated = Requests(ResetForm::kAny);
  EXPECT_TRUE(Read(stated, {{"limit", "-1"}, {"remaining", "0"}}).empty());
  EXPECT_EQ(Read(stated, {{"remaining", "0"}}).size(), 1U);
}

TEST(Headers, ACachesAnswerSaysNothing) {
  const StatedLimit stated = Requests(ResetForm::kAny);
  EXPECT_TRUE(Read(stated, {{"limit", "5"}, {"age", "1"}}).empty());
  for (const std::string text : {"0", "", "-1", "old"})
    EXPECT_EQ(Read(stated, {{"limit", "5"}, {"age", text}}).size(), 1U) << text;
}

TEST(Headers, InstantsAreComparedWithTheServersOwnClock) {
  const auto readings = Read(Requests(ResetForm::kDate), {{"remaining", "5"},
                                                          {"date", "Fri, 15 Jan 2027 09:30:00 GMT"},
                                                          {"reset", "2027-01-15T09:30:20Z"}});
  ASSERT_EQ(readings.size(), 1U);
  EXPECT_EQ(readings[0].reset, 20 * kSecond);
}

// The Date field is in whole seconds, within which our clock tells more; beyond, theirs is right.
TEST(Headers, InstantsAreComparedWithOurClockWithinTheSecondOfTheServers) {
  const auto read = [](const std::string& date, const std::string& reset) {
    return ReadStated(
        {Requests(ResetForm::kAny)},
        [&](absl::string_view name) -> std::optional<absl::string_view> {
          if (name == "remaining") return "5";
          if (name == "date") return date;
          if (name == "reset") return reset;
          return std::nullopt;
        },
        kNow + 0.75)[0];
  };
  const std::string now = "Fri, 15 Jan 2027 08:00:00 GMT";
  const Reading exact = read(now, "1800000004500");
  EXPECT_EQ(exact.reset, 3'750 * kMillisecond);
  EXPECT_TRUE(exact.dated);
  EXPECT_EQ(exact.coarse, 0);
  const Reading whole = read(now, "1800000004");
  EXPECT_EQ(whole.reset, 3'250 * kMillisecond);
  EXPECT_EQ(whole.coarse, kSecond);
  // Ours is behind by more than a second, or ahead.
  const Reading behind = read("Fri, 15 Jan 2027 08:00:02 GMT", "1800000004500");
  EXPECT_EQ(behind.reset, 2'500 * kMillisecond);
  EXPECT_EQ(behind.coarse, kSecond);
  EXPECT_EQ(read("Fri, 15 Jan 2027 07:59:50 GMT", "1800000004500").reset, 14'500 * kMillisecond);
  // It was told as the call was counted, and is past.
  const Reading past = read(now, "1799999999500");
  EXPECT_EQ(past.reset, 0);
  EXPECT_EQ(past.ago, 1'250 * kMillisecond);
  const Reading wait = read(now, "4");
  EXPECT_EQ(wait.reset, 4 * kSecond);
  EXPECT_FALSE(wait.dated);
  EXPECT_EQ(wait.coarse, 0);
}

TEST(Headers, WhatIsNotKnownIsNotSaid) {
  EXPECT_TRUE(Read(Requests(ResetForm::kAny), {}).empty());
  EXPECT_TRUE(Read(Requests(ResetForm::kAny), {{"reset", "5"}}).empty());
  EXPECT_TRUE(Read(Requests(ResetForm::kAny), {{"limit", "-1"}, {"remaining", "-1"}}).empty());
  EXPECT_TRUE(Read(Requests(ResetForm::kAny), {{"limit", "1e30"}, {"remaining", "many"}}).empty());
  const auto readings = Read(Requests(ResetForm::kAny), {{"limit", "100"}, {"remaining", "99.7"}});
  ASSERT_EQ(readings.size(), 1U);
  EXPECT_EQ(readings[0].resource, 1);
  EXPECT_EQ(readings[0].family, 2);
  EXPECT_EQ(readings[0].limit, 100);
  EXPECT_EQ(readings[0].remaining, 99);
  EXPECT_EQ(readings[0].reset, kNever);
}

// Examples of draft-ietf-httpapi-ratelimit-headers, and of earlier ones.
TEST(Headers, RateLimitFieldsStatePoliciesAndWhatIsLeftOfThem) {
  const auto readings = ReadRateLimitFields(
      R"("permin";q=50;w=60, "perday";q=5000;w=86400;qu="requests", "bytes";q=1;qu="content-bytes")",
      R"("permin";r=20;t=23)", 3, 7);
  ASSERT_TRUE(readings);
  ASSERT_EQ(readings->size(), 2U);
  EXPECT_EQ((*readings)[0].resource, 3);
  EXPECT_EQ((*readings)[0].family, 7);
  EXPECT_EQ((*readings)[0].limit, 50);
  EXPECT_EQ((*readings)[0].remaining, 20);
  EXPECT_EQ((*readings)[0].reset, 23 * kSecond);
  EXPECT_EQ((*readings)[0].period, 60 * kSecond);
  EXPECT_EQ((*readings)[1].family, 8);
  EXPECT_EQ((*readings)[1].limit, 5'000);
  EXPECT_EQ((*readings)[1].period, kDay);
  EXPECT_EQ((*readings)[1].remaining, Reading::kUnsaid);
  const auto of_tokens =
      ReadRateLimitFields("default;q=100;w=10;pk=:Y2RuMQ==:", "default;r=5;t=2", 0, 0);
  ASSERT_TRUE(of_tokens);
  ASSERT_EQ(of_tokens->size(), 1U);
  EXPECT_EQ((*of_tokens)[0].remaining, 5);
  EXPECT_TRUE(ReadRateLimitFields("", "", 0, 0)->empty());
  for (const char* bad : {"\"open", "a;q=1,", ",a;q=1", "a;q=1 b", "a;w=60", "a;q=1;=2", "a;q=\"1",
                          "a;q=1,,b;q=2", ";q=1", "a;q=-1"})
    EXPECT_FALSE(ReadRateLimitFields(bad, "", 0, 0)) << bad;
  std::string many;
  for (int i = 0; i < 9; ++i) many += (i == 0 ? "a;q=1" : ",a;q=1");
  EXPECT_FALSE(ReadRateLimitFields(many, "", 0, 0));
}

TEST(Headers, DamagedTextIsReadWithoutHarm) {
  const std::vector<std::string> whole = {
      R"("permin";q=50;w=60, "perday";q=5000;w=86400;qu="requests";pk=:Y2RuMQ==:)",
      R"("per\"min";r=20;t=23, b;r=1)",
      "16m17.764s",
      "2027-01-15T08:00:45Z",
      "1800000030500",
      "-1"};
  for (std::uint64_t run = 0; run < 20'000; ++run) {
    Random random(Random::Seed(run));
    const auto damaged = [&] {
      return random.Damage(whole[static_cast<std::size_t>(random.From(0, 5))], random.From(0, 4));
    };
    const auto fields = ReadRateLimitFields(damaged(), damaged(), 0, 0);
    if (fields)
      for (const Reading& reading : *fields) {
        EXPECT_GE(reading.limit, Reading::kUnsaid);
        EXPECT_GE(reading.reset, 0);
      }
    const auto form = static_cast<ResetForm>(random.From(0, 5));
    for (const Reading& reading : Read(Requests(form), {{"limit", damaged()},
                                                        {"remaining", damaged()},
                                                        {"reset", damaged()},
                                                        {"date", damaged()}})) {
      EXPECT_GE(reading.remaining, Reading::kUnsaid);
      EXPECT_LE(reading.limit, Limit::kMaxAmount);
      EXPECT_GE(reading.reset, 0);
    }
  }
}

}  // namespace
}  // namespace headway
