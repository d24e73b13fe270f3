// The turns of one pipeline. Fed by the hooks of the tracer, from any thread.
#pragma once

#include <gst/gst.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "turn.h"
#include "turn_path.h"

namespace minicpmo::tracers {

class Outputs;

// Looks up (or makes) what is known of a pad.
PadInfoPtr pad_info(GstPad* pad);

class PipelineTrace {
 public:
  // `outputs` outlives it.
  PipelineTrace(std::string name, int number, Outputs& outputs)
      : name_(std::move(name)), number_(number), outputs_(outputs) {}

  const std::string& name() const { return name_; }
  int number() const { return number_; }

  // Something leaves a source pad.
  void buffer(GstPad* pad, PadInfo& info, GstBuffer* buffer);
  // What left it has been taken.
  void taken(PadInfo& info);
  void event(GstPad* pad, PadInfo& info, GstEvent* event);
  // A stage works.
  void stage_begin(GstElement* element, const std::string& stage, guint64 turn_id,
                   GstClockTime handed_in);
  void stage_end(GstElement* element, const std::string& stage, guint64 turn_id);
  // The language model's answer had so many tokens.
  void answer(guint64 turn_id, guint64 tokens);
  // The pipeline stops: tells what is left.
  void finish();

 private:
  struct Stage {
    GstClockTime begin = kNever;
    GstClockTime handed_in = kNever;
  };
  // What an element's calls have cost on a GPU so far: a call may return before the GPU is done, so
  // what is new belongs to the turn of the calls before.
  struct GpuClock {
    GstClockTime total = 0, prefill = 0;  // as the element's stats say; prefill is part of total
    guint64 turn_id = 0;
    std::string stage;                          // of what is not prefill
    std::map<std::string, GstClockTime> began;  // the last call of each stage
  };
  // What passes a pad, and when.
  struct Passing {
    PadInfo& info;
    GstClockTime now = kNever;
    GstClockTime running_now = kNever;  // of the pipeline
    guint64 entered = 0;                // set if it is a mark of this turn
    bool ends_turn = false;             // set if a turn is over
  };

  // With mutex_ held.
  Turn& turn_of(guint64 id);
  Turn* known(guint64 id);
  void note_data(Passing& at, GstBuffer* buffer);
  void note_answer(Passing& at, Turn& turn);
  void note_burst(Passing& at, Turn& turn);
  void note_codes(const PadInfo& info, Turn& turn, GstBuffer* buffer);
  void note_sound(Passing& at, Turn& turn, GstBuffer* buffer);
  void note_output(Passing& at, GstBuffer* buffer, guint64 turn_id);
  void note_custom(Passing& at, GstEvent* event);
  void note_question(Passing& at, GstEvent* event, Turn& turn);
  void note_hearing(const Passing& at, GstClockTime speech_end, Turn& turn);
  void note_answer_end(Passing& at, GstEvent* event, Turn& turn);
  void note_prefill(Turn& turn, const Stage& stage, GstClockTime now);
  void note_flush(Passing& at);
  bool is_ready(const Turn& turn) const;

  // Without.
  void note_before(Passing& at, GstPad* pad, GstEvent* event);
  void begin_turn(GstElement* element, guint64 turn_id);
  void note_queue(GstPad* pad, const PadInfo& info, guint64 turn_id);
  void tell(bool all);
  // Reads the element's stats, and goes on to the turn if that is not 0.
  void note_gpu(GstElement* element, guint64 next_turn = 0);
  void note_late_gpu(const TurnPath& path);

  const std::string name_;
  const int number_;
  Outputs& outputs_;

  std::mutex mutex_;  // guards what follows, and the infos of the pads
  std::map<guint64, Turn> turns_;
  std::map<std::pair<std::string, guint64>, Stage> stages_;
  std::map<const GstElement*, GpuClock> gpu_clocks_;
  guint64 sounding_ = 0;  // the last turn whose sound has left the vocoder

  std::mutex tell_mutex_;  // turns are told one after the other
};

using PipelineTracePtr = std::shared_ptr<PipelineTrace>;

}  // namespace minicpmo::tracers
