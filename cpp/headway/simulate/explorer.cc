// headway/simulate/explorer.cc: fibers, and the search over their schedules.
#include "headway/simulate/explorer.h"

#include "headway/base/pause.h"

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

#include <algorithm>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
// Saves what a called function must keep, and goes on with the other stack. `swapcontext` does this
// too, with two system calls each time for the signal mask.
extern "C" void headway_switch_stack(void** saved, void* other);
asm(R"(
  .text
  .hidden headway_switch_stack
  .globl headway_switch_stack
  .type headway_switch_stack, @function
headway_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size headway_switch_stack, . - headway_switch_stack
)");
#else
#include <ucontext.h>
#endif

namespace headway::simulate {
namespace {

constexpr std::size_t kStack = 256 * 1024;
// A run that takes more steps than this does not end.
constexpr std::uint64_t kMostSteps = 5'000;

// One of several stacks of one system thread.
class Stack {
 public:
#if defined(__x86_64__)
  void Prepare(char* bottom, void (*entry)()) {
    // As if `entry` had been called, with nothing to return to.
    auto top = reinterpret_cast<std::uintptr_t>(bottom + kStack) & ~std::uintptr_t{15};
    auto** at = reinterpret_cast<void**>(top);
    *--at = nullptr;
    *--at = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--at = nullptr;
    saved_ = at;
  }
  void SwitchTo(Stack& other) { headway_switch_stack(&saved_, other.saved_); }

 private:
  void* saved_ = nullptr;
#else
  void Prepare(char* bottom, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void SwitchTo(Stack& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
#endif
};

// One logical thread. It outlives a run: having ended one body, it waits for the next.
struct Fiber {
  Stack stack;
  std::unique_ptr<char[]> memory{new char[kStack]};
  std::function<void()> body;
  bool done = true;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
};

// The fibers of one exploration, and the controller that goes from one to the next.
class Fibers {
 public:
  Fibers() { running = this; }
  ~Fibers() {
#if defined(__SANITIZE_THREAD__)
    for (const auto& fiber : all_) __tsan_destroy_fiber(fiber->tsan);
#endif
    running = nullptr;
  }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Gives fiber `i` something to do.
  void Start(std::size_t i, std::function<void()> body) {
    if (i == all_.size()) {
      all_.push_back(std::make_unique<Fiber>());
      all_[i]->stack.Prepare(all_[i]->memory.get(), [] { running->Main(); });
#if defined(__SANITIZE_THREAD__)
      all_[i]->tsan = __tsan_create_fiber(0);
#endif
    }
    all_[i]->body = std::move(body);
    all_[i]->done = false;
  }

  // Runs fiber `i` to its next pause point. Returns whether it has ended.
  bool Step(std::size_t i) {
    current_ = all_[i].get();
    thread_pause = {[](void* self) { static_cast<Fibers*>(self)->Yield(); }, this};
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, current_->memory.get(), kStack);
#endif
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(current_->tsan, 0);
#endif
    controller_.SwitchTo(current_->stack);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
    thread_pause = {};
    return current_->done;
  }

 private:
  void Yield() {
    Fiber& fiber = *current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fiber.fake_stack, stack_bottom_, stack_size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(tsan_, 0);
#endif
    fiber.stack.SwitchTo(controller_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &stack_bottom_, &stack_size_);
#endif
  }

  [[noreturn]] void Main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &stack_bottom_, &stack_size_);
#endif
    for (;;) {
      current_->body();
      current_->body = nullptr;
      current_->done = true;
      Yield();
    }
  }

  static thread_local Fibers* running;

  std::vector<std::unique_ptr<Fiber>> all_;
  Fiber* current_ = nullptr;
  Stack controller_;
  void* fake_stack_ = nullptr;
  const void* stack_bottom_ = nullptr;
  std::size_t stack_size_ = 0;
  void* tsan_ = nullptr;
};

thread_local Fibers* Fibers::running = nullptr;

// A point at which there was something to choose: who could go on, and which of them did.
struct Choice {
  std::vector<std::size_t> from;
  std::size_t taken = 0;
};

}  // namespace

Explorer::Result Explorer::Explore(const std::function<Interleaving()>& make, int preemptions,
                                   std::uint64_t most) {
  Result result;
  Fibers fibers;
  std::vector<Choice> path;
  for (;;) {
    const Interleaving interleaving = make();
    const std::size_t count = interleaving.threads.size();
    for (std::size_t i = 0; i < count; ++i) fibers.Start(i, interleaving.threads[i]);

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
      done[next] = fibers.Step(next);
    }
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
