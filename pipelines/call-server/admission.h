// What a public server refuses. No clock of its own: times are seconds of a monotonic clock, so
// that tests need not wait. Not thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace minicpmo::call_server {

// So many events in so many seconds for each address, refilled evenly (token bucket). Remembers at
// most `max_addresses`; when they are all in use, new ones are refused. IPv6 addresses of one /64
// count as one: that is what one host gets, and it may use a new one for every event.
class RateLimit {
 public:
  RateLimit(double events, double seconds, size_t max_addresses = 10000);
  // 0 if the event may happen now (and is counted); otherwise after how many seconds it may.
  double take(const std::string& address, double now);
  size_t addresses() const { return buckets_.size(); }

 private:
  struct Bucket {
    double tokens;
    double at;
  };
  double forget_full_ones(double now);
  double events_, per_second_;
  size_t max_addresses_;
  std::unordered_map<std::string, Bucket> buckets_;
};

// Whether `authorization` (the header's value, may be empty) carries `token` as a bearer token.
// True for every header if `token` is empty. Takes as long for a wrong token as for the right one.
bool authorized(std::string_view authorization, std::string_view token);

// Whether a browser's page of `origin` (header Origin) may use the server: it is in `allowed` ("*"
// allows all), or is the server itself (`host`, header Host). No origin: not a browser, allowed.
bool origin_allowed(std::string_view origin, std::string_view host,
                    const std::vector<std::string>& allowed);

// Whether `origin` is one as browsers send it: scheme://host, and maybe :port.
bool is_origin(std::string_view origin);

// Whether `host` (header Host) is localhost or a loopback address. A server on loopback that wants
// no token must refuse any other name: a page of evil.example whose address changes to 127.0.0.1
// would be of the same origin (DNS rebinding).
bool names_loopback(std::string_view host);

}  // namespace minicpmo::call_server
