// headway/schedule/dispatcher.cc: sleep until something can be admitted, then admit it.
#include "headway/schedule/dispatcher.h"

#include <new>

#include <pthread.h>
#include <csignal>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

namespace headway {
namespace {

std::atomic<unsigned> fork_generation{0};

}  // namespace

Dispatcher& Dispatcher::Get() {
  static auto* dispatcher = new Dispatcher;
  return *dispatcher;
}

unsigned Dispatcher::ForkGeneration() { return fork_generation.load(); }

Dispatcher::Dispatcher() : scheduler_([this] { Wake(); }), wake_(std::make_unique<WakeFd>()) {}

void Dispatcher::Start() {
  if (running_.load(std::memory_order_acquire)) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (running_.load()) return;
  // Signals are for the program's own threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  stopping_.store(false);
  try {
    thread_ = std::thread([this] { Run(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  running_.store(true, std::memory_order_release);
}

void Dispatcher::Stop() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!running_.load()) return;
  stopping_.store(true);
  wake_->Signal();
  thread_.join();
  running_.store(false);
}

void Dispatcher::Wake() {
  if (asleep_.load() && asleep_.exchange(false)) wake_->Signal();
}

void Dispatcher::Run() {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "headway");
  // Timers are exact to the kernel's own resolution instead of 50 µs late.
  prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
#endif
  while (!stopping_.load()) {
    const Nanos next = scheduler_.Advance(MonotonicNow());
    asleep_.store(true);
    if (!scheduler_.HasWork() && !stopping_.load() && wake_->Wait(next) == WakeFd::Wake::kSignalled)
      wake_->Clear();
    asleep_.store(false);
  }
}

void Dispatcher::BeforeFork() {
  mutex_.lock();
  scheduler_.Lock();
}

void Dispatcher::AfterForkInParent() {
  scheduler_.Unlock();
  mutex_.unlock();
}

void Dispatcher::AfterForkInChild() {
  fork_generation.fetch_add(1);
  // The thread exists in the parent only; its handle must not be joined here.
  new (&thread_) std::thread;
  running_.store(false);
  asleep_.store(false);
  stopping_.store(false);
  wake_ = std::make_unique<WakeFd>();
  scheduler_.Unlock();
  scheduler_.Forget();
  mutex_.unlock();
}

}  // namespace headway
