// bindings/call.cc: the awaitable that Scheduler.submit_request returns: one request, from its
// submission to its result, over as many attempts as it takes.
#include <algorithm>
#include <memory>
#include <utility>

#include "bindings/scheduler.h"

#include <structmember.h>

namespace headway::python {

PyTypeObject* call_type = nullptr;

// Awaited once; it is its own iterator, and drives what it awaits itself. Where everything is
// known, everything fits and the request function does not suspend, it is over within its first
// step: no future, no task, no timer.
//
//   kNew ─▶ kPreparing ─▶ kAdmitting ─▶ kWaiting ─▶ kCalling ─▶ kOver
//                             ▲                        │
//                             └─────── kJudging ◀──────┘
//
// What decides (which bucket, whether to try again, what an answer says) is the scheduler's Python
// side: `_prepare`, `_guard`, `_waits`, `_judge`.
struct CallObject {
  PyObject_HEAD SchedulerObject* scheduler;
  PyObject* metadata;
  PyObject* function;
  BucketObject* bucket;
  const Path* path;
  Wait wait;
  PyObject* inner;   // the iterator that is being driven
  PyObject* result;  // of the attempt, while it is judged
  PyObject* error;   // that the attempt raised; kept while it is tried again
  PyObject* loop;    // once it has been suspended
  PyObject* task;
  PyObject* timer;
  Reservation* reservation;
  PyObject* shared;      // the Reservation that owns it, where the function was given that
  CallObject* previous;  // in the scheduler's list of those who are on their way
  CallObject* next;
  Nanos submitted;
  Nanos admitted;
  Nanos timeout;
  Nanos deadline;  // from submission
  std::int64_t* amounts;
  std::int64_t few_amounts[Bucket::kFewResources];
  long cancelling;  // requests to cancel the task that were there before ours
  std::int32_t priority;
  std::int32_t attempt;  // from 1
  enum class Phase : std::uint8_t {
    kNew,
    kPreparing,
    kAdmitting,
    kWaiting,
    kCalling,
    kJudging,
    kOver
  } phase;
  RequestOutcome outcome;  // how it has failed, where it has
  bool stepping;           // in one of its own steps at the moment
  bool told_end;           // of `shared`: its end was told through the call
  bool linked;
  bool in_flight;
  bool called_off;       // an attempt was, before it was sent: it waits once more
  bool cancelled_by_us;  // the task is being cancelled: its time is over, or
  bool stopped;
  bool revoked;  // no attempt begins any more: its task is to be cancelled by its loop
};
using Phase = CallObject::Phase;

namespace {

PyObject* str_prepare = nullptr;
PyObject* str_guard = nullptr;
PyObject* str_judge = nullptr;
PyObject* str_ended = nullptr;
PyObject* str_overflow = nullptr;
PyObject* str_dropped = nullptr;
PyObject* str_metadata_names[4];  // model_id, resource_type, requires_model, client_id
PyObject* str_interesting[11];
PyObject* str_usage = nullptr;
PyObject* str_response_headers = nullptr;
PyObject* str_throw = nullptr;
PyObject* str_close = nullptr;
PyObject* str_cancel = nullptr;
PyObject* str_call_later = nullptr;
PyObject* str_expire = nullptr;
PyObject* str_stop_here = nullptr;
PyObject* str_call_soon_threadsafe = nullptr;
PyObject* cancelled_error = nullptr;
PyObject* called_off_error = nullptr;
PyObject* current_task = nullptr;

CallObject* Self(PyObject* self) { return reinterpret_cast<CallObject*>(self); }
PyObject* Object(CallObject* self) { return reinterpret_cast<PyObject*>(self); }

absl::Span<const std::int64_t> Wanted(const CallObject* self) {
  return {self->amounts, self->bucket->state().resources.size()};
}

// The error that is set, as an object with its traceback, new; none is set afterwards.
PyObject* TakeError() {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (traceback != nullptr) PyException_SetTraceback(value, traceback);
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  return value;
}

void RestoreError(PyObject* error) {
  PyErr_Restore(Py_NewRef(reinterpret_cast<PyObject*>(Py_TYPE(error))), Py_NewRef(error),
                PyException_GetTraceback(error));
}

// The iterator of an awaitable, or null with a TypeError.
PyObject* IteratorOf(PyObject* awaitable) {
  if (PyCoro_CheckExact(awaitable) != 0) return Py_NewRef(awaitable);
  PyAsyncMethods* methods = Py_TYPE(awaitable)->tp_as_async;
  if (methods != nullptr && methods->am_await != nullptr) {
    PyObject* iterator = methods->am_await(awaitable);
    if (iterator == nullptr || PyIter_Check(iterator) != 0) return iterator;
    PyErr_Format(PyExc_TypeError, "__await__() of %s gave %s, which is no iterator",
                 Py_TYPE(awaitable)->tp_name, Py_TYPE(iterator)->tp_name);
    Py_DECREF(iterator);
    return nullptr;
  }
  PyErr_Format(PyExc_TypeError,
               "request_func must give an awaitable, not %s: let it be an `async def`, or use "
               "submit_sync",
               Py_TYPE(awaitable)->tp_name);
  return nullptr;
}

void Link(CallObject* self) {
  if (self->linked) return;
  CallObject*& first = self->scheduler->parts->live;
  self->linked = true;
  self->previous = nullptr;
  self->next = first;
  if (first != nullptr) first->previous = self;
  first = self;
  ++self->scheduler->parts->unfinished;
}

void Unlink(CallObject* self) {
  if (!self->linked) return;
  self->linked = false;
  (self->previous != nullptr ? self->previous->next : self->scheduler->parts->live) = self->next;
  if (self->next != nullptr) self->next->previous = self->previous;
  if (--self->scheduler->parts->unfinished == 0) TellIdle(self->scheduler);
}

// Remembers the running loop, as far as it is not known yet. False with an error set.
bool KnowLoop(CallObject* self) {
  if (self->loop != nullptr) return true;
  PyObject* loop = nullptr;
  if (MailboxOfRunningLoop(&loop) == nullptr) return false;
  self->loop = loop;
  return true;
}

void CancelTimer(CallObject* self) {
  if (self->timer == nullptr) return;
  PyObject* timer = std::exchange(self->timer, nullptr);
  PyObject* done = PyObject_CallMethodNoArgs(timer, str_cancel);
  if (done == nullptr) PyErr_WriteUnraisable(timer);
  Py_XDECREF(done);
  Py_DECREF(timer);
}

// An attempt's reservation has ended: a grant may be used up with it.
void TellRemote(CallObject* self) {
  BucketObject* bucket = self->bucket;
  if (bucket->remote == 0) return;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject* told = PyObject_CallMethodNoArgs(reinterpret_cast<PyObject*>(bucket), str_ended);
  if (told == nullptr) PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(bucket));
  Py_XDECREF(told);
  PyErr_Restore(type, value, traceback);
}

// The attempt is over: what it held is given back or stays spent, by the reservation's rule.
// `answered`: by whoever was asked; else nothing is known of when it was counted.
void Land(CallObject* self, bool answered) {
  CancelTimer(self);
  if (self->in_flight) {
    self->in_flight = false;
    self->bucket->AddInFlight(-1);
  }
  if (self->reservation == nullptr) return;
  State& state = self->bucket->state();
  Reservation* reservation = std::exchange(self->reservation, nullptr);
  const bool ended =
      reservation->Settle(reservation->ExpiresInTime() ? state.Now() : 0, {}, answered);
  // A function that was given it may have ended it by itself.
  if (ended || (self->shared != nullptr && !self->told_end)) {
    if (self->bucket->counts != nullptr) self->bucket->counts->Ended(Wanted(self), {});
    TellRemote(self);
  }
  if (self->shared != nullptr) {
    Py_CLEAR(self->shared);
  } else {
    delete reservation;
  }
  state.Serve();
}

// Gives up a wait: afterwards it is not admitted, or what it was admitted to has been given back.
void Withdraw(CallObject* self) {
  if (self->bucket == nullptr) return;  // it has not come that far
  Py_CLEAR(self->wait.future);
  if (Waiter* waiter = std::exchange(self->wait.waiter, nullptr); waiter != nullptr) {
    State& state = self->bucket->state();
    waiter->cookie = nullptr;
    state.scheduler().Cancel(waiter, state.Now());
    waiter->Unref();
    self->bucket->AddQueued(-1);
    state.Serve();
  }
}

// Past its end, whichever way it took there.
void End(CallObject* self) {
  Withdraw(self);
  Land(self, /*answered=*/false);
  Unlink(self);
  self->phase = Phase::kOver;
  Py_CLEAR(self->inner);
}

PySendResult Return(CallObject* self, PyObject* value, PyObject** result) {
  ++self->bucket->succeeded;
  if (self->bucket->counts != nullptr) self->bucket->counts->Count(RequestOutcome::kSucceeded);
  End(self);
  Py_CLEAR(self->error);
  *result = value;
  return PYGEN_RETURN;
}

PySendResult Fail(CallObject* self);
PySendResult FailAs(CallObject* self, RequestOutcome outcome) {
  self->outcome = outcome;
  return Fail(self);
}

// With an error set.
PySendResult Fail(CallObject* self) {
  PyObject* error = TakeError();
  // The attempts before it: why it came to this.
  if (self->error != nullptr && self->error != error &&
      PyErr_GivenExceptionMatches(error, PyExc_Exception) != 0)
    PyException_SetCause(error, Py_NewRef(self->error));
  if (self->bucket != nullptr) {
    const bool cancelled = PyErr_GivenExceptionMatches(error, cancelled_error) != 0 ||
                           PyErr_GivenExceptionMatches(error, PyExc_GeneratorExit) != 0;
    if (cancelled) self->outcome = RequestOutcome::kCancelled;
    ++(cancelled ? self->bucket->cancelled : self->bucket->failed);
    if (self->bucket->counts != nullptr) self->bucket->counts->Count(self->outcome);
  }
  End(self);
  RestoreError(error);
  Py_DECREF(error);
  Py_CLEAR(self->error);
  return PYGEN_ERROR;
}

PySendResult Yield(PyObject* yielded, PyObject** result) {
  *result = yielded;
  return PYGEN_NEXT;
}

PySendResult Stopped(CallObject* self, const char* text) {
  RaiseError("SchedulerStoppedError", text);
  return FailAs(self, RequestOutcome::kStopped);
}

// A step that goes on within the same step of the task.
constexpr int kGoOn = -2;

constexpr const char* kStoppedWaiting = "the scheduler was stopped while this waited";

int Prepare(CallObject* self) {
  SchedulerParts& parts = *self->scheduler->parts;
  // One that was submitted before it was stopped is on its way, though it has not begun.
  if (self->stopped || (!parts.Runs() && !self->linked))
    return Stopped(self, "Scheduler is not running");
  Link(self);
  self->submitted = parts.gate->Now();
  if (!parts.prepares && !PyDict_Check(self->metadata)) {
    PyObject* requires_model = PyObject_GetAttr(self->metadata, str_metadata_names[2]);
    PyObject* model = nullptr;
    PyObject* type = nullptr;
    if (requires_model == Py_True) {
      type = PyObject_GetAttr(self->metadata, str_metadata_names[1]);
      if (type != nullptr) model = PyObject_GetAttr(self->metadata, str_metadata_names[0]);
    }
    Py_XDECREF(requires_model);
    if (model != nullptr) {
      PyObject* by_model = PyDict_GetItemWithError(self->scheduler->routes, type);
      PyObject* bucket = by_model == nullptr ? nullptr : PyDict_GetItemWithError(by_model, model);
      if (bucket != nullptr) self->bucket = AsBucket(Py_NewRef(bucket));
    }
    Py_XDECREF(model);
    Py_XDECREF(type);
    // What is wrong with it, or unusual, is the Python side's to say.
    PyErr_Clear();
    if (self->bucket != nullptr) {
      self->phase = Phase::kAdmitting;
      return kGoOn;
    }
  }
  PyObject* prepare = PyObject_CallMethodOneArg(reinterpret_cast<PyObject*>(self->scheduler),
                                                str_prepare, self->metadata);
  if (prepare == nullptr) return Fail(self);
  self->inner = IteratorOf(prepare);
  Py_DECREF(prepare);
  if (self->inner == nullptr) return Fail(self);
  self->phase = Phase::kPreparing;
  return kGoOn;
}

// `_prepare` gave (metadata, bucket).
int Prepared(CallObject* self, PyObject* prepared) {
  Py_CLEAR(self->inner);
  PyObject* metadata = nullptr;
  PyObject* bucket = nullptr;
  if (PyArg_ParseTuple(prepared, "OO!", &metadata, bucket_type, &bucket) == 0) {
    Py_DECREF(prepared);
    return Fail(self);
  }
  Py_INCREF(metadata);
  Py_XSETREF(self->metadata, metadata);
  self->bucket = AsBucket(Py_NewRef(bucket));
  Py_DECREF(prepared);
  self->phase = Phase::kAdmitting;
  return kGoOn;
}

bool ReadMetadata(CallObject* self) {
  Request request;
  SchedulerParts& parts = *self->scheduler->parts;
  if (!ReadRequest(parts, self->bucket, self->metadata, request)) return false;
  const std::size_t n = self->bucket->state().resources.size();
  self->amounts = n <= Bucket::kFewResources ? self->few_amounts : new std::int64_t[n];
  std::copy_n(request.amounts, n, self->amounts);
  self->priority = request.priority;
  self->timeout = request.unbounded ? kNever : std::min(request.timeout, parts.request_timeout);
  self->deadline = request.deadline;
  PyObject* client = Py_None;
  Py_INCREF(client);
  if (parts.accounts) {
    Py_DECREF(client);
    client = PyObject_GetAttr(self->metadata, str_metadata_names[3]);
    if (client == nullptr) return false;
  }
  self->path = parts.PathOf(self->bucket, client);
  Py_DECREF(client);
  if (self->path == nullptr) return false;
  self->path->Ref();
  return true;
}

// Whether the Python side lets it go on; else with an error set.
bool Guard(CallObject* self, PyObject* launched) {
  PyObject* allowed = PyObject_CallMethodObjArgs(reinterpret_cast<PyObject*>(self->scheduler),
                                                 str_guard, self->bucket, launched, nullptr);
  Py_XDECREF(allowed);
  return allowed != nullptr;
}

// Calls a request function that marks its own attempt; the reservation still ends with that.
PyObject* CallWithReservation(CallObject* self) {
  std::unique_ptr<Reservation> reservation(std::exchange(self->reservation, nullptr));
  Reservation* borrowed = reservation.get();
  PyObject* shared = MakeReservation(&self->bucket->state(), std::move(reservation), self->path);
  if (shared == nullptr) return nullptr;
  self->reservation = borrowed;
  self->shared = Py_NewRef(shared);
  self->told_end = false;
  PyObject* awaitable = PyObject_CallOneArg(FunctionOf(self->function), shared);
  Py_DECREF(shared);
  return awaitable;
}

int Succeeded(CallObject* self, PyObject* value, PyObject** result);

// Something that can be iterated, and not awaited: an async generator function's result.
bool IsStream(PyObject* object) {
  const PyAsyncMethods* methods = Py_TYPE(object)->tp_as_async;
  return methods != nullptr && methods->am_aiter != nullptr && methods->am_await == nullptr;
}

int Launch(CallObject* self, Nanos now, PyObject** result) {
  self->admitted = now;
  if (self->revoked) {
    self->reservation->Cancel(now);
    PyErr_SetNone(cancelled_error);
    return FailAs(self, RequestOutcome::kCancelled);
  }
  if (self->bucket->guarded != 0 && !Guard(self, Object(self))) {
    self->reservation->Cancel(now);
    return FailAs(self, RequestOutcome::kBreaker);
  }
  if (BucketCounts* counts = self->bucket->counts; counts != nullptr) {
    counts->Count(BucketEvent::kAttempt);
    if (self->attempt > 1) counts->Count(BucketEvent::kRetry);
    if (self->attempt == 1 && !self->called_off) counts->Waited(now - self->submitted);
    counts->Reserved(Wanted(self));
  }
  self->in_flight = true;
  self->bucket->AddInFlight(1);
  ++self->bucket->attempts;
  self->phase = Phase::kCalling;
  PyObject* awaitable = Py_TYPE(self->function) == with_reservation_type
                            ? CallWithReservation(self)
                            : PyObject_CallNoArgs(self->function);
  if (awaitable != nullptr && IsStream(awaitable)) return Succeeded(self, awaitable, result);
  if (awaitable != nullptr) {
    self->inner = IteratorOf(awaitable);
    Py_DECREF(awaitable);
  }
  return kGoOn;  // where that raised, the next step finds it
}

// Has the loop call one of our methods after so long.
bool CallLater(CallObject* self, Nanos wait, PyObject* method) {
  PyObject* callback = PyObject_GetAttr(Object(self), method);
  PyObject* seconds = callback == nullptr ? nullptr : PyFloat_FromDouble(Seconds(wait));
  if (seconds != nullptr)
    self->timer =
        PyObject_CallMethodObjArgs(self->loop, str_call_later, seconds, callback, nullptr);
  Py_XDECREF(seconds);
  Py_XDECREF(callback);
  return self->timer != nullptr;
}

// There is no room in the queue: rejects, or makes room. (Under "wait" there always is: whoever
// waits for room does so in the queue itself, for two of them would have two orders.)
int Overflowed(CallObject* self, Nanos now) {
  SchedulerParts& parts = *self->scheduler->parts;
  auto* scheduler = reinterpret_cast<PyObject*>(self->scheduler);
  auto* bucket = reinterpret_cast<PyObject*>(self->bucket);
  if (parts.overflow == Overflow::kReject) {
    Py_XDECREF(PyObject_CallMethodOneArg(scheduler, str_overflow, bucket));
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_RuntimeError, "_overflow() must raise");
    return FailAs(self, RequestOutcome::kOverflowed);
  }
  State& state = self->bucket->state();
  state.scheduler().DropOldest(*state.bucket, self->path->gate(), now);
  return kGoOn;
}

// The calls that are taking a step in this thread, each within the one before.
struct Driven {
  const CallObject* call;
  const Driven* outer;
};
thread_local const Driven* driven = nullptr;

PySendResult SendInside(CallObject* self, PyObject* inner, PyObject* given, PyObject** value) {
  const Driven here{self, driven};
  driven = &here;
  const PySendResult sent = PyIter_Send(inner, given, value);
  driven = here.outer;
  return sent;
}

// Whether few may be out in the bucket, as nothing is known of it, and one of those makes this
// call, and waits for it.
bool IsWithinTheFirst(const Bucket* bucket, Nanos now) {
  const bool opening = bucket->is_opening();
  if (!opening && bucket->WaitsForFirstUntil() <= now) return false;
  for (const Driven* each = driven; each != nullptr; each = each->outer) {
    const Reservation* const its = each->call->reservation;
    if (its != nullptr && its->bucket() == bucket && (opening || its->alone())) return true;
  }
  return false;
}

int Admit(CallObject* self, PyObject** result) {
  SchedulerParts& parts = *self->scheduler->parts;
  BucketObject* bucket = self->bucket;
  State& state = bucket->state();
  if (self->path == nullptr) {
    ++parts.begun;
    ++bucket->submitted;
    if (!ReadMetadata(self)) return Fail(self);
  }
  // Told while it was prepared, or between two steps.
  if (self->stopped) return Stopped(self, kStoppedWaiting);
  if (bucket->guarded != 0 && !Guard(self, Py_None)) return FailAs(self, RequestOutcome::kBreaker);
  const Nanos now = state.Now();
  if (IsOver(self->deadline, now - self->submitted, /*retry=*/self->attempt > 0)) {
    RaiseDeadline(self->deadline, kUntold);
    return FailAs(self, RequestOutcome::kDeadline);
  }
  auto reservation = std::make_unique<Reservation>();
  std::optional<Refusal> refusal =
      self->path->TryReserve(now, Wanted(self), /*privileged=*/false, *reservation);
  if (refusal && IsWithinTheFirst(state.bucket, now)) {
    state.bucket->EndCold();
    refusal = self->path->TryReserve(now, Wanted(self), /*privileged=*/false, *reservation);
  }
  if (!refusal) {
    self->reservation = reservation.release();
    ++self->attempt;
    return Launch(self, now, result);
  }
  state.Serve();
  if (refusal->denial.never()) {
    RaiseTooLarge(reinterpret_cast<PyObject*>(self->scheduler), bucket, self->path, Wanted(self),
                  now);
    return FailAs(self, RequestOutcome::kNeverFits);
  }
  if (bucket->counts != nullptr && refusal->by == state.bucket)
    bucket->counts->Denied(refusal->denial.meter);
  // A retry has been in the queue before, and who was called off has had his turn.
  if (self->attempt == 0 && !self->called_off && QueueIsFull(parts, bucket, now)) {
    if (const int done = Overflowed(self, now); done != kGoOn) return done;
  }
  if (parts.tells && !TellOfWait(reinterpret_cast<PyObject*>(self->scheduler), /*blocks=*/false))
    return Fail(self);
  if (!KnowLoop(self)) return Fail(self);
  // From here on a stop reaches it through its loop.
  if (self->stopped) return Stopped(self, kStoppedWaiting);
  PyObject* loop = nullptr;
  Mailbox* mailbox = MailboxOfRunningLoop(&loop);
  if (mailbox == nullptr) return Fail(self);
  PyObject* future = MakeFuture(loop);
  Py_DECREF(loop);
  if (future == nullptr || !StartDispatcher(state)) {
    Py_XDECREF(future);
    return Fail(self);
  }
  const Nanos deadline = self->deadline == kNever ? kNever : self->submitted + self->deadline;
  ++self->attempt;
  self->wait.future = Py_NewRef(future);
  self->phase = Phase::kWaiting;
  // A retry has waited for its turn before.
  const bool again = self->attempt > 1 || self->called_off;
  const std::int32_t priority = again ? self->priority + 1 : self->priority;
  self->wait.waiter = state.scheduler().Submit(self->path, Wanted(self), priority, now, deadline,
                                               mailbox, &self->wait, again);
  bucket->AddQueued(1);
  state.Serve();
  return Yield(future, result);
}

// The future of a wait was resolved, or something else has made the task go on.
int Waited(CallObject* self, PyObject** result) {
  if (self->stopped) {
    Withdraw(self);
    return Stopped(self, kStoppedWaiting);
  }
  if (self->wait.waiter->outcome() == Outcome::kWaiting) {
    if (!MarkYielded(self->wait.future)) return Fail(self);
    return Yield(Py_NewRef(self->wait.future), result);
  }
  Py_CLEAR(self->wait.future);
  Waiter* waiter = std::exchange(self->wait.waiter, nullptr);
  BucketObject* bucket = self->bucket;
  bucket->AddQueued(-1);
  // It may still lie in the mailbox, where somebody else than its future has made this step happen.
  waiter->cookie = nullptr;
  auto* scheduler = reinterpret_cast<PyObject*>(self->scheduler);
  const Nanos at = waiter->at();
  Nanos now = at;
  switch (waiter->outcome()) {
    case Outcome::kAdmitted:
      now = bucket->state().Now();
      self->reservation = waiter->Claim(now).release();
      break;
    case Outcome::kDeadline:
      self->outcome = RequestOutcome::kDeadline;
      RaiseDeadline(self->deadline, at >= kUntold ? kUntold : at - self->submitted);
      break;
    case Outcome::kNever:
      self->outcome = RequestOutcome::kNeverFits;
      RaiseTooLarge(scheduler, bucket, self->path, Wanted(self), bucket->state().Now());
      break;
    case Outcome::kDropped:
      self->outcome = RequestOutcome::kDropped;
      Py_XDECREF(
          PyObject_CallMethodOneArg(scheduler, str_dropped, reinterpret_cast<PyObject*>(bucket)));
      break;
    default:
      self->outcome = RequestOutcome::kStopped;
      RaiseStopped();
  }
  waiter->Unref();
  if (self->reservation == nullptr) return Fail(self);
  self->outcome = RequestOutcome::kFailed;
  if (bucket->counts != nullptr) bucket->counts->Late(now - at);
  return Launch(self, at, result);
}

// It suspends for the first time in this attempt: from now on its time is bounded. What it took so
// far is seen as nothing: it has not suspended in it.
bool ArmTimer(CallObject* self) {
  if (self->timeout == kNever || self->timer != nullptr) return true;
  return CallLater(self, self->timeout, str_expire);
}

// How many requests to cancel a task there are. False with an error set.
bool ReadCancelling(PyObject* task, long& out) {
  out = 0;
#if PY_VERSION_HEX >= 0x030B0000
  if (task == Py_None) return true;
  PyObject* count = PyObject_CallMethod(task, "cancelling", nullptr);
  if (count == nullptr) return false;
  out = PyLong_AsLong(count);
  Py_DECREF(count);
#else
  static_cast<void>(task);
#endif
  return true;
}

bool KnowTask(CallObject* self) {
  if (self->task != nullptr) return true;
  if (!KnowLoop(self)) return false;
  self->task = PyObject_CallNoArgs(current_task);
  // As asyncio.timeout does: what others have asked for by now is not ours to take back.
  return self->task != nullptr && ReadCancelling(self->task, self->cancelling);
}

// Cancels the task, to be told apart from others who do.
bool CancelTask(CallObject* self) {
  if (self->task == nullptr || self->task == Py_None || self->cancelled_by_us) return true;
  long now = 0;
  if (!ReadCancelling(self->task, now)) return false;
  // Somebody else's is on its way, and will do.
  if (now > self->cancelling) return true;
  self->cancelled_by_us = true;
  PyObject* done = PyObject_CallMethodNoArgs(self->task, str_cancel);
  Py_XDECREF(done);
  return done != nullptr;
}

// After the inner iterator has ended, one way or the other: takes our request to cancel back.
// Returns whether nobody else has made one.
bool TakeBackCancel(CallObject* self) {
  if (!std::exchange(self->cancelled_by_us, false)) return false;
#if PY_VERSION_HEX >= 0x030B0000
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject* left = PyObject_CallMethod(self->task, "uncancel", nullptr);
  const bool alone = left != nullptr && PyLong_AsLong(left) <= self->cancelling;
  Py_XDECREF(left);
  PyErr_Clear();
  PyErr_Restore(type, value, traceback);
  return alone;
#else
  return true;
#endif
}

// Where the set error is the cancellation that we have asked for: what it stands for instead.
void Translate(CallObject* self) {
  if (!self->cancelled_by_us) return;
  const bool ours = TakeBackCancel(self);
  if (!ours || PyErr_ExceptionMatches(cancelled_error) == 0) return;
  PyObject* cancelled = TakeError();
  if (self->stopped) {
    self->outcome = RequestOutcome::kStopped;
    RaiseError("SchedulerStoppedError", "the scheduler was stopped while this was under way");
  } else {
    self->outcome = RequestOutcome::kTimedOut;
    PyObject* seconds = PyFloat_FromDouble(Seconds(self->timeout));
    PyObject* text =
        seconds == nullptr ? nullptr : PyUnicode_FromFormat("Request timed out after %Rs", seconds);
    if (text != nullptr) RaiseError("RequestTimeoutError", PyUnicode_AsUTF8(text));
    Py_XDECREF(text);
    Py_XDECREF(seconds);
  }
  PyObject* error = TakeError();
  PyException_SetContext(error, cancelled);
  RestoreError(error);
  Py_DECREF(error);
}

// Asks the Python side what an attempt has come to. It gives None where that is final, or an
// awaitable that gives whether to try again.
int Judge(CallObject* self, PyObject* result, PyObject* error) {
  PyObject* arguments[] = {reinterpret_cast<PyObject*>(self->scheduler), Object(self), result,
                           error};
  PyObject* verdict =
      PyObject_VectorcallMethod(str_judge, arguments, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  if (verdict == nullptr) {
    // It is ours, and does not raise; but the request must not hang on that.
    PyErr_WriteUnraisable(Object(self));
    verdict = Py_NewRef(Py_None);
  }
  Land(self, /*answered=*/error == Py_None);
  if (verdict == Py_None) {
    Py_DECREF(verdict);
    return 0;
  }
  self->inner = IteratorOf(verdict);
  Py_DECREF(verdict);
  if (self->inner == nullptr) {
    PyErr_Clear();
    return 0;
  }
  self->phase = Phase::kJudging;
  return kGoOn;
}

bool IsPlain(PyObject* result) {
  return result == Py_None || PyUnicode_CheckExact(result) || PyBytes_CheckExact(result) ||
         PyLong_CheckExact(result) || PyFloat_CheckExact(result) || PyBool_Check(result) ||
         PyList_CheckExact(result) || PyTuple_CheckExact(result);
}

// Whether a result may say something about limits or usage, or is a stream.
bool IsTelling(PyObject* result) {
  if (IsPlain(result)) return false;
  if (PyDict_CheckExact(result))
    return PyDict_GetItemWithError(result, str_usage) != nullptr ||
           PyDict_GetItemWithError(result, str_response_headers) != nullptr;
  if (PyGen_CheckExact(result) || PyAsyncGen_CheckExact(result)) return true;
  for (PyObject* name : str_interesting) {
    PyObject* value = PyObject_GetAttr(result, name);
    if (value != nullptr) {
      Py_DECREF(value);
      return true;
    }
    PyErr_Clear();  // whatever it raised: the Python side looks again, and says so
  }
  return false;
}

// The request function has returned.
int Succeeded(CallObject* self, PyObject* value, PyObject** result) {
  Py_CLEAR(self->inner);
  TakeBackCancel(self);
  CancelTimer(self);
  if (self->bucket->guarded == 0 && !IsTelling(value)) {
    Land(self, /*answered=*/true);
    return Return(self, value, result);
  }
  self->result = value;
  if (const int judged = Judge(self, value, Py_None); judged == kGoOn) return kGoOn;
  return Return(self, std::exchange(self->result, nullptr), result);
}

// The request function has raised; the error is set.
int Raised(CallObject* self) {
  Py_CLEAR(self->inner);
  Translate(self);
  PyObject* error = TakeError();  // first: nothing of Python may be called with one set
  CancelTimer(self);
  if (PyErr_GivenExceptionMatches(error, PyExc_Exception) == 0 || self->stopped) {
    RestoreError(error);
    Py_DECREF(error);
    return Fail(self);
  }
  if (PyErr_GivenExceptionMatches(error, called_off_error) != 0) {
    Py_DECREF(error);
    // Nothing was sent, so it was no attempt.
    Land(self, /*answered=*/false);
    --self->attempt;
    --self->bucket->attempts;
    self->called_off = true;
    self->phase = Phase::kAdmitting;
    return kGoOn;
  }
  Py_XSETREF(self->error, error);
  if (const int judged = Judge(self, Py_None, error); judged == kGoOn) return kGoOn;
  RestoreError(self->error);
  return Fail(self);
}

// `_judge` has said whether to try again.
int Judged(CallObject* self, PyObject* verdict, PyObject** result) {
  Py_CLEAR(self->inner);
  const int again = PyObject_IsTrue(verdict);
  Py_DECREF(verdict);
  if (again < 0) return Fail(self);
  if (again != 0 && !self->stopped) {
    Py_CLEAR(self->result);
    self->outcome = RequestOutcome::kFailed;
    self->phase = Phase::kAdmitting;
    return kGoOn;
  }
  if (self->result != nullptr) return Return(self, std::exchange(self->result, nullptr), result);
  RestoreError(self->error);
  return Fail(self);
}

// What the inner iterator has done.
int Drove(CallObject* self, PySendResult sent, PyObject* value, PyObject** result) {
  if (sent == PYGEN_NEXT) {
    if (!KnowTask(self) || (self->phase == Phase::kCalling && !ArmTimer(self)) ||
        // Told before it could be reached through its task: cancelled as it is suspended.
        (self->stopped && !CancelTask(self))) {
      Py_XDECREF(value);
      return Fail(self);
    }
    return Yield(value, result);
  }
  switch (self->phase) {
    case Phase::kPreparing:
      if (sent == PYGEN_RETURN) return Prepared(self, value);
      break;
    case Phase::kCalling:
      return sent == PYGEN_RETURN ? Succeeded(self, value, result) : Raised(self);
    default:
      if (sent == PYGEN_RETURN) return Judged(self, value, result);
  }
  Py_CLEAR(self->inner);
  Translate(self);
  // It is not tried again, for that would be too late.
  if (self->phase == Phase::kJudging && IsError("DeadlineExceededError"))
    self->outcome = RequestOutcome::kDeadline;
  return Fail(self);
}

int Drive(CallObject* self, PyObject* given, PyObject** result) {
  // The call of the request function itself may have raised. A StopIteration would be taken for a
  // result further up (PEP 479).
  if (self->inner == nullptr) {
    if (PyErr_ExceptionMatches(PyExc_StopIteration) != 0) {
      PyObject* stop = TakeError();
      PyErr_SetString(PyExc_RuntimeError, "request_func raised StopIteration");
      PyObject* error = TakeError();
      PyException_SetCause(error, stop);
      RestoreError(error);
      Py_DECREF(error);
    }
    return Drove(self, PYGEN_ERROR, nullptr, result);
  }
  PyObject* inner = Py_NewRef(self->inner);
  PyObject* value = nullptr;
  const PySendResult sent = SendInside(self, inner, given, &value);
  Py_DECREF(inner);
  return Drove(self, sent, value, result);
}

PySendResult Step(CallObject* self, PyObject* given, PyObject** result) {
  int done = kGoOn;
  while (done == kGoOn) {
    switch (self->phase) {
      case Phase::kNew:
        done = Prepare(self);
        break;
      case Phase::kAdmitting:
        done = Admit(self, result);
        break;
      case Phase::kWaiting:
        done = Waited(self, result);
        break;
      case Phase::kOver:
        PyErr_SetString(PyExc_RuntimeError,
                        "this submit_request() was awaited already: each one is for one await");
        return PYGEN_ERROR;
      default:
        done = Drive(self, given, result);
    }
    given = Py_None;
  }
  return static_cast<PySendResult>(done);
}

// What it drives may turn on it. False with an error set: it is in a step already.
bool Enter(CallObject* self) {
  if (self->stepping) {
    PyErr_SetString(PyExc_RuntimeError, "this submit_request() is already executing");
    return false;
  }
  self->stepping = true;
  Py_INCREF(Object(self));  // what it drives may drop the last other reference
  return true;
}

void Leave(CallObject* self) {
  self->stepping = false;
  Py_DECREF(Object(self));
}

PySendResult Send(PyObject* object, PyObject* value, PyObject** result) {
  *result = nullptr;
  if (!Enter(Self(object))) return PYGEN_ERROR;
  const PySendResult done = Step(Self(object), value, result);
  Leave(Self(object));
  return done;
}

PyObject* AsIterator(PySendResult done, PyObject* result) {
  if (done == PYGEN_NEXT) return result;
  if (done == PYGEN_RETURN) {
    // An exception or a tuple as the value would be taken apart.
    PyObject* stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop != nullptr) {
      PyErr_SetObject(PyExc_StopIteration, stop);
      Py_DECREF(stop);
    }
  }
  return nullptr;
}

PyObject* Next(PyObject* object) {
  PyObject* result = nullptr;
  const PySendResult done = Send(object, Py_None, &result);
  return AsIterator(done, result);
}

PyObject* SendMethod(PyObject* object, PyObject* value) {
  PyObject* result = nullptr;
  const PySendResult done = Send(object, value, &result);
  return AsIterator(done, result);
}

PyObject* Await(PyObject* object) { return Py_NewRef(object); }

// The exception that throw() was given, new; null with a TypeError.
PyObject* Thrown(PyObject* const* args, Py_ssize_t count) {
  if (count < 1 || count > 3) {
    PyErr_SetString(PyExc_TypeError, "throw() takes one to three arguments");
    return nullptr;
  }
  if (PyExceptionInstance_Check(args[0])) return Py_NewRef(args[0]);
  if (!PyExceptionClass_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError,
                    "exceptions must be classes or instances deriving from BaseException");
    return nullptr;
  }
  PyErr_Restore(Py_NewRef(args[0]), count > 1 && args[1] != Py_None ? Py_NewRef(args[1]) : nullptr,
                count > 2 && args[2] != Py_None ? Py_NewRef(args[2]) : nullptr);
  return TakeError();
}

// The task was cancelled: by others, by its loop, or by us because its time is over.
PyObject* Throw(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  CallObject* self = Self(object);
  PyObject* error = Thrown(args, count);
  if (error == nullptr) return nullptr;
  if (!Enter(self)) {
    Py_DECREF(error);
    return nullptr;
  }
  PyObject* result = nullptr;
  int done = PYGEN_ERROR;
  if (self->inner == nullptr) {
    RestoreError(error);
    Translate(self);
    if (self->phase != Phase::kOver) done = Fail(self);
  } else {
    PyObject* inner = Py_NewRef(self->inner);
    PyObject* value = PyObject_CallMethodOneArg(inner, str_throw, error);
    Py_DECREF(inner);
    PySendResult sent = PYGEN_NEXT;
    if (value == nullptr) {
      sent = PYGEN_ERROR;
      if (PyErr_ExceptionMatches(PyExc_StopIteration) != 0) {
        PyObject* stop = TakeError();
        value = PyObject_GetAttrString(stop, "value");
        Py_DECREF(stop);
        if (value != nullptr) sent = PYGEN_RETURN;
      }
    }
    done = Drove(self, sent, value, &result);
    if (done == kGoOn) done = Step(self, Py_None, &result);
  }
  Py_DECREF(error);
  PyObject* out = AsIterator(static_cast<PySendResult>(done), result);
  Leave(self);
  return out;
}

PyObject* Close(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->phase == Phase::kOver) Py_RETURN_NONE;
  if (!Enter(self)) return nullptr;
  const bool begun = self->phase != Phase::kNew;
  PyObject* inner = std::exchange(self->inner, nullptr);
  PyObject* closed = Py_NewRef(Py_None);
  if (inner != nullptr && PyObject_HasAttr(inner, str_close) != 0)
    Py_XSETREF(closed, PyObject_CallMethodNoArgs(inner, str_close));
  Py_XDECREF(inner);
  if (begun && self->bucket != nullptr) {
    ++self->bucket->cancelled;
    if (self->bucket->counts != nullptr) self->bucket->counts->Count(RequestOutcome::kCancelled);
  }
  // While an error may be set, which is the inner one's.
  PyObject* error = closed == nullptr ? TakeError() : nullptr;
  End(self);
  if (error != nullptr) {
    RestoreError(error);
    Py_DECREF(error);
  }
  Leave(self);
  return closed;
}

PyObject* Expire(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  Py_CLEAR(self->timer);
  if (self->phase != Phase::kCalling || self->stopped) Py_RETURN_NONE;
  if (!CancelTask(self)) return nullptr;
  Py_RETURN_NONE;
}

// From any thread: it is not to go on. RuntimeError where its loop is closed.
PyObject* StopMethod(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->phase == Phase::kOver) Py_RETURN_NONE;
  self->stopped = true;
  // In its first step, it looks before it is suspended. Else its loop sees to it.
  if (self->loop == nullptr) Py_RETURN_NONE;
  PyObject* stop = PyObject_GetAttr(object, str_stop_here);
  PyObject* told = stop == nullptr ? nullptr
                                   : PyObject_CallMethodObjArgs(
                                         self->loop, str_call_soon_threadsafe, stop, nullptr);
  Py_XDECREF(stop);
  return told;
}

// From any thread: no attempt begins any more, though its task has yet to be cancelled.
PyObject* RevokeMethod(PyObject* object, PyObject* /*unused*/) {
  Self(object)->revoked = true;
  Py_RETURN_NONE;
}

// On its loop.
PyObject* StopHere(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->phase == Phase::kOver || self->phase == Phase::kNew) Py_RETURN_NONE;
  if (self->wait.future != nullptr) {
    PyObject* future = Py_NewRef(self->wait.future);
    Resolve(future);
    Py_DECREF(future);
  } else if (!CancelTask(self)) {
    return nullptr;
  }
  Py_RETURN_NONE;
}

// On the loop that will run it: it counts as on its way from now on.
PyObject* EnlistMethod(PyObject* object, PyObject* /*unused*/) {
  if (!KnowLoop(Self(object))) return nullptr;
  Link(Self(object));
  Py_RETURN_NONE;
}

PyObject* SettleMethod(PyObject* object, PyObject* used) {
  CallObject* self = Self(object);
  if (self->reservation == nullptr) Py_RETURN_FALSE;
  State& state = self->bucket->state();
  python::Amounts actual;
  if (!ReadUsed(state, used, actual)) return nullptr;
  const bool ended = self->reservation->Settle(state.Now(), actual.span(state));
  if (ended && self->bucket->counts != nullptr)
    self->bucket->counts->Ended(Wanted(self), actual.span(state));
  if (ended) TellRemote(self);
  self->told_end |= ended;
  state.Serve();
  return PyBool_FromLong(ended ? 1 : 0);
}

PyObject* RefusedMethod(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->reservation == nullptr) Py_RETURN_FALSE;
  State& state = self->bucket->state();
  const bool told = self->reservation->Answered(state.Now(), /*refused=*/true);
  if (self->bucket->counts != nullptr) self->bucket->counts->Count(BucketEvent::kRefusal);
  state.Serve();
  return PyBool_FromLong(told ? 1 : 0);
}

PyObject* FailedMethod(PyObject* object, PyObject* /*unused*/) {
  if (Reservation* reservation = Self(object)->reservation; reservation != nullptr)
    reservation->Failed();
  Py_RETURN_NONE;
}

PyObject* AnsweredMethod(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->reservation == nullptr) Py_RETURN_FALSE;
  State& state = self->bucket->state();
  const bool told = self->reservation->Answered(state.Now(), /*refused=*/false);
  state.Serve();
  return PyBool_FromLong(told ? 1 : 0);
}

PyObject* RecordMethod(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->reservation == nullptr) Py_RETURN_NONE;
  return RecordOf(self->bucket->state(), *self->reservation);
}

PyObject* CancelMethod(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->reservation == nullptr) Py_RETURN_FALSE;
  State& state = self->bucket->state();
  const bool ended = self->reservation->Cancel(state.Now());
  if (ended && self->bucket->counts != nullptr) self->bucket->counts->Cancelled(Wanted(self));
  self->told_end |= ended;
  state.Serve();
  return PyBool_FromLong(ended ? 1 : 0);
}

PyObject* DetachMethod(PyObject* object, PyObject* /*unused*/) {
  CallObject* self = Self(object);
  if (self->reservation == nullptr) Py_RETURN_NONE;
  Reservation* detached = std::exchange(self->reservation, nullptr);
  if (self->shared != nullptr) return std::exchange(self->shared, nullptr);
  std::unique_ptr<Reservation> reservation(detached);
  return MakeReservation(&self->bucket->state(), std::move(reservation), self->path);
}

PyObject* Waiting(PyObject* object, void* /*unused*/) {
  const Phase phase = Self(object)->phase;
  return PyBool_FromLong(phase != Phase::kCalling && phase != Phase::kOver ? 1 : 0);
}

PyObject* Over(PyObject* object, void* /*unused*/) {
  return PyBool_FromLong(Self(object)->phase == Phase::kOver ? 1 : 0);
}

PyObject* Waited(PyObject* object, void* /*unused*/) {
  const CallObject* self = Self(object);
  return PyFloat_FromDouble(Seconds(self->admitted - self->submitted));
}

PyObject* Amounts(PyObject* object, void* /*unused*/) {
  CallObject* self = Self(object);
  if (self->amounts == nullptr) return PyTuple_New(0);
  return TupleOf(Wanted(self));
}

int Traverse(PyObject* object, visitproc visit, void* arg) {
  CallObject* self = Self(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->scheduler);
  Py_VISIT(self->metadata);
  Py_VISIT(self->function);
  Py_VISIT(self->bucket);
  Py_VISIT(self->wait.future);
  Py_VISIT(self->inner);
  Py_VISIT(self->result);
  Py_VISIT(self->error);
  Py_VISIT(self->loop);
  Py_VISIT(self->task);
  Py_VISIT(self->timer);
  return 0;
}

int Clear(PyObject* object) {
  CallObject* self = Self(object);
  if (self->phase != Phase::kOver && self->phase != Phase::kNew) End(self);
  Py_CLEAR(self->metadata);
  Py_CLEAR(self->function);
  Py_CLEAR(self->inner);
  Py_CLEAR(self->result);
  Py_CLEAR(self->error);
  Py_CLEAR(self->loop);
  Py_CLEAR(self->task);
  return 0;
}

void Finalize(PyObject* object) {
  CallObject* self = Self(object);
  if (self->phase != Phase::kNew && self->phase != Phase::kOver) {
    // Nobody will step it any more. Here, where it may still be looked at: ending it runs Python.
    PyObject* type = nullptr;
    PyObject* value = nullptr;
    PyObject* traceback = nullptr;
    PyErr_Fetch(&type, &value, &traceback);
    if (self->bucket != nullptr) {
      ++self->bucket->cancelled;
      if (self->bucket->counts != nullptr) self->bucket->counts->Count(RequestOutcome::kCancelled);
    }
    End(self);
    PyErr_Restore(type, value, traceback);
  }
  if (self->phase != Phase::kNew) return;
  Unlink(self);
  WarnUnawaited(object, "a submit_request() was never awaited: nothing was sent");
}

void Dealloc(PyObject* object) {
  CallObject* self = Self(object);
  if (PyObject_CallFinalizerFromDealloc(object) < 0) return;
  PyObject_GC_UnTrack(object);
  Clear(object);
  if (self->amounts != self->few_amounts) delete[] self->amounts;
  if (self->path != nullptr) self->path->Unref();
  Py_XDECREF(self->bucket);
  Py_XDECREF(self->scheduler);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"send", &SendMethod, METH_O, nullptr},
    {"throw", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Throw)), METH_FASTCALL,
     nullptr},
    {"close", &Close, METH_NOARGS, nullptr},
    {"_expire", &Expire, METH_NOARGS, nullptr},
    {"_stop", &StopMethod, METH_NOARGS, nullptr},
    {"_stop_here", &StopHere, METH_NOARGS, nullptr},
    {"_revoke", &RevokeMethod, METH_NOARGS, nullptr},
    {"_enlist", &EnlistMethod, METH_NOARGS, nullptr},
    {"settle", &SettleMethod, METH_O,
     "settle($self, used, /)\n--\n\nEnds the attempt's reservation with what was used, by "
     "resource."},
    {"refused", &RefusedMethod, METH_NOARGS,
     "refused($self)\n--\n\nThe provider did not admit the attempt."},
    {"failed", &FailedMethod, METH_NOARGS,
     "failed($self)\n--\n\nThe attempt's answer is a failure, and says nothing of limits."},
    {"answered", &AnsweredMethod, METH_NOARGS,
     "answered($self)\n--\n\nAn answer has come, even if it is an error's."},
    {"record", &RecordMethod, METH_NOARGS,
     "record($self)\n--\n\nWhat is known of the attempt, whose answer has come; None where nothing "
     "is learnt from it."},
    {"cancel_reservation", &CancelMethod, METH_NOARGS,
     "cancel_reservation($self)\n--\n\nGives the attempt's reservation back: nothing was sent."},
    {"detach", &DetachMethod, METH_NOARGS,
     "detach($self)\n--\n\nThe attempt's Reservation, whose end is the caller's affair from now "
     "on; "
     "None where it has ended."},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef members[] = {
    {"metadata", T_OBJECT, offsetof(CallObject, metadata), READONLY, nullptr},
    {"bucket", T_OBJECT, offsetof(CallObject, bucket), READONLY, nullptr},
    {"loop", T_OBJECT, offsetof(CallObject, loop), READONLY, nullptr},
    {"result", T_OBJECT, offsetof(CallObject, result), 0, nullptr},
    {"attempt", T_INT, offsetof(CallObject, attempt), READONLY, nullptr},
    {"submitted", T_LONGLONG, offsetof(CallObject, submitted), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyGetSetDef properties[] = {
    {"waiting", &Waiting, nullptr, nullptr, nullptr},
    {"waited", &Waited, nullptr, nullptr, nullptr},
    {"over", &Over, nullptr, nullptr, nullptr},
    {"amounts", &Amounts, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_finalize, reinterpret_cast<void*>(&Finalize)},
    {Py_tp_traverse, reinterpret_cast<void*>(&Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(&Clear)},
    {Py_am_await, reinterpret_cast<void*>(&Await)},
    {Py_am_send, reinterpret_cast<void*>(&Send)},
    {Py_tp_iter, reinterpret_cast<void*>(&Await)},
    {Py_tp_iternext, reinterpret_cast<void*>(&Next)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("What Scheduler.submit_request returns: `await` it once.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.Call", sizeof(CallObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                        Py_TPFLAGS_IMMUTABLETYPE,
                    slots};

}  // namespace

PyObject* LiveCalls(SchedulerParts& parts) {
  PyObject* list = PyList_New(0);
  for (CallObject* call = parts.live; list != nullptr && call != nullptr; call = call->next)
    if (PyList_Append(list, Object(call)) < 0) Py_CLEAR(list);
  return list;
}

void ForgetCalls(SchedulerParts& parts) {
  for (CallObject* call = parts.live; call != nullptr; call = call->next) call->linked = false;
  parts.live = nullptr;
  parts.unfinished = 0;
}

PyObject* MakeCall(SchedulerObject* scheduler, PyObject* metadata, PyObject* function) {
  auto* self = Self(call_type->tp_alloc(call_type, 0));
  if (self == nullptr) return nullptr;
  self->scheduler = AsScheduler(Py_NewRef(reinterpret_cast<PyObject*>(scheduler)));
  self->metadata = Py_NewRef(metadata);
  self->function = Py_NewRef(function);
  self->timeout = kNever;
  self->deadline = kNever;
  self->outcome = RequestOutcome::kFailed;
  return Object(self);
}

bool AddCall(PyObject* module) {
  const auto intern = [](const char* text) { return PyUnicode_InternFromString(text); };
  str_prepare = intern("_prepare");
  str_guard = intern("_guard");
  str_judge = intern("_judge");
  str_ended = intern("_ended");
  str_overflow = intern("_overflow");
  str_dropped = intern("_dropped");
  str_metadata_names[0] = intern("model_id");
  str_metadata_names[1] = intern("resource_type");
  str_metadata_names[2] = intern("requires_model");
  str_metadata_names[3] = intern("client_id");
  str_interesting[0] = intern("__aiter__");
  str_interesting[1] = intern("headers");
  str_interesting[2] = intern("status_code");
  str_interesting[3] = intern("usage");
  str_interesting[4] = intern("response");
  str_interesting[5] = intern("cached_rate_limit_headers");
  str_interesting[6] = intern("status");
  str_interesting[7] = intern("_headers");
  str_interesting[8] = intern("__pydantic_private__");
  str_interesting[9] = intern("set_iterator");
  str_interesting[10] = intern("keys");  // a mapping of some kind
  str_usage = intern("usage");
  str_response_headers = intern("_response_headers");
  str_throw = intern("throw");
  str_close = intern("close");
  str_cancel = intern("cancel");
  str_call_later = intern("call_later");
  str_expire = intern("_expire");
  str_stop_here = intern("_stop_here");
  str_call_soon_threadsafe = intern("call_soon_threadsafe");
  PyObject* asyncio = PyImport_ImportModule("asyncio");
  if (asyncio == nullptr) return false;
  cancelled_error = PyObject_GetAttrString(asyncio, "CancelledError");
  current_task = PyObject_GetAttrString(asyncio, "current_task");
  Py_DECREF(asyncio);
  if (cancelled_error == nullptr || current_task == nullptr) return false;
  called_off_error = PyErr_NewExceptionWithDoc(
      "headway._core.CalledOff",
      "Raised by a request function whose attempt was called off before it was sent: it waits "
      "once more.",
      PyExc_Exception, nullptr);
  if (called_off_error == nullptr ||
      PyModule_AddObjectRef(module, "CalledOff", called_off_error) < 0)
    return false;
  call_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return call_type != nullptr && PyModule_AddType(module, call_type) == 0;
}

}  // namespace headway::python
