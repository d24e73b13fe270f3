// HTTP: the page, the offers of WebRTC calls (as WHIP, RFC 9725, and as OpenAI's
// /v1/realtime/calls), calls over WebSockets (/v1/realtime), metrics. Main thread only.
#pragma once

#include <libsoup/soup.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "admission.h"
#include "call.h"
#include "common/result.h"
#include "listener.h"
#include "metrics.h"
#include "settings.h"

namespace minicpmo::call_server {

class Server {
 public:
  explicit Server(const Settings& settings);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // kFailed if the port cannot be had.
  Result<void> listen();
  // Serves a connection that came in otherwise.
  void accept(GIOStream* stream, GSocketAddress* local, GSocketAddress* remote);
  // http://ADDRESS:PORT/
  std::string url() const;
  // Refuses new calls, lets those being answered finish for settings.drain_timeout_s at most, ends
  // the others, then calls `done`.
  void drain(std::function<void()> done);

 private:
  struct Pending;  // an offer whose answer is being made
  void begun(SoupServerMessage* message);
  void common_headers(SoupServerMessage* message);
  bool admitted(SoupServerMessage* message, const std::string& path);
  bool body_allowed(SoupServerMessage* message, const std::string& path);
  void handle(SoupServerMessage* message, const std::string& path);
  void offered(SoupServerMessage* message, const std::string& path);
  void start_call(SoupServerMessage* message, const std::string& sdp, const std::string& config);
  void deleted(SoupServerMessage* message, const std::string& id);
  bool room(SoupServerMessage* message);
  bool overloaded() const;
  Call::Ended call_over();
  void begin(const std::shared_ptr<Call>& call, const std::string& sdp, const std::string& config);
  void socket_asked(SoupServerMessage* message);
  void socket_opened(SoupServerMessage* message, SoupWebsocketConnection* connection);
  void page(SoupServerMessage* message, const std::string& path);
  void config(SoupServerMessage* message);
  void ended(const std::string& id);
  void drained();

  const Settings& settings_;
  Metrics metrics_;
  RateLimit offers_;
  SoupServer* soup_;
  Listener listener_{[this](GIOStream* stream, GSocketAddress* local, GSocketAddress* remote) {
    accept(stream, local, remote);
  }};
  std::map<std::string, std::shared_ptr<Call>> calls_;
  int connections_ = 0;
  std::function<void()> drained_;
  Timer drain_end_;
};

}  // namespace minicpmo::call_server
