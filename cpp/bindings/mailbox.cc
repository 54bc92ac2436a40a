// bindings/mailbox.cc: one mailbox per event loop, drained by the loop itself.
#include <climits>
#include <utility>

#include "bindings/state.h"

namespace headway::python {
namespace {

struct MailboxObject {
  PyObject_HEAD Mailbox* mailbox;
  unsigned fork_generation;
  // Drained, and not completed yet, oldest first.
  Waiter* first;
  Waiter* last;
};

// So many are completed in one turn of the loop. What their tasks do then comes before the others
// are: memory that one has let go of is used by the next while it is still warm, nothing else that
// the loop has to do waits for a hundred thousand of them, and what lives briefly does not live
// long enough for the collector to count it among what is old.
constexpr int kAtOnce = 512;

PyTypeObject* mailbox_type = nullptr;

// The loop that asked last, weakly, and its mailbox: almost always the one that asks next.
PyObject* cached_loop = nullptr;
PyObject* cached_mailbox = nullptr;

MailboxObject* Self(PyObject* self) { return reinterpret_cast<MailboxObject*>(self); }

PyObject* New(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"socketpair", nullptr};
  int pair = 0;
  if (PyArg_ParseTupleAndKeywords(args, kwargs, "|p", const_cast<char**>(names), &pair) == 0)
    return nullptr;
  auto* self = reinterpret_cast<MailboxObject*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  try {
    self->mailbox = new Mailbox(pair != 0 ? WakeFd::Kind::kSocketPair : WakeFd::DefaultKind());
  } catch (const std::system_error& error) {
    Py_DECREF(self);
    return RaiseSystemError(error);
  }
  self->fork_generation = Dispatcher::ForkGeneration();
  return reinterpret_cast<PyObject*>(self);
}

void Append(MailboxObject* self, Waiter* oldest, Waiter* newest) {
  if (oldest == nullptr) return;
  (self->last != nullptr ? self->last->next_in_mailbox : self->first) = oldest;
  self->last = newest;
}

// What is done for one takes less time than fetching what lies about it, so that is fetched while
// others are seen to: the third from here as another core has left it, of the second who waits for
// it, of the next what that one is woken by. (All of them are alive while they are in the mailbox,
// and a cookie for as long as it is there.)
void FetchAhead(const Waiter* next) {
  if (next == nullptr) return;
  if (next->cookie != nullptr) __builtin_prefetch(static_cast<const Wait*>(next->cookie)->future);
  const Waiter* const second = next->next_in_mailbox;
  if (second == nullptr) return;
  if (second->cookie != nullptr) __builtin_prefetch(second->cookie);
  second->PrefetchReservation();
  if (second->next_in_mailbox != nullptr) second->next_in_mailbox->Prefetch();
}

void Complete(MailboxObject* self, int most) {
  for (; self->first != nullptr && most > 0; --most) {
    Waiter* done = self->first;
    self->first = done->next_in_mailbox;
    if (self->first == nullptr) self->last = nullptr;
    FetchAhead(self->first);
    // The object that waits detaches itself, under the GIL, before it goes.
    if (done->cookie != nullptr) python::Complete(*static_cast<Wait*>(done->cookie));
    done->Unref();
  }
}

void Dealloc(PyObject* object) {
  if (Mailbox* mailbox = Self(object)->mailbox; mailbox != nullptr) {
    // The descriptor may be the parent's of a fork, too: what makes it readable is left there.
    Waiter* newest = nullptr;
    Waiter* oldest = mailbox->TakeAll(&newest);
    Append(Self(object), oldest, newest);
    Complete(Self(object), INT_MAX);
    mailbox->Unref();
  }
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* Fileno(PyObject* object, PyObject* /*unused*/) {
  return PyLong_FromLong(Self(object)->mailbox->wake().fd());
}

PyObject* DrainMethod(PyObject* object, PyObject* /*unused*/) {
  // In a forked child, what its parent's loop is watching is the parent's.
  if (Self(object)->fork_generation != Dispatcher::ForkGeneration()) Py_RETURN_NONE;
  Py_INCREF(object);  // a completion may drop the loop's own reference
  Waiter* newest = nullptr;
  Waiter* oldest = Self(object)->mailbox->Drain(&newest);
  Append(Self(object), oldest, newest);
  Complete(Self(object), kAtOnce);
  if (Self(object)->first != nullptr) Self(object)->mailbox->wake().Signal();
  Py_DECREF(object);
  Py_RETURN_NONE;
}

PyObject* WaitMethod(PyObject* object, PyObject* /*unused*/) {
  WakeFd& wake = Self(object)->mailbox->wake();
  Py_BEGIN_ALLOW_THREADS wake.Wait(kNever);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

PyObject* SignalMethod(PyObject* object, PyObject* /*unused*/) {
  Self(object)->mailbox->wake().Signal();
  Py_RETURN_NONE;
}

PyObject* ClearMethod(PyObject* object, PyObject* /*unused*/) {
  Self(object)->mailbox->wake().Clear();
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"fileno", &Fileno, METH_NOARGS,
     "fileno($self)\n--\n\nThe descriptor that is readable while something is in it."},
    {"drain", &DrainMethod, METH_NOARGS,
     "drain($self)\n--\n\nResolves the futures of all finished waits. On the loop's thread only."},
    {"wait", &WaitMethod, METH_NOARGS,
     "wait($self)\n--\n\nBlocks until something is in it, without the GIL."},
    {"signal", &SignalMethod, METH_NOARGS, "signal($self)\n--\n\nMakes wait() return."},
    {"clear", &ClearMethod, METH_NOARGS,
     "clear($self)\n--\n\nMakes the descriptor unreadable until the next post."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(&New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>("Mailbox(socketpair=False)\n--\n\nWhere the core hands finished "
                                  "waits over to one event loop.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.Mailbox", sizeof(MailboxObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};

// Whether a weak reference still refers to that object.
bool Refers(PyObject* weak, PyObject* object) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* target = nullptr;
  const bool same = PyWeakref_GetRef(weak, &target) == 1 && target == object;
  Py_XDECREF(target);
  return same;
#else
  return PyWeakref_GetObject(weak) == object;
#endif
}

PyObject* Attribute(const char* module_name, const char* name) {
  PyObject* module = PyImport_ImportModule(module_name);
  if (module == nullptr) return nullptr;
  PyObject* out = PyObject_GetAttrString(module, name);
  Py_DECREF(module);
  return out;
}

}  // namespace

Mailbox* MailboxOf(PyObject* mailbox) {
  if (PyObject_TypeCheck(mailbox, mailbox_type) != 0) return Self(mailbox)->mailbox;
  PyErr_SetString(PyExc_TypeError, "must be a Mailbox");
  return nullptr;
}

Mailbox* MailboxOfRunningLoop(PyObject** loop_out) {
  static PyObject* get_running_loop = nullptr;
  static PyObject* mailbox_for = nullptr;
  if (get_running_loop == nullptr) {
    get_running_loop = Attribute("asyncio", "get_running_loop");
    mailbox_for = Attribute("headway._loop", "mailbox_for");
    if (get_running_loop == nullptr || mailbox_for == nullptr) {
      Py_CLEAR(get_running_loop);
      Py_CLEAR(mailbox_for);
      return nullptr;
    }
  }
  PyObject* loop = PyObject_CallNoArgs(get_running_loop);
  if (loop == nullptr) return nullptr;
  if (cached_loop == nullptr || !Refers(cached_loop, loop) ||
      Self(cached_mailbox)->fork_generation != Dispatcher::ForkGeneration()) {
    PyObject* mailbox = PyObject_CallOneArg(mailbox_for, loop);
    PyObject* weak = mailbox == nullptr ? nullptr : PyWeakref_NewRef(loop, nullptr);
    if (weak == nullptr || !PyObject_TypeCheck(mailbox, mailbox_type)) {
      if (weak != nullptr) PyErr_SetString(PyExc_TypeError, "mailbox_for() must return a Mailbox");
      Py_XDECREF(weak);
      Py_XDECREF(mailbox);
      Py_DECREF(loop);
      return nullptr;
    }
    Py_XSETREF(cached_loop, weak);
    Py_XSETREF(cached_mailbox, mailbox);
  }
  *loop_out = loop;
  return Self(cached_mailbox)->mailbox;
}

bool AddMailbox(PyObject* module) {
  mailbox_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return mailbox_type != nullptr && PyModule_AddType(module, mailbox_type) == 0;
}

}  // namespace headway::python
