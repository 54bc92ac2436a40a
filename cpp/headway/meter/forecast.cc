// headway/meter/forecast.cc: each shape on paper.
#include "headway/meter/forecast.h"

#include <algorithm>

#include "headway/meter/bucket_meter.h"
#include "headway/meter/cell_meter.h"

namespace headway {

MeterForecast::MeterForecast(Meter& meter, Nanos now, bool answered)
    : shape_(meter.shape()), last_(now) {
  switch (shape_) {
    case Shape::kBucket:
      BucketMeter::Foresee(meter, now, answered, *this);
      break;
    case Shape::kConcurrency:
    case Shape::kCredit:
      p_ = meter.parameters();
      used_ = Word{meter.bits()}.value();
      break;
    default:
      CellMeter::Foresee(meter, now, *this);
      break;
  }
}

Nanos MeterForecast::Earliest(Nanos from, std::int64_t amount) const {
  from = std::max(from, last_);
  if (amount == 0) return from;
  if (shape_ == Shape::kBucket) {
    const Nanos increment = p_.Increment(amount);
    if (increment > p_.tolerance) return kNever;
    if (from >= kUntold || IsFull(from)) return from;
    const Nanos counts_from = std::max(from - guard_, std::min(began_, from));
    const Nanos paid_by = word_ - (p_.tolerance - increment);
    return paid_by <= counts_from ? from : std::min(kUntold - 1 - guard_, paid_by) + guard_;
  }
  if (amount > p_.amount) return kNever;
  std::int64_t over = used_ - (p_.amount - amount);
  Nanos at = from;
  for (const Leaving& next : leaving_) {
    if (next.leaves > at && over <= 0) break;
    over -= next.amount;
    at = std::max(at, next.leaves);
  }
  return over > 0 ? kUntold : at;
}

void MeterForecast::Take(Nanos at, std::int64_t amount) {
  if (amount == 0) return;
  last_ = std::max(last_, std::min(at, kUntold));
  if (last_ >= kUntold) return;
  if (shape_ == Shape::kBucket) {
    if (IsFull(at)) began_ = at;
    word_ = std::max(word_, at);
    word_ += std::min(p_.Increment(amount), kUntold - word_);
    return;
  }
  used_ += amount;
  if (shape_ == Shape::kConcurrency || shape_ == Shape::kCredit) return;
  auto gone = leaving_.begin();
  for (; gone != leaving_.end() && gone->leaves <= at; ++gone) used_ -= gone->amount;
  leaving_.erase(leaving_.begin(), gone);
  const Nanos leaves = CellMeter::Leaves(shape_, p_, at);
  // By the time that this has left, the others will have, too: nobody knows when that is.
  if (leaves >= kUntold || stuck_) return;
  if (!leaving_.empty()) {
    // As the meter closes its cells (CellMeter::WantsClose).
    Leaving& open = leaving_.back();
    const bool joins = open.open_since != kNever && at >= open.open_since &&
                       at - open.open_since < p_.period / Cells::kSplit &&
                       !Cells::Full(open.amount, p_.amount) &&
                       (shape_ == Shape::kWindow || open.leaves == leaves);
    if (joins) {
      open.leaves = leaves;
      open.amount += amount;
      return;
    }
  }
  Leave(leaves, at, amount);
}

void MeterForecast::Leave(Nanos leaves, Nanos open_since, std::int64_t amount) {
  const auto behind =
      std::upper_bound(leaving_.begin(), leaving_.end(), leaves,
                       [](Nanos one, const Leaving& other) { return one < other.leaves; });
  leaving_.insert(behind, {leaves, open_since, amount});
}

}  // namespace headway
