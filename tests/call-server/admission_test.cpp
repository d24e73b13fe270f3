// Rate limit, bearer token, origins.
#include "admission.h"

#include <gtest/gtest.h>

namespace {

using minicpmo::call_server::authorized;
using minicpmo::call_server::is_origin;
using minicpmo::call_server::names_loopback;
using minicpmo::call_server::origin_allowed;
using minicpmo::call_server::RateLimit;

TEST(RateLimit, BurstThenEvenly) {
  RateLimit limit(10, 60);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take("192.0.2.1", 100), 0) << i;
  EXPECT_NEAR(limit.take("192.0.2.1", 100), 6, 1e-6);
  EXPECT_NEAR(limit.take("192.0.2.1", 102), 4, 1e-6);  // asking again costs nothing
  EXPECT_EQ(limit.take("192.0.2.1", 106), 0);
  EXPECT_NEAR(limit.take("192.0.2.1", 106), 6, 1e-6);
  // Never more than the burst, however long nothing was asked.
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take("192.0.2.1", 100000), 0) << i;
  EXPECT_GT(limit.take("192.0.2.1", 100000), 0);
}

TEST(RateLimit, WhoWaitsAsToldIsLetIn) {
  RateLimit limit(3, 7);
  double now = 0.1;
  for (int i = 0; i < 1000; ++i) {
    const double wait = limit.take("a", now);
    if (wait > 0) {
      now += wait;
      ASSERT_EQ(limit.take("a", now), 0) << i;
    }
  }
}

TEST(RateLimit, AddressesDoNotShare) {
  RateLimit limit(1, 60);
  EXPECT_EQ(limit.take("192.0.2.1", 0), 0);
  EXPECT_GT(limit.take("192.0.2.1", 0), 0);
  EXPECT_EQ(limit.take("192.0.2.2", 0), 0);
  EXPECT_GT(limit.take("::ffff:192.0.2.2", 0), 0);  // the same, through an IPv6 socket
}

TEST(RateLimit, OneHostsIpv6AddressesShare) {
  RateLimit limit(1, 60);
  EXPECT_EQ(limit.take("2001:db8:1:2::1", 0), 0);
  EXPECT_GT(limit.take("2001:db8:1:2:ffff::9", 0), 0);
  EXPECT_EQ(limit.take("2001:db8:1:3::1", 0), 0);
}

TEST(RateLimit, RemembersNoMoreThanItMay) {
  RateLimit limit(2, 10, 100);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(limit.take(std::to_string(i), 0), 0);
  EXPECT_NEAR(limit.take("new", 0), 5, 1e-6);  // when the first bucket is full again
  EXPECT_EQ(limit.addresses(), 100u);
  EXPECT_EQ(limit.take("7", 0), 0);  // a known one is not troubled
  EXPECT_EQ(limit.take("new", 5), 0);
  EXPECT_EQ(limit.addresses(), 2u);  // "7", and the new one
}

TEST(RateLimit, AClockThatGoesBackGivesNothing) {
  RateLimit limit(1, 10);
  EXPECT_EQ(limit.take("a", 100), 0);
  EXPECT_NEAR(limit.take("a", 50), 10, 1e-6);
  EXPECT_NEAR(limit.take("a", 105), 5, 1e-6);
}

TEST(Authorized, TheTokenAndNothingElse) {
  const std::string token = "s3cret-Token~+/=";
  EXPECT_TRUE(authorized("Bearer " + token, token));
  EXPECT_TRUE(authorized("bearer " + token, token));
  EXPECT_TRUE(authorized("BEARER   " + token, token));
  for (const std::string& header : std::vector<std::string>{
           std::string(), token, std::string("Bearer"), std::string("Bearer "), "Bearer" + token,
           "Basic " + token, "Bearer " + token + " ", "Bearer " + token + token,
           "Bearer " + token.substr(1), "Bearer S3cret-Token~+/=", " Bearer " + token,
           "Bearer " + token + std::string(1, '\0')})
    EXPECT_FALSE(authorized(header, token)) << header;
}

TEST(Authorized, EveryCharacterAndTheLengthCount) {
  const std::string token = "0123456789abcdef";
  for (size_t i = 0; i < token.size(); ++i) {
    std::string wrong = token;
    wrong[i] ^= 1;
    EXPECT_FALSE(authorized("Bearer " + wrong, token)) << i;
    EXPECT_FALSE(authorized("Bearer " + token.substr(0, i), token)) << i;
  }
}

TEST(Authorized, NoTokenIsNeededIfThereIsNone) {
  EXPECT_TRUE(authorized("", ""));
  EXPECT_TRUE(authorized("Bearer x", ""));
}

TEST(Origin, TheServersOwnPage) {
  EXPECT_TRUE(origin_allowed("", "example.org", {}));  // no browser
  EXPECT_TRUE(origin_allowed("http://127.0.0.1:8080", "127.0.0.1:8080", {}));
  EXPECT_TRUE(origin_allowed("http://[::1]:8080", "[::1]:8080", {}));
  EXPECT_TRUE(origin_allowed("https://example.org", "example.org", {}));
  EXPECT_TRUE(origin_allowed("https://example.org", "example.org:443", {}));
  EXPECT_TRUE(origin_allowed("http://example.org", "Example.org:80", {}));
}

TEST(Origin, OthersAreRefused) {
  const char* const refused[][2] = {
      {"http://evil.example", "127.0.0.1:8080"},
      {"http://127.0.0.1:8081", "127.0.0.1:8080"},
      {"http://127.0.0.1", "127.0.0.1:8080"},
      {"https://example.org", "example.org:80"},
      {"https://example.org.evil.example", "example.org"},
      {"https://evil-example.org", "example.org"},
      {"https://www.example.org", "example.org"},
      {"https://example.org/", "example.org"},
      {"https://user@example.org", "example.org"},
      {"example.org", "example.org"},
      {"://example.org", "example.org"},
      {"ftp://example.org", "example.org"},
      {"null", "example.org"},
      {"null", "null"},
      {"http://", ""},
      {"http://example.org", ""},
      {"http://[::1", "[::1"},
      {"http://a:b:80", "a:b:80"},
  };
  for (const auto& [origin, host] : refused)
    EXPECT_FALSE(origin_allowed(origin, host, {})) << origin << " at " << host;
}

TEST(Origin, TheAllowedOnes) {
  const std::vector<std::string> allowed = {"https://app.example", "http://dev.example:3000"};
  EXPECT_TRUE(origin_allowed("https://app.example", "h", allowed));
  EXPECT_TRUE(origin_allowed("https://app.example:443", "h", allowed));
  EXPECT_TRUE(origin_allowed("HTTPS://App.Example", "h", allowed));
  EXPECT_TRUE(origin_allowed("http://dev.example:3000", "h", allowed));
  EXPECT_FALSE(origin_allowed("http://app.example", "h", allowed));
  EXPECT_FALSE(origin_allowed("https://app.example:444", "h", allowed));
  EXPECT_FALSE(origin_allowed("http://dev.example", "h", allowed));
  EXPECT_FALSE(origin_allowed("null", "h", allowed));
  EXPECT_TRUE(origin_allowed("null", "h", {"*"}));
  EXPECT_TRUE(origin_allowed("https://anything.example", "h", {"*"}));
}

TEST(Origin, WhatIsOne) {
  for (const char* one : {"https://a", "http://a-b.example:1", "http://[::1]:65535"})
    EXPECT_TRUE(is_origin(one)) << one;
  for (const char* none : {"", "*", "a", "https://", "https://a/", "https://a:0", "https://a:65536",
                           "https://a:", "https://a b", "https://[::g]", "1://a", "h*://a"})
    EXPECT_FALSE(is_origin(none)) << none;
}

TEST(Host, OfLoopback) {
  for (const char* one : {"localhost", "LOCALHOST:8080", "127.0.0.1", "127.9.9.9:1", "[::1]:8080"})
    EXPECT_TRUE(names_loopback(one)) << one;
  for (const char* other : {"", "evil.example", "localhost.evil.example:8080", "127.0.0.1.example",
                            "128.0.0.1", "0.0.0.0", "[::2]:8080", "::1", "localhost:x"})
    EXPECT_FALSE(names_loopback(other)) << other;
}

}  // namespace
