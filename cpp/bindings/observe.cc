// bindings/observe.cc: what the text of an answer says.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/state.h"
#include "headway/observe/values.h"

namespace headway::python {
namespace {

// Empty where it is no text that has bytes: a lone surrogate came from somebody's own decoding.
absl::string_view TextOf(const py::str& given) {
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(given.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();
    return {};
  }
  return {text, static_cast<std::size_t>(size)};
}

}  // namespace

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
}

}  // namespace headway::python
