// headway/metrics/counter_benchmark.cc: what counting costs, beside one atomic addition.
#include "headway/metrics/counter.h"

#include <atomic>
#include <cstdint>

#include "benchmark/benchmark.h"
#include "headway/metrics/bucket_metrics.h"

namespace headway {
namespace {

void BM_CounterAdd(benchmark::State& state) {
  static Counters counters(16);
  for (auto _ : state) counters.Add(3);
}
BENCHMARK(BM_CounterAdd);
// Two threads, two shards: no slower than one.
BENCHMARK(BM_CounterAdd)->Threads(2)->UseRealTime();

// The least that a counter which several threads move can cost; for two threads, what one that is
// not sharded costs.
void BM_CounterFloor(benchmark::State& state) {
  static std::atomic<std::uint64_t> counter{0};
  for (auto _ : state) counter.fetch_add(1, std::memory_order_relaxed);
}
BENCHMARK(BM_CounterFloor);
BENCHMARK(BM_CounterFloor)->Threads(2)->UseRealTime();

void BM_HistogramObserve(benchmark::State& state) {
  static BucketMetrics metrics(2, 2);
  Nanos late = 0;
  for (auto _ : state) metrics.ObserveLateness(late = (late + 7 * kMicrosecond) % kSecond);
}
BENCHMARK(BM_HistogramObserve);

// All that one admitted and settled call counts.
void BM_CountOneCall(benchmark::State& state) {
  static BucketMetrics metrics(2, 2);
  for (auto _ : state) {
    metrics.ObserveWait(0);
    metrics.CountUnits(UnitEvent::kReserved, 0, 1);
    metrics.CountUnits(UnitEvent::kReserved, 1, 10);
    metrics.Count(BucketEvent::kAttempt);
    metrics.CountUnits(UnitEvent::kSettled, 0, 1);
    metrics.CountUnits(UnitEvent::kSettled, 1, 6);
    metrics.CountUnits(UnitEvent::kRefunded, 1, 4);
    metrics.Count(RequestOutcome::kSucceeded);
  }
}
BENCHMARK(BM_CountOneCall);
BENCHMARK(BM_CountOneCall)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace headway
