// headway/base/limit_test.cc: limits are checked, read and written without losing anything.
#include "headway/base/limit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "headway/simulate/random.h"

namespace headway {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Limit Parsed(absl::string_view text) {
  absl::StatusOr<Limit> limit = Limit::Parse(text);
  EXPECT_TRUE(limit.ok()) << limit.status();
  return limit.ok() ? *limit : Limit{};
}

TEST(LimitText, ReadsTheFormsThatPeopleWrite) {
  const Limit limit = Parsed("500 requests/min");
  EXPECT_EQ(limit.amount, 500);
  EXPECT_EQ(limit.resource, "requests");
  EXPECT_EQ(limit.period, 60 * kSecond);
  EXPECT_EQ(limit.shape, Shape::kUnknown);
  EXPECT_EQ(Parsed("200_000 tokens/60s window").shape, Shape::kWindow);
  EXPECT_EQ(Parsed("200_000 tokens/60 s"), Parsed("200000 tokens / min"));
  EXPECT_EQ(Parsed("100 requests/s bucket burst 10").burst, 10);
  EXPECT_EQ(Parsed("10_000 requests/day fixed").period, kDay);
  EXPECT_EQ(Parsed("9 requests/day fixed anchor -28800").anchor, -28'800 * kSecond);
  EXPECT_EQ(Parsed("32 concurrency").shape, Shape::kConcurrency);
  EXPECT_EQ(Parsed("1 requests/0.25s").period, 250 * kMillisecond);
  EXPECT_EQ(Parsed("1 requests/.25 s").period, 250 * kMillisecond);
}

TEST(LimitText, KnowsAllUnits) {
  for (const auto& [unit, seconds] :
       std::vector<std::pair<std::string, std::int64_t>>{{"s", 1},
                                                         {"sec", 1},
                                                         {"second", 1},
                                                         {"min", 60},
                                                         {"minute", 60},
                                                         {"h", 3600},
                                                         {"hour", 3600},
                                                         {"day", 86'400}})
    EXPECT_EQ(Parsed("7 requests/" + unit).period, seconds * kSecond) << unit;
}

TEST(LimitText, RoundTripsEveryLimit) {
  for (std::uint64_t run = 0; run < 20'000; ++run) {
    simulate::Random random(simulate::Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    constexpr Shape kShapes[] = {Shape::kUnknown, Shape::kBucket, Shape::kFixed, Shape::kWindow,
                                 Shape::kConcurrency};
    Limit limit = simulate::AnyLimit(random, kShapes[random.From(0, 4)]);
    if (limit.period != 0 && random.OneIn(2)) {
      // Any number of nanoseconds.
      limit.period = random.From(Limit::kMinPeriod, Limit::kMaxPeriod);
      limit.burst.reset();
      if (limit.anchor) limit.anchor = random.From(-Limit::kMaxAnchor, Limit::kMaxAnchor);
    }
    const absl::StatusOr<Limit> made = Limit::Make(limit);
    ASSERT_TRUE(made.ok()) << made.status();
    const std::string text = made->Format();
    const absl::StatusOr<Limit> again = Limit::Parse(text);
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_EQ(*again, *made) << text;
    ASSERT_EQ(again->Format(), text);
  }
}

TEST(LimitText, ABurstAsLargeAsTheAmountIsTheDefault) {
  EXPECT_EQ(Parsed("100 requests/s bucket burst 100"), Parsed("100 requests/s bucket"));
}

std::string Refusal(Limit limit) {
  return std::string(Limit::Make(std::move(limit)).status().message());
}

Limit Bucket() {
  Limit limit;
  limit.amount = 10;
  limit.resource = "requests";
  limit.period = kSecond;
  limit.shape = Shape::kBucket;
  return limit;
}

template <typename Change>
Limit But(Change change) {
  Limit limit = Bucket();
  change(limit);
  return limit;
}

TEST(LimitErrors, NameTheFieldTheValueAndTheRule) {
  EXPECT_THAT(Refusal(But([](Limit& l) { l.resource = "Tokens"; })),
              AllOf(HasSubstr("resource 'Tokens'"), HasSubstr("lower-case")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.resource = ""; })), HasSubstr("resource ''"));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.resource = std::string(65, 'a'); })),
              HasSubstr("at most 64"));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.amount = -1; })),
              AllOf(HasSubstr("amount -1"), HasSubstr("0 to 2**53")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.amount = Limit::kMaxAmount + 1; })),
              AllOf(HasSubstr("amount 9007199254740993"), HasSubstr("0 to 2**53")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.period = kMillisecond - 1; })),
              AllOf(HasSubstr("per 0.000999999 s"), HasSubstr("0.001 s to 31 days")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.period = 31 * kDay + 1; })),
              AllOf(HasSubstr("per 2678400.000000001 s"), HasSubstr("31 days")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.burst = 0; })),
              AllOf(HasSubstr("burst 0"), HasSubstr("1 to 2**53")));
  EXPECT_THAT(Refusal(But([](Limit& l) {
                l.amount = 0;
                l.burst = -5;
              })),
              AllOf(HasSubstr("burst -5"), HasSubstr("1 to 2**53")));
  EXPECT_THAT(Refusal(But([](Limit& l) {
                l.shape = Shape::kWindow;
                l.burst = 5;
              })),
              AllOf(HasSubstr("burst 5"), HasSubstr("needs shape 'bucket'")));
  EXPECT_THAT(Refusal(But([](Limit& l) {
                l.amount = 1;
                l.period = 31 * kDay;
                l.burst = Limit::kMaxAmount;
              })),
              AllOf(HasSubstr("burst 9007199254740992"), HasSubstr("4.5 years")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.anchor = 5 * kSecond; })),
              AllOf(HasSubstr("anchor 5"), HasSubstr("needs shape 'fixed'")));
  EXPECT_THAT(Refusal(But([](Limit& l) {
                l.shape = Shape::kFixed;
                l.anchor = Limit::kMaxAnchor + 1;
              })),
              AllOf(HasSubstr("anchor 4611686018.427387905 s"), HasSubstr("146 years")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.shape = Shape::kConcurrency; })),
              AllOf(HasSubstr("shape 'concurrency'"), HasSubstr("resource 'concurrency'")));
  EXPECT_THAT(Refusal(But([](Limit& l) { l.resource = "concurrency"; })),
              HasSubstr("shape 'bucket'"));
}

TEST(LimitErrors, SayWhichResourceASlipWasToBe) {
  const auto refusal = [](const std::string& name) {
    return Refusal(But([&name](Limit& l) { l.resource = name; }));
  };
  for (const char* slip : {"token", "tokenss", "tokns", "tokems", "otkens", "tokesn"})
    EXPECT_THAT(refusal(slip), AllOf(HasSubstr(std::string("resource '") + slip + "'"),
                                     HasSubstr("must be 'tokens', if that is meant")));
  for (const char* other : {"request", "req", "reqs", "call", "calls"})
    EXPECT_THAT(refusal(other), HasSubstr("must be 'requests'"));
  EXPECT_THAT(refusal("input-tokens"), HasSubstr("must be 'input_tokens'"));
  EXPECT_THAT(refusal("prompt_tokens"), HasSubstr("must be 'input_tokens'"));
  EXPECT_THAT(refusal("completion_tokens"), HasSubstr("must be 'output_tokens'"));
  EXPECT_THAT(refusal("concurency"), HasSubstr("must be 'concurrency'"));
  for (const char* own : {"images", "tokens_in", "my_tokens", "tickets", "t", "kotens"})
    EXPECT_EQ(refusal(own), "") << own;
}

TEST(LimitErrors, QuoteTheTextThatCouldNotBeRead) {
  for (const auto& [text, why] : std::vector<std::pair<std::string, std::string>>{
           {"", "must read"},
           {"500", "must read"},
           {"many requests/min", "amount 'many' is not a whole number"},
           {"1.5 requests/min", "amount '1.5' is not a whole number"},
           {"_5 requests/min", "amount '_5'"},
           {"5 requests", "a period is missing"},
           {"5 requests/fortnight", "per 'fortnight' is not a period"},
           {"5 requests/1.5.2s", "per '1.5.2s' is not a period"},
           {"5 requests/", "per '' is not a period"},
           {"5 requests/99999999999999999999s", "is not a period"},
           {"5 concurrency/min", "'concurrency' has no period"},
           {"5 requests/min sideways", "'sideways' is not expected there"},
           {"5 requests/min window window", "'window' is not expected there"},
           {"5 requests/min bucket burst", "'burst' is not expected there"},
           {"5 requests/min bucket burst x", "burst 'x' is not a whole number"},
           {"5 requests/min fixed anchor x", "anchor 'x' is not a number of seconds"},
           {"5 requests/min fixed anchor -", "anchor '-' is not a number of seconds"},
           {"5 requests/min concurrency", "'concurrency' is not expected there"},
           {"-5 requests/min", "amount -5: must be from 0 to 2**53"},
           {"5 requests/min burst 2", "burst 2: needs shape 'bucket'"}}) {
    const absl::StatusOr<Limit> limit = Limit::Parse(text);
    ASSERT_FALSE(limit.ok()) << text;
    EXPECT_THAT(std::string(limit.status().message()),
                AllOf(HasSubstr("limit '" + text + "': "), HasSubstr(why)));
  }
}

TEST(LimitErrors, NoTextCrashesTheParser) {
  const std::string alphabet = "0159_./- msconcurrencyrequestsbucketburstanchor\t";
  for (std::uint64_t run = 0; run < 20'000; ++run) {
    simulate::Random random(simulate::Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    std::string text;
    for (std::int64_t i = random.From(0, 30); i > 0; --i)
      text += alphabet[static_cast<std::size_t>(
          random.From(0, static_cast<std::int64_t>(alphabet.size()) - 1))];
    const absl::StatusOr<Limit> limit = Limit::Parse(text);
    // What was read can be written and read again.
    if (limit.ok()) {
      ASSERT_EQ(Limit::Parse(limit->Format()).value(), *limit) << text;
    }
  }
}

}  // namespace
}  // namespace headway
