// headway/bucket/bucket_benchmark.cc: what a reservation costs, beside the atomics alone.
#include "headway/bucket/bucket.h"

#include <malloc.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <fstream>
#include <vector>

#include "benchmark/benchmark.h"

namespace headway {
namespace {

constexpr Nanos kStart = 1'000 * kSecond;
constexpr std::int64_t kReserved = 10;  // tokens
constexpr std::int64_t kUsed = 6;

// Two `bucket` limits that 10^10 calls do not empty, so that nothing is ever refused.
Bucket* MakeBucket() {
  const std::array<Limit, 2> limits = {
      Limit::Parse("1_000_000 requests/s bucket burst 100_000_000_000").value(),
      Limit::Parse("1_000_000 tokens/s bucket burst 100_000_000_000").value()};
  const std::array<std::uint8_t, 2> resources = {0, 1};
  return Bucket::Make(limits, resources, 0, nullptr);
}

// One call's life: both limits are reserved, and it is settled with fewer tokens than estimated.
void Call(Bucket& bucket, Nanos now, benchmark::State& state) {
  const std::array<std::int64_t, 2> wanted = {1, kReserved};
  const std::array<std::int64_t, 2> used = {1, kUsed};
  Reservation reservation;
  if (bucket.TryReserve(now, wanted, /*privileged=*/false, reservation)) {
    state.SkipWithError("refused");
    return;
  }
  reservation.Settle(now, used);
}

// Every atomic read-modify-write that one such call executes, in its order, on words laid out as
// the meters' are:
//   TryReserve  take: a compare-and-swap on each meter's word                       2
//   Settle      answered and ended: an exchange of the reservation's state          1
//               refund: a compare-and-swap on the word of the tokens                1
struct Words {
  struct Slot {
    std::atomic<std::uint64_t> word{0};
    std::array<char, sizeof(Meter)> rest{};  // the next word is as far away as the next meter's
  };
  std::array<Slot, 2> slots;
};

void Swap(std::atomic<std::uint64_t>& word, std::uint64_t add) {
  std::uint64_t bits = word.load(std::memory_order_acquire);
  while (!word.compare_exchange_weak(bits, bits + add)) {
  }
}

void Floor(Words& words) {
  std::atomic<std::uint8_t> state{0};
  Swap(words.slots[0].word, 16);
  Swap(words.slots[1].word, 160);
  benchmark::DoNotOptimize(state.exchange(7));
  Swap(words.slots[1].word, std::uint64_t{0} - 64);
}

// The same where two threads meet: on a meter's word the cheapest that can be is a fetch_add.
void ContendedFloor(Words& words) {
  std::atomic<std::uint8_t> state{0};
  words.slots[0].word.fetch_add(16);
  words.slots[1].word.fetch_add(160);
  benchmark::DoNotOptimize(state.exchange(7));
  words.slots[1].word.fetch_sub(64);
}

void BM_Reserve(benchmark::State& state) {
  Bucket* bucket = MakeBucket();
  Nanos now = kStart;
  for (auto _ : state) Call(*bucket, now += kMicrosecond, state);
  bucket->Unref();
}
BENCHMARK(BM_Reserve);

void BM_ReserveFloor(benchmark::State& state) {
  Words words;
  for (auto _ : state) Floor(words);
}
BENCHMARK(BM_ReserveFloor);

void BM_Contended(benchmark::State& state) {
  static Bucket* const bucket = MakeBucket();
  Nanos now = kStart;
  for (auto _ : state) Call(*bucket, now += kMicrosecond, state);
}
BENCHMARK(BM_Contended)->Threads(2)->UseRealTime();

void BM_ContendedFloor(benchmark::State& state) {
  static Words words;
  for (auto _ : state) ContendedFloor(words);
}
BENCHMARK(BM_ContendedFloor)->Threads(2)->UseRealTime();

// What the process has in memory, and what the allocator has given out.
struct Bytes {
  double resident = 0;
  double allocated = 0;

  static Bytes Now() {
    std::ifstream statm("/proc/self/statm");
    std::int64_t size = 0;
    std::int64_t resident = 0;
    statm >> size >> resident;
    const struct mallinfo2 info = mallinfo2();
    return {static_cast<double>(resident * sysconf(_SC_PAGESIZE)),
            static_cast<double>(info.uordblks + info.hblkhd)};
  }
};

// Many buckets of two limits, each used once, and then again.
void BM_IdleBuckets(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  std::vector<Bucket*> buckets(count);
  for (auto _ : state) {
    const Bytes before = Bytes::Now();
    for (Bucket*& bucket : buckets) {
      bucket = MakeBucket();
      Call(*bucket, kStart, state);
    }
    const Bytes used = Bytes::Now();
    for (Bucket* bucket : buckets) Call(*bucket, kStart + kSecond, state);
    const Bytes again = Bytes::Now();
    const auto n = static_cast<double>(count);
    state.counters["resident"] = (used.resident - before.resident) / n;
    state.counters["allocated"] = (used.allocated - before.allocated) / n;
    state.counters["resident_growth"] = (again.resident - used.resident) / n;
    state.counters["allocated_growth"] = (again.allocated - used.allocated) / n;
    for (Bucket* bucket : buckets) bucket->Unref();
  }
}
BENCHMARK(BM_IdleBuckets)->Arg(1'000'000)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace headway
