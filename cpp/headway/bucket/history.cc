// headway/bucket/history.cc: the marks of what was admitted.
#include "headway/bucket/history.h"

#include <algorithm>
#include <cmath>

namespace headway {

void History::MakeMark(Nanos now) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return;
  // Threads do not agree about the time to the microsecond.
  if (!at_.empty() && now < at_.back() + kGrain) return;
  if (at_.size() == kMost) Thin(now);
  at_.push_back(now);
  for (std::size_t i = 0; i < resources_; ++i) then_.push_back(totals_[i].load());
  marked_.store(now, std::memory_order_relaxed);
}

// Leaves out each mark that the one kept before it and the one after it make needless; at least
// one, the oldest if need be.
void History::Thin(Nanos now) {
  std::size_t kept = 1;
  for (std::size_t i = 1; i < at_.size(); ++i) {
    const bool last = i + 1 == at_.size();
    if (!last && at_[i + 1] - at_[kept - 1] < (now - at_[i + 1]) / kPerAge) continue;
    at_[kept] = at_[i];
    std::copy_n(then_.begin() + static_cast<std::ptrdiff_t>(i * resources_), resources_,
                then_.begin() + static_cast<std::ptrdiff_t>(kept * resources_));
    ++kept;
  }
  const std::size_t oldest = kept == at_.size() ? 1 : 0;
  whole_ = whole_ && oldest == 0;
  at_.resize(kept);
  then_.resize(kept * resources_);
  at_.erase(at_.begin(), at_.begin() + static_cast<std::ptrdiff_t>(oldest));
  then_.erase(then_.begin(), then_.begin() + static_cast<std::ptrdiff_t>(oldest * resources_));
}

std::int64_t History::AtMost(std::size_t resource, Nanos at) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto later = std::lower_bound(at_.begin(), at_.end(), at);
  if (later == at_.end()) return Total(resource);
  if (later == at_.begin() && *later > at && whole_) return 0;  // it is the first call of all
  return then_[static_cast<std::size_t>(later - at_.begin()) * resources_ + resource];
}

Nanos History::FirstSince(Nanos at) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto first = std::lower_bound(at_.begin(), at_.end(), at);
  return first == at_.end() ? kNever : *first;
}

std::int64_t History::AtLeast(std::size_t resource, Nanos at) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto later = std::upper_bound(at_.begin(), at_.end(), at);
  if (later == at_.begin()) return 0;
  return then_[static_cast<std::size_t>(later - at_.begin() - 1) * resources_ + resource];
}

std::int64_t History::Owed(std::size_t resource, std::int64_t amount, Nanos period,
                           Nanos now) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const double pace = static_cast<double>(amount) / static_cast<double>(period);
  double owed = 0;
  std::int64_t counted = 0;
  Nanos last = at_.empty() ? now : at_.front();
  const auto add = [&](Nanos at, std::int64_t total) {
    owed = std::max(0.0, owed - pace * static_cast<double>(std::max<Nanos>(0, at - last)));
    owed += static_cast<double>(total - counted);
    counted = total;
    last = at;
  };
  for (std::size_t i = 0; i < at_.size(); ++i) add(at_[i], then_[i * resources_ + resource]);
  add(std::max(last, now), Total(resource));
  return static_cast<std::int64_t>(std::ceil(owed - 1e-6));
}

}  // namespace headway
