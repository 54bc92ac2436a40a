// bindings/acquire.cc: the awaitable that Limiter.acquire returns, and the blocking wait.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <system_error>

#include "bindings/state.h"

namespace headway::python {

PyTypeObject* acquire_type = nullptr;

namespace {

// Awaited once: it is its own iterator. Admitted at once with nobody waiting, its first step
// returns the reservation: no future, no queue, no task switch. Else the first step submits a wait
// and yields a future of the running loop, which the loop's mailbox resolves.
struct AcquireObject {
  PyObject_HEAD State* state;
  Wait wait;              // while waiting
  PyObject* reservation;  // after admission, for `async with`
  Nanos timeout;
  std::int32_t priority;
  enum class Step : std::uint8_t { kNew, kWaiting, kOver } step;
  std::int64_t inline_amounts[2];
  std::int64_t* amounts;  // inline_amounts, or on the heap for more resources
};
using Step = AcquireObject::Step;

PyObject* str_settle = nullptr;
PyObject* str_expire = nullptr;

AcquireObject* Self(PyObject* self) { return reinterpret_cast<AcquireObject*>(self); }

absl::Span<const std::int64_t> Wanted(const AcquireObject* self) {
  return {self->amounts, self->state->resources.size()};
}

// Gives up a wait: afterwards it is not admitted, or what it was admitted to has been given back.
void Withdraw(AcquireObject* self) {
  self->step = Step::kOver;
  Py_CLEAR(self->wait.future);
  Waiter* waiter = std::exchange(self->wait.waiter, nullptr);
  if (waiter == nullptr) return;
  waiter->cookie = nullptr;
  self->state->scheduler().Cancel(waiter, self->state->Now());
  waiter->Unref();
  self->state->Serve();
}

int Traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(Self(object)->wait.future);
  Py_VISIT(Self(object)->reservation);
  return 0;
}

int Clear(PyObject* object) {
  AcquireObject* self = Self(object);
  if (self->step == Step::kWaiting) Withdraw(self);
  Py_CLEAR(self->wait.future);
  Py_CLEAR(self->reservation);
  return 0;
}

// One whose task was cancelled before its first step has been thrown at, and says nothing.
void Finalize(PyObject* object) {
  if (Self(object)->step == Step::kNew)
    WarnUnawaited(object, "an acquire() was never awaited: nothing was acquired");
}

void Dealloc(PyObject* object) {
  AcquireObject* self = Self(object);
  // Asked here, too: those that were awaited need not pay for the call.
  if (self->step == Step::kNew && PyObject_CallFinalizerFromDealloc(object) < 0) return;
  PyObject_GC_UnTrack(object);
  Clear(object);
  if (self->amounts != self->inline_amounts) delete[] self->amounts;
  self->state->Unref();
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

// Ends the iteration with the reservation as the value of the `await`.
PyObject* Return(AcquireObject* self, std::unique_ptr<Reservation> admitted) {
  self->step = Step::kOver;
  PyObject* reservation = MakeReservation(self->state, std::move(admitted));
  if (reservation == nullptr) return nullptr;
  Py_XSETREF(self->reservation, reservation);
  return reservation;
}

// What a wait that is over has come to: a new Reservation, or null with its error set.
PyObject* OutcomeOf(State* state, Waiter& waiter, absl::Span<const std::int64_t> wanted,
                    Nanos timeout) {
  switch (waiter.outcome()) {
    case Outcome::kAdmitted:
      return MakeReservation(state, waiter.Claim(state->Now()));
    case Outcome::kDeadline:
      return RaiseDeadline(timeout,
                           waiter.at() >= kUntold ? kUntold : waiter.at() - waiter.submitted());
    case Outcome::kNever:
      return RaiseNever(*state, state->bucket->Look(state->Now(), wanted).meter, wanted);
    default:
      return RaiseStopped();
  }
}

// What became of a wait that is over; as Return, or an error.
PyObject* ReturnOutcome(AcquireObject* self) {
  Waiter* waiter = std::exchange(self->wait.waiter, nullptr);
  self->step = Step::kOver;
  Py_CLEAR(self->wait.future);
  PyObject* reservation = OutcomeOf(self->state, *waiter, Wanted(self), self->timeout);
  // It may still lie in the mailbox, where somebody else than its future has made this step happen.
  waiter->cookie = nullptr;
  waiter->Unref();
  if (reservation != nullptr) Py_XSETREF(self->reservation, reservation);
  return reservation;
}

// The first step. Returns true and leaves `*yielded` null when it is over (result in `*result`, or
// an error set), else the future to yield.
PyObject* Begin(AcquireObject* self, PyObject** yielded) {
  State& state = *self->state;
  const Nanos now = state.Now();
  auto reservation = std::make_unique<Reservation>();
  const std::optional<Denial> denial =
      state.bucket->TryReserve(now, Wanted(self), /*privileged=*/false, *reservation);
  if (!denial) return Return(self, std::move(reservation));
  state.Serve();
  self->step = Step::kOver;
  if (denial->never()) return RaiseNever(state, denial->meter, Wanted(self));
  PyObject* loop = nullptr;
  Mailbox* mailbox = MailboxOfRunningLoop(&loop);
  if (mailbox == nullptr) return nullptr;
  PyObject* future = MakeFuture(loop);
  Py_DECREF(loop);
  if (future == nullptr) return nullptr;
  const Nanos deadline = self->timeout == kNever ? kNever : now + self->timeout;
  if (!StartDispatcher(state)) {
    Py_DECREF(future);
    return nullptr;
  }
  self->wait.future = Py_NewRef(future);
  self->step = Step::kWaiting;
  self->wait.waiter = state.scheduler().Submit(state.bucket, Wanted(self), self->priority, now,
                                               deadline, mailbox, &self->wait);
  state.Serve();
  *yielded = future;
  return nullptr;
}

PySendResult Send(PyObject* object, PyObject* /*value*/, PyObject** result) {
  AcquireObject* self = Self(object);
  *result = nullptr;
  if (self->step == Step::kOver) {
    PyErr_SetString(PyExc_RuntimeError,
                    "this acquire() was awaited already: each one is for one await");
    return PYGEN_ERROR;
  }
  if (self->step == Step::kNew) {
    PyObject* yielded = nullptr;
    PyObject* returned = Begin(self, &yielded);
    if (yielded != nullptr) {
      *result = yielded;
      return PYGEN_NEXT;
    }
    *result = Py_XNewRef(returned);
    return returned != nullptr ? PYGEN_RETURN : PYGEN_ERROR;
  }
  if (self->wait.waiter->outcome() == Outcome::kWaiting) {
    // Resumed by something else than the admission: go on waiting on the same future.
    if (!MarkYielded(self->wait.future)) return PYGEN_ERROR;
    *result = Py_NewRef(self->wait.future);
    return PYGEN_NEXT;
  }
  PyObject* returned = ReturnOutcome(self);
  *result = Py_XNewRef(returned);
  return returned != nullptr ? PYGEN_RETURN : PYGEN_ERROR;
}

PyObject* Next(PyObject* object) {
  PyObject* result = nullptr;
  switch (Send(object, Py_None, &result)) {
    case PYGEN_NEXT:
      return result;
    case PYGEN_RETURN:
      PyErr_SetObject(PyExc_StopIteration, result);
      Py_DECREF(result);
      return nullptr;
    default:
      return nullptr;
  }
}

PyObject* Await(PyObject* object) { return Py_NewRef(object); }

PyObject* AEnter(PyObject* object, PyObject* /*unused*/) { return Py_NewRef(object); }

PyObject* SendMethod(PyObject* object, PyObject* /*value*/) { return Next(object); }

// The task was cancelled, or its loop was: also between its wake-up and this step.
PyObject* Throw(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  Withdraw(Self(object));
  if (count < 1 || count > 3) {
    PyErr_SetString(PyExc_TypeError, "throw() takes one to three arguments");
    return nullptr;
  }
  if (PyExceptionInstance_Check(args[0])) {
    PyErr_SetObject(PyExceptionInstance_Class(args[0]), args[0]);
  } else if (PyExceptionClass_Check(args[0])) {
    PyErr_Restore(Py_NewRef(args[0]),
                  count > 1 && args[1] != Py_None ? Py_NewRef(args[1]) : nullptr,
                  count > 2 && args[2] != Py_None ? Py_NewRef(args[2]) : nullptr);
  } else {
    PyErr_SetString(PyExc_TypeError,
                    "exceptions must be classes or instances deriving from BaseException");
  }
  return nullptr;
}

PyObject* Close(PyObject* object, PyObject* /*unused*/) {
  if (Self(object)->step == Step::kWaiting) Withdraw(Self(object));
  Self(object)->step = Step::kOver;
  Py_RETURN_NONE;
}

PyObject* AExit(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  AcquireObject* self = Self(object);
  if (self->reservation != nullptr) {
    // A body that has raised may have had no answer; that it had one, it would have to say.
    const bool raised = count > 0 && args[0] != Py_None;
    PyObject* settled =
        PyObject_CallMethodNoArgs(self->reservation, raised ? str_expire : str_settle);
    if (settled == nullptr) return nullptr;
    Py_DECREF(settled);
  }
  // An awaitable that is satisfied: this object again, past its end, would raise; a tiny iterator
  // does.
  static PyObject* done = nullptr;
  if (done == nullptr) {
    PyObject* module = PyImport_ImportModule("headway._loop");
    if (module == nullptr) return nullptr;
    done = PyObject_GetAttrString(module, "DONE");
    Py_DECREF(module);
    if (done == nullptr) return nullptr;
  }
  return Py_NewRef(done);
}

PyMethodDef methods[] = {
    {"send", &SendMethod, METH_O, nullptr},
    {"throw", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Throw)), METH_FASTCALL,
     nullptr},
    {"close", &Close, METH_NOARGS, nullptr},
    {"__aenter__", &AEnter, METH_NOARGS, nullptr},
    {"__aexit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&AExit)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr},
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
    {Py_tp_doc,
     const_cast<char*>(
         "What Limiter.acquire returns: `await` it once, or use it in one `async with`.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.Acquire", sizeof(AcquireObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                        Py_TPFLAGS_IMMUTABLETYPE,
                    slots};

}  // namespace

PyObject* MakeAcquire(State* state, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  WaitOptions options;
  Amounts amounts;
  if (!ReadAmounts(*state, args, count, amounts) || !ReadWaitOptions(args + count, names, options))
    return nullptr;
  auto* self = reinterpret_cast<AcquireObject*>(acquire_type->tp_alloc(acquire_type, 0));
  if (self == nullptr) return nullptr;
  state->Ref();
  self->state = state;
  self->timeout = options.timeout;
  self->priority = options.priority;
  const std::size_t n = state->resources.size();
  self->amounts = n <= 2 ? self->inline_amounts : new std::int64_t[n];
  std::copy_n(amounts.values, n, self->amounts);
  return reinterpret_cast<PyObject*>(self);
}

PyObject* AcquireSync(State* state, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  WaitOptions options;
  Amounts amounts;
  if (!ReadAmounts(*state, args, count, amounts) || !ReadWaitOptions(args + count, names, options))
    return nullptr;
  const auto wanted = amounts.span(*state);
  const Nanos now = state->Now();
  auto reservation = std::make_unique<Reservation>();
  const std::optional<Denial> denial =
      state->bucket->TryReserve(now, wanted, /*privileged=*/false, *reservation);
  if (!denial) return MakeReservation(state, std::move(reservation));
  state->Serve();
  if (denial->never()) return RaiseNever(*state, denial->meter, wanted);
  Mailbox* mailbox = MailboxOfThread();
  if (mailbox == nullptr || !StartDispatcher(*state)) return nullptr;
  const Nanos deadline = options.timeout == kNever ? kNever : now + options.timeout;
  state->Ref();  // the limiter may go while the GIL is released
  Waiter* waiter = state->scheduler().Submit(state->bucket, wanted, options.priority, now, deadline,
                                             mailbox, nullptr);
  state->Serve();
  PyObject* result = nullptr;
  if (Block(mailbox, waiter)) {
    result = OutcomeOf(state, *waiter, wanted, options.timeout);
  } else {
    state->scheduler().Cancel(waiter, state->Now());
  }
  waiter->Unref();
  state->Serve();
  state->Unref();
  return result;
}

bool AddAcquire(PyObject* module) {
  str_settle = PyUnicode_InternFromString("settle");
  str_expire = PyUnicode_InternFromString("expire");
  acquire_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return acquire_type != nullptr && PyModule_AddType(module, acquire_type) == 0;
}

}  // namespace headway::python
