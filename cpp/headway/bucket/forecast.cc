// headway/bucket/forecast.cc: requests that stand in line, on paper.
#include "headway/bucket/forecast.h"

#include <algorithm>

namespace headway {

Forecast::One& Forecast::Of(Bucket& bucket, bool answered) {
  for (One& one : ones_)
    if (one.bucket == &bucket) return one;
  One& one = ones_.emplace_back(One{&bucket, bucket.NotBefore(now_, answered), {}});
  for (int i = 0; i < bucket.size(); ++i) one.meters.emplace_back(bucket.meter(i), now_, answered);
  bucket.SignalIfOwed();
  return one;
}

Denial Forecast::Earliest(const Bucket& bucket, const One& one,
                          absl::Span<const std::int64_t> amounts) {
  Denial found = one.start;
  for (std::size_t i = 0; i < one.meters.size(); ++i) {
    const std::int64_t amount = bucket.amount(static_cast<int>(i), amounts);
    const Nanos at = one.meters[i].Earliest(found.ready_at, amount);
    if (amount > 0 && at > found.ready_at) found = Denial{static_cast<int>(i), at};
  }
  return found;
}

void Forecast::Take(const Bucket& bucket, One& one, Nanos at,
                    absl::Span<const std::int64_t> amounts) {
  for (std::size_t i = 0; i < one.meters.size(); ++i)
    one.meters[i].Take(at, bucket.amount(static_cast<int>(i), amounts));
}

Refusal Forecast::Add(Bucket& bucket, Bucket* limits, absl::Span<const std::int64_t> amounts) {
  if (limits != nullptr) Of(*limits, /*answered=*/true);  // else it may move the other
  One& theirs = Of(bucket, /*answered=*/false);
  Refusal found{Earliest(bucket, theirs, amounts), &bucket};
  if (limits != nullptr) {
    One& own = Of(*limits, /*answered=*/true);
    const Denial its = Earliest(*limits, own, amounts);
    if (its.ready_at > found.denial.ready_at) found = Refusal{its, limits};
    if (!found.denial.never()) Take(*limits, own, found.denial.ready_at, amounts);
  }
  if (found.by == &bucket && !found.denial.never())
    Take(bucket, theirs, found.denial.ready_at, amounts);
  return found;
}

}  // namespace headway
