// headway/simulate/explorer.h: runs the real code in every order of its pause points.
#ifndef HEADWAY_SIMULATE_EXPLORER_H_
#define HEADWAY_SIMULATE_EXPLORER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace headway::simulate {

// What is to be interleaved: some threads, and what has to hold when all have ended. `check`
// returns what is wrong, or nothing.
struct Interleaving {
  std::vector<std::function<void()>> threads;
  std::function<std::string()> check;
};

// Explores interleavings: each thread is a fiber of one system thread, each HEADWAY_PAUSE() in the
// core a point at which another may go on. What lies between two pause points runs as one step, so
// a pause point stands wherever another thread's step in between could matter.
//
// Depth first over all choices, by running everything from the beginning again for each: `make` is
// called once a schedule and must make everything anew. Going on with the same thread is free;
// going over to another one while it could go on is a preemption, and schedules with more than
// `preemptions` of them are left out (negative: none is). Two or three find nearly everything.
//
// Only in builds with HEADWAY_PAUSE_POINTS. Not thread-safe: one exploration at a time.
class Explorer {
 public:
  struct Result {
    std::uint64_t schedules = 0;
    std::uint64_t steps = 0;
    std::string failure;   // the first one, with the schedule that led to it; empty: none
    bool complete = true;  // false: stopped at `most`
  };

  static Result Explore(const std::function<Interleaving()>& make, int preemptions,
                        std::uint64_t most = UINT64_MAX);
};

}  // namespace headway::simulate

#endif  // HEADWAY_SIMULATE_EXPLORER_H_
