// headway/base/pause.h: named points between two atomics at which a test can stop a thread.
#ifndef HEADWAY_BASE_PAUSE_H_
#define HEADWAY_BASE_PAUSE_H_

// In builds for tests, HEADWAY_PAUSE() hands control to whatever the test installed (the
// interleaving explorer, or a latch that holds one thread for ever while the others must finish).
// In all other builds it is nothing at all.
#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

namespace headway {

// Called at each pause point of the calling thread; null means go on.
using PauseHook = void (*)(void* context);
struct ThreadPause {
  PauseHook hook = nullptr;
  void* context = nullptr;
};
// constinit: reached without asking whether it has been initialised.
extern constinit thread_local ThreadPause thread_pause;

inline void Pause() {
  if (thread_pause.hook != nullptr) thread_pause.hook(thread_pause.context);
}

}  // namespace headway

#define HEADWAY_PAUSE() ::headway::Pause()
#else
#define HEADWAY_PAUSE() static_cast<void>(0)
#endif

#endif  // HEADWAY_BASE_PAUSE_H_
