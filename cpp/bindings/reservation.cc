// bindings/reservation.cc: the Reservation type, by hand on the C API.
#include <string>

#include "bindings/state.h"

namespace headway::python {

PyTypeObject* reservation_type = nullptr;

namespace {

struct ReservationObject {
  PyObject_HEAD State* state;
  Reservation* reservation;
  const Path* path;  // what it was admitted through, where that is more than one bucket
};

ReservationObject* Self(PyObject* self) { return reinterpret_cast<ReservationObject*>(self); }

void Dealloc(PyObject* object) {
  ReservationObject* self = Self(object);
  // Nobody will ever say what was used: rates keep the estimate, concurrency is given back.
  self->reservation->Expire(self->reservation->ExpiresInTime() ? self->state->Now() : 0);
  self->state->Serve();
  delete self->reservation;
  if (self->path != nullptr) self->path->Unref();
  self->state->Unref();
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* Done(ReservationObject* self, bool did) {
  self->state->Serve();
  return PyBool_FromLong(did);
}

PyObject* Sent(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  ReservationObject* self = Self(object);
  Nanos delay = -1;
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (count + named > 1 || (named == 1 && PyUnicode_CompareWithASCIIString(
                                              PyTuple_GET_ITEM(names, 0), "network_delay") != 0)) {
    PyErr_SetString(PyExc_TypeError, "sent() takes one argument at most, network_delay");
    return nullptr;
  }
  if (count + named == 1 && args[0] != Py_None && !ReadSeconds(args[0], "network_delay", delay))
    return nullptr;
  return Done(self, self->reservation->Sent(self->state->Now(), delay));
}

PyObject* Answered(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  ReservationObject* self = Self(object);
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (count + named > 1 || (named == 1 && PyUnicode_CompareWithASCIIString(
                                              PyTuple_GET_ITEM(names, 0), "refused") != 0)) {
    PyErr_SetString(PyExc_TypeError, "answered() takes one argument at most, refused");
    return nullptr;
  }
  const int refused = count + named == 1 ? PyObject_IsTrue(args[0]) : 0;
  if (refused < 0) return nullptr;
  return Done(self, self->reservation->Answered(self->state->Now(), refused != 0));
}

PyObject* Settle(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  ReservationObject* self = Self(object);
  if (count == 0) return Done(self, self->reservation->Settle(self->state->Now(), {}));
  Amounts actual;
  const auto resources = static_cast<Py_ssize_t>(self->state->resources.size());
  // What is not said stays as estimated.
  for (Py_ssize_t i = 0; i < resources; ++i) actual.values[i] = -1;
  Amounts said;
  if (!ReadAmounts(*self->state, args, count, said)) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) actual.values[i] = said.values[i];
  return Done(self, self->reservation->Settle(self->state->Now(), actual.span(*self->state)));
}

// settle_used({resource: amount})
PyObject* SettleUsed(PyObject* object, PyObject* used) {
  ReservationObject* self = Self(object);
  Amounts actual;
  if (!ReadUsed(*self->state, used, actual)) return nullptr;
  return Done(self, self->reservation->Settle(self->state->Now(), actual.span(*self->state)));
}

PyObject* Cancel(PyObject* object, PyObject* /*unused*/) {
  ReservationObject* self = Self(object);
  return Done(self, self->reservation->Cancel(self->state->Now()));
}

PyObject* Expire(PyObject* object, PyObject* /*unused*/) {
  ReservationObject* self = Self(object);
  return Done(self, self->reservation->Expire(self->state->Now()));
}

PyObject* Enter(PyObject* object, PyObject* /*unused*/) { return Py_NewRef(object); }

PyObject* Exit(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  ReservationObject* self = Self(object);
  // A body that has raised may have had no answer; that it had one, it would have to say.
  const bool raised = count > 0 && args[0] != Py_None;
  self->reservation->Settle(self->state->Now(), {}, /*answered=*/!raised);
  self->state->Serve();
  Py_RETURN_FALSE;
}

const char* Stage(const Reservation& r) {
  return r.ended() ? "ended" : r.answered() ? "answered" : r.sent() ? "sent" : "held";
}

PyObject* GetState(PyObject* object, void* /*unused*/) {
  return PyUnicode_FromString(Stage(*Self(object)->reservation));
}

PyObject* Repr(PyObject* object) {
  const ReservationObject* self = Self(object);
  return PyUnicode_FromFormat("<headway.Reservation %s>", Stage(*self->reservation));
}

PyObject* Record(PyObject* object, PyObject* /*unused*/) {
  return RecordOf(*Self(object)->state, *Self(object)->reservation);
}

PyObject* Failed(PyObject* object, PyObject* /*unused*/) {
  Self(object)->reservation->Failed();
  Py_RETURN_NONE;
}

// Whether a refusal is known since it was admitted, and it is not sent yet.
PyObject* IsCalledOff(PyObject* object, PyObject* /*unused*/) {
  return PyBool_FromLong(Self(object)->reservation->IsCalledOff() ? 1 : 0);
}

// While nothing is known of its bucket, and it went alone: for so many seconds in all.
PyObject* LetOthersWait(PyObject* object, PyObject* seconds) {
  Nanos hold = 0;
  if (!ReadSeconds(seconds, "seconds", hold)) return nullptr;
  Self(object)->reservation->LetOthersWait(hold);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"_record", &Record, METH_NOARGS, nullptr},
    {"_failed", &Failed, METH_NOARGS, nullptr},
    {"_is_called_off", &IsCalledOff, METH_NOARGS, nullptr},
    {"_let_others_wait", &LetOthersWait, METH_O, nullptr},
    {"sent", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Sent)),
     METH_FASTCALL | METH_KEYWORDS,
     "sent($self, network_delay=None)\n--\n\n"
     "The request goes out now: it cannot be cancelled any more.\n\n"
     "network_delay: the largest time, in seconds, that this host's connections recently took to "
     "carry\n"
     "a request there; a transport knows it. With it, a slot of a `window` or `fixed` limit is "
     "free one\n"
     "period after sent + network_delay (20 ms at least) or after the answer, whichever is "
     "earlier.\n"
     "Returns whether the reservation was held."},
    {"answered", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Answered)),
     METH_FASTCALL | METH_KEYWORDS,
     "answered($self, refused=False)\n--\n\n"
     "The first sign of an answer is there; refused=True for one that says the limit was passed.\n"
     "Returns whether that is new."},
    {"settle", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Settle)), METH_FASTCALL,
     "settle($self, *actual)\n--\n\n"
     "Ends it with what was really used, in the order of limiter.resources; what is not said stays "
     "as\n"
     "estimated. Less than the estimate is given back, more is taken. Returns whether this call "
     "ended it."},
    {"settle_used", &SettleUsed, METH_O,
     "settle_used($self, used, /)\n--\n\n"
     "As settle, with a dict of amounts by resource. What is not counted here is left out."},
    {"cancel", &Cancel, METH_NOARGS,
     "cancel($self)\n--\n\n"
     "Gives everything back, if it was not sent yet. Returns whether this call ended it."},
    {"expire", &Expire, METH_NOARGS,
     "expire($self)\n--\n\n"
     "Ends it at the estimate: rates keep it and heal by time, concurrency is given back. This is "
     "also\n"
     "what happens to a reservation that is garbage-collected. Returns whether this call ended "
     "it."},
    {"__enter__", &Enter, METH_NOARGS, nullptr},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Exit)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef properties[] = {
    {"state", &GetState, nullptr, "'held', 'sent', 'answered' or 'ended'.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(&Repr)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_doc,
     const_cast<char*>(
         "An admitted cost: held, then sent, answered and ended, exactly once.\n\n"
         "Made by Limiter.acquire, acquire_sync and try_reserve. Leaving its `with` block answers\n"
         "and settles it at the estimate, whether or not the body raised, if nothing else was "
         "said.\n"
         "Thread-safe: the first verb that ends it wins, later ones return False.")},
    {0, nullptr},
};

PyType_Spec spec = {
    "headway._core.Reservation", sizeof(ReservationObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

PyObject* MakeReservation(State* state, std::unique_ptr<Reservation> reservation,
                          const Path* path) {
  auto* self =
      reinterpret_cast<ReservationObject*>(reservation_type->tp_alloc(reservation_type, 0));
  if (self == nullptr) {
    reservation->Cancel(state->Now());
    return nullptr;
  }
  state->Ref();
  if (path != nullptr) path->Ref();
  self->state = state;
  self->path = path;
  self->reservation = reservation.release();
  return reinterpret_cast<PyObject*>(self);
}

bool AddReservation(PyObject* module) {
  reservation_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return reservation_type != nullptr && PyModule_AddType(module, reservation_type) == 0;
}

}  // namespace headway::python
