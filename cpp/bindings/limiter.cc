// bindings/limiter.cc: the Limiter type's hot verbs, by hand on the C API.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/state.h"

#include <structmember.h>

namespace headway::python {

PyTypeObject* limiter_type = nullptr;

namespace {

LimiterObject* Self(PyObject* self) { return reinterpret_cast<LimiterObject*>(self); }

State* StateOf(PyObject* self) { return StateOfLimiter(self); }

// Concurrency first, then rates in the order given: a refusal there is the cheapest to roll back.
State* MakeState(const std::vector<Limit>& given, std::shared_ptr<VirtualTime> time,
                 std::vector<std::string> resources, double learns, double cold,
                 bool proportional) {
  auto* state = new State;
  state->time = std::move(time);
  state->resources = std::move(resources);
  std::vector<Limit> limits = given;
  std::vector<std::uint8_t> resource_of;
  for (const Limit& limit : given)
    if (std::find(state->resources.begin(), state->resources.end(), limit.resource) ==
        state->resources.end())
      state->resources.push_back(limit.resource);
  std::stable_partition(limits.begin(), limits.end(),
                        [](const Limit& l) { return l.shape == Shape::kConcurrency; });
  for (const Limit& limit : limits) {
    const auto at = std::find(state->resources.begin(), state->resources.end(), limit.resource);
    resource_of.push_back(static_cast<std::uint8_t>(at - state->resources.begin()));
    state->has_concurrency |= limit.shape == Shape::kConcurrency;
  }
  for (const std::string& name : state->resources)
    state->defaults.push_back(name == "requests" || name == "concurrency" ? 1 : 0);
  state->limits = std::move(limits);
  state->bucket =
      Bucket::Make(state->limits, resource_of, state->WallOffset(), &state->scheduler(),
                   learns > 0 ? State::kMostLearnt : 0, static_cast<int>(state->resources.size()));
  if (cold > 0) state->bucket->StartCold(static_cast<Nanos>(cold * 1e9));
  if (learns > 0)
    state->learner = std::make_unique<Learner>(
        state->bucket, state->resources,
        Learner::Options{learns, proportional ? Debt::kProportional : Debt::kAbsolute});
  return state;
}

int Init(PyObject* object, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"limits", "clock", "resources",    "credit",
                                "learns", "cold",  "proportional", nullptr};
  PyObject* limits = nullptr;
  PyObject* clock = Py_None;
  PyObject* first = nullptr;
  PyObject* credit = nullptr;
  double learns = 0;
  double cold = 0;
  int proportional = 0;
  if (PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OOddp", const_cast<char**>(names), &limits,
                                  &clock, &first, &credit, &learns, &cold, &proportional) == 0)
    return -1;
  if (Self(object)->state != nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "Limiter.__init__ was called twice");
    return -1;
  }
  try {
    std::shared_ptr<VirtualTime> time;
    if (clock != Py_None) time = py::cast<std::shared_ptr<VirtualTime>>(py::handle(clock));
    auto checked = py::cast<std::vector<Limit>>(py::handle(limits));
    std::vector<std::string> resources;
    if (first != nullptr) resources = py::cast<std::vector<std::string>>(py::handle(first));
    const std::vector<std::string> numbered = resources;
    for (const Limit& l : checked)
      if (std::find(resources.begin(), resources.end(), l.resource) == resources.end())
        resources.push_back(l.resource);
    if ((checked.empty() && first == nullptr) || resources.size() > State::kMaxResources)
      throw py::value_error("limits: there must be at least 1, over at most " +
                            std::to_string(State::kMaxResources) + " resources");
    // What a remote backend grants.
    if (credit != nullptr) {
      for (const auto& resource : py::cast<std::vector<std::string>>(py::handle(credit))) {
        Limit granted;
        granted.amount = Limit::kMaxAmount;
        granted.resource = resource;
        granted.shape = Shape::kCredit;
        checked.push_back(granted);
      }
    }
    Self(object)->state =
        MakeState(checked, std::move(time), numbered, learns, cold, proportional != 0);
  } catch (py::error_already_set& error) {
    error.restore();
    return -1;
  } catch (const py::value_error& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return -1;
  } catch (const std::system_error& error) {
    RaiseSystemError(error);
    return -1;
  } catch (const py::cast_error&) {
    PyErr_SetString(PyExc_TypeError,
                    "limits must be Limit objects, and clock a ManualClock or None");
    return -1;
  }
  return 0;
}

void Dealloc(PyObject* object) {
  if (Self(object)->weakrefs != nullptr) PyObject_ClearWeakRefs(object);
  if (Self(object)->state != nullptr) Self(object)->state->Unref();
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* TryAcquire(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  State* state = StateOf(object);
  Amounts amounts;
  if (state == nullptr || !ReadAmounts(*state, args, count, amounts)) return nullptr;
  if (state->has_concurrency) {
    PyErr_SetString(PyExc_ValueError,
                    "try_acquire() with a concurrency limit would leave nothing to give back: use "
                    "try_reserve()");
    return nullptr;
  }
  const bool took = state->bucket->TryTake(state->Now(), amounts.span(*state));
  if (!took) state->Serve();
  return PyBool_FromLong(took);
}

PyObject* TryReserve(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  State* state = StateOf(object);
  Amounts amounts;
  if (state == nullptr || !ReadAmounts(*state, args, count, amounts)) return nullptr;
  const Nanos now = state->Now();
  auto reservation = std::make_unique<Reservation>();
  const std::optional<Denial> denial =
      state->bucket->TryReserve(now, amounts.span(*state), /*privileged=*/false, *reservation);
  if (!denial) return MakeReservation(state, std::move(reservation));
  state->Serve();
  if (denial->never()) return MakeDenial(state, *denial, now);
  // With others waiting, what counts is when its turn would come behind them.
  const Denial behind = state->scheduler().Estimate(*state->bucket, now, 0, amounts.span(*state));
  return MakeDenial(state, behind.ready_at > denial->ready_at ? behind : *denial, now);
}

PyObject* AcquireMethod(PyObject* object, PyObject* const* args, Py_ssize_t count,
                        PyObject* names) {
  State* state = StateOf(object);
  return state == nullptr ? nullptr : MakeAcquire(state, args, count, names);
}

PyObject* AcquireSyncMethod(PyObject* object, PyObject* const* args, Py_ssize_t count,
                            PyObject* names) {
  State* state = StateOf(object);
  return state == nullptr ? nullptr : AcquireSync(state, args, count, names);
}

PyMethodDef methods[] = {
    {"try_acquire", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&TryAcquire)),
     METH_FASTCALL,
     "try_acquire($self, *amounts)\n--\n\n"
     "Takes the amounts (in the order of `resources`) if all of it fits now and nobody waits; "
     "returns\n"
     "whether it did. A missing amount is 1 for requests, else 0. Never waits. Counts as answered "
     "at\n"
     "once, so it is not for a provider's `window`: there use try_reserve and say when it was "
     "answered.\n"
     "ValueError where a concurrency limit would leave nothing to give back. About as fast as a "
     "dict\n"
     "look-up; thread-safe."},
    {"try_reserve", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&TryReserve)),
     METH_FASTCALL,
     "try_reserve($self, *amounts)\n--\n\n"
     "As try_acquire, but returns a Reservation (truthy), or a Denial (falsy) that says which "
     "limit\n"
     "binds and for how long. Never waits. Thread-safe."},
    {"acquire", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&AcquireMethod)),
     METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, *amounts, priority=0, timeout=None)\n--\n\n"
     "Waits in turn until the amounts fit: `await` it for a Reservation, or use it in `async "
     "with`.\n\n"
     "priority: higher is more urgent; first in, first out among equals. timeout: seconds, or "
     "None.\n"
     "Raises CapacityExceededError where it can never fit, DeadlineExceededError where the wait is "
     "or\n"
     "will be longer than timeout. Nothing is taken before it is awaited; a wait that is cancelled "
     "gives\n"
     "its place back."},
    {"acquire_sync", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&AcquireSyncMethod)),
     METH_FASTCALL | METH_KEYWORDS,
     "acquire_sync($self, *amounts, priority=0, timeout=None)\n--\n\n"
     "As acquire, for threads: blocks the calling thread, without the GIL, and returns the "
     "Reservation,\n"
     "which is a context manager. Do not call it on an event loop's thread."},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(LimiterObject, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_init, reinterpret_cast<void*>(&Init)},
    {Py_tp_new, reinterpret_cast<void*>(&PyType_GenericNew)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_doc, const_cast<char*>("The core of headway.Limiter.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.LimiterCore", sizeof(LimiterObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

PyObject* Error(const char* name) {
  PyObject* module = PyImport_ImportModule("headway.errors");
  if (module == nullptr) return nullptr;
  PyObject* out = PyObject_GetAttrString(module, name);
  Py_DECREF(module);
  return out;
}

}  // namespace

PyObject* RaiseError(const char* name, const std::string& message) {
  PyObject* type = Error(name);
  if (type != nullptr) PyErr_SetString(type, message.c_str());
  Py_XDECREF(type);
  return nullptr;
}

bool IsError(const char* name) {
  PyObject* kind = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&kind, &value, &traceback);
  PyObject* type = Error(name);
  const bool is = type != nullptr && PyErr_GivenExceptionMatches(kind, type) != 0;
  Py_XDECREF(type);
  PyErr_Restore(kind, value, traceback);  // and not what looking it up may have raised
  return is;
}

std::string FormatSeconds(Nanos nanos) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f s", Seconds(nanos));
  return text;
}

State* StateOfLimiter(PyObject* limiter) {
  if (PyObject_TypeCheck(limiter, limiter_type) == 0) {
    PyErr_Format(PyExc_TypeError, "%R: must be a Limiter", limiter);
    return nullptr;
  }
  State* state = Self(limiter)->state;
  if (state == nullptr) PyErr_SetString(PyExc_RuntimeError, "Limiter.__init__ was not called");
  return state;
}

bool ReadAmounts(const State& state, PyObject* const* args, Py_ssize_t count, Amounts& out) {
  const auto n = static_cast<Py_ssize_t>(state.resources.size());
  if (count > n) {
    PyErr_Format(PyExc_TypeError,
                 "%zd amounts were given, but there are %zd resources (see .resources)", count, n);
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* given = args[i];
    if (!PyLong_CheckExact(given)) {
      if (PyBool_Check(given) || !PyIndex_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s %R: must be a whole number (int)",
                     state.resources[static_cast<std::size_t>(i)].c_str(), given);
        return false;
      }
    }
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(given, &overflow);
    if (value == -1 && PyErr_Occurred() != nullptr) return false;
    if (overflow != 0 || value < 0 || value > Limit::kMaxAmount) {
      PyErr_Format(PyExc_ValueError, "%s %R: must be from 0 to 2**53",
                   state.resources[static_cast<std::size_t>(i)].c_str(), given);
      return false;
    }
    out.values[i] = value;
  }
  for (Py_ssize_t i = count; i < n; ++i)
    out.values[i] = state.defaults[static_cast<std::size_t>(i)];
  return true;
}

bool ReadUsed(const State& state, PyObject* used, Amounts& out) {
  if (!PyDict_Check(used)) {
    PyErr_Format(PyExc_TypeError, "used %R: must be a dict of amounts by resource", used);
    return false;
  }
  const std::size_t n = state.resources.size();
  std::fill_n(out.values, n, -1);
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t at = 0;
  while (PyDict_Next(used, &at, &key, &value) != 0) {
    for (std::size_t i = 0; i < n; ++i) {
      if (!PyUnicode_Check(key) ||
          PyUnicode_CompareWithASCIIString(key, state.resources[i].c_str()) != 0)
        continue;
      out.values[i] = PyLong_AsLongLong(value);
      if (PyErr_Occurred() != nullptr || out.values[i] < 0 || out.values[i] > Limit::kMaxAmount) {
        PyErr_Format(PyExc_ValueError, "%U %R: must be from 0 to 2**53", key, value);
        return false;
      }
    }
  }
  return true;
}

bool ReadSeconds(PyObject* seconds, const char* what, Nanos& out) {
  const double value = PyFloat_AsDouble(seconds);
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) != 0)
      PyErr_Format(PyExc_TypeError, "%s %R: must be a number of seconds", what, seconds);
    return false;
  }
  if (!(value >= 0) || value > 1e9) {
    PyErr_Format(PyExc_ValueError, "%s %R: must be a number of seconds from 0 to 1e9", what,
                 seconds);
    return false;
  }
  out = static_cast<Nanos>(std::llround(value * 1e9));
  return true;
}

bool ReadWaitOptions(PyObject* const* values, PyObject* names, WaitOptions& out) {
  const Py_ssize_t count = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
      if (values[i] != Py_None && !ReadSeconds(values[i], "timeout", out.timeout)) return false;
    } else if (PyUnicode_CompareWithASCIIString(name, "priority") == 0) {
      const long value = PyLong_AsLong(values[i]);
      if (value == -1 && PyErr_Occurred() != nullptr) return false;
      if (value < -1'000'000'000 || value > 1'000'000'000) {
        PyErr_Format(PyExc_ValueError, "priority %R: must be from -10**9 to 10**9", values[i]);
        return false;
      }
      out.priority = static_cast<std::int32_t>(value);
    } else {
      PyErr_Format(PyExc_TypeError,
                   "unexpected keyword argument %R: there are priority and timeout", name);
      return false;
    }
  }
  return true;
}

PyObject* RaiseNever(const State& state, int meter, absl::Span<const std::int64_t> amounts) {
  const Limit& limit = state.limits[static_cast<std::size_t>(meter)];
  const std::int64_t wanted = amounts[static_cast<std::size_t>(state.bucket->resource(meter))];
  return RaiseError("CapacityExceededError",
                    "can never fit: needs " + std::to_string(wanted) + " " + limit.resource +
                        ", the limit '" + limit.Format() + "' admits " +
                        std::to_string(state.bucket->meter(meter).Capacity()) + " at once");
}

PyObject* RaiseDeadline(Nanos timeout, Nanos would_take) {
  std::string message = "not admitted within " + FormatSeconds(timeout);
  if (would_take < kUntold) message += ": it would have taken " + FormatSeconds(would_take);
  return RaiseError("DeadlineExceededError", message);
}

PyObject* RaiseStopped() {
  return RaiseError("SchedulerStoppedError", "the scheduler was stopped while this waited");
}

PyObject* RaiseSystemError(const std::system_error& error) {
  errno = error.code().value();
  return PyErr_SetFromErrno(PyExc_OSError);
}

bool AddLimiter(PyObject* module) {
  limiter_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return limiter_type != nullptr && PyModule_AddType(module, limiter_type) == 0;
}

}  // namespace headway::python
