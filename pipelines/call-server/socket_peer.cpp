#include "socket_peer.h"

#include <gst/app/gstappsink.h>
#include <gst/app/gstappsrc.h>
#include <linux/tcp.h>
#include <netinet/in.h>

#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <vector>

namespace minicpmo::call_server {
namespace {

constexpr int kRate = 24000;
constexpr size_t kBytesPerSample = 2;
constexpr size_t kMaxWaiting = 60 * kRate * kBytesPerSample;  // of the user's sound
constexpr int kSendBuffer = 128 * 1024;  // bytes; Linux would let it grow to megabytes
constexpr size_t kMaxUnread = 512 * 1024;
constexpr unsigned kWatchMs = 250;

// The answer's sound leaves 200 ms before it is due: what the network delays by less is not heard.
constexpr const char* kPipeline = R"(
  appsrc name=microphone is-live=true format=time max-bytes=0 max-buffers=0 max-time=0
      caps=audio/x-raw,format=S16LE,rate=24000,channels=1,layout=interleaved
    ! audioconvert ! audioresample
    ! minicpmoturn name=turn
    ! queue max-size-time=5000000000 max-size-buffers=0 max-size-bytes=0
    ! minicpmobin name=model timestamp-mode=arrival
    ! queue name=answer max-size-time=1000000000 max-size-buffers=0 max-size-bytes=0
    ! audioconvert ! audio/x-raw,format=S16LE,rate=24000,channels=1
    ! appsink name=speaker sync=true async=false ts-offset=-200000000
  model.text ! queue ! fakesink name=words sync=false async=false
)";

// In order with the user's sound, to minicpmoturn.
constexpr const char* kStartTurn = "minicpmo-call/start-turn";
constexpr const char* kEndTurn = "minicpmo-call/end-turn";
constexpr const char* kCancelTurn = "minicpmo-call/cancel-turn";

std::shared_ptr<SocketPeer> lock(gpointer data) {
  return std::static_pointer_cast<SocketPeer>(static_cast<WeakPipeline*>(data)->lock());
}

template <typename Callback>
void connect(gpointer object, const char* signal, Callback callback, const WeakPipeline& peer) {
  g_signal_connect_data(
      object, signal, G_CALLBACK(callback), new WeakPipeline(peer),
      [](gpointer data, GClosure*) { forget_pipeline(data); }, static_cast<GConnectFlags>(0));
}

// RFC 6455, section 7.4.1; 1013 is of IANA's registry.
gushort code_of(const std::string& why) {
  if (why == "drained") return SOUP_WEBSOCKET_CLOSE_GOING_AWAY;
  if (why == "failed") return SOUP_WEBSOCKET_CLOSE_SERVER_ERROR;
  if (why == "slow") return 1013;
  return SOUP_WEBSOCKET_CLOSE_NORMAL;
}

GstFlowReturn new_sample(GstAppSink* sink, gpointer data) {
  const auto give_back = [](GstSample* s) { gst_sample_unref(s); };
  const std::unique_ptr<GstSample, decltype(give_back)> sample(gst_app_sink_pull_sample(sink),
                                                               give_back);
  if (!sample) return GST_FLOW_EOS;
  GstBuffer* const buffer = gst_sample_get_buffer(sample.get());
  uint64_t turn = 0;
  const BufferMap map(buffer);
  const auto peer = lock(data);
  if (!peer || !turn_of(buffer, &turn) || !map.ok()) return GST_FLOW_OK;
  const auto bytes = map.bytes();
  peer->sound(turn, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  return GST_FLOW_OK;
}

}  // namespace

Result<std::shared_ptr<SocketPeer>> SocketPeer::make(const Settings& settings,
                                                     SoupWebsocketConnection* connection,
                                                     GSocket* socket, CallCallbacks callbacks) {
  std::shared_ptr<SocketPeer> peer(new SocketPeer(std::move(callbacks)));
  RETURN_IF_ERROR(peer->build(settings, kPipeline));
  peer->microphone_ = peer->element("microphone");
  peer->connection_ = SOUP_WEBSOCKET_CONNECTION(g_object_ref(connection));
  peer->socket_ = G_SOCKET(g_object_ref(socket));
  g_socket_set_option(socket, SOL_SOCKET, SO_SNDBUF, kSendBuffer, nullptr);
  soup_websocket_connection_set_max_incoming_payload_size(connection, kMaxSocketMessage);
  // The client's answers are signs of life.
  soup_websocket_connection_set_keepalive_interval(
      connection, static_cast<guint>(std::max(1, settings.idle_timeout_s / 3)));
  return peer;
}

SocketPeer::~SocketPeer() {
  close("client");
  g_clear_object(&socket_);
}

void SocketPeer::start(const std::string&) {
  connect_signals();
  if (!play()) return;
  watch_incoming();
  post([](CallPipeline& call) {
    auto& self = static_cast<SocketPeer&>(call);
    self.callbacks_.connected();
    self.callbacks_.channel_open();
  });
}

void SocketPeer::connect_signals() {
  const WeakPipeline self = weak_from_this();
  connect(
      connection_, "message",
      +[](SoupWebsocketConnection*, gint type, GBytes* bytes, gpointer data) {
        if (const auto peer = lock(data))
          peer->received(static_cast<SoupWebsocketDataType>(type), bytes);
      },
      self);
  connect(
      connection_, "pong",
      +[](SoupWebsocketConnection*, GBytes*, gpointer data) {
        if (const auto peer = lock(data)) peer->heard_something();
      },
      self);
  connect(
      connection_, "closed",
      +[](SoupWebsocketConnection*, gpointer data) {
        if (const auto peer = lock(data)) peer->callbacks_.gone();
      },
      self);
  GstAppSinkCallbacks callbacks = {};
  callbacks.new_sample = new_sample;
  gst_app_sink_set_callbacks(GST_APP_SINK(element("speaker").get()), &callbacks,
                             new WeakPipeline(self), forget_pipeline);
  add_probe("turn", "sink", GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM,
            [](GstPad* pad, GstPadProbeInfo* info, gpointer) -> GstPadProbeReturn {
              GstEvent* const event = GST_PAD_PROBE_INFO_EVENT(info);
              const ElementPtr turn(gst_pad_get_parent_element(pad));
              if (!turn) return GST_PAD_PROBE_OK;
              for (const auto& [name, signal] : {std::pair(kStartTurn, "start-turn"),
                                                 {kEndTurn, "end-turn"},
                                                 {kCancelTurn, "cancel-turn"}}) {
                if (!gst_event_has_name(event, name)) continue;
                g_signal_emit_by_name(turn.get(), signal);
                return GST_PAD_PROBE_DROP;
              }
              return GST_PAD_PROBE_OK;
            });
}

// ---- From the client

void SocketPeer::received(SoupWebsocketDataType type, GBytes* bytes) {
  if (closed()) return;
  message_came_ = true;
  heard_something();
  if (type != SOUP_WEBSOCKET_DATA_TEXT) return leave(SOUP_WEBSOCKET_CLOSE_UNSUPPORTED_DATA);
  gsize size = 0;
  const auto* const data = static_cast<const char*>(g_bytes_get_data(bytes, &size));
  callbacks_.message(std::string(data, size));
}

bool SocketPeer::append_audio(std::string_view pcm) {
  if (gst_app_src_get_current_level_bytes(GST_APP_SRC(microphone_.get())) + pcm.size() >
      kMaxWaiting)
    return false;
  push(pcm.data(), pcm.size());
  return true;
}

void SocketPeer::push(const void* data, size_t size) {
  GstBuffer* const buffer = gst_buffer_new_memdup(data, size);
  const uint64_t end = samples_ + size / kBytesPerSample;
  GST_BUFFER_PTS(buffer) = gst_util_uint64_scale(samples_, GST_SECOND, kRate);
  GST_BUFFER_DURATION(buffer) =
      gst_util_uint64_scale(end, GST_SECOND, kRate) - GST_BUFFER_PTS(buffer);
  samples_ = end;
  gst_app_src_push_buffer(GST_APP_SRC(microphone_.get()), buffer);
}

void SocketPeer::mark(const char* event) {
  gst_element_send_event(microphone_.get(), gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM,
                                                                 gst_structure_new_empty(event)));
}

void SocketPeer::start_turn() {
  mark(kStartTurn);
}

// minicpmoturn acts with the next sound, and a client that has said all sends none.
void SocketPeer::end_turn() {
  mark(kEndTurn);
  static constexpr int16_t kSilence[kRate / 50] = {};
  push(kSilence, sizeof kSilence);
}

void SocketPeer::cancel_turn() {
  mark(kCancelTurn);
  static constexpr int16_t kSilence[kRate / 50] = {};
  push(kSilence, sizeof kSilence);
}

// libsoup 3.2 limits frames, but puts as many together to a message as come (CVE-2025-32049).
void SocketPeer::watch_incoming() {
  tcp_info info = {};
  socklen_t size = sizeof info;
  int waiting = 0;
  const int fd = g_socket_get_fd(socket_);
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
      ioctl(fd, FIONREAD, &waiting) != 0)
    return;
  const uint64_t read = info.tcpi_bytes_received - static_cast<uint64_t>(std::max(0, waiting));
  if (std::exchange(message_came_, false)) bytes_before_ = read;
  if (read > bytes_before_ + 2 * kMaxSocketMessage) {
    // Or libsoup would go on collecting while it waits for the client's answer.
    g_socket_shutdown(socket_, TRUE, FALSE, nullptr);
    return leave(SOUP_WEBSOCKET_CLOSE_TOO_BIG);
  }
  watch_.start(kWatchMs, [this] { watch_incoming(); });
}

void SocketPeer::leave(gushort code) {
  code_ = code;
  const auto self = shared_from_this();
  callbacks_.gone();
}

// ---- To the client

void SocketPeer::sound(uint64_t turn, std::string pcm) {
  post([turn, pcm = std::move(pcm)](CallPipeline& call) {
    static_cast<SocketPeer&>(call).callbacks_.sound(turn, pcm);
  });
}

void SocketPeer::send(const std::string& message) {
  if (closed() || soup_websocket_connection_get_state(connection_) != SOUP_WEBSOCKET_STATE_OPEN)
    return;
  // What libsoup cannot send it keeps, however much it is.
  const bool taken = g_socket_condition_check(socket_, G_IO_OUT) != 0;
  unread_ = taken ? 0 : unread_ + message.size();
  if (unread_ > kMaxUnread) {
    post([](CallPipeline& call) { static_cast<SocketPeer&>(call).callbacks_.too_slow(); });
    return;
  }
  soup_websocket_connection_send_text(connection_, message.c_str());
}

std::function<void()> SocketPeer::say_goodbye(const std::string& why) {
  watch_.stop();
  SoupWebsocketConnection* const connection = std::exchange(connection_, nullptr);
  if (connection != nullptr) {
    close_socket(connection, code_ != 0 ? code_ : code_of(why), why.c_str());
    g_object_unref(connection);
  }
  return {};
}

void close_socket(SoupWebsocketConnection* connection, gushort code, const char* reason) {
  const auto state = soup_websocket_connection_get_state(connection);
  if (state == SOUP_WEBSOCKET_STATE_CLOSED) return;
  // libsoup waits for the client for some seconds, then tells this, too.
  g_object_ref(connection);
  g_signal_connect(connection, "closed",
                   G_CALLBACK(+[](SoupWebsocketConnection* c, gpointer) { g_object_unref(c); }),
                   nullptr);
  if (state == SOUP_WEBSOCKET_STATE_OPEN) soup_websocket_connection_close(connection, code, reason);
}

}  // namespace minicpmo::call_server
