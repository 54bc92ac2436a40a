// bindings/module.cc: headway._core, put together.
#include <pybind11/pybind11.h>

#include "bindings/state.h"

PYBIND11_MODULE(_core, m) {
  using namespace headway::python;
  m.doc() = "Headway's core: metering, admission, scheduling. Use it through the package headway.";
  m.attr("__version__") = HEADWAY_VERSION;
  AddLimitAndClock(m);
  if (!AddReservation(m.ptr()) || !AddDenial(m.ptr()) || !AddAcquire(m.ptr()) ||
      !AddMailbox(m.ptr()) || !AddLimiter(m.ptr()) || !AddScheduler(m.ptr()) ||
      !AddBucket(m.ptr()) || !AddWithReservation(m.ptr()) || !AddCall(m.ptr()))
    throw pybind11::error_already_set();
  AddInspection(m);
  AddMetrics(m);
  AddObserve(m);
}
