// headway/metrics/collector.cc: choosing, adding up and naming what the buckets have counted.
#include "headway/metrics/collector.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "prometheus/client_metric.h"
#include "prometheus/metric_type.h"

namespace headway {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr char kOther[] = "other";

std::vector<ClientMetric::Label> Labels(
    const std::pair<std::string, std::string>& scheduler_and_bucket) {
  return {{"scheduler", scheduler_and_bucket.first}, {"bucket", scheduler_and_bucket.second}};
}

// One family; the loops that fill it say only what is particular.
class Family {
 public:
  Family(MetricType type, const char* name, const char* help) {
    family_.name = name;
    family_.help = help;
    family_.type = type;
  }

  void Add(std::vector<ClientMetric::Label> labels, double value) {
    ClientMetric& metric = Append(std::move(labels));
    (family_.type == MetricType::Gauge ? metric.gauge.value : metric.counter.value) = value;
  }
  void Add(std::vector<ClientMetric::Label> labels, std::uint64_t value) {
    Add(std::move(labels), static_cast<double>(value));
  }
  void Add(std::vector<ClientMetric::Label> labels, const Histogram& histogram,
           absl::Span<const std::uint64_t> values) {
    const HistogramSnapshot snapshot = histogram.Read(values);
    ClientMetric::Histogram& rendered = Append(std::move(labels)).histogram;
    rendered.sample_count = snapshot.count;
    rendered.sample_sum = snapshot.sum_seconds;
    for (std::size_t i = 0; i < snapshot.cumulative.size(); ++i)
      rendered.bucket.push_back(
          {snapshot.cumulative[i],
           static_cast<double>(histogram.bounds()[i]) / static_cast<double>(kSecond)});
  }

  // A family without a series says nothing, and is left out.
  void MoveTo(std::vector<MetricFamily>& families) {
    if (!family_.metric.empty()) families.push_back(std::move(family_));
  }

 private:
  ClientMetric& Append(std::vector<ClientMetric::Label> labels) {
    ClientMetric& metric = family_.metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }

  MetricFamily family_;
};

std::vector<ClientMetric::Label> With(std::vector<ClientMetric::Label> labels, const char* name,
                                      std::string value) {
  labels.push_back({name, std::move(value)});
  return labels;
}

}  // namespace

void Collector::Totals::Add(const BucketSource& source, const std::vector<std::uint64_t>& values,
                            const std::vector<std::uint64_t>& before) {
  const BucketMetrics& metrics = source.metrics();
  const auto since = [&](std::size_t i) { return values[i] - (before.empty() ? 0 : before[i]); };
  for (std::size_t i = 0; i < BucketMetrics::kFixed; ++i) fixed[i] += since(i);
  for (std::size_t resource = 0; resource < metrics.resources(); ++resource) {
    const std::string name = source.ResourceName(resource);
    if (name.empty()) continue;
    std::array<std::uint64_t, kUnitEvents>& sums = units[name];
    for (std::size_t event = 0; event < kUnitEvents; ++event)
      sums[event] += since(metrics.UnitsAt(static_cast<UnitEvent>(event), resource));
  }
  for (std::size_t limit = 0; limit < metrics.limits(); ++limit) {
    const std::string name = source.LimitName(limit);
    if (!name.empty()) denials[name] += since(metrics.DenialsAt(limit));
  }
}

void Collector::Register(std::string scheduler, std::string bucket, const BucketSource* source) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Entry entry;
  entry.scheduler = std::move(scheduler);
  entry.bucket = std::move(bucket);
  entries_.emplace(source, std::move(entry));
}

void Collector::Unregister(const BucketSource* source) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(source);
  if (found == entries_.end()) return;
  const Entry& entry = found->second;
  kept_[entry.scheduler].Add(*source, source->metrics().Values(), entry.before);
  entries_.erase(found);
}

void Collector::Register(const std::string& scheduler, const UserCodeErrors* errors) {
  const std::lock_guard<std::mutex> lock(mutex_);
  errors_.emplace(errors, scheduler);
}

void Collector::Unregister(const UserCodeErrors* errors) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = errors_.find(errors);
  if (found == errors_.end()) return;
  const std::vector<std::uint64_t> values = errors->Values();
  for (std::size_t i = 0; i < kUserCodes; ++i) kept_errors_[found->second][i] += values[i];
  errors_.erase(found);
}

// Marks the buckets that get series of their own: those with the most requests, and of equals those
// that had them before, so that series do not come and go.
void Collector::Choose() const {
  struct Use {
    std::uint64_t requests;
    bool own;
    Entry* entry;
  };
  std::vector<Use> uses;
  uses.reserve(entries_.size());
  for (auto& [source, entry] : entries_) {
    entry.chosen = true;
    uses.push_back({source->metrics().Requests(), entry.place == Entry::Place::kOwn, &entry});
  }
  if (uses.size() <= most_buckets_) return;
  const auto first_other = uses.begin() + static_cast<std::ptrdiff_t>(most_buckets_);
  std::nth_element(uses.begin(), first_other, uses.end(), [](const Use& a, const Use& b) {
    return std::pair(a.requests, a.own) > std::pair(b.requests, b.own);
  });
  std::for_each(first_other, uses.end(), [](const Use& use) { use.entry->chosen = false; });
}

Collector::Groups Collector::Gather() const {
  Choose();
  Groups groups;
  for (auto& [source, entry] : entries_) {
    const std::vector<std::uint64_t> values = source->metrics().Values();
    if (entry.chosen && entry.place == Entry::Place::kOther) {
      kept_[entry.scheduler].Add(*source, values, entry.before);
      entry.before = values;
    }
    entry.place = entry.chosen ? Entry::Place::kOwn : Entry::Place::kOther;

    Group& group = groups[{entry.scheduler, entry.chosen ? entry.bucket : kOther}];
    group.totals.Add(*source, values, entry.before);
    const BucketGauges gauges = source->Gauges();
    group.sums.queue_depth += gauges.queue_depth;
    group.sums.in_flight += gauges.in_flight;
    if (!entry.chosen) continue;  // room of different buckets is no sum of anything
    for (const BucketGauges::Room& room : gauges.rooms) {
      if (room.limit.empty()) continue;  // it has no name yet
      BucketGauges::Room& sum = group.rooms[{room.limit, room.resource}];
      sum.remaining += room.remaining;
      sum.capacity += room.capacity;
    }
  }
  for (const auto& [scheduler, kept] : kept_) {
    Totals& totals = groups[{scheduler, kOther}].totals;
    for (std::size_t i = 0; i < totals.fixed.size(); ++i) totals.fixed[i] += kept.fixed[i];
    for (const auto& [name, counts] : kept.units)
      for (std::size_t i = 0; i < counts.size(); ++i) totals.units[name][i] += counts[i];
    for (const auto& [name, count] : kept.denials) totals.denials[name] += count;
  }
  return groups;
}

Collector::ErrorCounts Collector::GatherErrors() const {
  ErrorCounts counts = kept_errors_;
  for (const auto& [errors, scheduler] : errors_) {
    const std::vector<std::uint64_t> values = errors->Values();
    for (std::size_t i = 0; i < kUserCodes; ++i) counts[scheduler][i] += values[i];
  }
  return counts;
}

std::vector<MetricFamily> Collector::Collect() const {
  Groups groups;
  ErrorCounts errors;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    groups = Gather();
    errors = GatherErrors();
  }

  std::vector<MetricFamily> families;
  Family requests(MetricType::Counter, "headway_requests_total", "Requests that ended, by how.");
  for (const auto& [names, group] : groups)
    for (std::size_t i = 0; i < kRequestOutcomes; ++i) {
      const auto outcome = static_cast<RequestOutcome>(i);
      requests.Add(With(Labels(names), "outcome", std::string(RequestOutcomeName(outcome))),
                   group.totals.fixed[BucketMetrics::OutcomeAt(outcome)]);
    }
  requests.MoveTo(families);

  const auto events = [&](BucketEvent event, const char* name, const char* help) {
    Family family(MetricType::Counter, name, help);
    for (const auto& [names, group] : groups)
      family.Add(Labels(names), group.totals.fixed[BucketMetrics::EventAt(event)]);
    family.MoveTo(families);
  };
  events(BucketEvent::kAttempt, "headway_attempts_total", "Calls that were started.");
  events(BucketEvent::kRetry, "headway_retries_total", "Calls that were not a request's first.");
  events(BucketEvent::kRefusal, "headway_refusals_total",
         "Calls that the provider refused for its limits.");
  Family causes(MetricType::Counter, "headway_refusal_verdicts_total",
                "Refusals, by what they come of.");
  for (const auto& [names, group] : groups)
    for (std::size_t i = 0; i < kRefusalCauses; ++i) {
      const auto cause = static_cast<RefusalCause>(i);
      causes.Add(With(Labels(names), "verdict", std::string(RefusalCauseName(cause))),
                 group.totals.fixed[BucketMetrics::CauseAt(cause)]);
    }
  causes.MoveTo(families);
  events(BucketEvent::kCoolDown, "headway_cooldowns_total",
         "Times that a bucket held still because the provider had said so.");
  events(BucketEvent::kOddity, "headway_answer_oddities_total",
         "Values in answers, about limits, that could not be read.");

  Family denials(MetricType::Counter, "headway_denials_total",
                 "Admissions that were denied, by the limit that bound.");
  for (const auto& [names, group] : groups)
    for (const auto& [limit, count] : group.totals.denials)
      denials.Add(With(Labels(names), "limit", limit), count);
  denials.MoveTo(families);

  const auto units = [&](UnitEvent event, const char* name, const char* help) {
    Family family(MetricType::Counter, name, help);
    for (const auto& [names, group] : groups)
      for (const auto& [resource, counts] : group.totals.units)
        family.Add(With(Labels(names), "resource", resource),
                   counts[static_cast<std::size_t>(event)]);
    family.MoveTo(families);
  };
  units(UnitEvent::kReserved, "headway_reserved_units_total", "Units reserved at admission.");
  units(UnitEvent::kSettled, "headway_settled_units_total", "Units that calls turned out to use.");
  units(UnitEvent::kRefunded, "headway_refunded_units_total",
        "Units that were reserved and given back.");

  const auto histogram = [&](const Histogram& layout, const char* name, const char* help) {
    Family family(MetricType::Histogram, name, help);
    for (const auto& [names, group] : groups) family.Add(Labels(names), layout, group.totals.fixed);
    family.MoveTo(families);
  };
  histogram(BucketMetrics::kWait, "headway_wait_seconds", "From submission to admission.");
  histogram(BucketMetrics::kLateness, "headway_lateness_seconds",
            "From an admission until whoever has waited for it goes on.");

  Family depth(MetricType::Gauge, "headway_queue_depth", "Requests that wait for admission.");
  Family in_flight(MetricType::Gauge, "headway_in_flight", "Calls that are out.");
  Family remaining(MetricType::Gauge, "headway_remaining_units",
                   "Units that a limit would admit now.");
  Family capacity(MetricType::Gauge, "headway_capacity_units",
                  "Units that a limit would admit if nothing had been taken.");
  for (const auto& [names, group] : groups) {
    depth.Add(Labels(names), static_cast<double>(group.sums.queue_depth));
    in_flight.Add(Labels(names), static_cast<double>(group.sums.in_flight));
    for (const auto& [limit_and_resource, room] : group.rooms) {
      const auto labels = With(With(Labels(names), "limit", limit_and_resource.first), "resource",
                               limit_and_resource.second);
      remaining.Add(labels, room.remaining);
      capacity.Add(labels, room.capacity);
    }
  }
  for (Family* family : {&depth, &in_flight, &remaining, &capacity}) family->MoveTo(families);

  Family raised(MetricType::Counter, "headway_user_code_errors_total",
                "Exceptions that the user's code raised, by what raised them.");
  for (const auto& [scheduler, counts] : errors)
    for (std::size_t i = 0; i < kUserCodes; ++i)
      raised.Add({{"scheduler", scheduler},
                  {"origin", std::string(UserCodeName(static_cast<UserCode>(i)))}},
                 counts[i]);
  raised.MoveTo(families);
  return families;
}

}  // namespace headway
