// The shapes of OpenAI's Realtime events: reads what a client sent, and makes the objects that
// events carry. Names differ between the API of 2025 and the beta before it; whatever reads takes
// both, and what is made follows RealtimeConfig::beta.
#pragma once

#include <string>
#include <vector>

#include "realtime.h"
#include "realtime_json.h"

namespace minicpmo::call_server {

// What session.update changes.
struct RealtimeConfig {
  std::string instructions;
  std::string voice;
  TurnDetection turn_detection;
  bool beta = false;  // names and shapes from before 2025
};

// A message of a conversation.
struct RealtimeItem {
  std::string id;
  bool assistant = false;
  bool audio = false;  // the content is sound; its text is what was said, if that is known
  std::string status = "completed";
  bool has_content = false;
  std::string text;
};

// Takes the settings in `session` into `config`; with an error, only some of them.
MaybeError read_session(const Json& session, const std::vector<std::string>& voices,
                        RealtimeConfig& config);
// The `item` of conversation.item.create: a user's message of text.
MaybeError read_message(const Json& item, RealtimeItem& message);
// The `response` of response.create. `metadata` is what is to be sent back.
MaybeError read_response(const Json& response, Json& metadata);

Json session_object(const RealtimeConfig& config, const std::string& id, const std::string& model);
Json item_object(const RealtimeItem& item, bool beta);
// The name that a server's event has for this client.
std::string event_name(const char* name, bool beta);

}  // namespace minicpmo::call_server
