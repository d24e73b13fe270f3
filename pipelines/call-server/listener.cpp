#include "listener.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "common/gst_ptr.h"

namespace minicpmo::call_server {
namespace {

constexpr int kBacklog = 128;
constexpr unsigned kAgainMs = 1000;
constexpr const char* kSocket = "minicpmo-socket";  // data of a remote address

}  // namespace

Result<void> Listener::listen(const std::string& address_text, int port) {
  GSocketAddress* const address =
      g_inet_socket_address_new_from_string(address_text.c_str(), static_cast<guint>(port));
  if (address == nullptr) {
    return Error{ErrorCode::kSettings,
                 "--address " + address_text + ": not an IP address, such as 127.0.0.1 or ::", ""};
  }
  GError* raw = nullptr;
  socket_ = g_socket_new(g_socket_address_get_family(address), G_SOCKET_TYPE_STREAM,
                         G_SOCKET_PROTOCOL_TCP, &raw);
  bool listening = socket_ != nullptr && g_socket_bind(socket_, address, TRUE, &raw);
  g_object_unref(address);
  if (listening) {
    g_socket_set_blocking(socket_, FALSE);
    g_socket_set_listen_backlog(socket_, kBacklog);
    listening = g_socket_listen(socket_, &raw);
  }
  const GErrorPtr error(raw);
  if (!listening) {
    return Error{ErrorCode::kFailed,
                 "cannot listen on " + address_text + ", port " + std::to_string(port) + ": " +
                     error->message + "; choose another with --port",
                 ""};
  }
  watch();
  return {};
}

void Listener::watch() {
  incoming_ = g_socket_create_source(socket_, G_IO_IN, nullptr);
  g_source_set_callback(incoming_,
                        G_SOURCE_FUNC(+[](GSocket*, GIOCondition, gpointer self) -> gboolean {
                          return static_cast<Listener*>(self)->come_in();
                        }),
                        this, nullptr);
  g_source_attach(incoming_, nullptr);
}

void Listener::unwatch() {
  again_.stop();
  if (incoming_ != nullptr) g_source_destroy(incoming_);
  g_clear_pointer(&incoming_, g_source_unref);
}

// FALSE: not for a while.
gboolean Listener::come_in() {
  GError* raw = nullptr;
  GSocket* socket = g_socket_accept(socket_, nullptr, &raw);
  const GErrorPtr error(raw);
  if (socket == nullptr) {
    if (g_error_matches(raw, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) return TRUE;
    // As a rule there are no more descriptors: asked again at once it would say the same.
    g_warning("no connection can be accepted: %s; next try in %u ms", raw->message, kAgainMs);
    unwatch();
    again_.start(kAgainMs, [this] { watch(); });
    return FALSE;
  }
  g_socket_set_option(socket, IPPROTO_TCP, TCP_NODELAY, TRUE, nullptr);
  GSocketAddress* const local = g_socket_get_local_address(socket, nullptr);
  GSocketAddress* const peer = g_socket_get_remote_address(socket, nullptr);
  if (local != nullptr && peer != nullptr) {  // it has not gone already
    auto* const inet = G_INET_SOCKET_ADDRESS(peer);
    // Not `peer`, which the socket holds.
    GSocketAddress* const remote = g_inet_socket_address_new(
        g_inet_socket_address_get_address(inet), g_inet_socket_address_get_port(inet));
    g_object_set_data_full(G_OBJECT(remote), kSocket, g_object_ref(socket), g_object_unref);
    GSocketConnection* const connection = g_socket_connection_factory_create_connection(socket);
    accept_(G_IO_STREAM(connection), local, remote);
    g_object_unref(connection);
    g_object_unref(remote);
  }
  if (local != nullptr) g_object_unref(local);
  if (peer != nullptr) g_object_unref(peer);
  g_object_unref(socket);
  return TRUE;
}

void Listener::stop() {
  unwatch();
  g_clear_object(&socket_);
}

GSocket* Listener::socket_of(GSocketAddress* remote) {
  return remote != nullptr ? static_cast<GSocket*>(g_object_get_data(G_OBJECT(remote), kSocket))
                           : nullptr;
}

std::string Listener::url() const {
  GSocketAddress* const address =
      socket_ != nullptr ? g_socket_get_local_address(socket_, nullptr) : nullptr;
  if (address == nullptr) return "";
  auto* const inet = G_INET_SOCKET_ADDRESS(address);
  const GCharPtr host(g_inet_address_to_string(g_inet_socket_address_get_address(inet)));
  const bool v6 = g_socket_address_get_family(address) == G_SOCKET_FAMILY_IPV6;
  const std::string port = std::to_string(g_inet_socket_address_get_port(inet));
  g_object_unref(address);
  return std::string("http://") + (v6 ? "[" : "") + host.get() + (v6 ? "]:" : ":") + port + "/";
}

}  // namespace minicpmo::call_server
