#include "admission.h"

#include <arpa/inet.h>
#include <glib.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

namespace minicpmo::call_server {

namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = g_ascii_tolower(c);
  return result;
}

// What the events of `address` are counted under.
std::string counted_as(const std::string& address) {
  in6_addr v6;
  if (inet_pton(AF_INET6, address.c_str(), &v6) != 1) return address;
  if (IN6_IS_ADDR_V4MAPPED(&v6)) {
    char v4[INET_ADDRSTRLEN];
    return inet_ntop(AF_INET, v6.s6_addr + 12, v4, sizeof v4);
  }
  memset(v6.s6_addr + 8, 0, 8);
  char network[INET6_ADDRSTRLEN];
  return std::string(inet_ntop(AF_INET6, &v6, network, sizeof network)) + "/64";
}

struct Authority {
  std::string host;  // lower case; an IPv6 address in its brackets
  int port;          // as given, or the default
  bool operator==(const Authority&) const = default;
};

bool is_host(std::string_view host) {
  if (host.starts_with('[')) {
    if (host.size() < 4 || !host.ends_with(']')) return false;
    in6_addr v6;
    return inet_pton(AF_INET6, std::string(host.substr(1, host.size() - 2)).c_str(), &v6) == 1;
  }
  return !host.empty() && std::all_of(host.begin(), host.end(), [](char c) {
    return g_ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
  });
}

// HOST or HOST:PORT.
std::optional<Authority> authority(std::string_view text, int default_port) {
  const size_t colon = text.rfind(':');
  const size_t bracket = text.rfind(']');
  const bool has_port =
      colon != text.npos && (bracket == std::string_view::npos || bracket < colon);
  const std::string_view host = has_port ? text.substr(0, colon) : text;
  if (!is_host(host)) return std::nullopt;
  int port = default_port;
  if (has_port) {
    const std::string_view digits = text.substr(colon + 1);
    if (digits.empty() || digits.size() > 5) return std::nullopt;
    port = 0;
    for (char c : digits) {
      if (!g_ascii_isdigit(c)) return std::nullopt;
      port = 10 * port + (c - '0');
    }
    if (port < 1 || port > 65535) return std::nullopt;
  }
  return Authority{lower(host), port};
}

struct Origin {
  std::string scheme;
  Authority where;
  bool operator==(const Origin&) const = default;
};

int default_port(const std::string& scheme) {
  if (scheme == "http") return 80;
  return scheme == "https" ? 443 : 0;
}

std::optional<Origin> parse_origin(std::string_view text) {
  const size_t end = text.find("://");
  if (end == text.npos || end == 0 || !g_ascii_isalpha(text[0])) return std::nullopt;
  for (char c : text.substr(0, end)) {
    if (!g_ascii_isalnum(c) && c != '+' && c != '-' && c != '.') return std::nullopt;
  }
  const std::string scheme = lower(text.substr(0, end));
  const auto where = authority(text.substr(end + 3), default_port(scheme));
  if (!where) return std::nullopt;
  return Origin{scheme, *where};
}

}  // namespace

RateLimit::RateLimit(double events, double seconds, size_t max_addresses)
    : events_(events), per_second_(events / seconds), max_addresses_(max_addresses) {}

double RateLimit::take(const std::string& address, double now) {
  const std::string key = counted_as(address);
  auto found = buckets_.find(key);
  if (found == buckets_.end()) {
    if (buckets_.size() >= max_addresses_) {
      const double soonest = forget_full_ones(now);
      if (buckets_.size() >= max_addresses_) return soonest;
    }
    found = buckets_.emplace(key, Bucket{events_, now}).first;
  }
  Bucket& bucket = found->second;
  const double passed = std::max(0.0, now - bucket.at);
  bucket.tokens = std::min(events_, bucket.tokens + passed * per_second_);
  bucket.at = std::max(bucket.at, now);
  constexpr double kRounding = 1e-9;  // whoever comes after exactly that time has waited enough
  if (bucket.tokens < 1 - kRounding) return (1 - bucket.tokens) / per_second_;
  bucket.tokens -= 1;
  return 0;
}

// A full bucket is as good as none. Returns after how many seconds the next one will be full.
double RateLimit::forget_full_ones(double now) {
  double soonest = std::numeric_limits<double>::infinity();
  for (auto at = buckets_.begin(); at != buckets_.end();) {
    const Bucket& bucket = at->second;
    const double full_at = bucket.at + (events_ - bucket.tokens) / per_second_;
    if (full_at <= now) {
      at = buckets_.erase(at);
    } else {
      soonest = std::min(soonest, full_at - now);
      ++at;
    }
  }
  return soonest;
}

bool authorized(std::string_view authorization, std::string_view token) {
  if (token.empty()) return true;
  constexpr std::string_view kScheme = "Bearer ";
  if (authorization.size() < kScheme.size() ||
      g_ascii_strncasecmp(authorization.data(), kScheme.data(), kScheme.size()) != 0)
    return false;
  authorization.remove_prefix(kScheme.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  // The time depends on what the client sent, and on nothing of the token.
  volatile unsigned char different = authorization.size() != token.size();
  for (size_t i = 0; i < authorization.size(); ++i)
    different = different | static_cast<unsigned char>(authorization[i] ^ token[i % token.size()]);
  return different == 0;
}

bool origin_allowed(std::string_view origin, std::string_view host,
                    const std::vector<std::string>& allowed) {
  if (origin.empty()) return true;
  const auto page = parse_origin(origin);
  for (const std::string& one : allowed) {
    if (one == "*") return true;
    if (page && page == parse_origin(one)) return true;
  }
  // https too: a proxy in front may speak TLS.
  if (!page || (page->scheme != "http" && page->scheme != "https")) return false;
  return authority(host, default_port(page->scheme)) == page->where;
}

bool is_origin(std::string_view origin) {
  return parse_origin(origin).has_value();
}

bool names_loopback(std::string_view host) {
  const auto where = authority(host, 80);
  if (!where) return false;
  if (where->host == "localhost" || where->host == "[::1]") return true;
  in_addr v4;
  return inet_pton(AF_INET, where->host.c_str(), &v4) == 1 &&
         (ntohl(v4.s_addr) >> 24) == IN_LOOPBACKNET;
}

}  // namespace minicpmo::call_server
