// headway/bucket/calls.h: what a bucket's calls tell about when the server counts a request.
#ifndef HEADWAY_BUCKET_CALLS_H_
#define HEADWAY_BUCKET_CALLS_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "headway/base/cache_line.h"
#include "headway/base/clock.h"
#include "headway/meter/meter.h"

namespace headway {

// Client and server do not stamp a request at the same moment, and a `window` slot may be used
// again one period after the *latest* instant at which the server can have counted it:
//
// - through a transport: headers-in, or sent + the network's delay, whichever is earlier;
// - for an opaque call: the answer, less a margin: the least time that a call has taken, known once
//   one was started quietly (at most 16 others within 50 ms before and after it, and after the
//   first answer). The times of a burst contain connecting and the client's own queueing;
//   subtracting them would free slots too early, and refuse a whole burst. From the margin goes how
//   much the calls' own times differ, as seen from calls overtaking each other, and 20 ms at least.
//   A quiet call is moreover counted soon after it has begun, whatever time its answer takes: the
//   client has little else to do, so what is left is the network (Meter::Answered says how soon).
//   So is one among up to 64, with 4 ms more for each beyond 16: two to eight times what HTTP
//   clients in Python use a call. That holds before its own answer, too, once a later call has been
//   answered (Meter::Begun).
//   Until a quiet call has told, the last one that a window admits waits until the others are back,
//   so that one does; but no longer than HoldFor, for they may be waiting for it.
//
// Thread-safe. Memory ordering: independent counters; `in_flight` reaching 0 is part of the waiters
// handshake and so sequentially consistent, like all of them here but for two instants, which
// nothing else follows from: they are released, and read as they are.
class Calls {
 public:
  // Connecting and sending take at least this long in the books, however fast the network was
  // lately.
  static constexpr Nanos kLeastNetworkDelay = 20 * kMillisecond;

  // A call among the bucket's: its number, and how many at the most began within kCrowdSpan before
  // it; kMostOthers before the first answer. out: how many had begun and not ended, this one with
  // them.
  struct Call {
    std::uint64_t number = 0;
    int others = 0;
    int out = 1;
  };
  static constexpr int kFewOthers = 16;
  static constexpr int kMostOthers = 64;
  // How long a call may have waited for the `crowd` around it; kUntold for a large one.
  static Nanos Waited(int crowd) {
    if (crowd >= kMostOthers) return kUntold;
    return Nanos{std::max(0, crowd - kFewOthers)} * 4 * kMillisecond;
  }

  // A call was admitted, and will begin: at once, or when whoever waited for it goes on.
  void Admit() { in_flight_.fetch_add(1); }

  // An admitted call begins at `now`.
  Call Begin(Nanos now) {
    const bool alone = in_flight_.load() == 1;
    const std::uint64_t number = begun_.fetch_add(1) + 1;
    int others = kMostOthers;
    if (answered_.load()) {
      others = alone ? 0 : Others([&](std::uint64_t n) {
        return number > n && now - Time(number - n).load() < kCrowdSpan;
      });
    }
    Time(number).store(now, std::memory_order_release);
    return Call{number, others, out()};
  }

  // How many have begun and not ended.
  int out() const { return static_cast<int>(begun_.load() - finished_.load()); }
  // One that had begun has ended: with its answer's body, where that is a stream.
  void Finish() { finished_.fetch_add(1); }

  // Returns whether nothing is in flight any more. `answered`: an answer came, rather than a
  // cancel.
  bool End(bool answered) {
    if (answered && !answered_.load()) answered_.store(true);
    return in_flight_.fetch_sub(1) == 1;
  }

  // How many others, at the most, began within kCrowdSpan before and after it.
  int Crowd(const Call& call) {
    const std::uint64_t begun = begun_.load();
    if (begun - call.number >= kRemembered - kMostOthers) return kMostOthers;  // forgotten
    return call.others + Others([&](std::uint64_t n) {
             return begun >= call.number + n &&
                    Time(call.number + n).load() - Time(call.number).load() < kCrowdSpan;
           });
  }

  // A call that was answered at `now` took `latency`. Returns whether the margin has changed.
  bool Learn(const Call& call, bool quiet, Nanos now, Nanos latency) {
    const Nanos before = Margin();
    const bool knew = Knows();
    // Calls are sent in the order in which they begin, so one that is answered after a later one
    // took longer than that one did, by at least the time between the two answers.
    std::uint64_t latest = latest_answered_.load();
    if (call.number > latest) {
      latest_answered_at_.store(now, std::memory_order_release);
      while (call.number > latest && !latest_answered_.compare_exchange_weak(latest, call.number)) {
      }
    } else if (const Nanos since = now - latest_answered_at_.load(); since > variation_.load()) {
      variation_.store(since);
    }
    StoreLeast(least_, latency);
    if (quiet) StoreLeast(least_quiet_, latency);
    return Margin() != before || Knows() != knew;
  }

  // Whether a quiet call has told.
  bool Knows() const { return least_quiet_.load() != kNever; }

  Nanos Margin() const {
    const Nanos quiet = least_quiet_.load();
    if (quiet == kNever) return 0;
    return std::max<Nanos>(
        0, std::min(quiet, least_.load()) - std::max(kLeastNetworkDelay, variation_.load()));
  }

  // For how long the last one is held back after the latest has begun: a sixth of the period, 1 s
  // at least.
  static Nanos HoldFor(Nanos period) { return std::max(kSecond, period / 6); }
  // When the latest call began; `now` where none has. Long ago where that is just being written.
  Nanos LatestBegan(Nanos now) {
    const std::uint64_t begun = begun_.load();
    return begun == 0 ? now : Time(begun).load();
  }

  // Nothing is known yet of how long a call takes, and calls are out.
  bool HoldsLastBack() const { return !Knows() && !transport_.load() && in_flight_.load() > 0; }

  // The server has refused a call: then nothing is assumed any more about when it counts.
  void SawRefusal() { refused_.store(true); }
  bool refused() const { return refused_.load(); }

  // Marks come from a transport. Returns whether that is new.
  bool SawTransport() { return !transport_.load() && !transport_.exchange(true); }
  bool transport() const { return transport_.load(); }
  std::int64_t in_flight() const { return in_flight_.load(); }

 private:
  // When so many of the latest calls began is remembered.
  static constexpr std::uint64_t kRemembered = 256;

  std::atomic<Nanos>& Time(std::uint64_t number) { return times_[number % kRemembered]; }

  // A bound on the n for which `within` holds: twice the largest power of two that it holds for, up
  // to kMostOthers; or 0. From above, because the nearest may be just about to write their
  // instants.
  template <typename Within>
  static int Others(Within within) {
    for (int n = kMostOthers / 2; n > 0; n /= 2)
      if (within(static_cast<std::uint64_t>(n))) return 2 * n;
    return 0;
  }

  static void StoreLeast(std::atomic<Nanos>& least, Nanos value) {
    Nanos seen = least.load();
    while (value < seen && !least.compare_exchange_weak(seen, value)) {
    }
  }

  // What whoever admits looks at: on a line of its own, for those who begin and end calls meanwhile
  // write to the others at each.
  alignas(kCacheLine) std::atomic<std::int64_t> in_flight_{0};
  std::atomic<Nanos> least_quiet_{kNever};
  std::atomic<bool> answered_{false};
  std::atomic<bool> transport_{false};
  std::atomic<bool> refused_{false};
  alignas(kCacheLine) std::atomic<std::uint64_t> begun_{0};
  std::atomic<std::uint64_t> finished_{0};
  std::atomic<std::uint64_t> latest_answered_{0};
  std::atomic<Nanos> latest_answered_at_{0};
  std::atomic<Nanos> variation_{0};
  std::atomic<Nanos> least_{kNever};
  std::array<std::atomic<Nanos>, kRemembered> times_{};
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_CALLS_H_
