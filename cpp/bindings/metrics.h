// bindings/metrics.h: what a scheduler's buckets count, on its way to Prometheus.
#ifndef HEADWAY_BINDINGS_METRICS_H_
#define HEADWAY_BINDINGS_METRICS_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "bindings/state.h"
#include "headway/metrics/bucket_metrics.h"
#include "headway/metrics/collector.h"

namespace headway::python {

// The process's collector; it lives as long as the process.
Collector& TheCollector();

// The counters of one bucket of one scheduler. Counting and collecting need no GIL.
class BucketCounts final : public BucketSource {
 public:
  BucketCounts(const std::string& scheduler, const std::string& bucket, State& state);
  ~BucketCounts() override;
  BucketCounts(const BucketCounts&) = delete;
  BucketCounts& operator=(const BucketCounts&) = delete;

  const BucketMetrics& metrics() const override { return metrics_; }
  std::string LimitName(std::size_t limit) const override;
  std::string ResourceName(std::size_t resource) const override { return resources_[resource]; }
  BucketGauges Gauges() const override;

  // Limits have come to it since.
  void NameLimits();

  void Count(RequestOutcome outcome) { metrics_.Count(outcome); }
  void Count(BucketEvent event) { metrics_.Count(event); }
  void Count(RefusalCause cause) { metrics_.Count(cause); }
  void Denied(int meter) {
    if (meter >= 0) metrics_.CountDenial(static_cast<std::size_t>(meter));
  }
  void Waited(Nanos wait) { metrics_.ObserveWait(wait); }
  void Late(Nanos lateness) { metrics_.ObserveLateness(lateness); }
  // `actual` by resource, negative or empty: as reserved.
  void Reserved(absl::Span<const std::int64_t> amounts);
  void Ended(absl::Span<const std::int64_t> amounts, absl::Span<const std::int64_t> actual);
  void Cancelled(absl::Span<const std::int64_t> amounts);

  std::atomic<std::int64_t> queued{0};
  std::atomic<std::int64_t> in_flight{0};

 private:
  State& state_;  // the bucket object holds it
  const std::vector<std::string> resources_;
  mutable std::mutex mutex_;         // of what follows
  std::vector<std::string> limits_;  // by meter, without amounts
  BucketMetrics metrics_;
};

}  // namespace headway::python

#endif  // HEADWAY_BINDINGS_METRICS_H_
