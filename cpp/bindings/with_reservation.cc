// bindings/with_reservation.cc: the WithReservation type, by hand on the C API.
#include <cstddef>

#include "bindings/scheduler.h"

#include <structmember.h>

namespace headway::python {

PyTypeObject* with_reservation_type = nullptr;

namespace {

struct WithReservationObject {
  PyObject_HEAD PyObject* function;
};

WithReservationObject* Self(PyObject* self) {
  return reinterpret_cast<WithReservationObject*>(self);
}

PyObject* New(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"function", nullptr};
  PyObject* function = nullptr;
  if (PyArg_ParseTupleAndKeywords(args, kwargs, "O", const_cast<char**>(names), &function) == 0)
    return nullptr;
  if (PyCallable_Check(function) == 0) {
    PyErr_Format(PyExc_TypeError, "function %R: must be callable with a Reservation", function);
    return nullptr;
  }
  PyObject* self = type->tp_alloc(type, 0);
  if (self != nullptr) Self(self)->function = Py_NewRef(function);
  return self;
}

int Traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(Self(object)->function);
  return 0;
}

int Clear(PyObject* object) {
  Py_CLEAR(Self(object)->function);
  return 0;
}

void Dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  Clear(object);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMemberDef members[] = {
    {"function", T_OBJECT_EX, offsetof(WithReservationObject, function), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(&New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(&Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(&Clear)},
    {Py_tp_members, members},
    {Py_tp_doc,
     const_cast<char*>(
         "WithReservation(function)\n--\n\n"
         "A request function that marks its own attempts, for transports: each attempt is\n"
         "`function(reservation)`, with the Reservation that the attempt was admitted with. What "
         "it\n"
         "does not say, the scheduler says for it; the reservation ends with the attempt.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.WithReservation", sizeof(WithReservationObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

PyObject* FunctionOf(PyObject* with_reservation) { return Self(with_reservation)->function; }

bool AddWithReservation(PyObject* module) {
  with_reservation_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return with_reservation_type != nullptr && PyModule_AddType(module, with_reservation_type) == 0;
}

}  // namespace headway::python
