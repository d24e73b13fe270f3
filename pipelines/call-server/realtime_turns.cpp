// What the elements tell of turns and answers.
#include <algorithm>
#include <utility>

#include "realtime_conversation.h"

namespace minicpmo::call_server {
namespace {

constexpr size_t kTurns = 16;
constexpr size_t kHeld = 4096;

}  // namespace

// ---------------------------------------------------------------- the user

void Conversation::start_talk() {
  control_.start_turn();
  talk_ = Talk::kRecording;
}

void Conversation::discard_talk() {
  if (talk_ == Talk::kIdle) return;
  talk_ = Talk::kIdle;
  ++manual_ends_;
  control_.discard_turn();
}

void Conversation::commit_talk() {
  talk_ = Talk::kCommitted;
  commit(new_id("item"));
}

void Conversation::end_talk() {
  talk_ = Talk::kIdle;
  ++manual_ends_;
  control_.end_turn();
}

bool Conversation::speaking() const {
  return std::any_of(turns_.begin(), turns_.end(),
                     [](const auto& entry) { return entry.second.open && !entry.second.manual; });
}

void Conversation::discard_speech() {
  std::vector<uint64_t> open;
  for (const auto& [number, turn] : turns_)
    if (turn.open && !turn.manual) open.push_back(number);
  for (const uint64_t number : open) speech_cancelled(number);
  control_.discard_turn();
}

void Conversation::commit(const std::string& item_id) {
  emit("input_audio_buffer.committed",
       {{"previous_item_id", last_id_.empty() ? Json() : Json(last_id_)}, {"item_id", item_id}});
  RealtimeItem item;
  item.id = item_id;
  item.audio = item.has_content = true;
  add_whole(item);
}

void Conversation::speech_started(uint64_t turn, int64_t audio_start_ms) {
  Turn& begun = turns_[turn];
  begun.audio_start_ms = audio_start_ms;
  begun.began = options_.seconds();
  begun.manual = !config_.turn_detection.enabled;
  begun.item_id = new_id("item");
  if (!responses_.empty()) responses_.back().false_alarm = false;
  const std::string item_id = begun.item_id;
  const bool manual = begun.manual;
  if (turns_.size() > kTurns) turns_.erase(turns_.begin());
  if (manual) return;
  emit("input_audio_buffer.speech_started",
       {{"audio_start_ms", audio_start_ms}, {"item_id", item_id}});
}

void Conversation::speech_stopped(uint64_t turn, int64_t audio_end_ms) {
  const auto found = turns_.find(turn);
  if (found == turns_.end() || !found->second.open) return;
  Turn& ended = found->second;
  ended.open = false;
  const auto held = std::exchange(ended.held, {});
  if (!ended.manual) {
    emit("input_audio_buffer.speech_stopped",
         {{"audio_end_ms", audio_end_ms}, {"item_id", ended.item_id}});
    commit(ended.item_id);
  } else if (manual_ends_ > 0) {
    --manual_ends_;
  } else {
    // The longest turn is over before the button was released: it is answered as it is.
    if (std::exchange(talk_, Talk::kIdle) == Talk::kRecording) commit(ended.item_id);
  }
  for (const auto& event : held) event();
}

void Conversation::speech_cancelled(uint64_t turn) {
  const auto found = turns_.find(turn);
  if (found == turns_.end() || !found->second.open) return;
  const Turn cancelled = found->second;
  turns_.erase(found);
  if (cancelled.manual) {
    manual_ends_ = std::max(0, manual_ends_ - 1);
    if (responding() && !responses_.back().turn && responses_.back().push_to_talk)
      fail({"input_audio_buffer_commit_empty", "There was no speech in the committed audio.", ""});
    return;
  }
  const double spoken = options_.seconds() - cancelled.began;
  emit("input_audio_buffer.speech_stopped",
       {{"audio_end_ms", cancelled.audio_start_ms + milliseconds(spoken)},
        {"item_id", cancelled.item_id}});
  emit("input_audio_buffer.cleared", Json::object());
  if (!responses_.empty()) responses_.back().false_alarm = true;
}

// ---------------------------------------------------------------- the answer

// Whether the turn has not ended for the client yet: then the event waits until it has.
bool Conversation::hold(uint64_t turn, std::function<void()> event) {
  const auto found = turns_.find(turn);
  if (found == turns_.end() || !found->second.open || found->second.manual) return false;
  if (found->second.held.size() < kHeld) found->second.held.push_back(std::move(event));
  return true;
}

void Conversation::answer_started(uint64_t turn) {
  if (hold(turn, [this, turn] { answer_started(turn); })) return;
  if (ignored_turn_ == turn) return;
  RealtimeResponse* const before = of(turn);
  if (before) {
    if (!before->may_go_on()) return;
    const size_t heard = before->heard;
    const Json metadata = before->metadata;
    before->false_alarm = false;
    begin(turn, metadata);
    responses_.back().heard_before = responses_.back().heard = heard;
    return;
  }
  const auto spoken = turns_.find(turn);
  const bool detected = spoken != turns_.end() && !spoken->second.manual;
  if (!detected && responding() && !responses_.back().turn) {
    responses_.back().turn = turn;
  } else if (!detected && std::exchange(unwanted_, false)) {
    ignored_turn_ = turn;
    control_.interrupt();
  } else {
    begin(turn, nullptr);
  }
}

// The response to which something of this turn's answer belongs; nullptr if it is not wanted.
RealtimeResponse* Conversation::answering(uint64_t turn) {
  RealtimeResponse* const known = of(turn);
  if (known && !known->may_go_on()) return known;
  answer_started(turn);
  return of(turn);
}

void Conversation::answer_words(uint64_t turn, std::string_view text) {
  if (hold(turn, [this, turn, copy = std::string(text)] { answer_words(turn, copy); })) return;
  RealtimeResponse* const response = answering(turn);
  if (response && !response->done) append(*response, text);
}

void Conversation::answer_audio(uint64_t turn, std::string_view base64) {
  if (hold(turn, [this, turn, copy = std::string(base64)] { answer_audio(turn, copy); })) return;
  RealtimeResponse* const response = answering(turn);
  if (!response || response->done) return;
  open_content(*response);
  Json fields = place(*response);
  fields["delta"] = base64;
  emit("response.output_audio.delta", fields);
}

void Conversation::audio_started(uint64_t turn) {
  if (hold(turn, [this, turn] { audio_started(turn); })) return;
  RealtimeResponse* const response = answering(turn);
  if (!response || response->cancelled_by_client ||
      response->sound != RealtimeResponse::Sound::kNone)
    return;
  if (RealtimeResponse* const other = playing()) silence(*other);
  if (!response->done) open_content(*response);
  response->sound = RealtimeResponse::Sound::kPlaying;
  response->sound_began = options_.seconds();
  emit("output_audio_buffer.started", {{"response_id", response->id}});
}

void Conversation::audio_stopped(uint64_t turn) {
  if (hold(turn, [this, turn] { audio_stopped(turn); })) return;
  RealtimeResponse* const response = of(turn);
  if (!response || response->sound != RealtimeResponse::Sound::kPlaying) return;
  response->sound = RealtimeResponse::Sound::kOver;
  response->sound_ms = milliseconds(options_.seconds() - response->sound_began);
  emit("output_audio_buffer.stopped", {{"response_id", response->id}});
}

void Conversation::answer_ended(uint64_t turn, AnswerEnd end, std::string_view text,
                                std::string_view heard) {
  const auto spoken = turns_.find(turn);
  const bool open = spoken != turns_.end() && spoken->second.open && !spoken->second.manual;
  if (open && end == AnswerEnd::kInterrupted) {  // it was begun too early, and taken back
    spoken->second.held.clear();
    return;
  }
  if (hold(turn, [this, turn, end, whole = std::string(text), part = std::string(heard)] {
        answer_ended(turn, end, whole, part);
      }))
    return;
  RealtimeResponse* const known = of(turn);
  RealtimeResponse* const response =
      known && end == AnswerEnd::kInterrupted ? known : answering(turn);
  if (!response) return;
  if (end == AnswerEnd::kInterrupted) {
    const bool asked = !config_.turn_detection.enabled;
    if (!response->done)
      finish(*response, "cancelled", asked ? "client_cancelled" : "turn_detected");
    silence(*response);
    truncate(*response, heard);
    return;
  }
  if (response->done) return;
  append_rest(*response, text);
  if (end == AnswerEnd::kComplete)
    finish(*response, "completed", "");
  else if (end == AnswerEnd::kFailed)
    fail({"server_error", "The model failed.", "", "server_error"});
  else
    finish(*response, "incomplete", "max_output_tokens");
}

void Conversation::turn_traced(uint64_t turn, const Json& trace) {
  if (hold(turn, [this, turn, trace] { turn_traced(turn, trace); })) return;
  const RealtimeResponse* const response = of(turn);
  if (response) emit("minicpmo.turn_trace", {{"response_id", response->id}, {"trace", trace}});
}

}  // namespace minicpmo::call_server
