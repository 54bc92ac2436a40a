// bindings/inspection.cc: the cold verbs: what a limiter's state is, and changing its limits.
#include <map>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/scheduler.h"
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

// From now on what is granted may be used for so many seconds, and not after that.
void KeepCredit(const py::object& limiter, double seconds) {
  const State& state = StateOf(limiter);
  const Nanos until = state.Now() + static_cast<Nanos>(seconds * 1e9);
  for (std::size_t i = 0; i < state.limits.size(); ++i)
    if (state.limits[i].shape == Shape::kCredit)
      state.bucket->meter(static_cast<int>(i)).HoldsUntil(until);
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

// What is held, all of one instant where that could be had, else more of it rather than less: by
// resource the credit that nobody has taken, what is taken for those who wait and have not gone on,
// what was given back of what has ended, and the seconds since somebody has begun to use credit
// last; and by meter but those of credit, in the order of limits(), as Meter::Holds: (units, [(run,
// amount, seconds)]).
py::tuple Holds(const py::object& limiter) {
  const State& state = StateOf(limiter);
  const Nanos now = state.Now();
  struct Held {
    std::int64_t units = 0;
    std::vector<Departure> departures;
  };
  const std::size_t count = state.limits.size();
  std::vector<std::int64_t> credit(state.resources.size(), 0);
  std::vector<std::int64_t> refunded(state.resources.size(), 0);
  std::vector<std::int64_t> unbegun(state.resources.size(), 0);
  std::vector<double> ages(state.resources.size(), 0);
  std::vector<Held> held(count);
  std::vector<std::int64_t> before;
  // Whoever begins moves units from the credit to a meter, and whoever gives up moves them back: a
  // look that finds the same twice has missed none on their way.
  for (int look = 0;; ++look) {
    std::vector<std::int64_t> seen;
    for (std::size_t i = 0; i < count; ++i) {
      const int meter = static_cast<int>(i);
      const auto resource = static_cast<std::size_t>(state.bucket->resource(meter));
      if (state.limits[i].shape == Shape::kCredit) {
        const std::int64_t left = state.bucket->Credit(meter);
        const std::int64_t waiting = state.bucket->meter(meter).unbegun();
        credit[resource] = look == 0 ? left : std::max(credit[resource], left);
        unbegun[resource] = look == 0 ? waiting : std::max(unbegun[resource], waiting);
        seen.push_back(left);
        seen.push_back(waiting);
        const Bucket::Spent spent = state.bucket->spent(meter);
        refunded[resource] = spent.taken - spent.used;
        ages[resource] = Seconds(std::max<Nanos>(0, now - state.bucket->meter(meter).last_begun()));
      } else {
        Held one;
        one.units = state.bucket->meter(meter).Holds(one.departures);
        seen.push_back(one.units);
        if (look == 0 || one.units >= held[i].units) held[i] = std::move(one);
      }
    }
    const bool same = seen == before;
    before = std::move(seen);
    if (same || look == 8) break;
    // What was found before was of an instant that nobody saw twice.
    if (look == 7) continue;
    held.assign(count, Held{});
    std::fill(credit.begin(), credit.end(), 0);
    std::fill(unbegun.begin(), unbegun.end(), 0);
  }
  py::list meters;
  for (std::size_t i = 0; i < count; ++i) {
    if (state.limits[i].shape == Shape::kCredit) continue;
    py::list leave;
    for (const Departure& each : held[i].departures)
      leave.append(py::make_tuple(each.run, each.amount, Seconds(each.at - now)));
    meters.append(py::make_tuple(held[i].units, leave));
  }
  return py::make_tuple(credit, unbegun, refunded, ages, meters);
}

// Another object over the same words: they live as long as either.
py::object Twin(const py::object& limiter) {
  State& state = StateOf(limiter);
  PyObject* object = limiter_type->tp_alloc(limiter_type, 0);
  if (object == nullptr) throw py::error_already_set();
  state.Ref();
  reinterpret_cast<LimiterObject*>(object)->state = &state;
  return py::reinterpret_steal<py::object>(object);
}

// What the first `most` of those ask who wait for credit on its words: (how many, amounts), in the
// order in which they would go.
py::list Demand(const py::object& limiter, std::size_t most) {
  const State& state = StateOf(limiter);
  py::list out;
  const auto [asked, at_gate] = state.scheduler().Demand(*state.bucket, state.Now(), most);
  for (const Asked& run : asked) {
    // At the gate of a scheduler only the first goes when its turn comes, and needs it then.
    const std::size_t count = at_gate ? 1 : run.count;
    out.append(py::make_tuple(count, py::tuple(py::cast(std::vector<std::int64_t>(
                                         run.amounts.begin(), run.amounts.end())))));
    if (at_gate) break;
  }
  state.Serve();
  return out;
}

// Which limiters' heads wait for credit, told to whoever supplies it.
class AskersOf {
 public:
  void Add(const py::object& limiter, double ahead) {
    State& state = StateOf(limiter);
    state.supplied = true;
    state.scheduler().SetSupplier(
        *state.bucket, [askers = askers_, which = state.bucket] { askers->Add(which); },
        static_cast<Nanos>(ahead * 1e9));
  }
  void Tell(const py::object& mailbox) {
    std::shared_ptr<Mailbox> held;
    if (!mailbox.is_none()) {
      Mailbox* told = MailboxOf(mailbox.ptr());
      if (told == nullptr) throw py::error_already_set();
      told->Ref();
      held = std::shared_ptr<Mailbox>(told, [](Mailbox* m) { m->Unref(); });
    }
    askers_->Tell(std::move(held));
  }
  std::vector<std::uintptr_t> TakeAll() {
    std::vector<std::uintptr_t> out;
    for (const Bucket* each : askers_->TakeAll())
      out.push_back(reinterpret_cast<std::uintptr_t>(each));
    return out;
  }

 private:
  std::shared_ptr<Askers> askers_ = std::make_shared<Askers>();
};

}  // namespace

void AddInspection(py::module_& m) {
  m.def("snapshot", &Snapshot, py::arg("limiter"),
        "The state of a limiter at one look, as a dict.");
  m.def("set_limit", &SetLimit, py::arg("limiter"), py::arg("meter"), py::arg("limit"),
        py::arg("proportional"), "Changes one limit, by its place in limits(limiter).");
  m.def("credit", &Credit, py::arg("limiter"), "By resource, what is granted and not used.");
  m.def("grant", &Grant, py::arg("limiter"), py::arg("amounts"),
        "Grants so much more of each resource.");
  m.def("keep_credit", &KeepCredit, py::arg("limiter"), py::arg("seconds"),
        "What is granted may be used for so long from now on, and not after that.");
  m.def("take_back", &TakeBack, py::arg("limiter"),
        "Takes back all credit that is not used; by resource, how much that was.");
  m.def("spent", &Spent, py::arg("limiter"),
        "By resource, what was taken of the credit and has ended, and what of that was used.");
  m.def(
      "holds", &Holds, py::arg("limiter"),
      "What is held: by resource, credit and what was given back; by meter, units and departures.");
  m.def("twin", &Twin, py::arg("limiter"), "Another limiter of the same words.");
  m.def(
      "is_shared", [](const py::object& limiter) { return StateOf(limiter).references > 1; },
      py::arg("limiter"), "Whether anybody else has its words, or waits or holds something there.");
  m.def("demand", &Demand, py::arg("limiter"), py::arg("most"),
        "What those ask who wait for credit, in the order in which they would go.");
  m.def(
      "which",
      [](const py::object& limiter) {
        return reinterpret_cast<std::uintptr_t>(StateOf(limiter).bucket);
      },
      py::arg("limiter"), "The number by which Askers.take() calls it.");
  py::class_<AskersOf>(m, "Askers", "Which limiters wait for credit, for whoever supplies it.")
      .def(py::init<>())
      .def("add", &AskersOf::Add, py::arg("limiter"), py::arg("ahead") = 0.0,
           "It is told of, as long as it lives, so many seconds before all else lets its head go.")
      .def("tell", &AskersOf::Tell, py::arg("mailbox"),
           "Makes the mailbox readable when one begins to wait; None ends it.")
      .def("take", &AskersOf::TakeAll, "Those that have begun to since it was called last.");
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
