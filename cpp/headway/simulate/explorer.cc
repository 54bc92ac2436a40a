// headway/simulate/explorer.cc: fibers, and the search over their schedules.
#include "headway/simulate/explorer.h"

#include "headway/base/pause.h"

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

#include <algorithm>
#include <cstdlib>

#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace headway::simulate {
namespace {

constexpr std::size_t kStack = 256 * 1024;
// A run that takes more steps than this does not end.
constexpr std::uint64_t kMostSteps = 5'000;

// One fiber. Its stack is used again by later runs.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  std::function<void()> body;
  bool done = true;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
};

class Run {
 public:
  explicit Run(std::vector<std::unique_ptr<Fiber>>& fibers) : fibers_(fibers) {}

  // Runs fiber `i` to its next pause point. Returns whether it has ended.
  bool Step(std::size_t i) {
    current_ = fibers_[i].get();
    thread_pause = {[](void* self) { static_cast<Run*>(self)->Yield(); }, this};
    SwitchTo(*current_);
    thread_pause = {};
    return current_->done;
  }

  void Start(std::size_t i, std::function<void()> body) {
    if (i == fibers_.size()) fibers_.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *fibers_[i];
    fiber.body = std::move(body);
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    // makecontext passes ints only.
    const auto self = reinterpret_cast<std::uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Run::Main), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
#if defined(__SANITIZE_THREAD__)
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }

  void End(std::size_t i) {
    static_cast<void>(i);
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(fibers_[i]->tsan);
#endif
  }

 private:
  void SwitchTo(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, fiber.stack.get(), kStack);
#endif
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.tsan, 0);
#endif
    swapcontext(&context_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  void Yield() {
    Fiber& fiber = *current_;
#if defined(__SANITIZE_ADDRESS__)
    // A fiber that has ended leaves its fake stack for good.
    __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, stack_bottom_, stack_size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(tsan_, 0);
#endif
    swapcontext(&fiber.context, &context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &stack_bottom_, &stack_size_);
#endif
  }

  static void Main(unsigned high, unsigned low) {
    auto* self = reinterpret_cast<Run*>((static_cast<std::uintptr_t>(high) << 32) | low);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self->stack_bottom_, &self->stack_size_);
#endif
    self->current_->body();
    self->current_->body = nullptr;
    self->current_->done = true;
    self->Yield();
    std::abort();  // nobody resumes a fiber that has ended
  }

  std::vector<std::unique_ptr<Fiber>>& fibers_;
  Fiber* current_ = nullptr;
  ucontext_t context_;
  void* fake_stack_ = nullptr;
  const void* stack_bottom_ = nullptr;
  std::size_t stack_size_ = 0;
  void* tsan_ = nullptr;
};

// A point at which there was something to choose: who could go on, and which of them did.
struct Choice {
  std::vector<std::size_t> from;
  std::size_t taken = 0;
};

}  // namespace

Explorer::Result Explorer::Explore(const std::function<Interleaving()>& make, int preemptions,
                                   std::uint64_t most) {
  Result result;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Choice> path;
  for (;;) {
    const Interleaving interleaving = make();
    const std::size_t count = interleaving.threads.size();
    Run run(fibers);
    for (std::size_t i = 0; i < count; ++i) run.Start(i, interleaving.threads[i]);

    std::vector<bool> done(count, false);
    std::string trace;
    std::size_t depth = 0;
    std::size_t last = count;
    int used = 0;
    std::uint64_t steps = 0;
    while (std::find(done.begin(), done.end(), false) != done.end() && ++steps <= kMostSteps) {
      // The one that ran last comes first; the others only while preemptions are left.
      std::vector<std::size_t> from;
      const bool goes_on = last < count && !done[last];
      if (goes_on) from.push_back(last);
      if (!goes_on || preemptions < 0 || used < preemptions)
        for (std::size_t i = 0; i < count; ++i)
          if (!done[i] && i != last) from.push_back(i);
      std::size_t next = from.front();
      if (from.size() > 1) {
        if (depth == path.size()) path.push_back({from, 0});
        next = path[depth].from[path[depth].taken];
        ++depth;
      }
      if (goes_on && next != last) ++used;
      last = next;
      trace += static_cast<char>('A' + next);
      done[next] = run.Step(next);
    }
    for (std::size_t i = 0; i < count; ++i) run.End(i);
    ++result.schedules;
    result.steps += steps;
    const std::string wrong = steps > kMostSteps ? "does not end" : interleaving.check();
    if (!wrong.empty()) {
      result.failure = wrong + " after " + trace.substr(0, 400);
      return result;
    }
    // The next schedule: the deepest choice that has another left.
    while (!path.empty() && path.back().taken + 1 == path.back().from.size()) path.pop_back();
    if (path.empty()) return result;
    ++path.back().taken;
    if (result.schedules == most) {
      result.complete = false;
      return result;
    }
  }
}

}  // namespace headway::simulate

#endif  // HEADWAY_PAUSE_POINTS
