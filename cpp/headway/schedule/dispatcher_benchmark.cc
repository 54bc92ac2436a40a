// headway/schedule/dispatcher_benchmark.cc: how late an admission is handed over, beside a timer.
#include "headway/schedule/dispatcher.h"

#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"

namespace headway {
namespace {

constexpr Nanos kStep = 5 * kMillisecond;
constexpr int kChunk = 25;   // hand-overs of one kind before it is the other's turn
constexpr int kRounds = 40;  // chunks of each kind

// How much later than `ideal` it is now.
double LateMicros(Nanos ideal) { return static_cast<double>(MonotonicNow() - ideal) / 1e3; }

double Quantile(std::vector<double> values, double share) {
  const auto at = static_cast<std::size_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

// A thread blocked on its mailbox, for one admission each step. The burst is 2, so that being late
// with one moves none of the later instants.
void Admissions(std::vector<double>& late) {
  const Limit limit = Limit::Parse("200 requests/s bucket burst 2").value();
  const std::array<std::uint8_t, 1> resources = {0};
  const std::array<std::int64_t, 1> one = {1};
  const std::array<std::int64_t, 1> two = {2};
  Dispatcher& dispatcher = Dispatcher::Get();
  dispatcher.Start();
  auto* mailbox = new Mailbox;
  Bucket* bucket = Bucket::Make({&limit, 1}, resources, 0, &dispatcher.scheduler());
  const Nanos start = MonotonicNow();
  bucket->TryTake(start, two);
  for (int i = 0; i < kChunk; ++i)
    dispatcher.scheduler().Submit(bucket, one, 0, start, kNever, mailbox, nullptr)->Unref();
  for (int done = 0; done < kChunk;) {
    mailbox->wake().Wait(kNever);
    for (Waiter* waiter = mailbox->Drain(); waiter != nullptr;) {
      late.push_back(LateMicros(start + ++done * kStep));
      Waiter* next = waiter->next_in_mailbox;
      waiter->Claim(start)->Expire(0);
      waiter->Unref();
      waiter = next;
    }
  }
  bucket->Unref();
  mailbox->Unref();
}

// The same instants from a thread that only sleeps until each and then writes a descriptor.
void Timer(std::vector<double>& late) {
  WakeFd wake(WakeFd::Kind::kEventFd);
  const Nanos start = MonotonicNow();
  std::thread timer([&wake, start] {
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    for (int i = 1; i <= kChunk; ++i) {
      for (Nanos left = start + i * kStep - MonotonicNow(); left > 0;
           left = start + i * kStep - MonotonicNow()) {
        const timespec timeout = {static_cast<time_t>(left / kSecond),
                                  static_cast<long>(left % kSecond)};
        ppoll(nullptr, 0, &timeout, nullptr);
      }
      wake.Signal();
    }
  });
  for (int done = 0; done < kChunk;) {
    wake.Wait(kNever);
    std::uint64_t ticks = 0;
    if (read(wake.fd(), &ticks, sizeof ticks) != sizeof ticks) continue;
    for (; ticks > 0; --ticks) late.push_back(LateMicros(start + ++done * kStep));
  }
  timer.join();
}

void BM_Lateness(benchmark::State& state) {
  std::vector<double> ours;
  std::vector<double> floor;
  for (auto _ : state) {
    for (int round = 0; round < kRounds; ++round) {
      Admissions(ours);
      Timer(floor);
    }
  }
  Dispatcher::Get().Stop();
  state.counters["p50_us"] = Quantile(ours, 0.50);
  state.counters["p99_us"] = Quantile(ours, 0.99);
  state.counters["floor_p50_us"] = Quantile(floor, 0.50);
  state.counters["floor_p99_us"] = Quantile(floor, 0.99);
  state.counters["early"] = static_cast<double>(
      std::count_if(ours.begin(), ours.end(), [](double late) { return late < 0; }));
}
BENCHMARK(BM_Lateness)->Iterations(1)->Unit(benchmark::kSecond);

}  // namespace
}  // namespace headway
