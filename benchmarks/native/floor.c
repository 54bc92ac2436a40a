/* benchmarks/native/floor.c: what the floors of the Python rows do that Python cannot do itself.
 *
 * Word.try_acquire has the body of Limiter.try_acquire for one `bucket` limit and nothing else: read
 * the argument, read the clock, load the word, compare-and-swap it, return a bool.
 * Ticker writes to a descriptor at given instants, from a thread that only sleeps. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static int64_t Now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef struct {
  PyObject_HEAD
  _Atomic int64_t word; /* the instant at which all that was taken will have been paid for */
  int64_t step;
  int64_t tolerance;
} Word;

static int WordInit(PyObject* object, PyObject* args, PyObject* kwargs) {
  Word* self = (Word*)object;
  long long step = 0;
  long long tolerance = 0;
  (void)kwargs;
  if (!PyArg_ParseTuple(args, "LL", &step, &tolerance)) return -1;
  self->step = step;
  self->tolerance = tolerance;
  return 0;
}

static PyObject* TryAcquire(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  Word* self = (Word*)object;
  if (count != 1 || !PyLong_CheckExact(args[0])) {
    PyErr_SetString(PyExc_TypeError, "one int");
    return NULL;
  }
  const long long amount = PyLong_AsLongLong(args[0]);
  if (amount == -1 && PyErr_Occurred()) return NULL;
  const int64_t now = Now();
  int64_t word = atomic_load_explicit(&self->word, memory_order_acquire);
  for (;;) {
    const int64_t after = (word > now ? word : now) + amount * self->step;
    if (after > now + self->tolerance) Py_RETURN_FALSE;
    if (atomic_compare_exchange_weak(&self->word, &word, after)) Py_RETURN_TRUE;
  }
}

static PyMethodDef word_methods[] = {
    {"try_acquire", (PyCFunction)(void*)TryAcquire, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject WordType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "headway_floor.Word",
    .tp_basicsize = sizeof(Word),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = WordInit,
    .tp_methods = word_methods,
};

typedef struct {
  PyObject_HEAD
  pthread_t thread;
  int running;
  int fd;
  int64_t start;
  int64_t step;
  int64_t count;
} Ticker;

static void* Tick(void* argument) {
  const Ticker* self = argument;
  prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); /* as the dispatcher's thread has it */
  for (int64_t i = 1; i <= self->count; ++i) {
    for (;;) {
      const int64_t left = self->start + i * self->step - Now();
      if (left <= 0) break;
      const struct timespec timeout = {left / 1000000000, left % 1000000000};
      ppoll(NULL, 0, &timeout, NULL);
    }
    const uint64_t one = 1;
    if (write(self->fd, &one, sizeof one) < 0) return NULL;
  }
  return NULL;
}

/* Ticker(fd, start, step, count): writes to fd at start + step, start + 2 step, ... (nanoseconds). */
static int TickerInit(PyObject* object, PyObject* args, PyObject* kwargs) {
  Ticker* self = (Ticker*)object;
  long long start = 0;
  long long step = 0;
  long long count = 0;
  (void)kwargs;
  if (!PyArg_ParseTuple(args, "iLLL", &self->fd, &start, &step, &count)) return -1;
  self->start = start;
  self->step = step;
  self->count = count;
  if (pthread_create(&self->thread, NULL, Tick, self) != 0) {
    PyErr_SetString(PyExc_RuntimeError, "no thread");
    return -1;
  }
  self->running = 1;
  return 0;
}

static PyObject* Join(PyObject* object, PyObject* unused) {
  Ticker* self = (Ticker*)object;
  (void)unused;
  if (self->running) {
    Py_BEGIN_ALLOW_THREADS
    pthread_join(self->thread, NULL);
    Py_END_ALLOW_THREADS
    self->running = 0;
  }
  Py_RETURN_NONE;
}

static PyMethodDef ticker_methods[] = {
    {"join", Join, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject TickerType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "headway_floor.Ticker",
    .tp_basicsize = sizeof(Ticker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = TickerInit,
    .tp_methods = ticker_methods,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "headway_floor", .m_size = -1};

PyMODINIT_FUNC PyInit_headway_floor(void) {
  PyObject* m = PyModule_Create(&module);
  if (m == NULL) return NULL;
  if (PyModule_AddType(m, &WordType) < 0 || PyModule_AddType(m, &TickerType) < 0) {
    Py_DECREF(m);
    return NULL;
  }
  return m;
}
