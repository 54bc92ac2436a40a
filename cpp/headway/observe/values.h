// headway/observe/values.h: numbers, durations and instants as answers about rate limits write
// them.
#ifndef HEADWAY_OBSERVE_VALUES_H_
#define HEADWAY_OBSERVE_VALUES_H_

#include <optional>

#include "absl/strings/string_view.h"

namespace headway {

// What providers write under look-alike names: Go durations (OpenAI, Groq), whole seconds (Azure),
// fractions (Cerebras), seconds (Venice) and milliseconds (OpenRouter) since the epoch, RFC 3339
// times (Anthropic), HTTP dates.
//
// Each reads text from outside: anything else than what its grammar says is nullopt, and so is what
// is longer than kLongestValue. Blanks around it are left out. All are pure, and thread-safe.

inline constexpr std::size_t kLongestValue = 64;
// No count, and no second, is beyond what a double keeps exactly.
inline constexpr double kLargestNumber = 9'007'199'254'740'992.0;
// Seconds since the epoch: a smaller number is a wait.
inline constexpr double kOldestInstant = 1e9;

// 0 to kLargestNumber: digits with a fraction and an exponent, if wanted. No sign but a plus.
std::optional<double> ParseNumber(absl::string_view text);

// Seconds: a number, or amounts with units, largest first or not, as in "6m0s" and "1h2m3.5s". The
// units are Go's (time.ParseDuration), and d.
std::optional<double> ParseDuration(absl::string_view text);

// Seconds since the epoch, from 1970 to 2100. A number is a wait from `now` (seconds since the
// epoch), or seconds or milliseconds since the epoch, whichever its size allows: 30 years long, or
// half a minute after the epoch, it is neither. Else a duration from `now`, or a time as in
// ParseDate.
std::optional<double> ParseInstant(absl::string_view text, double now);

// Seconds since the epoch: a time of RFC 3339, UTC where it says no zone, its seconds and its zone
// as it likes; or an HTTP date in any of the three forms of RFC 9110, 5.6.7.
std::optional<double> ParseDate(absl::string_view text);

}  // namespace headway

#endif  // HEADWAY_OBSERVE_VALUES_H_
