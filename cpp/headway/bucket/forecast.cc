// headway/bucket/forecast.cc: requests that stand in line, on paper.
#include "headway/bucket/forecast.h"

#include <algorithm>

namespace headway {

Forecast::One& Forecast::Of(Bucket& bucket, bool answered) {
  if (ones_.size() <= kFew) {
    for (One& one : ones_)
      if (one.bucket == &bucket) return one;
  } else if (const auto found = places_.find(&bucket); found != places_.end()) {
    return ones_[found->second];
  }
  One& one = ones_.emplace_back(One{&bucket, bucket.NotBefore(now_, answered), {}});
  for (int i = 0; i < bucket.size(); ++i)
    one.meters.emplace_back(Resources{1} << bucket.resource(i),
                            MeterForecast(bucket.meter(i), now_, answered));
  bucket.SignalIfOwed();
  if (ones_.size() > kFew)
    for (std::size_t i = places_.size(); i < ones_.size(); ++i) places_[ones_[i].bucket] = i;
  return one;
}

Nanos Forecast::Counted::Earliest(Resources asks, Nanos from, std::int64_t amount) const {
  if (!IsBehindAll(asks)) {
    const Nanos at = passing.front().Earliest(from, amount);
    if (at <= until) return at;
  }
  return all.Earliest(from, amount);
}

void Forecast::Counted::Take(const Turn& turn, std::int64_t amount) {
  const bool behind_all = IsBehindAll(turn.asks);
  const Nanos last = behind_all ? all.last() : passing.front().last();
  if ((turn.bound & ~own) != 0) {
    Pass(turn.bound, kNever);
  } else if (turn.bound != 0 && (turn.others_until > last || (behind_all && !passing.empty()))) {
    Pass(turn.others, turn.others_until);
  } else if (!passing.empty()) {
    passing.front().Take(turn.at, amount);
  }
  all.Take(turn.at, amount);
}

// Who is going to be added is passed by those who do not ask for these, until then.
void Forecast::Counted::Pass(Resources others, Nanos others_until) {
  if (passing.empty()) passing.push_back(all);
  behind |= others;
  until = std::min(until, others_until);
}

Denial Forecast::Earliest(const Bucket& bucket, const One& one, Resources asks,
                          absl::Span<const std::int64_t> amounts) {
  Denial found = one.start;
  for (std::size_t i = 0; i < one.meters.size(); ++i) {
    const std::int64_t amount = bucket.amount(static_cast<int>(i), amounts);
    if (amount == 0) continue;
    const Nanos at = one.meters[i].Earliest(asks, found.ready_at, amount);
    if (at > found.ready_at) found = Denial{static_cast<int>(i), at};
  }
  return found;
}

void Forecast::Take(const Bucket& bucket, One& one, Resources asks, const Refusal& found,
                    absl::Span<const std::int64_t> amounts) {
  const Denial& denial = found.denial;
  Turn turn{denial.ready_at, asks, 0, 0, 0};
  if (denial.meter != Denial::kCooling && denial.ready_at > one.start.ready_at)
    turn.bound = found.by->Binding(denial);
  const auto of = [&](const Counted& counted) {
    return bucket.amount(static_cast<int>(&counted - one.meters.data()), amounts);
  };
  // It is not its turn before those in front of it are gone, whatever else they wait for.
  for (const Counted& other : one.meters) {
    if (of(other) == 0 || other.own == turn.bound || other.all.last() < turn.others_until) continue;
    turn.others = other.own | (other.all.last() > turn.others_until ? 0 : turn.others);
    turn.others_until = other.all.last();
  }
  for (Counted& counted : one.meters)
    if (const std::int64_t amount = of(counted); amount != 0) counted.Take(turn, amount);
}

Refusal Forecast::Add(Bucket& bucket, Bucket* limits, absl::Span<const std::int64_t> amounts) {
  const Resources asks = Asks(amounts);
  if (limits != nullptr) Of(*limits, /*answered=*/true);  // else it may move the other
  One& theirs = Of(bucket, /*answered=*/false);
  Refusal found{Earliest(bucket, theirs, asks, amounts), &bucket};
  if (limits != nullptr) {
    One& own = Of(*limits, /*answered=*/true);
    const Denial its = Earliest(*limits, own, asks, amounts);
    if (its.ready_at > found.denial.ready_at) found = Refusal{its, limits};
    if (!found.denial.never()) Take(*limits, own, asks, found, amounts);
  }
  if (found.by == &bucket && !found.denial.never()) Take(bucket, theirs, asks, found, amounts);
  return found;
}

}  // namespace headway
