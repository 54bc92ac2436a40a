// headway/schedule/scheduler_benchmark.cc: what the core does for a wait, by how many wait.
#include "headway/schedule/scheduler.h"

#include <malloc.h>

#include <array>
#include <cstdint>
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

double PerWaiter(Nanos elapsed, std::size_t waiters) {
  return static_cast<double>(elapsed) / static_cast<double>(waiters);
}

// `waiters` queue for one unit each; then all of it is given back at once, and they are admitted,
// handed over and claimed, as the loop's thread does it. The time of an iteration is that of all
// but the queueing, divided by the number of waiters.
void BM_Wake(benchmark::State& state) {
  const auto waiters = static_cast<std::size_t>(state.range(0));
  Limit limit = Limit::Parse("1 requests/31day bucket").value();
  limit.amount = state.range(0);
  const std::array<std::uint8_t, 1> resources = {0};
  const std::array<std::int64_t, 1> one = {1};
  const std::array<std::int64_t, 1> all = {state.range(0)};
  const std::array<std::int64_t, 1> none = {0};
  Nanos queueing = 0;
  Nanos admitting = 0;
  Nanos claiming = 0;
  std::int64_t bytes = 0;
  for (auto _ : state) {
    Scheduler scheduler([] {});
    auto* mailbox = new Mailbox;
    Bucket* bucket = Bucket::Make({&limit, 1}, resources, 0, &scheduler);
    Reservation held;
    if (bucket->TryReserve(kStart, all, /*privileged=*/false, held)) {
      state.SkipWithError("refused");
      return;
    }
    std::vector<Waiter*> owned;
    owned.reserve(waiters);
    const std::int64_t before = AllocatedBytes();
    const Nanos began = MonotonicNow();
    for (std::size_t i = 0; i < waiters; ++i)
      owned.push_back(scheduler.Submit(bucket, one, 0, kStart, kNever, mailbox, nullptr));
    scheduler.Advance(kStart);
    const Nanos queued = MonotonicNow();
    bytes = AllocatedBytes() - before;

    held.Settle(kStart, none);
    scheduler.Advance(kStart);
    const Nanos admitted = MonotonicNow();
    std::size_t done = 0;
    for (Waiter* waiter = mailbox->Drain(); waiter != nullptr;) {
      Waiter* next = waiter->next_in_mailbox;
      const std::unique_ptr<Reservation> claimed = waiter->Claim();
      done += claimed != nullptr ? 1 : 0;
      waiter->Unref();
      waiter = next;
    }
    for (Waiter* waiter : owned) waiter->Unref();
    const Nanos over = MonotonicNow();
    if (done != waiters) state.SkipWithError("not all were admitted");
    queueing += queued - began;
    admitting += admitted - queued;
    claiming += over - admitted;
    state.SetIterationTime(PerWaiter(over - queued, waiters) / 1e9);
    bucket->Unref();
    mailbox->Unref();
  }
  const auto runs = static_cast<double>(state.iterations());
  state.counters["queue_ns"] = PerWaiter(queueing, waiters) / runs;
  state.counters["admit_ns"] = PerWaiter(admitting, waiters) / runs;
  state.counters["claim_ns"] = PerWaiter(claiming, waiters) / runs;
  state.counters["bytes"] = static_cast<double>(bytes) / static_cast<double>(waiters);
}
BENCHMARK(BM_Wake)->Arg(10'000)->Iterations(20)->UseManualTime();
BENCHMARK(BM_Wake)->Arg(100'000)->Iterations(3)->UseManualTime();
BENCHMARK(BM_Wake)->Arg(1'000'000)->Iterations(1)->UseManualTime();

}  // namespace
}  // namespace headway
