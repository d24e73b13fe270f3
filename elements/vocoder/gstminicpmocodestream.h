// What minicpmovocoder does on its streaming thread: cuts codes into chunks and runs the vocoder on
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
#include "common/gstminicpmoturn.h"
#include "common/stage.h"

namespace minicpmo {

// Counted since the element was made.
struct VocoderStats {
  guint64 rows = 0;     // code rows decoded
  guint64 samples = 0;  // pushed, at 24 kHz
  guint64 answers = 0;  // begun
  guint64 late = 0;     // stretches of an answer that came too late, and were put off
  GstClockTime processing_time = 0;
  GstClockTime gpu_time = 0;
};

// When the samples of an answer are rendered: one stretch, or more if the pipeline could not keep
// up.
class Playout {
 public:
  void begin(guint64 turn_id);
  void add(GstClockTime running_time, uint64_t samples);
  void end() { ended_ = true; }
  guint64 turn_id() const { return turn_id_; }
  // Samples of the answer rendered by then.
  uint64_t samples_at(GstClockTime running_time) const;
  // Whether that were all.
  bool complete_at(GstClockTime running_time) const;

 private:
  struct Stretch {
    GstClockTime begin;
    uint64_t samples;
  };
  guint64 turn_id_ = 0;
  bool ended_ = false;
  std::vector<Stretch> stretches_;
};

// Methods are for the streaming thread unless they say otherwise.
class CodeStream {
 public:
  static constexpr int kRate = 24000;
  static constexpr size_t kChunkRows = 25;  // of the speech model: at most this many rows in a step
  static constexpr GstClockTime kDefaultHeadroom = 20 * GST_MSECOND;

  CodeStream(GstMiniCpmoElement* element, GstPad* sinkpad, GstPad* srcpad);

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
  bool gap(EventPtr event);
  // Sound of a speculative answer is kept until its turn is confirmed.
  bool speaker(EventPtr event);
  // Any other serialized event.
  bool other(EventPtr event);
  // FLUSH_STOP, and PAUSED to READY: forgets the stream.
  void reset(bool keep_caps);

  // From any thread.
  VocoderStats stats() const;
  // Answers minicpmo/heard with the samples whose time to be rendered has come.
  bool heard(GstQuery* query) const;
  void confirm(guint64 turn_id);
  // Of the pipeline: how much later than its running time a sample is rendered.
  void set_latency(GstClockTime latency) { latency_ = latency; }
  void set_headroom(GstClockTime headroom) { headroom_ = headroom; }
  GstClockTime headroom() const { return headroom_; }
  void set_compatibility(Compatibility compatibility) { compatibility_ = compatibility; }
  Compatibility compatibility() const { return compatibility_; }

 private:
  void negotiate();
  GstFlowReturn begin_answer(GstClockTime pts, guint64 turn_id);
  GstFlowReturn finish_answer();
  GstFlowReturn decode_held(bool drain);
  GstFlowReturn decode_bytes(size_t rows);
  GstFlowReturn decode(const Tensor& codes, bool segment_start);
  GstFlowReturn decode_chunk(GstBuffer* buffer, bool segment_start);
  GstFlowReturn push(TensorPtr pcm);
  void keep_live();
  bool wait_confirmed();
  GstFlowReturn fail(const Error& error);
  size_t row_bytes() const { return 4 * size_of(type_); }
  size_t held_rows() const;

  GstMiniCpmoElement* element_;       // owns this
  GstPad* sinkpad_;                   // element_'s
  GstPad* srcpad_;                    // element_'s
  std::unique_ptr<Vocoder> session_;  // changed under stats_mutex_

  std::atomic<Compatibility> compatibility_{Compatibility::kNone};
  std::atomic<guint64> confirmed_turn_{0};
  std::atomic<GstClockTime> latency_{0};
  std::atomic<GstClockTime> headroom_{kDefaultHeadroom};
  mutable std::mutex stats_mutex_;  // guards the next two
  VocoderStats stats_;
  Playout playout_;  // of the last answer

  // The rest belongs to the streaming thread.
  AdapterPtr adapter_;
  HeldEvents held_events_;
  GstSegment segment_;
  EventPtr segment_event_;  // to be pushed after the caps
  DataType type_ = DataType::kUInt16;
  bool have_caps_ = false;
  bool counted_ = false;  // the segment is in bytes: time is counted
  bool in_answer_ = false;
  bool failed_ = false;           // we or those behind did: nothing more until the stream is reset
  bool first_ = false;            // the next buffer is the first of an answer
  guint64 speculative_turn_ = 0;  // not confirmed when its answer began
  bool live_ = false;             // upstream is: answers start when they come
  guint64 turn_id_ = 0;
  guint chunk_ = 0;
  GstClockTime capture_time_ = GST_CLOCK_TIME_NONE;
  uint64_t rows_in_ = 0;
  uint64_t rows_out_ = 0;
  GstClockTime stretch_start_ = 0;  // without a hole since
  uint64_t stretch_samples_ = 0;
  GstClockTime end_ = GST_CLOCK_TIME_NONE;  // of what was pushed in this segment
};

}  // namespace minicpmo
