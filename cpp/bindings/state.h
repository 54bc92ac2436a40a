// bindings/state.h: what Limiter, Acquire and Reservation objects share.
#ifndef HEADWAY_BINDINGS_STATE_H_
#define HEADWAY_BINDINGS_STATE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <vector>

#include <pybind11/pybind11.h>

#include "headway/base/clock.h"
#include "headway/base/limit.h"
#include "headway/bucket/bucket.h"
#include "headway/bucket/path.h"
#include "headway/observe/learner.h"
#include "headway/schedule/dispatcher.h"
#include "headway/schedule/scheduler.h"

namespace headway::python {

namespace py = pybind11;

// A clock that is moved by hand, and the scheduler that it drives: `Limiter(clock=...)` waits on
// it.
//
// Its scheduler asks to be driven at any time and from anywhere, even from inside its own Advance,
// so that is only noted; every verb of the Python face that may have caused it calls Serve at its
// end.
class VirtualTime {
 public:
  explicit VirtualTime(Nanos start)
      : clock(Clock::Manual(start)), scheduler([this] { asked_.store(true); }) {}

  void Serve() {
    while (asked_.exchange(false) || scheduler.HasWork()) scheduler.Advance(clock.Now());
  }
  void MoveTo(Nanos now) {
    clock.Set(now);
    scheduler.Advance(now);
    Serve();
  }

  Clock clock;
  Scheduler scheduler;

 private:
  std::atomic<bool> asked_{false};
};

// One limiter's own state. Reference-counted under the GIL, because reservations outlive limiters
// and must not keep the Python object (and whatever a subclass hung on it) alive.
struct State {
  static constexpr std::size_t kMaxResources = Bucket::kMaxResources;
  // How many limits may be learnt beside those that it was made with.
  static constexpr int kMostLearnt = 16;

  int references = 1;
  Bucket* bucket = nullptr;
  std::shared_ptr<VirtualTime> time;  // null: the real clock
  std::vector<Limit> limits;          // by meter
  int learnt = 0;                     // how often limits have changed by what was learnt
  std::unique_ptr<Learner> learner;   // null: its limits are what they were given as
  std::vector<std::string> resources;
  std::vector<std::int64_t> defaults;  // by resource: what a missing amount means
  bool has_concurrency = false;
  bool supplied = false;  // somebody is told when it waits for credit (Askers)

  Nanos Now() const { return time == nullptr ? MonotonicNow() : time->clock.Now(); }
  Nanos WallOffset() const { return time == nullptr ? headway::WallOffset() : 0; }
  Scheduler& scheduler() const {
    return time == nullptr ? Dispatcher::Get().scheduler() : time->scheduler;
  }
  // After a verb that may have given something back or submitted something.
  void Serve() const {
    if (time != nullptr) time->Serve();
  }

  void Ref() { ++references; }
  void Unref() {
    if (--references == 0) delete this;
  }

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;

 private:
  ~State() {
    learner.reset();
    if (supplied) scheduler().SetSupplier(*bucket, nullptr);
    if (bucket != nullptr) bucket->Unref();
  }
};

struct LimiterObject {
  PyObject_HEAD PyObject* weakrefs;
  State* state;
};

// The state of a Limiter, or null with a Python error set.
State* StateOfLimiter(PyObject* limiter);

// The amounts of a call, by resource.
struct Amounts {
  std::int64_t values[State::kMaxResources];
  absl::Span<const std::int64_t> span(const State& state) const {
    return {values, state.resources.size()};
  }
};

// What has to be known of a call for its answer to be made use of, as an AnsweredCall object: new,
// or None where nothing is learnt; null with a Python error set.
PyObject* RecordOf(const State& state, const Reservation& reservation);

// Reads positional amounts, filling in the defaults. False with a Python error set.
bool ReadAmounts(const State& state, PyObject* const* args, Py_ssize_t count, Amounts& out);

// Reads a dict of amounts by resource; what is not said is -1, what is not counted is left out.
bool ReadUsed(const State& state, PyObject* used, Amounts& out);

// The types, added to the module in this order.
extern PyTypeObject* limiter_type;
extern PyTypeObject* acquire_type;
extern PyTypeObject* reservation_type;
extern PyTypeObject* denial_type;
void AddLimitAndClock(py::module_& m);
bool AddReservation(PyObject* module);
bool AddDenial(PyObject* module);
bool AddAcquire(PyObject* module);
bool AddMailbox(PyObject* module);
bool AddLimiter(PyObject* module);
bool AddBucket(PyObject* module);
bool AddCall(PyObject* module);
bool AddWithReservation(PyObject* module);
bool AddScheduler(PyObject* module);
void AddInspection(py::module_& m);
void AddMetrics(py::module_& m);
void AddObserve(py::module_& m);
// Around a fork, for what is read without the GIL.
void MetricsBeforeFork();
void MetricsAfterFork(bool in_child);

// New references; null with a Python error set.
PyObject* MakeReservation(State* state, std::unique_ptr<Reservation> reservation,
                          const Path* path = nullptr);
PyObject* MakeDenial(State* state, const Denial& denial, Nanos now);
PyObject* MakeAcquire(State* state, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* AcquireSync(State* state, PyObject* const* args, Py_ssize_t count, PyObject* names);
// That of a Mailbox object, borrowed; null with a TypeError.
Mailbox* MailboxOf(PyObject* mailbox);
// The mailbox of the running loop, borrowed; null with a Python error set. Also gives the loop,
// new.
Mailbox* MailboxOfRunningLoop(PyObject** loop);

// What an awaitable object has while it waits for admission. Its address is the waiter's cookie, so
// it lives where the object does.
struct Wait {
  PyObject* future;
  Waiter* waiter;
};
// What a drained mailbox tells whoever waits.
void Complete(Wait& wait);
// A future of `loop`, marked as one that is about to be yielded from an `await`.
PyObject* MakeFuture(PyObject* loop);
bool MarkYielded(PyObject* future);
// A RuntimeWarning of an awaitable that is finalized and was never awaited. Keeps the error that is
// set; where the warning is an error, that is unraisable.
void WarnUnawaited(PyObject* object, const char* text);
// Resolves a future with None, unless it is done.
void Resolve(PyObject* future);
// Of the real clock's scheduler. False with a Python error set: the system has no thread left.
bool StartDispatcher(const State& state);
// Blocks the calling thread, without the GIL, until `waiter` is over. False with a Python error
// set: a signal's handler raised. The waiter was submitted to `mailbox`, which is this thread's.
Mailbox* MailboxOfThread();
bool Block(Mailbox* mailbox, const Waiter* waiter);

// Raises from headway.errors. Always returns null.
PyObject* RaiseNever(const State& state, int meter, absl::Span<const std::int64_t> amounts);
PyObject* RaiseDeadline(Nanos timeout, Nanos would_take);
PyObject* RaiseStopped();
std::string FormatSeconds(Nanos nanos);
// OSError: no descriptor or thread was to be had. Always returns null.
PyObject* RaiseSystemError(const std::system_error& error);

// `priority` and `timeout` of acquire and acquire_sync. Timeout is kNever where there is none.
struct WaitOptions {
  std::int32_t priority = 0;
  Nanos timeout = kNever;
};
bool ReadWaitOptions(PyObject* const* values, PyObject* names, WaitOptions& out);

// Raises an error of headway.errors by its name. Always returns null.
PyObject* RaiseError(const char* name, const std::string& message);
// Whether the error that is set is one of those.
bool IsError(const char* name);

// `seconds` as nanoseconds, or false with a ValueError that names `what`.
bool ReadSeconds(PyObject* seconds, const char* what, Nanos& out);
inline double Seconds(Nanos nanos) { return static_cast<double>(nanos) / 1e9; }
// A new reference; null with a Python error set: seconds from `now` until then; inf for never, None
// where only answers tell.
inline PyObject* WaitUntil(Nanos at, Nanos now) {
  if (at == kNever) return PyFloat_FromDouble(Py_HUGE_VAL);
  if (at >= kUntold) return Py_NewRef(Py_None);
  return PyFloat_FromDouble(Seconds(std::max<Nanos>(0, at - now)));
}

}  // namespace headway::python

#endif  // HEADWAY_BINDINGS_STATE_H_
