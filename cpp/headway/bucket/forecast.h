// headway/bucket/forecast.h: when requests will go out that stand in line, on paper.
#ifndef HEADWAY_BUCKET_FORECAST_H_
#define HEADWAY_BUCKET_FORECAST_H_

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "headway/bucket/bucket.h"
#include "headway/bucket/path.h"
#include "headway/meter/forecast.h"

namespace headway {

// Requests are added in the order in which they may go. Each goes when all of its limits admit it,
// behind those before it that ask for any of the same; so a limit of periods is filled as it will
// be, with the rest of a period left free that the next request does not fit into. Who is held up
// by limits of his account's own is passed by others, as the scheduler lets them.
//
// What it does not know: what is given back, cancelled, or used by others later; and how long
// answers take, from which a window's slots are free a period later.
//
// For one thread; copied freely. Its buckets must stay alive while it is added to.
class Forecast {
 public:
  // Of buckets as they are at `now`, or when they are first asked for.
  explicit Forecast(Nanos now) : now_(now) {}

  // When a request would go, and what it waits for until then; it is added to those that stand in
  // line. `limits`: its account's own, or null.
  Refusal Add(Bucket& bucket, Bucket* limits, absl::Span<const std::int64_t> amounts);

 private:
  struct One {
    const Bucket* bucket;  // only compared
    Denial start;          // nothing goes before
    absl::InlinedVector<MeterForecast, 2> meters;
  };
  One& Of(Bucket& bucket, bool answered);
  static Denial Earliest(const Bucket& bucket, const One& one,
                         absl::Span<const std::int64_t> amounts);
  static void Take(const Bucket& bucket, One& one, Nanos at,
                   absl::Span<const std::int64_t> amounts);

  Nanos now_;
  absl::InlinedVector<One, 1> ones_;
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_FORECAST_H_
