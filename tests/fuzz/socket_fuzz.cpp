// libFuzzer target: what comes over a WebSocket, frame by frame, and what happens in its call; the
// elements behind it are not real. The upgrade before it is http_fuzz's. Build with clang:
//   CXX=clang++ meson setup build-fuzz && ninja -C build-fuzz tests/fuzz/socket_fuzz
//   cd tests/fuzz && ../../build-fuzz/tests/fuzz/socket_fuzz -dict=realtime.dict CORPUS socket
// New inputs go into CORPUS; tests/fuzz/socket are those that were kept.
#include "socket_peer.h"

#include <fcntl.h>
#include <gst/app/gstappsink.h>
#include <gst/app/gstappsrc.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "call.h"
#include "fake_element.h"

namespace minicpmo::call_server {
namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "socket_fuzz: not true: %s\n", what);
  std::abort();
}

bool starts = true;  // whether pipelines do

}  // namespace

// The pipeline without streaming threads, instead of call_pipeline.cpp.

void forget_pipeline(gpointer data) {
  delete static_cast<WeakPipeline*>(data);
}

bool turn_of(GstBuffer*, uint64_t*) {
  return false;
}

ElementPtr CallPipeline::element(const char* name) const {
  return ElementPtr(gst_bin_get_by_name(GST_BIN(pipeline_.get()), name));
}

Result<void> CallPipeline::build(const Settings&, const char*) {
  pipeline_.reset(GST_ELEMENT(gst_object_ref_sink(gst_bin_new(nullptr))));
  gst_bin_add_many(GST_BIN(pipeline_.get()),
                   GST_ELEMENT(g_object_new(GST_TYPE_APP_SRC, "name", "microphone", nullptr)),
                   GST_ELEMENT(g_object_new(GST_TYPE_APP_SINK, "name", "speaker", nullptr)),
                   nullptr);
  model_.reset(fake_element());
  turn_.reset(fake_element());
  return {};
}

bool CallPipeline::play() {
  heard_something();
  if (!starts) post([](CallPipeline& call) { call.fail("it does not start"); });
  return starts;
}

void CallPipeline::add_probe(const char*, const char*, GstPadProbeType, GstPadProbeCallback) {}

void CallPipeline::post(std::function<void(CallPipeline&)> work) {
  on_main_thread([weak = weak_from_this(), work = std::move(work)] {
    if (const auto call = weak.lock(); call && !call->closed_) work(*call);
  });
}

double CallPipeline::silent_seconds() const {
  return 0;
}

void CallPipeline::start_turn() {}
void CallPipeline::end_turn() {}
void CallPipeline::cancel_turn() {}

void CallPipeline::fail(const std::string& message) {
  if (!closed_) callbacks_.failed(message);
}

void CallPipeline::close(const std::string& why) {
  if (closed_) return;
  closed_ = true;
  say_goodbye(why);
}

namespace {

void iterate() {
  while (g_main_context_iteration(nullptr, FALSE)) {
  }
}

// The other end of the connection.
class Browser {
 public:
  explicit Browser(int fd) : fd_(fd) {}
  ~Browser() { close(fd_); }
  void write(std::string_view bytes) {
    // What the server does not read any more is lost.
    send(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  // `head`: FIN and opcode. The key is 0, so that the fuzzer sees what the server sees.
  void frame(uint8_t head, std::string_view payload) {
    std::string bytes(1, static_cast<char>(head));
    if (payload.size() < 126) {
      bytes += static_cast<char>(0x80 | payload.size());
    } else {
      bytes += "\xfe";
      bytes += static_cast<char>(payload.size() >> 8 & 255);
      bytes += static_cast<char>(payload.size() & 255);
    }
    write(bytes.append(4, '\0').append(payload));
  }
  void read() {
    char bytes[65536];
    for (ssize_t n; (n = recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT)) > 0;)
      heard_.append(bytes, static_cast<size_t>(n));
  }
  void leave() { shutdown(fd_, SHUT_WR); }

  // Frames of a server: whole, not masked; texts are events, and nothing comes after the end.
  void check() const {
    std::string_view rest = heard_;
    bool first = true, over = false;
    while (!rest.empty()) {
      require(!over, "nothing comes behind the last frame");
      require(rest.size() >= 2 && (rest[0] & 0x70) == 0 && (rest[0] & 0x80) != 0,
              "a whole message");
      const int opcode = rest[0] & 15;
      uint64_t size = static_cast<uint8_t>(rest[1]);
      require(size < 128, "a server does not mask");
      size_t head = 2;
      if (size >= 126) head += size == 126 ? 2 : 8;
      require(rest.size() >= head, "a whole head");
      if (head > 2) size = 0;
      for (size_t i = 2; i < head; ++i) size = size << 8 | static_cast<uint8_t>(rest[i]);
      require(rest.size() - head >= size, "a whole frame");
      const std::string_view payload = rest.substr(head, size);
      rest.remove_prefix(head + size);
      if (opcode == 1) {
        require(payload.starts_with(first ? "{\"type\":\"session.created\"" : "{\"type\":\"") &&
                    payload.ends_with("}"),
                "texts are events");
        first = false;
      } else if (opcode == 8) {
        require(size == 0 || size >= 2, "an end has a code");
        over = true;
      } else {
        require(opcode == 9 || opcode == 10, "a control frame");
      }
    }
  }

 private:
  int fd_;
  std::string heard_;
};

// A connection, and the call over it.
struct Connection {
  Connection(const Settings& settings, Metrics& metrics, bool beta) {
    int fds[2];
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0,
            "sockets");
    browser.emplace(fds[0]);
    GSocket* const end = g_socket_new_from_fd(fds[1], nullptr);
    GIOStream* const stream = G_IO_STREAM(g_socket_connection_factory_create_connection(end));
    static GUri* const uri = g_uri_parse("http://localhost/v1/realtime", G_URI_FLAGS_NONE, nullptr);
    socket = soup_websocket_connection_new(stream, uri, SOUP_WEBSOCKET_CONNECTION_SERVER, nullptr,
                                           nullptr, nullptr);
    g_object_unref(stream);
    g_object_add_weak_pointer(G_OBJECT(socket), reinterpret_cast<gpointer*>(&socket));
    auto made = Call::make(
        settings, metrics, {.id = "1", .audio_events = true, .beta = beta},
        [&](CallCallbacks given) -> Result<std::shared_ptr<CallPipeline>> {
          callbacks = given;
          ASSIGN_OR_RETURN(auto peer, SocketPeer::make(settings, socket, end, std::move(given)));
          return std::shared_ptr<CallPipeline>(std::move(peer));
        },
        nullptr,
        [this](const std::string&, const std::string&) {
          require(call != nullptr, "a call ends once");
          call.reset();
        });
    g_object_unref(end);
    g_object_unref(socket);
    call = *made;
    call->start("", "");
  }
  ~Connection() {
    browser->leave();
    iterate();
    require(call == nullptr, "a call ends with its connection");
    require(socket == nullptr, "the connection is let go");
    browser->read();
    browser->check();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  SoupWebsocketConnection* socket;  // null when it is gone
  std::optional<Browser> browser;
  CallCallbacks callbacks;
  std::shared_ptr<Call> call;
};

// A line that begins with a digit is something that happens in the call.
void happens(const CallCallbacks& call, std::string_view line) {
  const uint64_t turn = line.size() > 1 ? line[1] & 3 : 0;
  const std::string text(line.substr(std::min<size_t>(2, line.size())));
  const auto tell = [&call, turn](const char* name, const char* field, const std::string& value) {
    GstStructure* const fields =
        gst_structure_new(name, "turn-id", G_TYPE_UINT64, turn, "running-time", G_TYPE_UINT64,
                          turn * GST_SECOND, field, G_TYPE_STRING, value.c_str(), nullptr);
    call.told(fields);
    gst_structure_free(fields);
  };
  constexpr const char* kFinishes[] = {"eos", "length", "context", "interrupted", "empty"};
  switch (line[0] - '0') {
    case 0:
      return tell("minicpmo/turn-start", "reason", "");
    case 1:
      return tell("minicpmo/turn-end", "reason", "");
    case 2:
      return tell("minicpmo/turn-cancel", "reason", "");
    case 3:
      return tell("minicpmo/barge-in", "heard", text);
    case 4:
      return call.words(turn, text);
    case 5:
      return call.sound_begins(turn);
    case 6:
      return call.sound(turn, text);
    case 7:
      return tell("minicpmo/answer", "finish", kFinishes[text.size() % 5]);
    case 8:
      return call.sound_ends(turn, text.empty() ? 0 : 10000);
    default:
      if (text.empty()) return call.sound_dropped();
      if (text[0] == '{') return tell("minicpmo/turn-trace", "report", text);
      return text.size() == 1 ? call.sound_late() : call.failed(text);
  }
}

// Others are of the client. Whatever begins with no letter that is known is a message.
void comes(Browser& browser, std::string_view line) {
  const std::string_view rest = line.substr(std::min<size_t>(1, line.size()));
  switch (line.empty() ? '\0' : line[0]) {
    case 'f':  // the first fragment of a text, one in the middle, the last
      return browser.frame(0x01, rest);
    case 'm':
      return browser.frame(0x00, rest);
    case 'l':
      return browser.frame(0x80, rest);
    case 'b':
      return browser.frame(0x82, rest);
    case 'c':
      return browser.frame(0x88, rest);
    case 'p':
      return browser.frame(0x89, rest);
    case 'o':
      return browser.frame(0x8a, rest);
    case 'r':  // no frame, or several, or half of one
      return browser.write(rest);
    default:
      return browser.frame(0x81, line);
  }
}

}  // namespace
}  // namespace minicpmo::call_server

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  // No plugin is needed.
  g_setenv("GST_PLUGIN_SYSTEM_PATH_1_0", "", TRUE);
  g_setenv("GST_REGISTRY_DISABLE", "yes", TRUE);
  gst_init(nullptr, nullptr);
  g_log_set_writer_func(
      [](GLogLevelFlags level, const GLogField*, gsize, gpointer) {
        minicpmo::call_server::require((level & (G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_ERROR)) == 0,
                                       "no error in GLib");
        return G_LOG_WRITER_HANDLED;
      },
      nullptr, nullptr);
  return 0;
}

// The first byte: what kind of client it is.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace minicpmo::call_server;
  if (size == 0) return 0;
  static Settings settings;
  settings.voices = {{"anna", "anna.wav"}};
  static Metrics metrics;
  starts = data[0] % 16 != 7;
  const bool reads = data[0] % 16 != 8;
  Connection connection(settings, metrics, data[0] % 2 == 1);
  iterate();
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.empty() || !g_ascii_isdigit(line[0]))
      comes(*connection.browser, line);
    else if (connection.call)
      happens(connection.callbacks, line);
    iterate();
    if (reads) connection.browser->read();
  }
  return 0;
}
