// What minicpmovocoder does on its streaming thread: cuts codes into chunks and runs the vocoder on
// them.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "common/gst_ptr.h"
#include "common/gst_stream.h"
#include "common/gstminicpmoelement.h"
#include "common/gstminicpmoturn.h"
#include "common/stage.h"

namespace minicpmo {

// Counted since the element was made.
struct VocoderStats {
  guint64 rows = 0;     // code rows decoded
  guint64 samples = 0;  // pushed, at 24 kHz
  guint64 answers = 0;  // begun
  GstClockTime processing_time = 0;
  GstClockTime gpu_time = 0;
};

// Methods are for the streaming thread unless they say otherwise.
class CodeStream {
 public:
  static constexpr int kRate = 24000;
  static constexpr size_t kChunkRows = 25;  // of the speech model: at most this many rows in a step
  // What the vocoder holds back for the cross-fade with the next chunk.
  static constexpr GstClockTime kHeldBack = GST_SECOND * 2048 / kRate;

  CodeStream(GstMiniCpmoElement* element, GstPad* srcpad);

  // Of the loader thread and of state changes, while nothing streams.
  void open(std::unique_ptr<Vocoder> session);
  void close();

  GstFlowReturn chain(BufferPtr buffer);
  bool stream_start(EventPtr event);
  // FALSE if they are no caps of ours.
  bool caps(GstCaps* caps);
  bool segment(EventPtr event);
  bool answer_end(EventPtr event);
  bool eos(EventPtr event);
  // Any other serialized event.
  bool other(EventPtr event);
  // FLUSH_STOP, and PAUSED to READY: forgets the stream.
  void reset(bool keep_caps);

  // From any thread.
  VocoderStats stats() const;
  void set_compatibility(Compatibility compatibility) { compatibility_ = compatibility; }
  Compatibility compatibility() const { return compatibility_; }

 private:
  void negotiate();
  GstFlowReturn begin_answer(GstClockTime pts);
  GstFlowReturn finish_answer();
  GstFlowReturn decode_held(bool drain);
  GstFlowReturn decode_bytes(size_t rows);
  GstFlowReturn decode(const Tensor& codes, bool segment_start);
  GstFlowReturn decode_chunk(GstBuffer* buffer, bool segment_start);
  GstFlowReturn push(TensorPtr pcm);
  GstFlowReturn fail(const Error& error);
  size_t row_bytes() const { return 4 * size_of(type_); }
  size_t held_rows() const;

  GstMiniCpmoElement* element_;       // owns this
  GstPad* srcpad_;                    // element_'s
  std::unique_ptr<Vocoder> session_;  // changed under stats_mutex_

  std::atomic<Compatibility> compatibility_{Compatibility::kNone};
  mutable std::mutex stats_mutex_;  // guards stats_
  VocoderStats stats_;

  // The rest belongs to the streaming thread.
  AdapterPtr adapter_;
  HeldEvents held_events_;
  GstSegment segment_;
  EventPtr segment_event_;  // to be pushed after the caps
  DataType type_ = DataType::kUInt16;
  bool have_caps_ = false;
  bool counted_ = false;  // the segment is in bytes: time is counted
  bool in_answer_ = false;
  bool failed_ = false;  // the vocoder failed: nothing more until the stream is reset
  bool first_ = false;   // the next buffer is the first of an answer
  guint64 turn_id_ = 0;
  guint chunk_ = 0;
  GstClockTime capture_time_ = GST_CLOCK_TIME_NONE;
  uint64_t rows_in_ = 0;
  uint64_t rows_out_ = 0;
  GstClockTime answer_start_ = 0;
  uint64_t answer_samples_ = 0;
  GstClockTime end_ = GST_CLOCK_TIME_NONE;  // of what was pushed in this segment
};

}  // namespace minicpmo
