// bindings/inspection.cc: the cold verbs: what a limiter's state is, and changing its limits.
#include <map>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/state.h"

namespace headway::python {
namespace {

State& StateOf(const py::object& limiter) {
  State* state = StateOfLimiter(limiter.ptr());
  if (state == nullptr) throw py::error_already_set();
  return *state;
}

Amounts AmountsOf(const State& state, const py::args& given) {
  Amounts amounts;
  std::vector<PyObject*> raw;
  for (const auto& a : given) raw.push_back(a.ptr());
  if (!ReadAmounts(state, raw.data(), static_cast<Py_ssize_t>(raw.size()), amounts))
    throw py::error_already_set();
  return amounts;
}

py::object Wait(Nanos at, Nanos now) {
  return py::reinterpret_steal<py::object>(WaitUntil(at, now));
}

// One look at a limiter: everything that explain(), metrics and monitors show.
py::dict Snapshot(const py::object& limiter, const py::args& given) {
  State& state = StateOf(limiter);
  const Amounts amounts = AmountsOf(state, given);
  const auto wanted = amounts.span(state);
  const Nanos now = state.Now();
  const Denial behind = state.scheduler().Estimate(*state.bucket, now, 0, wanted);
  py::list limits;
  for (std::size_t i = 0; i < state.limits.size(); ++i) {
    const int meter = static_cast<int>(i);
    const std::int64_t used = state.bucket->Used(meter, now);
    const std::int64_t capacity = state.bucket->meter(meter).Capacity();
    py::dict one;
    one["limit"] = state.limits[i];
    one["used"] = used;
    one["capacity"] = capacity;
    one["available"] = std::max<std::int64_t>(0, capacity - used);
    one["ready_in"] =
        Wait(state.bucket->ReadyAt(meter, now, state.bucket->amount(meter, wanted)), now);
    limits.append(one);
  }
  py::dict out;
  out["limits"] = limits;
  out["amounts"] = std::vector<std::int64_t>(wanted.begin(), wanted.end());
  out["waiting"] = state.scheduler().Depth(*state.bucket, now);
  out["binds"] = behind.ready_at > now ? py::cast(behind.meter) : py::none();
  out["ready_in"] = Wait(behind.ready_at, now);
  state.Serve();
  return out;
}

void SetLimit(const py::object& limiter, int meter, const Limit& limit, bool proportional) {
  State& state = StateOf(limiter);
  state.bucket->SetLimit(state.Now(), meter, limit, state.WallOffset(),
                         proportional ? Debt::kProportional : Debt::kAbsolute);
  state.limits[static_cast<std::size_t>(meter)] = limit;
  state.Serve();
}

// By resource, what is granted and not used.
std::map<std::string, std::int64_t> Credit(const py::object& limiter) {
  const State& state = StateOf(limiter);
  std::map<std::string, std::int64_t> credit;
  for (std::size_t i = 0; i < state.limits.size(); ++i)
    if (state.limits[i].shape == Shape::kCredit)
      credit[state.limits[i].resource] = state.bucket->Credit(static_cast<int>(i));
  return credit;
}

// Grants so much more.
void Grant(const py::object& limiter, const py::dict& by_resource) {
  const State& state = StateOf(limiter);
  const auto amounts = by_resource.cast<std::map<std::string, std::int64_t>>();
  for (std::size_t i = 0; i < state.limits.size(); ++i) {
    const auto amount = amounts.find(state.limits[i].resource);
    if (state.limits[i].shape != Shape::kCredit || amount == amounts.end()) continue;
    if (amount->second > 0) state.bucket->Deposit(static_cast<int>(i), amount->second);
  }
  state.Serve();
}

// Takes back all that is granted and not used; by resource, how much that was.
std::map<std::string, std::int64_t> TakeBack(const py::object& limiter) {
  const State& state = StateOf(limiter);
  std::map<std::string, std::int64_t> taken;
  for (std::size_t i = 0; i < state.limits.size(); ++i) {
    const int meter = static_cast<int>(i);
    if (state.limits[i].shape == Shape::kCredit)
      taken[state.limits[i].resource] = state.bucket->Withdraw(meter, state.bucket->Credit(meter));
  }
  return taken;
}

// By resource, what was taken of the credit and has ended, in all, and what of it was used.
std::map<std::string, std::pair<std::int64_t, std::int64_t>> Spent(const py::object& limiter) {
  const State& state = StateOf(limiter);
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> spent;
  for (std::size_t i = 0; i < state.limits.size(); ++i) {
    if (state.limits[i].shape != Shape::kCredit) continue;
    const Bucket::Spent one = state.bucket->spent(static_cast<int>(i));
    spent[state.limits[i].resource] = {one.taken, one.used};
  }
  return spent;
}

}  // namespace

void AddInspection(py::module_& m) {
  m.def("snapshot", &Snapshot, py::arg("limiter"),
        "The state of a limiter at one look, as a dict.");
  m.def("set_limit", &SetLimit, py::arg("limiter"), py::arg("meter"), py::arg("limit"),
        py::arg("proportional"), "Changes one limit, by its place in limits(limiter).");
  m.def("credit", &Credit, py::arg("limiter"), "By resource, what is granted and not used.");
  m.def("grant", &Grant, py::arg("limiter"), py::arg("amounts"),
        "Grants so much more of each resource.");
  m.def("take_back", &TakeBack, py::arg("limiter"),
        "Takes back all credit that is not used; by resource, how much that was.");
  m.def("spent", &Spent, py::arg("limiter"),
        "By resource, what was taken of the credit and has ended, and what of that was used.");
  m.def(
      "limits", [](const py::object& limiter) { return StateOf(limiter).limits; },
      py::arg("limiter"), "The limits as they are now, in the order in which they are taken.");
  m.def(
      "resources",
      [](const py::object& limiter) { return py::tuple(py::cast(StateOf(limiter).resources)); },
      py::arg("limiter"), "The resources, in the order in which amounts are given.");
  m.def(
      "before_fork",
      [] {
        Dispatcher::Get().BeforeFork();
        MetricsBeforeFork();
      },
      "Holds the scheduler still around a fork.");
  m.def(
      "after_fork_in_parent",
      [] {
        MetricsAfterFork(/*in_child=*/false);
        Dispatcher::Get().AfterForkInParent();
      },
      "Lets it go on.");
  m.def(
      "after_fork_in_child",
      [] {
        MetricsAfterFork(/*in_child=*/true);
        Dispatcher::Get().AfterForkInChild();
      },
      "Makes the child's scheduler empty and stopped; the next wait starts it.");
  m.def(
      "stop_dispatcher", [] { Dispatcher::Get().Stop(); }, py::call_guard<py::gil_scoped_release>(),
      "Ends the thread that admits; the next wait starts it again. Called at interpreter exit.");
}

}  // namespace headway::python
