// headway/schedule/bucket_queue.h: who waits on one bucket, in the order in which they may go.
#ifndef HEADWAY_SCHEDULE_BUCKET_QUEUE_H_
#define HEADWAY_SCHEDULE_BUCKET_QUEUE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "headway/schedule/waiter.h"

namespace headway {

// Waits of one priority that ask the same resources: first in, first out. (Accounts will stand
// between this and the waits: a class is where they share.)
class ClassQueue {
 public:
  ClassQueue(std::int32_t priority, std::uint32_t asks, std::size_t resources)
      : priority_(priority), asks_(asks), ahead_(resources) {}

  void Append(Waiter* w);
  void Unlink(Waiter* w);

  Waiter* head() const { return head_; }
  std::int32_t priority() const { return priority_; }
  std::uint32_t asks() const { return asks_; }
  // The sum of what waits, by resource.
  absl::Span<const std::int64_t> queued() const { return ahead_; }

  // The head's priority with ageing: one step for each `ageing` that it has waited.
  std::int64_t Effective(Nanos now, Nanos ageing) const {
    return priority_ + (now - head_->submitted_) / ageing;
  }
  // Resources of the meters that have bound the head so far, as bits. What has bound it once stays
  // reserved for it: else those who ask only one of two could take turns for ever.
  std::uint32_t held = 0;

  // When the head's priority makes its next step.
  Nanos NextStep(Nanos now, Nanos ageing) const {
    return head_->submitted_ + ((now - head_->submitted_) / ageing + 1) * ageing;
  }

 private:
  const std::int32_t priority_;
  const std::uint32_t asks_;  // bit by resource
  Waiter* head_ = nullptr;
  Waiter* tail_ = nullptr;
  absl::InlinedVector<std::int64_t, 2> ahead_;
};

// All that waits on one bucket. Not thread-safe: the scheduler's lock guards it.
class BucketQueue {
 public:
  explicit BucketQueue(Bucket* bucket) : bucket_(bucket) { bucket_->Ref(); }
  ~BucketQueue() { bucket_->Unref(); }
  BucketQueue(const BucketQueue&) = delete;
  BucketQueue& operator=(const BucketQueue&) = delete;

  Bucket* bucket() const { return bucket_; }
  std::size_t depth() const { return depth_; }

  void Append(Waiter* w);
  void Unlink(Waiter* w);

  // The classes that have somebody in them, the one that may go first in front: by effective
  // priority, then by who was taken in first.
  absl::Span<ClassQueue* const> Ordered(Nanos now, Nanos ageing);

  // By resource, what waits in front of a newcomer of this priority.
  absl::InlinedVector<std::int64_t, 4> Ahead(std::int32_t priority, std::size_t resources) const;

  Nanos wake_at = kNever;  // the timer that is set for this bucket
  bool dirty = false;      // something may be admissible

 private:
  ClassQueue& ClassOf(const Waiter& w);

  Bucket* const bucket_;
  std::size_t depth_ = 0;
  std::vector<std::unique_ptr<ClassQueue>> classes_;
  std::vector<ClassQueue*> order_;
};

// Bit by resource, where something is asked.
std::uint32_t Asks(absl::Span<const std::int64_t> amounts);

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_BUCKET_QUEUE_H_
