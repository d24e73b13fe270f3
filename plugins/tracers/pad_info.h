// What the tracer knows of a source pad: whose it is, the time of its stream, and when the sound of
// the last seconds passed it.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <deque>
#include <memory>
#include <string>

namespace minicpmo::tracers {

class PipelineTrace;

enum class Role { kOther, kTurn, kEncoder, kLanguageModel, kSpeech, kVocoder, kQueue, kJitter };

// On the way of a turn: not at all, before the first element that knows turns, behind it up to the
// vocoder, or behind that.
enum class Side { kNone, kInput, kInner, kOutput };

// An element by its names, which outlive it.
struct ElementInfo {
  explicit ElementInfo(GstElement* element);
  ~ElementInfo() { g_weak_ref_clear(&element); }
  ElementInfo(const ElementInfo&) = delete;
  ElementInfo& operator=(const ElementInfo&) = delete;

  bool is_kind(const char* word) const { return klass.find(word) != std::string::npos; }

  mutable GWeakRef element;
  std::string name;
  std::string factory;
  std::string klass;
  Role role = Role::kOther;
};

// All but the constant parts is guarded by the mutex of the pipeline's trace.
struct PadInfo {
  PadInfo(GstElement* owner, std::shared_ptr<PipelineTrace> trace)
      : element(owner), pipeline(std::move(trace)) {
    gst_segment_init(&segment, GST_FORMAT_UNDEFINED);
  }

  // Running time of the end of a buffer, NONE if its stream has no times.
  GstClockTime running_end(const GstBuffer* buffer);
  // Remembers that sound up to `end` passes at `now`.
  void remember(GstClockTime end, GstClockTime now);
  // When the sound at that running time passed; NONE if nobody knows any more.
  GstClockTime time_of(GstClockTime running_time) const;

  const ElementInfo element;
  const std::shared_ptr<PipelineTrace> pipeline;
  std::atomic<Side> side{Side::kNone};
  bool last = false;  // nothing of the way follows
  GstSegment segment;
  GstClockTime last_buffer = GST_CLOCK_TIME_NONE;
  GstClockTime eos = GST_CLOCK_TIME_NONE;
  guint64 answering = 0;  // the turn whose answer passes
  guint64 leaving = 0;    // the turn whose first sound is being taken by the last element

 private:
  struct Heard {
    GstClockTime end;
    GstClockTime time;
  };
  std::deque<Heard> heard_;
  GstClockTime last_pts_ = GST_CLOCK_TIME_NONE;
  GstClockTime distance_ = 0;
};

using PadInfoPtr = std::shared_ptr<PadInfo>;

}  // namespace minicpmo::tracers
