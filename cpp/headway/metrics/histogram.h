// headway/metrics/histogram.h: how often a duration fell between which bounds.
#ifndef HEADWAY_METRICS_HISTOGRAM_H_
#define HEADWAY_METRICS_HISTOGRAM_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "headway/base/clock.h"
#include "headway/metrics/counter.h"

namespace headway {

// A histogram as it is read. `cumulative[i]` counts what was at most the i-th bound; `count` all.
struct HistogramSnapshot {
  std::vector<std::uint64_t> cumulative;
  double sum_seconds = 0;
  std::uint64_t count = 0;
};

// Fixed bounds over a run of words in a set of counters, so that a histogram is sharded as the
// counters beside it are: first the sum in nanoseconds, then how many fell up to each bound (and
// above the one before it), last how many above all.
//
// A plain value; the bounds, ascending, must live as long. Observing is two additions.
class Histogram {
 public:
  constexpr Histogram(absl::Span<const Nanos> bounds, std::size_t first)
      : bounds_(bounds), first_(first) {}

  // How many words it takes.
  static constexpr std::size_t Words(std::size_t bounds) { return bounds + 2; }

  // A duration below 0, as clocks of two threads may give, is 0.
  void Observe(Counters& counters, Nanos duration) const {
    const auto bin = static_cast<std::size_t>(
        std::lower_bound(bounds_.begin(), bounds_.end(), duration) - bounds_.begin());
    counters.Add(first_ + 1 + bin);
    if (duration > 0) counters.Add(first_, static_cast<std::uint64_t>(duration));
  }

  // From the counters' values. While others observe, the sum and the count may be of slightly
  // different instants; the counts among themselves always fit.
  HistogramSnapshot Read(absl::Span<const std::uint64_t> values) const {
    HistogramSnapshot snapshot;
    snapshot.cumulative.reserve(bounds_.size());
    for (std::size_t bin = 0; bin <= bounds_.size(); ++bin) {
      snapshot.count += values[first_ + 1 + bin];
      if (bin < bounds_.size()) snapshot.cumulative.push_back(snapshot.count);
    }
    snapshot.sum_seconds = static_cast<double>(values[first_]) / static_cast<double>(kSecond);
    return snapshot;
  }

  absl::Span<const Nanos> bounds() const { return bounds_; }

 private:
  absl::Span<const Nanos> bounds_;
  std::size_t first_;
};

// From what nobody notices to what nobody waits for.
inline constexpr Nanos kWaitBounds[] = {
    1 * kMillisecond,   2'500 * kMicrosecond, 5 * kMillisecond,     10 * kMillisecond,
    25 * kMillisecond,  50 * kMillisecond,    100 * kMillisecond,   250 * kMillisecond,
    500 * kMillisecond, 1 * kSecond,          2'500 * kMillisecond, 5 * kSecond,
    10 * kSecond,       30 * kSecond,         60 * kSecond,         120 * kSecond,
    300 * kSecond,      600 * kSecond,        1'800 * kSecond,      3'600 * kSecond};

// A thread that is awake hands over within microseconds; a machine that is overloaded, in seconds.
inline constexpr Nanos kLatenessBounds[] = {
    10 * kMicrosecond,    25 * kMicrosecond,  50 * kMicrosecond,  100 * kMicrosecond,
    250 * kMicrosecond,   500 * kMicrosecond, 1 * kMillisecond,   2'500 * kMicrosecond,
    5 * kMillisecond,     10 * kMillisecond,  25 * kMillisecond,  50 * kMillisecond,
    100 * kMillisecond,   250 * kMillisecond, 500 * kMillisecond, 1 * kSecond,
    2'500 * kMillisecond, 5 * kSecond,        10 * kSecond};

}  // namespace headway

#endif  // HEADWAY_METRICS_HISTOGRAM_H_
