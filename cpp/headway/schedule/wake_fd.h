// headway/schedule/wake_fd.h: a file descriptor that becomes readable when somebody signals.
#ifndef HEADWAY_SCHEDULE_WAKE_FD_H_
#define HEADWAY_SCHEDULE_WAKE_FD_H_

#include "headway/base/clock.h"

namespace headway {

// An eventfd where the system has them, else (or on request, for tests) a pair of connected
// sockets. Both are non-blocking and close on exec.
//
// Thread-safe. A signal given before `Clear` is not lost: the descriptor stays readable until then.
class WakeFd {
 public:
  enum class Kind { kEventFd, kSocketPair };

  explicit WakeFd(Kind kind = DefaultKind());
  ~WakeFd();
  WakeFd(const WakeFd&) = delete;
  WakeFd& operator=(const WakeFd&) = delete;

  static Kind DefaultKind();

  // The descriptor to watch for reading.
  int fd() const { return read_; }

  void Signal();
  void Clear();

  enum class Wake { kSignalled, kTimedOut, kInterrupted };
  // Blocks until signalled, until the monotonic instant `until` (kNever: no such instant), or until
  // a POSIX signal arrives. Never returns kTimedOut early.
  Wake Wait(Nanos until);

 private:
  int read_ = -1;
  int write_ = -1;
};

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_WAKE_FD_H_
