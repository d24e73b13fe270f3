// What leaves minicpmoturn: the audio of turns, GAP events between them, the events that mark turns
// (common/gstminicpmoturn.h), and the messages that tell applications of them.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <cstdint>

#include "common/gst_ptr.h"
#include "common/gst_stream.h"
#include "turn/endpointing.h"
#include "turn/timed_samples.h"

namespace minicpmo {

// Counted since the element was made; read from any thread.
struct TurnStats {
  std::atomic<guint64> turns{0};      // begun
  std::atomic<guint64> cancelled{0};  // of these
  std::atomic<guint64> interrupts{0};
  std::atomic<guint64> speculative_ends{0};
  std::atomic<guint64> resumed{0};       // of these
  std::atomic<guint64> speech_time{0};   // voiced windows, ns
  std::atomic<guint64> silence_time{0};  // the others, ns
  std::atomic<guint64> vad_time{0};      // spent on listening, ns
  std::atomic<guint64> passed_samples{0};
  std::atomic<guint64> dropped_samples{0};     // not passed on
  std::atomic<guint64> filled_samples{0};      // silence put in for holes
  std::atomic<guint64> non_finite_samples{0};  // NaN or infinite, taken as 0
};

// For the streaming thread. Positions are those of samples().
class TurnOutput {
 public:
  TurnOutput(GstElement* element, GstPad* srcpad, TurnStats& stats);

  // Neither sent nor dropped yet.
  TimedSamples& samples() { return samples_; }

  void ensure_caps();
  // Takes effect after all that came before was sent or dropped.
  bool push_segment(const GstSegment& segment, EventPtr event);
  // Serialized: its place is behind the samples that have come so far.
  void push_in_order(EventPtr event);
  // At once; for events that came when all samples have gone.
  bool push(EventPtr event);
  // Forgets the stream. An open turn is cancelled on the bus only: downstream is flushed, too.
  void reset(bool flushed);

  // All until `position` goes out, with GAP events if it is silence between turns.
  GstFlowReturn send_until(uint64_t position);
  void drop_until(uint64_t position);
  // Time in which there are no samples at all.
  void add_gap(GstClockTime time, GstClockTime duration);
  void push_gap();

  bool in_turn() const { return open_; }
  // From any thread: the number of a turn that is not spoken.
  guint64 take_number() { return ++last_number_; }
  // A speculative end is out, and the audio waits.
  bool held() const { return held_; }
  // The end of the last voiced sample, in time.
  void set_speech_end(GstClockTime time) { speech_end_ = time; }
  void interrupt();
  void start_turn(uint64_t begin, uint64_t speech, float probability);
  GstFlowReturn announce_end(uint64_t position);
  void resume();
  GstFlowReturn end_turn(uint64_t position, EndReason reason);
  void cancel_turn(uint64_t position, EndReason reason);

 private:
  GstFlowReturn push_samples(uint64_t from, uint64_t to);
  void push_due_events();
  GstClockTime running_time(GstClockTime time) const;
  void post(GstStructure* fields);

  GstElement* element_;
  GstPad* srcpad_;
  TurnStats& stats_;
  TimedSamples samples_;
  HeldEvents held_events_;
  GstSegment segment_;
  bool have_caps_ = false;
  bool discont_ = true;
  GstClockTime gap_begin_ = 0;  // of the GAP event that is being collected
  GstClockTime gap_duration_ = 0;

  std::atomic<guint64> last_number_{0};  // given to a turn, spoken or not
  guint64 turn_id_ = 0;                  // of the last spoken turn that began
  guint64 announced_ = 0;                // number of the one that begins, told with an interrupt
  bool open_ = false;
  bool held_ = false;
  guint chunk_ = 0;  // of this turn
  GstClockTime speech_begin_ = 0;
  GstClockTime speech_end_ = 0;
};

}  // namespace minicpmo
