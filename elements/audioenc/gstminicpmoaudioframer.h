// What minicpmoaudioenc does on its streaming thread: cuts PCM into chunks and runs the encoder on
// them.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/gst_ptr.h"
#include "common/gst_stream.h"
#include "common/gstminicpmoelement.h"
#include "common/stage.h"

namespace minicpmo {

// Counted since the element was made.
struct AudioEncStats {
  guint64 samples = 0;             // encoded, silence of gaps included
  guint64 chunks = 0;              // buffers pushed
  guint64 turns = 0;               // begun
  guint64 silence_samples = 0;     // put in for gaps
  guint64 dropped_samples = 0;     // past max-turn-duration, between turns, or too short to encode
  guint64 non_finite_samples = 0;  // NaN or infinite, taken as 0
  GstClockTime processing_time = 0;
  GstClockTime gpu_time = 0;
};

// Methods are for the streaming thread unless they say otherwise.
class AudioFramer {
 public:
  static constexpr int kRate = 16000;
  static constexpr guint64 kDefaultMaxTurn = 60 * GST_SECOND;

  AudioFramer(GstMiniCpmoElement* element, GstPad* srcpad);

  // Of the loader thread and of state changes, while nothing streams.
  void open(std::unique_ptr<AudioEncoder> session, const EngineInfo& info);
  void close();

  GstFlowReturn chain(BufferPtr buffer);
  bool stream_start(EventPtr event);
  bool segment(EventPtr event);
  bool gap(EventPtr event);
  bool turn_start(EventPtr event);
  bool turn_end(EventPtr event);
  // What is held of the turn is dropped.
  bool turn_cancel(EventPtr event);
  bool eos(EventPtr event);
  // Any other serialized event.
  bool other(EventPtr event);
  // FLUSH_STOP, and PAUSED to READY: forgets the stream.
  void reset(bool keep_caps);

  // From any thread.
  AudioEncStats stats() const;
  void set_max_turn(guint64 nanoseconds) { max_turn_ = nanoseconds; }
  guint64 max_turn() const { return max_turn_; }
  GstClockTime chunk_duration() const { return chunk_duration_; }

 private:
  GstFlowReturn negotiate();
  GstFlowReturn begin_turn(guint64 turn_id);
  GstFlowReturn finish_turn();
  GstFlowReturn take_stretch(GstClockTime pts, BufferPtr buffer);
  GstFlowReturn bridge_gap(GstClockTime pts);
  GstFlowReturn append(BufferPtr buffer, GstClockTime pts);
  GstFlowReturn append_silence(uint64_t samples, GstClockTime pts);
  GstFlowReturn process(bool drain);
  GstFlowReturn encode(size_t samples);
  GstFlowReturn push(TensorPtr embeddings, GstClockTime pts, GstClockTime duration);
  void check_finite(const std::vector<float>& pcm);
  uint64_t room_in_turn(uint64_t samples);
  size_t held_samples() const;

  GstMiniCpmoElement* element_;            // owns this
  GstPad* srcpad_;                         // element_'s
  std::unique_ptr<AudioEncoder> session_;  // changed under stats_mutex_
  size_t chunk_samples_ = kRate;
  std::atomic<guint64> chunk_duration_{GST_SECOND};
  std::atomic<guint64> max_turn_{kDefaultMaxTurn};

  mutable std::mutex stats_mutex_;  // guards stats_
  AudioEncStats stats_;

  // The rest belongs to the streaming thread.
  AdapterPtr adapter_;
  HeldEvents held_events_;
  GstSegment segment_;
  EventPtr segment_event_;  // to be pushed after the caps
  bool have_caps_ = false;
  bool counted_ = false;       // the segment is in bytes: time is counted
  bool marked_turns_ = false;  // turn-start was seen: between turns nothing is encoded
  bool in_turn_ = false;
  bool may_go_on_ = false;  // the end of the last turn was speculative
  bool discont_ = true;
  bool failed_ = false;  // the encoder failed: nothing more until the stream is reset
  bool warned_non_finite_ = false;
  bool warned_max_turn_ = false;
  guint64 turn_id_ = 0;
  guint chunk_in_turn_ = 0;
  uint64_t turn_samples_ = 0;
  uint64_t samples_in_ = 0;                          // put into the adapter since the start
  uint64_t samples_out_ = 0;                         // taken from it
  GstClockTime expected_pts_ = GST_CLOCK_TIME_NONE;  // of the next sample
};

}  // namespace minicpmo
