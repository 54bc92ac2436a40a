// bindings/scheduler.cc: SchedulerCore, what headway.scheduler.Scheduler is made of.
#include "bindings/scheduler.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"

#include <structmember.h>

namespace headway::python {

PyTypeObject* scheduler_type = nullptr;

SchedulerParts::~SchedulerParts() {
  if (chosen_outside) gate->scheduler().SetChooser(*gate->bucket, nullptr);
  if (errors != nullptr) TheCollector().Unregister(errors.get());
  for (const auto& [key, path] : paths) path->Unref();
  for (const auto& [client, known] : by_client) known.account->Unref();
  if (gate != nullptr) gate->Unref();
}

void SchedulerParts::SetAccount(const std::string& client, double weight, Bucket* limits) {
  const auto found = by_client.find(client);
  if (found != by_client.end()) found->second.account->Unref();
  by_client[client] = Known{new Account(weight, limits), true};
}

void SchedulerParts::ForgetPaths() {
  absl::flat_hash_set<const Account*> used;
  for (auto it = paths.begin(); it != paths.end();) {
    const auto here = it++;
    if (here->second->shared()) {
      used.insert(here->first.second);
    } else {
      here->second->Unref();
      paths.erase(here);
    }
  }
  for (auto it = by_client.begin(); it != by_client.end();) {
    const auto here = it++;
    if (here->second.configured || used.contains(here->second.account)) continue;
    here->second.account->Unref();
    by_client.erase(here);
  }
  most_paths = std::max(kFewPaths, 2 * paths.size());
}

const Path* SchedulerParts::PathOf(BucketObject* bucket, PyObject* client) {
  if (!accounts) return bucket->path;
  // Whoever has no name is not the one whose name is empty.
  Py_ssize_t size = 1;
  const char* text = "";
  if (client != Py_None) {
    if (!PyUnicode_Check(client)) {
      PyErr_Format(PyExc_TypeError, "client_id %R: must be a str or None", client);
      return nullptr;
    }
    text = PyUnicode_AsUTF8AndSize(client, &size);
    if (text == nullptr) return nullptr;
  }
  const absl::string_view name(text, static_cast<std::size_t>(size));
  if (paths.size() >= most_paths) ForgetPaths();
  auto known = by_client.find(name);
  if (known == by_client.end())
    known = by_client.try_emplace(std::string(name), Known{new Account(1), false}).first;
  Account* account = known->second.account;
  const Path*& path = paths[{bucket->state().bucket, account}];
  if (path == nullptr) path = new Path(bucket->state().bucket, gate->bucket, account, ageing);
  return path;
}

namespace {

PyObject* str_model_id = nullptr;
PyObject* str_estimated_tokens = nullptr;
PyObject* str_priority = nullptr;
PyObject* str_timeout = nullptr;
PyObject* str_deadline = nullptr;
PyObject* str_cost = nullptr;
PyObject* str_client_id = nullptr;
PyObject* str_stopped = nullptr;

SchedulerParts& PartsOf(PyObject* self) { return *AsScheduler(self)->parts; }

// Of what is not there, None: metadata may be of an older kind, or somebody's own.
PyObject* Get(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object, name);
  if (value != nullptr || PyErr_ExceptionMatches(PyExc_AttributeError) == 0) return value;
  PyErr_Clear();
  return Py_NewRef(Py_None);
}

// A whole number from 0 to the largest amount, or false with an error that names the field.
bool ReadAmount(PyObject* value, const char* field, std::int64_t& out) {
  if (PyBool_Check(value) || (!PyLong_CheckExact(value) && PyIndex_Check(value) == 0)) {
    PyErr_Format(PyExc_TypeError, "%s %R: must be a whole number (int)", field, value);
    return false;
  }
  int overflow = 0;
  const long long read = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (read == -1 && PyErr_Occurred() != nullptr) return false;
  if (overflow != 0 || read < 0 || read > Limit::kMaxAmount) {
    PyErr_Format(PyExc_ValueError, "%s %R: must be from 0 to 2**53", field, value);
    return false;
  }
  out = read;
  return true;
}

bool ReadCost(const BucketObject* bucket, PyObject* cost, Request& out) {
  PyObject* items = PyMapping_Items(cost);
  if (items == nullptr) {
    PyErr_Format(PyExc_TypeError, "cost %R: must be a dict of amounts by resource", cost);
    return false;
  }
  const std::vector<std::string>& resources = bucket->state().resources;
  bool good = true;
  for (Py_ssize_t i = 0; good && i < PyList_GET_SIZE(items); ++i) {
    PyObject* name = PyTuple_GetItem(PyList_GET_ITEM(items, i), 0);
    PyObject* value = PyTuple_GetItem(PyList_GET_ITEM(items, i), 1);
    good = name != nullptr && value != nullptr;
    if (good && !PyUnicode_Check(name)) {
      PyErr_Format(PyExc_TypeError, "cost %R: resources must be named by a str", cost);
      good = false;
    }
    std::int64_t amount = 0;
    const char* text = good ? PyUnicode_AsUTF8(name) : nullptr;
    good = good && text != nullptr && ReadAmount(value, text, amount);
    if (!good) break;
    bool known = std::find(std::begin(kKnownResources), std::end(kKnownResources), text) !=
                 std::end(kKnownResources);
    for (std::size_t r = 0; r < resources.size(); ++r) {
      if (resources[r] != text) continue;
      out.amounts[r] = amount;
      known = true;
    }
    // What this bucket does not count costs nothing. A name that nobody knows would cost nothing
    // anywhere, and nobody would see.
    if (!known) {
      PyErr_Format(PyExc_ValueError,
                   "cost %R: '%s' is no resource of any limit here, nor requests, tokens, "
                   "input_tokens, output_tokens or concurrency",
                   cost, text);
      good = false;
    }
  }
  Py_DECREF(items);
  return good;
}

// A gate for so many at once, or null with a Python error set.
State* MakeGate(long long at_once, std::shared_ptr<VirtualTime> time) {
  auto* gate = new State;
  gate->time = std::move(time);
  try {
    Limit limit;
    limit.amount = at_once;
    limit.resource = "concurrency";
    limit.shape = Shape::kConcurrency;
    const auto checked = Limit::Make(limit);
    if (!checked.ok()) throw py::value_error(std::string(checked.status().message()));
    gate->limits = {*checked};
    gate->resources = {"concurrency"};
    gate->defaults = {1};
    const std::uint8_t resource = 0;
    gate->bucket =
        Bucket::Make(gate->limits, {&resource, 1}, gate->WallOffset(), &gate->scheduler());
    return gate;
  } catch (const py::value_error& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::system_error& error) {
    RaiseSystemError(error);
  }
  gate->Unref();
  return nullptr;
}

int Init(PyObject* object, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"at_once", "clock", nullptr};
  long long at_once = 0;
  PyObject* clock = nullptr;
  if (PyArg_ParseTupleAndKeywords(args, kwargs, "LO", const_cast<char**>(names), &at_once,
                                  &clock) == 0)
    return -1;
  if (PartsOf(object).gate != nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "SchedulerCore.__init__ was called twice");
    return -1;
  }
  std::shared_ptr<VirtualTime> time;
  try {
    if (clock != Py_None) time = py::cast<std::shared_ptr<VirtualTime>>(py::handle(clock));
  } catch (const py::cast_error&) {
    PyErr_SetString(PyExc_TypeError, "clock must be a ManualClock or None");
    return -1;
  }
  PartsOf(object).gate = MakeGate(at_once, std::move(time));
  return PartsOf(object).gate == nullptr ? -1 : 0;
}

// In a forked child: nothing of what the parent's did is left, and what it holds is not ours.
PyObject* Reset(PyObject* object, PyObject* at_once) {
  SchedulerParts& parts = PartsOf(object);
  const long long most = PyLong_AsLongLong(at_once);
  if (most == -1 && PyErr_Occurred() != nullptr) return nullptr;
  State* gate = MakeGate(most, parts.gate->time);
  if (gate == nullptr) return nullptr;
  if (parts.chosen_outside) parts.gate->scheduler().SetChooser(*parts.gate->bucket, nullptr);
  parts.chosen_outside = false;
  parts.askers = std::make_shared<Askers>();
  parts.gate->Unref();
  parts.gate = gate;
  parts.running = false;
  parts.begun = 0;
  ForgetCalls(parts);
  parts.blocked.clear();
  PyDict_Clear(AsScheduler(object)->routes);
  for (const auto& [key, path] : parts.paths) path->Unref();
  parts.paths.clear();
  Py_RETURN_NONE;
}

PyObject* New(PyTypeObject* type, PyObject* /*args*/, PyObject* /*kwargs*/) {
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  AsScheduler(self)->parts = new SchedulerParts;
  AsScheduler(self)->routes = PyDict_New();
  if (AsScheduler(self)->routes != nullptr) return self;
  Py_DECREF(self);
  return nullptr;
}

int Traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(AsScheduler(object)->routes);
  Py_VISIT(AsScheduler(object)->when_idle);
  return 0;
}

int Clear(PyObject* object) {
  Py_CLEAR(AsScheduler(object)->routes);
  Py_CLEAR(AsScheduler(object)->when_idle);
  return 0;
}

void Dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  if (AsScheduler(object)->weakrefs != nullptr) PyObject_ClearWeakRefs(object);
  Clear(object);
  delete AsScheduler(object)->parts;
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

// The gate's state, or null where __init__ has not made one.
State* GateOf(PyObject* self) {
  State* gate = PartsOf(self).gate;
  if (gate == nullptr) PyErr_SetString(PyExc_RuntimeError, "SchedulerCore.__init__ was not called");
  return gate;
}

PyObject* Submit(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  if (GateOf(object) == nullptr) return nullptr;
  PyObject* given[2] = {nullptr, nullptr};
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  bool good = count <= 2;
  for (Py_ssize_t i = 0; good && i < count; ++i) given[i] = args[i];
  for (Py_ssize_t i = 0; good && i < named; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    const int at = PyUnicode_CompareWithASCIIString(name, "metadata") == 0       ? 0
                   : PyUnicode_CompareWithASCIIString(name, "request_func") == 0 ? 1
                                                                                 : -1;
    good = at >= 0 && given[at] == nullptr;
    if (good) given[at] = args[count + i];
  }
  if (!good || given[0] == nullptr || given[1] == nullptr) {
    PyErr_SetString(PyExc_TypeError,
                    "submit_request() takes two arguments, metadata and request_func");
    return nullptr;
  }
  if (PyCallable_Check(given[1]) == 0 && Py_TYPE(given[1]) != with_reservation_type) {
    PyErr_Format(
        PyExc_TypeError,
        "request_func of type %s: must be callable without arguments, and give an awaitable",
        Py_TYPE(given[1])->tp_name);
    return nullptr;
  }
  return MakeCall(AsScheduler(object), given[0], given[1]);
}

PyObject* Configure(PyObject* object, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"request_timeout", "max_queue_size", "overflow_policy",
                                "priorities",      "accounts",       "prepares",
                                "ageing",          "tells",          nullptr};
  double timeout = 0;
  long long most = 0;
  const char* policy = nullptr;
  int priorities = 0;
  int accounts = 0;
  int prepares = 0;
  double ageing = 0;
  int tells = 0;
  if (PyArg_ParseTupleAndKeywords(args, kwargs, "dLspppdp", const_cast<char**>(names), &timeout,
                                  &most, &policy, &priorities, &accounts, &prepares, &ageing,
                                  &tells) == 0)
    return nullptr;
  SchedulerParts& parts = PartsOf(object);
  parts.request_timeout = timeout < 1e9 ? static_cast<Nanos>(std::llround(timeout * 1e9)) : kNever;
  parts.max_queue_size = most;
  parts.overflow = std::string(policy) == "drop_oldest" ? Overflow::kDropOldest
                   : std::string(policy) == "wait"      ? Overflow::kWait
                                                        : Overflow::kReject;
  parts.priorities = priorities != 0;
  parts.accounts = accounts != 0;
  parts.prepares = prepares != 0;
  parts.tells = tells != 0;
  parts.ageing = static_cast<Nanos>(std::llround(std::min(ageing, 1e9) * 1e9));
  Py_RETURN_NONE;
}

PyObject* SetAccount(PyObject* object, PyObject* args) {
  PyObject* client = nullptr;
  double weight = 0;
  PyObject* limiter = nullptr;
  if (PyArg_ParseTuple(args, "UdO", &client, &weight, &limiter) == 0) return nullptr;
  Py_ssize_t size = 0;
  const char* name = PyUnicode_AsUTF8AndSize(client, &size);
  if (name == nullptr) return nullptr;
  Bucket* limits = nullptr;
  if (limiter != Py_None) {
    State* state = StateOfLimiter(limiter);
    if (state == nullptr) return nullptr;
    limits = state->bucket;
  }
  PartsOf(object).SetAccount(std::string(name, static_cast<std::size_t>(size)), weight, limits);
  Py_RETURN_NONE;
}

PyObject* Run(PyObject* object, PyObject* run) {
  const int runs = PyObject_IsTrue(run);
  if (runs < 0) return nullptr;
  PartsOf(object).running = runs != 0;
  PartsOf(object).fork_generation = Dispatcher::ForkGeneration();
  Py_RETURN_NONE;
}

PyObject* Forget(PyObject* object, PyObject* /*unused*/) {
  PyDict_Clear(AsScheduler(object)->routes);
  PartsOf(object).ForgetPaths();
  Py_RETURN_NONE;
}

// _admit(bucket, metadata, submitted, retry, call): blocks. Gives the reservation and what it
// reserves. Whatever else it comes to is counted here, but for an interruption: KeyboardInterrupt
// and its like. call.stopped: it was told to end before it has come here.
PyObject* Admit(PyObject* object, PyObject* args) {
  BucketObject* bucket = nullptr;
  PyObject* metadata = nullptr;
  long long submitted = 0;
  int retry = 0;
  PyObject* call = nullptr;
  if (PyArg_ParseTuple(args, "O!OLpO", bucket_type, &bucket, &metadata, &submitted, &retry,
                       &call) == 0)
    return nullptr;
  SchedulerParts& parts = PartsOf(object);
  Request request;
  BucketCounts* counts = bucket->counts;
  // The error that the second has set, counted as the first.
  const auto fail = [counts](RequestOutcome outcome, PyObject* null) {
    if (counts != nullptr && PyErr_ExceptionMatches(PyExc_Exception) != 0) counts->Count(outcome);
    return null;
  };
  if (!ReadRequest(parts, bucket, metadata, request)) return fail(RequestOutcome::kFailed, nullptr);
  PyObject* client = Get(metadata, str_client_id);
  const Path* path = client == nullptr ? nullptr : parts.PathOf(bucket, client);
  Py_XDECREF(client);
  if (path == nullptr) return fail(RequestOutcome::kFailed, nullptr);
  State& state = bucket->state();
  const absl::Span<const std::int64_t> amounts(request.amounts, state.resources.size());
  const Nanos now = state.Now();
  const auto admitted = [&](std::unique_ptr<Reservation> reservation, Nanos at) -> PyObject* {
    if (counts != nullptr && retry == 0) counts->Waited(at - submitted);
    PyObject* made = MakeReservation(&state, std::move(reservation), path);
    PyObject* reserved = made == nullptr ? nullptr : TupleOf(amounts);
    if (reserved == nullptr) {
      Py_XDECREF(made);
      return nullptr;
    }
    return Py_BuildValue("NN", made, reserved);
  };
  // From here on nobody else runs until it can be told as one that waits.
  PyObject* stopped = PyObject_GetAttr(call, str_stopped);
  if (stopped == nullptr) return fail(RequestOutcome::kFailed, nullptr);
  Py_DECREF(stopped);
  if (stopped == Py_True) return fail(RequestOutcome::kStopped, RaiseStopped());
  if (IsOver(request.deadline, now - submitted, retry != 0))
    return fail(RequestOutcome::kDeadline, RaiseDeadline(request.deadline, kUntold));
  auto reservation = std::make_unique<Reservation>();
  const std::optional<Refusal> refusal =
      path->TryReserve(now, amounts, /*privileged=*/false, *reservation);
  if (!refusal) return admitted(std::move(reservation), now);
  state.Serve();
  if (refusal->denial.never())
    return fail(RequestOutcome::kNeverFits, RaiseTooLarge(object, bucket, path, amounts, now));
  if (counts != nullptr && refusal->by == state.bucket) counts->Denied(refusal->denial.meter);
  if (retry == 0 && QueueIsFull(parts, bucket, now)) {
    if (parts.overflow == Overflow::kReject)
      return fail(RequestOutcome::kOverflowed,
                  PyObject_CallMethod(object, "_overflow", "O", bucket));
    state.scheduler().DropOldest(*state.bucket, path->gate(), now);
  }
  if (parts.tells) {
    if (!TellOfWait(object, /*blocks=*/true)) return fail(RequestOutcome::kFailed, nullptr);
    if (!parts.Runs()) return fail(RequestOutcome::kStopped, RaiseStopped());  // stopped in it
  }
  Mailbox* mailbox = MailboxOfThread();
  if (mailbox == nullptr || !StartDispatcher(state)) return nullptr;
  const Nanos deadline = request.deadline == kNever ? kNever : submitted + request.deadline;
  path->Ref();
  Py_INCREF(bucket);
  // A retry has waited for its turn before.
  const std::int32_t priority = retry != 0 ? request.priority + 1 : request.priority;
  Waiter* waiter = state.scheduler().Submit(path, amounts, priority, now, deadline, mailbox,
                                            nullptr, retry != 0);
  state.Serve();
  bucket->AddQueued(1);
  parts.blocked.emplace_back(waiter, mailbox);
  PyObject* result = nullptr;
  const bool over = Block(mailbox, waiter);
  auto& blocked = parts.blocked;
  blocked.erase(std::find(blocked.begin(), blocked.end(), std::make_pair(waiter, mailbox)));
  bucket->AddQueued(-1);
  if (!over) {
    state.scheduler().Cancel(waiter, state.Now());
  } else if (waiter->outcome() == Outcome::kAdmitted) {
    // Whoever stopped it just then has given it back already.
    const Nanos goes_on = state.Now();
    std::unique_ptr<Reservation> claimed = waiter->Claim(goes_on);
    if (claimed == nullptr) {
      fail(RequestOutcome::kStopped, RaiseStopped());
    } else {
      if (counts != nullptr) counts->Late(goes_on - waiter->at());
      result = admitted(std::move(claimed), waiter->at());
    }
  } else if (waiter->outcome() == Outcome::kDeadline) {
    fail(RequestOutcome::kDeadline,
         RaiseDeadline(request.deadline,
                       waiter->at() >= kUntold ? kUntold : waiter->at() - submitted));
  } else if (waiter->outcome() == Outcome::kNever) {
    fail(RequestOutcome::kNeverFits, RaiseTooLarge(object, bucket, path, amounts, state.Now()));
  } else if (waiter->outcome() == Outcome::kDropped) {
    fail(RequestOutcome::kDropped, PyObject_CallMethod(object, "_dropped", "O", bucket));
  } else {
    fail(RequestOutcome::kStopped, RaiseStopped());
  }
  waiter->Unref();
  state.Serve();
  Py_DECREF(bucket);
  path->Unref();
  return result;
}

// _let_through(bucket, metadata): counts it, whatever is in its way. Gives the reservation, what it
// reserves, after how many seconds it would have been admitted (None: only answers can tell), and
// which limit it would have waited for; -1: none, or the first answer, or after a refusal.
PyObject* LetThrough(PyObject* object, PyObject* args) {
  BucketObject* bucket = nullptr;
  PyObject* metadata = nullptr;
  if (PyArg_ParseTuple(args, "O!O", bucket_type, &bucket, &metadata) == 0) return nullptr;
  Request request;
  if (!ReadRequest(PartsOf(object), bucket, metadata, request)) return nullptr;
  State& state = bucket->state();
  const absl::Span<const std::int64_t> amounts(request.amounts, state.resources.size());
  const Nanos now = state.Now();
  const Denial denial = Forecast(now).Add(*state.bucket, nullptr, amounts).denial;
  const bool waits = denial.ready_at > now;
  auto reservation = std::make_unique<Reservation>();
  state.bucket->Force(now, amounts, *reservation);
  state.Serve();
  PyObject* wait = WaitUntil(denial.ready_at, now);
  PyObject* made = MakeReservation(&state, std::move(reservation), bucket->path);
  PyObject* reserved = TupleOf(amounts);
  if (wait == nullptr || made == nullptr || reserved == nullptr) {
    Py_XDECREF(wait);
    Py_XDECREF(made);
    Py_XDECREF(reserved);
    return nullptr;
  }
  return Py_BuildValue("NNNi", made, reserved, wait, waits ? denial.meter : -1);
}

PyObject* StopBlocked(PyObject* object, PyObject* /*unused*/) {
  SchedulerParts& parts = PartsOf(object);
  const State& gate = *parts.gate;
  for (const auto& [waiter, mailbox] : parts.blocked) {
    gate.scheduler().Cancel(waiter, gate.Now());
    mailbox->wake().Signal();
  }
  gate.Serve();
  return PyLong_FromSize_t(parts.blocked.size());
}

constexpr char kForecast[] = "headway._core.Forecast";

void DeleteForecast(PyObject* capsule) {
  delete static_cast<Forecast*>(PyCapsule_GetPointer(capsule, kForecast));
}

// What is asked of which bucket, on whose path; null with an exception set.
const Path* ReadOnPath(PyObject* object, BucketObject* bucket, PyObject* metadata,
                       Request& request) {
  SchedulerParts& parts = PartsOf(object);
  if (!ReadRequest(parts, bucket, metadata, request)) return nullptr;
  PyObject* client = Get(metadata, str_client_id);
  const Path* path = client == nullptr ? nullptr : parts.PathOf(bucket, client);
  Py_XDECREF(client);
  return path;
}

// _ahead(bucket, metadata): all that goes in front of it, for _estimate.
PyObject* Ahead(PyObject* object, PyObject* args) {
  BucketObject* bucket = nullptr;
  PyObject* metadata = nullptr;
  if (PyArg_ParseTuple(args, "O!O", bucket_type, &bucket, &metadata) == 0) return nullptr;
  Request request;
  const Path* path = ReadOnPath(object, bucket, metadata, request);
  if (path == nullptr) return nullptr;
  State& state = bucket->state();
  auto forecast =
      std::make_unique<Forecast>(state.scheduler().Ahead(*path, state.Now(), request.priority));
  state.Serve();
  PyObject* capsule = PyCapsule_New(forecast.get(), kForecast, &DeleteForecast);
  if (capsule != nullptr) static_cast<void>(forecast.release());
  return capsule;
}

// _estimate(bucket, metadata, line): when it would be admitted: behind all that goes in front of it
// now; or, with what _ahead gave, behind that, to which it is added. Gives seconds, the limit that
// it waits for, whether that is one of its account's own, and what it reserves.
PyObject* Estimate(PyObject* object, PyObject* args) {
  BucketObject* bucket = nullptr;
  PyObject* metadata = nullptr;
  PyObject* line = nullptr;
  if (PyArg_ParseTuple(args, "O!OO", bucket_type, &bucket, &metadata, &line) == 0) return nullptr;
  Forecast* forecast = nullptr;
  if (line != Py_None) {
    forecast = static_cast<Forecast*>(PyCapsule_GetPointer(line, kForecast));
    if (forecast == nullptr) return nullptr;
  }
  Request request;
  const Path* path = ReadOnPath(object, bucket, metadata, request);
  if (path == nullptr) return nullptr;
  State& state = bucket->state();
  const std::size_t resources = state.resources.size();
  const Nanos now = state.Now();
  const absl::Span<const std::int64_t> amounts(request.amounts, resources);
  Refusal estimate;  // never
  if (path->EverFits(amounts))
    estimate = state.scheduler().Estimate(*path, now, request.priority, amounts, forecast);
  const Nanos at = estimate.denial.ready_at;
  state.Serve();
  PyObject* wait = WaitUntil(at, now);
  PyObject* costs = TupleOf(amounts);
  PyObject* of_account = PyBool_FromLong(estimate.by == path->limits() && estimate.by != nullptr);
  PyObject* out = wait == nullptr || costs == nullptr
                      ? nullptr
                      : Py_BuildValue("OiOO", wait, estimate.denial.meter, of_account, costs);
  Py_XDECREF(wait);
  Py_XDECREF(costs);
  Py_DECREF(of_account);
  return out;
}

PyObject* Live(PyObject* object, PyObject* /*unused*/) { return LiveCalls(PartsOf(object)); }

// _choose_by(mailbox, patience): makes its descriptor readable when buckets contend at the gate;
// None ends it. The core decides where nothing was chosen for so many seconds.
PyObject* ChooseBy(PyObject* object, PyObject* args) {
  PyObject* mailbox = nullptr;
  double seconds = 0;
  if (PyArg_ParseTuple(args, "Od", &mailbox, &seconds) == 0) return nullptr;
  const State* gate = GateOf(object);
  if (gate == nullptr) return nullptr;
  if (mailbox == Py_None) {
    gate->scheduler().SetChooser(*gate->bucket, nullptr);
    gate->Serve();
    PartsOf(object).chosen_outside = false;
    Py_RETURN_NONE;
  }
  Mailbox* told = MailboxOf(mailbox);
  if (told == nullptr) return nullptr;
  told->Ref();
  const std::shared_ptr<Mailbox> held(told, [](Mailbox* m) { m->Unref(); });
  // A clock that is moved by hand says nothing of how long somebody takes.
  const bool waits = gate->time != nullptr || !(seconds < 1e9);
  gate->scheduler().SetChooser(
      *gate->bucket, [held] { held->wake().Signal(); },
      waits ? kNever : static_cast<Nanos>(std::llround(seconds * 1e9)));
  gate->Serve();
  PartsOf(object).chosen_outside = true;
  Py_RETURN_NONE;
}

// _contenders(): (which, how many wait, the head's priority, seconds that it has waited) of each.
PyObject* Contenders(PyObject* object, PyObject* /*unused*/) {
  const State* gate = GateOf(object);
  if (gate == nullptr) return nullptr;
  const Nanos now = gate->Now();
  PyObject* out = PyList_New(0);
  for (const auto& each : gate->scheduler().Contenders(*gate->bucket, now)) {
    if (out == nullptr) return nullptr;
    PyObject* one = Py_BuildValue("nnid", reinterpret_cast<Py_ssize_t>(each.bucket),
                                  static_cast<Py_ssize_t>(each.waiting), each.priority,
                                  Seconds(now - each.submitted));
    if (one == nullptr || PyList_Append(out, one) < 0) Py_CLEAR(out);
    Py_XDECREF(one);
  }
  return out;
}

PyObject* Choose(PyObject* object, PyObject* bucket) {
  const State* gate = GateOf(object);
  if (gate == nullptr) return nullptr;
  if (PyObject_TypeCheck(bucket, bucket_type) == 0) {
    PyErr_SetString(PyExc_TypeError, "_choose() takes a bucket");
    return nullptr;
  }
  const bool did =
      gate->scheduler().Choose(*gate->bucket, *AsBucket(bucket)->state().bucket, gate->Now());
  gate->Serve();
  return PyBool_FromLong(did ? 1 : 0);
}

// _supply(bucket): from now on it is among those that `_asked` tells of, as long as it lives.
PyObject* SupplyMethod(PyObject* object, PyObject* bucket) {
  if (GateOf(object) == nullptr) return nullptr;
  if (PyObject_TypeCheck(bucket, bucket_type) == 0) {
    PyErr_SetString(PyExc_TypeError, "_supply() takes a bucket");
    return nullptr;
  }
  AsBucket(bucket)->remote = 1;
  const State& state = AsBucket(bucket)->state();
  state.scheduler().SetSupplier(*state.bucket, [askers = PartsOf(object).askers,
                                                which = state.bucket] { askers->Add(which); });
  Py_RETURN_NONE;
}

// _supply_by(mailbox): makes its descriptor readable when the head of one of them waits for credit;
// None ends it.
PyObject* SupplyBy(PyObject* object, PyObject* mailbox) {
  if (GateOf(object) == nullptr) return nullptr;
  std::shared_ptr<Mailbox> held;
  if (mailbox != Py_None) {
    Mailbox* told = MailboxOf(mailbox);
    if (told == nullptr) return nullptr;
    told->Ref();
    held = std::shared_ptr<Mailbox>(told, [](Mailbox* m) { m->Unref(); });
  }
  PartsOf(object).askers->Tell(std::move(held));
  Py_RETURN_NONE;
}

// _asked(): which of them have begun to wait for credit since it was called last.
PyObject* Asked(PyObject* object, PyObject* /*unused*/) {
  PyObject* out = PyList_New(0);
  for (Bucket* bucket : PartsOf(object).askers->TakeAll()) {
    PyObject* which =
        out == nullptr ? nullptr : PyLong_FromSsize_t(reinterpret_cast<Py_ssize_t>(bucket));
    if (which == nullptr || PyList_Append(out, which) < 0) Py_CLEAR(out);
    Py_XDECREF(which);
  }
  return out;
}

// _demand(limiter, most): how many of those wait for credit on its words, whether the head is held
// up at the gate, and what they ask, by resource.
PyObject* DemandMethod(PyObject* object, PyObject* args) {
  PyObject* limiter = nullptr;
  Py_ssize_t most = 0;
  if (GateOf(object) == nullptr || PyArg_ParseTuple(args, "On", &limiter, &most) == 0)
    return nullptr;
  const State* words = StateOfLimiter(limiter);
  if (words == nullptr) return nullptr;
  const State& state = *words;
  std::vector<std::int64_t> amounts(state.resources.size());
  const auto [asked, at_gate] = state.scheduler().Demand(
      *state.bucket, state.Now(), static_cast<std::size_t>(std::max<Py_ssize_t>(0, most)));
  state.Serve();
  std::size_t count = 0;
  for (const headway::Asked& run : asked) {
    count += run.count;
    for (std::size_t i = 0; i < std::min(amounts.size(), run.amounts.size()); ++i)
      amounts[i] += static_cast<std::int64_t>(run.count) * run.amounts[i];
  }
  PyObject* by_resource = PyDict_New();
  for (std::size_t i = 0; by_resource != nullptr && i < amounts.size(); ++i) {
    PyObject* amount = PyLong_FromLongLong(amounts[i]);
    if (amount == nullptr ||
        PyDict_SetItemString(by_resource, state.resources[i].c_str(), amount) < 0)
      Py_CLEAR(by_resource);
    Py_XDECREF(amount);
  }
  return by_resource == nullptr ? nullptr
                                : Py_BuildValue("nNN", static_cast<Py_ssize_t>(count),
                                                PyBool_FromLong(at_gate ? 1 : 0), by_resource);
}

PyObject* WhenIdle(PyObject* object, PyObject* callback) {
  Py_XSETREF(AsScheduler(object)->when_idle, callback == Py_None ? nullptr : Py_NewRef(callback));
  Py_RETURN_NONE;
}

PyObject* Unfinished(PyObject* object, PyObject* /*unused*/) {
  return PyLong_FromSize_t(PartsOf(object).unfinished);
}

// _begins(bucket): one of those requests that their callers' own threads make.
PyObject* Begins(PyObject* object, PyObject* bucket) {
  if (PyObject_TypeCheck(bucket, bucket_type) == 0) {
    PyErr_SetString(PyExc_TypeError, "_begins() takes a bucket");
    return nullptr;
  }
  ++PartsOf(object).begun;
  ++AsBucket(bucket)->submitted;
  Py_RETURN_NONE;
}

PyObject* Begun(PyObject* object, PyObject* /*unused*/) {
  return PyLong_FromLongLong(PartsOf(object).begun);
}

// _count_errors(label): from now on under this label.
PyObject* CountErrors(PyObject* object, PyObject* label) {
  SchedulerParts& parts = PartsOf(object);
  const char* text = PyUnicode_AsUTF8(label);
  if (text == nullptr) return nullptr;
  if (parts.errors == nullptr) {
    parts.errors = std::make_unique<UserCodeErrors>();
    TheCollector().Register(text, parts.errors.get());
  }
  Py_RETURN_NONE;
}

// _count_error(origin): an exception of somebody else's code.
PyObject* CountError(PyObject* object, PyObject* origin) {
  SchedulerParts& parts = PartsOf(object);
  const char* text = PyUnicode_AsUTF8(origin);
  if (text == nullptr) return nullptr;
  for (std::size_t i = 0; parts.errors != nullptr && i < kUserCodes; ++i)
    if (UserCodeName(static_cast<UserCode>(i)) == text)
      parts.errors->Count(static_cast<UserCode>(i));
  Py_RETURN_NONE;
}

PyObject* NowMethod(PyObject* object, PyObject* /*unused*/) {
  const State* gate = GateOf(object);
  return gate == nullptr ? nullptr : PyLong_FromLongLong(gate->Now());
}

PyObject* InFlight(PyObject* object, void* /*unused*/) {
  const State* gate = GateOf(object);
  return gate == nullptr ? nullptr : PyLong_FromLongLong(gate->bucket->Used(0, gate->Now()));
}

PyObject* Running(PyObject* object, void* /*unused*/) {
  return PyBool_FromLong(PartsOf(object).Runs() ? 1 : 0);
}

PyMethodDef methods[] = {
    {"submit_request", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Submit)),
     METH_FASTCALL | METH_KEYWORDS,
     "submit_request($self, metadata, request_func)\n--\n\n"
     "Awaitable: waits for its turn, awaits `request_func()`, and gives what that gave.\n\n"
     "metadata: a RequestMetadata, or a dict for the classifier. request_func: called without\n"
     "arguments, once for each attempt; what it raises reaches the caller unchanged. Any number "
     "of\n"
     "event loops and threads may submit at once."},
    {"_configure", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Configure)),
     METH_VARARGS | METH_KEYWORDS, nullptr},
    {"_set_account", &SetAccount, METH_VARARGS, nullptr},
    {"_run", &Run, METH_O, nullptr},
    {"_forget_routes", &Forget, METH_NOARGS, nullptr},
    {"_admit", &Admit, METH_VARARGS, nullptr},
    {"_let_through", &LetThrough, METH_VARARGS, nullptr},
    {"_stop_blocked", &StopBlocked, METH_NOARGS, nullptr},
    {"_ahead", &Ahead, METH_VARARGS, nullptr},
    {"_estimate", &Estimate, METH_VARARGS, nullptr},
    {"_live", &Live, METH_NOARGS, nullptr},
    {"_when_idle", &WhenIdle, METH_O, nullptr},
    {"_unfinished", &Unfinished, METH_NOARGS, nullptr},
    {"_begins", &Begins, METH_O, nullptr},
    {"_begun", &Begun, METH_NOARGS, nullptr},
    {"_reset", &Reset, METH_O, nullptr},
    {"_choose_by", &ChooseBy, METH_VARARGS, nullptr},
    {"_contenders", &Contenders, METH_NOARGS, nullptr},
    {"_choose", &Choose, METH_O, nullptr},
    {"_supply", &SupplyMethod, METH_O, nullptr},
    {"_supply_by", &SupplyBy, METH_O, nullptr},
    {"_asked", &Asked, METH_NOARGS, nullptr},
    {"_demand", &DemandMethod, METH_VARARGS, nullptr},
    {"_count_errors", &CountErrors, METH_O, nullptr},
    {"_count_error", &CountError, METH_O, nullptr},
    {"_now", &NowMethod, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SchedulerObject, weakrefs), READONLY, nullptr},
    {"_routes", T_OBJECT_EX, offsetof(SchedulerObject, routes), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyGetSetDef properties[] = {
    {"_under_way", &InFlight, nullptr, "How many attempts are under way over all buckets.",
     nullptr},
    {"_runs", &Running, nullptr, "Whether it takes requests, in this process.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(&New)},
    {Py_tp_init, reinterpret_cast<void*>(&Init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&Dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(&Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(&Clear)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("The core of headway.scheduler.Scheduler.")},
    {0, nullptr},
};

PyType_Spec spec = {"headway._core.SchedulerCore", sizeof(SchedulerObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

bool TellOfWait(PyObject* scheduler, bool blocks) {
  PyObject* told = PyObject_CallMethod(scheduler, "_waits", "O", blocks ? Py_True : Py_False);
  Py_XDECREF(told);
  return told != nullptr;
}

void TellIdle(SchedulerObject* scheduler) {
  if (scheduler->when_idle == nullptr) return;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject* told = PyObject_CallNoArgs(scheduler->when_idle);
  if (told == nullptr) PyErr_WriteUnraisable(scheduler->when_idle);
  Py_XDECREF(told);
  PyErr_Restore(type, value, traceback);
}

bool ReadRequest(const SchedulerParts& parts, const BucketObject* bucket, PyObject* metadata,
                 Request& out) {
  std::fill_n(out.amounts, bucket->state().resources.size(), 0);
  if (bucket->requests >= 0) out.amounts[bucket->requests] = 1;
  if (bucket->concurrency >= 0) out.amounts[bucket->concurrency] = 1;
  const auto read = [metadata](PyObject* name, auto use) {
    PyObject* value = Get(metadata, name);
    if (value == nullptr) return false;
    const bool good = value == Py_None || use(value);
    Py_DECREF(value);
    return good;
  };
  return read(str_estimated_tokens,
              [&](PyObject* value) {
                std::int64_t tokens = 0;
                if (!ReadAmount(value, "estimated_tokens", tokens)) return false;
                // Another scheduler that shares the words may have learnt more of them.
                if (bucket->learnt != bucket->state().learnt) FindTokens(bucket);
                if (bucket->tokens >= 0) out.amounts[bucket->tokens] = tokens;
                return true;
              }) &&
         read(str_cost, [&](PyObject* value) { return ReadCost(bucket, value, out); }) &&
         read(str_priority,
              [&](PyObject* value) {
                if (PyBool_Check(value) || PyIndex_Check(value) == 0) {
                  PyErr_Format(PyExc_TypeError, "priority %R: must be a whole number (int)", value);
                  return false;
                }
                int overflow = 0;
                const long long priority = PyLong_AsLongLongAndOverflow(value, &overflow);
                if (priority == -1 && PyErr_Occurred() != nullptr) return false;
                if (overflow != 0 || priority < -1'000'000'000 || priority > 1'000'000'000) {
                  PyErr_Format(PyExc_ValueError, "priority %R: must be from -10**9 to 10**9",
                               value);
                  return false;
                }
                if (parts.priorities) out.priority = static_cast<std::int32_t>(priority);
                return true;
              }) &&
         read(str_timeout,
              [&](PyObject* value) {
                out.unbounded = PyFloat_Check(value) != 0 && std::isinf(PyFloat_AS_DOUBLE(value)) &&
                                PyFloat_AS_DOUBLE(value) > 0;
                return out.unbounded || ReadSeconds(value, "timeout", out.timeout);
              }) &&
         read(str_deadline,
              [&](PyObject* value) { return ReadSeconds(value, "deadline", out.deadline); });
}

PyObject* RaiseTooLarge(PyObject* scheduler, const BucketObject* bucket, const Path* path,
                        absl::Span<const std::int64_t> amounts, Nanos now) {
  Bucket* by = path->bucket();
  if (by->EverFits(amounts) && path->limits() != nullptr) by = path->limits();
  const int meter = by->Look(now, amounts).meter;
  const bool own = by == path->bucket();
  PyObject* raised = PyObject_CallMethod(scheduler, "_too_large", "OiLLO", bucket, own ? meter : -1,
                                         static_cast<long long>(by->amount(meter, amounts)),
                                         static_cast<long long>(by->meter(meter).Capacity()),
                                         own ? Py_True : Py_False);
  Py_XDECREF(raised);
  if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_RuntimeError, "_too_large() must raise");
  return nullptr;
}

bool QueueIsFull(const SchedulerParts& parts, const BucketObject* bucket, Nanos now) {
  if (parts.overflow == Overflow::kWait || bucket->queued < parts.max_queue_size) return false;
  State& state = bucket->state();
  // Not those of another scheduler that shares the bucket.
  const std::size_t depth = state.scheduler().Depth(*state.bucket, parts.gate->bucket, now);
  return static_cast<std::int64_t>(depth) >= parts.max_queue_size;
}

PyObject* TupleOf(absl::Span<const std::int64_t> amounts) {
  PyObject* out = PyTuple_New(static_cast<Py_ssize_t>(amounts.size()));
  for (std::size_t i = 0; out != nullptr && i < amounts.size(); ++i)
    PyTuple_SET_ITEM(out, static_cast<Py_ssize_t>(i), PyLong_FromLongLong(amounts[i]));
  return out;
}

bool ReadTuple(const State& state, PyObject* tuple, Amounts& out) {
  const std::size_t n = state.resources.size();
  if (!PyTuple_Check(tuple) || static_cast<std::size_t>(PyTuple_GET_SIZE(tuple)) != n) {
    PyErr_SetString(PyExc_TypeError, "amounts: must be a tuple of one for each resource");
    return false;
  }
  for (std::size_t i = 0; i < n; ++i)
    out.values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i)));
  return PyErr_Occurred() == nullptr;
}

bool AddScheduler(PyObject* module) {
  str_model_id = PyUnicode_InternFromString("model_id");
  str_estimated_tokens = PyUnicode_InternFromString("estimated_tokens");
  str_priority = PyUnicode_InternFromString("priority");
  str_timeout = PyUnicode_InternFromString("timeout");
  str_deadline = PyUnicode_InternFromString("deadline");
  str_cost = PyUnicode_InternFromString("cost");
  str_client_id = PyUnicode_InternFromString("client_id");
  str_stopped = PyUnicode_InternFromString("stopped");
  scheduler_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return scheduler_type != nullptr && PyModule_AddType(module, scheduler_type) == 0;
}

}  // namespace headway::python
