// headway/base/limit.cc: checks, parsing and formatting of limits.
#include "headway/base/limit.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace headway {
namespace {

absl::Status Bad(absl::string_view field, const std::string& value, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", value, ": ", rule));
}

bool IsResourceName(absl::string_view name) {
  if (name.empty() || name.size() > 64 || !absl::ascii_islower(static_cast<unsigned char>(name[0])))
    return false;
  for (const char c : name) {
    const auto u = static_cast<unsigned char>(c);
    if (!absl::ascii_islower(u) && !absl::ascii_isdigit(u) && c != '_' && c != '-' && c != '.')
      return false;
  }
  return true;
}

// What `resource` was to be, where it is a slip: a limit of a name that no cost says counts
// nothing, and nobody would see. "" where it may be a name of the user's own.
absl::string_view Meant(absl::string_view resource) {
  // The names that answers of some providers have for it.
  if (resource == "prompt_tokens") return "input_tokens";
  if (resource == "completion_tokens") return "output_tokens";
  // What a request is called, too.
  for (const absl::string_view other : {"req", "reqs", "call", "calls"})
    if (resource == other) return "requests";
  for (const absl::string_view known : kKnownResources) {
    if (resource == known) return "";
    absl::string_view is = resource;
    absl::string_view was = known;
    while (!is.empty() && !was.empty() && is.front() == was.front()) {
      is.remove_prefix(1);
      was.remove_prefix(1);
    }
    while (!is.empty() && !was.empty() && is.back() == was.back()) {
      is.remove_suffix(1);
      was.remove_suffix(1);
    }
    // A letter too many, too few or another, or two that have changed places.
    if (is.size() <= 1 && was.size() <= 1) return known;
    if (is.size() == 2 && was.size() == 2 && is[0] == was[1] && is[1] == was[0]) return known;
  }
  return "";
}

struct Unit {
  absl::string_view name;
  Nanos length;
};
// The first name of each length is the canonical one.
constexpr Unit kUnits[] = {
    {"s", kSecond},           {"sec", kSecond},
    {"second", kSecond},      {"min", 60 * kSecond},
    {"minute", 60 * kSecond}, {"hour", 3600 * kSecond},
    {"h", 3600 * kSecond},    {"day", kDay},
};

// A decimal number of `unit`s, in integers: exact where it is a whole number of nanoseconds, else
// rounded. (A double is not: an anchor of today has 19 digits.)
std::optional<Nanos> Scale(absl::string_view number, Nanos unit) {
  if (number.empty()) return unit;
  constexpr std::int64_t kFinest = 1'000'000'000'000;  // of a day, less than a nanosecond
  constexpr auto kMost = static_cast<unsigned __int128>(kFinest) * 10'000'000'000;
  unsigned __int128 digits = 0;
  std::int64_t scale = 1;
  bool any = false;
  bool fraction = false;
  for (const char c : number) {
    if (c == '.' && !fraction) {
      fraction = true;
      continue;
    }
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) return std::nullopt;
    any = true;
    if (scale == kFinest) continue;
    digits = digits * 10 + static_cast<unsigned>(c - '0');
    if (digits > kMost) return std::nullopt;
    if (fraction) scale *= 10;
  }
  if (!any) return std::nullopt;
  const auto wide = static_cast<unsigned __int128>(scale);
  const unsigned __int128 nanos = (digits * static_cast<unsigned __int128>(unit) + wide / 2) / wide;
  if (nanos > static_cast<unsigned __int128>(kNever)) return std::nullopt;
  return static_cast<Nanos>(nanos);
}

std::optional<Nanos> ParsePeriod(absl::string_view text) {
  std::size_t digits = 0;
  while (digits < text.size() && (absl::ascii_isdigit(static_cast<unsigned char>(text[digits])) ||
                                  text[digits] == '.' || text[digits] == '_'))
    ++digits;
  const std::string number = absl::StrReplaceAll(text.substr(0, digits), {{"_", ""}});
  const absl::string_view unit = absl::StripAsciiWhitespace(text.substr(digits));
  for (const Unit& u : kUnits)
    if (u.name == unit) return Scale(number, u.length);
  return std::nullopt;
}

std::optional<std::int64_t> ParseAmount(absl::string_view text) {
  if (text.empty() || text.front() == '_' || text.back() == '_') return std::nullopt;
  std::int64_t value = 0;
  if (!absl::SimpleAtoi(absl::StrReplaceAll(text, {{"_", ""}}), &value)) return std::nullopt;
  return value;
}

// How people abbreviate a resource and its period, in any case of letters.
constexpr struct {
  absl::string_view short_form;
  absl::string_view meant;
} kShortForms[] = {
    {"rps", "requests/s"},         {"rpm", "requests/min"},       {"rph", "requests/hour"},
    {"rpd", "requests/day"},       {"tps", "tokens/s"},           {"tpm", "tokens/min"},
    {"tph", "tokens/hour"},        {"tpd", "tokens/day"},         {"itpm", "input_tokens/min"},
    {"otpm", "output_tokens/min"}, {"concurrent", "concurrency"},
};

// What to write instead of words that are not the text form, where that can be told; else "".
std::string Instead(const std::vector<std::string>& words) {
  std::string amount = words[0];
  std::string rest = words.size() > 1 ? words[1] : "";
  if (words.size() == 1) {  // "60rpm"
    const std::size_t digits = amount.find_first_not_of("0123456789_");
    if (digits == std::string::npos) return "";
    rest = amount.substr(digits);
    amount.resize(digits);
  }
  if (!ParseAmount(amount)) return "";
  for (const auto& each : kShortForms)
    if (absl::EqualsIgnoreCase(rest, each.short_form)) return absl::StrCat(amount, " ", each.meant);
  // "60/min", "60 per min": of requests, as likely as not, but who knows.
  const bool of_what = rest == "/" || rest == "per";
  const std::size_t period = of_what ? 2 : 3;
  if (words.size() <= period || !ParsePeriod(words[period])) return "";
  if (!of_what && words[2] != "per") return "";
  return absl::StrCat(amount, " ", of_what ? "requests" : rest, "/", words[period],
                      of_what ? "', or whatever it limits instead of 'requests" : "");
}

std::string FormatSeconds(Nanos nanos) {
  const bool negative = nanos < 0;
  const auto magnitude =
      negative ? -static_cast<std::uint64_t>(nanos) : static_cast<std::uint64_t>(nanos);
  std::string out = absl::StrCat(negative ? "-" : "", magnitude / kSecond);
  if (const std::uint64_t rest = magnitude % kSecond; rest != 0) {
    std::string fraction = absl::StrCat(rest + kSecond).substr(1);
    while (fraction.back() == '0') fraction.pop_back();
    absl::StrAppend(&out, ".", fraction);
  }
  return out;
}

std::optional<Shape> ParseShape(absl::string_view word) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow})
    if (ShapeName(shape) == word) return shape;
  return std::nullopt;
}

std::optional<Nanos> ParseSigned(absl::string_view text) {
  const bool negative = !text.empty() && text.front() == '-';
  const std::optional<Nanos> magnitude = Scale(text.substr(negative ? 1 : 0), kSecond);
  if (!magnitude || text.size() == (negative ? 1U : 0U)) return std::nullopt;
  return negative ? -*magnitude : *magnitude;
}

}  // namespace

absl::string_view ShapeName(Shape shape) {
  switch (shape) {
    case Shape::kBucket:
      return "bucket";
    case Shape::kFixed:
      return "fixed";
    case Shape::kWindow:
      return "window";
    case Shape::kConcurrency:
      return "concurrency";
    case Shape::kCredit:
      return "credit";
    case Shape::kUnknown:
      break;
  }
  return "unknown";
}

absl::StatusOr<Limit> Limit::Make(Limit limit) {
  if (!IsResourceName(limit.resource))
    return Bad("resource", absl::StrCat("'", limit.resource, "'"),
               "must be lower-case letters, digits, '_', '-' or '.', begin with a letter and have "
               "at most 64 characters");
  if (const absl::string_view meant = Meant(limit.resource); !meant.empty())
    return Bad("resource", absl::StrCat("'", limit.resource, "'"),
               absl::StrCat("must be '", meant,
                            "', if that is meant; a name of your own must not look "
                            "like it"));
  if (limit.amount < 0 || limit.amount > kMaxAmount)
    return Bad("amount", absl::StrCat(limit.amount), "must be from 0 to 2**53");
  const bool concurrency = limit.resource == "concurrency";
  if (concurrency != (limit.shape == Shape::kConcurrency)) {
    if (!concurrency || limit.shape != Shape::kUnknown)
      return Bad("shape", absl::StrCat("'", ShapeName(limit.shape), "'"),
                 "'concurrency' is the shape of the resource 'concurrency', and its only one");
    limit.shape = Shape::kConcurrency;
  }
  if (limit.burst && limit.shape != Shape::kBucket)
    return Bad("burst", absl::StrCat(*limit.burst), "needs shape 'bucket'");
  if (limit.anchor && limit.shape != Shape::kFixed)
    return Bad("anchor", FormatSeconds(*limit.anchor), "needs shape 'fixed'");
  if (limit.anchor && (*limit.anchor < -kMaxAnchor || *limit.anchor > kMaxAnchor))
    return Bad("anchor", absl::StrCat(FormatSeconds(*limit.anchor), " s"),
               "must be from -2**62 to 2**62 ns (146 years) since 1970");
  if (limit.burst && (*limit.burst < 1 || *limit.burst > kMaxAmount))
    return Bad("burst", absl::StrCat(*limit.burst), "must be from 1 to 2**53");
  if (concurrency) {
    limit.period = 0;
    return limit;
  }
  if (limit.period < kMinPeriod || limit.period > kMaxPeriod)
    return Bad("per", absl::StrCat(FormatSeconds(limit.period), " s"),
               "must be from 0.001 s to 31 days (2678400 s)");
  if (limit.shape == Shape::kBucket && limit.amount > 0) {
    const auto refill =
        static_cast<__int128>(limit.burst_or_amount()) * limit.period / limit.amount;
    if (refill > kMaxRefill)
      return Bad("burst", absl::StrCat(limit.burst_or_amount()),
                 "would take more than 2**57 ns (4.5 years) to refill at this rate");
  }
  if (limit.burst && *limit.burst == limit.amount) limit.burst.reset();
  return limit;
}

absl::StatusOr<Limit> Limit::Parse(absl::string_view text) {
  const auto fail = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("limit '", text, "': ", why));
  };
  const std::vector<std::string> words = absl::StrSplit(absl::StrReplaceAll(text, {{"/", " / "}}),
                                                        absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (const std::string instead = words.empty() ? "" : Instead(words); !instead.empty())
    return fail(absl::StrCat("write '", instead, "'"));
  if (words.size() < 2)
    return fail(
        "must read '<amount> <resource>/<period> [bucket|fixed|window] [burst <n>] [anchor "
        "<seconds>]' or '<amount> concurrency'");
  Limit limit;
  const std::optional<std::int64_t> amount = ParseAmount(words[0]);
  if (!amount)
    return fail(
        absl::StrCat("amount '", words[0], "' is not a whole number, as in 60000 or 60_000"));
  limit.amount = *amount;
  limit.resource = words[1];
  std::size_t i = 2;
  if (i < words.size() && words[i] == "/") {
    ++i;
    std::string period = i < words.size() ? words[i] : "";
    ++i;
    // "60 s" may come as two words.
    if (i < words.size() && !period.empty() &&
        absl::ascii_isdigit(static_cast<unsigned char>(period.back())) && ParsePeriod(words[i]))
      period += words[i++];
    const std::optional<Nanos> parsed = ParsePeriod(period);
    if (!parsed)
      return fail(absl::StrCat("per '", period,
                               "' is not a period: a number if wanted, then s, sec, "
                               "second, min, minute, h, hour or day"));
    limit.period = *parsed;
    if (limit.resource == "concurrency") return fail("'concurrency' has no period");
  } else if (limit.resource != "concurrency") {
    return fail("a period is missing, as in '/min'");
  }
  for (; i < words.size(); ++i) {
    const bool more = i + 1 < words.size();
    if (const std::optional<Shape> shape = ParseShape(words[i]);
        shape && limit.shape == Shape::kUnknown) {
      limit.shape = *shape;
    } else if (words[i] == "burst" && more && !limit.burst) {
      limit.burst = ParseAmount(words[++i]);
      if (!limit.burst) return fail(absl::StrCat("burst '", words[i], "' is not a whole number"));
    } else if (words[i] == "anchor" && more && !limit.anchor) {
      limit.anchor = ParseSigned(words[++i]);
      if (!limit.anchor)
        return fail(absl::StrCat("anchor '", words[i], "' is not a number of seconds"));
    } else {
      return fail(absl::StrCat("'", words[i], "' is not expected there"));
    }
  }
  absl::StatusOr<Limit> checked = Make(std::move(limit));
  if (!checked.ok()) return fail(checked.status().message());
  return checked;
}

std::string Limit::Format() const {
  if (shape == Shape::kConcurrency) return absl::StrCat(amount, " concurrency");
  std::string per = absl::StrCat(FormatSeconds(period), "s");
  for (const Unit& unit : kUnits) {
    if (unit.length != period) continue;
    per = std::string(unit.name);
    break;
  }
  std::string out = absl::StrCat(amount, " ", resource, "/", per);
  if (shape != Shape::kUnknown) absl::StrAppend(&out, " ", ShapeName(shape));
  if (burst) absl::StrAppend(&out, " burst ", *burst);
  if (anchor) absl::StrAppend(&out, " anchor ", FormatSeconds(*anchor));
  return out;
}

}  // namespace headway
