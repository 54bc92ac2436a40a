// bindings/wait.cc: how a wait for admission suspends a task or blocks a thread.
#include <system_error>

#include "bindings/state.h"

namespace headway::python {
namespace {

PyObject* Interned(const char* name) { return PyUnicode_InternFromString(name); }

// A thread's own mailbox for blocking waits, made anew after a fork.
struct ThreadMailbox {
  Mailbox* mailbox = nullptr;
  unsigned fork_generation = 0;

  Mailbox* Get() {
    if (mailbox != nullptr && fork_generation != Dispatcher::ForkGeneration()) {
      mailbox->Unref();
      mailbox = nullptr;
    }
    if (mailbox == nullptr) {
      mailbox = new Mailbox;
      fork_generation = Dispatcher::ForkGeneration();
    }
    return mailbox;
  }
  ~ThreadMailbox() {
    if (mailbox == nullptr) return;
    TakeBack(mailbox->TakeAll(), nullptr);  // a wait that was interrupted just as it was admitted
    mailbox->Unref();
  }

  // Lets go of what was taken from a mailbox. Returns whether `awaited` was among it.
  static bool TakeBack(Waiter* oldest, const Waiter* awaited) {
    bool found = false;
    for (Waiter* done = oldest; done != nullptr;) {
      Waiter* next = done->next_in_mailbox;
      found |= done == awaited;
      done->Unref();
      done = next;
    }
    return found;
  }
};

}  // namespace

bool StartDispatcher(const State& state) {
  if (state.time != nullptr) return true;
  try {
    Dispatcher::Get().Start();
    return true;
  } catch (const std::system_error& error) {
    RaiseSystemError(error);
    return false;
  }
}

bool MarkYielded(PyObject* future) {
  // What a future's own __await__ does before it yields itself.
  static PyObject* blocking = Interned("_asyncio_future_blocking");
  return PyObject_SetAttr(future, blocking, Py_True) == 0;
}

void WarnUnawaited(PyObject* object, const char* text) {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  if (PyErr_WarnEx(PyExc_RuntimeWarning, text, 1) < 0) PyErr_WriteUnraisable(object);
  PyErr_Restore(type, value, traceback);
}

PyObject* MakeFuture(PyObject* loop) {
  static PyObject* create_future = Interned("create_future");
  PyObject* future = PyObject_CallMethodNoArgs(loop, create_future);
  if (future == nullptr) return nullptr;
  if (MarkYielded(future)) return future;
  Py_DECREF(future);
  return nullptr;
}

void Resolve(PyObject* future) {
  static PyObject* set_result = Interned("set_result");
  PyObject* set = PyObject_CallMethodOneArg(future, set_result, Py_None);
  if (set == nullptr) {
    // Already done: the task was cancelled, and will throw into the wait at its next step.
    PyObject* type = nullptr;
    PyObject* value = nullptr;
    PyObject* traceback = nullptr;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject* done = PyObject_CallMethod(future, "done", nullptr);
    if (done == Py_True) {
      Py_XDECREF(type);
      Py_XDECREF(value);
      Py_XDECREF(traceback);
    } else {
      PyErr_Restore(type, value, traceback);
      PyErr_WriteUnraisable(future);
    }
    Py_XDECREF(done);
  }
  Py_XDECREF(set);
}

void Complete(Wait& wait) {
  if (wait.future == nullptr) return;
  PyObject* future = Py_NewRef(wait.future);
  Resolve(future);
  Py_DECREF(future);
}

Mailbox* MailboxOfThread() {
  thread_local ThreadMailbox mailbox;
  try {
    // It is told of a use after the last Unref, which there is none of: it is set to null there.
    return mailbox.Get();  // NOLINT(clang-analyzer-cplusplus.NewDelete)
  } catch (const std::system_error& error) {
    RaiseSystemError(error);
    return nullptr;
  }
}

bool Block(Mailbox* mailbox, const Waiter* waiter) {
  // Until it has come out of the mailbox: what was left in there would keep the mailbox, and it
  // that. One that was cancelled from elsewhere never comes.
  while (!ThreadMailbox::TakeBack(mailbox->Drain(), waiter)) {
    if (waiter->outcome() == Outcome::kCancelled) return true;
    WakeFd::Wake wake{};
    {
      const py::gil_scoped_release released;
      wake = mailbox->wake().Wait(kNever);
    }
    if (wake == WakeFd::Wake::kInterrupted && PyErr_CheckSignals() < 0) return false;
  }
  return true;
}

}  // namespace headway::python
