// One call: what happens in its pipeline told to its client, and what the client asks done to the
// pipeline; when it is over. Main thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "call_pipeline.h"
#include "main_thread.h"
#include "metrics.h"
#include "realtime.h"
#include "settings.h"

namespace minicpmo::call_server {

class Call final : public CallControl, public std::enable_shared_from_this<Call> {
 public:
  using Answered = std::function<void(Result<std::string> sdp)>;
  // Once; `why` is one of the words of Metrics::call_ended.
  using Ended = std::function<void(const std::string& id, const std::string& why)>;

  // Makes the pipeline of a call, which tells these callbacks what happens in it.
  using Make = std::function<Result<std::shared_ptr<CallPipeline>>(CallCallbacks)>;
  struct Options {
    std::string id;
    bool audio_events = false;  // sound comes and goes as events
    bool beta = false;          // the events have the names from before 2025
  };

  // `settings` and `metrics` outlive the call. `answered` may be null.
  static Result<std::shared_ptr<Call>> make(const Settings& settings, Metrics& metrics,
                                            const Options& options, const Make& pipeline,
                                            Answered answered, Ended ended);
  // `sdp`: of a WebRTC call; `config`: a session as in session.update, or empty.
  void start(const std::string& sdp, const std::string& config);
  void end(const std::string& why);
  // As soon as nobody speaks or is answered.
  void end_when_quiet();
  // Somebody speaks, or is being answered.
  bool busy() const { return user_speaks_ || !answers_.empty(); }
  const std::string& id() const { return id_; }
  // When its sound last came too late, g_get_monotonic_time(); 0: it never did.
  gint64 late_at() const { return late_at_; }

  void send(const std::string& json) override;
  bool push_text(const std::string& text) override;
  void interrupt() override;
  void set_instructions(const std::string& text) override;
  void set_voice(const std::string& name) override;
  void set_turn_detection(const TurnDetection& detection) override;
  void start_turn() override;
  void end_turn() override;
  void discard_turn() override;
  void reset_conversation() override;
  bool append_audio(std::string_view pcm) override;

 private:
  struct Answer {
    std::string text;
    AnswerEnd end = AnswerEnd::kComplete;
    bool sounds = false;
  };
  Call(const Settings& settings, Metrics& metrics, const Options& options, Answered answered,
       Ended ended);
  CallCallbacks callbacks();
  void told(const GstStructure* fields);
  void answered(uint64_t turn, const GstStructure* fields);
  Answer& answer_of(uint64_t turn);
  void sound_begins(uint64_t turn);
  void sound_ends(uint64_t turn, unsigned milliseconds);
  void finish(uint64_t turn, AnswerEnd end, const std::string& heard);
  void watch();

  const Settings& settings_;
  Metrics& metrics_;
  std::string id_;
  Answered answered_;
  Ended ended_;
  std::shared_ptr<CallPipeline> peer_;
  std::unique_ptr<RealtimeSession> session_;
  std::map<uint64_t, Answer> answers_;               // those that are not over, by turn
  gint64 began_ = 0, turn_ended_ = 0, late_at_ = 0;  // g_get_monotonic_time()
  bool user_speaks_ = false, connected_ = false, open_ = false, over_ = false;
  bool going_down_ = false;
  std::string config_;
  Timer watch_, sound_end_;
};

}  // namespace minicpmo::call_server
