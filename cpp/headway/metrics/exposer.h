// headway/metrics/exposer.h: an HTTP server that Prometheus reads from.
#ifndef HEADWAY_METRICS_EXPOSER_H_
#define HEADWAY_METRICS_EXPOSER_H_

#include <memory>
#include <string>

#include "prometheus/collectable.h"

namespace prometheus {
class Exposer;
}  // namespace prometheus

namespace headway {

// Answers GET /metrics in Prometheus's text format, from threads of its own that block every signal
// and know nothing of Python. It also says how often and how fast it was read itself
// (exposer_scrapes_total and the like).
//
// It has neither TLS nor a password: other hosts can read it only where `host` lets them.
//
// Thread-safe, apart from the destructor, which waits for answers that are on their way. A child
// after `fork` has no such threads and must not destroy it: it calls CloseInChild, and lets it be.
class Exposer {
 public:
  // `host` is a name or an address of this machine; port 0 takes any that is free.
  // std::system_error naming both where they cannot be had: EINVAL, EADDRINUSE, EACCES and so on.
  explicit Exposer(std::shared_ptr<prometheus::Collectable> collectable,
                   const std::string& host = "127.0.0.1", int port = 0);
  ~Exposer();
  Exposer(const Exposer&) = delete;
  Exposer& operator=(const Exposer&) = delete;

  int port() const { return port_; }

  // Only in a child after `fork`: gives up its share of the socket, which would keep the port taken
  // when the parent has gone.
  void CloseInChild();

 private:
  const std::shared_ptr<prometheus::Collectable> collectable_;  // the server refers to it weakly
  std::unique_ptr<prometheus::Exposer> server_;
  int port_ = 0;
  int listening_ = -1;  // the server's socket, which it does not tell; -1 if it was not found
};

}  // namespace headway

#endif  // HEADWAY_METRICS_EXPOSER_H_
