// headway/base/limit.h: an amount of a resource per period, and how the provider counts it.
#ifndef HEADWAY_BASE_LIMIT_H_
#define HEADWAY_BASE_LIMIT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "headway/base/clock.h"

namespace headway {

// How a provider counts. `kUnknown` is kept as `kWindow`, because a strict window is accepted with
// a full burst by all three kinds of server, while a bucket is not.
//
// `kCredit` is no provider's way of counting, and no text says it: units that somebody else has
// granted, to be used once (see Bucket::Deposit).
enum class Shape : std::uint8_t { kUnknown, kBucket, kFixed, kWindow, kConcurrency, kCredit };

// "bucket", "fixed", "window", "concurrency"; "unknown" for kUnknown.
absl::string_view ShapeName(Shape shape);

// The resources that have a meaning here; any other is a name of the user's own.
inline constexpr absl::string_view kKnownResources[] = {"requests", "tokens", "input_tokens",
                                                        "output_tokens", "concurrency"};

// A limit, as a plain value. Make one with `Limit::Make` or `Limit::Parse`, which check it; the
// text form round-trips: Parse(Format()) equals the limit.
//
//   <amount> <resource>/<period> [bucket|fixed|window] [burst <n>] [anchor <seconds>]
//   <amount> concurrency
//
// e.g. "500 requests/min", "200_000 tokens/60s window", "100 requests/s bucket burst 10".
struct Limit {
  // The largest amount, burst or cost: every integer up to here is exact in a double, too.
  static constexpr std::int64_t kMaxAmount = std::int64_t{1} << 53;
  static constexpr Nanos kMinPeriod = kMillisecond;
  static constexpr Nanos kMaxPeriod = 31 * kDay;
  // The longest time that a full `bucket` may take to refill (4.5 years): twice that, plus the
  // clock, must fit into a meter's 60 bits.
  static constexpr Nanos kMaxRefill = Nanos{1} << 57;
  // How far an anchor may lie from 1970 (146 years): sums with a clock's instants cannot overflow.
  static constexpr Nanos kMaxAnchor = Nanos{1} << 62;

  std::int64_t amount = 0;
  std::string resource;
  Nanos period = 0;  // 0 for kConcurrency
  Shape shape = Shape::kUnknown;
  std::optional<std::int64_t> burst;  // kBucket only; unset: the amount
  std::optional<Nanos> anchor;        // kFixed only, ns since the Unix epoch; unset: midnight UTC

  std::int64_t burst_or_amount() const { return burst.value_or(amount); }

  // Checks every field and returns the limit, or an InvalidArgumentError that names the field, its
  // value and the rule. A resource named "concurrency" has shape kConcurrency and no period.
  static absl::StatusOr<Limit> Make(Limit limit);

  // Reads the text form. The error quotes the text.
  static absl::StatusOr<Limit> Parse(absl::string_view text);

  // The canonical text form.
  std::string Format() const;

  friend bool operator==(const Limit&, const Limit&) = default;
};

}  // namespace headway

#endif  // HEADWAY_BASE_LIMIT_H_
