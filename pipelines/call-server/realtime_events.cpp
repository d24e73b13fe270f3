#include "realtime_events.h"

#include <algorithm>

namespace minicpmo::call_server {
namespace {

constexpr size_t kMaxIdBytes = 32;
constexpr double kMaxPaddingMs = 10000;
constexpr double kMaxSilenceMs = 60000;

MaybeError check_modalities(const Json& object, const std::string& path, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return {};
  const std::string param = path + name;
  if (!found->is_array()) return wrong_type(param, "an array");
  bool audio = false;
  for (const Json& modality : *found) {
    if (modality != "audio" && modality != "text")
      return error("invalid_value", param, "'" + param + "' may hold \"audio\" and \"text\".");
    audio = audio || modality == "audio";
  }
  if (!audio) return unsupported(param, "answers are always spoken, with their text as captions.");
  return {};
}

MaybeError read_turn_detection(const Json& value, const std::string& path,
                               TurnDetection& detection) {
  if (value.is_null()) {
    detection.enabled = false;
    return {};
  }
  if (!value.is_object()) return wrong_type(path, "an object or null");
  const std::string inner = path + ".";
  const auto type = value.find("type");
  // What OpenAI's own client library asks for by itself: there is one kind of detection.
  const bool semantic = type != value.end() && *type == "semantic_vad";
  if (type != value.end() && *type != "server_vad" && !semantic)
    return error("invalid_value", inner + "type",
                 "'" + inner + "type' must be \"server_vad\" or \"semantic_vad\", not " +
                     excerpt(type->dump()) + ".");
  if (auto bad = semantic ? check_members(value, inner,
                                          {{"type", Use::kRead},
                                           {"eagerness", Use::kIgnored},
                                           {"interrupt_response", Use::kRead},
                                           {"create_response", Use::kRead}})
                          : check_members(value, inner,
                                          {{"type", Use::kRead},
                                           {"threshold", Use::kRead},
                                           {"prefix_padding_ms", Use::kRead},
                                           {"silence_duration_ms", Use::kRead},
                                           {"interrupt_response", Use::kRead},
                                           {"create_response", Use::kRead},
                                           {"idle_timeout_ms", Use::kRefused,
                                            "the server does not prompt silent users."}}))
    return bad;
  bool create = true;
  if (auto bad = read_flag(value, inner, "create_response", create)) return bad;
  if (!create)
    return unsupported(inner + "create_response",
                       "detected turns are always answered; set turn_detection to null to choose.");
  if (auto bad = read_number(value, inner, "threshold", 0, 1, detection.threshold)) return bad;
  if (auto bad = read_integer(value, inner, "prefix_padding_ms", 0, kMaxPaddingMs,
                              detection.prefix_padding_ms))
    return bad;
  if (auto bad = read_integer(value, inner, "silence_duration_ms", 0, kMaxSilenceMs,
                              detection.silence_duration_ms))
    return bad;
  if (auto bad = read_flag(value, inner, "interrupt_response", detection.interrupt_response))
    return bad;
  detection.enabled = true;
  return {};
}

MaybeError read_voice(const Json& object, const std::string& path,
                      const std::vector<std::string>& voices, std::string& voice) {
  if (!object.contains("voice")) return {};
  std::string name;
  if (auto bad = read_string(object, path, "voice", kAnyLength, name)) return bad;
  if (std::find(voices.begin(), voices.end(), name) == voices.end()) {
    std::string names;
    for (const std::string& known : voices) names += (names.empty() ? "" : ", ") + known;
    return error("invalid_value", path + "voice",
                 "There is no voice '" + excerpt(name) + "'. " +
                     (names.empty() ? "This server has only one: leave out the voice."
                                    : "This server has: " + names + "."));
  }
  voice = name;
  return {};
}

// GA: {"type": "audio/pcm", "rate": 24000}; the media track is Opus whatever it says.
MaybeError check_format(const Json& object, const std::string& path) {
  const auto found = object.find("format");
  if (found == object.end() || found->is_null()) return {};
  const std::string param = path + "format";
  if (!found->is_object()) return wrong_type(param, "an object");
  if (found->value("type", Json()) == "audio/pcm" && found->value("rate", Json(24000)) == 24000)
    return {};
  return unsupported(param, "only audio/pcm at 24000; on a media track the offer decides.");
}

MaybeError read_audio(const Json& audio, const std::vector<std::string>& voices,
                      RealtimeConfig& config) {
  if (!audio.is_object()) return wrong_type("session.audio", "an object");
  if (auto bad =
          check_members(audio, "session.audio.", {{"input", Use::kRead}, {"output", Use::kRead}}))
    return bad;
  const Json input = audio.value("input", Json::object());
  const Json output = audio.value("output", Json::object());
  if (!input.is_object()) return wrong_type("session.audio.input", "an object");
  if (!output.is_object()) return wrong_type("session.audio.output", "an object");
  if (auto bad = check_members(input, "session.audio.input.",
                               {{"format", Use::kRead},
                                {"turn_detection", Use::kRead},
                                {"transcription", Use::kIgnored},
                                {"noise_reduction", Use::kIgnored}}))
    return bad;
  if (auto bad =
          check_members(output, "session.audio.output.",
                        {{"format", Use::kRead}, {"voice", Use::kRead}, {"speed", Use::kRead}}))
    return bad;
  if (auto bad = check_format(input, "session.audio.input.")) return bad;
  if (auto bad = check_format(output, "session.audio.output.")) return bad;
  double speed = 1;
  if (auto bad = read_number(output, "session.audio.output.", "speed", 1, 1, speed)) return bad;
  if (const auto found = input.find("turn_detection"); found != input.end())
    if (auto bad = read_turn_detection(*found, "session.audio.input.turn_detection",
                                       config.turn_detection))
      return bad;
  return read_voice(output, "session.audio.output.", voices, config.voice);
}

const char kNoTools[] = "the model calls no functions.";
const char kNoTokens[] = "the server limits answers itself; leave it out or say \"inf\".";

MaybeError check_tokens(const Json& object, const std::string& path, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null() || *found == "inf") return {};
  return unsupported(path + name, kNoTokens);
}

MaybeError read_ga(const Json& session, const std::vector<std::string>& voices,
                   RealtimeConfig& config) {
  if (auto bad = check_members(
          session, "session.",
          {{"type", Use::kRead},
           {"instructions", Use::kRead},
           {"audio", Use::kRead},
           {"output_modalities", Use::kRead},
           {"max_output_tokens", Use::kRead},
           {"tools", Use::kRefused, kNoTools},
           {"prompt", Use::kRefused, "there are no stored prompts; set instructions."},
           {"model", Use::kIgnored},
           {"tool_choice", Use::kIgnored},
           {"parallel_tool_calls", Use::kIgnored},
           {"reasoning", Use::kIgnored},
           {"truncation", Use::kIgnored},
           {"tracing", Use::kIgnored},
           {"include", Use::kIgnored}}))
    return bad;
  if (session.value("type", Json("realtime")) != "realtime")
    return error("invalid_value", "session.type", "'session.type' must be \"realtime\".");
  if (auto bad = check_modalities(session, "session.", "output_modalities")) return bad;
  if (auto bad = check_tokens(session, "session.", "max_output_tokens")) return bad;
  if (const auto audio = session.find("audio"); audio != session.end())
    return read_audio(*audio, voices, config);
  return {};
}

MaybeError read_beta(const Json& session, const std::vector<std::string>& voices,
                     RealtimeConfig& config) {
  if (auto bad = check_members(session, "session.",
                               {{"instructions", Use::kRead},
                                {"modalities", Use::kRead},
                                {"voice", Use::kRead},
                                {"turn_detection", Use::kRead},
                                {"input_audio_format", Use::kRead},
                                {"output_audio_format", Use::kRead},
                                {"max_response_output_tokens", Use::kRead},
                                {"speed", Use::kRead},
                                {"tools", Use::kRefused, kNoTools},
                                {"model", Use::kIgnored},
                                {"tool_choice", Use::kIgnored},
                                {"temperature", Use::kIgnored},
                                {"input_audio_transcription", Use::kIgnored},
                                {"input_audio_noise_reduction", Use::kIgnored},
                                {"tracing", Use::kIgnored}}))
    return bad;
  for (const char* format : {"input_audio_format", "output_audio_format"})
    if (session.value(format, Json("pcm16")) != "pcm16")
      return unsupported(std::string("session.") + format,
                         "only pcm16; on a media track the offer decides.");
  double speed = 1;
  if (auto bad = read_number(session, "session.", "speed", 1, 1, speed)) return bad;
  if (auto bad = check_modalities(session, "session.", "modalities")) return bad;
  if (auto bad = check_tokens(session, "session.", "max_response_output_tokens")) return bad;
  if (const auto found = session.find("turn_detection"); found != session.end())
    if (auto bad = read_turn_detection(*found, "session.turn_detection", config.turn_detection))
      return bad;
  return read_voice(session, "session.", voices, config.voice);
}

// Whether these are the older names; those that are in both leave it as it is.
bool is_beta(const Json& session, bool now) {
  for (const char* name : {"type", "audio", "output_modalities", "max_output_tokens"})
    if (session.contains(name)) return false;
  for (const char* name :
       {"modalities", "voice", "turn_detection", "input_audio_format", "output_audio_format",
        "max_response_output_tokens", "input_audio_transcription", "input_audio_noise_reduction",
        "temperature", "speed"})
    if (session.contains(name)) return true;
  return now;
}

// The parts of a message, a line each.
MaybeError read_content(const Json& item, std::string& joined) {
  const auto content = item.find("content");
  if (content == item.end())
    return error("missing_required_parameter", "item.content",
                 "Missing required parameter: 'item.content'.");
  if (!content->is_array()) return wrong_type("item.content", "an array");
  for (size_t i = 0; i < content->size(); ++i) {
    const Json& part = (*content)[i];
    const std::string path = "item.content[" + std::to_string(i) + "]";
    if (!part.is_object()) return wrong_type(path, "an object");
    std::string kind, text;
    if (auto bad = read_string(part, path + ".", "type", kAnyLength, kind)) return bad;
    if (kind != "input_text")
      return unsupported(path + ".type", "parts are input_text, not '" + excerpt(kind) + "'.");
    if (auto bad = read_string(part, path + ".", "text", kAnyLength, text)) return bad;
    joined += (i > 0 ? "\n" : "") + text;
  }
  if (joined.find_first_not_of(" \t\r\n") == std::string::npos)
    return error("invalid_value", "item.content", "The message has no text.");
  return {};
}

}  // namespace

MaybeError read_session(const Json& session, const std::vector<std::string>& voices,
                        RealtimeConfig& config) {
  if (!session.is_object()) return wrong_type("session", "an object");
  config.beta = is_beta(session, config.beta);
  if (auto bad =
          config.beta ? read_beta(session, voices, config) : read_ga(session, voices, config))
    return bad;
  if (!session.contains("instructions")) return {};
  return read_string(session, "session.", "instructions", kAnyLength, config.instructions);
}

MaybeError read_message(const Json& item, RealtimeItem& message) {
  if (!item.is_object()) return wrong_type("item", "an object");
  std::string type, role;
  if (auto bad = read_string(item, "item.", "type", kAnyLength, type)) return bad;
  if (type != "message")
    return unsupported("item.type", "items are messages, not '" + excerpt(type) + "'.");
  if (auto bad = read_string(item, "item.", "role", kAnyLength, role)) return bad;
  if (role != "user")
    return unsupported("item.role", "messages are the user's; for others set instructions.");
  if (auto bad = check_members(item, "item.",
                               {{"id", Use::kRead},
                                {"type", Use::kRead},
                                {"role", Use::kRead},
                                {"content", Use::kRead},
                                {"object", Use::kIgnored},
                                {"status", Use::kIgnored}}))
    return bad;
  if (item.contains("id")) {
    if (auto bad = read_string(item, "item.", "id", kMaxIdBytes, message.id)) return bad;
    if (message.id.empty()) return error("invalid_value", "item.id", "'item.id' is empty.");
  }
  if (auto bad = read_content(item, message.text)) return bad;
  message.has_content = true;
  return {};
}

MaybeError read_response(const Json& response, Json& metadata) {
  if (!response.is_object()) return wrong_type("response", "an object");
  const char kSession[] = "it is the session's; use session.update.";
  if (auto bad = check_members(response, "response.",
                               {{"output_modalities", Use::kRead},
                                {"modalities", Use::kRead},
                                {"conversation", Use::kRead},
                                {"metadata", Use::kRead},
                                {"max_output_tokens", Use::kRead},
                                {"max_response_output_tokens", Use::kRead},
                                {"instructions", Use::kRefused, kSession},
                                {"audio", Use::kRefused, kSession},
                                {"voice", Use::kRefused, kSession},
                                {"input", Use::kRefused, "send conversation.item.create first."},
                                {"prompt", Use::kRefused, "there are no stored prompts."},
                                {"tools", Use::kRefused, kNoTools},
                                {"tool_choice", Use::kIgnored},
                                {"parallel_tool_calls", Use::kIgnored},
                                {"reasoning", Use::kIgnored},
                                {"temperature", Use::kIgnored},
                                {"output_audio_format", Use::kIgnored}}))
    return bad;
  for (const char* name : {"output_modalities", "modalities"})
    if (auto bad = check_modalities(response, "response.", name)) return bad;
  for (const char* name : {"max_output_tokens", "max_response_output_tokens"})
    if (auto bad = check_tokens(response, "response.", name)) return bad;
  if (response.value("conversation", Json("auto")) != "auto")
    return unsupported("response.conversation", "there is one conversation, \"auto\".");
  metadata = response.value("metadata", Json());
  if (!metadata.is_null() && !metadata.is_object())
    return wrong_type("response.metadata", "an object");
  return {};
}

Json session_object(const RealtimeConfig& config, const std::string& id, const std::string& model) {
  Json detection;
  if (config.turn_detection.enabled)
    detection = {{"type", "server_vad"},
                 {"threshold", config.turn_detection.threshold},
                 {"prefix_padding_ms", config.turn_detection.prefix_padding_ms},
                 {"silence_duration_ms", config.turn_detection.silence_duration_ms},
                 {"create_response", true},
                 {"interrupt_response", config.turn_detection.interrupt_response}};
  const Json voice = config.voice.empty() ? Json() : Json(config.voice);
  Json session = {{"id", id}, {"object", "realtime.session"}, {"model", model}};
  if (config.beta) {
    session["modalities"] = {"audio", "text"};
    session["instructions"] = config.instructions;
    session["voice"] = voice;
    session["input_audio_format"] = session["output_audio_format"] = "pcm16";
    session["input_audio_transcription"] = nullptr;
    session["turn_detection"] = detection;
    session["tools"] = Json::array();
    session["tool_choice"] = "none";
    session["max_response_output_tokens"] = "inf";
    return session;
  }
  const Json format = {{"type", "audio/pcm"}, {"rate", 24000}};
  session["type"] = "realtime";
  session["output_modalities"] = Json::array({"audio"});
  session["instructions"] = config.instructions;
  session["audio"] = {{"input",
                       {{"format", format},
                        {"transcription", nullptr},
                        {"noise_reduction", nullptr},
                        {"turn_detection", detection}}},
                      {"output", {{"format", format}, {"voice", voice}, {"speed", 1.0}}}};
  session["tools"] = Json::array();
  session["tool_choice"] = "none";
  session["max_output_tokens"] = "inf";
  return session;
}

Json item_object(const RealtimeItem& item, bool beta) {
  Json content = Json::array();
  if (item.has_content && item.assistant)
    content.push_back({{"type", beta ? "audio" : "output_audio"}, {"transcript", item.text}});
  else if (item.has_content && item.audio)
    content.push_back({{"type", "input_audio"}, {"transcript", nullptr}});
  else if (item.has_content)
    content.push_back({{"type", "input_text"}, {"text", item.text}});
  return {{"id", item.id},
          {"object", "realtime.item"},
          {"type", "message"},
          {"status", item.status},
          {"role", item.assistant ? "assistant" : "user"},
          {"content", content}};
}

std::string event_name(const char* name, bool beta) {
  const std::string text = name;
  if (!beta) return text;
  if (text == "conversation.item.added") return "conversation.item.created";
  if (text.starts_with("response.output_audio"))
    return "response.audio" + text.substr(std::string_view("response.output_audio").size());
  return text;
}

}  // namespace minicpmo::call_server
