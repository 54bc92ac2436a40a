// headway/observe/values_test.cc: what providers write, and what nobody should.
#include "headway/observe/values.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/random.h"

namespace headway {
namespace {

using simulate::Random;

constexpr double kNow = 1'800'000'000;

TEST(Values, NumbersAreDigitsWithAFractionAndAnExponent) {
  const std::vector<std::pair<std::string, double>> good = {
      {"0", 0},      {"5", 5},       {" 42\t", 42}, {"+7", 7},
      {"2.5", 2.5},  {".5", 0.5},    {"3.", 3},     {"1e3", 1'000},
      {"1E+2", 100}, {"25e-1", 2.5}, {"007", 7},    {"9007199254740992", 9007199254740992.0}};
  for (const auto& [text, value] : good) EXPECT_EQ(ParseNumber(text), value) << text;
  for (const std::string bad : {"",
                                " ",
                                "-1",
                                "-0",
                                "+",
                                ".",
                                "e3",
                                "1e",
                                "1e+",
                                "--1",
                                "+-1",
                                "1 2",
                                "1,000",
                                "0x10",
                                "inf",
                                "nan",
                                "Infinity",
                                "1e999",
                                "9007199254740993000",
                                "1_000",
                                "5s",
                                "\xD9\xA3"})
    EXPECT_EQ(ParseNumber(bad), std::nullopt) << bad;
  EXPECT_EQ(ParseNumber(std::string(65, '1')), std::nullopt);
  EXPECT_EQ(ParseNumber(std::string("1\0", 2)), std::nullopt);
}

// The samples are of recorded answers of OpenAI and Groq.
TEST(Values, DurationsAreNumbersOrAmountsWithUnits) {
  const std::vector<std::pair<std::string, double>> good = {{"1s", 1},
                                                            {"6m0s", 360},
                                                            {"20ms", 0.02},
                                                            {"16m17.764s", 977.764},
                                                            {"2m59.56s", 179.56},
                                                            {"7.66s", 7.66},
                                                            {"1h2m3s", 3'723},
                                                            {"500us", 5e-4},
                                                            {"500\xC2\xB5s", 5e-4},
                                                            {"500\xCE\xBCs", 5e-4},
                                                            {"30", 30},
                                                            {"0.5", 0.5},
                                                            {"1d", 86'400},
                                                            {"1.5h", 5'400},
                                                            {"7ns", 7e-9}};
  for (const auto& [text, value] : good) {
    ASSERT_TRUE(ParseDuration(text).has_value()) << text;
    EXPECT_DOUBLE_EQ(*ParseDuration(text), value) << text;
  }
  for (const std::string bad : {"", "s", "1x", "1m x", "m1", "1s1", "-1s", "1 s", "1M", "1mss",
                                "1e3s", "1..2s", "9007199254740992h"})
    EXPECT_EQ(ParseDuration(bad), std::nullopt) << bad;
}

TEST(Values, DatesAreRfc3339OrOneOfTheThreeFormsOfHttp) {
  const double moment = 784'111'777;  // RFC 9110's own example
  for (const std::string same :
       {"Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994", "1994-11-06T08:49:37Z", "1994-11-06t08:49:37z",
        "1994-11-06 08:49:37", "1994-11-06T09:49:37+01:00", "1994-11-06T03:19:37-0530",
        "sun, 06 nov 1994 08:49:37 UTC", "Sun, 06 Nov 1994 09:49:37 +0100",
        " 1994-11-06T08:49:37Z "})
    EXPECT_EQ(ParseDate(same), moment) << same;
  EXPECT_EQ(ParseDate("1994-11-06T08:49:37.25Z"), moment + 0.25);
  EXPECT_EQ(ParseDate("1994-11-06T08:49Z"), moment - 37);
  EXPECT_EQ(ParseDate("2016-12-31T23:59:60Z"), ParseDate("2017-01-01T00:00:00Z"));
  EXPECT_EQ(ParseDate("2024-02-29T00:00:00Z"), 1'709'164'800);
  for (const std::string bad :
       {"", "1994-11-06", "1994-13-06T08:49:37Z", "2023-02-29T00:00:00Z", "1994-11-06T24:00:00Z",
        "1994-11-06T08:60:00Z", "1994-11-06T08:49:61Z", "1994-11-06T08:49:37.Z",
        "1994-11-06T08:49:37+24:00", "1994-11-06T08:49:37Zx", "Sun, 06 Nov 1994 08:49:37",
        "Sun, 6 Nov 1994 08:49:37 GMT", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun,06 Nov 1994",
        "Nov 6 1994", "Xyz, 06 Nov 1994 08:49:37 GMT", "Sun Nov 06 08:49:37 94"})
    EXPECT_EQ(ParseDate(bad), std::nullopt) << bad;
}

TEST(Values, AnInstantIsAWaitOrATimeByItsSize) {
  EXPECT_EQ(ParseInstant("30", kNow), kNow + 30);
  EXPECT_EQ(ParseInstant("1741305600", kNow), 1'741'305'600);          // Venice
  EXPECT_EQ(ParseInstant("1741305600000", kNow), 1'741'305'600);       // OpenRouter
  EXPECT_EQ(ParseInstant("6m0s", kNow), kNow + 360);                   // OpenAI
  EXPECT_EQ(ParseInstant("1994-11-06T08:49:37Z", kNow), 784'111'777);  // Anthropic's form
  EXPECT_EQ(ParseInstant("1e12", kNow), 1e9);
  for (const std::string bad :
       {"", "-1", "soon", "9e15", "5000-01-01T00:00:00Z", "1950-01-01T00:00:00Z"})
    EXPECT_EQ(ParseInstant(bad, kNow), std::nullopt) << bad;
}

// Whatever comes, there is no crash (the sanitizers look on), and no value out of its range.
TEST(Values, OfAnyTextOnlyWhatIsInRangeIsRead) {
  const std::string letters =
      "0123456789.+-:eEsmhdnuTZ ,/\xC2\xB5\xCE\xBC"
      "MonSunGMTFebJul\t";
  const std::vector<std::string> whole = {"Sun, 06 Nov 1994 08:49:37 GMT", "6m0s",
                                          "1994-11-06T08:49:37.5+01:00",   "1741305600000",
                                          "Sun Nov  6 08:49:37 1994",      "2m59.56s"};
  for (std::uint64_t run = 0; run < 20'000; ++run) {
    Random random(Random::Seed(run));
    std::string text;
    if (random.OneIn(2)) {
      text = whole[static_cast<std::size_t>(
          random.From(0, static_cast<std::int64_t>(whole.size()) - 1))];
      text = random.Damage(text, random.From(1, 3));
    } else {
      for (std::int64_t n = random.From(0, 70); n > 0; --n)
        text += letters[static_cast<std::size_t>(
            random.From(0, static_cast<std::int64_t>(letters.size()) - 1))];
    }
    SCOPED_TRACE(random.Describe() + ": " + text);
    const auto in_range = [](std::optional<double> value, double most) {
      return !value || (*value >= 0 && *value <= most);
    };
    EXPECT_TRUE(in_range(ParseNumber(text), kLargestNumber));
    EXPECT_TRUE(in_range(ParseDuration(text), kLargestNumber));
    EXPECT_TRUE(in_range(ParseInstant(text, kNow), 4'102'444'800));
    EXPECT_TRUE(std::isfinite(ParseDate(text).value_or(0)));
  }
}

}  // namespace
}  // namespace headway
