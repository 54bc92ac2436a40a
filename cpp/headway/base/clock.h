// headway/base/clock.h: instants and durations, and where the time comes from.
#ifndef HEADWAY_BASE_CLOCK_H_
#define HEADWAY_BASE_CLOCK_H_

#include <atomic>
#include <cstdint>
#include <limits>

namespace headway {

// Nanoseconds. An instant counts them on a monotonic clock whose zero lies in the past (the
// machine's start); a duration is a difference of two. Meters keep instants in 60 bits, which is
// 36 years.
using Nanos = std::int64_t;

inline constexpr Nanos kMicrosecond = 1'000;
inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1'000'000'000;
inline constexpr Nanos kDay = 86'400 * kSecond;

// As an answer to "when would it fit": never, whatever happens.
inline constexpr Nanos kNever = std::numeric_limits<Nanos>::max();
// As an answer to "when would it fit": it depends on an answer that is still out. Whoever waits is
// signalled when that answer comes, so this is an instant to sleep until, not one to give up at.
inline constexpr Nanos kUntold = kNever - 1;

// The time now on CLOCK_MONOTONIC. Only this clock decides anything locally, so that a step of the
// wall clock moves nothing. Thread-safe.
Nanos MonotonicNow();

// What has to be added to a monotonic instant to get nanoseconds since the Unix epoch, read now.
// Used once when a `fixed` limit is anchored, never afterwards. Thread-safe.
Nanos WallOffset();

// A source of time: the real clock, or one that a test or a simulation moves by hand.
//
// Thread-safe. A manual clock may be moved by any thread; `Now()` then is a plain atomic load.
class Clock {
 public:
  // The process's real, monotonic clock.
  static const Clock& Real();

  // A clock that stands at `start` until it is moved. Its wall clock shows the same figure, as
  // nanoseconds since the Unix epoch.
  static Clock Manual(Nanos start) { return Clock(start); }

  Clock(const Clock& other) : manual_(other.manual_), now_(other.now_.load()) {}
  Clock& operator=(const Clock&) = delete;

  Nanos Now() const { return manual_ ? now_.load(std::memory_order_acquire) : MonotonicNow(); }
  Nanos WallNow() const { return manual_ ? Now() : MonotonicNow() + WallOffset(); }
  bool manual() const { return manual_; }

  // Moves a manual clock. Going back is allowed: meters must stand it.
  void Set(Nanos now) { now_.store(now, std::memory_order_release); }

 private:
  Clock() = default;
  explicit Clock(Nanos start) : manual_(true), now_(start) {}

  bool manual_ = false;
  std::atomic<Nanos> now_{0};
};

}  // namespace headway

#endif  // HEADWAY_BASE_CLOCK_H_
