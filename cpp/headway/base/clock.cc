// headway/base/clock.cc: the real clocks.
#include "headway/base/clock.h"

#include <ctime>

namespace headway {
namespace {

Nanos Read(clockid_t id) {
  timespec now{};
  clock_gettime(id, &now);
  return static_cast<Nanos>(now.tv_sec) * kSecond + now.tv_nsec;
}

}  // namespace

Nanos MonotonicNow() { return Read(CLOCK_MONOTONIC); }

Nanos WallOffset() { return Read(CLOCK_REALTIME) - Read(CLOCK_MONOTONIC); }

const Clock& Clock::Real() {
  static const Clock real;
  return real;
}

}  // namespace headway
