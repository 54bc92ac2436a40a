// headway/base/pause.cc: the thread's own pause hook (test builds only).
#include "headway/base/pause.h"

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS
namespace headway {
constinit thread_local ThreadPause thread_pause;
}  // namespace headway
#endif
