// headway/metrics/bucket_metrics.h: what one bucket of a scheduler counts.
#ifndef HEADWAY_METRICS_BUCKET_METRICS_H_
#define HEADWAY_METRICS_BUCKET_METRICS_H_

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "headway/base/clock.h"
#include "headway/metrics/counter.h"
#include "headway/metrics/histogram.h"

namespace headway {

// How a request ended.
enum class RequestOutcome : std::uint8_t {
  kSucceeded,
  kFailed,
  kTimedOut,
  kCancelled,
  kOverflowed,  // the queue was full when it came
  kDropped,     // it had waited longest when the queue was full
  kDeadline,
  kNeverFits,
  kBreaker,
  kStopped,
};
inline constexpr std::size_t kRequestOutcomes = 10;
// As a label: "succeeded", "timed_out" and so on.
absl::string_view RequestOutcomeName(RequestOutcome outcome);

enum class BucketEvent : std::uint8_t {
  kAttempt,   // a call was started
  kRetry,     // it was not its request's first
  kRefusal,   // the provider refused it for its limits
  kCoolDown,  // the bucket began to hold still because the provider had said so
  kOddity,    // an answer said something of limits that could not be read
};
inline constexpr std::size_t kBucketEvents = 5;

// Why the provider refused a call, as far as that can be told.
enum class RefusalCause : std::uint8_t {
  kOurs,             // more was sent than the limit
  kCapacity,         // the provider's own: nothing of the limits was used up
  kChanged,          // the limit is another than was kept to
  kAnotherConsumer,  // the limit is used up, and not by us
  kUnknown,
};
inline constexpr std::size_t kRefusalCauses = 5;
// As a label, and as a receipt says it: "another consumer" and so on.
absl::string_view RefusalCauseName(RefusalCause cause);

enum class UnitEvent : std::uint8_t { kReserved, kSettled, kRefunded };
inline constexpr std::size_t kUnitEvents = 3;

// The counters of one bucket. Limits and resources are numbered as in the bucket; their names are
// known to whoever owns it.
//
// Thread-safe; all that counts is lock-free (Counters). One thread's counts of one bucket lie in
// one block, with those that every call moves in front.
class BucketMetrics {
  static constexpr std::size_t kCausesAt = kBucketEvents + kRequestOutcomes;
  static constexpr std::size_t kWaitAt = kCausesAt + kRefusalCauses;
  static constexpr std::size_t kLatenessAt = kWaitAt + Histogram::Words(std::size(kWaitBounds));

 public:
  // How many counters every bucket has, whatever its limits; they come first.
  static constexpr std::size_t kFixed = kLatenessAt + Histogram::Words(std::size(kLatenessBounds));
  static constexpr Histogram kWait{kWaitBounds, kWaitAt};
  static constexpr Histogram kLateness{kLatenessBounds, kLatenessAt};

  // `limits` and `resources` say how many the bucket has, or can come to have.
  BucketMetrics(std::size_t limits, std::size_t resources)
      : limits_(limits),
        resources_(resources),
        counters_(kFixed + kUnitEvents * resources + limits) {}

  std::size_t limits() const { return limits_; }
  std::size_t resources() const { return resources_; }

  void Count(RequestOutcome outcome) { counters_.Add(OutcomeAt(outcome)); }
  void Count(BucketEvent event) { counters_.Add(EventAt(event)); }
  void Count(RefusalCause cause) { counters_.Add(CauseAt(cause)); }
  // An admission was denied, and this limit was the one that bound.
  void CountDenial(std::size_t limit) {
    assert(limit < limits_);
    if (limit < limits_) counters_.Add(DenialsAt(limit));
  }
  void CountUnits(UnitEvent event, std::size_t resource, std::int64_t units) {
    assert(resource < resources_);
    if (units > 0 && resource < resources_)
      counters_.Add(UnitsAt(event, resource), static_cast<std::uint64_t>(units));
  }
  // From submission to admission.
  void ObserveWait(Nanos wait) { kWait.Observe(counters_, wait); }
  // From an admission until whoever has waited for it goes on.
  void ObserveLateness(Nanos lateness) { kLateness.Observe(counters_, lateness); }

  // How many requests have ended.
  std::uint64_t Requests() const;
  // All counters; the functions below say where each is.
  std::vector<std::uint64_t> Values() const { return counters_.Values(); }

  std::size_t UnitsAt(UnitEvent event, std::size_t resource) const {
    return kFixed + kUnitEvents * resource + static_cast<std::size_t>(event);
  }
  std::size_t DenialsAt(std::size_t limit) const {
    return kFixed + kUnitEvents * resources_ + limit;
  }
  static constexpr std::size_t EventAt(BucketEvent event) {
    return static_cast<std::size_t>(event);
  }
  static constexpr std::size_t OutcomeAt(RequestOutcome outcome) {
    return kBucketEvents + static_cast<std::size_t>(outcome);
  }
  static constexpr std::size_t CauseAt(RefusalCause cause) {
    return kCausesAt + static_cast<std::size_t>(cause);
  }

 private:
  const std::size_t limits_;
  const std::size_t resources_;
  Counters counters_;
};

// Whose code raised an exception that the scheduler had to stand.
enum class UserCode : std::uint8_t {
  kProvider,
  kClassifier,
  kCallback,
  kBackend,
  kStrategy,
};
inline constexpr std::size_t kUserCodes = 5;
absl::string_view UserCodeName(UserCode code);

// Those exceptions, for a whole scheduler. Thread-safe.
class UserCodeErrors {
 public:
  void Count(UserCode code) { counters_.Add(static_cast<std::size_t>(code)); }
  std::vector<std::uint64_t> Values() const { return counters_.Values(); }

 private:
  Counters counters_{kUserCodes};
};

}  // namespace headway

#endif  // HEADWAY_METRICS_BUCKET_METRICS_H_
