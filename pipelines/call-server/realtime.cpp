#include "realtime.h"

#include <glib.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>

#include "realtime_conversation.h"
#include "realtime_events.h"

namespace minicpmo::call_server {
namespace {

constexpr size_t kMaxEventId = 512;
constexpr size_t kMaxMessages = 32;  // that wait for response.create
// How far beyond what has been sent a client may believe to be: its clock is not the server's.
constexpr int kClockToleranceMs = 1000;
constexpr double kMessageCost = 256;  // bytes
constexpr const char* kAppend = "input_audio_buffer.append";

}  // namespace

struct RealtimeSession::State {
  State(CallControl& call, RealtimeOptions given);

  void receive(std::string_view message);
  MaybeError handle(const Json& event);
  bool within_rate();
  bool audio_within_rate(size_t bytes);
  void too_fast(const std::string& what);
  Json rate_limits() const;

  void apply(const RealtimeConfig& changed);
  MaybeError on_session_update(const Json& event);
  MaybeError on_append(const Json& event);
  MaybeError on_commit(const Json& event);
  MaybeError on_clear(const Json& event);
  MaybeError on_item_create(const Json& event);
  MaybeError on_item_retrieve(const Json& event);
  MaybeError on_item_delete(const Json& event);
  MaybeError on_item_truncate(const Json& event);
  MaybeError on_response_create(const Json& event);
  MaybeError on_response_cancel(const Json& event);
  MaybeError on_output_clear(const Json& event);

  CallControl& control;
  RealtimeOptions options;
  RealtimeConfig config;
  Conversation conversation;
  std::vector<RealtimeItem> waiting;  // typed messages that no response.create has sent off yet
  double messages_left, refilled_at;
  double bytes_left, bytes_refilled_at;
  bool told_of_rate = false;
};

RealtimeSession::State::State(CallControl& call, RealtimeOptions given)
    : control(call),
      options(std::move(given)),
      conversation(call, config, options, [this] { return rate_limits(); }),
      messages_left(options.max_messages_per_second),
      refilled_at(options.seconds()),
      bytes_left(options.append_burst_bytes),
      bytes_refilled_at(refilled_at) {
  config.instructions = options.instructions;
  config.voice = options.voices.empty() ? "" : options.voices.front();
  config.beta = options.beta;
}

// ---------------------------------------------------------------- messages

// A bucket of messages, refilled evenly.
bool RealtimeSession::State::within_rate() {
  const double now = options.seconds();
  const double rate = options.max_messages_per_second;
  messages_left = std::min(rate, messages_left + (now - refilled_at) * rate);
  refilled_at = now;
  if (messages_left < 1) return false;
  messages_left -= 1;
  return true;
}

Json RealtimeSession::State::rate_limits() const {
  const double rate = options.max_messages_per_second;
  return Json::array({{{"name", "requests"},
                       {"limit", static_cast<int>(rate)},
                       {"remaining", static_cast<int>(messages_left)},
                       {"reset_seconds", (rate - messages_left) / rate}}});
}

// Every message counts, and small ones for a little more than they are.
bool RealtimeSession::State::audio_within_rate(size_t bytes) {
  const double now = options.seconds();
  const double cost = static_cast<double>(bytes) + kMessageCost;
  bytes_left = std::min(options.append_burst_bytes,
                        bytes_left + (now - bytes_refilled_at) * options.append_bytes_per_second);
  bytes_refilled_at = now;
  if (bytes_left < cost) return false;
  bytes_left -= cost;
  return true;
}

// Once: a flood is not answered with another.
void RealtimeSession::State::too_fast(const std::string& what) {
  if (std::exchange(told_of_rate, true)) return;
  conversation.emit_error(
      {"rate_limit_exceeded", "More than " + what + " in a second; some were not read. Send fewer.",
       "", "rate_limit_error"},
      nullptr);
}

void RealtimeSession::State::receive(std::string_view message) {
  Json event;
  const size_t longest =
      options.audio_events ? options.max_append_bytes : options.max_message_bytes;
  if (options.audio_events) {
    // The type is known only when a message has been read.
    if (!audio_within_rate(message.size()))
      return too_fast(std::to_string(static_cast<int>(options.append_bytes_per_second / 1024)) +
                      " KiB of messages");
    if (auto bad = parse_object(message, longest, event))
      return conversation.emit_error(*bad, nullptr);
  }
  const bool sound = options.audio_events && event.value("type", Json()) == kAppend;
  if (!sound && !within_rate())
    return too_fast(std::to_string(static_cast<int>(options.max_messages_per_second)) +
                    " messages");
  told_of_rate = false;
  if (!sound) {
    if (auto bad = parse_object(message, options.max_message_bytes, event))
      return conversation.emit_error(*bad, nullptr);
  }
  Json event_id;
  if (event.contains("event_id")) {
    std::string text;
    if (auto bad = read_string(event, "", "event_id", kMaxEventId, text))
      return conversation.emit_error(*bad, nullptr);
    event_id = text;
  }
  if (auto bad = handle(event)) conversation.emit_error(*bad, event_id);
}

MaybeError RealtimeSession::State::handle(const Json& event) {
  struct Handler {
    const char* type;
    MaybeError (State::*handle)(const Json&);
  };
  static constexpr Handler kHandlers[] = {
      {"session.update", &State::on_session_update},
      {kAppend, &State::on_append},
      {"input_audio_buffer.commit", &State::on_commit},
      {"input_audio_buffer.clear", &State::on_clear},
      {"conversation.item.create", &State::on_item_create},
      {"conversation.item.retrieve", &State::on_item_retrieve},
      {"conversation.item.delete", &State::on_item_delete},
      {"conversation.item.truncate", &State::on_item_truncate},
      {"response.create", &State::on_response_create},
      {"response.cancel", &State::on_response_cancel},
      {"output_audio_buffer.clear", &State::on_output_clear},
  };
  std::string type;
  if (auto bad = read_string(event, "", "type", kAnyLength, type)) return bad;
  for (const Handler& handler : kHandlers)
    if (type == handler.type) return (this->*handler.handle)(event);
  return error("invalid_value", "type",
               "There is no client event '" + excerpt(type) + "'; see the table of events.");
}

// ---------------------------------------------------------------- the session

void RealtimeSession::State::apply(const RealtimeConfig& changed) {
  const RealtimeConfig before = std::exchange(config, changed);
  if (config.instructions != before.instructions) control.set_instructions(config.instructions);
  if (config.voice != before.voice) control.set_voice(config.voice);
  if (config.turn_detection == before.turn_detection) return;
  if (config.turn_detection.enabled) conversation.discard_talk();
  control.set_turn_detection(config.turn_detection);
}

MaybeError RealtimeSession::State::on_session_update(const Json& event) {
  if (!event.contains("session"))
    return error("missing_required_parameter", "session", "Missing required parameter: 'session'.");
  RealtimeConfig changed = config;
  if (auto bad = read_session(event["session"], options.voices, changed)) return bad;
  apply(changed);
  conversation.emit(
      "session.updated",
      {{"session", session_object(config, "sess_" + options.session_id, options.model)}});
  return {};
}

// ---------------------------------------------------------------- audio

MaybeError RealtimeSession::State::on_append(const Json& event) {
  if (!options.audio_events)
    return error("unsupported_event", "",
                 "Audio comes over the media track of the call, not as input_audio_buffer.append.");
  std::string pcm;
  if (auto bad = read_audio_data(event, "audio", pcm)) return bad;
  const bool push_to_talk = !config.turn_detection.enabled;
  if (push_to_talk && conversation.talk() == Conversation::Talk::kCommitted)
    return error("unsupported_mix", "",
                 "Committed audio waits for response.create; send that before more audio.");
  if (pcm.empty()) return {};
  if (push_to_talk && conversation.talk() == Conversation::Talk::kIdle) conversation.start_talk();
  if (!control.append_audio(pcm))
    return error("input_audio_buffer_full", "audio",
                 "More audio waits than fits (60 s); send it no faster than it is spoken.");
  return {};
}

MaybeError RealtimeSession::State::on_commit(const Json&) {
  if (config.turn_detection.enabled) {
    if (!conversation.speaking())
      return error("input_audio_buffer_commit_empty", "", "Nobody is speaking.");
    control.end_turn();  // which stops the speech, and that commits it
    return {};
  }
  if (conversation.talk() != Conversation::Talk::kRecording)
    return error("input_audio_buffer_commit_empty", "",
                 options.audio_events ? "There is nothing to commit: send audio first."
                                      : "There is nothing to commit: input_audio_buffer.clear, "
                                        "when the button is pressed, begins a turn.");
  if (!waiting.empty())
    return error("unsupported_mix", "",
                 "Typed messages wait for response.create; send that before audio.");
  conversation.commit_talk();
  return {};
}

MaybeError RealtimeSession::State::on_clear(const Json&) {
  if (config.turn_detection.enabled) {
    if (conversation.speaking())
      conversation.discard_speech();  // tells that it is cleared
    else
      conversation.emit("input_audio_buffer.cleared", Json::object());
    return {};
  }
  if (conversation.talk() == Conversation::Talk::kCommitted)
    return error("unsupported_mix", "",
                 "Committed audio waits for response.create; send that before the next turn.");
  conversation.discard_talk();
  if (!options.audio_events) conversation.start_talk();  // the first audio begins it
  conversation.emit("input_audio_buffer.cleared", Json::object());
  return {};
}

MaybeError RealtimeSession::State::on_output_clear(const Json&) {
  if (conversation.clear_sound()) return {};
  return error("output_audio_buffer_empty", "", "There has been no sound yet.");
}

// ---------------------------------------------------------------- items

MaybeError RealtimeSession::State::on_item_create(const Json& event) {
  if (!event.contains("item"))
    return error("missing_required_parameter", "item", "Missing required parameter: 'item'.");
  const Json previous = event.value("previous_item_id", Json());
  if (!previous.is_null() && previous != conversation.last_id() &&
      !(previous == "root" && conversation.last_id().empty()))
    return unsupported("previous_item_id", "messages are added at the end; leave it out.");
  RealtimeItem item;
  if (auto bad = read_message(event["item"], item)) return bad;
  if (conversation.talk() == Conversation::Talk::kCommitted)
    return error("unsupported_mix", "item",
                 "Committed audio waits for response.create; send that before messages.");
  if (conversation.find(item.id))
    return error("invalid_value", "item.id",
                 "There is an item '" + excerpt(item.id) + "' already.");
  size_t bytes = item.text.size();
  for (const RealtimeItem& other : waiting) bytes += other.text.size() + 1;
  if (waiting.size() >= kMaxMessages || bytes > options.max_message_bytes)
    return error("too_many_items", "item",
                 "At most " + std::to_string(kMaxMessages) + " messages of " +
                     std::to_string(options.max_message_bytes) +
                     " bytes together wait for response.create; send that first.");
  if (item.id.empty()) item.id = conversation.new_id("item");
  waiting.push_back(item);
  conversation.add_whole(item);
  return {};
}

MaybeError RealtimeSession::State::on_item_retrieve(const Json& event) {
  std::string id;
  if (auto bad = read_string(event, "", "item_id", kAnyLength, id)) return bad;
  const auto item = conversation.find(id);
  if (!item)
    return error("item_retrieve_invalid_item_id", "item_id",
                 "There is no item '" + excerpt(id) + "'.");
  conversation.emit("conversation.item.retrieved", {{"item", item_object(*item, config.beta)}});
  return {};
}

MaybeError RealtimeSession::State::on_item_delete(const Json& event) {
  std::string id;
  if (auto bad = read_string(event, "", "item_id", kAnyLength, id)) return bad;
  if (!conversation.find(id))
    return error("item_delete_invalid_item_id", "item_id",
                 "There is no item '" + excerpt(id) + "'.");
  if (std::erase_if(waiting, [&id](const RealtimeItem& item) { return item.id == id; }) == 0)
    return error("item_delete_unsupported", "item_id",
                 "The model has read '" + excerpt(id) +
                     "' already; only messages that wait for response.create can be deleted.");
  conversation.remove(id);
  return {};
}

MaybeError RealtimeSession::State::on_item_truncate(const Json& event) {
  std::string id;
  if (auto bad = read_string(event, "", "item_id", kAnyLength, id)) return bad;
  const int sound_ms = conversation.sound_ms(id);
  if (sound_ms < 0)
    return error("item_truncate_invalid_item_id", "item_id",
                 "There is no answer '" + excerpt(id) + "'.");
  for (const char* name : {"content_index", "audio_end_ms"})
    if (!event.contains(name))
      return error("missing_required_parameter", name,
                   std::string("Missing required parameter: '") + name + "'.");
  int content_index = 0, audio_end_ms = 0;
  if (auto bad = read_integer(event, "", "content_index", 0, 0, content_index)) return bad;
  if (auto bad =
          read_integer(event, "", "audio_end_ms", 0, sound_ms + kClockToleranceMs, audio_end_ms))
    return bad;
  // The server has cut the conversation to what was heard, when it was interrupted.
  conversation.emit(
      "conversation.item.truncated",
      {{"item_id", id}, {"content_index", content_index}, {"audio_end_ms", audio_end_ms}});
  return {};
}

// ---------------------------------------------------------------- responses

MaybeError RealtimeSession::State::on_response_create(const Json& event) {
  Json metadata;
  if (const auto response = event.find("response"); response != event.end())
    if (auto bad = read_response(*response, metadata)) return bad;
  if (conversation.responding())
    return error("conversation_already_has_active_response", "",
                 "A response is in progress; wait for response.done or send response.cancel.");
  if (conversation.talk() == Conversation::Talk::kCommitted) {
    conversation.create_response(metadata, true);
    conversation.end_talk();
    return {};
  }
  if (waiting.empty())
    return error("nothing_to_answer", "",
                 "There is nothing to answer: send conversation.item.create, or commit audio.");
  std::string text;
  for (const RealtimeItem& item : waiting) text += (text.empty() ? "" : "\n") + item.text;
  if (!control.push_text(text))
    return error("message_refused", "",
                 "The messages are too long together, or the answer to earlier ones is not over. "
                 "Delete some, or send response.create again later.");
  waiting.clear();
  conversation.create_response(metadata, false);
  return {};
}

MaybeError RealtimeSession::State::on_response_cancel(const Json& event) {
  std::string id;
  const auto wanted = event.find("response_id");
  if (wanted != event.end() && !wanted->is_null())
    if (auto bad = read_string(event, "", "response_id", kAnyLength, id)) return bad;
  if (!conversation.responding() || (!id.empty() && !conversation.is_responding(id)))
    return error("response_cancel_not_active", id.empty() ? "" : "response_id",
                 "There is no such response in progress.");
  conversation.cancel();
  return {};
}

// ---------------------------------------------------------------- RealtimeSession

RealtimeSession::RealtimeSession(CallControl& control, RealtimeOptions options)
    : state_(std::make_unique<State>(control, std::move(options))) {}

RealtimeSession::~RealtimeSession() = default;

std::string RealtimeSession::configure(std::string_view session) {
  try {
    Json object;
    RealtimeConfig changed = state_->config;
    auto bad = parse_object(session, state_->options.max_message_bytes, object);
    if (!bad) bad = read_session(object, state_->options.voices, changed);
    if (bad) return bad->message;
    state_->apply(changed);
    return "";
  } catch (const std::exception& failure) {
    return failure.what();
  }
}

void RealtimeSession::opened() {
  state_->conversation.emit(
      "session.created",
      {{"session", session_object(state_->config, "sess_" + state_->options.session_id,
                                  state_->options.model)}});
}

void RealtimeSession::receive(std::string_view message) {
  try {
    state_->receive(message);
  } catch (const std::exception& failure) {
    state_->conversation.emit_error({"server_error", failure.what(), "", "server_error"}, nullptr);
  }
}

void RealtimeSession::speech_started(uint64_t turn, int64_t audio_start_ms) {
  state_->conversation.speech_started(turn, audio_start_ms);
}

void RealtimeSession::speech_stopped(uint64_t turn, int64_t audio_end_ms) {
  state_->conversation.speech_stopped(turn, audio_end_ms);
}

void RealtimeSession::speech_cancelled(uint64_t turn) {
  state_->conversation.speech_cancelled(turn);
}

void RealtimeSession::answer_started(uint64_t turn) {
  state_->conversation.answer_started(turn);
}

void RealtimeSession::answer_words(uint64_t turn, std::string_view text) {
  state_->conversation.answer_words(turn, text);
}

void RealtimeSession::answer_audio(uint64_t turn, std::string_view pcm) {
  const std::unique_ptr<gchar, decltype(&g_free)> text(
      g_base64_encode(reinterpret_cast<const guchar*>(pcm.data()), pcm.size()), g_free);
  state_->conversation.answer_audio(turn, text.get());
}

void RealtimeSession::audio_started(uint64_t turn) {
  state_->conversation.audio_started(turn);
}

void RealtimeSession::audio_stopped(uint64_t turn) {
  state_->conversation.audio_stopped(turn);
}

void RealtimeSession::answer_ended(uint64_t turn, AnswerEnd end, std::string_view text,
                                   std::string_view heard) {
  state_->conversation.answer_ended(turn, end, text, heard);
}

void RealtimeSession::turn_traced(uint64_t turn, std::string_view report) {
  const Json trace = Json::parse(report, nullptr, false);
  if (trace.is_object()) state_->conversation.turn_traced(turn, trace);
}

void RealtimeSession::failed(std::string_view message) {
  const EventError why{"server_error", std::string(message), "", "server_error"};
  state_->conversation.fail(why);
  state_->conversation.emit_error(why, nullptr);
}

}  // namespace minicpmo::call_server
