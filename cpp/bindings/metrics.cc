// bindings/metrics.cc: counters of buckets, and the ways out to Prometheus.
#include "bindings/metrics.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>
#include <utility>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "headway/metrics/exposer.h"
#include "prometheus/text_serializer.h"

namespace headway::python {

namespace {

// The server refers to it weakly, so this owns it, for as long as the process lives.
const std::shared_ptr<Collector>& SharedCollector() {
  static const auto* collector = new std::shared_ptr<Collector>(std::make_shared<Collector>());
  return *collector;
}

// "500 requests/min bucket burst 10" is "requests/min": amounts change, names must not.
std::string NameOf(const Limit& limit) {
  const std::string text = limit.Format();
  const std::size_t begin = text.find(' ') + 1;
  return text.substr(begin, text.find(' ', begin) - begin);
}

using Address = std::pair<std::string, int>;

// The exposers that are open, by the address that was asked for: who asks for the same one shares
// it, because a port can be had once and what it serves is the whole process's. Under 0 are those
// on free ports, each for itself.
struct OpenExposers {
  // Before the collector's. Taken without the GIL, and held while an exposer opens and closes.
  std::mutex mutex;
  std::multimap<Address, std::weak_ptr<Exposer>> by_address;
};
OpenExposers& Open() {
  static auto* open = new OpenExposers;
  return *open;
}

class Server {
 public:
  Server(const std::string& host, int port) {
    try {
      const py::gil_scoped_release released;
      const std::lock_guard lock(Open().mutex);
      auto& open = Open().by_address;
      const Address address(host, port);
      if (const auto known = open.find(address); port != 0 && known != open.end())
        exposer_ = known->second.lock();
      if (exposer_ == nullptr) {
        exposer_ = std::make_shared<Exposer>(SharedCollector(), host, port);
        open.emplace(address, exposer_);
      }
    } catch (const std::system_error& error) {
      PyObject* arguments = Py_BuildValue("is", error.code().value(), error.what());
      if (arguments != nullptr) PyErr_SetObject(PyExc_OSError, arguments);
      Py_XDECREF(arguments);
      throw py::error_already_set();
    }
  }
  ~Server() { Close(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int Port() const { return exposer_ == nullptr ? 0 : exposer_->port(); }
  void Close() {
    if (exposer_ == nullptr) return;
    std::shared_ptr<Exposer> closing = std::move(exposer_);
    const py::gil_scoped_release released;
    const std::lock_guard lock(Open().mutex);
    auto& open = Open().by_address;
    const auto known = std::find_if(open.begin(), open.end(), [&closing](const auto& each) {
      return each.second.lock() == closing;
    });
    if (known == open.end()) {
      // In a child of a fork: the threads that it would wait for are the parent's.
      new std::shared_ptr<Exposer>(std::move(closing));
      return;
    }
    if (closing.use_count() == 1) open.erase(known);
    closing.reset();
  }

 private:
  std::shared_ptr<Exposer> exposer_;
};

const char* KindOf(prometheus::MetricType type) {
  switch (type) {
    case prometheus::MetricType::Counter:
      return "counter";
    case prometheus::MetricType::Gauge:
      return "gauge";
    case prometheus::MetricType::Histogram:
      return "histogram";
    default:
      return "untyped";
  }
}

std::vector<prometheus::MetricFamily> Gather() {
  const py::gil_scoped_release released;
  return TheCollector().Collect();
}

// [(name, kind, help, [(labels, value)])], where a histogram's value is ([(bound, count)], sum,
// count).
py::list Collected() {
  py::list families;
  for (const prometheus::MetricFamily& family : Gather()) {
    py::list samples;
    for (const prometheus::ClientMetric& metric : family.metric) {
      py::dict labels;
      for (const auto& label : metric.label) labels[py::str(label.name)] = label.value;
      py::object value;
      if (family.type == prometheus::MetricType::Histogram) {
        py::list buckets;
        for (const auto& bucket : metric.histogram.bucket)
          buckets.append(py::make_tuple(bucket.upper_bound, bucket.cumulative_count));
        value = py::make_tuple(buckets, metric.histogram.sample_sum, metric.histogram.sample_count);
      } else {
        value = py::float_(family.type == prometheus::MetricType::Counter ? metric.counter.value
                                                                          : metric.gauge.value);
      }
      samples.append(py::make_tuple(labels, value));
    }
    families.append(py::make_tuple(family.name, KindOf(family.type), family.help, samples));
  }
  return families;
}

}  // namespace

Collector& TheCollector() { return *SharedCollector(); }

BucketCounts::BucketCounts(const std::string& scheduler, const std::string& bucket, State& state)
    : state_(state),
      resources_(state.resources),
      metrics_(state.limits.size() +
                   static_cast<std::size_t>(state.learner == nullptr ? 0 : State::kMostLearnt),
               state.resources.size()) {
  NameLimits();
  TheCollector().Register(scheduler, bucket, this);
}

BucketCounts::~BucketCounts() { TheCollector().Unregister(this); }

void BucketCounts::NameLimits() {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = limits_.size(); i < state_.limits.size(); ++i)
    limits_.push_back(NameOf(state_.limits[i]));
}

std::string BucketCounts::LimitName(std::size_t limit) const {
  const std::lock_guard lock(mutex_);
  // What is not known yet has no name yet.
  const bool known =
      limit < limits_.size() &&
      state_.bucket->meter(static_cast<int>(limit)).parameters().amount < Limit::kMaxAmount;
  return known ? limits_[limit] : "";
}

BucketGauges BucketCounts::Gauges() const {
  BucketGauges gauges;
  gauges.queue_depth = queued.load(std::memory_order_relaxed);
  gauges.in_flight = in_flight.load(std::memory_order_relaxed);
  const Nanos now = state_.Now();
  for (int i = 0; i < state_.bucket->size(); ++i) {
    const std::int64_t capacity = state_.bucket->meter(i).Capacity();
    const std::int64_t used = state_.bucket->Used(i, now);
    const auto meter = static_cast<std::size_t>(i);
    gauges.rooms.push_back({LimitName(meter),
                            resources_[static_cast<std::size_t>(state_.bucket->resource(i))],
                            static_cast<double>(std::max<std::int64_t>(0, capacity - used)),
                            static_cast<double>(capacity)});
  }
  return gauges;
}

void BucketCounts::Reserved(absl::Span<const std::int64_t> amounts) {
  for (std::size_t r = 0; r < amounts.size(); ++r)
    metrics_.CountUnits(UnitEvent::kReserved, r, amounts[r]);
}

void BucketCounts::Ended(absl::Span<const std::int64_t> amounts,
                         absl::Span<const std::int64_t> actual) {
  for (std::size_t r = 0; r < amounts.size(); ++r) {
    const std::int64_t used = r < actual.size() && actual[r] >= 0 ? actual[r] : amounts[r];
    metrics_.CountUnits(UnitEvent::kSettled, r, used);
    metrics_.CountUnits(UnitEvent::kRefunded, r, amounts[r] - used);
  }
}

void BucketCounts::Cancelled(absl::Span<const std::int64_t> amounts) {
  for (std::size_t r = 0; r < amounts.size(); ++r)
    metrics_.CountUnits(UnitEvent::kRefunded, r, amounts[r]);
}

void AddMetrics(py::module_& m) {
  py::class_<Server>(
      m, "MetricsServer",
      "MetricsServer(host, port): serves /metrics from threads of its own, without "
      "the GIL. port 0 takes a free one. Those of one process with the same address share "
      "it until the last is closed. OSError where it is taken by others.")
      .def(py::init<const std::string&, int>(), py::arg("host"), py::arg("port"))
      .def_property_readonly("port", &Server::Port, "The port that it listens on; 0: closed.")
      .def("close", &Server::Close, "Closes the port, unless others share it.");
  m.def("collect_metrics", &Collected, "What all buckets have counted, family by family.");
  m.def(
      "metrics_text", [] { return prometheus::TextSerializer().Serialize(Gather()); },
      "The same in Prometheus's text format.");
}

void MetricsBeforeFork() {
  Open().mutex.lock();
  TheCollector().Lock();
}
void MetricsAfterFork(bool in_child) {
  TheCollector().Unlock();
  if (in_child) {
    FreeShardsAfterForkInChild();
    for (const auto& [address, exposer] : Open().by_address)
      if (const auto open = exposer.lock(); open != nullptr) open->CloseInChild();
    Open().by_address.clear();
  }
  Open().mutex.unlock();
}

}  // namespace headway::python
