#include "realtime_conversation.h"

#include <algorithm>
#include <utility>

namespace minicpmo::call_server {
namespace {

constexpr size_t kItems = 256;
constexpr size_t kResponses = 8;

}  // namespace

Conversation::Conversation(CallControl& control, const RealtimeConfig& config,
                           const RealtimeOptions& options, std::function<Json()> limits)
    : control_(control), config_(config), options_(options), limits_(std::move(limits)) {}

// ---------------------------------------------------------------- events

void Conversation::emit(const char* type, Json fields) {
  Json event = {{"type", event_name(type, config_.beta)},
                {"event_id", "event_" + options_.session_id + "_" + std::to_string(++events_)}};
  event.update(fields);
  // The model's text may end within a character; a client's never does.
  control_.send(event.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void Conversation::emit_error(const EventError& error, const Json& client_event_id) {
  emit("error", {{"error", error_object(error, client_event_id)}});
}

// ---------------------------------------------------------------- items

std::string Conversation::new_id(const char* prefix) {
  std::string id;
  do {
    id = std::string(prefix) + "_" + options_.session_id + "_" + std::to_string(++ids_);
  } while (find(id));
  return id;
}

std::shared_ptr<RealtimeItem> Conversation::find(const std::string& id) const {
  const auto found = std::find_if(items_.begin(), items_.end(),
                                  [&id](const auto& item) { return item->id == id; });
  return found == items_.end() ? nullptr : *found;
}

void Conversation::add(const std::shared_ptr<RealtimeItem>& item) {
  emit("conversation.item.added", {{"previous_item_id", last_id_.empty() ? Json() : Json(last_id_)},
                                   {"item", item_object(*item, config_.beta)}});
  items_.push_back(item);
  last_id_ = item->id;
  if (items_.size() > kItems) items_.pop_front();
}

void Conversation::add_whole(const RealtimeItem& item) {
  const Json previous = last_id_.empty() ? Json() : Json(last_id_);
  add(std::make_shared<RealtimeItem>(item));
  if (!config_.beta)
    emit("conversation.item.done",
         {{"previous_item_id", previous}, {"item", item_object(item, config_.beta)}});
}

void Conversation::remove(const std::string& id) {
  std::erase_if(items_, [&id](const auto& item) { return item->id == id; });
  if (last_id_ == id) last_id_ = items_.empty() ? "" : items_.back()->id;
  emit("conversation.item.deleted", {{"item_id", id}});
}

int Conversation::sound_ms(const std::string& item_id) const {
  for (const RealtimeResponse& response : responses_) {
    if (response.item->id != item_id) continue;
    return response.sound == RealtimeResponse::Sound::kPlaying
               ? milliseconds(options_.seconds() - response.sound_began)
               : response.sound_ms;
  }
  return -1;
}

// ---------------------------------------------------------------- responses

Json Conversation::response_object(const RealtimeResponse& response, const char* status,
                                   const Json& details) {
  Json output = Json::array();
  if (response.item->has_content) output.push_back(item_object(*response.item, config_.beta));
  Json object = {{"object", "realtime.response"},
                 {"id", response.id},
                 {"status", status},
                 {"status_details", details},
                 {"output", output},
                 {"conversation_id", "conv_" + options_.session_id}};
  const Json voice = config_.voice.empty() ? Json() : Json(config_.voice);
  if (config_.beta) {
    object["modalities"] = {"audio", "text"};
    object["voice"] = voice;
  } else {
    object["output_modalities"] = Json::array({"audio"});
    object["audio"] = {{"output", {{"voice", voice}}}};
  }
  object["usage"] = nullptr;
  object["metadata"] = response.metadata;
  return object;
}

// The fields that say which part of which answer an event is about.
Json Conversation::place(const RealtimeResponse& response) const {
  return {{"response_id", response.id},
          {"item_id", response.item->id},
          {"output_index", 0},
          {"content_index", 0}};
}

void Conversation::begin(std::optional<uint64_t> turn, const Json& metadata) {
  if (responding()) finish(responses_.back(), "cancelled", "turn_detected");
  RealtimeResponse response;
  response.id = new_id("resp");
  response.turn = turn;
  response.metadata = metadata;
  response.item = std::make_shared<RealtimeItem>();
  response.item->id = new_id("item");
  response.item->assistant = response.item->audio = true;
  response.item->status = "in_progress";
  responses_.push_back(response);
  if (responses_.size() > kResponses) responses_.pop_front();
  emit("response.created",
       {{"response", response_object(responses_.back(), "in_progress", nullptr)}});
  emit("rate_limits.updated", {{"rate_limits", limits_()}});
}

void Conversation::create_response(const Json& metadata, bool push_to_talk) {
  unwanted_ = false;  // an earlier one would have made the elements refuse this one
  begin({}, metadata);
  responses_.back().push_to_talk = push_to_talk;
}

// The answer's item and its one part, before the first thing that is said about them.
void Conversation::open_content(RealtimeResponse& response) {
  RealtimeItem& item = *response.item;
  if (item.has_content) return;
  emit("response.output_item.added", {{"response_id", response.id},
                                      {"output_index", 0},
                                      {"item", item_object(item, config_.beta)}});
  add(response.item);
  item.has_content = true;
  Json fields = place(response);
  fields["part"] = {{"type", "audio"}, {"transcript", ""}};
  emit("response.content_part.added", fields);
}

void Conversation::append(RealtimeResponse& response, std::string_view text) {
  if (text.empty()) return;
  open_content(response);
  response.item->text += text;
  Json fields = place(response);
  fields["delta"] = text;
  emit("response.output_audio_transcript.delta", fields);
}

// Words of the whole answer that have not been told one by one. An answer that goes on after a
// false interruption starts at the beginning of the word at which it stopped, or earlier.
void Conversation::append_rest(RealtimeResponse& response, std::string_view whole) {
  const std::string& told = response.item->text;
  const size_t at = whole.rfind(told, response.heard_before);
  if (at == std::string_view::npos) return;
  append(response, whole.substr(at + told.size()));
}

void Conversation::finish(RealtimeResponse& response, const char* status, const char* reason,
                          const EventError* why) {
  response.done = true;
  RealtimeItem& item = *response.item;
  item.status = std::string_view(status) == "completed" ? "completed" : "incomplete";
  if (item.has_content) {
    emit("response.output_audio.done", place(response));
    Json fields = place(response);
    fields["transcript"] = item.text;
    emit("response.output_audio_transcript.done", fields);
    fields = place(response);
    fields["part"] = {{"type", "audio"}, {"transcript", item.text}};
    emit("response.content_part.done", fields);
    const Json object = item_object(item, config_.beta);
    if (!config_.beta) emit("conversation.item.done", {{"item", object}});
    emit("response.output_item.done",
         {{"response_id", response.id}, {"output_index", 0}, {"item", object}});
  }
  Json details = {{"type", status}};
  if (*reason) details["reason"] = reason;
  if (why) details["error"] = {{"type", why->type}, {"code", why->code}, {"message", why->message}};
  if (item.status == "completed") details = nullptr;
  emit("response.done", {{"response", response_object(response, status, details)}});
}

// Nothing more of this answer is heard.
void Conversation::silence(RealtimeResponse& response) {
  if (response.sound == RealtimeResponse::Sound::kPlaying) {
    response.sound_ms = milliseconds(options_.seconds() - response.sound_began);
    emit("output_audio_buffer.cleared", {{"response_id", response.id}});
  }
  response.sound = RealtimeResponse::Sound::kOver;
}

// What was not heard is no part of the conversation. The API's clients learn the time only; the
// words are in the item from now on.
void Conversation::truncate(RealtimeResponse& response, std::string_view heard) {
  response.heard = std::max(response.heard_before, heard.size());
  if (std::exchange(response.interrupted, true) || !response.item->has_content) return;
  response.item->text = heard.substr(std::min(response.heard_before, heard.size()));
  emit("conversation.item.truncated",
       {{"item_id", response.item->id}, {"content_index", 0}, {"audio_end_ms", response.sound_ms}});
}

bool Conversation::is_responding(const std::string& id) const {
  return responding() && responses_.back().id == id;
}

void Conversation::cancel() {
  RealtimeResponse& response = responses_.back();
  finish(response, "cancelled", "client_cancelled");
  response.cancelled_by_client = true;
  unwanted_ = !response.turn;
  silence(response);
  control_.interrupt();
}

bool Conversation::clear_sound() {
  if (responses_.empty()) return false;
  if (RealtimeResponse* const sounding = playing(); sounding && sounding->done) {
    sounding->cancelled_by_client = true;
    silence(*sounding);
    if (!responding()) control_.interrupt();
  } else if (!responding()) {
    // Cancelling has cleared it, or it is over: that it is empty is what was asked for.
    emit("output_audio_buffer.cleared", {{"response_id", responses_.back().id}});
  }
  if (responding()) cancel();
  return true;
}

void Conversation::fail(const EventError& why) {
  if (responding()) finish(responses_.back(), "failed", "", &why);
}

RealtimeResponse* Conversation::playing() {
  for (RealtimeResponse& response : responses_)
    if (response.sound == RealtimeResponse::Sound::kPlaying) return &response;
  return nullptr;
}

// The newest response to this turn.
RealtimeResponse* Conversation::of(uint64_t turn) {
  const auto found =
      std::find_if(responses_.rbegin(), responses_.rend(),
                   [turn](const RealtimeResponse& response) { return response.turn == turn; });
  return found == responses_.rend() ? nullptr : &*found;
}

}  // namespace minicpmo::call_server
