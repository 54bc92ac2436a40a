// headway/observe/headers_fuzz.cc: any headers, read as a provider's and as the IETF's. One input
// is lines: the form of a reset ('0' to '5'), then the values of limit, remaining, reset, date,
// RateLimit-Policy, RateLimit and of what states the period. A line that is not there is a header
// that is not.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "headway/observe/headers.h"
#include "headway/simulate/fuzz.h"

namespace headway {
namespace {

constexpr double kNow = 1'800'000'000;
constexpr Nanos kLongestReset = Nanos{2} * 365 * kDay;
constexpr std::array<const char*, 7> kNames = {"limit",  "remaining", "reset", "date",
                                               "policy", "state",     "period"};

using simulate::ExactText;
using Lines = std::vector<ExactText>;

std::optional<absl::string_view> Line(const Lines& lines, absl::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i] && i + 1 < lines.size()) return lines[i + 1].view();
  return std::nullopt;
}

// The largest number that any part of the text could be taken for.
double LargestIn(const std::string& text) {
  double largest = -1;
  for (std::size_t i = 0; i < text.size(); ++i)
    if ((text[i] >= '0' && text[i] <= '9') || text[i] == '.')
      largest = std::max(largest, std::strtod(text.c_str() + i, nullptr));
  return largest;
}

void CheckAmount(std::int64_t amount, const std::string& text) {
  if (amount == Reading::kUnsaid) return;
  FUZZ_CHECK(amount >= 0 && amount <= Limit::kMaxAmount);
  FUZZ_CHECK(static_cast<double>(amount) <= LargestIn(text));
}

void CheckReset(Nanos reset) {
  FUZZ_CHECK(reset == kNever || (reset >= 0 && reset <= kLongestReset));
}

bool Same(const Reading& a, const Reading& b) {
  return a.resource == b.resource && a.family == b.family && a.limit == b.limit &&
         a.remaining == b.remaining && a.reset == b.reset && a.period == b.period &&
         a.shape == b.shape && a.rounding == b.rounding && a.anchor == b.anchor;
}

void CheckStated(const Lines& lines) {
  StatedLimit stated;
  stated.resource = 1;
  stated.family = 7;
  stated.limit = "limit";
  stated.remaining = "remaining";
  stated.reset = "reset";
  stated.rounding = 500;
  stated.period = Inference::kMinute;
  stated.period_in = "period";
  if (!lines.empty() && !lines[0].view().empty())
    stated.reset_form = static_cast<ResetForm>(static_cast<unsigned char>(lines[0].view()[0]) % 6);
  const HeaderOf header = [&](absl::string_view name) { return Line(lines, name); };
  const std::vector<Reading> readings = ReadStated({stated, stated}, header, kNow);
  const std::string limit(header("limit").value_or(""));
  const std::string remaining(header("remaining").value_or(""));
  // Each of the two is read alone.
  FUZZ_CHECK(readings.empty() || readings.size() == 2);
  if (readings.empty()) return;
  const Reading& reading = readings[0];
  FUZZ_CHECK(Same(reading, readings[1]));
  FUZZ_CHECK(reading.limit != Reading::kUnsaid || reading.remaining != Reading::kUnsaid);
  CheckAmount(reading.limit, limit);
  CheckAmount(reading.remaining, remaining);
  CheckReset(reading.reset);
  FUZZ_CHECK(reading.ago == 0 || (reading.dated && reading.reset == 0 && reading.ago > 0));
  FUZZ_CHECK(reading.ago <= 60 * kSecond && (reading.coarse == 0 || reading.dated));
  FUZZ_CHECK(reading.resource == 1 && reading.family == 7 && reading.rounding == 500 &&
             reading.shape == Shape::kUnknown && !reading.anchor);
  FUZZ_CHECK(reading.period == Inference::kMinute ||
             (reading.period >= Limit::kMinPeriod && reading.period <= Limit::kMaxPeriod &&
              static_cast<double>(reading.period) / 1e9 <=
                  LargestIn(std::string(header("period").value_or(""))) + 1e-6));
  // What was read can be written as a number, and reads the same.
  stated.reset_form = ResetForm::kDuration;
  std::vector<std::pair<absl::string_view, std::string>> again;
  if (reading.limit != Reading::kUnsaid) again.emplace_back("limit", absl::StrCat(reading.limit));
  if (reading.remaining != Reading::kUnsaid)
    again.emplace_back("remaining", absl::StrCat(reading.remaining));
  if (reading.reset != kNever)
    again.emplace_back(
        "reset", absl::StrFormat("%d.%09ds", reading.reset / kSecond, reading.reset % kSecond));
  const std::vector<Reading> reread = ReadStated(
      {stated},
      [&](absl::string_view name) -> std::optional<absl::string_view> {
        for (const auto& [each, value] : again)
          if (each == name) return absl::string_view(value);
        return std::nullopt;
      },
      kNow);
  FUZZ_CHECK(reread.size() == 1);
  FUZZ_CHECK(reread[0].limit == reading.limit && reread[0].remaining == reading.remaining);
  // A double has sixteen digits.
  if (reading.reset == kNever)
    FUZZ_CHECK(reread[0].reset == kNever);
  else
    FUZZ_CHECK(std::abs(reread[0].reset - reading.reset) <= 16);
}

void CheckFields(const Lines& lines) {
  constexpr std::uint8_t kRequests = 3;
  constexpr std::uint8_t kFirst = 200;
  const auto policy_text = Line(lines, "policy").value_or("");
  const auto state_text = Line(lines, "state").value_or("");
  const auto readings = ReadRateLimitFields(policy_text, state_text, kRequests, kFirst);
  if (!readings) return;
  FUZZ_CHECK(readings->size() <= 8);
  const std::string policy(policy_text);
  const std::string state(state_text);
  std::vector<std::string> policies;
  std::vector<std::string> states;
  int family = kFirst - 1;
  for (const Reading& reading : *readings) {
    FUZZ_CHECK(reading.family > family && reading.family < kFirst + 8);
    family = reading.family;
    FUZZ_CHECK(reading.resource == kRequests && reading.shape == Shape::kUnknown);
    CheckAmount(reading.limit, policy);
    CheckAmount(reading.remaining, state);
    CheckReset(reading.reset);
    FUZZ_CHECK(reading.period == 0 ||
               (reading.period >= kSecond && reading.period <= Limit::kMaxPeriod));
    policies.push_back(
        absl::StrFormat("\"p%d\";q=%d", family, std::max<std::int64_t>(0, reading.limit)));
    if (reading.period != 0)
      absl::StrAppendFormat(&policies.back(), ";w=%d.%09d", reading.period / kSecond,
                            reading.period % kSecond);
    if (reading.remaining != Reading::kUnsaid)
      states.push_back(absl::StrFormat("\"p%d\";r=%d", family, reading.remaining));
  }
  // Written anew, they say the same.
  const auto reread = ReadRateLimitFields(absl::StrJoin(policies, ", "), absl::StrJoin(states, ","),
                                          kRequests, kFirst);
  FUZZ_CHECK(reread && reread->size() == readings->size());
  for (std::size_t i = 0; i < readings->size(); ++i) {
    FUZZ_CHECK((*reread)[i].limit == std::max<std::int64_t>(0, (*readings)[i].limit));
    FUZZ_CHECK((*reread)[i].remaining == (*readings)[i].remaining);
    FUZZ_CHECK(std::abs((*reread)[i].period - (*readings)[i].period) <= 16);
  }
}

}  // namespace
}  // namespace headway

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  headway::Lines lines;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) lines.emplace_back(line);
  headway::CheckStated(lines);
  headway::CheckFields(lines);
  return 0;
}
