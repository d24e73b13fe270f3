#include "realtime_json.h"

#include <glib.h>

#include <algorithm>
#include <cmath>

namespace minicpmo::call_server {
namespace {

constexpr int kMaxDepth = 16;  // the API's own events have seven levels

// Levels of arrays and objects. The parser would take any number.
int depth(std::string_view text) {
  int level = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '{' || c == '[') deepest = std::max(deepest, ++level);
    if (c == '}' || c == ']') --level;
  }
  return deepest;
}

// Nothing is asked for.
bool is_unset(const Json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.is_null() || ((value.is_array() || value.is_object()) && value.empty());
}

}  // namespace

MaybeError error(const char* code, const std::string& param, const std::string& message) {
  return EventError{code, message, param};
}

MaybeError wrong_type(const std::string& param, const char* expected) {
  return error("invalid_type", param, "'" + param + "' must be " + expected + ".");
}

MaybeError unsupported(const std::string& param, const std::string& why) {
  return error("unsupported_parameter", param, "'" + param + "' is not supported: " + why);
}

MaybeError check_members(const Json& object, const std::string& path,
                         std::initializer_list<Member> known) {
  for (const auto& [name, value] : object.items()) {
    const auto member = std::find_if(
        known.begin(), known.end(), [&wanted = name](const Member& m) { return wanted == m.name; });
    const std::string param = path + excerpt(name);
    if (member == known.end())
      return error("unknown_parameter", param, "Unknown parameter: '" + param + "'.");
    if (member->use == Use::kRefused && !is_unset(value)) return unsupported(param, member->why);
  }
  return {};
}

std::string excerpt(std::string_view text) {
  constexpr size_t kLongest = 64;
  if (text.size() <= kLongest) return std::string(text);
  size_t end = kLongest;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "...";
}

MaybeError parse_object(std::string_view text, size_t max_bytes, Json& object) {
  if (text.size() > max_bytes)
    return error("message_too_long", "",
                 "The message has " + std::to_string(text.size()) + " bytes; at most " +
                     std::to_string(max_bytes) + " are taken.");
  if (depth(text) > kMaxDepth)
    return error("invalid_json", "", "The message is nested too deeply.");
  object = Json::parse(text, nullptr, false);
  if (object.is_discarded()) return error("invalid_json", "", "The message is not JSON in UTF-8.");
  if (!object.is_object()) return error("invalid_json", "", "The message is not a JSON object.");
  return {};
}

MaybeError read_string(const Json& object, const std::string& path, const char* name,
                       size_t max_bytes, std::string& value) {
  const std::string param = path + name;
  const auto found = object.find(name);
  if (found == object.end())
    return error("missing_required_parameter", param,
                 "Missing required parameter: '" + param + "'.");
  if (!found->is_string()) return wrong_type(param, "a string");
  const std::string& text = found->get_ref<const std::string&>();
  if (text.size() > max_bytes)
    return error("string_above_max_length", param,
                 "'" + param + "' has " + std::to_string(text.size()) + " bytes; at most " +
                     std::to_string(max_bytes) + " are taken.");
  value = text;
  return {};
}

MaybeError read_number(const Json& object, const std::string& path, const char* name, double low,
                       double high, double& value) {
  const auto found = object.find(name);
  if (found == object.end()) return {};
  const std::string param = path + name;
  if (!found->is_number()) return wrong_type(param, "a number");
  const double number = found->get<double>();
  // Not the other way around: NaN is not between them either.
  if (!(number >= low && number <= high))
    return error("invalid_value", param,
                 "'" + param + "' must be between " + Json(low).dump() + " and " +
                     Json(high).dump() + ", not " + excerpt(found->dump()) + ".");
  value = number;
  return {};
}

MaybeError read_flag(const Json& object, const std::string& path, const char* name, bool& value) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) return {};
  if (!found->is_boolean()) return wrong_type(path + name, "true or false");
  value = found->get<bool>();
  return {};
}

MaybeError read_integer(const Json& object, const std::string& path, const char* name, double low,
                        double high, int& value) {
  double number = value;
  if (auto bad = read_number(object, path, name, low, high, number)) return bad;
  if (number != std::floor(number)) return wrong_type(path + name, "an integer");
  value = static_cast<int>(number);
  return {};
}

Json error_object(const EventError& error, const Json& client_event_id) {
  return {{"type", error.type},
          {"code", error.code},
          {"message", error.message},
          {"param", error.param.empty() ? Json() : Json(error.param)},
          {"event_id", client_event_id}};
}

MaybeError read_audio_data(const Json& object, const char* name, std::string& pcm) {
  std::string text;
  if (auto bad = read_string(object, "", name, kAnyLength, text)) return bad;
  // g_base64_decode passes over what it does not know.
  const size_t end =
      text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
  const std::string_view padding =
      end == text.npos ? std::string_view() : std::string_view(text).substr(end);
  if (text.size() % 4 != 0 || (!padding.empty() && padding != "=" && padding != "=="))
    return error("invalid_value", name, std::string("'") + name + "' is no base64.");
  gsize size = 0;
  guchar* const bytes = g_base64_decode(text.c_str(), &size);
  pcm.assign(reinterpret_cast<const char*>(bytes), size);
  g_free(bytes);
  if (size % 2 != 0)
    return error("invalid_value", name,
                 std::string("'") + name + "' has half a sample: send 16-bit samples.");
  return {};
}

}  // namespace minicpmo::call_server
