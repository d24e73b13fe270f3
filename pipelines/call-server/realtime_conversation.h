// What has been said in a call, as the server's events of OpenAI's Realtime API, in their order.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "realtime.h"
#include "realtime_events.h"

namespace minicpmo::call_server {

inline int milliseconds(double seconds) {
  return static_cast<int>(std::lround(seconds * 1000));
}

// One answer. Its words may all be there (done) while its sound is still heard.
struct RealtimeResponse {
  std::string id;
  std::shared_ptr<RealtimeItem> item;
  std::optional<uint64_t> turn;  // unknown until the elements have numbered what was asked for
  bool push_to_talk = false;
  Json metadata;
  bool done = false;
  bool cancelled_by_client = false;
  bool interrupted = false;
  bool false_alarm = false;  // what interrupted it was no speech
  // The rest of the answer may follow, as a response of its own.
  bool may_go_on() const { return interrupted && false_alarm && !cancelled_by_client; }
  enum class Sound { kNone, kPlaying, kOver } sound = Sound::kNone;
  double sound_began = 0;
  int sound_ms = 0;
  size_t heard_before = 0;  // bytes of the answer's text that belong to the response it continues
  size_t heard = 0;         // of all of it
};

class Conversation {
 public:
  // All but `limits`, which makes the field of rate_limits.updated, outlive the conversation.
  Conversation(CallControl& control, const RealtimeConfig& config, const RealtimeOptions& options,
               std::function<Json()> limits);

  void emit(const char* type, Json fields);
  void emit_error(const EventError& error, const Json& client_event_id);

  // Items. The newest are kept; nullptr if there is none.
  std::string new_id(const char* prefix);
  std::shared_ptr<RealtimeItem> find(const std::string& id) const;
  void add_whole(const RealtimeItem& item);  // added and done
  void remove(const std::string& id);
  const std::string& last_id() const { return last_id_; }
  // How much of an answer's sound there has been by now; -1 if the item is no answer's.
  int sound_ms(const std::string& item_id) const;

  // Responses.
  bool responding() const { return !responses_.empty() && !responses_.back().done; }
  bool is_responding(const std::string& id) const;
  // An answer that the client asked for. Its turn is known when it starts.
  void create_response(const Json& metadata, bool push_to_talk);
  void cancel();
  // False if there is no sound, and never was.
  bool clear_sound();
  void fail(const EventError& why);

  // Push-to-talk: the client's clear begins a turn, its commit makes an item of it, and
  // response.create ends it.
  enum class Talk { kIdle, kRecording, kCommitted };
  Talk talk() const { return talk_; }
  void start_talk();
  void discard_talk();
  void commit_talk();
  void end_talk();
  // A detected turn is open; and throwing it away.
  bool speaking() const;
  void discard_speech();

  // As RealtimeSession's.
  void speech_started(uint64_t turn, int64_t audio_start_ms);
  void speech_stopped(uint64_t turn, int64_t audio_end_ms);
  void speech_cancelled(uint64_t turn);
  void answer_started(uint64_t turn);
  void answer_words(uint64_t turn, std::string_view text);
  void answer_audio(uint64_t turn, std::string_view base64);
  void audio_started(uint64_t turn);
  void audio_stopped(uint64_t turn);
  void answer_ended(uint64_t turn, AnswerEnd end, std::string_view text, std::string_view heard);
  void turn_traced(uint64_t turn, const Json& trace);

 private:
  struct Turn {
    std::string item_id;
    int64_t audio_start_ms = 0;
    double began = 0;
    bool open = true;
    bool manual = false;
    // What is known of its answer while it is not known to have ended.
    std::vector<std::function<void()>> held;
  };

  void add(const std::shared_ptr<RealtimeItem>& item);
  void begin(std::optional<uint64_t> turn, const Json& metadata);
  void open_content(RealtimeResponse& response);
  void append(RealtimeResponse& response, std::string_view text);
  void append_rest(RealtimeResponse& response, std::string_view whole);
  void finish(RealtimeResponse& response, const char* status, const char* reason,
              const EventError* why = nullptr);
  void silence(RealtimeResponse& response);
  void truncate(RealtimeResponse& response, std::string_view heard);
  void commit(const std::string& item_id);
  bool hold(uint64_t turn, std::function<void()> event);
  RealtimeResponse* of(uint64_t turn);
  RealtimeResponse* answering(uint64_t turn);
  RealtimeResponse* playing();
  Json response_object(const RealtimeResponse& response, const char* status, const Json& details);
  Json place(const RealtimeResponse& response) const;

  CallControl& control_;
  const RealtimeConfig& config_;
  const RealtimeOptions& options_;
  std::function<Json()> limits_;
  uint64_t events_ = 0, ids_ = 0;
  std::deque<std::shared_ptr<RealtimeItem>> items_;
  std::string last_id_;
  std::deque<RealtimeResponse> responses_;
  std::map<uint64_t, Turn> turns_;
  Talk talk_ = Talk::kIdle;
  int manual_ends_ = 0;    // asked for, not yet told
  bool unwanted_ = false;  // a response was cancelled before its turn was known
  std::optional<uint64_t> ignored_turn_;
};

}  // namespace minicpmo::call_server
