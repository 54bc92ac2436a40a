// headway/bucket/calls.h: what a bucket's calls tell about when the server counts a request.
#ifndef HEADWAY_BUCKET_CALLS_H_
#define HEADWAY_BUCKET_CALLS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "headway/base/clock.h"

namespace headway {

// Client and server do not stamp a request at the same moment, and a `window` slot may be used again
// one period after the *latest* instant at which the server can have counted it:
//
// - through a transport: headers-in, or sent + the network's delay, whichever is earlier;
// - for an opaque call: the answer, less a margin: the least time that any call has taken, except
//   those of the first burst, whose times contain connecting and the client's own queueing, and
//   less the 20 ms that a network is granted at least. (Least over all calls rather than over those
//   alone in flight: under steady load none is ever alone.) Until the margin is known, the last call
//   that a window admits waits until the others are back, so that one call at least tells.
//
// Thread-safe. Memory ordering: independent counters; `in_flight` reaching 0 is part of the waiters
// handshake and so sequentially consistent, like all of them here.
class Calls {
 public:
  // Connecting and sending take at least this long in the books, however fast the network was lately.
  static constexpr Nanos kLeastNetworkDelay = 20 * kMillisecond;

  // Returns whether this call's time will tell: an answer has come before it was admitted.
  bool Begin() {
    in_flight_.fetch_add(1);
    return answered_.load();
  }

  // Returns whether nothing is in flight any more. `answered`: an answer came, rather than a cancel.
  bool End(bool answered) {
    if (answered && !answered_.load()) answered_.store(true);
    return in_flight_.fetch_sub(1) == 1;
  }

  // A call that tells took `latency`. Returns whether the margin has changed.
  bool Learn(Nanos latency) {
    Nanos seen = least_.load();
    while (latency < seen)
      if (least_.compare_exchange_weak(seen, latency)) return true;
    return false;
  }

  Nanos Margin() const {
    const Nanos least = least_.load();
    return least == kNever ? 0 : std::max<Nanos>(0, least - kLeastNetworkDelay);
  }

  // Nothing is known yet of how long a call takes, and calls are out.
  bool HoldsLastBack() const { return least_.load() == kNever && !transport_.load() && in_flight_.load() > 0; }

  // Marks come from a transport. Returns whether that is new.
  bool SawTransport() { return !transport_.load() && !transport_.exchange(true); }
  bool transport() const { return transport_.load(); }
  std::int64_t in_flight() const { return in_flight_.load(); }

 private:
  std::atomic<std::int64_t> in_flight_{0};
  std::atomic<Nanos> least_{kNever};
  std::atomic<bool> answered_{false};
  std::atomic<bool> transport_{false};
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_CALLS_H_
