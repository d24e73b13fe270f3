#include "call.h"

namespace minicpmo::call_server {
namespace {

constexpr unsigned kWatchMs = 500;

std::string text_field(const GstStructure* fields, const char* name) {
  const gchar* const text = gst_structure_get_string(fields, name);
  return text != nullptr ? text : "";
}

uint64_t number_field(const GstStructure* fields, const char* name) {
  guint64 value = 0;
  gst_structure_get_uint64(fields, name, &value);
  return value;
}

int64_t milliseconds_field(const GstStructure* fields, const char* name) {
  return static_cast<int64_t>(number_field(fields, name) / GST_MSECOND);
}

// minicpmollm's message minicpmo/answer, field finish.
AnswerEnd end_of(const std::string& finish) {
  if (finish == "length") return AnswerEnd::kLength;
  if (finish == "context") return AnswerEnd::kContext;
  if (finish == "interrupted" || finish == "discarded") return AnswerEnd::kInterrupted;
  return AnswerEnd::kComplete;
}

double seconds_now() {
  return static_cast<double>(g_get_monotonic_time()) / 1e6;
}

}  // namespace

Call::Call(const Settings& settings, Metrics& metrics, const Options& given, Answered answered,
           Ended ended)
    : settings_(settings),
      metrics_(metrics),
      id_(given.id),
      answered_(std::move(answered)),
      ended_(std::move(ended)),
      began_(g_get_monotonic_time()) {
  RealtimeOptions options;
  options.session_id = id_;
  options.instructions = settings.system_prompt;
  options.voices = {"default"};
  for (const auto& [name, file] : settings.voices) options.voices.push_back(name);
  options.audio_events = given.audio_events;
  options.beta = given.beta;
  options.seconds = seconds_now;
  session_ = std::make_unique<RealtimeSession>(*this, std::move(options));
}

Result<std::shared_ptr<Call>> Call::make(const Settings& settings, Metrics& metrics,
                                         const Options& options, const Make& pipeline,
                                         Answered answered, Ended ended) {
  std::shared_ptr<Call> call(
      new Call(settings, metrics, options, std::move(answered), std::move(ended)));
  ASSIGN_OR_RETURN(call->peer_, pipeline(call->callbacks()));
  return call;
}

CallCallbacks Call::callbacks() {
  // The peer does not outlive the call, and calls nothing once it is closed.
  return {
      .answered =
          [this](Result<std::string> sdp) {
            const auto self = shared_from_this();
            const bool ok = sdp.ok();
            std::exchange(answered_, nullptr)(std::move(sdp));
            if (!ok) end("failed");
          },
      .connected = [this] { connected_ = true; },
      .gone =
          [this] {
            // Before, none of the offer's candidates may be of use, and the client still find
            // the way to us.
            if (connected_) end("client");
          },
      .channel_open =
          [this] {
            open_ = true;
            session_->opened();
            if (!config_.empty())
              session_->receive(R"({"type": "session.update", "session": )" + config_ + "}");
          },
      .message = [this](const std::string& message) { session_->receive(message); },
      .told = [this](const GstStructure* fields) { told(fields); },
      .words =
          [this](uint64_t turn, const std::string& text) {
            answer_of(turn).text += text;
            session_->answer_words(turn, text);
          },
      .sound_begins = [this](uint64_t turn) { sound_begins(turn); },
      .sound_ends = [this](uint64_t turn, unsigned ms) { sound_ends(turn, ms); },
      .sound_dropped = [this] { sound_end_.stop(); },
      .sound_late =
          [this] {
            late_at_ = g_get_monotonic_time();
            metrics_.sound_late();
          },
      .sound = [this](uint64_t turn, const std::string& pcm) { session_->answer_audio(turn, pcm); },
      .wrong_certificate =
          [this] {
            const auto self = shared_from_this();
            g_warning("call %s: the client's certificate is not the offer's (a=fingerprint)",
                      id_.c_str());
            end("fingerprint");
          },
      .too_slow = [this] { end("slow"); },
      .failed =
          [this](const std::string& message) {
            const auto self = shared_from_this();
            g_warning("call %s failed: %s", id_.c_str(), message.c_str());
            session_->failed("the call failed on the server");
            end("failed");
          }};
}

void Call::start(const std::string& sdp, const std::string& config) {
  // What is wrong with it is told when there is a channel.
  if (!config.empty() && !session_->configure(config).empty()) config_ = config;
  watch_.start(kWatchMs, [this] { watch(); });
  peer_->start(sdp);
}

void Call::end(const std::string& why) {
  if (over_) return;
  over_ = true;
  const auto self = shared_from_this();
  watch_.stop();
  sound_end_.stop();
  peer_->close(why);
  if (answered_)
    std::exchange(answered_, nullptr)(Error{ErrorCode::kCancelled, "the call was ended", ""});
  metrics_.call_ended(why, static_cast<double>(g_get_monotonic_time() - began_) / 1e6);
  ended_(id_, why);
}

void Call::end_when_quiet() {
  going_down_ = true;
  watch();
}

// ---- What the peer tells

void Call::watch() {
  const double age = static_cast<double>(g_get_monotonic_time() - began_) / 1e6;
  const auto self = shared_from_this();
  if (!connected_ && age > settings_.connect_timeout_s) return end("unconnected");
  if (peer_->silent_seconds() > settings_.idle_timeout_s) return end("idle");
  if (age > settings_.max_call_s) return end("too-long");
  if (going_down_ && !busy()) return end("drained");
  watch_.start(kWatchMs, [this] { watch(); });
}

void Call::told(const GstStructure* fields) {
  const std::string name = gst_structure_get_name(fields);
  const uint64_t turn = number_field(fields, "turn-id");
  if (name == "minicpmo/turn-start") {
    user_speaks_ = true;
    session_->speech_started(turn, milliseconds_field(fields, "running-time"));
  } else if (name == "minicpmo/turn-end") {
    user_speaks_ = false;
    turn_ended_ = g_get_monotonic_time();
    session_->speech_stopped(turn, milliseconds_field(fields, "running-time"));
  } else if (name == "minicpmo/turn-cancel") {
    user_speaks_ = false;
    session_->speech_cancelled(turn);
  } else if (name == "minicpmo/barge-in") {
    if (answers_.contains(turn)) finish(turn, AnswerEnd::kInterrupted, text_field(fields, "heard"));
  } else if (name == "minicpmo/answer") {
    answered(turn, fields);
  } else if (name == "minicpmo/turn-trace") {
    session_->turn_traced(turn, text_field(fields, "report"));
  }
}

// The language model is done; the sound may not be.
void Call::answered(uint64_t turn, const GstStructure* fields) {
  const std::string finish_word = text_field(fields, "finish");
  if (settings_.log_text)
    g_message("call %s, turn %" G_GUINT64_FORMAT ": %s", id_.c_str(), turn,
              text_field(fields, "text").c_str());
  if (finish_word == "empty" && !answers_.contains(turn)) return;  // there was nothing to answer
  answer_of(turn).end = end_of(finish_word);
}

Call::Answer& Call::answer_of(uint64_t turn) {
  const auto [found, added] = answers_.try_emplace(turn);
  if (added) session_->answer_started(turn);
  return found->second;
}

void Call::sound_begins(uint64_t turn) {
  if (sound_end_.running()) {  // of the answer before, whose end is nearer than the timer's
    sound_end_.stop();
    for (const auto& [other, answer] : std::map(answers_))
      if (other != turn && answer.sounds) finish(other, answer.end, answer.text);
  }
  Answer& answer = answer_of(turn);
  if (answer.sounds) return;
  answer.sounds = true;
  session_->audio_started(turn);
  if (turn_ended_ != 0)
    metrics_.response(static_cast<double>(g_get_monotonic_time() - turn_ended_) / 1e6);
  turn_ended_ = 0;
}

void Call::sound_ends(uint64_t turn, unsigned milliseconds) {
  const auto over = [this, turn] {
    const auto found = answers_.find(turn);
    if (found != answers_.end()) finish(turn, found->second.end, found->second.text);
  };
  if (milliseconds == 0) return over();
  sound_end_.start(milliseconds, over);
}

// `heard` by value: it may be the answer's own text.
void Call::finish(uint64_t turn, AnswerEnd end, const std::string& heard_text) {
  const auto node = answers_.extract(turn);
  if (node.empty()) return;
  const Answer& answer = node.mapped();
  const std::string heard = end == AnswerEnd::kInterrupted ? heard_text : answer.text;
  metrics_.turn(end == AnswerEnd::kInterrupted);
  session_->answer_ended(turn, end, answer.text, heard);
  if (answer.sounds) session_->audio_stopped(turn);
}

// ---- What the client asks

void Call::send(const std::string& json) {
  if (open_ && peer_) peer_->send(json);
}

bool Call::push_text(const std::string& text) {
  gboolean taken = FALSE;
  g_signal_emit_by_name(peer_->model(), "push-text", text.c_str(), &taken);
  if (taken) turn_ended_ = g_get_monotonic_time();
  return taken;
}

void Call::interrupt() {
  g_signal_emit_by_name(peer_->model(), "interrupt");
}

void Call::set_instructions(const std::string& text) {
  g_object_set(peer_->model(), "system-prompt", text.c_str(), nullptr);
}

void Call::set_voice(const std::string& name) {
  const auto found = settings_.voices.find(name);
  g_object_set(peer_->model(), "voice",
               found != settings_.voices.end() ? found->second.c_str() : nullptr, nullptr);
}

void Call::set_turn_detection(const TurnDetection& detection) {
  g_object_set(peer_->turn(), "threshold", static_cast<gfloat>(detection.threshold),
               "prefix-padding", static_cast<guint>(detection.prefix_padding_ms),
               "silence-duration", static_cast<guint>(detection.silence_duration_ms), "barge-in",
               detection.interrupt_response ? TRUE : FALSE, nullptr);
  gst_util_set_object_arg(G_OBJECT(peer_->turn()), "mode", detection.enabled ? "vad" : "manual");
}

void Call::start_turn() {
  peer_->start_turn();
}

void Call::end_turn() {
  peer_->end_turn();
}

void Call::discard_turn() {
  peer_->cancel_turn();
}

bool Call::append_audio(std::string_view pcm) {
  return peer_->append_audio(pcm);
}

void Call::reset_conversation() {
  g_signal_emit_by_name(peer_->model(), "reset-session");
}

}  // namespace minicpmo::call_server
