// headway/metrics/counter.h: counters that many threads move and few read.
#ifndef HEADWAY_METRICS_COUNTER_H_
#define HEADWAY_METRICS_COUNTER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace headway {

// Which of the shards the calling thread counts in, from 0 to kShards - 1. All but the last belong
// to one thread at a time, from its first count until it ends; threads that find none free count in
// the last. So up to kShards - 1 of them never meet. constinit, for the reason that pause.h gives.
inline constexpr unsigned kShards = 8;
inline constexpr unsigned kShared = kShards - 1;
inline constexpr unsigned kNoShard = kShards;
extern constinit thread_local unsigned thread_shard;
unsigned DealShard();
inline unsigned ThisShard() { return thread_shard != kNoShard ? thread_shard : DealShard(); }
// In a forked child, what belonged to threads of the parent is free again.
void FreeShardsAfterForkInChild();

// A set of counters that are counted together, numbered from 0. They only ever go up.
//
// Each shard is one block with a word for every counter, on cache lines of its own: threads do not
// take lines from each other, and what one event counts lies side by side. (A padded array for each
// counter would be as fast and take a cache line for every counter and thread.) A block is made
// when a thread first counts there, so a set that only one thread counts in has one block.
//
// Thread-safe, apart from the destructor. Add is lock-free; it allocates at a shard's first count
// and only then may throw std::bad_alloc.
//
// Memory ordering: counts are relaxed, nothing is published by them. What one reader reads never
// goes down, since each word only goes up; it is exact for whoever has synchronised with the
// writers (joined them, say). A block is published by a releasing compare-and-swap, so that whoever
// acquires its address sees it zeroed. A thread adds to a block of its own with a load and a store:
// a read-modify-write locks the line, which takes as long as all else that is done here. Whoever
// gets the shard of a thread that has ended has acquired what that one released.
class Counters {
 public:
  explicit Counters(std::size_t size) : size_(size) {}
  ~Counters();
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

  std::size_t size() const { return size_; }

  void Add(std::size_t index, std::uint64_t count = 1) {
    const unsigned shard = ThisShard();
    Word* words = shards_[shard].load(std::memory_order_acquire);
    if (words == nullptr) words = MakeShard(shard);
    Word& word = words[index];
    if (shard == kShared) {
      word.fetch_add(count, std::memory_order_relaxed);
    } else {
      word.store(word.load(std::memory_order_relaxed) + count, std::memory_order_relaxed);
    }
  }

  std::uint64_t Value(std::size_t index) const;
  // Adds each counter's value to the word of the same number in `sums`, which has size() of them.
  void AddTo(absl::Span<std::uint64_t> sums) const;
  std::vector<std::uint64_t> Values() const;

  // How many blocks there are.
  std::size_t shards() const;

 private:
  using Word = std::atomic<std::uint64_t>;

  Word* MakeShard(unsigned shard);

  const std::size_t size_;
  std::array<std::atomic<Word*>, kShards> shards_{};
};

}  // namespace headway

#endif  // HEADWAY_METRICS_COUNTER_H_
