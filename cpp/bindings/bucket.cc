// bindings/bucket.cc: BucketCore, a bucket as one scheduler sees it.
#include "bindings/scheduler.h"

#include <structmember.h>

namespace headway::python {

PyTypeObject* bucket_type = nullptr;

namespace {

int Index(const State& state, const char* resource) {
  for (std::size_t i = 0; i < state.resources.size(); ++i)
    if (state.resources[i] == resource) return static_cast<int>(i);
  return -1;
}

bool Limits(const State& state, const char* resource) {
  for (const Limit& limit : state.limits)
    if (limit.resource == resource && limit.amount < Limit::kMaxAmount) return true;
  return false;
}

}  // namespace

// Where only what goes in is limited, that is what an estimate is an estimate of.
void FindTokens(const BucketObject* self) {
  const State& state = self->state();
  self->learnt = state.learnt;
  const bool input = Limits(state, "input_tokens") && !Limits(state, "tokens");
  self->tokens = Index(state, input ? "input_tokens" : "tokens");
}

namespace {

// BucketCore(scheduler, limiter, name, label): `label` is that of the scheduler in metrics, or
// None.
PyObject* New(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"scheduler", "limiter", "name", "label", nullptr};
  PyObject* scheduler = nullptr;
  PyObject* limiter = nullptr;
  PyObject* name = nullptr;
  const char* label = nullptr;
  if (PyArg_ParseTupleAndKeywords(args, kwargs, "O!OUz", const_cast<char**>(names), scheduler_type,
                                  &scheduler, &limiter, &name, &label) == 0)
    return nullptr;
  const char* text = PyUnicode_AsUTF8(name);
  if (text == nullptr) return nullptr;
  State* state = StateOfLimiter(limiter);
  if (state == nullptr) return nullptr;
  auto* self = AsBucket(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  state->Ref();
  self->limiter.state = state;
  self->name = Py_NewRef(name);
  self->path = new Path(state->bucket, AsScheduler(scheduler)->parts->gate->bucket,
                        /*account=*/nullptr, AsScheduler(scheduler)->parts->ageing);
  if (label != nullptr) self->counts = new BucketCounts(label, text, *state);
  self->requests = Index(*state, "requests");
  self->concurrency = Index(*state, "concurrency");
  FindTokens(self);
  return reinterpret_cast<PyObject*>(self);
}

int Init(PyObject* /*self*/, PyObject* /*args*/, PyObject* /*kwargs*/) { return 0; }

void Dealloc(PyObject* object) {
  BucketObject* self = AsBucket(object);
  // Nobody can wait here any more: each of them holds it.
  if (self->remote != 0) self->state().scheduler().SetSupplier(*self->state().bucket, nullptr);
  delete self->counts;
  if (self->path != nullptr) self->path->Unref();
  Py_XDECREF(self->name);
  limiter_type->tp_dealloc(object);  // the words, and the type
}

PyObject* Cool(PyObject* object, PyObject* seconds) {
  State& state = AsBucket(object)->state();
  Nanos wait = 0;
  if (!ReadSeconds(seconds, "seconds", wait)) return nullptr;
  state.bucket->Cool(state.Now() + wait);
  if (AsBucket(object)->counts != nullptr) AsBucket(object)->counts->Count(BucketEvent::kCoolDown);
  Py_RETURN_NONE;
}

PyObject* CooledFor(PyObject* object, void* /*unused*/) {
  const State& state = AsBucket(object)->state();
  return PyFloat_FromDouble(
      Seconds(std::max<Nanos>(0, state.bucket->cooled_until() - state.Now())));
}

// _learnt(): limits have changed, or come to it.
PyObject* Learnt(PyObject* object, PyObject* /*unused*/) {
  BucketObject* self = AsBucket(object);
  FindTokens(self);
  if (self->counts != nullptr) self->counts->NameLimits();
  Py_RETURN_NONE;
}

// Of calls in their callers' own threads, which are counted as they go along.

// _count(what): an attempt met a "refusal", or how a request has ended;
// "refused": it was not admitted, and _admit has counted why.
PyObject* Count(PyObject* object, PyObject* what) {
  BucketObject* self = AsBucket(object);
  const char* text = PyUnicode_AsUTF8(what);
  if (text == nullptr) return nullptr;
  const std::string name = text;
  if (name == "refusal") {
    if (self->counts != nullptr) self->counts->Count(BucketEvent::kRefusal);
    Py_RETURN_NONE;
  }
  ++(name == "succeeded" ? self->succeeded : name == "cancelled" ? self->cancelled : self->failed);
  if (self->counts == nullptr || name == "refused") Py_RETURN_NONE;
  self->counts->Count(name == "succeeded"   ? RequestOutcome::kSucceeded
                      : name == "breaker"   ? RequestOutcome::kBreaker
                      : name == "stopped"   ? RequestOutcome::kStopped
                      : name == "cancelled" ? RequestOutcome::kCancelled
                      : name == "deadline"  ? RequestOutcome::kDeadline
                                            : RequestOutcome::kFailed);
  Py_RETURN_NONE;
}

// _explained(verdict): of a refusal.
PyObject* Explained(PyObject* object, PyObject* verdict) {
  const char* text = PyUnicode_AsUTF8(verdict);
  if (text == nullptr) return nullptr;
  for (std::size_t i = 0; i < kRefusalCauses; ++i) {
    const auto cause = static_cast<RefusalCause>(i);
    if (RefusalCauseName(cause) != text) continue;
    if (AsBucket(object)->counts != nullptr) AsBucket(object)->counts->Count(cause);
    Py_RETURN_NONE;
  }
  return PyErr_Format(PyExc_ValueError, "verdict %R: there is none of that name", verdict);
}

// _began(reserved, retry): an attempt.
PyObject* Began(PyObject* object, PyObject* args) {
  BucketObject* self = AsBucket(object);
  PyObject* reserved = nullptr;
  int retry = 0;
  Amounts amounts;
  if (PyArg_ParseTuple(args, "Op", &reserved, &retry) == 0 ||
      !ReadTuple(self->state(), reserved, amounts))
    return nullptr;
  self->AddInFlight(1);
  ++self->attempts;
  if (self->counts == nullptr) Py_RETURN_NONE;
  self->counts->Count(BucketEvent::kAttempt);
  if (retry != 0) self->counts->Count(BucketEvent::kRetry);
  self->counts->Reserved(amounts.span(self->state()));
  Py_RETURN_NONE;
}

// _returned(): the function of an attempt has.
PyObject* Returned(PyObject* object, PyObject* /*unused*/) {
  AsBucket(object)->AddInFlight(-1);
  Py_RETURN_NONE;
}

// _settled(reserved, used): of a reservation. used: by name; None: nothing, it is given back.
PyObject* Settled(PyObject* object, PyObject* args) {
  PyObject* reserved = nullptr;
  PyObject* used = nullptr;
  if (PyArg_ParseTuple(args, "OO", &reserved, &used) == 0) return nullptr;
  const BucketObject* self = AsBucket(object);
  const State& state = self->state();
  Amounts amounts;
  Amounts actual;
  if (!ReadTuple(state, reserved, amounts)) return nullptr;
  if (used != Py_None && !ReadUsed(state, used, actual)) return nullptr;
  if (self->counts == nullptr) Py_RETURN_NONE;
  if (used == Py_None) {
    self->counts->Cancelled(amounts.span(state));
  } else {
    self->counts->Ended(amounts.span(state), actual.span(state));
  }
  Py_RETURN_NONE;
}

// _odd(): an answer said something that could not be read.
PyObject* Odd(PyObject* object, PyObject* /*unused*/) {
  BucketObject* self = AsBucket(object);
  ++self->oddities;
  if (self->counts != nullptr) self->counts->Count(BucketEvent::kOddity);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"_learnt", &Learnt, METH_NOARGS, nullptr},
    {"_odd", &Odd, METH_NOARGS, nullptr},
    {"_count", &Count, METH_O, nullptr},
    {"_explained", &Explained, METH_O, nullptr},
    {"_began", &Began, METH_VARARGS, nullptr},
    {"_returned", &Returned, METH_NOARGS, nullptr},
    {"_settled", &Settled, METH_VARARGS, nullptr},
    {"cool", &Cool, METH_O,
     "cool($self, seconds, /)\n--\n\n"
     "Admits nothing for so long. A shorter time than what is left of an earlier one changes "
     "nothing."},
    {nullptr, nullptr, 0, nullptr},
};

#define HEADWAY_COUNT(name, doc) \
  { #name, T_LONGLONG, offsetof(BucketObject, name), READONLY, doc }
PyMemberDef members[] = {
    {"name", T_OBJECT_EX, offsetof(BucketObject, name), READONLY, "The bucket's id."},
    {"tokens_place", T_INT, offsetof(BucketObject, tokens), READONLY,
     "Which of the amounts is that of estimated_tokens; -1: none."},
    {"guarded", T_BOOL, offsetof(BucketObject, guarded), 0,
     "Whether the scheduler's _guard is called before each admission."},
    HEADWAY_COUNT(queued, "How many calls wait in this scheduler's queue for it."),
    HEADWAY_COUNT(in_flight, "How many attempts are under way."),
    HEADWAY_COUNT(submitted, "Calls that asked for admission."),
    HEADWAY_COUNT(succeeded, "Calls that returned."),
    HEADWAY_COUNT(failed, "Calls that raised."),
    HEADWAY_COUNT(cancelled, "Calls that were cancelled."),
    HEADWAY_COUNT(attempts, "Times that a request function was called."),
    HEADWAY_COUNT(oddities, "Values in answers, about limits, that could not be read."),
    {nullptr, 0, 0, 0, nullptr},
};
#undef HEADWAY_COUNT

// What `_contenders` calls it.
PyObject* Which(PyObject* object, void* /*unused*/) {
  return PyLong_FromSsize_t(reinterpret_cast<Py_ssize_t>(AsBucket(object)->state().bucket));
}

PyGetSetDef properties[] = {
    {"_which", &Which, nullptr, nullptr, nullptr},
    {"cooled_for", &CooledFor, nullptr, "Seconds until it admits again after a refusal, or 0.0.",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(&New)},
    {Py_tp_init, reinterpret_cast<void*>(&Init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("BucketCore(scheduler, limiter, name, label)\n--\n\n"
                                  "A bucket as one scheduler sees it, over a limiter's words.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.BucketCore", sizeof(BucketObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

}  // namespace

bool AddBucket(PyObject* module) {
  PyObject* bases = PyTuple_Pack(1, limiter_type);
  if (bases == nullptr) return false;
  bucket_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpecWithBases(&spec, bases));
  Py_DECREF(bases);
  return bucket_type != nullptr && PyModule_AddType(module, bucket_type) == 0;
}

}  // namespace headway::python
