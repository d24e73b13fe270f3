#include "llm/gstminicpmollmworker.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "common/gstminicpmospan.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_llm_debug);
#define GST_CAT_DEFAULT gst_minicpmo_llm_debug

namespace minicpmo {

namespace {

// Commands that may wait: half a minute of audio, which bounds memory and is longer than a
// listener's patience.
constexpr size_t kMaxQueued = 32;

// Live, silence is told downstream this often: seldom, since GstAudioEncoder keeps GAP events until
// there is sound again.
constexpr std::chrono::seconds kIdleTime{1};

bool is_input(LlmCommand::Kind kind) {
  return kind == LlmCommand::Kind::kEmbeddings || kind == LlmCommand::Kind::kMessage;
}

}  // namespace

// ---------------------------------------------------------------- the queue, from any thread

void LlmWorker::open(std::unique_ptr<LanguageModel> session) {
  std::lock_guard lock(mutex_);
  session_ = std::move(session);
}

void LlmWorker::close() {
  session_used_ = false;
  std::unique_ptr<LanguageModel> closed;
  std::lock_guard lock(mutex_);
  closed.swap(session_);
  if (closed) add_gpu_time(*closed, &stats_);
  queue_.clear();
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
    forget_requests();
    cancel_.clear();
  }
  stream_started_ = false;
  segment_sent_ = false;
  last_output_ = 0;
}

// What was asked of the last stream. With mutex_ held.
void LlmWorker::forget_requests() {
  reset_requested_ = false;
  cut_back_.reset();
  reopen_ = discard_ = false;
  resumed_turn_ = interrupter_ = 0;
  sounding_ = {};
  superseded_ = 0;
  eos_queued_ = false;
  flow_ = GST_FLOW_OK;
  flow_told_ = false;
  upstream_ = Upstream::kUnknown;
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

bool LlmWorker::end_flush() {
  bool active;
  {
    std::lock_guard lock(mutex_);
    queue_.clear();
    LlmCommand reset;
    reset.kind = LlmCommand::Kind::kReset;
    queue_.push_back(std::move(reset));
    flushing_ = false;
    forget_requests();
    active = active_;
    if (active) cancel_.clear();
  }
  segment_sent_ = false;
  last_output_ = 0;
  changed_.notify_all();
  return active;
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
  command.handed_in = gst_util_get_timestamp();
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
  command.handed_in = gst_util_get_timestamp();
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

void LlmWorker::reset_session() {
  {
    std::lock_guard lock(mutex_);
    std::erase_if(queue_, [](const LlmCommand& command) { return is_input(command.kind); });
    reset_requested_ = true;
    cut_back_.reset();
  }
  interrupt(-1);
  wake();
}

void LlmWorker::set_options(const LanguageModelOptions& options) {
  std::lock_guard lock(mutex_);
  options_ = options;
  options_changed_ = true;
}

LlmStats LlmWorker::stats() const {
  std::lock_guard lock(mutex_);
  LlmStats stats = stats_;
  if (session_) add_gpu_time(*session_, &stats);
  return stats;
}

void LlmWorker::add_gpu_time(const LanguageModel& session, LlmStats* stats) {
  stats->gpu_time += session.gpu_nanoseconds();
  stats->gpu_prefill_time += session.gpu_prefill_nanoseconds();
}

// ---------------------------------------------------------------- the task

std::optional<LlmCommand> LlmWorker::pop() {
  std::unique_lock lock(mutex_);
  const bool any = changed_.wait_for(lock, kIdleTime, [&] {
    return !active_ || flushing_ || flush_started_ || reset_requested_ || cut_back_ || reopen_ ||
           !queue_.empty();
  });
  if (!active_ || flushing_ || flush_started_) return std::nullopt;
  LlmCommand command;
  if (!any) {
    command.kind = LlmCommand::Kind::kIdle;
    return command;
  }
  if (std::exchange(reset_requested_, false)) {
    command.kind = LlmCommand::Kind::kReset;
  } else if (std::exchange(reopen_, false)) {
    command.kind = LlmCommand::Kind::kReopen;
  } else if (const auto heard = std::exchange(cut_back_, std::nullopt)) {
    // Before what waits: the next turn is not part of what is cut.
    command.kind = LlmCommand::Kind::kCutBack;
    command.heard_bytes = *heard;
  } else {
    command = std::move(queue_.front());
    queue_.pop_front();
  }
  lock.unlock();
  changed_.notify_all();
  return command;
}

bool LlmWorker::run_once() {
  finish_flush();
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
    case Kind::kCutBack:
      return cut_back(command.heard_bytes);
    case Kind::kReopen:
      return reopen();
    case Kind::kIdle:
      return push_gap();
    case Kind::kStreamStart:
      upstream_ = Upstream::kUnknown;
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
    case Kind::kTurnEnd:
      if (GST_CLOCK_TIME_IS_VALID(command.end)) turn_end_ = command.end;
      return turn_end(std::move(command.event));
    case Kind::kTurnCancel:
      return turn_cancel(std::move(command.event));
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
  if (session_used_ && session_ != nullptr) {
    if (prepare_session_) prepare_session_();
    apply_options();
    session_->reset();
  }
  last_answer_.reset();
  last_heard_.reset();
  unanswered_ = 0;
  turn_full_ = false;
  turn_id_ = 0;
  turn_end_ = GST_CLOCK_TIME_NONE;
  capture_time_ = GST_CLOCK_TIME_NONE;
}

// The session itself knows whether there is an answer to cut, and that the next turn has not begun.
void LlmWorker::cut_back(int64_t heard_bytes) {
  if (heard_bytes < 0 || !session_used_ || session_ == nullptr || failed()) return;
  session_->interrupt(heard_bytes);
  if (!last_answer_) return;
  last_heard_ = heard_bytes;
  report_cut(*last_answer_, heard_bytes);
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
  const Result<void> done = [&] {
    const StageSpan span(element_, "prefill", turn_id_, command.handed_in);
    return session_->prefill_audio(*command.embeddings, cancel_);
  }();
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
  const guint64 open = turn_id_ != 0 ? turn_id_ : last_turn_id_ + 1;
  const Result<void> done = [&] {
    const StageSpan span(element_, "prefill", command.turn_id != 0 ? command.turn_id : open,
                         command.handed_in);
    return session_->prefill_text(command.text, cancel_);
  }();
  if (!done.ok()) {
    if (done.error().code == ErrorCode::kCancelled) return;
    if (done.error().code != ErrorCode::kContextFull) return fail(done.error());
    return refuse({ErrorCode::kContextFull,
                   "A text message of " + std::to_string(command.text.size()) +
                       " bytes does not fit into the model's context: it is not answered. "
                       "Send a shorter one.",
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
  // Without a model there is an error on the bus already, or it is on its way.
  const bool loaded = gst_minicpmo_element_wait_ready(element_) == GST_FLOW_OK;
  if (answered_ == 0 && loaded && !failed() && !interrupted) {
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

}  // namespace minicpmo
