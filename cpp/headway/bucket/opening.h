// headway/bucket/opening.h: how many go at once to a server of which no limit is known.
#ifndef HEADWAY_BUCKET_OPENING_H_
#define HEADWAY_BUCKET_OPENING_H_

#include <atomic>
#include <cstdint>

#include "headway/base/clock.h"
#include "headway/base/pause.h"

namespace headway {

// Opens a bucket by and by, as answers come that tell of no limit.
//
// So many calls may be out at once; each good answer makes places for three more, so four times as
// many after each round, and any number from kAll on. After a refusal that nothing explains
// (Narrow) it begins anew, with one place, and for each good answer to what has left since then one
// more. Where no answer comes for `hold`, the places are doubled all the same: whoever is out may
// be waiting for others.
//
// Thread-safe and lock-free. One word has the places, who takes them, and the number of the
// beginning that they are of, changed by compare-and-swap; so whoever has left before a beginning
// gives back no place of it. Memory ordering: all of it sequentially consistent; nothing else
// depends on it.
class Opening {
 public:
  static constexpr std::uint32_t kFirst = 5;
  static constexpr std::uint32_t kAll = 1'000;

  // Before anybody uses it.
  void Start(Nanos hold) {
    hold_.store(hold);
    state_.store(Word(1, kFirst, 0));
  }
  bool on() const { return Places(state_.load()) != 0; }

  // Whether a call may go. `taken`: what it gives to Leave; 0: nothing.
  bool Enter(Nanos now, std::uint16_t& taken) {
    std::uint64_t state = state_.load();
    for (;;) {
      taken = 0;
      if (Places(state) == 0) return true;
      Nanos nobody = 0;
      since_.compare_exchange_strong(nobody, now);
      HEADWAY_PAUSE();
      if (Out(state) < Places(state)) {
        if (!state_.compare_exchange_weak(state, state + 1)) continue;
        taken = Epoch(state);
        return true;
      }
      Nanos since = since_.load();
      if (now < since + hold_.load()) return false;
      // Whoever loses this sees the places of another one.
      if (since_.compare_exchange_strong(since, now)) Add(Epoch(state), Places(state));
      state = state_.load();
    }
  }
  // It goes whatever there is.
  std::uint16_t Force() {
    const std::uint64_t state = state_.load();
    return Places(state) == 0 || !Change(Epoch(state), +1) ? 0 : Epoch(state);
  }
  // A call has ended that entered. Returns whether somebody else may go.
  bool Leave(std::uint16_t taken) { return taken != 0 && Change(taken, -1); }
  // When more may go whatever is answered...
  Nanos ReadyAt() const { return since_.load() + hold_.load(); }
  // ... and the same, but 0 where one may go now.
  Nanos FullUntil() const {
    const std::uint64_t state = state_.load();
    return Places(state) != 0 && Out(state) >= Places(state) ? ReadyAt() : 0;
  }

  // A good answer has come to a call that entered. Returns whether somebody else may go.
  bool Answered(Nanos now, std::uint16_t taken) {
    if (taken == 0 || !Add(taken, taken == 1 ? 3 : 1)) return false;
    since_.store(now);
    return true;
  }

  // A refusal is known at `now` that nothing explains. `hold`: as above, where it is not known yet.
  void Narrow(Nanos now, Nanos hold) {
    since_.store(now);
    hold_.store(hold);
    std::uint64_t state = state_.load();
    std::uint16_t next = 0;
    do {
      HEADWAY_PAUSE();
      next = static_cast<std::uint16_t>(Epoch(state) + 1);
      if (next < 2) next = 2;
    } while (!state_.compare_exchange_weak(state, Word(next, 1, 0)));
  }
  // Something is known, or all is open. Returns whether it was not before.
  bool End() {
    std::uint64_t state = state_.load();
    while (Places(state) != 0) {
      HEADWAY_PAUSE();
      if (state_.compare_exchange_weak(state, Word(Epoch(state), 0, 0))) return true;
    }
    return false;
  }

 private:
  static constexpr int kBits = 24;
  static constexpr std::uint64_t kMask = (std::uint64_t{1} << kBits) - 1;

  static std::uint64_t Word(std::uint16_t epoch, std::uint64_t places, std::uint64_t out) {
    return std::uint64_t{epoch} << (2 * kBits) | places << kBits | out;
  }
  static std::uint16_t Epoch(std::uint64_t state) {
    return static_cast<std::uint16_t>(state >> (2 * kBits));
  }
  static std::uint64_t Places(std::uint64_t state) { return state >> kBits & kMask; }
  static std::uint64_t Out(std::uint64_t state) { return state & kMask; }

  // Nothing, and false, where another beginning has been made meanwhile, or all is open.
  bool Add(std::uint16_t epoch, std::uint64_t places) {
    std::uint64_t state = state_.load();
    while (Epoch(state) == epoch && Places(state) != 0) {
      HEADWAY_PAUSE();
      const std::uint64_t more = Places(state) + places;
      const std::uint64_t next = more >= kAll ? Word(epoch, 0, 0) : Word(epoch, more, Out(state));
      if (state_.compare_exchange_weak(state, next)) return true;
    }
    return false;
  }
  bool Change(std::uint16_t epoch, int by) {
    std::uint64_t state = state_.load();
    while (Epoch(state) == epoch && Places(state) != 0) {
      HEADWAY_PAUSE();
      if (state_.compare_exchange_weak(state, state + static_cast<std::uint64_t>(by))) return true;
    }
    return false;
  }

  std::atomic<std::uint64_t> state_{0};
  std::atomic<Nanos> since_{
      0};  // the latest good answer, or growth, or when the first went; 0: none
  std::atomic<Nanos> hold_{0};
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_OPENING_H_
