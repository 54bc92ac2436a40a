// headway/observe/values_fuzz.cc: any text as a value of a header, against what is simpler or the
// other way round. One input is one text.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "headway/observe/values.h"
#include "headway/simulate/fuzz.h"

namespace headway {
namespace {

constexpr double kYear2100 = 4'102'444'800;
// Of years 0000 to 9999, with any zone.
constexpr double kFirstDate = -62'167'219'200 - 86'400;
constexpr double kLastDate = 253'402'300'800 + 86'400;

void Numbers(absl::string_view text) {
  const auto number = ParseNumber(text);
  if (!number) return;
  FUZZ_CHECK(*number >= 0 && *number <= kLargestNumber);
  FUZZ_CHECK(text.size() <= kLongestValue);
  // The C library reads more than we do, and the same of what we read.
  const std::string bare(absl::StripAsciiWhitespace(text));
  FUZZ_CHECK(bare.find_first_not_of("0123456789.eE+-") == std::string::npos);
  char* end = nullptr;
  FUZZ_CHECK(std::strtod(bare.c_str(), &end) == *number);
  FUZZ_CHECK(end == bare.c_str() + bare.size());
  FUZZ_CHECK(ParseNumber(absl::StrFormat("%.17g", *number)) == number);
  // Every number is a duration, and a wait or an instant by its size.
  FUZZ_CHECK(ParseDuration(text) == number);
  FUZZ_CHECK(!ParseDate(text));
}

void Durations(absl::string_view text) {
  const auto seconds = ParseDuration(text);
  if (!seconds) return;
  FUZZ_CHECK(*seconds >= 0 && *seconds <= kLargestNumber);
  FUZZ_CHECK(ParseDuration(absl::StrFormat("%.17g", *seconds)) == seconds);
  const std::string bare(absl::StripAsciiWhitespace(text));
  if (absl::ascii_isalpha(static_cast<unsigned char>(bare.back())) == 0) return;
  // One after another they add up, but for what the largest double holds.
  const auto longer = ParseDuration(absl::StrCat(bare, "1.5s"));
  if (bare.size() + 4 <= kLongestValue && *seconds < 1e15) {
    FUZZ_CHECK(longer);
    FUZZ_CHECK(std::abs(*longer - *seconds - 1.5) <= 1e-15 * (*seconds + 1.5));
  }
  FUZZ_CHECK(!ParseDate(text));
}

// What the C library makes of an instant, as each of the two grammars writes it.
void WriteAndRead(double at) {
  const auto whole = static_cast<std::time_t>(std::floor(at));
  std::tm parts{};
  FUZZ_CHECK(gmtime_r(&whole, &parts) != nullptr);
  for (const char* const form : {"%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S+0000",
                                 "%a, %d %b %Y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"}) {
    char text[64];
    FUZZ_CHECK(std::strftime(text, sizeof text, form, &parts) > 0);
    FUZZ_CHECK(ParseDate(text) == static_cast<double>(whole));
  }
}

void Dates(absl::string_view text) {
  const auto at = ParseDate(text);
  if (!at) return;
  FUZZ_CHECK(*at >= kFirstDate && *at <= kLastDate);
  // strftime writes no year before 1000 in four digits.
  if (*at > 0 && *at < 1e11) WriteAndRead(*at);
  const std::string bare(absl::StripAsciiWhitespace(text));
  std::tm parts{};
  if (std::sscanf(bare.c_str(), "%4d-%2d-%2d%*c%2d:%2d:%2d", &parts.tm_year, &parts.tm_mon,
                  &parts.tm_mday, &parts.tm_hour, &parts.tm_min, &parts.tm_sec) < 5)
    return;
  parts.tm_year -= 1900;
  parts.tm_mon -= 1;
  // Up to a zone, and a fraction of a second.
  FUZZ_CHECK(std::abs(static_cast<double>(timegm(&parts)) - *at) <= 86'400 + 1);
}

void Instants(absl::string_view text, double now) {
  const auto at = ParseInstant(text, now);
  if (at) FUZZ_CHECK(*at >= 0 && *at <= kYear2100);
  if (const auto number = ParseNumber(text)) {
    // No wait is taken for an instant, nor one unit for another.
    if (at && *number > 1e11) FUZZ_CHECK(*at == *number / 1'000);
    if (at && *number > 1e9 && *number <= 1e11) FUZZ_CHECK(*at == *number);
    if (*number <= 1e9) FUZZ_CHECK(!at || *at == now + *number);
  } else if (const auto wait = ParseDuration(text)) {
    FUZZ_CHECK(at.has_value() == (now + *wait <= kYear2100));
  } else if (const auto date = ParseDate(text)) {
    FUZZ_CHECK(at.has_value() == (*date >= 0 && *date <= kYear2100));
  } else {
    FUZZ_CHECK(!at);
  }
}

void Run(absl::string_view text) {
  Numbers(text);
  Durations(text);
  Dates(text);
  for (const double now : {0.0, 1'800'000'000.25, kYear2100}) Instants(text, now);
  const std::string padded = absl::StrCat(" ", text, "\t");
  if (padded.size() > kLongestValue) return;
  FUZZ_CHECK(ParseNumber(padded) == ParseNumber(text));
  FUZZ_CHECK(ParseDuration(padded) == ParseDuration(text));
  FUZZ_CHECK(ParseDate(padded) == ParseDate(text));
}

}  // namespace
}  // namespace headway

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const headway::simulate::ExactText text({reinterpret_cast<const char*>(data), size});
  headway::Run(text.view());
  return 0;
}
