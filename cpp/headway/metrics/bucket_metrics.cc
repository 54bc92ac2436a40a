// headway/metrics/bucket_metrics.cc: names, and the number by which buckets are compared.
#include "headway/metrics/bucket_metrics.h"

namespace headway {

absl::string_view RequestOutcomeName(RequestOutcome outcome) {
  switch (outcome) {
    case RequestOutcome::kSucceeded:
      return "succeeded";
    case RequestOutcome::kFailed:
      return "failed";
    case RequestOutcome::kTimedOut:
      return "timed_out";
    case RequestOutcome::kCancelled:
      return "cancelled";
    case RequestOutcome::kOverflowed:
      return "overflowed";
    case RequestOutcome::kDropped:
      return "dropped";
    case RequestOutcome::kDeadline:
      return "deadline";
    case RequestOutcome::kNeverFits:
      return "never_fits";
    case RequestOutcome::kBreaker:
      return "breaker";
    case RequestOutcome::kStopped:
      return "stopped";
  }
  return "unknown";
}

absl::string_view RefusalCauseName(RefusalCause cause) {
  switch (cause) {
    case RefusalCause::kOurs:
      return "ours";
    case RefusalCause::kCapacity:
      return "capacity";
    case RefusalCause::kChanged:
      return "changed";
    case RefusalCause::kAnotherConsumer:
      return "another consumer";
    case RefusalCause::kUnknown:
      return "unknown";
  }
  return "";
}

absl::string_view UserCodeName(UserCode code) {
  switch (code) {
    case UserCode::kProvider:
      return "provider";
    case UserCode::kClassifier:
      return "classifier";
    case UserCode::kCallback:
      return "callback";
    case UserCode::kBackend:
      return "backend";
    case UserCode::kStrategy:
      return "strategy";
  }
  return "unknown";
}

std::uint64_t BucketMetrics::Requests() const {
  std::uint64_t requests = 0;
  for (std::size_t outcome = 0; outcome < kRequestOutcomes; ++outcome)
    requests += counters_.Value(OutcomeAt(static_cast<RequestOutcome>(outcome)));
  return requests;
}

}  // namespace headway
