// JSON from clients nobody trusts: parsed within bounds, each value checked before it is used.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace minicpmo::call_server {

// Keeps the order in which members were put in: type and event_id come first in what is sent.
using Json = nlohmann::ordered_json;

// What an error event says.
struct EventError {
  std::string code;
  std::string message;
  std::string param;  // the path of the value that is wrong; may be empty
  std::string type = "invalid_request_error";
};
using MaybeError = std::optional<EventError>;

MaybeError error(const char* code, const std::string& param, const std::string& message);
MaybeError wrong_type(const std::string& param, const char* expected);
MaybeError unsupported(const std::string& param, const std::string& why);
Json error_object(const EventError& error, const Json& client_event_id);
// `text` for a message: its first bytes, if it is long.
std::string excerpt(std::string_view text);

// One JSON object from bytes that nobody has checked, as deep as events may be.
MaybeError parse_object(std::string_view text, size_t max_bytes, Json& object);

// What is done with a member of an object: its value is read, ignored, or refused unless it is
// empty, with the reason.
enum class Use { kRead, kIgnored, kRefused };
struct Member {
  const char* name;
  Use use;
  const char* why = "";
};
// Every member of `object` is in `known`, and none is refused. In all of these, `path` is the name
// of `object` in errors, with its dot.
MaybeError check_members(const Json& object, const std::string& path,
                         std::initializer_list<Member> known);

constexpr size_t kAnyLength = 1 << 20;  // of strings that the length of a message limits
// The value at `name` if it is there; a string must be.
MaybeError read_string(const Json& object, const std::string& path, const char* name,
                       size_t max_bytes, std::string& value);
MaybeError read_number(const Json& object, const std::string& path, const char* name, double low,
                       double high, double& value);
MaybeError read_integer(const Json& object, const std::string& path, const char* name, double low,
                        double high, int& value);
// Base64 (RFC 4648, padded) of 16-bit samples.
MaybeError read_audio_data(const Json& object, const char* name, std::string& pcm);
MaybeError read_flag(const Json& object, const std::string& path, const char* name, bool& value);

}  // namespace minicpmo::call_server
