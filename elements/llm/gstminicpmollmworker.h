// The working half of minicpmollm: a bounded queue of commands, and the task that carries them out
// one by one.
//
// The pads' threads only enqueue. The task alone uses the session and pushes downstream, so
// whatever arrives while an answer runs waits behind it in order, and nothing is locked while the
// model runs or a buffer is pushed.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/gst_ptr.h"
#include "common/gstminicpmoelement.h"
#include "common/stage.h"

namespace minicpmo {

// Time since `start`, in nanoseconds.
inline GstClockTime elapsed_since(std::chrono::steady_clock::time_point start) {
  const auto time = std::chrono::steady_clock::now() - start;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

enum class TimestampMode { kInput, kArrival, kAuto };

struct LlmCommand {
  enum class Kind {
    kStreamStart,  // event: forwarded, and counts start anew
    kEvent,        // event: forwarded
    kSegment,      // event: of the input; starts the output if need be
    kTurnStart,    // event: forwarded
    kTurnEnd,      // event: forwarded, then the turn is answered
    kTurnCancel,   // event: forwarded; the turn is forgotten, and what it interrupted goes on
    kEmbeddings,   // embeddings: one chunk of the user's turn
    kMessage,      // text: ends the user's turn, which is answered
    kRefused,      // error: input that was not taken
    kEndOfInput,   // the main input ends: what is open is answered
    kEos,          // event: forwarded
    kReset,        // a new session
    kCutBack,      // heard_bytes: what was heard of the last answer
    kReopen,       // the last answer is discarded: the user's turn goes on
    kIdle,         // nothing happens for a while
  };
  Kind kind = Kind::kEvent;
  EventPtr event;
  TensorPtr embeddings;
  std::string text;
  Error error;
  guint64 turn_id = 0;                              // 0: the open turn, or the next one
  GstClockTime end = GST_CLOCK_TIME_NONE;           // running time of the end of this input
  GstClockTime capture_time = GST_CLOCK_TIME_NONE;  // running time of the user's last sample
  GstClockTime handed_in = GST_CLOCK_TIME_NONE;     // gst_util_get_timestamp() of push()
  bool from_text_sink = false;
  int64_t heard_bytes = -1;
};

struct LlmStats {
  guint64 turns = 0;        // answers begun
  guint64 interrupted = 0;  // of these, ended early
  guint64 resumed = 0;      // of these, went on because nobody had spoken
  guint64 discarded = 0;    // speculative answers whose turn went on
  guint64 cut_back = 0;     // answers of which the end was not heard, and is not remembered
  guint64 tokens = 0;       // sampled
  guint64 rows = 0;         // embeddings read
  guint64 messages = 0;     // text messages read
  guint64 refused = 0;      // inputs that did not fit
  GstClockTime prefill_time = 0;
  GstClockTime decode_time = 0;
  GstClockTime gpu_time = 0;                              // on a GPU
  GstClockTime gpu_prefill_time = 0;                      // of it, reading
  GstClockTime first_text_latency = GST_CLOCK_TIME_NONE;  // last answer: start to first text
  gint64 context_used = 0;                                // positions, after the last answer
};

class LlmWorker {
 public:
  // None is owned; all outlive the worker.
  LlmWorker(GstMiniCpmoElement* element, GstPad* sink, GstPad* src)
      : element_(element), sink_(sink), src_(src) {}

  // The task uses the session only after wait_ready(), so the loader may bring it while the task
  // runs.
  void open(std::unique_ptr<LanguageModel> session);
  // Without a running task only.
  void close();

  // Before the task starts, and after the task has been stopped or paused.
  void start();
  // The element goes down: every wait ends.
  void stop();
  // FLUSH_START: the running call stops at its next token.
  void begin_flush();
  // FLUSH_STOP, with the task paused: the queue is empty and a new session begins. False if the
  // element has gone down meanwhile, and the task must not start again.
  bool end_flush();
  // Wakes whoever waits in push(), to look at its `gone` again.
  void wake();

  // Enqueues; waits while the queue is full. What comes from text_sink also waits for a flush of
  // the main input to end. Returns the flow of the output for data, and GST_FLOW_FLUSHING when
  // stopped or *gone.
  GstFlowReturn push(LlmCommand command, const std::atomic<bool>* gone = nullptr);
  // The same, but never waits; false if it would have to.
  bool try_push(LlmCommand command);
  void drop_text_sink_messages();

  // One command. False when the task should pause: flushing or stopped.
  bool run_once();

  // Ends the running answer at its next token. If the last answer is complete but still sounding,
  // the conversation is cut back to what was heard of it. Live (timestamp-mode arrival) what is on
  // its way to the listener is flushed, and what was heard is asked for, if heard_bytes does not
  // tell (negative).
  void interrupt(int64_t heard_bytes);
  // The same because turn `turn_id` begins: answers to the turns before it. Live only: the turns of
  // a file are all answered.
  void barge_in(guint64 turn_id);
  // The user's turn goes on although its (speculative) end was said: its answer is discarded.
  void resume_turn(guint64 turn_id);
  // Ends the running answer, drops input that waits, and forgets the conversation.
  void reset_session();

  void set_options(const LanguageModelOptions& options);
  void set_timestamp_mode(TimestampMode mode) { mode_ = mode; }
  void set_resume(bool resume) { resume_ = resume; }
  // Called by the task before a new session; may set options.
  void set_prepare_session(std::function<void()> prepare) { prepare_session_ = std::move(prepare); }
  // Whether the output is timed by its arrival. With timestamp-mode auto: whether upstream is live,
  // asked once per stream.
  bool is_live() const;
  LlmStats stats() const;

 private:
  static void add_gpu_time(const LanguageModel& session, LlmStats* stats);
  enum class Outcome { kDone, kInterrupted, kAbandoned };
  // What is known of an answer.
  struct Answer {
    guint64 turn_id = 0;
    guint chunk = 0;
    uint64_t flushes = 0;  // of the worker when it began
    guint64 tokens = 0;
    std::string text;
    std::vector<size_t> burst_ends;  // in text
    std::vector<float> speaker;
    bool started = false;      // the session has begun it
    bool speculative = false;  // the turn may go on
    bool spoke = false;        // something of it was pushed as text
    size_t said_from = 0;      // where in text it was taken up again
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    GstClockTime model_time = 0;  // spent in the model, not in downstream
    GstClockTime first_text = GST_CLOCK_TIME_NONE;
    FinishReason finish = FinishReason::kNone;
  };
  struct Heard {
    int64_t bytes = -1;  // of the answer's text; negative: unknown
    bool complete = false;
  };
  // The answer that may still be on its way to the listener.
  struct Sounding {
    guint64 turn_id = 0;     // 0: none
    int64_t said_from = 0;   // bytes of its text that were heard before it was taken up again
    int64_t text_bytes = 0;  // pushed, those included
  };

  bool wait_for_room(std::unique_lock<std::mutex>& lock, const LlmCommand& command,
                     const std::atomic<bool>* gone);
  void forget_requests();
  std::optional<LlmCommand> pop();
  void carry_out(LlmCommand command);
  void forward(EventPtr event);

  bool ready();
  bool failed() const;
  void fail(GstFlowReturn flow);
  void fail(const Error& error);
  void new_session();
  void cut_back(int64_t heard_bytes);
  void prefill(const LlmCommand& command);
  void message(const LlmCommand& command);
  void refuse(const Error& error);
  void end_of_input();
  void end_of_stream(EventPtr event);
  void note_input(const LlmCommand& command);
  void apply_options();

  void turn_end(EventPtr event);
  void turn_cancel(EventPtr event);
  void answer(bool speculative = false);
  void run_answer(Answer answer);
  void supersede(const Answer& answer);
  bool may_resume(guint64 cancelled_turn) const;
  Outcome decode(Answer& answer);
  std::optional<Outcome> stopped(const Answer& answer, bool said) const;
  Outcome after_error(const Error& error);
  bool say(Answer& answer, const Burst& burst);
  bool take_speaker(Answer& answer, const Tensor& speaker);
  void push_speaker(const Answer& answer);
  bool push_text(Answer& answer, std::string_view text);
  std::optional<Outcome> say_again(Answer& answer);
  void finish_answer(const Answer& answer, const char* finish);
  void report_cut(const Answer& answer, int64_t heard_bytes);
  enum class Begin { kYes, kNo, kSuperseded };
  Begin begin_answering(const Answer& answer);
  // What an interruption meanwhile said was heard; nullopt: there was none.
  std::optional<int64_t> end_answering();

  void stop_answers(guint64 before_turn, int64_t heard_bytes, bool discard = false);
  bool take_discard();
  void reopen();
  void push_gap();
  Heard ask_heard(const Sounding& sounding) const;
  bool is_interrupted() const;
  void finish_flush();

  void ensure_started();
  GstClockTime output_time();

  GstMiniCpmoElement* const element_;
  GstPad* const sink_;
  GstPad* const src_;
  std::unique_ptr<LanguageModel> session_;  // of the task; changed under mutex_

  // Set by begin_flush, stop and interrupt; handed to every call of the session.
  CancelFlag cancel_;
  std::atomic<TimestampMode> mode_{TimestampMode::kAuto};
  enum class Upstream { kUnknown, kLive, kNotLive };
  mutable std::atomic<Upstream> upstream_{Upstream::kUnknown};
  std::atomic<bool> resume_{true};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // mutex_ guards from here:
  std::deque<LlmCommand> queue_;
  bool active_ = false;
  bool flushing_ = false;
  bool answering_ = false;
  bool interrupted_ = false;
  bool reset_requested_ = false;
  bool eos_queued_ = false;
  int64_t heard_bytes_ = -1;
  std::optional<int64_t> cut_back_;  // asked for between answers
  Sounding sounding_;
  guint64 answering_turn_ = 0;
  guint64 resumed_turn_ = 0;    // a speculative end of it is void
  bool discard_ = false;        // the interruption under way
  bool reopen_ = false;         // asked for between answers
  guint64 interrupter_ = 0;     // the turn that began into the last answer to be interrupted
  guint64 superseded_ = 0;      // turns before this one are not answered any more
  bool interrupting_ = false;   // somebody is about to start a flush of the output
  bool flush_started_ = false;  // by an interruption; the task ends it
  uint64_t flushes_ = 0;
  GstFlowReturn flow_ = GST_FLOW_OK;  // of the output
  bool flow_told_ = false;            // upstream has seen it
  LlmStats stats_;
  LanguageModelOptions options_;
  bool options_changed_ = false;
  // ... to here.

  std::function<void()> prepare_session_;

  // Of the task:
  bool session_used_ = false;
  bool stream_started_ = false;
  bool segment_sent_ = false;
  guint32 segment_seqnum_ = GST_SEQNUM_INVALID;
  bool turn_full_ = false;  // audio of this turn no longer fits
  guint64 turn_id_ = 0;     // of the open turn; 0: none
  guint64 last_turn_id_ = 0;
  GstClockTime turn_end_ = GST_CLOCK_TIME_NONE;
  GstClockTime capture_time_ = GST_CLOCK_TIME_NONE;
  GstClockTime last_output_ = 0;
  guint64 answered_ = 0;    // since the stream started
  guint64 unanswered_ = 0;  // a turn that ended when the next one had begun; 0: none
  std::optional<Answer> last_answer_;
  std::optional<int64_t> last_heard_;  // bytes of it; set if it was interrupted
  std::optional<Error> refused_;
};

}  // namespace minicpmo
