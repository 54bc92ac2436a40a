// headway/observe/values.cc: small grammars, read from left to right.
#include "headway/observe/values.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace headway {
namespace {

using absl::string_view;

constexpr double kYear2100 = 4'102'444'800;
// A number beyond that is milliseconds since the epoch.
constexpr double kMilliseconds = 1e11;

// What is left of a text. Each verb takes what it reads from its front, or nothing.
class Rest {
 public:
  explicit Rest(string_view text) : left_(text) {}

  bool empty() const { return left_.empty(); }
  bool Take(char c) {
    if (left_.empty() || left_[0] != c) return false;
    left_.remove_prefix(1);
    return true;
  }
  bool Take(string_view text) { return absl::ConsumePrefix(&left_, text); }
  // In any case of letters.
  bool TakeWord(string_view word) {
    if (!absl::StartsWithIgnoreCase(left_, word)) return false;
    left_.remove_prefix(word.size());
    return true;
  }
  // Exactly so many digits.
  std::optional<int> Digits(std::size_t count) {
    if (left_.size() < count) return std::nullopt;
    int value = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (!absl::ascii_isdigit(static_cast<unsigned char>(left_[i]))) return std::nullopt;
      value = 10 * value + (left_[i] - '0');
    }
    left_.remove_prefix(count);
    return value;
  }
  // Digits with a fraction; with an exponent only where it may have one.
  std::optional<double> Number(bool exponent) {
    std::size_t end = DigitsFrom(0);
    std::size_t digits = end;
    if (end < left_.size() && left_[end] == '.') {
      const std::size_t fraction = DigitsFrom(end + 1);
      digits += fraction;
      end += 1 + fraction;
    }
    if (digits == 0) return std::nullopt;
    if (exponent && end < left_.size() && (left_[end] == 'e' || left_[end] == 'E')) {
      std::size_t at = end + 1;
      if (at < left_.size() && (left_[at] == '+' || left_[at] == '-')) ++at;
      const std::size_t power = DigitsFrom(at);
      if (power == 0) return std::nullopt;
      end = at + power;
    }
    double value = 0;
    const auto read = std::from_chars(left_.data(), left_.data() + end, value);
    // Out of range is too large, or as good as 0.
    if (read.ec != std::errc() || read.ptr != left_.data() + end) return std::nullopt;
    left_.remove_prefix(end);
    return value;
  }

 private:
  std::size_t DigitsFrom(std::size_t at) const {
    std::size_t count = 0;
    while (at + count < left_.size() &&
           absl::ascii_isdigit(static_cast<unsigned char>(left_[at + count])))
      ++count;
    return count;
  }

  string_view left_;
};

struct Unit {
  string_view name;
  double seconds;
};
// Longer names first, where one begins with another. Micro has two signs: U+00B5 and U+03BC.
constexpr std::array<Unit, 9> kUnits = {{{"ns", 1e-9},
                                         {"us", 1e-6},
                                         {"\xC2\xB5s", 1e-6},
                                         {"\xCE\xBCs", 1e-6},
                                         {"ms", 1e-3},
                                         {"s", 1},
                                         {"m", 60},
                                         {"h", 3'600},
                                         {"d", 86'400}}};

// Nothing where it is longer than any value of ours: what comes from outside is not read at length.
std::optional<string_view> Bounded(string_view text) {
  if (text.size() > kLongestValue) return std::nullopt;
  return absl::StripAsciiWhitespace(text);
}

std::optional<double> Seconds(int year, int month, int day, int hour, int minute, int second) {
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  // A leap second is the second after.
  if (!date.ok() || hour > 23 || minute > 59 || second > 60) return std::nullopt;
  const std::int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  return static_cast<double>(((days * 24 + hour) * 60 + minute) * 60 + second);
}

struct Clock {
  int hour;
  int minute;
  int second;
};

// HH:MM:SS, the seconds only where they must be there.
std::optional<Clock> ReadClock(Rest& rest, bool seconds) {
  const auto hour = rest.Digits(2);
  if (!hour || !rest.Take(':')) return std::nullopt;
  const auto minute = rest.Digits(2);
  if (!minute) return std::nullopt;
  if (!rest.Take(':')) return seconds ? std::nullopt : std::optional<Clock>({*hour, *minute, 0});
  const auto second = rest.Digits(2);
  if (!second) return std::nullopt;
  return Clock{*hour, *minute, *second};
}

// Z, or an offset as in +01:00 and -0130; seconds east of UTC.
std::optional<int> ReadZone(Rest& rest) {
  if (rest.TakeWord("z")) return 0;
  const bool west = rest.Take('-');
  if (!west && !rest.Take('+')) return std::nullopt;
  const auto hours = rest.Digits(2);
  if (!hours || *hours > 23) return std::nullopt;
  rest.Take(':');
  const auto minutes = rest.Digits(2);
  if (!minutes || *minutes > 59) return std::nullopt;
  const int east = (*hours * 60 + *minutes) * 60;
  return west ? -east : east;
}

std::optional<double> Rfc3339(string_view text) {
  Rest rest(text);
  const auto year = rest.Digits(4);
  if (!year || !rest.Take('-')) return std::nullopt;
  const auto month = rest.Digits(2);
  if (!month || !rest.Take('-')) return std::nullopt;
  const auto day = rest.Digits(2);
  if (!day || !(rest.TakeWord("t") || rest.Take(' '))) return std::nullopt;
  const auto clock = ReadClock(rest, /*seconds=*/false);
  if (!clock) return std::nullopt;
  double fraction = 0;
  if (rest.Take('.') || rest.Take(',')) {
    double unit = 1;
    bool some = false;
    while (const auto digit = rest.Digits(1)) {
      unit /= 10;
      fraction += *digit * unit;
      some = true;
    }
    if (!some) return std::nullopt;
  }
  int east = 0;
  if (!rest.empty()) {
    const auto zone = ReadZone(rest);
    if (!zone || !rest.empty()) return std::nullopt;
    east = *zone;
  }
  const auto seconds = Seconds(*year, *month, *day, clock->hour, clock->minute, clock->second);
  if (!seconds) return std::nullopt;
  return *seconds - east + fraction;
}

std::optional<int> ReadMonth(Rest& rest) {
  constexpr std::array<string_view, 12> kMonths = {"jan", "feb", "mar", "apr", "may", "jun",
                                                   "jul", "aug", "sep", "oct", "nov", "dec"};
  for (std::size_t i = 0; i < kMonths.size(); ++i)
    if (rest.TakeWord(kMonths[i])) return static_cast<int>(i) + 1;
  return std::nullopt;
}

// "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994".
std::optional<double> HttpDate(string_view text) {
  constexpr std::array<string_view, 14> kDays = {
      "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday",
      "mon",    "tue",     "wed",       "thu",      "fri",    "sat",      "sun"};
  Rest rest(text);
  if (std::none_of(kDays.begin(), kDays.end(),
                   [&rest](string_view day) { return rest.TakeWord(day); }))
    return std::nullopt;
  std::optional<int> year;
  std::optional<int> month;
  std::optional<int> day;
  std::optional<Clock> clock;
  int east = 0;
  if (rest.Take(',')) {
    if (!rest.Take(' ')) return std::nullopt;
    day = rest.Digits(2);
    const bool hyphens = rest.Take('-');
    if (!day || (!hyphens && !rest.Take(' '))) return std::nullopt;
    month = ReadMonth(rest);
    if (!month || !rest.Take(hyphens ? '-' : ' ')) return std::nullopt;
    year = rest.Digits(4);
    if (!year && hyphens) {
      year = rest.Digits(2);
      // Never more than fifty years from now, as RFC 9110 asks; that is until 2050.
      if (year) *year += *year < 70 ? 2'000 : 1'900;
    }
    if (!year || !rest.Take(' ')) return std::nullopt;
    clock = ReadClock(rest, /*seconds=*/true);
    if (!clock || !rest.Take(' ')) return std::nullopt;
    if (!rest.TakeWord("gmt") && !rest.TakeWord("utc")) {
      const auto zone = ReadZone(rest);  // as in mails, which some servers take for the same
      if (!zone) return std::nullopt;
      east = *zone;
    }
  } else {
    if (!rest.Take(' ')) return std::nullopt;
    month = ReadMonth(rest);
    if (!month || !rest.Take(' ')) return std::nullopt;
    day = rest.Take(' ') ? rest.Digits(1) : rest.Digits(2);
    if (!day || !rest.Take(' ')) return std::nullopt;
    clock = ReadClock(rest, /*seconds=*/true);
    if (!clock || !rest.Take(' ')) return std::nullopt;
    year = rest.Digits(4);
  }
  if (!year || !rest.empty()) return std::nullopt;
  const auto seconds = Seconds(*year, *month, *day, clock->hour, clock->minute, clock->second);
  return seconds ? std::optional<double>(*seconds - east) : std::nullopt;
}

}  // namespace

std::optional<double> ParseNumber(absl::string_view text) {
  const auto bounded = Bounded(text);
  if (!bounded) return std::nullopt;
  Rest rest(*bounded);
  rest.Take('+');
  const auto value = rest.Number(/*exponent=*/true);
  if (!value || !rest.empty() || *value > kLargestNumber) return std::nullopt;
  return value;
}

std::optional<double> ParseDuration(absl::string_view text) {
  if (const auto number = ParseNumber(text)) return number;
  const auto bounded = Bounded(text);
  if (!bounded) return std::nullopt;
  Rest rest(*bounded);
  rest.Take('+');
  double seconds = 0;
  do {
    const auto amount = rest.Number(/*exponent=*/false);
    if (!amount) return std::nullopt;
    const auto* const unit = std::find_if(kUnits.begin(), kUnits.end(),
                                          [&rest](const Unit& u) { return rest.Take(u.name); });
    if (unit == kUnits.end()) return std::nullopt;
    seconds += *amount * unit->seconds;
  } while (!rest.empty());
  return seconds <= kLargestNumber ? std::optional<double>(seconds) : std::nullopt;
}

std::optional<double> ParseDate(absl::string_view text) {
  const auto bounded = Bounded(text);
  if (!bounded) return std::nullopt;
  const auto found = Rfc3339(*bounded);
  return found ? found : HttpDate(*bounded);
}

std::optional<double> ParseInstant(absl::string_view text, double now) {
  std::optional<double> found;
  if (const auto number = ParseNumber(text)) {
    found = *number > kMilliseconds    ? *number / 1'000
            : *number > kOldestInstant ? *number
                                       : now + *number;
  } else if (const auto wait = ParseDuration(text)) {
    found = now + *wait;
  } else {
    found = ParseDate(text);
  }
  if (!found || !(*found >= 0 && *found <= kYear2100)) return std::nullopt;
  return found;
}

}  // namespace headway
