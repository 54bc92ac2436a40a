// headway/observe/headers.cc: headers as readings.
#include "headway/observe/headers.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "headway/observe/values.h"

namespace headway {
namespace {

constexpr double kNanosInSecond = 1e9;
// No reset is further away: a limit of a month that was lowered twentyfold.
constexpr double kLongestReset = 2.0 * 365 * 86'400;
// What a field may be long, and how many policies it may hold.
constexpr std::size_t kLongestField = 4096;
constexpr std::size_t kMostPolicies = 8;

std::int64_t Whole(std::optional<double> number) {
  if (!number || *number > static_cast<double>(Limit::kMaxAmount)) return Reading::kUnsaid;
  return static_cast<std::int64_t>(*number);  // of half a request nothing can be sent
}

bool IsWholeSecond(double instant) { return std::abs(instant - std::round(instant)) < 1e-4; }

// In how long, in seconds. `dated`: whether it is told as an instant; that may be past by now.
std::optional<double> ResetIn(ResetForm form, absl::string_view text, double now, bool& dated) {
  dated = form != ResetForm::kDuration && form != ResetForm::kMilliseconds;
  std::optional<double> found;
  switch (form) {
    case ResetForm::kAny:
      found = ParseDuration(text);
      dated = !found || *found > kOldestInstant;
      if (dated) found = ParseInstant(text, now);
      if (found && dated) *found -= now;
      break;
    case ResetForm::kDuration:
      found = ParseDuration(text);
      break;
    case ResetForm::kMilliseconds:
      found = ParseNumber(text);
      if (found) *found /= 1000;
      break;
    case ResetForm::kEpoch:
      found = ParseNumber(text);
      if (found) *found -= now;
      break;
    case ResetForm::kEpochMillis:
      found = ParseNumber(text);
      if (found) *found = *found / 1000 - now;
      break;
    case ResetForm::kDate:
      found = ParseDate(text);
      if (found) *found -= now;
      break;
  }
  // One that is past by a moment is full by now; by more than that, the clocks differ.
  if (!found || *found < -60 || *found > kLongestReset) return std::nullopt;
  return found;
}

// 0: it is no period that a limit can have.
Nanos PeriodIn(absl::string_view text) {
  const auto seconds = ParseNumber(text);
  if (!seconds) return 0;
  const double nanos = *seconds * kNanosInSecond;
  if (nanos < static_cast<double>(Limit::kMinPeriod) ||
      nanos > static_cast<double>(Limit::kMaxPeriod))
    return 0;
  return static_cast<Nanos>(std::llround(nanos));
}

Nanos ToNanos(double seconds) { return static_cast<Nanos>(std::llround(seconds * kNanosInSecond)); }

// A list of structured fields (RFC 9651) as far as the two fields need it: names with parameters
// that are integers, strings, tokens or byte sequences.
struct Item {
  std::string name;
  std::vector<std::pair<std::string, std::string>> parameters;

  std::optional<double> Number(absl::string_view key) const {
    for (const auto& [name, value] : parameters)
      if (key == absl::string_view(name)) return ParseNumber(value);
    return std::nullopt;
  }
};

class ListReader {
 public:
  explicit ListReader(absl::string_view text) : text_(text) {}

  std::optional<std::vector<Item>> Read() {
    std::vector<Item> items;
    SkipBlanks();
    while (!text_.empty()) {
      if (items.size() == kMostPolicies) return std::nullopt;
      items.emplace_back();
      if (!ReadValue(items.back().name) || !ReadParameters(items.back())) return std::nullopt;
      SkipBlanks();
      if (text_.empty()) break;
      if (!Take(',')) return std::nullopt;
      SkipBlanks();
      if (text_.empty()) return std::nullopt;
    }
    return items;
  }

 private:
  bool Take(char c) {
    if (text_.empty() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  void SkipBlanks() {
    while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\t'))
      text_.remove_prefix(1);
  }
  bool ReadParameters(Item& item) {
    while (Take(';')) {
      SkipBlanks();
      std::string key;
      std::string value = "?1";  // a key alone is true
      if (!ReadToken(key)) return false;
      if (Take('=') && !ReadValue(value)) return false;
      item.parameters.emplace_back(std::move(key), std::move(value));
    }
    return true;
  }
  bool ReadValue(std::string& out) {
    out.clear();
    if (Take('"')) return ReadUntil('"', out);
    if (Take(':')) return ReadUntil(':', out);
    return ReadToken(out);
  }
  bool ReadUntil(char end, std::string& out) {
    while (!text_.empty()) {
      char c = text_.front();
      text_.remove_prefix(1);
      if (c == end) return true;
      if (c == '\\' && end == '"') {
        if (text_.empty() || (text_.front() != '"' && text_.front() != '\\')) return false;
        c = text_.front();
        text_.remove_prefix(1);
      }
      out.push_back(c);
    }
    return false;
  }
  bool ReadToken(std::string& out) {
    while (!text_.empty()) {
      const auto c = static_cast<unsigned char>(text_.front());
      if (std::isalnum(c) == 0 &&
          absl::string_view("-_.*:/%+!#$&'^`|~").find(text_.front()) == absl::string_view::npos)
        break;
      out.push_back(text_.front());
      text_.remove_prefix(1);
    }
    return !out.empty();
  }

  absl::string_view text_;
};

}  // namespace

bool IsFromCache(const HeaderOf& header) {
  const auto age = header("age");
  return age && ParseNumber(*age).value_or(0) > 0;
}

std::vector<Reading> ReadStated(const std::vector<StatedLimit>& stated, const HeaderOf& header,
                                double now, int* oddities) {
  std::vector<Reading> readings;
  if (IsFromCache(header)) return readings;
  const auto odd = [oddities](absl::string_view text) {
    if (oddities != nullptr && text != "-1") ++*oddities;
  };
  const auto text_of = [&](const std::string& name) -> std::optional<absl::string_view> {
    if (name.empty()) return std::nullopt;
    return header(name);
  };
  bool clocks_differ = false;
  if (const auto date = header("date")) {
    if (const auto at = ParseDate(*date)) {
      // In whole seconds; within that, our clock is as good as theirs.
      clocks_differ = now < *at || now > *at + 1;
      if (clocks_differ) now = *at;
    } else {
      odd(*date);
    }
  }
  for (const StatedLimit& each : stated) {
    if (!each.when.empty() && !header(each.when)) continue;
    if (!each.unless.empty() && header(each.unless)) continue;
    Reading reading;
    reading.resource = each.resource;
    reading.family = each.family;
    reading.rounding = each.rounding;
    reading.period = each.period;
    reading.shape = each.shape;
    reading.anchor = each.anchor;
    if (const auto text = text_of(each.limit)) {
      reading.limit = Whole(ParseNumber(*text));
      if (reading.limit == Reading::kUnsaid) {
        odd(*text);
        continue;
      }
    }
    if (const auto text = text_of(each.remaining)) {
      reading.remaining = Whole(ParseNumber(*text));
      // That contradicts it.
      const bool more = reading.limit > 0 && reading.remaining > reading.limit + reading.rounding;
      if (reading.remaining == Reading::kUnsaid || more) odd(*text);
    }
    if (reading.limit == Reading::kUnsaid && reading.remaining == Reading::kUnsaid) continue;
    if (const auto text = text_of(each.reset)) {
      if (const auto in = ResetIn(each.reset_form, *text, now, reading.dated)) {
        reading.reset = ToNanos(std::max(0.0, *in));
        reading.ago = ToNanos(std::max(0.0, -*in));
        if (reading.dated && (clocks_differ || IsWholeSecond(*in + now))) reading.coarse = kSecond;
      } else {
        odd(*text);
      }
    }
    if (const auto text = text_of(each.period_in)) {
      if (const Nanos period = PeriodIn(*text); period > 0) {
        reading.period = period;
      } else {
        odd(*text);
      }
    }
    readings.push_back(reading);
  }
  return readings;
}

std::optional<std::vector<Reading>> ReadRateLimitFields(absl::string_view policy,
                                                        absl::string_view limit,
                                                        std::uint8_t requests,
                                                        std::uint8_t first_family) {
  if (policy.size() > kLongestField || limit.size() > kLongestField) return std::nullopt;
  const auto policies = ListReader(policy).Read();
  const auto limits = ListReader(limit).Read();
  if (!policies || !limits) return std::nullopt;
  std::vector<Reading> readings;
  for (const Item& each : *policies) {
    const auto quota = each.Number("q");
    const auto window = each.Number("w");
    if (!quota) return std::nullopt;  // it is required
    const auto unit = std::find_if(each.parameters.begin(), each.parameters.end(),
                                   [](const auto& parameter) { return parameter.first == "qu"; });
    const bool of_requests =
        unit == each.parameters.end() || unit->second == "request" || unit->second == "requests";
    Reading reading;
    reading.resource = requests;
    reading.family = static_cast<std::uint8_t>(first_family + (&each - policies->data()));
    reading.limit = Whole(quota);
    if (window && *window >= 1 &&
        *window * kNanosInSecond <= static_cast<double>(Limit::kMaxPeriod))
      reading.period = ToNanos(*window);
    for (const Item& state : *limits) {
      if (state.name != each.name) continue;
      reading.remaining = Whole(state.Number("r"));
      if (const auto in = state.Number("t"); in && *in <= kLongestReset)
        reading.reset = ToNanos(*in);
    }
    if (of_requests) readings.push_back(reading);
  }
  return readings;
}

}  // namespace headway
