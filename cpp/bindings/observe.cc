// bindings/observe.cc: what the text of an answer says, and what it says of limits.
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/state.h"
#include "headway/observe/headers.h"
#include "headway/observe/learner.h"
#include "headway/observe/values.h"

namespace headway::python {
namespace {

// Families of the IETF's policies begin here; those of a provider's own headers lie below.
constexpr std::uint8_t kFirstPolicy = 200;

// Empty where it is no text that has bytes: a lone surrogate came from somebody's own decoding.
absl::string_view TextOf(const py::handle& given) {
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(given.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();
    return {};
  }
  return {text, static_cast<std::size_t>(size)};
}

// Readings whose resources are numbered by a list of names of their own.
struct Readings {
  std::vector<std::string> names;
  std::vector<Reading> list;
  int oddities = 0;  // values that could not be read

  std::uint8_t Number(const std::string& name) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      if (names.size() == State::kMaxResources)
        throw py::value_error("readings: there may be at most 32 resources");
      names.push_back(name);
      return static_cast<std::uint8_t>(names.size() - 1);
    }
    return static_cast<std::uint8_t>(found - names.begin());
  }
};

struct Stated {
  Readings numbers;  // no readings, only the names
  std::vector<StatedLimit> limits;
  bool policies = false;
  std::uint8_t requests = 0;
};

Shape ShapeOf(const std::string& name) {
  for (const Shape shape : {Shape::kBucket, Shape::kFixed, Shape::kWindow})
    if (ShapeName(shape) == absl::string_view(name)) return shape;
  throw py::value_error("shape '" + name + "': must be bucket, fixed or window");
}

ResetForm FormOf(const std::string& name) {
  static const std::map<std::string, ResetForm> forms = {{"any", ResetForm::kAny},
                                                         {"duration", ResetForm::kDuration},
                                                         {"ms", ResetForm::kMilliseconds},
                                                         {"epoch", ResetForm::kEpoch},
                                                         {"epoch_ms", ResetForm::kEpochMillis},
                                                         {"date", ResetForm::kDate}};
  const auto found = forms.find(name);
  if (found == forms.end())
    throw py::value_error("reset_form '" + name +
                          "': must be any, duration, ms, epoch, epoch_ms or date");
  return found->second;
}

// Seconds.
Nanos NanosOf(const py::handle& seconds, const char* what) {
  Nanos nanos = 0;
  if (!ReadSeconds(seconds.ptr(), what, nanos)) throw py::error_already_set();
  return nanos;
}

Nanos PeriodOf(const py::handle& seconds) {
  const Nanos period = NanosOf(seconds, "period");
  if (period < Limit::kMinPeriod || period > Limit::kMaxPeriod)
    throw py::value_error("period " + py::str(seconds).cast<std::string>() +
                          ": must be from 0.001 seconds to 31 days");
  return period;
}

// Reads the entries of a dict by name; any that nobody asked for is an error.
class Entries {
 public:
  explicit Entries(py::dict entries) : entries_(std::move(entries)) {}

  template <typename Type>
  Type Get(const char* name, Type otherwise) {
    const py::object value = Raw(name);
    return value.is_none() ? std::move(otherwise) : value.cast<Type>();
  }
  py::object Raw(const char* name) {
    known_.emplace_back(name);
    return entries_.contains(name) ? py::object(entries_[name]) : py::none();
  }
  void Check(const char* what) const {
    for (const auto& [name, value] : entries_)
      if (std::find(known_.begin(), known_.end(), name.cast<std::string>()) == known_.end())
        throw py::value_error(std::string(what) + ": there is no '" + name.cast<std::string>() +
                              "' in one");
  }

 private:
  py::dict entries_;
  std::vector<std::string> known_;
};

// [{resource, limit?, remaining?, reset?, reset_form?, period_in?, when?, unless?, rounding?,
// period?, shape?, anchor?}], where limit, remaining, reset, period_in, when and unless are names
// of headers. The place in the list is the family.
Stated MakeStated(const py::list& limits, bool policies) {
  Stated stated;
  for (const py::handle& given : limits) {
    Entries entries(given.cast<py::dict>());
    StatedLimit limit;
    limit.resource = stated.numbers.Number(entries.Get<std::string>("resource", "requests"));
    limit.family = static_cast<std::uint8_t>(stated.limits.size());
    limit.limit = entries.Get<std::string>("limit", "");
    limit.remaining = entries.Get<std::string>("remaining", "");
    limit.reset = entries.Get<std::string>("reset", "");
    limit.period_in = entries.Get<std::string>("period_in", "");
    limit.when = entries.Get<std::string>("when", "");
    limit.unless = entries.Get<std::string>("unless", "");
    limit.reset_form = FormOf(entries.Get<std::string>("reset_form", "any"));
    limit.rounding =
        std::clamp<std::int64_t>(entries.Get<std::int64_t>("rounding", 0), 0, Limit::kMaxAmount);
    if (const py::object period = entries.Raw("period"); !period.is_none())
      limit.period = PeriodOf(period);
    if (const py::object shape = entries.Raw("shape"); !shape.is_none())
      limit.shape = ShapeOf(shape.cast<std::string>());
    if (const py::object anchor = entries.Raw("anchor"); !anchor.is_none())
      limit.anchor = NanosOf(anchor, "anchor");
    entries.Check("a stated limit");
    if (stated.limits.size() == kFirstPolicy)
      throw py::value_error("stated limits: there may be at most 200");
    stated.limits.push_back(std::move(limit));
  }
  stated.policies = policies;
  if (policies) stated.requests = stated.numbers.Number("requests");
  return stated;
}

// headers: by lower-case name.
Readings ReadAnswer(const Stated& stated, const py::dict& headers, double now) {
  const auto find = [&headers](absl::string_view name) -> std::optional<absl::string_view> {
    PyObject* const key =
        PyUnicode_FromStringAndSize(name.data(), static_cast<Py_ssize_t>(name.size()));
    if (key == nullptr) throw py::error_already_set();
    PyObject* const value = PyDict_GetItemWithError(headers.ptr(), key);  // borrowed
    Py_DECREF(key);
    if (value == nullptr || PyUnicode_Check(value) == 0) {
      if (PyErr_Occurred() != nullptr) PyErr_Clear();
      return std::nullopt;
    }
    return TextOf(value);
  };
  Readings readings{stated.numbers.names, {}};
  readings.list = ReadStated(stated.limits, find, now, &readings.oddities);
  if (!stated.policies || IsFromCache(find)) return readings;
  const auto policy = find("ratelimit-policy");
  if (!policy) return readings;
  if (const auto found = ReadRateLimitFields(*policy, find("ratelimit").value_or(""),
                                             stated.requests, kFirstPolicy)) {
    readings.list.insert(readings.list.end(), found->begin(), found->end());
  } else {
    ++readings.oddities;
  }
  return readings;
}

// [{resource, limit?, remaining?, reset?, period?, shape?}], with amounts and seconds; None is what
// is not said.
Readings MakeReadings(const py::list& given) {
  Readings readings;
  for (const py::handle& each : given) {
    Entries entries(each.cast<py::dict>());
    Reading reading;
    reading.resource = readings.Number(entries.Get<std::string>("resource", "requests"));
    const int family = entries.Get<int>("family", 0);
    if (family < 0 || family > 255)
      throw py::value_error("family " + std::to_string(family) + ": must be from 0 to 255");
    reading.family = static_cast<std::uint8_t>(family);
    reading.limit = entries.Get<std::int64_t>("limit", Reading::kUnsaid);
    reading.remaining = entries.Get<std::int64_t>("remaining", Reading::kUnsaid);
    if (const py::object reset = entries.Raw("reset"); !reset.is_none())
      reading.reset = NanosOf(reset, "reset");
    if (const py::object period = entries.Raw("period"); !period.is_none())
      reading.period = PeriodOf(period);
    if (const py::object shape = entries.Raw("shape"); !shape.is_none())
      reading.shape = ShapeOf(shape.cast<std::string>());
    entries.Check("a reading");
    readings.list.push_back(reading);
  }
  return readings;
}

py::list ListOf(const Readings& readings) {
  py::list out;
  for (const Reading& each : readings.list) {
    py::dict one;
    one["resource"] = readings.names[each.resource];
    one["family"] = each.family;
    if (each.limit != Reading::kUnsaid) one["limit"] = each.limit;
    if (each.remaining != Reading::kUnsaid) one["remaining"] = each.remaining;
    if (each.reset != kNever) one["reset"] = Seconds(each.reset);
    if (each.period != 0) one["period"] = Seconds(each.period);
    if (each.shape != Shape::kUnknown) one["shape"] = std::string(ShapeName(each.shape));
    out.append(one);
  }
  return out;
}

// What was found out about a limiter's limits, by the place of each in limits(limiter).
py::list Findings(const py::object& limiter) {
  const State* const state = StateOfLimiter(limiter.ptr());
  if (state == nullptr) throw py::error_already_set();
  py::list out;
  if (state->learner == nullptr) return out;
  for (const Finding& each : state->learner->Findings()) {
    if (each.limit == Reading::kUnsaid) continue;
    py::dict one;
    one["meter"] = each.meter;
    one["resource"] = state->resources[each.resource];
    one["limit"] = each.limit;
    one["shape"] = std::string(ShapeName(each.verdict.shape));
    one["per"] = Seconds(each.verdict.period);
    one["readings"] = each.readings;
    one["others"] = each.foreign;
    one["given"] = each.given;
    one["searched"] = each.searched;
    out.append(one);
  }
  return out;
}

// What calls of ours have used of one limit when a call was counted whose answer has just come. Not
// what its meter shows: others' use is in that, and what is admitted may not have gone out.
// `learnt`: its shape is what answers have shown it to be.
std::int64_t OwnUse(State& state, int meter, bool learnt, const AnsweredCall& call) {
  Bucket& bucket = *state.bucket;
  const History& history = *bucket.history();
  const auto resource = static_cast<std::size_t>(bucket.resource(meter));
  const Parameters p = bucket.meter(meter).parameters();
  switch (bucket.meter(meter).shape()) {
    case Shape::kConcurrency:
    case Shape::kCredit:
      return bucket.Used(meter, call.answered);
    case Shape::kBucket:
      // One that was said to be a bucket may be none: then what flows back is used all the same.
      if (learnt) return history.Owed(resource, p.amount, p.period, call.answered);
      return history.Since(resource, call.sent - p.period);
    case Shape::kFixed:
      return history.Since(resource, call.sent - (call.sent - p.anchor()) % p.period);
    default:
      return history.Since(resource, call.sent - p.period);
  }
}

// By the place of each limit in limits(limiter), what calls of ours have used of it in its last
// window (of a bucket: what they owe); and when the call was begun, as of Scheduler._now. `call`
// nullopt: nothing is known of that, and others' use is in it where that is seen.
py::tuple OwnUses(const py::object& limiter, const std::optional<AnsweredCall>& call) {
  State* const state = StateOfLimiter(limiter.ptr());
  if (state == nullptr) throw py::error_already_set();
  const bool remembers = call && state->bucket->history() != nullptr;
  std::vector<Finding> findings;
  if (remembers && state->learner != nullptr) findings = state->learner->Findings();
  py::list uses;
  for (int i = 0; i < static_cast<int>(state->limits.size()); ++i) {
    const bool learnt = std::any_of(findings.begin(), findings.end(), [i](const Finding& each) {
      return each.meter == i && !each.given;
    });
    uses.append(remembers ? OwnUse(*state, i, learnt, *call)
                          : state->bucket->Used(i, state->Now()));
  }
  return py::make_tuple(call ? py::object(py::int_(call->began)) : py::none(), uses);
}

// Limits have changed. Returns whether any has.
bool TakeOver(State& state, const std::vector<Change>& changes) {
  for (const Change& change : changes) {
    const auto place = static_cast<std::size_t>(change.meter);
    if (place >= state.limits.size()) state.limits.resize(place + 1);
    state.limits[place] = change.limit;
  }
  if (!changes.empty()) ++state.learnt;
  state.Serve();
  return !changes.empty();
}

// What the answer to a call said of a limiter's limits. Returns whether any of them has changed.
bool Observe(const py::object& limiter, const AnsweredCall& call, const Readings& given,
             bool refused, const py::object& wait, bool failed) {
  State* const state = StateOfLimiter(limiter.ptr());
  if (state == nullptr) throw py::error_already_set();
  if (state->learner == nullptr) return false;
  std::vector<Reading> known;
  for (Reading reading : given.list) {
    const auto found =
        std::find(state->resources.begin(), state->resources.end(), given.names[reading.resource]);
    if (found == state->resources.end()) continue;  // it is not counted here
    reading.resource = static_cast<std::uint8_t>(found - state->resources.begin());
    known.push_back(reading);
  }
  std::optional<Nanos> told;
  if (refused) told = wait.is_none() ? kNever : NanosOf(wait, "wait");
  return TakeOver(*state, state->learner->Observe(state->Now(), state->WallOffset(), call, known,
                                                  told, failed));
}

// What was learnt of limits before, by another one.
bool Recall(const py::object& limiter, const std::vector<Limit>& limits, double hold,
            const std::optional<Limit>& searched) {
  State* const state = StateOfLimiter(limiter.ptr());
  if (state == nullptr) throw py::error_already_set();
  if (state->learner == nullptr) return false;
  return TakeOver(*state, state->learner->Recall(state->Now(), state->WallOffset(), limits,
                                                 static_cast<Nanos>(hold * 1e9), searched));
}

}  // namespace

PyObject* RecordOf(const State& state, const Reservation& reservation) {
  if (state.learner == nullptr || reservation.bucket() == nullptr) Py_RETURN_NONE;
  try {
    return py::cast(AnsweredCall::Of(reservation, state.Now())).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

void AddObserve(py::module_& m) {
  m.def(
      "parse_number", [](const py::str& text) { return ParseNumber(TextOf(text)); },
      py::arg("text"), "A number from 0 to 2**53, or None.");
  m.def(
      "parse_duration", [](const py::str& text) { return ParseDuration(TextOf(text)); },
      py::arg("text"), "Seconds: a number, or amounts with units as in '6m0s'; or None.");
  m.def(
      "parse_date", [](const py::str& text) { return ParseDate(TextOf(text)); }, py::arg("text"),
      "Seconds since the epoch: a time of RFC 3339, or an HTTP date; or None.");
  m.def(
      "parse_instant",
      [](const py::str& text, double now) { return ParseInstant(TextOf(text), now); },
      py::arg("text"), py::arg("now"),
      "Seconds since the epoch, of a wait, a number of (milli)seconds or a time; or None.");
  py::class_<Readings>(m, "Readings", "What an answer says of limits.")
      .def(py::init(&MakeReadings), py::arg("readings"))
      .def("__len__", [](const Readings& self) { return self.list.size(); })
      .def_readonly("oddities", &Readings::oddities, "How many values could not be read.")
      .def("as_list", &ListOf, "Each as a dict; what is not said is left out.");
  py::class_<Stated>(m, "StatedLimits", "Which limits a provider's headers state, and how.")
      .def(py::init(&MakeStated), py::arg("limits"), py::arg("policies"))
      .def("read", &ReadAnswer, py::arg("headers"), py::arg("now"),
           "What these headers, by lower-case name, say; now: seconds since the epoch.");
  py::class_<AnsweredCall>(m, "AnsweredCall", "What is known of a call whose answer has come.")
      .def(py::init([]() -> AnsweredCall {
        throw py::type_error("AnsweredCall: made by calls and reservations only");
      }));
  m.def("observe", &Observe, py::arg("limiter"), py::arg("call"), py::arg("readings"),
        py::arg("refused") = false, py::arg("wait") = py::none(), py::arg("failed") = false,
        "Tells what the answer to a call said of limits; whether one of them has changed. refused: "
        "for want of what comes back, in `wait` seconds if it said so. failed: for any other "
        "reason.");
  m.def("recall", &Recall, py::arg("limiter"), py::arg("limits"), py::arg("hold"),
        py::arg("searched") = py::none(),
        "Limits that were learnt before, as stated, hold until answers say otherwise. Before it is "
        "used. hold: for so many seconds the others wait for the answer of the first. searched: "
        "what refusals had shown, which is searched on.");
  m.def(
      "read_late",
      [](const py::object& limiter) {
        State* const state = StateOfLimiter(limiter.ptr());
        if (state == nullptr) throw py::error_already_set();
        if (state->learner != nullptr) state->learner->ReadLate();
      },
      py::arg("limiter"), "Answers are read later than they come: nobody goes ahead to see.");
  m.def(
      "searches",
      [](const py::object& limiter) {
        const State* const state = StateOfLimiter(limiter.ptr());
        if (state == nullptr) throw py::error_already_set();
        return state->learner != nullptr && state->learner->searches();
      },
      py::arg("limiter"), "Whether a limit that is never stated is being found out.");
  m.def("own_use", &OwnUses, py::arg("limiter"), py::arg("call"),
        "When the call began, and of each limit what calls of ours have used by its answer.");
  m.def("findings", &Findings, py::arg("limiter"),
        "What was learnt of its limits, each as a dict.");
}

}  // namespace headway::python
