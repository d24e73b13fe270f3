// libFuzzer target: what clients send to the HTTP server, connection by connection, as bytes in
// memory; the peers behind the calls are not real. Build with clang:
//   CXX=clang++ meson setup build-fuzz && ninja -C build-fuzz tests/fuzz/http_fuzz
//   cd tests/fuzz && ../../build-fuzz/tests/fuzz/http_fuzz -dict=http.dict CORPUS http
// New inputs go into CORPUS; tests/fuzz/http are those that were kept.
#include <gio/gio.h>

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "fake_element.h"
#include "main_thread.h"
#include "peer.h"
#include "server.h"

GResource* page_get_resource(void);  // linked, it registers itself

namespace minicpmo::call_server {
namespace {

constexpr std::string_view kToken = "secret-of-16-chars";
constexpr std::string_view kOrigin = "https://page.example";
constexpr std::string_view kNextConnection = "\n====\n";
constexpr std::string_view kNewestCall = "{id}";  // in the input: the id of the newest call
constexpr size_t kMostConnections = 8;

enum class Answers { kAtOnce, kLater, kNever, kWithError };

Answers answers;
int peers = 0, most_peers = 0;

void require(bool holds, const char* what, std::string_view context = "") {
  if (holds) return;
  std::fprintf(stderr, "http_fuzz: not true: %s\n%.*s\n", what, static_cast<int>(context.size()),
               context.data());
  std::abort();
}

}  // namespace

// A peer without a pipeline, instead of peer.cpp.

Result<std::shared_ptr<Peer>> Peer::make(const Settings&, const Offer& offer, CallCallbacks given) {
  require(offer.audio_sections > 0, "a call has an offer with audio");
  if (answers == Answers::kWithError && offer.data_channel)
    return Error{ErrorCode::kLibrary, "no webrtcbin", ""};
  std::shared_ptr<Peer> peer(new Peer(std::move(given)));
  peer->has_channel_ = offer.data_channel;
  peer->model_.reset(fake_element());
  peer->turn_.reset(fake_element());
  most_peers = std::max(most_peers, ++peers);
  return peer;
}

Peer::~Peer() {
  require(closed(), "a call is ended before it is destroyed");
}

void Peer::start(const std::string&) {
  heard_something();
  const auto answer = [this] {
    if (closed()) return;
    callbacks_.answered(answers == Answers::kWithError
                            ? Result<std::string>(Error{ErrorCode::kFailed, "no answer", ""})
                            : Result<std::string>("v=0\r\n"));
    if (closed() || !has_channel_) return;
    callbacks_.connected();
    callbacks_.channel_open();
  };
  if (answers == Answers::kAtOnce)
    answer();
  else if (answers != Answers::kNever)
    on_main_thread([self = shared_from_this(), answer] { answer(); });
}

std::function<void()> Peer::say_goodbye(const std::string&) {
  --peers;
  return {};
}

void Peer::send(const std::string& message) {
  require(message.starts_with("{\"type\":\"") && message.ends_with("}"), "events are sent",
          message);
}
void Peer::fail(const std::string&) {}
bool Peer::is_transport(GstObject*) const {
  return false;
}

namespace {

// A client that has sent all that it will send.
struct Client {
  Client(Server& server, const std::string& request) {
    GInputStream* const in = g_memory_input_stream_new_from_data(
        g_memdup2(request.data(), request.size()), static_cast<gssize>(request.size()), g_free);
    out = g_memory_output_stream_new_resizable();
    stream = g_simple_io_stream_new(in, out);
    g_object_unref(in);
    g_object_add_weak_pointer(G_OBJECT(stream), reinterpret_cast<gpointer*>(&stream));
    GSocketAddress* const address = g_inet_socket_address_new_from_string("127.0.0.1", 8080);
    server.accept(stream, address, address);
    g_object_unref(address);
    g_object_unref(stream);
  }
  ~Client() {
    if (stream != nullptr)
      g_object_remove_weak_pointer(G_OBJECT(stream), reinterpret_cast<gpointer*>(&stream));
    g_object_unref(out);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  std::string_view reply() const {
    auto* const memory = G_MEMORY_OUTPUT_STREAM(out);
    return {static_cast<const char*>(g_memory_output_stream_get_data(memory)),
            g_memory_output_stream_get_data_size(memory)};
  }
  GIOStream* stream;  // null when the server is done with it
  GOutputStream* out;
};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = g_ascii_tolower(c);
  return result;
}

// A header's value, or "".
std::string_view field(std::string_view head, const std::string& name) {
  const size_t at = lower(head).find("\r\n" + name + ": ");
  if (at == head.npos) return "";
  const std::string_view rest = head.substr(at + name.size() + 4);
  return rest.substr(0, rest.find("\r\n"));
}

// One whole reply and nothing behind it. Returns its status and head.
std::pair<int, std::string_view> read_reply(std::string_view reply, std::string_view request) {
  constexpr std::string_view kHeadEnd = "\r\n\r\n";
  if (reply.starts_with("HTTP/1.1 100 ") && reply.find(kHeadEnd) != reply.npos)
    reply.remove_prefix(reply.find(kHeadEnd) + kHeadEnd.size());
  if (reply.empty()) return {0, ""};
  int status = 0;
  require(reply.starts_with("HTTP/1.") && reply.size() > 13, "it is a reply", reply);
  require(std::from_chars(reply.data() + 9, reply.data() + 12, status).ec == std::errc() &&
              (status == 101 || (status >= 200 && status < 600)),
          "a reply has a status", reply);
  const size_t end = reply.find(kHeadEnd);
  require(end != reply.npos, "a reply's head has an end", reply);
  // A WebSocket, which ends at once: bytes in memory have no socket.
  if (status == 101) return {status, reply.substr(0, end + 2)};
  const std::string_view head = reply.substr(0, end + 2), body = reply.substr(end + 4);
  for (size_t i = 0; i < head.size(); ++i)
    require((head[i] >= ' ' && head[i] != 127) || head[i] == '\r' || head[i] == '\n',
            "a reply's head is text", reply);
  const std::string_view length = field(head, "content-length");
  size_t wanted = 0;
  std::from_chars(length.data(), length.data() + length.size(), wanted);
  require(body.size() == wanted ||
              (body.empty() && (status == 204 || lower(request).find("head") != request.npos)),
          "a reply is as long as it says", reply);
  require(field(head, "connection") == "close", "the connection is closed", reply);
  return {status, head};
}

// What a request must have to begin a call, looked for without parsing it: it may have it in a
// place where it does not count, and then there is no call.
void check_call(const Settings& settings, const std::string& request, std::string_view reply) {
  const std::string text = lower(request);
  require(text.find("post") != text.npos && text.find("v=0") != text.npos &&
              text.find("m=audio") != text.npos,
          "a call needs an offer", request);
  require(settings.token.empty() || request.find(kToken) != request.npos, "a call needs the token",
          request);
  require(!settings.token.empty() || text.find("localhost") != text.npos ||
              text.find("127.") != text.npos || text.find("[::") != text.npos ||
              text.find("[0") != text.npos,
          "without a token, this computer only", request);
  require(field(reply, "location").starts_with("/calls/"), "a call has a place", reply);
  const std::string allowed(field(reply, "access-control-allow-origin"));
  require(allowed.empty() || request.find(allowed) != request.npos, "the page's origin is echoed",
          reply);
}

// What is logged is of one line, and tells nobody's secrets.
GLogWriterOutput log_writer(GLogLevelFlags level, const GLogField* fields, gsize count, gpointer) {
  for (gsize i = 0; i < count; ++i) {
    if (std::string_view(fields[i].key) != "MESSAGE") continue;
    const auto* const text = static_cast<const char*>(fields[i].value);
    const std::string_view message =
        fields[i].length < 0 ? std::string_view(text) : std::string_view(text, fields[i].length);
    require((level & (G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_ERROR)) == 0, "no error in GLib", message);
    require(message.find('\n') == message.npos && message.find(kToken) == message.npos &&
                message.find("a=") == message.npos,
            "the log has one line without secrets", message);
  }
  return G_LOG_WRITER_HANDLED;
}

void iterate() {
  while (g_main_context_iteration(nullptr, FALSE)) {
  }
}

// The first byte: how the server is set up, and how its peers behave.
Settings settings_of(uint8_t byte) {
  Settings settings;
  if (byte & 1) settings.token = kToken;
  if (byte & 2) settings.origins = {std::string(kOrigin)};
  settings.max_calls = byte & 4 ? 2 : 1;
  settings.offers_per_minute = byte & 8 ? 2 : 100;
  settings.max_offer_bytes = 4096;
  answers = static_cast<Answers>(byte >> 4 & 3);
  return settings;
}

void serve(const Settings& settings, bool draining, std::string_view input) {
  std::string newest;
  bool drained = false;
  std::vector<std::unique_ptr<Client>> clients;
  std::vector<std::string> requests;
  {
    Server server(settings);
    while (!input.empty() && clients.size() < kMostConnections) {
      const size_t end = std::min(input.find(kNextConnection), input.size());
      std::string request(input.substr(0, end));
      input.remove_prefix(std::min(input.size(), end + kNextConnection.size()));
      for (size_t at = 0; (at = request.find(kNewestCall, at)) != request.npos;)
        request.replace(at, kNewestCall.size(), newest);
      if (draining && input.empty()) server.drain([&drained] { drained = true; });
      clients.push_back(std::make_unique<Client>(server, request));
      requests.push_back(request);
      iterate();
      const auto [status, head] = read_reply(clients.back()->reply(), request);
      require(status != 201 || !draining || !input.empty(),
              "a server that goes down takes no call");
      if (status == 201)
        newest = field(head, "location").substr(std::string_view("/calls/").size());
    }
    require(most_peers <= settings.max_calls, "no more calls than allowed");
    require(!drained || peers == 0, "calls are over when the server has drained");
  }
  iterate();
  for (size_t i = 0; i < clients.size(); ++i) {
    require(clients[i]->stream == nullptr, "connections are let go", requests[i]);
    const auto [status, head] = read_reply(clients[i]->reply(), requests[i]);
    if (status == 201) check_call(settings, requests[i], head);
  }
  require(peers == 0, "calls end with the server");
}

}  // namespace
}  // namespace minicpmo::call_server

// libsoup 3.2.3 loses the path of a request whose Content-Length is no number (mended in 3.4). It
// is not built for the sanitizer, which sees of its stack no more than this.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:g_malloc\n";
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  g_setenv("GST_PLUGIN_SYSTEM_PATH_1_0", "", TRUE);  // none is needed
  g_setenv("GST_REGISTRY_DISABLE", "yes", TRUE);
  gst_init(nullptr, nullptr);
  g_log_set_writer_func(minicpmo::call_server::log_writer, nullptr, nullptr);
  return page_get_resource() == nullptr;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace minicpmo::call_server;
  if (size == 0) return 0;
  most_peers = 0;
  serve(settings_of(data[0]), (data[0] & 64) != 0,
        {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
