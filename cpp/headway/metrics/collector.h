// headway/metrics/collector.h: what all buckets have counted, as Prometheus wants to read it.
#ifndef HEADWAY_METRICS_COLLECTOR_H_
#define HEADWAY_METRICS_COLLECTOR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "headway/metrics/bucket_metrics.h"
#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"

namespace headway {

// How a bucket stands at the moment.
struct BucketGauges {
  struct Room {
    std::string limit;
    std::string resource;
    double remaining = 0;
    double capacity = 0;
  };
  std::int64_t queue_depth = 0;
  std::int64_t in_flight = 0;
  std::vector<Room> rooms;  // one for each limit
};

// A bucket as the collector sees it. It is asked while the collector's lock is held, on whatever
// thread collects: it must not wait for a thread that registers, and must not raise.
class BucketSource {
 public:
  virtual ~BucketSource() = default;
  virtual const BucketMetrics& metrics() const = 0;
  // The labels of what is counted by limit and by resource. A number keeps its name for ever, or
  // the old name's series would go down. Empty: there is no such limit or resource (yet).
  virtual std::string LimitName(std::size_t limit) const = 0;
  virtual std::string ResourceName(std::size_t resource) const = 0;
  virtual BucketGauges Gauges() const = 0;
};

// Renders every registered bucket, whenever Prometheus asks, labelled `scheduler` and `bucket`.
//
// Bucket names may come from outside, and each costs the reader some hundred series. So only the
// buckets with the most requests have their own, and the rest of each scheduler is summed as
// bucket="other". What has once been counted stays counted: a bucket that is unregistered is folded
// into `other`, and one that rises out of `other` leaves behind what it had counted there and
// begins anew. So `other` and all sums never go down, and a bucket's own series only by a reset,
// which Prometheus knows how to read.
//
// Thread-safe. One lock is held while registering and while collecting, and nobody takes it to
// count. Where several sources bear the same names, they are summed.
class Collector final : public prometheus::Collectable {
 public:
  static constexpr std::size_t kMostBuckets = 1'000;

  explicit Collector(std::size_t most_buckets = kMostBuckets) : most_buckets_(most_buckets) {}

  // The source must live until it is unregistered. Nothing that is counted after that shows up.
  void Register(std::string scheduler, std::string bucket, const BucketSource* source);
  void Unregister(const BucketSource* source);
  void Register(const std::string& scheduler, const UserCodeErrors* errors);
  void Unregister(const UserCodeErrors* errors);

  std::vector<prometheus::MetricFamily> Collect() const override;

  // For the fork handlers: while locked nobody registers or collects, so that the child does not
  // inherit a lock that a thread of its parent held.
  void Lock() { mutex_.lock(); }
  void Unlock() { mutex_.unlock(); }

 private:
  // Counts by name, so that those of different buckets can be added.
  struct Totals {
    std::array<std::uint64_t, BucketMetrics::kFixed> fixed{};
    std::map<std::string, std::array<std::uint64_t, kUnitEvents>> units;  // by resource
    std::map<std::string, std::uint64_t> denials;                         // by limit

    // Adds `values` less what they were before; `before` is empty where that is nothing.
    void Add(const BucketSource& source, const std::vector<std::uint64_t>& values,
             const std::vector<std::uint64_t>& before);
  };
  // What is rendered under one pair of names.
  struct Group {
    Totals totals;
    BucketGauges sums;
    std::map<std::pair<std::string, std::string>, BucketGauges::Room> rooms;
  };
  using Groups = std::map<std::pair<std::string, std::string>, Group>;

  struct Entry {
    enum class Place { kNew, kOwn, kOther };

    std::string scheduler;
    std::string bucket;
    Place place = Place::kNew;  // in what was last collected
    bool chosen = false;        // for series of its own in what is being collected
    // What it had counted when it last rose out of `other`, where that is kept.
    std::vector<std::uint64_t> before;
  };
  using ErrorCounts = std::map<std::string, std::array<std::uint64_t, kUserCodes>>;

  void Choose() const;
  Groups Gather() const;
  ErrorCounts GatherErrors() const;

  const std::size_t most_buckets_;
  mutable std::mutex mutex_;  // guards all below
  mutable absl::flat_hash_map<const BucketSource*, Entry> entries_;
  absl::flat_hash_map<const UserCodeErrors*, std::string> errors_;
  // Of what is no longer counted elsewhere, by scheduler.
  mutable std::map<std::string, Totals> kept_;
  ErrorCounts kept_errors_;
};

}  // namespace headway

#endif  // HEADWAY_METRICS_COLLECTOR_H_
