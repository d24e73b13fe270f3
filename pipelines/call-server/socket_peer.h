// A call over a WebSocket, for networks that let no UDP through: sound and events are messages of
// OpenAI's Realtime API. The user's sound is taken as fast as it comes; the answers' is sent a
// little before its time, so that an interruption has little to take back.
#pragma once

#include <libsoup/soup.h>

#include <memory>
#include <string>

#include "call_pipeline.h"
#include "main_thread.h"

namespace minicpmo::call_server {

constexpr size_t kMaxSocketMessage = 256 * 1024;  // bytes; about 4 s of sound

// Keeps the connection until the client has closed it, too.
void close_socket(SoupWebsocketConnection* connection, gushort code, const char* reason);

class SocketPeer final : public CallPipeline {
 public:
  // kLibrary if an element is missing. `socket`: the one under `connection`.
  static Result<std::shared_ptr<SocketPeer>> make(const Settings& settings,
                                                  SoupWebsocketConnection* connection,
                                                  GSocket* socket, CallCallbacks callbacks);
  ~SocketPeer() override;
  void start(const std::string& offer) override;
  void send(const std::string& message) override;
  bool append_audio(std::string_view pcm) override;
  // Take their place in the sound, which may be far from played when they are asked for.
  void start_turn() override;
  void end_turn() override;
  void cancel_turn() override;
  // From any thread: sound of an answer.
  void sound(uint64_t turn, std::string pcm);

 private:
  using CallPipeline::CallPipeline;
  void connect_signals();
  void received(SoupWebsocketDataType type, GBytes* bytes);
  void mark(const char* event);
  void push(const void* data, size_t size);
  void watch_incoming();
  void leave(gushort code);
  std::function<void()> say_goodbye(const std::string& why) override;

  SoupWebsocketConnection* connection_ = nullptr;
  GSocket* socket_ = nullptr;
  ElementPtr microphone_;
  uint64_t samples_ = 0;  // pushed so far
  size_t unread_ = 0;     // bytes sent while the network took none
  gushort code_ = 0;      // to close with; 0: by the reason
  uint64_t bytes_before_ = 0;
  bool message_came_ = true;
  Timer watch_;
};

}  // namespace minicpmo::call_server
