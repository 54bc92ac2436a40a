// bindings/limit.cc: Limit and ManualClock.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/state.h"

namespace headway::python {
namespace {

// Arguments of which we say ourselves what is wrong with them: pybind11 would list signatures.
bool Any(PyObject* /*given*/) { return true; }
struct Text : py::object {
  PYBIND11_OBJECT_DEFAULT(Text, py::object, Any)
};
struct Period : py::object {
  PYBIND11_OBJECT_DEFAULT(Period, py::object, Any)
};

Limit Check(absl::StatusOr<Limit> limit) {
  if (!limit.ok()) throw py::value_error(std::string(limit.status().message()));
  return *std::move(limit);
}

// What people write for a period, and what the text form has for it.
constexpr struct {
  std::string_view written;
  std::string_view meant;
} kPeriods[] = {
    {"secs", "s"},  {"seconds", "s"}, {"m", "min"},      {"mins", "min"}, {"minutes", "min"},
    {"hr", "hour"}, {"hrs", "hour"},  {"hours", "hour"}, {"d", "day"},    {"days", "day"},
};

// The limit that a text says; where only its period is misspelt, the error says what to write.
Limit Parse(const std::string& text) {
  absl::StatusOr<Limit> limit = Limit::Parse(text);
  const std::size_t slash = text.find('/');
  if (limit.ok() || slash == std::string::npos) return Check(std::move(limit));
  const std::size_t begin = text.find_first_not_of("0123456789_. ", slash + 1);
  const std::size_t end = std::min(text.find(' ', std::min(begin, text.size())), text.size());
  for (const auto& [written, meant] : kPeriods) {
    if (begin == std::string::npos || text.compare(begin, end - begin, written) != 0) continue;
    std::string instead = text.substr(0, begin);
    instead.append(meant).append(text, end);
    if (!Limit::Parse(instead).ok()) continue;
    std::string why = "limit '";
    why.append(text).append("': write '").append(instead).append("'");
    throw py::value_error(why);
  }
  return Check(std::move(limit));
}

Nanos ToNanos(double seconds, const char* what) {
  if (!std::isfinite(seconds) || std::abs(seconds) > 9.2e9)
    throw py::value_error(std::string(what) + " " +
                          py::repr(py::float_(seconds)).cast<std::string>() +
                          ": must be a finite number of seconds");
  return static_cast<Nanos>(std::llround(seconds * 1e9));
}

// Whole numbers only: 2.5 requests cannot be counted, and True is a mistake.
std::int64_t ToAmount(const py::object& value, const char* what) {
  if (py::isinstance<py::bool_>(value) || !PyIndex_Check(value.ptr()))
    throw py::type_error(std::string(what) + " " + py::repr(value).cast<std::string>() +
                         ": must be a whole number (int)");
  const auto number = py::reinterpret_steal<py::int_>(PyNumber_Index(value.ptr()));
  int overflow = 0;
  const long long out = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0)
    throw py::value_error(std::string(what) + " " + py::repr(value).cast<std::string>() +
                          ": must be from 0 to 2**53");
  return out;
}

std::optional<Shape> ShapeOf(const std::string& name) {
  for (const Shape s : {Shape::kBucket, Shape::kFixed, Shape::kWindow, Shape::kConcurrency})
    if (std::string(ShapeName(s)) == name) return s;
  return std::nullopt;
}

std::string ToText(const py::object& value, const char* what) {
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  throw py::type_error(std::string(what) + " " + py::repr(value).cast<std::string>() +
                       ": must be a text (str)");
}

double ToSeconds(const py::object& value, const char* what) {
  const double seconds = PyFloat_AsDouble(value.ptr());
  if (seconds != -1.0 || PyErr_Occurred() == nullptr) return seconds;
  PyErr_Clear();
  throw py::type_error(std::string(what) + " " + py::repr(value).cast<std::string>() +
                       ": must be a number of seconds, as 60 for a minute");
}

Limit MakeLimit(const py::object& amount, const Text& resource, const Period& per,
                const std::optional<Text>& shape, const py::object& burst,
                const std::optional<Period>& anchor) {
  Limit limit;
  limit.amount = ToAmount(amount, "amount");
  limit.resource = ToText(resource, "resource");
  limit.period = ToNanos(ToSeconds(per, "per"), "per");
  if (shape) {
    const std::string name = ToText(*shape, "shape");
    const std::optional<Shape> known = ShapeOf(name);
    if (!known)
      throw py::value_error("shape '" + name + "': must be 'bucket', 'fixed', 'window' or None");
    limit.shape = *known;
  }
  if (!burst.is_none()) limit.burst = ToAmount(burst, "burst");
  if (anchor) limit.anchor = ToNanos(ToSeconds(*anchor, "anchor"), "anchor");
  return Check(Limit::Make(std::move(limit)));
}

std::string Repr(const Limit& l) { return "Limit('" + l.Format() + "')"; }

}  // namespace
}  // namespace headway::python

namespace pybind11::detail {
// What signatures, and so the stub, show of them.
template <>
struct handle_type_name<headway::python::Text> {
  static constexpr auto name = const_name("str");
};
template <>
struct handle_type_name<headway::python::Period> {
  static constexpr auto name = const_name("typing.SupportsFloat | typing.SupportsIndex");
};
}  // namespace pybind11::detail

namespace headway::python {

void AddLimitAndClock(py::module_& m) {
  py::class_<Limit>(m, "Limit",
                    R"(An amount of a resource per period, and how the provider counts it.

amount: units, 0 to 2**53. resource: "requests", "tokens", "input_tokens", "output_tokens",
"concurrency", or a name of your own. per: seconds, 0.001 to 31 days. shape: "bucket" (continuous
refill), "fixed" (windows from an anchor), "window" (never more than amount in any period), or None
where it is not known (kept as "window", which no server refuses). burst: "bucket" only, units; None is
the amount. anchor: "fixed" only, seconds since the Unix epoch at which some window begins; None is
midnight UTC.

Immutable and hashable. Also written as text, wherever a Limit is taken:
"500 requests/min", "200_000 tokens/60s window", "100 requests/s bucket burst 10",
"10_000 requests/day fixed", "32 concurrency". Raises ValueError naming the value and the rule.)")
      .def(py::init(&MakeLimit), py::arg("amount"), py::arg("resource") = "requests",
           py::arg("per") = 60.0, py::arg("shape") = py::none(), py::arg("burst") = py::none(),
           py::arg("anchor") = py::none())
      .def_static(
          "parse", &Parse, py::arg("text"),
          "The limit that `text` says; ValueError quotes the text. str(limit) gives it back.")
      .def_readonly("amount", &Limit::amount, "Units per period.")
      .def_readonly("resource", &Limit::resource, "What is counted.")
      .def_property_readonly(
          "per", [](const Limit& l) { return Seconds(l.period); }, "Seconds; 0.0 for concurrency.")
      .def_property_readonly(
          "shape",
          [](const Limit& l) -> std::optional<std::string> {
            if (l.shape == Shape::kUnknown) return std::nullopt;
            return std::string(ShapeName(l.shape));
          },
          "How the provider counts, or None where that is not known.")
      .def_property_readonly(
          "burst",
          [](const Limit& l) -> std::optional<std::int64_t> {
            if (l.shape != Shape::kBucket) return std::nullopt;
            return l.burst_or_amount();
          },
          "Units that may go at once: shape 'bucket' only, else None.")
      .def_property_readonly(
          "anchor",
          [](const Limit& l) -> std::optional<double> {
            if (!l.anchor) return std::nullopt;
            return Seconds(*l.anchor);
          },
          "Seconds since the Unix epoch at which a 'fixed' window begins, or None.")
      .def("__str__", &Limit::Format)
      .def("__repr__", &Repr)
      .def(py::self == py::self)
      .def("__hash__", [](const Limit& l) { return py::hash(py::str(l.Format())); })
      // As text, which is exact: an anchor has more digits than a double.
      .def(py::pickle([](const Limit& l) { return l.Format(); },
                      [](const std::string& text) { return Check(Limit::Parse(text)); }));

  py::class_<VirtualTime, std::shared_ptr<VirtualTime>>(
      m, "ManualClock", R"(A clock that stands still until it is moved: for tests and simulations.

start: seconds, 0 to 5e8; also what its wall clock shows, as seconds since the Unix epoch. Limiters made
with `clock=` this clock live in its time: `advance` admits whoever is due, and their tasks go on as
soon as their loop turns. Thread-safe.)")
      .def(py::init([](double start) {
             const Nanos at = ToNanos(start, "start");
             if (at < 0 || at > (Nanos{1} << 59))
               throw py::value_error("start " + std::to_string(start) +
                                     ": must be from 0 to 5e8 seconds");
             return std::make_shared<VirtualTime>(at);
           }),
           py::arg("start") = 0.0)
      .def(
          "now", [](const VirtualTime& t) { return Seconds(t.clock.Now()); }, "Seconds.")
      .def(
          "advance",
          [](VirtualTime& t, double seconds) {
            const Nanos step = ToNanos(seconds, "seconds");
            const Nanos to = t.clock.Now() + step;
            if (to < 0 || to > (Nanos{1} << 59))
              throw py::value_error("seconds " + std::to_string(seconds) +
                                    ": the clock must stay between 0 and 5e8 seconds");
            t.MoveTo(to);
          },
          py::arg("seconds"),
          "Moves it (back, too: limiters must stand that) and admits whoever is due.");
}

}  // namespace headway::python
