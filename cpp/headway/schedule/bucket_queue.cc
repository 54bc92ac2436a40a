// headway/schedule/bucket_queue.cc: order among those who wait.
#include "headway/schedule/bucket_queue.h"

#include <algorithm>

namespace headway {

std::uint32_t Asks(absl::Span<const std::int64_t> amounts) {
  std::uint32_t asks = 0;
  for (std::size_t i = 0; i < amounts.size(); ++i)
    if (amounts[i] > 0) asks |= std::uint32_t{1} << i;
  return asks;
}

void ClassQueue::Append(Waiter* w) {
  w->previous_ = tail_;
  w->next_ = nullptr;
  (tail_ != nullptr ? tail_->next_ : head_) = w;
  tail_ = w;
  w->queued_ = true;
  for (std::size_t i = 0; i < ahead_.size(); ++i) ahead_[i] += w->amounts_[i];
}

void ClassQueue::Unlink(Waiter* w) {
  if (w == head_) held = 0;
  (w->previous_ != nullptr ? w->previous_->next_ : head_) = w->next_;
  (w->next_ != nullptr ? w->next_->previous_ : tail_) = w->previous_;
  w->queued_ = false;
  for (std::size_t i = 0; i < ahead_.size(); ++i) ahead_[i] -= w->amounts_[i];
}

ClassQueue& BucketQueue::ClassOf(const Waiter& w) {
  const std::uint32_t asks = Asks(w.amounts_);
  for (const auto& c : classes_)
    if (c->priority() == w.priority_ && c->asks() == asks) return *c;
  classes_.push_back(std::make_unique<ClassQueue>(w.priority_, asks, w.amounts_.size()));
  return *classes_.back();
}

void BucketQueue::Append(Waiter* w) {
  ClassOf(*w).Append(w);
  ++depth_;
}

void BucketQueue::Unlink(Waiter* w) {
  ClassOf(*w).Unlink(w);
  --depth_;
}

absl::Span<ClassQueue* const> BucketQueue::Ordered(Nanos now, Nanos ageing) {
  // Priorities that came once and are gone would otherwise stay for ever.
  classes_.erase(std::remove_if(classes_.begin(), classes_.end(),
                                [](const auto& c) { return c->head() == nullptr; }),
                 classes_.end());
  order_.clear();
  for (const auto& c : classes_) order_.push_back(c.get());
  std::sort(order_.begin(), order_.end(), [=](const ClassQueue* a, const ClassQueue* b) {
    const std::int64_t ea = a->Effective(now, ageing);
    const std::int64_t eb = b->Effective(now, ageing);
    return ea != eb ? ea > eb : a->head()->sequence_ < b->head()->sequence_;
  });
  return order_;
}

absl::InlinedVector<std::int64_t, 4> BucketQueue::Ahead(std::int32_t priority,
                                                        std::size_t resources) const {
  absl::InlinedVector<std::int64_t, 4> sum(resources);
  for (const auto& c : classes_)
    if (c->priority() >= priority)
      for (std::size_t i = 0; i < resources; ++i) sum[i] += c->queued()[i];
  return sum;
}

}  // namespace headway
