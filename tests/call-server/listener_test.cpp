// Connections that come in at the server's port, in one process with it.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <string>

#include "server.h"

namespace minicpmo::call_server {
namespace {

class Listener : public ::testing::Test {
 protected:
  void SetUp() override {
    settings_.port = 0;
    const auto listening = server_.listen();
    ASSERT_TRUE(listening.ok()) << listening.error().message;
    const std::string url = server_.url();
    port_ = static_cast<uint16_t>(std::stoi(url.substr(url.rfind(':') + 1)));
  }

  int connected() const {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(port_);
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    return fd;
  }

  // The reply, whose end is the connection's.
  std::string ask(const std::string& request) {
    const int fd = connected();
    std::string reply;
    if (send(fd, request.data(), request.size(), 0) == static_cast<ssize_t>(request.size())) {
      std::array<char, 4096> part;
      ssize_t size = -1;
      const gint64 end = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;
      while (size != 0 && g_get_monotonic_time() < end) {
        g_main_context_iteration(nullptr, FALSE);
        size = recv(fd, part.data(), part.size(), MSG_DONTWAIT);
        if (size > 0) reply.append(part.data(), static_cast<size_t>(size));
      }
    }
    close(fd);
    while (g_main_context_iteration(nullptr, FALSE)) {
    }
    return reply;
  }

  Settings settings_;
  Server server_{settings_};
  uint16_t port_ = 0;
};

// Probes ask every second, for months. libsoup's own listener left 336 bytes of each connection.
TEST_F(Listener, ConnectionsLeaveNothing) {
  constexpr int kCount = 500;
  const std::string request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(ask(request).starts_with("HTTP/1.1 200 "));
  const size_t before = mallinfo2().uordblks;
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(ask(request).starts_with("HTTP/1.1 200 "));
  EXPECT_LT(mallinfo2().uordblks, before + kCount * 50);
}

TEST_F(Listener, WhoGoesBeforeItIsAcceptedHarmsNobody) {
  const linger at_once = {.l_onoff = 1, .l_linger = 0};
  for (int i = 0; i < 20; ++i) {
    const int fd = connected();
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
  }
  EXPECT_TRUE(ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

TEST(Listening, OnAPortThatIsTakenSaysSo) {
  Settings first;
  first.port = 0;
  Server server(first);
  ASSERT_TRUE(server.listen().ok());
  const std::string url = server.url();
  EXPECT_TRUE(url.starts_with("http://127.0.0.1:")) << url;
  Settings second;
  second.port = std::stoi(url.substr(url.rfind(':') + 1));
  Server other(second);
  const auto listening = other.listen();
  ASSERT_FALSE(listening.ok());
  EXPECT_NE(listening.error().message.find("--port"), std::string::npos)
      << listening.error().message;
}

}  // namespace
}  // namespace minicpmo::call_server
