// bindings/denial.cc: the Denial type: a falsy value that says what binds.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bindings/state.h"

#include <structmember.h>

namespace headway::python {

PyTypeObject* denial_type = nullptr;

namespace {

struct DenialObject {
  PyObject_HEAD PyObject* limit;
  double retry_after;
  bool cooling;
};

DenialObject* Self(PyObject* self) { return reinterpret_cast<DenialObject*>(self); }

void Dealloc(PyObject* object) {
  Py_XDECREF(Self(object)->limit);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

int IsTrue(PyObject* /*self*/) { return 0; }

PyObject* Repr(PyObject* object) {
  PyObject* seconds = PyFloat_FromDouble(Self(object)->retry_after);
  if (seconds == nullptr) return nullptr;
  PyObject* out =
      Self(object)->cooling
          ? PyUnicode_FromFormat("<headway.Denial: waits for an answer, retry_after=%R>", seconds)
          : PyUnicode_FromFormat("<headway.Denial: '%S' binds, retry_after=%R>",
                                 Self(object)->limit, seconds);
  Py_DECREF(seconds);
  return out;
}

PyMemberDef members[] = {
    {"limit", T_OBJECT, offsetof(DenialObject, limit), READONLY, "The Limit that binds."},
    {"retry_after", T_DOUBLE, offsetof(DenialObject, retry_after), READONLY,
     "Seconds until it would fit if nothing else happened; inf where it never can. Where that "
     "depends on\n"
     "answers still out (a full concurrency limit, a window of calls in flight) it is 0.1: nobody "
     "knows, and whoever sleeps that long and asks again does not spin."},
    {"cooling", T_BOOL, offsetof(DenialObject, cooling), READONLY,
     "Whether no limit binds, but its bucket cools down after a refusal, or its first answer is "
     "waited for.\n`limit` is its first then, or None."},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(&Repr)},
    {Py_nb_bool, reinterpret_cast<void*>(&IsTrue)},
    {Py_tp_members, members},
    {Py_tp_doc, const_cast<char*>("Why a cost is not admitted now. Falsy, so that `if r := "
                                  "limiter.try_reserve(1):` reads well.")},
    {0, nullptr},
};

PyType_Spec spec = {
    "headway._core.Denial", sizeof(DenialObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

PyObject* MakeDenial(State* state, const Denial& denial, Nanos now) {
  auto* self = reinterpret_cast<DenialObject*>(denial_type->tp_alloc(denial_type, 0));
  if (self == nullptr) return nullptr;
  try {
    const auto place = static_cast<std::size_t>(std::max(0, denial.meter));
    const bool known = place < state->limits.size();
    self->limit = (known ? py::cast(state->limits[place]) : py::object(py::none())).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
    Py_DECREF(self);
    return nullptr;
  }
  self->cooling = denial.meter == Denial::kCooling;
  self->retry_after = denial.never() ? std::numeric_limits<double>::infinity()
                      : denial.ready_at >= kUntold
                          ? 0.1
                          : Seconds(std::max<Nanos>(0, denial.ready_at - now));
  return reinterpret_cast<PyObject*>(self);
}

bool AddDenial(PyObject* module) {
  denial_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return denial_type != nullptr && PyModule_AddType(module, denial_type) == 0;
}

}  // namespace headway::python
