// headway/schedule/scheduler_benchmark.cc: what the core does for a wait, by how many wait.
#include "headway/schedule/scheduler.h"

#include <malloc.h>

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"

namespace headway {
namespace {

constexpr Nanos kStart = 1'000 * kSecond;

std::int64_t AllocatedBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<std::int64_t>(info.uordblks + info.hblkhd);
}

// What one round took, in nanoseconds a waiter, and its memory while all of them waited.
struct Round {
  double queue = 0;
  double admit = 0;
  double claim = 0;
  double bytes = 0;
  bool all = false;  // were admitted
};

// `count` waiters queue for one unit each; then all of it is given back at once, and they are
// admitted, handed over and claimed, as the loop's thread does it. Each has a priority of its own,
// or all have the same.
Round Wake(std::int64_t count, bool own_priorities) {
  Limit limit = Limit::Parse("1 requests/31day bucket").value();
  limit.amount = count;
  const std::array<std::uint8_t, 1> resources = {0};
  // By resource, as where limits may be learnt: four of them.
  const std::array<std::int64_t, Bucket::kFewResources> one = {1};
  const std::array<std::int64_t, 1> all = {count};
  const std::array<std::int64_t, 1> none = {0};
  Scheduler scheduler([] {});
  auto* mailbox = new Mailbox;
  Bucket* bucket = Bucket::Make({&limit, 1}, resources, 0, &scheduler);
  Reservation held;
  if (bucket->TryReserve(kStart, all, /*privileged=*/false, held)) return {};
  const std::int64_t before = AllocatedBytes();
  const Nanos began = MonotonicNow();
  for (std::int64_t i = 0; i < count; ++i)
    scheduler.Submit(bucket, one, own_priorities ? static_cast<std::int32_t>(i) : 0, kStart, kNever,
                     mailbox, nullptr);
  scheduler.Advance(kStart);
  const Nanos queued = MonotonicNow();
  const std::int64_t bytes = AllocatedBytes() - before;

  held.Settle(kStart, none);
  scheduler.Advance(kStart);
  const Nanos admitted = MonotonicNow();
  std::int64_t done = 0;
  for (Waiter* waiter = mailbox->Drain(); waiter != nullptr;) {
    Waiter* next = waiter->next_in_mailbox;
    if (next != nullptr) next->Prefetch();
    const std::unique_ptr<Reservation> claimed = waiter->Claim(kStart);
    done += claimed != nullptr ? 1 : 0;
    waiter->Unref();
    waiter->Unref();  // its owner's
    waiter = next;
  }
  const Nanos over = MonotonicNow();
  bucket->Unref();
  mailbox->Unref();
  const auto n = static_cast<double>(count);
  return {static_cast<double>(queued - began) / n, static_cast<double>(admitted - queued) / n,
          static_cast<double>(over - admitted) / n, static_cast<double>(bytes) / n, done == count};
}

// The time of an iteration is that of all but the queueing, for one waiter. The memory has been
// used before: what the system takes to hand out a page is not the scheduler's.
void Measure(benchmark::State& state, bool own_priorities) {
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  Wake(state.range(0), own_priorities);
  Round sum;
  for (auto _ : state) {
    const Round round = Wake(state.range(0), own_priorities);
    if (!round.all) state.SkipWithError("not all were admitted");
    sum.queue += round.queue;
    sum.admit += round.admit;
    sum.claim += round.claim;
    sum.bytes = round.bytes;
    state.SetIterationTime((round.admit + round.claim) / 1e9);
  }
  const auto rounds = static_cast<double>(state.iterations());
  state.counters["queue_ns"] = sum.queue / rounds;
  state.counters["admit_ns"] = sum.admit / rounds;
  state.counters["claim_ns"] = sum.claim / rounds;
  state.counters["bytes"] = sum.bytes;
}

void BM_Wake(benchmark::State& state) { Measure(state, /*own_priorities=*/false); }
void BM_WakeByPriority(benchmark::State& state) { Measure(state, /*own_priorities=*/true); }

BENCHMARK(BM_Wake)->Arg(10'000)->Iterations(20)->UseManualTime();
BENCHMARK(BM_Wake)->Arg(100'000)->Iterations(3)->UseManualTime();
BENCHMARK(BM_Wake)->Arg(1'000'000)->Iterations(1)->UseManualTime();
BENCHMARK(BM_WakeByPriority)->Arg(10'000)->Iterations(3)->UseManualTime();
BENCHMARK(BM_WakeByPriority)->Arg(100'000)->Iterations(1)->UseManualTime();

}  // namespace
}  // namespace headway
