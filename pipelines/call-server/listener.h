// The port that connections come in at. libsoup's own listener leaks the GSocket of each connection
// (3.2.3), and never accepts again after it once could not. Main thread only.
#pragma once

#include <gio/gio.h>

#include <functional>
#include <string>

#include "common/result.h"
#include "main_thread.h"

namespace minicpmo::call_server {

class Listener {
 public:
  // The arguments live as long as the callback; what it keeps it takes references of.
  using Accept =
      std::function<void(GIOStream* stream, GSocketAddress* local, GSocketAddress* remote)>;
  explicit Listener(Accept accept) : accept_(std::move(accept)) {}
  ~Listener() { stop(); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // kSettings if `address` is none, kFailed if the port cannot be had. 0: any free port.
  Result<void> listen(const std::string& address, int port);
  void stop();
  // http://ADDRESS:PORT/, or "" if nothing is listened to.
  std::string url() const;
  // Of a connection that came in here, by its remote address; null of any other.
  static GSocket* socket_of(GSocketAddress* remote);

 private:
  void watch();
  void unwatch();
  gboolean come_in();

  const Accept accept_;
  GSocket* socket_ = nullptr;
  GSource* incoming_ = nullptr;  // while connections are accepted
  Timer again_;
};

}  // namespace minicpmo::call_server
