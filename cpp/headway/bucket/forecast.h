// headway/bucket/forecast.h: when requests will go out that stand in line, on paper.
#ifndef HEADWAY_BUCKET_FORECAST_H_
#define HEADWAY_BUCKET_FORECAST_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "headway/bucket/bucket.h"
#include "headway/bucket/path.h"
#include "headway/meter/forecast.h"

namespace headway {

// Requests are added in the order in which they may go. Each goes when all of its limits admit it,
// behind those before it that ask for any of the same; so a limit of periods is filled as it will
// be, with the rest of a period left free that the next request does not fit into. Who is held up
// by limits of his account's own is passed by others, as the scheduler lets them; and who waits for
// one resource, by those who do not ask for that one.
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
  // Resources, as bits, as in Bucket::Binding.
  using Resources = std::uint32_t;
  // When a request goes, and what it waits for until then; bound 0: for nothing that others could
  // pass it by. It is not its turn before `others_until`, when those are gone that wait for others
  // than that.
  struct Turn {
    Nanos at;
    Resources asks;
    Resources bound;
    Resources others;
    Nanos others_until;
  };
  struct Counted {
    Counted(Resources resource, MeterForecast meter) : own(resource), all(std::move(meter)) {}
    // Whether who asks for these stands behind all.
    bool IsBehindAll(Resources asks) const { return (behind & ~asks) == 0; }
    Nanos Earliest(Resources asks, Nanos from, std::int64_t amount) const;
    void Take(const Turn& turn, std::int64_t amount);
    void Pass(Resources others, Nanos others_until);

    Resources own;  // that it counts
    MeterForecast all;
    // At most one: the same without those that wait for another resource, of `behind`. Who does not
    // ask for that passes them; but not, from `until` on, those of them who then wait for this one.
    std::vector<MeterForecast> passing;
    Resources behind = 0;
    Nanos until = kNever;
  };
  struct One {
    const Bucket* bucket;  // only compared
    Denial start;          // nothing goes before
    absl::InlinedVector<Counted, 2> meters;
  };
  One& Of(Bucket& bucket, bool answered);
  static Denial Earliest(const Bucket& bucket, const One& one, Resources asks,
                         absl::Span<const std::int64_t> amounts);
  static void Take(const Bucket& bucket, One& one, Resources asks, const Refusal& found,
                   absl::Span<const std::int64_t> amounts);

  Nanos now_;
  absl::InlinedVector<One, 1> ones_;
  // Where they are among those, once there are more than a few: accounts have limits of their own.
  static constexpr std::size_t kFew = 8;
  absl::flat_hash_map<const Bucket*, std::size_t> places_;
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_FORECAST_H_
