// headway/metrics/counter.cc: the blocks of a set of counters, made and read.
#include "headway/metrics/counter.h"

#include <bit>
#include <memory>
#include <new>
#include <utility>

#include "headway/base/cache_line.h"
#include "headway/base/pause.h"

namespace headway {
namespace {

// Which shards belong to a thread, by bit.
constinit std::atomic<unsigned> owned{0};

// Gives a thread's shard back as the thread ends. What is counted even later (by destructors of
// other objects of the thread) is counted in the shared one.
struct Lease {
  ~Lease() {
    const unsigned shard = std::exchange(thread_shard, kShared);
    if (shard < kShared) owned.fetch_and(~(1U << shard), std::memory_order_release);
  }
};

}  // namespace

constinit thread_local unsigned thread_shard = kNoShard;

unsigned DealShard() {
  // The lowest that is free, so that as few blocks are made as there are threads at once.
  unsigned seen = owned.load(std::memory_order_relaxed);
  for (;;) {
    const auto free = static_cast<unsigned>(std::countr_one(seen));
    if (free >= kShared) return thread_shard = kShared;
    HEADWAY_PAUSE();
    if (owned.compare_exchange_weak(seen, seen | (1U << free), std::memory_order_acquire,
                                    std::memory_order_relaxed)) {
      thread_local const Lease lease;
      static_cast<void>(lease);
      return thread_shard = free;
    }
  }
}

void FreeShardsAfterForkInChild() {
  owned.store(thread_shard < kShared ? 1U << thread_shard : 0U, std::memory_order_relaxed);
}

Counters::~Counters() {
  // An atomic word has no destructor that does anything.
  for (const std::atomic<Word*>& shard : shards_)
    ::operator delete (shard.load(std::memory_order_relaxed), std::align_val_t{kCacheLine});
}

Counters::Word* Counters::MakeShard(unsigned shard) {
  // Whole lines: nobody else's data shares the last one.
  const std::size_t bytes = (size_ * sizeof(Word) + kCacheLine - 1) / kCacheLine * kCacheLine;
  auto* made = static_cast<Word*>(::operator new (bytes, std::align_val_t{kCacheLine}));
  std::uninitialized_value_construct_n(made, size_);
  HEADWAY_PAUSE();
  Word* there = nullptr;
  if (shards_[shard].compare_exchange_strong(there, made, std::memory_order_acq_rel,
                                             std::memory_order_acquire))
    return made;
  // Another thread of this shard was first.
  ::operator delete (made, std::align_val_t{kCacheLine});
  return there;
}

std::uint64_t Counters::Value(std::size_t index) const {
  std::uint64_t sum = 0;
  for (const std::atomic<Word*>& shard : shards_)
    if (const Word* words = shard.load(std::memory_order_acquire))
      sum += words[index].load(std::memory_order_relaxed);
  return sum;
}

void Counters::AddTo(absl::Span<std::uint64_t> sums) const {
  for (const std::atomic<Word*>& shard : shards_)
    if (const Word* words = shard.load(std::memory_order_acquire))
      for (std::size_t i = 0; i < size_; ++i) sums[i] += words[i].load(std::memory_order_relaxed);
}

std::vector<std::uint64_t> Counters::Values() const {
  std::vector<std::uint64_t> values(size_);
  AddTo(absl::MakeSpan(values));
  return values;
}

std::size_t Counters::shards() const {
  std::size_t made = 0;
  for (const std::atomic<Word*>& shard : shards_)
    made += shard.load(std::memory_order_acquire) != nullptr ? 1 : 0;
  return made;
}

}  // namespace headway
