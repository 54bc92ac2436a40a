// headway/bucket/recent_count.h: how often something has happened of late.
#ifndef HEADWAY_BUCKET_RECENT_COUNT_H_
#define HEADWAY_BUCKET_RECENT_COUNT_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "headway/base/clock.h"

namespace headway {

// Counts by the second, for the last kSeconds of them.
//
// Thread-safe and lock-free. Memory ordering: each second is one word, and nothing else follows
// from it. Who is late by more than kSeconds is not counted.
class RecentCount {
 public:
  static constexpr std::int64_t kSeconds = 128;

  void Add(Nanos now) {
    const std::uint64_t second = SecondOf(now);
    std::atomic<std::uint64_t>& slot = slots_[static_cast<std::size_t>(second % kSeconds)];
    std::uint64_t seen = slot.load(std::memory_order_relaxed);
    for (;;) {
      const std::uint64_t then = seen >> kBits;
      if (then > second) return;
      const std::uint64_t value = then == second ? seen + 1 : (second << kBits) + 1;
      if (slot.compare_exchange_weak(seen, value, std::memory_order_relaxed)) return;
    }
  }

  // How often from `from` to `to`, and in the rest of their seconds; of the last kSeconds at most.
  std::int64_t Between(Nanos from, Nanos to) const {
    const std::uint64_t last = SecondOf(to);
    const std::uint64_t first =
        std::max(SecondOf(from), last - std::min<std::uint64_t>(last, kSeconds - 1));
    std::int64_t count = 0;
    for (const std::atomic<std::uint64_t>& slot : slots_) {
      const std::uint64_t seen = slot.load(std::memory_order_relaxed);
      const std::uint64_t then = seen >> kBits;
      if (then >= first && then <= last) count += static_cast<std::int64_t>(seen & kMask);
    }
    return count;
  }

 private:
  static constexpr int kBits = 32;
  static constexpr std::uint64_t kMask = (std::uint64_t{1} << kBits) - 1;

  static std::uint64_t SecondOf(Nanos at) {
    return static_cast<std::uint64_t>(std::max<Nanos>(at, 0) / kSecond);
  }

  // The second, and how often in it.
  std::array<std::atomic<std::uint64_t>, static_cast<std::size_t>(kSeconds)> slots_{};
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_RECENT_COUNT_H_
