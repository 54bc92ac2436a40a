// headway/schedule/wake_fd.cc: eventfd and socketpair.
#include "headway/schedule/wake_fd.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <system_error>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/eventfd.h>
#endif

namespace headway {
namespace {

void Prepare(int fd) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

}  // namespace

WakeFd::Kind WakeFd::DefaultKind() {
#if defined(__linux__)
  return Kind::kEventFd;
#else
  return Kind::kSocketPair;
#endif
}

WakeFd::WakeFd(Kind kind) {
#if defined(__linux__)
  if (kind == Kind::kEventFd) {
    read_ = write_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (read_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    return;
  }
#endif
  static_cast<void>(kind);
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
    throw std::system_error(errno, std::generic_category(), "socketpair");
  read_ = pair[0];
  write_ = pair[1];
  Prepare(read_);
  Prepare(write_);
}

WakeFd::~WakeFd() {
  if (write_ != read_) ::close(write_);
  ::close(read_);
}

void WakeFd::Signal() {
  const std::uint64_t one = 1;
  // A full pipe or a counter at its maximum means that the descriptor is readable already.
  while (::write(write_, &one, read_ == write_ ? sizeof one : 1) < 0 && errno == EINTR) {
  }
}

void WakeFd::Clear() {
  char sink[256];
  for (;;) {
    const ssize_t n = ::read(read_, sink, sizeof sink);
    if (n == static_cast<ssize_t>(sizeof sink) || (n < 0 && errno == EINTR)) continue;
    return;
  }
}

WakeFd::Wake WakeFd::Wait(Nanos until) {
  pollfd watched{read_, POLLIN, 0};
  for (;;) {
    timespec timeout{};
    const timespec* given = nullptr;
    if (until < kUntold) {
      const Nanos left = until - MonotonicNow();
      timeout.tv_sec = left > 0 ? left / kSecond : 0;
      timeout.tv_nsec = left > 0 ? left % kSecond : 0;
      given = &timeout;
    }
#if defined(__linux__)
    const int n = ::ppoll(&watched, 1, given, nullptr);
#else
    const int n = ::poll(
        &watched, 1,
        given == nullptr
            ? -1
            : static_cast<int>(std::min<std::int64_t>(
                  INT_MAX, timeout.tv_sec * 1000 + (timeout.tv_nsec + 999'999) / 1'000'000)));
#endif
    if (n > 0) return Wake::kSignalled;
    if (n < 0) return Wake::kInterrupted;
    if (given != nullptr && MonotonicNow() >= until) return Wake::kTimedOut;
  }
}

}  // namespace headway
