#include "llm/gstminicpmollmworker.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "common/gstminicpmoturn.h"
#include "common/guard.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_llm_debug);
#define GST_CAT_DEFAULT gst_minicpmo_llm_debug

namespace minicpmo {

namespace {

// Commands that may wait: half a minute of audio, which bounds memory and is longer than a
// listener's patience.
constexpr size_t kMaxQueued = 32;

GstClockTime elapsed_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() -
                                                              start)
      .count();
}

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

bool is_input(LlmCommand::Kind kind) {
  return kind == LlmCommand::Kind::kEmbeddings || kind == LlmCommand::Kind::kMessage;
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

// ---------------------------------------------------------------- the queue, from any thread

void LlmWorker::open(std::unique_ptr<LanguageModel> session) {
  session_ = std::move(session);
}

void LlmWorker::close() {
  session_.reset();
  session_used_ = false;
}

void LlmWorker::start() {
  {
    std::lock_guard lock(mutex_);
    queue_.clear();
    LlmCommand reset;
    reset.kind = LlmCommand::Kind::kReset;
    queue_.push_back(std::move(reset));
    active_ = true;
    flushing_ = false;
    reset_requested_ = false;
    eos_queued_ = false;
    flow_ = GST_FLOW_OK;
    flow_told_ = false;
    cancel_.clear();
  }
  stream_started_ = false;
  segment_sent_ = false;
  last_output_ = 0;
}

void LlmWorker::stop() {
  {
    std::lock_guard lock(mutex_);
    active_ = false;
    cancel_.set();
  }
  changed_.notify_all();
}

void LlmWorker::begin_flush() {
  {
    std::lock_guard lock(mutex_);
    flushing_ = true;
    ++flushes_;
    cancel_.set();
  }
  changed_.notify_all();
}

void LlmWorker::end_flush() {
  {
    std::lock_guard lock(mutex_);
    queue_.clear();
    LlmCommand reset;
    reset.kind = LlmCommand::Kind::kReset;
    queue_.push_back(std::move(reset));
    flushing_ = false;
    reset_requested_ = false;
    eos_queued_ = false;
    flow_ = GST_FLOW_OK;
    flow_told_ = false;
    if (active_) cancel_.clear();
  }
  segment_sent_ = false;
  last_output_ = 0;
  changed_.notify_all();
}

void LlmWorker::wake() {
  // Taken and given back, so that no waiter is between its look at the condition and its sleep.
  { std::lock_guard lock(mutex_); }
  changed_.notify_all();
}

bool LlmWorker::wait_for_room(std::unique_lock<std::mutex>& lock, const LlmCommand& command,
                              const std::atomic<bool>* gone) {
  const auto lost = [&] {
    return !active_ || (gone != nullptr && gone->load()) || (flushing_ && !command.from_text_sink);
  };
  changed_.wait(lock, [&] { return lost() || (!flushing_ && queue_.size() < kMaxQueued); });
  return !lost();
}

GstFlowReturn LlmWorker::push(LlmCommand command, const std::atomic<bool>* gone) {
  {
    std::unique_lock lock(mutex_);
    if (!wait_for_room(lock, command, gone)) return GST_FLOW_FLUSHING;
    if (is_input(command.kind) && flow_ != GST_FLOW_OK) {
      flow_told_ = true;
      return flow_;
    }
    if (command.kind == LlmCommand::Kind::kEos) eos_queued_ = true;
    queue_.push_back(std::move(command));
  }
  changed_.notify_all();
  return GST_FLOW_OK;
}

bool LlmWorker::try_push(LlmCommand command) {
  {
    std::lock_guard lock(mutex_);
    if (!active_ || flushing_ || eos_queued_ || flow_ != GST_FLOW_OK) return false;
    if (queue_.size() >= kMaxQueued) return false;
    queue_.push_back(std::move(command));
  }
  changed_.notify_all();
  return true;
}

void LlmWorker::drop_text_sink_messages() {
  std::lock_guard lock(mutex_);
  std::erase_if(queue_, [](const LlmCommand& command) {
    return command.from_text_sink && command.kind == LlmCommand::Kind::kMessage;
  });
  changed_.notify_all();
}

void LlmWorker::interrupt(int64_t heard_bytes) {
  std::lock_guard lock(mutex_);
  if (!answering_) return;
  interrupted_ = true;
  heard_bytes_ = heard_bytes;
  cancel_.set();
}

void LlmWorker::reset_session() {
  {
    std::lock_guard lock(mutex_);
    std::erase_if(queue_, [](const LlmCommand& command) { return is_input(command.kind); });
    reset_requested_ = true;
    if (answering_) {
      interrupted_ = true;
      heard_bytes_ = -1;
      cancel_.set();
    }
  }
  changed_.notify_all();
}

void LlmWorker::set_options(const LanguageModelOptions& options) {
  std::lock_guard lock(mutex_);
  options_ = options;
  options_changed_ = true;
}

LlmStats LlmWorker::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

// ---------------------------------------------------------------- the task

std::optional<LlmCommand> LlmWorker::pop() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !active_ || flushing_ || reset_requested_ || !queue_.empty(); });
  if (!active_ || flushing_) return std::nullopt;
  LlmCommand command;
  if (std::exchange(reset_requested_, false)) {
    command.kind = LlmCommand::Kind::kReset;
  } else {
    command = std::move(queue_.front());
    queue_.pop_front();
  }
  lock.unlock();
  changed_.notify_all();
  return command;
}

bool LlmWorker::run_once() {
  if (auto command = pop()) {
    const bool done = guard(GST_ELEMENT(element_), false, [&] {
      carry_out(std::move(*command));
      return true;
    });
    if (!done) {  // what was thrown is on the bus
      fail(GST_FLOW_ERROR);
      end_answering();
    }
  }
  std::lock_guard lock(mutex_);
  return active_ && !flushing_;
}

void LlmWorker::carry_out(LlmCommand command) {
  using Kind = LlmCommand::Kind;
  switch (command.kind) {
    case Kind::kReset:
      return new_session();
    case Kind::kStreamStart:
      answered_ = 0;
      refused_.reset();
      stream_started_ = true;
      segment_sent_ = false;
      gst_pad_push_event(src_, command.event.release());
      return;
    case Kind::kSegment:
      segment_seqnum_ = gst_event_get_seqnum(command.event.get());
      return ensure_started();
    case Kind::kTurnStart:
      turn_id_ = gst_minicpmo_event_turn_id(command.event.get());
      return forward(std::move(command.event));
    case Kind::kTurnEnd: {
      const guint64 id = gst_minicpmo_event_turn_id(command.event.get());
      if (id != 0) turn_id_ = id;
      if (GST_CLOCK_TIME_IS_VALID(command.end)) turn_end_ = command.end;
      forward(std::move(command.event));
      return answer();
    }
    case Kind::kEmbeddings:
      return prefill(command);
    case Kind::kMessage:
      return message(command);
    case Kind::kRefused:
      return refuse(command.error);
    case Kind::kEndOfInput:
      if (GST_CLOCK_TIME_IS_VALID(command.end)) turn_end_ = command.end;
      return end_of_input();
    case Kind::kEos:
      return end_of_stream(std::move(command.event));
    case Kind::kEvent:
      return forward(std::move(command.event));
  }
}

void LlmWorker::forward(EventPtr event) {
  ensure_started();
  gst_pad_push_event(src_, event.release());
}

bool LlmWorker::failed() const {
  std::lock_guard lock(mutex_);
  return flow_ != GST_FLOW_OK;
}

void LlmWorker::fail(GstFlowReturn flow) {
  {
    std::lock_guard lock(mutex_);
    if (flow_ != GST_FLOW_OK || flushing_ || !active_) return;
    flow_ = flow;
  }
  changed_.notify_all();
}

void LlmWorker::fail(const Error& error) {
  fail(gst_minicpmo_element_post_error(element_, error));
  new_session();
}

// Whether the session may be used. The one place that waits for the model to be loaded.
bool LlmWorker::ready() {
  if (failed()) return false;
  const GstFlowReturn flow = gst_minicpmo_element_wait_ready(element_);
  if (flow == GST_FLOW_OK && session_ != nullptr) {
    session_used_ = true;
    apply_options();
    return true;
  }
  if (flow != GST_FLOW_FLUSHING) fail(GST_FLOW_ERROR);
  return false;
}

void LlmWorker::apply_options() {
  std::optional<LanguageModelOptions> options;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(options_changed_, false)) options = options_;
  }
  if (options) session_->set_options(*options);
}

void LlmWorker::new_session() {
  if (session_used_ && session_ != nullptr) session_->reset();
  turn_full_ = false;
  turn_id_ = 0;
  turn_end_ = GST_CLOCK_TIME_NONE;
  capture_time_ = GST_CLOCK_TIME_NONE;
}

void LlmWorker::note_input(const LlmCommand& command) {
  if (command.turn_id != 0) turn_id_ = command.turn_id;
  if (turn_id_ == 0) turn_id_ = last_turn_id_ + 1;
  if (GST_CLOCK_TIME_IS_VALID(command.end)) turn_end_ = command.end;
  capture_time_ = GST_CLOCK_TIME_IS_VALID(command.capture_time) ? command.capture_time : turn_end_;
}

void LlmWorker::refuse(const Error& error) {
  gst_minicpmo_element_post_warning(element_, error);
  refused_ = error;
  std::lock_guard lock(mutex_);
  ++stats_.refused;
}

void LlmWorker::prefill(const LlmCommand& command) {
  ensure_started();
  note_input(command);
  if (turn_full_ || !ready()) return;
  const auto start = std::chrono::steady_clock::now();
  const Result<void> done = session_->prefill_audio(*command.embeddings, cancel_);
  if (!done.ok()) {
    if (done.error().code == ErrorCode::kCancelled) return;
    if (done.error().code != ErrorCode::kContextFull) return fail(done.error());
    turn_full_ = true;
    return refuse({ErrorCode::kContextFull,
                   "The question is too long for the model's context: the rest of it is not heard.",
                   done.error().message});
  }
  std::lock_guard lock(mutex_);
  stats_.rows += command.embeddings->rows();
  stats_.prefill_time += elapsed_since(start);
}

void LlmWorker::message(const LlmCommand& command) {
  ensure_started();
  if (!ready()) return;
  const auto start = std::chrono::steady_clock::now();
  const Result<void> done = session_->prefill_text(command.text, cancel_);
  if (!done.ok()) {
    if (done.error().code == ErrorCode::kCancelled) return;
    if (done.error().code != ErrorCode::kContextFull) return fail(done.error());
    return refuse({ErrorCode::kContextFull,
                   "A text message of " + std::to_string(command.text.size()) +
                       " bytes does not fit into the model's context: it is not answered.",
                   done.error().message});
  }
  note_input(command);
  {
    std::lock_guard lock(mutex_);
    ++stats_.messages;
    stats_.prefill_time += elapsed_since(start);
  }
  answer();
}

void LlmWorker::end_of_input() {
  ensure_started();
  if (session_used_ && session_ != nullptr && session_->turn_open()) answer();
}

void LlmWorker::end_of_stream(EventPtr event) {
  ensure_started();
  GstFlowReturn untold = GST_FLOW_OK;
  bool interrupted = false;
  {
    std::lock_guard lock(mutex_);
    interrupted = flushing_ || !active_;
    if (!flow_told_) untold = flow_;
  }
  if (answered_ == 0 && !failed() && !interrupted) {
    if (refused_) {
      fail(*refused_);
    } else {
      gst_minicpmo_element_post_warning(
          element_,
          {ErrorCode::kFormat, "There is nothing to answer: the input ended without a question.",
           "EOS without audio embeddings or text"});
    }
  }
  // Upstream learns of a flow with its next buffer, and reports it; now there is none.
  if (untold == GST_FLOW_NOT_LINKED || untold == GST_FLOW_NOT_NEGOTIATED)
    GST_ELEMENT_FLOW_ERROR(element_, untold);
  gst_pad_push_event(src_, event.release());
}

// ---------------------------------------------------------------- the answer

bool LlmWorker::begin_answering() {
  std::lock_guard lock(mutex_);
  if (flushing_ || !active_) return false;
  answering_ = true;
  interrupted_ = false;
  ++stats_.turns;
  return true;
}

void LlmWorker::end_answering() {
  std::lock_guard lock(mutex_);
  answering_ = false;
  if (active_ && !flushing_) cancel_.clear();
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
  if (outcome == Outcome::kInterrupted) {
    int64_t heard = -1;
    {
      std::lock_guard lock(mutex_);
      heard = heard_bytes_;
      ++stats_.interrupted;
    }
    session_->interrupt(heard);
  }
  end_answering();
  if (outcome == Outcome::kAbandoned) return;
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
    gst_pad_push_event(src_, gst_event_new_stream_start(id.get()));
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
