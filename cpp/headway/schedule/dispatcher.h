// headway/schedule/dispatcher.h: the thread that drives the process's scheduler by the real clock.
#ifndef HEADWAY_SCHEDULE_DISPATCHER_H_
#define HEADWAY_SCHEDULE_DISPATCHER_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "headway/schedule/scheduler.h"
#include "headway/schedule/wake_fd.h"

namespace headway {

// One per process. The thread starts with the first wait and sleeps until the next instant at which
// something can be admitted; it never polls, and knows nothing of Python.
//
// Thread-safe. After `fork` the child has no thread and no waits: call the three fork functions
// around it.
class Dispatcher {
 public:
  static Dispatcher& Get();

  Scheduler& scheduler() { return scheduler_; }

  // Starts the thread if it is not running. std::system_error where there is none to be had.
  void Start();
  // Ends the thread and waits for it. What waits goes on waiting; `Start` resumes.
  void Stop();

  void BeforeFork();
  void AfterForkInParent();
  void AfterForkInChild();

  // How often this process has forked away from its parent: descriptors made under another number
  // are shared with the parent and must not be used.
  static unsigned ForkGeneration();

  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

 private:
  Dispatcher();
  ~Dispatcher() = delete;  // lives as long as the process: other threads may still submit at exit

  void Run();
  void Wake();

  Scheduler scheduler_;
  std::unique_ptr<WakeFd> wake_;
  // Memory ordering: "asleep, then looked for work" against "gave work, then looked whether
  // asleep"; sequentially consistent on both sides, so one of them sees the other.
  std::atomic<bool> asleep_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> running_{false};
  std::mutex mutex_;  // guards starting and stopping
  std::thread thread_;
};

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_DISPATCHER_H_
