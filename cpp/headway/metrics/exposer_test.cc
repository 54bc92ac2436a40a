// headway/metrics/exposer_test.cc: over a real connection, and with addresses that cannot be had.
#include "headway/metrics/exposer.h"

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "headway/base/clock.h"
#include "headway/metrics/collector.h"

namespace headway {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Everything that the server sends, up to where it closes; nothing if there is none.
std::string Get(int port, const std::string& path, std::uint32_t at = INADDR_LOOPBACK) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(at);
  std::string answer;
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    const std::string request =
        absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    EXPECT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n = 0; (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;)
      answer.append(buffer, static_cast<std::size_t>(n));
  }
  ::close(fd);
  return answer;
}

std::shared_ptr<Collector> CollectorWithAnError(UserCodeErrors& errors) {
  auto collector = std::make_shared<Collector>();
  collector->Register("main", &errors);
  errors.Count(UserCode::kCallback);
  return collector;
}

TEST(Exposer, AnswersAGetWithWhatIsCollected) {
  UserCodeErrors errors;
  const Exposer exposer(CollectorWithAnError(errors));
  ASSERT_GT(exposer.port(), 0);
  const std::string line =
      "headway_user_code_errors_total{scheduler=\"main\",origin=\"callback\"} ";
  std::string answer = Get(exposer.port(), "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain"));
  EXPECT_THAT(answer, HasSubstr(line + "1\n"));
  errors.Count(UserCode::kCallback);
  EXPECT_THAT(Get(exposer.port(), "/metrics"), HasSubstr(line + "2\n"));
}

TEST(Exposer, HasNothingElseToShow) {
  UserCodeErrors errors;
  const Exposer exposer(CollectorWithAnError(errors));
  for (const char* path : {"/", "/etc/passwd", "/../../etc/passwd", "/CMakeCache.txt"})
    EXPECT_THAT(Get(exposer.port(), path), StartsWith("HTTP/1.1 4")) << path;
}

TEST(Exposer, ListensAtItsOwnAddressOnly) {
  const Exposer exposer(std::make_shared<Collector>());
  // All of 127/8 is this machine: a server that listened everywhere would answer there.
  EXPECT_EQ(Get(exposer.port(), "/metrics", INADDR_LOOPBACK + 1), "");
  EXPECT_THAT(Get(exposer.port(), "/metrics"), StartsWith("HTTP/1.1 200"));
}

TEST(Exposer, SeveralReadAtOnce) {
  UserCodeErrors errors;
  const Exposer exposer(CollectorWithAnError(errors));
  std::vector<std::thread> readers;
  for (int t = 0; t < 4; ++t)
    readers.emplace_back([&] {
      for (int i = 0; i < 5; ++i)
        EXPECT_THAT(Get(exposer.port(), "/metrics"), HasSubstr("headway_user_code_errors_total"));
    });
  for (std::thread& reader : readers) reader.join();
}

// errno and text of what the constructor throws; 0 if nothing.
std::pair<int, std::string> Refusal(const std::string& host, int port) {
  try {
    const Exposer exposer(std::make_shared<Collector>(), host, port);
  } catch (const std::system_error& error) {
    return {error.code().value(), error.what()};
  }
  return {0, ""};
}

TEST(Exposer, AnAddressInUseIsAnErrorThatNamesIt) {
  const Exposer first(std::make_shared<Collector>());
  const auto [code, text] = Refusal("127.0.0.1", first.port());
  EXPECT_EQ(code, EADDRINUSE);
  EXPECT_THAT(text, HasSubstr(absl::StrCat("127.0.0.1:", first.port())));
  EXPECT_THAT(text, HasSubstr("in use"));
}

TEST(Exposer, WhatIsNoAddressOfThisMachineIsAnError) {
  EXPECT_EQ(Refusal("192.0.2.1", 0).first, EADDRNOTAVAIL);  // set aside for documentation
  EXPECT_EQ(Refusal("no-such-host.invalid", 0).first, EADDRNOTAVAIL);
  for (const char* host : {"", "127.0.0.1:80,0.0.0.0", "+", "127.0.0.1/x", "local host"})
    EXPECT_EQ(Refusal(host, 0).first, EINVAL) << host;
  for (const int port : {-1, 65'536}) EXPECT_EQ(Refusal("127.0.0.1", port).first, EINVAL) << port;
  EXPECT_THAT(Refusal("127.0.0.1", 65'536).second, HasSubstr("127.0.0.1:65536"));
}

TEST(Exposer, ItsPortIsFreeWhenItIsGone) {
  int port = 0;
  {
    const Exposer exposer(std::make_shared<Collector>());
    port = exposer.port();
  }
  EXPECT_EQ(Get(port, "/metrics"), "");
  EXPECT_EQ(Refusal("127.0.0.1", port).first, 0);
}

TEST(Exposer, IsGoneAtOnceThoughItsServerSleepsForTwoSeconds) {
  UserCodeErrors errors;
  auto exposer = std::make_unique<Exposer>(CollectorWithAnError(errors));
  EXPECT_THAT(Get(exposer->port(), "/metrics"), StartsWith("HTTP/1.1 200"));
  const Nanos begun = MonotonicNow();
  exposer.reset();
  EXPECT_LT(MonotonicNow() - begun, kSecond);
}

// How many descriptors below 256 listen; allocates nothing, for a child after `fork`.
int Listening() {
  int listening = 0;
  for (int fd = 0; fd < 256; ++fd) {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0) listening += listens;
  }
  return listening;
}

TEST(Exposer, AChildThatLivesOnDoesNotKeepThePort) {
  Exposer exposer(std::make_shared<Collector>());
  ASSERT_EQ(Listening(), 1);
  const pid_t child = ::fork();
  if (child == 0) {
    exposer.CloseInChild();
    ::_exit(Listening());
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(Get(exposer.port(), "/metrics"), StartsWith("HTTP/1.1 200"));  // the parent's goes on
}

// A signal for the process must reach a thread that expects signals, and wake it.
TEST(Exposer, ItsThreadsTakeNoSignalsAndTheCallersMaskIsAsBefore) {
  const Exposer exposer(std::make_shared<Collector>());
  int others = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(task.path() / "status");
    std::string word;
    while (status >> word && word != "SigBlk:") {
    }
    status >> word;
    const bool self = task.path().filename() == std::to_string(::gettid());
    others += self ? 0 : 1;
    const bool blocked = ((std::stoull(word, nullptr, 16) >> (SIGINT - 1)) & 1) != 0;
    EXPECT_EQ(blocked, !self) << task.path();
  }
  EXPECT_GE(others, 2);
}

}  // namespace
}  // namespace headway
