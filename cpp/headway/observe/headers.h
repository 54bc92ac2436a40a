// headway/observe/headers.h: what the headers of an answer say of limits.
#ifndef HEADWAY_OBSERVE_HEADERS_H_
#define HEADWAY_OBSERVE_HEADERS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "headway/observe/inference.h"

namespace headway {

// How a provider writes when a limit is full again.
enum class ResetForm : std::uint8_t {
  kAny,           // by its size: see ParseInstant
  kDuration,      // "6m0s", or a number of seconds
  kMilliseconds,  // a number of them, from now
  kEpoch,         // seconds since the epoch
  kEpochMillis,   // milliseconds since the epoch
  kDate,          // a time of RFC 3339, or an HTTP date
};

// One limit of a provider, and where its answers state it. Names are in lower case; an empty one:
// that is not stated.
struct StatedLimit {
  std::uint8_t resource = 0;
  std::uint8_t family = 0;
  std::string limit;
  std::string remaining;
  std::string reset;
  std::string period_in;  // which header states the period, in seconds; else it is `period`
  // Said nothing of unless the answer has the first of these headers, and where it has the second.
  std::string when;
  std::string unless;
  ResetForm reset_form = ResetForm::kAny;
  std::int64_t rounding = 0;      // of `remaining`, either way
  Nanos period = 0;               // 0: not documented
  Shape shape = Shape::kUnknown;  // kUnknown: not documented
  std::optional<Nanos> anchor;
};

// What a header says; nullopt: it is not there. Of several of one name the first, or all of them
// joined by commas.
using HeaderOf = std::function<std::optional<absl::string_view>(absl::string_view name)>;

// Readings of the limits that are stated there. `now`, in seconds since the epoch, is where
// instants are counted from; the server's own, by its Date header, where it has one and that is not
// the same second: clocks differ.
//
// A value that is none of what its form allows is as if it was not there, and so is a limit, or
// what remains, that is negative: some servers send -1 for "not known". What remains of a limit
// that is stated so is not known either, whatever number stands there. An answer that a cache gave
// (Age above 0) says nothing: it tells of another call, some time ago. To `oddities`, unless null,
// the values are added that are none of what they should be, but for that -1. Thread-safe.
bool IsFromCache(const HeaderOf& header);
std::vector<Reading> ReadStated(const std::vector<StatedLimit>& stated, const HeaderOf& header,
                                double now, int* oddities = nullptr);

// The same for `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), whose
// policies state period and limit by themselves: those over requests, each a family of its own from
// `first_family` on, in the order in which they come. Earlier drafts wrote their names as tokens,
// which are taken, too. nullopt: the fields are malformed, and so say nothing (section 5).
std::optional<std::vector<Reading>> ReadRateLimitFields(absl::string_view policy,
                                                        absl::string_view limit,
                                                        std::uint8_t requests,
                                                        std::uint8_t first_family);

}  // namespace headway

#endif  // HEADWAY_OBSERVE_HEADERS_H_
