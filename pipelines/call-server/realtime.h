// The conversation of a call as events of OpenAI's Realtime API (names of 2025, and the older ones
// where they changed), on a data channel or a WebSocket. Knows nothing of GStreamer: events go in
// and out as JSON texts, and what a client asks for goes to a CallControl. README.md of this folder
// has the table of what is supported. Not thread-safe: one thread owns a session.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace minicpmo::call_server {

// How the ends of turns are found: minicpmoturn's properties.
struct TurnDetection {
  bool enabled = true;            // false: only input_audio_buffer.commit ends turns (push-to-talk)
  double threshold = 0.5;         // probability of speech, 0 to 1
  int prefix_padding_ms = 300;    // 0 to 10000
  int silence_duration_ms = 500;  // 0 to 60000
  bool interrupt_response = true;
  bool operator==(const TurnDetection&) const = default;
};

// What a client may ask of its call. None of these calls the session back before it returns.
class CallControl {
 public:
  virtual ~CallControl() = default;
  // A message to the client: one JSON object.
  virtual void send(const std::string& json) = 0;
  // A typed message of the user, answered at once. False if it was refused (the answer to an
  // earlier one is waited for, or the text is too long).
  virtual bool push_text(const std::string& text) = 0;
  // Ends the answer that is made or heard; without effect if there is none.
  virtual void interrupt() = 0;
  // Take effect with the next session of the language model; before the first turn at once.
  virtual void set_instructions(const std::string& text) = 0;
  virtual void set_voice(const std::string& name) = 0;
  virtual void set_turn_detection(const TurnDetection& detection) = 0;
  // Push-to-talk: begins a turn, and ends it, so that it is answered; or throws it away.
  virtual void start_turn() = 0;
  virtual void end_turn() = 0;
  virtual void discard_turn() = 0;
  // Sound of the user that came in an event: 16-bit samples at 24 kHz. False if too much waits.
  virtual bool append_audio(std::string_view pcm) = 0;
  // The user's turns forget everything said before.
  virtual void reset_conversation() = 0;
};

struct RealtimeOptions {
  std::string session_id;  // unique in the process; becomes "sess_..."
  std::string model = "minicpm-o-2.6";
  std::string instructions;              // of the session at its start
  std::vector<std::string> voices;       // names that may be asked for; the first is the default
  size_t max_message_bytes = 16 * 1024;  // longer ones are refused with an error event
  double max_messages_per_second = 50;   // with a burst of as many; faster ones are refused
  // Sound comes and goes in events, as over a WebSocket, and these limits are theirs: a message of
  // sound, and sound in a second (8 times as fast as it is spoken), with a burst.
  bool audio_events = false;
  size_t max_append_bytes = 256 * 1024;
  double append_bytes_per_second = 512 * 1024;
  double append_burst_bytes = 5 * 1024 * 1024;
  bool beta = false;                // the client said "OpenAI-Beta: realtime=v1"
  std::function<double()> seconds;  // a monotonic clock
};

// How an answer ended: minicpmollm's message minicpmo/answer, field "finish".
enum class AnswerEnd { kComplete, kInterrupted, kLength, kContext, kFailed };

class RealtimeSession {
 public:
  // `control` outlives the session.
  RealtimeSession(CallControl& control, RealtimeOptions options);
  ~RealtimeSession();
  RealtimeSession(const RealtimeSession&) = delete;
  RealtimeSession& operator=(const RealtimeSession&) = delete;

  // The session object that came with the call's offer, as in session.update, before opened().
  // What is wrong with it, and nothing of it is taken; or "".
  std::string configure(std::string_view session);
  // The channel is open: session.created.
  void opened();
  // A message of the client. Whatever it holds, the session goes on; errors are told by an error
  // event that repeats the client's event_id.
  void receive(std::string_view message);

  // What happens in the call. Turns are numbered as the elements number them; a turn may be
  // cancelled after it has started, and an answer belongs to the turn it answers. What comes of an
  // answer before its turn has stopped waits for that.
  void speech_started(uint64_t turn, int64_t audio_start_ms);
  void speech_stopped(uint64_t turn, int64_t audio_end_ms);
  void speech_cancelled(uint64_t turn);
  void answer_started(uint64_t turn);
  void answer_words(uint64_t turn, std::string_view text);
  // 16-bit samples at 24 kHz of the answer; with audio_events only.
  void answer_audio(uint64_t turn, std::string_view pcm);
  // The answer's sound begins, and has been sent to its end.
  void audio_started(uint64_t turn);
  void audio_stopped(uint64_t turn);
  // `heard`: the part of the text that reached the user, when it was interrupted. An answer whose
  // words are complete is ended once more, as interrupted, if its sound is. After a cough has been
  // cancelled the answer that it interrupted may go on, with the words from where it stopped.
  void answer_ended(uint64_t turn, AnswerEnd end, std::string_view text, std::string_view heard);
  // Where the time of the turn went: a line of the tracer minicpmoturns, JSON. Told by an event of
  // our own, minicpmo.turn_trace, for those who run the server with the tracer.
  void turn_traced(uint64_t turn, std::string_view report);
  // Something failed in the pipeline; the call goes on or is closed by the caller.
  void failed(std::string_view message);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace minicpmo::call_server
