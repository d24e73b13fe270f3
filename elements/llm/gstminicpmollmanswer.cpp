// The answering half of minicpmollm's worker: decoding, saying, and the output stream.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

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

// What is known of the answer that runs.
struct LlmWorker::Answer {
  guint64 turn_id = 0;
  guint chunk = 0;
  uint64_t flushes = 0;  // of the worker when it began
  guint64 tokens = 0;
  std::string text;
  bool spoke = false;  // something of it was pushed as text
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  GstClockTime model_time = 0;  // spent in the model, not in downstream
  GstClockTime first_text = GST_CLOCK_TIME_NONE;
  FinishReason finish = FinishReason::kNone;
};

// ---------------------------------------------------------------- the answer

bool LlmWorker::begin_answering() {
  std::lock_guard lock(mutex_);
  if (flushing_ || !active_) return false;
  answering_ = true;
  interrupted_ = false;
  ++stats_.turns;
  return true;
}

std::optional<int64_t> LlmWorker::end_answering() {
  std::lock_guard lock(mutex_);
  answering_ = false;
  if (active_ && !flushing_) cancel_.clear();
  if (!std::exchange(interrupted_, false)) return std::nullopt;
  return heard_bytes_;
}

void LlmWorker::answer() {
  Answer answer;
  answer.turn_id = turn_id_ != 0 ? turn_id_ : last_turn_id_ + 1;
  last_turn_id_ = std::max(last_turn_id_, answer.turn_id);
  turn_id_ = 0;
  turn_full_ = false;
  if (!ready()) return;
  if (!session_->turn_open()) return finish_answer(answer, "empty");
  if (!begin_answering()) return;
  {
    std::lock_guard lock(mutex_);
    answer.flushes = flushes_;
  }
  const Outcome outcome = decode(answer);
  const std::optional<int64_t> heard = end_answering();
  if (outcome == Outcome::kAbandoned) return;
  if (outcome == Outcome::kInterrupted) {
    session_->interrupt(heard.value_or(-1));
    std::lock_guard lock(mutex_);
    ++stats_.interrupted;
  } else if (heard) {
    cut_back(*heard);  // the last token was already there
  }
  ++answered_;
  finish_answer(answer, outcome == Outcome::kInterrupted
                            ? "interrupted"
                            : finish_name(answer.finish, answer.spoke));
}

LlmWorker::Outcome LlmWorker::decode(Answer& answer) {
  const Result<void> started = session_->start_answer(cancel_);
  answer.model_time = elapsed_since(answer.start);
  if (!started.ok()) return after_error(started.error());
  while (answer.finish == FinishReason::kNone) {
    const auto begin = std::chrono::steady_clock::now();
    const Result<Burst> burst = session_->next_burst(cancel_);
    answer.model_time += elapsed_since(begin);
    if (!burst.ok()) return after_error(burst.error());
    answer.finish = burst->finish;
    answer.tokens += burst->ids.size();
    const bool said = say(answer, *burst);
    std::lock_guard lock(mutex_);
    if (!said || answer.flushes != flushes_ || flushing_ || !active_) return Outcome::kAbandoned;
    if (interrupted_) return Outcome::kInterrupted;
  }
  return Outcome::kDone;
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
  if (burst.speaker != nullptr && !push_speaker(answer, *burst.speaker)) return false;
  if (!burst.text.empty()) return push_text(answer, burst.text);
  const GstClockTime now = output_time();
  gst_pad_push_event(src_, gst_event_new_gap(now, GST_CLOCK_TIME_NONE));
  ++answer.chunk;
  return true;
}

bool LlmWorker::push_speaker(Answer& answer, const Tensor& speaker) {
  const auto bytes = speaker.host_bytes();
  if (!bytes.ok()) {
    fail(bytes.error());
    return false;
  }
  std::vector<float> vector(bytes->size() / sizeof(float));
  std::memcpy(vector.data(), bytes->data(), vector.size() * sizeof(float));
  gst_pad_push_event(src_,
                     gst_minicpmo_event_new_speaker(answer.turn_id, vector.data(), vector.size()));
  return true;
}

bool LlmWorker::push_text(Answer& answer, const std::string& text) {
  BufferPtr buffer(gst_buffer_new_memdup(text.data(), text.size()));
  GST_BUFFER_PTS(buffer.get()) = output_time();
  if (!answer.spoke) GST_BUFFER_FLAG_SET(buffer.get(), GST_BUFFER_FLAG_DISCONT);
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), answer.turn_id, answer.chunk++,
                                    answer.spoke ? 0 : GST_MINICPMO_TURN_FIRST, capture_time_);
  if (!answer.spoke) answer.first_text = elapsed_since(answer.start);
  answer.spoke = true;
  answer.text += text;
  GST_LOG_OBJECT(element_, "turn %" G_GUINT64_FORMAT ": \"%s\"", answer.turn_id, text.c_str());
  const GstFlowReturn flow = gst_pad_push(src_, buffer.release());
  if (flow == GST_FLOW_OK) return true;
  session_->interrupt(-1);
  fail(flow);
  return false;
}

void LlmWorker::finish_answer(const Answer& answer, const char* finish) {
  ensure_started();
  gst_pad_push_event(src_, gst_minicpmo_event_new_answer_end(answer.turn_id, finish));
  {
    std::lock_guard lock(mutex_);
    stats_.tokens += answer.tokens;
    stats_.decode_time += answer.model_time;
    stats_.first_text_latency = answer.first_text;
    stats_.context_used = session_->context_used();
  }
  GST_INFO_OBJECT(element_, "turn %" G_GUINT64_FORMAT " answered (%s): \"%s\"", answer.turn_id,
                  finish, answer.text.c_str());
  GstStructure* fields =
      gst_structure_new("minicpmo/answer", "turn-id", G_TYPE_UINT64, answer.turn_id, "text",
                        G_TYPE_STRING, answer.text.c_str(), "finish", G_TYPE_STRING, finish,
                        "tokens", G_TYPE_UINT64, answer.tokens, nullptr);
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

GstClockTime LlmWorker::output_time() {
  GstClockTime time = turn_end_;
  if (mode_ == TimestampMode::kArrival) {
    const GstClockTime now = gst_element_get_current_running_time(GST_ELEMENT(element_));
    if (GST_CLOCK_TIME_IS_VALID(now)) time = now;
  }
  if (GST_CLOCK_TIME_IS_VALID(time)) last_output_ = std::max(last_output_, time);
  return last_output_;
}

}  // namespace minicpmo
