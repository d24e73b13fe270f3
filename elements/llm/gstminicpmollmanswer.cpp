// The answering half of minicpmollm's worker: decoding, saying, and the output stream.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "common/gstminicpmospan.h"
#include "common/gstminicpmoturn.h"
#include "llm/gstminicpmollmworker.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_llm_debug);
#define GST_CAT_DEFAULT gst_minicpmo_llm_debug

namespace minicpmo {

namespace {

const char* finish_name(FinishReason finish, bool spoke) {
  switch (finish) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
    default:
      return spoke ? "stop" : "empty";
  }
}

}  // namespace

// ---------------------------------------------------------------- turns

void LlmWorker::turn_end(EventPtr event) {
  const guint64 id = gst_minicpmo_event_turn_id(event.get());
  if (id != 0) turn_id_ = id;
  const GstClockTime speech_end = gst_minicpmo_event_speech_end(event.get());
  if (GST_CLOCK_TIME_IS_VALID(speech_end)) capture_time_ = speech_end;
  const bool speculative = gst_minicpmo_event_is_speculative(event.get());
  forward(std::move(event));
  answer(speculative);
}

// Nobody had spoken. What the noise interrupted goes on, and a question that was left unanswered
// because somebody seemed to go on is answered.
void LlmWorker::turn_cancel(EventPtr event) {
  const guint64 id = gst_minicpmo_event_turn_id(event.get());
  forward(std::move(event));
  turn_id_ = 0;
  turn_full_ = false;
  {
    std::lock_guard lock(mutex_);
    if (superseded_ == id) superseded_ = 0;
  }
  if (!session_used_ || session_ == nullptr || failed()) return;
  if (unanswered_ != 0) {
    turn_id_ = unanswered_;
    return answer();
  }
  const bool resume = may_resume(id);
  const Result<void> done = session_->cancel_turn(resume, cancel_);
  if (!done.ok()) {
    if (done.error().code != ErrorCode::kCancelled) fail(done.error());
    return;
  }
  if (!resume) return;
  last_answer_->said_from = static_cast<size_t>(*last_heard_);
  run_answer(std::move(*last_answer_));
}

// Only what that turn itself interrupted.
bool LlmWorker::may_resume(guint64 cancelled_turn) const {
  std::lock_guard lock(mutex_);
  return resume_ && interrupter_ == cancelled_turn && last_answer_ && last_heard_ &&
         *last_heard_ >= 0 && last_answer_->started;
}

// ---------------------------------------------------------------- the answer

LlmWorker::Begin LlmWorker::begin_answering(const Answer& answer) {
  std::lock_guard lock(mutex_);
  if (flushing_ || !active_) return Begin::kNo;
  if (answer.turn_id < superseded_) return Begin::kSuperseded;
  // The user has gone on since this end was guessed.
  if (answer.speculative && std::exchange(resumed_turn_, 0) == answer.turn_id) return Begin::kNo;
  answering_ = true;
  answering_turn_ = answer.turn_id;
  interrupted_ = false;
  answer.started ? ++stats_.resumed : ++stats_.turns;
  return Begin::kYes;
}

std::optional<int64_t> LlmWorker::end_answering() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !interrupting_; });
  answering_ = false;
  if (active_ && !flushing_) cancel_.clear();
  if (!std::exchange(interrupted_, false)) return std::nullopt;
  return heard_bytes_;
}

void LlmWorker::answer(bool speculative) {
  Answer answer;
  answer.speculative = speculative;
  answer.turn_id = turn_id_ != 0 ? turn_id_ : last_turn_id_ + 1;
  last_turn_id_ = std::max(last_turn_id_, answer.turn_id);
  turn_id_ = 0;
  turn_full_ = false;
  if (!ready()) return;
  if (!session_->turn_open()) return finish_answer(answer, "empty");
  unanswered_ = 0;
  run_answer(std::move(answer));
}

void LlmWorker::run_answer(Answer answer) {
  last_answer_.reset();
  last_heard_.reset();
  const Begin begin = begin_answering(answer);
  if (begin == Begin::kSuperseded) return supersede(answer);
  if (begin == Begin::kNo) return;
  {
    std::lock_guard lock(mutex_);
    answer.flushes = flushes_;
  }
  const Outcome outcome = decode(answer);
  const std::optional<int64_t> heard = end_answering();
  finish_flush();
  const bool discarded = take_discard();
  if (outcome == Outcome::kAbandoned) return;
  if (discarded) {
    last_answer_ = std::move(answer);
    return reopen();
  }
  ++answered_;
  const bool interrupted = outcome == Outcome::kInterrupted;
  if (interrupted) {
    session_->interrupt(heard.value_or(-1));
    std::lock_guard lock(mutex_);
    ++stats_.interrupted;
  }
  finish_answer(answer, interrupted ? "interrupted" : finish_name(answer.finish, answer.spoke));
  last_answer_ = std::move(answer);
  if (!interrupted && heard) return cut_back(*heard);  // the last token was already there
  if (!interrupted) return;
  last_heard_ = heard;
  report_cut(*last_answer_, heard.value_or(-1));
}

// The user speaks already: what comes is part of the same question, or the answer that was to go on
// ends where it was.
void LlmWorker::supersede(const Answer& answer) {
  if (answer.started) return session_->interrupt(static_cast<int64_t>(answer.said_from));
  unanswered_ = answer.turn_id;
  finish_answer(answer, "interrupted");
}

LlmWorker::Outcome LlmWorker::decode(Answer& answer) {
  if (answer.started) {
    if (const auto outcome = say_again(answer)) return *outcome;
  } else {
    const Result<void> started = [&] {
      const StageSpan span(element_, "prefill", answer.turn_id);
      return session_->start_answer(cancel_);
    }();
    answer.model_time = elapsed_since(answer.start);
    if (!started.ok()) return after_error(started.error());
    answer.started = true;
  }
  while (answer.finish == FinishReason::kNone) {
    const auto begin = std::chrono::steady_clock::now();
    const Result<Burst> burst = [&] {
      const StageSpan span(element_, "decode", answer.turn_id);
      return session_->next_burst(cancel_);
    }();
    answer.model_time += elapsed_since(begin);
    if (!burst.ok()) return after_error(burst.error());
    answer.finish = burst->finish;
    answer.tokens += burst->ids.size();
    if (const auto outcome = stopped(answer, say(answer, *burst))) return *outcome;
  }
  return Outcome::kDone;
}

// Whether the answer ends here although there may be more of it.
std::optional<LlmWorker::Outcome> LlmWorker::stopped(const Answer& answer, bool said) const {
  std::lock_guard lock(mutex_);
  if (answer.flushes != flushes_ || flushing_ || !active_) return Outcome::kAbandoned;
  if (interrupted_) return Outcome::kInterrupted;
  if (!said) return Outcome::kAbandoned;
  return std::nullopt;
}

LlmWorker::Outcome LlmWorker::after_error(const Error& error) {
  if (error.code == ErrorCode::kCancelled) {
    std::lock_guard lock(mutex_);
    return interrupted_ && active_ && !flushing_ ? Outcome::kInterrupted : Outcome::kAbandoned;
  }
  fail(error);
  return Outcome::kAbandoned;
}

// Pushes one burst. False when downstream takes no more: the session is told that the answer ends
// here.
bool LlmWorker::say(Answer& answer, const Burst& burst) {
  ensure_started();
  answer.text += burst.text;
  answer.burst_ends.push_back(answer.text.size());
  if (burst.speaker != nullptr) {
    if (!take_speaker(answer, *burst.speaker)) return false;
    push_speaker(answer);
  }
  if (!burst.text.empty()) return push_text(answer, burst.text);
  const GstClockTime now = output_time();
  gst_pad_push_event(src_, gst_event_new_gap(now, GST_CLOCK_TIME_NONE));
  ++answer.chunk;
  return true;
}

bool LlmWorker::take_speaker(Answer& answer, const Tensor& speaker) {
  const auto bytes = speaker.host_bytes();
  if (!bytes.ok()) {
    fail(bytes.error());
    return false;
  }
  answer.speaker.resize(bytes->size() / sizeof(float));
  std::memcpy(answer.speaker.data(), bytes->data(), answer.speaker.size() * sizeof(float));
  return true;
}

void LlmWorker::push_speaker(const Answer& answer) {
  EventPtr event(
      gst_minicpmo_event_new_speaker(answer.turn_id, answer.speaker.data(), answer.speaker.size()));
  if (answer.speculative) gst_minicpmo_event_set_speculative(event.get());
  gst_pad_push_event(src_, event.release());
}

bool LlmWorker::push_text(Answer& answer, std::string_view text) {
  BufferPtr buffer(gst_buffer_new_memdup(text.data(), text.size()));
  GST_BUFFER_PTS(buffer.get()) = output_time();
  if (!answer.spoke) GST_BUFFER_FLAG_SET(buffer.get(), GST_BUFFER_FLAG_DISCONT);
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), answer.turn_id, answer.chunk++,
                                    answer.spoke ? 0 : GST_MINICPMO_TURN_FIRST, capture_time_);
  if (!answer.spoke && !GST_CLOCK_TIME_IS_VALID(answer.first_text))
    answer.first_text = elapsed_since(answer.start);
  answer.spoke = true;
  {
    std::lock_guard lock(mutex_);
    sounding_ = {answer.turn_id, static_cast<int64_t>(answer.said_from),
                 static_cast<int64_t>(answer.text.size())};
  }
  GST_LOG_OBJECT(element_, "turn %" G_GUINT64_FORMAT ": \"%.*s\"", answer.turn_id,
                 static_cast<int>(text.size()), text.data());
  const GstFlowReturn flow = gst_pad_push(src_, buffer.release());
  if (flow == GST_FLOW_OK) return true;
  if (is_interrupted()) return false;  // the flush is our own
  session_->interrupt(-1);
  fail(flow);
  return false;
}

// What was not heard of an interrupted answer, from the start of the word on, burst by burst.
std::optional<LlmWorker::Outcome> LlmWorker::say_again(Answer& answer) {
  const std::string& text = answer.text;
  size_t from = std::min(answer.said_from, text.size());
  while (from > 0 && from < text.size() && !g_ascii_isspace(text[from]) &&
         !g_ascii_isspace(text[from - 1]))
    --from;
  answer.said_from = from;
  answer.spoke = false;
  if (answer.speaker.empty()) return std::nullopt;  // interrupted before its first burst
  ensure_started();
  push_speaker(answer);
  for (const size_t end : answer.burst_ends) {
    if (end <= from) continue;
    const bool said = push_text(answer, std::string_view(text).substr(from, end - from));
    if (const auto outcome = stopped(answer, said)) return outcome;
    from = end;
  }
  return std::nullopt;
}

void LlmWorker::finish_answer(const Answer& answer, const char* finish) {
  ensure_started();
  const gint64 context_used = session_->context_used();
  gst_pad_push_event(src_, gst_minicpmo_event_new_answer_end(answer.turn_id, finish));
  {
    std::lock_guard lock(mutex_);
    stats_.tokens += answer.tokens;
    stats_.decode_time += answer.model_time;
    stats_.first_text_latency = answer.first_text;
    stats_.context_used = context_used;
  }
  GST_INFO_OBJECT(element_, "turn %" G_GUINT64_FORMAT " answered (%s): \"%s\"", answer.turn_id,
                  finish, answer.text.c_str());
  GstStructure* fields = gst_structure_new(
      "minicpmo/answer", "turn-id", G_TYPE_UINT64, answer.turn_id, "text", G_TYPE_STRING,
      answer.text.c_str(), "finish", G_TYPE_STRING, finish, "tokens", G_TYPE_UINT64, answer.tokens,
      "context-used", G_TYPE_UINT64, static_cast<guint64>(context_used), nullptr);
  gst_element_post_message(GST_ELEMENT(element_),
                           gst_message_new_element(GST_OBJECT(element_), fields));
}

// ---------------------------------------------------------------- the output stream

// STREAM_START, CAPS and SEGMENT come before anything else, whatever the input sent. Output time is
// running time.
void LlmWorker::ensure_started() {
  if (!stream_started_) {
    // gst_pad_create_stream_id() is for elements with one sink pad at most.
    GCharPtr id(g_strdup_printf("%s/%08x/text", GST_OBJECT_NAME(element_), g_random_int()));
    EventPtr start(gst_event_new_stream_start(id.get()));
    gst_event_set_group_id(start.get(), gst_util_group_id_next());
    gst_pad_push_event(src_, start.release());
    stream_started_ = true;
  }
  if (segment_sent_) return;
  CapsPtr caps(gst_caps_new_simple("text/x-raw", "format", G_TYPE_STRING, "utf8", nullptr));
  gst_pad_push_event(src_, gst_event_new_caps(caps.get()));
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  EventPtr event(gst_event_new_segment(&segment));
  if (segment_seqnum_ != GST_SEQNUM_INVALID) gst_event_set_seqnum(event.get(), segment_seqnum_);
  segment_sent_ = true;
  gst_pad_push_event(src_, event.release());
}

// Time that has passed in silence, so that whoever waits for this stream need not.
void LlmWorker::push_gap() {
  if (!segment_sent_ || !is_live()) return;
  const GstClockTime from = last_output_, until = output_time();
  if (until > from) gst_pad_push_event(src_, gst_event_new_gap(from, until - from));
}

GstClockTime LlmWorker::output_time() {
  GstClockTime time = turn_end_;
  if (is_live()) {
    const GstClockTime now = gst_element_get_current_running_time(GST_ELEMENT(element_));
    if (GST_CLOCK_TIME_IS_VALID(now)) time = now;
  }
  if (GST_CLOCK_TIME_IS_VALID(time)) last_output_ = std::max(last_output_, time);
  return last_output_;
}

}  // namespace minicpmo
