// headway/bucket/history.cc: the marks of what was admitted.
#include "headway/bucket/history.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace headway {

void History::MakeMark(Nanos now, absl::Span<const std::int64_t> own) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) {
    missed_.store(~std::uint32_t{0});
    return;
  }
  // Threads do not agree about the time to the microsecond.
  if (!at_.empty() && now < at_.back() + kGrain) return;
  if (at_.size() == kMost) Thin(now);
  const std::size_t last = then_.size();
  // Whoever has said so before is in the totals, which are read only now...
  std::uint32_t missed = missed_.exchange(0);
  for (std::size_t i = 0; i < resources_; ++i) {
    before_.push_back(SurelyBegun(i));
    then_.push_back(totals_[i].load());
    own_.push_back(i < own.size() ? own[i] : 0);
  }
  // ... and who says so meanwhile does before he is not expected any more; he may not be in them,
  // so that holds for the next mark as well.
  missed |= missed_.load();
  for (std::size_t i = 0; i < resources_; ++i)
    if ((missed & Bit(i)) != 0 || own.empty() || at_.empty())
      before_[last + i] = at_.empty() ? 0 : then_[last - resources_ + i];
  at_.push_back(now);
  marked_.store(now, std::memory_order_relaxed);
}

// All but those who may not have looked yet whether a mark is due. Memory ordering: who is not
// among them has said, by the time that this is read, whether a mark is missing.
std::int64_t History::SurelyBegun(std::size_t resource) const {
  const std::int64_t total = Total(resource);
  return total - unbegun_[resource].load();
}

// Leaves out each mark that the one kept before it and the one after it make needless; at least
// one, the oldest if need be.
void History::Thin(Nanos now) {
  std::size_t kept = 1;
  bool follows = true;  // the mark before it was kept
  for (std::size_t i = 1; i < at_.size(); ++i) {
    const bool last = i + 1 == at_.size();
    if (!last && at_[i + 1] - at_[kept - 1] < (now - at_[i + 1]) / kPerAge) {
      follows = false;
      continue;
    }
    // It comes after another mark than before, and kGrain after that one less had begun.
    if (!std::exchange(follows, true))
      for (std::size_t r = 0; r < resources_; ++r)
        before_[i * resources_ + r] = then_[(kept - 1) * resources_ + r];
    at_[kept] = at_[i];
    for (std::vector<std::int64_t>* each : {&then_, &own_, &before_})
      std::copy_n(each->begin() + static_cast<std::ptrdiff_t>(i * resources_), resources_,
                  each->begin() + static_cast<std::ptrdiff_t>(kept * resources_));
    ++kept;
  }
  const std::size_t oldest = kept == at_.size() ? 1 : 0;
  whole_ = whole_ && oldest == 0;
  at_.resize(kept);
  at_.erase(at_.begin(), at_.begin() + static_cast<std::ptrdiff_t>(oldest));
  for (std::vector<std::int64_t>* each : {&then_, &own_, &before_}) {
    each->resize(kept * resources_);
    each->erase(each->begin(), each->begin() + static_cast<std::ptrdiff_t>(oldest * resources_));
  }
}

std::int64_t History::AtMost(std::size_t resource, Nanos at) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto later = std::lower_bound(at_.begin(), at_.end(), at);
  if (later == at_.end()) return Total(resource);
  if (later == at_.begin() && *later > at && whole_) return 0;  // it is the first call of all
  return then_[static_cast<std::size_t>(later - at_.begin()) * resources_ + resource];
}

std::int64_t History::AtLeast(std::size_t resource, Nanos at) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto later = std::upper_bound(at_.begin(), at_.end(), at);
  if (later == at_.begin()) return 0;
  const auto next = static_cast<std::size_t>(later - at_.begin());
  const std::int64_t marked = then_[(next - 1) * resources_ + resource];
  if (at < at_[next - 1] + kGrain) return marked;
  if (later != at_.end()) return std::max(marked, before_[next * resources_ + resource]);
  HEADWAY_PAUSE();
  const std::int64_t begun = SurelyBegun(resource);
  HEADWAY_PAUSE();
  return (missed_.load() & Bit(resource)) != 0 ? marked : std::max(marked, begun);
}

std::int64_t History::Since(std::size_t resource, Nanos from) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto first = std::lower_bound(at_.begin(), at_.end(), from);
  if (first == at_.end()) return 0;
  if (first == at_.begin() && whole_) return Total(resource);
  const std::size_t at = static_cast<std::size_t>(first - at_.begin()) * resources_ + resource;
  return Total(resource) - (then_[at] - own_[at]);
}

std::int64_t History::Owed(std::size_t resource, std::int64_t amount, Nanos period,
                           Nanos now) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (at_.empty()) return Total(resource);
  const double pace = static_cast<double>(amount) / static_cast<double>(period);
  std::int64_t counted = whole_ ? 0 : then_[resource];  // what was before that is long paid for
  double owed = 0;
  Nanos last = at_.front();
  // `more` has begun since `last`.
  const auto pass = [&](Nanos to, std::int64_t more) {
    owed += static_cast<double>(more);
    owed = std::max(0.0, owed - pace * static_cast<double>(std::max<Nanos>(0, to - last)));
    last = std::max(last, to);
  };
  for (std::size_t i = 0; i < at_.size(); ++i) {
    const std::size_t at = i * resources_ + resource;
    const std::int64_t own = std::min(own_[at], then_[at] - counted);
    pass(at_[i], then_[at] - own - counted);
    owed += static_cast<double>(own);
    counted = then_[at];
  }
  pass(now, Total(resource) - counted);
  return static_cast<std::int64_t>(std::ceil(owed - 1e-6));
}

}  // namespace headway
