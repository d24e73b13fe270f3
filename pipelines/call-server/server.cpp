#include "server.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "form.h"
#include "offer.h"
#include "peer.h"
#include "socket_peer.h"

namespace minicpmo::call_server {
namespace {

constexpr int kMostConnections = 512;
constexpr unsigned kRequestSeconds = 20;                         // for a whole request to come in
constexpr guint kTooManyRequests = 429, kUpgradeRequired = 426;  // libsoup has no names for them
constexpr const char* kSdp = "application/sdp";
constexpr const char* kCalls = "/calls/";
constexpr const char* kRealtime = "/v1/realtime";
constexpr const char* kOffers = "/v1/realtime/calls";
constexpr const char* kKeyProtocol = "openai-insecure-api-key.";
constexpr const char* kPages = "/page";
constexpr const char* kPolicy =
    "default-src 'self'; connect-src 'self'; media-src 'self' blob:; frame-ancestors 'none'";

std::string header(SoupServerMessage* message, const char* name) {
  const char* const value =
      soup_message_headers_get_one(soup_server_message_get_request_headers(message), name);
  return value != nullptr ? value : "";
}

void set_header(SoupServerMessage* message, const char* name, const std::string& value) {
  soup_message_headers_replace(soup_server_message_get_response_headers(message), name,
                               value.c_str());
}

void reply(SoupServerMessage* message, guint status, const char* type, const std::string& body) {
  soup_server_message_set_status(message, status, nullptr);
  soup_server_message_set_response(message, type, SOUP_MEMORY_COPY, body.data(), body.size());
}

// As OpenAI's errors are, which WHIP leaves open.
void refuse(SoupServerMessage* message, guint status, const char* code, const std::string& text) {
  reply(message, status, "application/json",
        nlohmann::json{
            {"error", {{"type", "invalid_request_error"}, {"code", code}, {"message", text}}}}
            .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void retry_after(SoupServerMessage* message, double seconds) {
  set_header(message, "Retry-After",
             std::to_string(std::max(1, static_cast<int>(seconds + 0.999))));
}

// Under the message's connection, if it came in at our port.
GSocket* socket_of(SoupServerMessage* message) {
  return Listener::socket_of(soup_server_message_get_remote_address(message));
}

void cut(SoupServerMessage* message) {
  GSocket* const socket = socket_of(message);
  if (socket != nullptr) g_socket_shutdown(socket, TRUE, TRUE, nullptr);
}

// Of two, a proxy in front may have read the other one.
bool repeated(SoupServerMessage* message, const char* name) {
  SoupMessageHeadersIter at;
  soup_message_headers_iter_init(&at, soup_server_message_get_request_headers(message));
  int count = 0;
  const char *one = nullptr, *value = nullptr;
  while (soup_message_headers_iter_next(&at, &one, &value))
    count += g_ascii_strcasecmp(one, name) == 0;
  return count > 1;
}

std::string address_of(SoupServerMessage* message) {
  const char* const host = soup_server_message_get_remote_host(message);
  return host != nullptr ? host : "";
}

// Whoever knows it can end the call: nobody may guess it from those of other calls.
std::string random_id() {
  std::array<unsigned char, 16> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    g_error("the kernel has no random numbers");
  std::string id;
  for (const unsigned char byte : bytes) {
    char part[3];
    g_snprintf(part, sizeof part, "%02x", byte);
    id += part;
  }
  return id;
}

std::string body_of(SoupServerMessage* message) {
  GBytes* const bytes = soup_message_body_flatten(soup_server_message_get_request_body(message));
  gsize size = 0;
  const auto* const data = static_cast<const char*>(g_bytes_get_data(bytes, &size));
  std::string body(data != nullptr ? data : "", size);
  g_bytes_unref(bytes);
  return body;
}

// Of the Content-Type.
std::string boundary_of(SoupServerMessage* message) {
  GHashTable* parameters = nullptr;
  std::string boundary;
  if (soup_message_headers_get_content_type(soup_server_message_get_request_headers(message),
                                            &parameters) == nullptr)
    return boundary;
  const auto* const value = static_cast<const char*>(g_hash_table_lookup(parameters, "boundary"));
  if (value != nullptr) boundary = value;
  g_hash_table_unref(parameters);
  return boundary;
}

bool is_offer_path(const std::string& path) {
  return path == "/whip" || path == kOffers;
}

// What a WebSocket's client offers; browsers have no other place for a token.
std::vector<std::string> protocols_of(SoupServerMessage* message) {
  std::vector<std::string> protocols;
  const char* const value = soup_message_headers_get_list(
      soup_server_message_get_request_headers(message), "Sec-WebSocket-Protocol");
  GSList* const list = soup_header_parse_list(value != nullptr ? value : "");
  for (GSList* at = list; at != nullptr; at = at->next)
    protocols.emplace_back(static_cast<const char*>(at->data));
  soup_header_free_list(list);
  return protocols;
}

// As the header Authorization has it.
std::string authorization_of(SoupServerMessage* message) {
  const std::string given = header(message, "Authorization");
  if (!given.empty()) return given;
  for (const std::string& protocol : protocols_of(message))
    if (protocol.starts_with(kKeyProtocol))
      return "Bearer " + protocol.substr(std::string(kKeyProtocol).size());
  return "";
}

// The client speaks the API of before 2025.
bool beta_of(SoupServerMessage* message) {
  if (header(message, "OpenAI-Beta") == "realtime=v1") return true;
  const auto protocols = protocols_of(message);
  return std::find(protocols.begin(), protocols.end(), "openai-beta.realtime-v1") !=
         protocols.end();
}

double now() {
  return static_cast<double>(g_get_monotonic_time()) / 1e6;
}

}  // namespace

// The call answers on the main thread at any later time; the client may have gone by then.
struct Server::Pending {
  SoupServerMessage* message;
  gulong finished;
  bool gone = false;
};

Server::Server(const Settings& settings)
    : settings_(settings),
      offers_(settings.offers_per_minute, 60),
      soup_(soup_server_new("server-header", "minicpmo-call-server ", nullptr)) {
  g_signal_connect(soup_, "request-started",
                   G_CALLBACK(+[](SoupServer*, SoupServerMessage* message, gpointer self) {
                     static_cast<Server*>(self)->begun(message);
                   }),
                   this);
  // Messages that were packed could be any size unpacked.
  soup_server_remove_websocket_extension(soup_, SOUP_TYPE_WEBSOCKET_EXTENSION_DEFLATE);
  // The handler of a WebSocket gets all requests to its path and below.
  for (const char* path : {static_cast<const char*>(nullptr), kRealtime, kOffers}) {
    // Before the body is read.
    soup_server_add_early_handler(
        soup_, path,
        [](SoupServer*, SoupServerMessage* message, const char* asked, GHashTable*, gpointer self) {
          if (static_cast<Server*>(self)->admitted(message, asked)) return;
          // The reply is made, but libsoup reads the body before it is sent.
          soup_message_body_set_accumulate(soup_server_message_get_request_body(message), FALSE);
        },
        this, nullptr);
    soup_server_add_handler(
        soup_, path,
        [](SoupServer*, SoupServerMessage* message, const char* asked, GHashTable*, gpointer self) {
          static_cast<Server*>(self)->handle(message, asked);
        },
        this, nullptr);
  }
  const char* protocols[] = {"realtime", nullptr};
  soup_server_add_websocket_handler(
      soup_, kRealtime, nullptr, const_cast<char**>(protocols),
      [](SoupServer*, SoupServerMessage* message, const char*, SoupWebsocketConnection* connection,
         gpointer self) { static_cast<Server*>(self)->socket_opened(message, connection); },
      this, nullptr);
}

Server::~Server() {
  for (const auto& [id, call] : std::map(calls_)) call->end("drained");
  listener_.stop();
  soup_server_disconnect(soup_);
  g_object_unref(soup_);
}

Result<void> Server::listen() {
  return listener_.listen(settings_.address, settings_.port);
}

void Server::accept(GIOStream* stream, GSocketAddress* local, GSocketAddress* remote) {
  soup_server_accept_iostream(soup_, stream, local, remote, nullptr);
}

std::string Server::url() const {
  return listener_.url();
}

// A request that does not come in within its time is cut off, and so are too many at once.
void Server::begun(SoupServerMessage* message) {
  struct Watch {
    Server* server;
    Timer timer;
  };
  auto* const watch = new Watch{this, {}};
  set_header(message, "Connection", "close");  // of libsoup's own replies, too
  if (++connections_ > kMostConnections)
    watch->timer.start(0, [message] { cut(message); });
  else
    watch->timer.start(kRequestSeconds * 1000, [message] { cut(message); });
  g_signal_connect(message, "got-body", G_CALLBACK(+[](SoupServerMessage*, gpointer data) {
                     static_cast<Watch*>(data)->timer.stop();
                   }),
                   watch);
  g_object_weak_ref(
      G_OBJECT(message),
      [](gpointer data, GObject*) {
        auto* const done = static_cast<Watch*>(data);
        --done->server->connections_;
        delete done;
      },
      watch);
}

// Of every reply. libsoup sends what is set with "100 Continue", and forgets it.
void Server::common_headers(SoupServerMessage* message) {
  // libsoup 3.2.3 does not notice that an idle client has closed its connection.
  set_header(message, "Connection", "close");
  const std::string origin = header(message, "Origin");
  if (origin.empty() || !origin_allowed(origin, header(message, "Host"), settings_.origins)) return;
  set_header(message, "Access-Control-Allow-Origin", origin);
  set_header(message, "Access-Control-Expose-Headers", "Location, Retry-After");
  set_header(message, "Vary", "Origin");
}

// What can be refused by its headers alone.
bool Server::admitted(SoupServerMessage* message, const std::string& path) {
  const std::string origin = header(message, "Origin");
  const std::string method = soup_server_message_get_method(message);
  common_headers(message);
  // Without a token only this computer may call; a page whose name was given its address may not.
  if (settings_.token.empty() && !names_loopback(header(message, "Host"))) {
    metrics_.offer_refused("origin");
    refuse(message, SOUP_STATUS_FORBIDDEN, "host_not_allowed",
           "without a token this server answers to localhost and its addresses only");
    return false;
  }
  // libsoup would say "100 Continue", which HTTP/1.0 does not know (RFC 9110, section 15.2).
  SoupMessageHeaders* const headers = soup_server_message_get_request_headers(message);
  if (soup_server_message_get_http_version(message) == SOUP_HTTP_1_0 &&
      (soup_message_headers_get_expectations(headers) & SOUP_EXPECTATION_CONTINUE) != 0) {
    refuse(message, SOUP_STATUS_EXPECTATION_FAILED, "expectation_failed",
           "HTTP/1.0 has no 100 Continue: send the request without Expect");
    return false;
  }
  if (!body_allowed(message, path)) return false;
  const bool calls = is_offer_path(path) || path.starts_with(kCalls) || path == kRealtime;
  if (!calls && path != "/metrics") return true;
  if (method == "OPTIONS") return true;
  if (!origin_allowed(origin, header(message, "Host"), settings_.origins)) {
    metrics_.offer_refused("origin");
    refuse(message, SOUP_STATUS_FORBIDDEN, "origin_not_allowed",
           "pages of " + origin + " may not call here; allow them with --origin");
    return false;
  }
  if (!authorized(authorization_of(message), settings_.token)) {
    metrics_.offer_refused("token");
    set_header(message, "WWW-Authenticate", "Bearer");
    refuse(message, SOUP_STATUS_UNAUTHORIZED, "invalid_token",
           "this server needs a token: send it as Authorization: Bearer TOKEN");
    return false;
  }
  return true;
}

// Whether its body's length is known and small enough, whatever the request is.
bool Server::body_allowed(SoupServerMessage* message, const std::string& path) {
  for (const char* name : {"Host", "Content-Length"}) {
    if (!repeated(message, name)) continue;
    refuse(message, SOUP_STATUS_BAD_REQUEST, "repeated_header",
           std::string("send ") + name + " once");
    return false;
  }
  SoupMessageHeaders* const headers = soup_server_message_get_request_headers(message);
  const auto encoding = soup_message_headers_get_encoding(headers);
  const bool offering =
      is_offer_path(path) && soup_server_message_get_method(message) == std::string("POST");
  if (encoding == SOUP_ENCODING_CHUNKED || (offering && encoding == SOUP_ENCODING_NONE)) {
    refuse(message, SOUP_STATUS_LENGTH_REQUIRED, "length_required", "send a Content-Length");
    return false;
  }
  const goffset length = soup_message_headers_get_content_length(headers);
  if (length < 0 || length > settings_.max_offer_bytes) {
    refuse(message, SOUP_STATUS_REQUEST_ENTITY_TOO_LARGE, "offer_too_large",
           "an offer has at most " + std::to_string(settings_.max_offer_bytes) + " bytes");
    if (length < 0) cut(message);  // less than nothing, or more than fits: it would never end
    return false;
  }
  return true;
}

void Server::handle(SoupServerMessage* message, const std::string& path) {
  const std::string method = soup_server_message_get_method(message);
  const bool reading = method == "GET" || method == "HEAD";
  common_headers(message);
  if (method == "OPTIONS") {
    set_header(message, "Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
    // Clients send more than is read (OpenAI's library its version). "*" leaves Authorization out.
    set_header(message, "Access-Control-Allow-Headers", "Authorization, Content-Type, *");
    set_header(message, "Access-Control-Max-Age", "600");
    return soup_server_message_set_status(message, SOUP_STATUS_NO_CONTENT, nullptr);
  }
  if (is_offer_path(path)) {
    if (method == "POST") return offered(message, path);
    set_header(message, "Allow", "POST, OPTIONS");
    return refuse(message, SOUP_STATUS_METHOD_NOT_ALLOWED, "method_not_allowed",
                  "POST an SDP offer");
  }
  if (path.starts_with(kCalls)) {
    if (method == "DELETE") return deleted(message, path.substr(std::string(kCalls).size()));
    set_header(message, "Allow", "DELETE, OPTIONS");
    return refuse(
        message, SOUP_STATUS_METHOD_NOT_ALLOWED, "method_not_allowed",
        "a call can only be ended (DELETE): its candidates belong into the offer, and ICE "
        "cannot be restarted; make a new call");
  }
  if (path == kRealtime) return socket_asked(message);
  if (!reading) {
    set_header(message, "Allow", "GET, HEAD");
    return refuse(message, SOUP_STATUS_METHOD_NOT_ALLOWED, "method_not_allowed", "GET it");
  }
  if (path == "/healthz") {
    const bool ok = !drained_;
    return reply(message, ok ? SOUP_STATUS_OK : SOUP_STATUS_SERVICE_UNAVAILABLE, "text/plain",
                 ok ? "ok\n" : "draining\n");
  }
  if (path == "/metrics")
    return reply(message, SOUP_STATUS_OK, "text/plain; version=0.0.4; charset=utf-8",
                 metrics_.text());
  if (path == "/config.json") return config(message);
  // Browsers ask for it by themselves.
  if (path == "/favicon.ico")
    return soup_server_message_set_status(message, SOUP_STATUS_NO_CONTENT, nullptr);
  page(message, path);
}

// The page is compiled in.
void Server::page(SoupServerMessage* message, const std::string& path) {
  const std::string name = path == "/" ? "/index.html" : path;
  GBytes* const bytes =
      g_resources_lookup_data((kPages + name).c_str(), G_RESOURCE_LOOKUP_FLAGS_NONE, nullptr);
  if (bytes == nullptr)
    return refuse(message, SOUP_STATUS_NOT_FOUND, "not_found", "there is nothing here");
  gsize size = 0;
  const auto* const data = static_cast<const char*>(g_bytes_get_data(bytes, &size));
  const char* const type = name.ends_with(".html")  ? "text/html; charset=utf-8"
                           : name.ends_with(".js")  ? "text/javascript; charset=utf-8"
                           : name.ends_with(".css") ? "text/css; charset=utf-8"
                           : name.ends_with(".png") ? "image/png"
                                                    : "application/octet-stream";
  set_header(message, "Content-Security-Policy", kPolicy);
  set_header(message, "X-Content-Type-Options", "nosniff");
  set_header(message, "Referrer-Policy", "no-referrer");
  set_header(message, "Cache-Control", "no-cache");
  reply(message, SOUP_STATUS_OK, type, std::string(data, size));
  g_bytes_unref(bytes);
}

// What the page must know before it calls. TURN credentials are the server's own: browsers get
// STUN.
void Server::config(SoupServerMessage* message) {
  nlohmann::json servers = nlohmann::json::array();
  if (!settings_.stun_server.empty()) {
    // stun://HOST:PORT for GStreamer, stun:HOST:PORT for browsers.
    const std::string host = settings_.stun_server.substr(settings_.stun_server.find("//") + 2);
    servers.push_back({{"urls", "stun:" + host}});
  }
  nlohmann::json voices = {"default"};
  for (const auto& [name, file] : settings_.voices) voices.push_back(name);
  set_header(message, "Cache-Control", "no-store");
  reply(message, SOUP_STATUS_OK, "application/json",
        nlohmann::json{{"iceServers", servers},
                       {"token_required", !settings_.token.empty()},
                       {"transport", settings_.transport},
                       {"voices", voices}}
            .dump());
}

// Whether one more call may begin; it is refused if not.
bool Server::room(SoupServerMessage* message) {
  const double wait = offers_.take(address_of(message), now());
  if (wait > 0) {
    metrics_.offer_refused("rate");
    retry_after(message, wait);
    refuse(message, kTooManyRequests, "rate_limit_exceeded",
           "too many calls from this address; try again in " +
               std::to_string(static_cast<int>(wait) + 1) + " s");
    return false;
  }
  if (drained_ || static_cast<int>(calls_.size()) >= settings_.max_calls) {
    metrics_.offer_refused(drained_ ? "draining" : "full");
    retry_after(message, drained_ ? settings_.drain_timeout_s : 10);
    refuse(message, SOUP_STATUS_SERVICE_UNAVAILABLE, drained_ ? "draining" : "server_full",
           drained_ ? "the server is going down"
                    : "all " + std::to_string(settings_.max_calls) +
                          " calls are taken; try again later");
    return false;
  }
  if (overloaded()) {
    metrics_.offer_refused("overload");
    retry_after(message, settings_.late_pause_s);
    refuse(message, SOUP_STATUS_SERVICE_UNAVAILABLE, "overloaded",
           "the server is too slow for one more call at the moment; try again later");
    return false;
  }
  return true;
}

// One more call would make those that there are worse.
bool Server::overloaded() const {
  const gint64 since = g_get_monotonic_time() - settings_.late_pause_s * G_USEC_PER_SEC;
  return std::any_of(calls_.begin(), calls_.end(), [since](const auto& entry) {
    return entry.second->late_at() != 0 && entry.second->late_at() > since;
  });
}

void Server::offered(SoupServerMessage* message, const std::string& path) {
  if (!room(message)) return;
  const char* const type = soup_message_headers_get_content_type(
      soup_server_message_get_request_headers(message), nullptr);
  const std::string content = type != nullptr ? type : "";
  if (content == kSdp) return start_call(message, body_of(message), "");
  if (content == "multipart/form-data" && path != "/whip") {
    const auto form = read_form(body_of(message), boundary_of(message));
    const auto sdp = form.find("sdp"), config = form.find("session");
    if (sdp != form.end())
      return start_call(message, sdp->second, config != form.end() ? config->second : "");
  }
  metrics_.offer_refused("offer");
  refuse(message, SOUP_STATUS_UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type",
         "send the offer as application/sdp, or as the field sdp of multipart/form-data");
}

void Server::start_call(SoupServerMessage* message, const std::string& sdp,
                        const std::string& config) {
  const auto offer = check_offer(sdp);
  if (!offer.ok()) {
    metrics_.offer_refused("offer");
    return refuse(message, SOUP_STATUS_BAD_REQUEST, "invalid_offer", offer.error().message);
  }
  const std::string id = random_id();
  auto* const pending = new Pending{SOUP_SERVER_MESSAGE(g_object_ref(message)), 0, false};
  const auto answered = [this, pending, id](Result<std::string> answer) {
    const std::unique_ptr<Pending> mine(pending);
    g_signal_handler_disconnect(mine->message, mine->finished);
    if (mine->gone) {
      if (const auto found = calls_.find(id); found != calls_.end())
        on_main_thread([call = found->second] { call->end("client"); });
    } else if (answer.ok()) {
      set_header(mine->message, "Location", kCalls + id);
      reply(mine->message, SOUP_STATUS_CREATED, kSdp, *answer);
      soup_server_message_unpause(mine->message);
    } else {
      g_warning("call-failed id=%s: %s", id.c_str(), answer.error().message.c_str());
      refuse(mine->message, SOUP_STATUS_INTERNAL_SERVER_ERROR, "call_failed",
             "the call could not be answered");
      soup_server_message_unpause(mine->message);
    }
    g_object_unref(mine->message);
  };
  pending->finished =
      g_signal_connect(message, "finished", G_CALLBACK(+[](SoupServerMessage*, gpointer data) {
                         static_cast<Pending*>(data)->gone = true;
                       }),
                       pending);
  auto call = Call::make(
      settings_, metrics_, {.id = id},
      [&](CallCallbacks callbacks) -> Result<std::shared_ptr<CallPipeline>> {
        ASSIGN_OR_RETURN(auto peer, Peer::make(settings_, *offer, std::move(callbacks)));
        return std::shared_ptr<CallPipeline>(std::move(peer));
      },
      answered, call_over());
  soup_server_message_pause(message);
  if (!call.ok()) return answered(call.error());
  begin(*call, sdp, config);
}

Call::Ended Server::call_over() {
  return [this, began = now()](const std::string& over, const std::string& why) {
    g_message("call-end id=%s reason=%s seconds=%.3f", over.c_str(), why.c_str(), now() - began);
    ended(over);
  };
}

void Server::begin(const std::shared_ptr<Call>& call, const std::string& sdp,
                   const std::string& config) {
  metrics_.call_began();
  calls_[call->id()] = call;
  g_message("call-begin id=%s", call->id().c_str());
  call->start(sdp, config);
}

// ---- WebSockets

// Without a status the request goes on to be a WebSocket. Browsers do not tell a page why one was
// refused: it asks again without the upgrade, and must be told the same.
void Server::socket_asked(SoupServerMessage* message) {
  SoupMessageHeaders* const headers = soup_server_message_get_request_headers(message);
  const bool get = soup_server_message_get_method(message) == std::string("GET");
  if (get && !room(message)) return;
  if (!get || !soup_message_headers_header_contains(headers, "Upgrade", "websocket")) {
    set_header(message, "Upgrade", "websocket");
    set_header(message, "Allow", "GET, OPTIONS");
    return refuse(message, kUpgradeRequired, "websocket_required",
                  "this is a WebSocket; POST offers of WebRTC to /v1/realtime/calls");
  }
  soup_message_headers_remove(soup_server_message_get_response_headers(message), "Connection");
}

void Server::socket_opened(SoupServerMessage* message, SoupWebsocketConnection* connection) {
  GSocket* const socket = socket_of(message);
  const auto failed = [connection](const Error& error) {
    g_warning("call-failed: %s", error.message.c_str());
    close_socket(connection, SOUP_WEBSOCKET_CLOSE_SERVER_ERROR, "failed");
  };
  if (socket == nullptr) return failed({ErrorCode::kFailed, "the connection has no socket", ""});
  auto call = Call::make(
      settings_, metrics_, {.id = random_id(), .audio_events = true, .beta = beta_of(message)},
      [&](CallCallbacks callbacks) -> Result<std::shared_ptr<CallPipeline>> {
        ASSIGN_OR_RETURN(auto peer,
                         SocketPeer::make(settings_, connection, socket, std::move(callbacks)));
        return std::shared_ptr<CallPipeline>(std::move(peer));
      },
      nullptr, call_over());
  if (!call.ok()) return failed(call.error());
  begin(*call, "", "");
}

// ----

void Server::deleted(SoupServerMessage* message, const std::string& id) {
  const auto found = calls_.find(id);
  if (found == calls_.end())
    return refuse(message, SOUP_STATUS_NOT_FOUND, "no_such_call",
                  "there is no such call (any more)");
  const std::shared_ptr<Call> call = found->second;
  call->end("client");
  soup_server_message_set_status(message, SOUP_STATUS_OK, nullptr);
}

void Server::ended(const std::string& id) {
  calls_.erase(id);
  if (drained_ && calls_.empty()) drained();
}

void Server::drain(std::function<void()> done) {
  if (drained_) return;
  drained_ = std::move(done);
  for (const auto& [id, call] : std::map(calls_)) call->end_when_quiet();
  drain_end_.start(static_cast<unsigned>(settings_.drain_timeout_s) * 1000, [this] {
    for (const auto& [id, call] : std::map(calls_)) call->end("drained");
  });
  if (calls_.empty()) drained();
}

void Server::drained() {
  drain_end_.stop();
  on_main_thread([done = drained_] { done(); });
}

}  // namespace minicpmo::call_server
