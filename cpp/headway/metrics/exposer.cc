// headway/metrics/exposer.cc: prometheus-cpp's server, with an address that is checked and errors
// that say something.
#include "headway/metrics/exposer.h"

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <set>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"

namespace headway {
namespace {

constexpr int kMostPort = 65'535;

// "127.0.0.1:9090", "[::1]:9090".
std::string Address(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

// The server takes a list of addresses with marks in it; only what one host may look like gets
// there.
bool IsHost(const std::string& host) {
  if (host.empty()) return false;
  for (const char c : host)
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != ':')
      return false;
  return true;
}

// Why the address cannot be listened at; 0 where it can, or could by now. The server itself only
// says that it failed.
int WhyNot(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0)
    return EADDRNOTAVAIL;
  int why = 0;
  const int fd = ::socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd < 0 || ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      ::bind(fd, found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd, 1) != 0)
    why = errno;
  if (fd >= 0) ::close(fd);
  ::freeaddrinfo(found);
  return why;
}

std::set<int> OpenDescriptors() {
  std::set<int> open;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/fd", none))
    if (int fd = -1; absl::SimpleAtoi(entry.path().filename().string(), &fd)) open.insert(fd);
  // The one that the folder was read through is closed again, and its number free.
  for (auto fd = open.begin(); fd != open.end();)
    fd = ::fcntl(*fd, F_GETFD) < 0 ? open.erase(fd) : std::next(fd);
  return open;
}

// The descriptor, not among those `before`, that listens at `port`; -1 if there is none.
int ListeningAt(int port, const std::set<int>& before) {
  for (const int fd : OpenDescriptors()) {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (before.count(fd) != 0 ||
        ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0)
      continue;
    sockaddr_storage bound{};
    size = sizeof bound;
    char service[NI_MAXSERV] = "";
    auto* address = reinterpret_cast<sockaddr*>(&bound);
    if (::getsockname(fd, address, &size) == 0 &&
        ::getnameinfo(address, size, nullptr, 0, service, sizeof service, NI_NUMERICSERV) == 0 &&
        service == std::to_string(port))
      return fd;
  }
  return -1;
}

// Threads that are made meanwhile take no signals from those that expect them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

Exposer::Exposer(std::shared_ptr<prometheus::Collectable> collectable, const std::string& host,
                 int port)
    : collectable_(std::move(collectable)) {
  const std::string address = Address(host, port);
  const auto refuse = [&](int why) {
    throw std::system_error(why, std::generic_category(),
                            absl::StrCat("metrics cannot be served at ", address));
  };
  if (!IsHost(host) || port < 0 || port > kMostPort) refuse(EINVAL);
  const std::set<int> before = OpenDescriptors();
  const SignalsBlocked blocked;
  try {
    server_ = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", address, "num_threads", "2"});
  } catch (const std::runtime_error&) {
    const int why = WhyNot(host, port);
    refuse(why != 0 ? why : EADDRNOTAVAIL);
  }
  server_->RegisterCollectable(collectable_);
  port_ = server_->GetListeningPorts().front();
  listening_ = ListeningAt(port_, before);
}

Exposer::~Exposer() {
  // The server looks whether it is to stop when it has waited for connections for two seconds; now
  // there are none to wait for.
  if (listening_ >= 0) ::shutdown(listening_, SHUT_RDWR);
}

void Exposer::CloseInChild() {
  if (listening_ >= 0) ::close(std::exchange(listening_, -1));
}

}  // namespace headway
