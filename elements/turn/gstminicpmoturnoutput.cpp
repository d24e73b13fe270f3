#include "turn/gstminicpmoturnoutput.h"

#include <algorithm>
#include <utility>

#include "common/gstminicpmoturn.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_turn_debug);
#define GST_CAT_DEFAULT gst_minicpmo_turn_debug

namespace minicpmo {

namespace {

constexpr GstClockTime kGapDuration = 100 * GST_MSECOND;

GstClockTime duration_of(uint64_t samples) {
  return samples * TimedSamples::kSampleTime;
}

const gchar* reason_name(EndReason reason) {
  switch (reason) {
    case EndReason::kSilence:
      return "silence";
    case EndReason::kMaxTurn:
      return "max-turn";
    case EndReason::kRequest:
      return "request";
    default:
      return "stream";
  }
}

}  // namespace

TurnOutput::TurnOutput(GstElement* element, GstPad* srcpad, TurnStats& stats)
    : element_(element), srcpad_(srcpad), stats_(stats) {
  gst_segment_init(&segment_, GST_FORMAT_TIME);
}

// ---- The stream -------------------------------------------------------------

void TurnOutput::ensure_caps() {
  if (have_caps_) return;
  have_caps_ = true;
  CapsPtr caps(gst_pad_get_pad_template_caps(srcpad_));
  push(EventPtr(gst_event_new_caps(caps.get())));
}

bool TurnOutput::push_segment(const GstSegment& segment, EventPtr event) {
  ensure_caps();
  segment_ = segment;
  discont_ = true;
  return push(std::move(event));
}

void TurnOutput::push_in_order(EventPtr event) {
  held_events_.hold(std::move(event), samples_.end());
  push_due_events();
}

bool TurnOutput::push(EventPtr event) {
  held_events_.push_until(srcpad_, samples_.end());
  return gst_pad_push_event(srcpad_, event.release());
}

void TurnOutput::reset(bool flushed) {
  if (flushed && open_) {
    post(gst_structure_new(GST_MINICPMO_EVENT_TURN_CANCEL, "turn-id", G_TYPE_UINT64, turn_id_,
                           "reason", G_TYPE_STRING, "flush", nullptr));
  }
  samples_.clear();
  held_events_.clear();
  gst_segment_init(&segment_, GST_FORMAT_TIME);
  have_caps_ = have_caps_ && flushed;
  discont_ = true;
  gap_duration_ = 0;
  open_ = held_ = false;
  announced_ = 0;
  if (!flushed) turn_id_ = last_number_ = 0;
}

GstClockTime TurnOutput::running_time(GstClockTime time) const {
  return gst_segment_to_running_time(&segment_, GST_FORMAT_TIME, time);
}

// Takes `fields`.
void TurnOutput::post(GstStructure* fields) {
  GST_DEBUG_OBJECT(element_, "post %" GST_PTR_FORMAT, fields);
  gst_element_post_message(element_, gst_message_new_element(GST_OBJECT(element_), fields));
}

// ---- Samples ----------------------------------------------------------------

GstFlowReturn TurnOutput::send_until(uint64_t position) {
  GstFlowReturn flow = GST_FLOW_OK;
  while (samples_.begin() < position && flow == GST_FLOW_OK)
    flow = push_samples(samples_.begin(), std::min(position, samples_.next_jump(samples_.begin())));
  push_due_events();
  return flow;
}

GstFlowReturn TurnOutput::push_samples(uint64_t from, uint64_t to) {
  const auto pcm = samples_.view(from, static_cast<size_t>(to - from));
  BufferPtr buffer(gst_buffer_new_memdup(pcm.data(), pcm.size_bytes()));
  GST_BUFFER_PTS(buffer.get()) = samples_.time_of(from);
  GST_BUFFER_DURATION(buffer.get()) = duration_of(to - from);
  if (discont_ || samples_.jump_at(from))
    GST_BUFFER_FLAG_SET(buffer.get(), GST_BUFFER_FLAG_DISCONT);
  discont_ = false;
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), turn_id_, chunk_++, 0,
                                    running_time(samples_.end_time_of(to)));
  samples_.drop_until(to);
  stats_.passed_samples += to - from;
  return gst_pad_push(srcpad_, buffer.release());
}

void TurnOutput::drop_until(uint64_t position) {
  while (samples_.begin() < position) {
    const uint64_t from = samples_.begin();
    const uint64_t to = std::min(position, samples_.next_jump(from));
    add_gap(samples_.time_of(from), duration_of(to - from));
    samples_.drop_until(to);
    stats_.dropped_samples += to - from;
  }
  push_due_events();
}

void TurnOutput::add_gap(GstClockTime time, GstClockTime duration) {
  if (gap_duration_ > 0 && time != gap_begin_ + gap_duration_) push_gap();
  if (gap_duration_ == 0) gap_begin_ = time;
  gap_duration_ += duration;
  if (gap_duration_ >= kGapDuration) push_gap();
}

void TurnOutput::push_gap() {
  const GstClockTime duration = std::exchange(gap_duration_, 0);
  if (duration > 0) gst_pad_push_event(srcpad_, gst_event_new_gap(gap_begin_, duration));
}

void TurnOutput::push_due_events() {
  if (!held_events_.due(samples_.begin())) return;
  push_gap();
  held_events_.push_until(srcpad_, samples_.begin());
}

// ---- Turns ------------------------------------------------------------------

void TurnOutput::interrupt() {
  ++stats_.interrupts;
  // Turns that are not spoken may have had numbers since.
  if (!open_ && (announced_ == 0 || announced_ != last_number_)) announced_ = take_number();
  gst_pad_push_event(srcpad_, gst_minicpmo_event_new_barge_in(open_ ? turn_id_ : announced_));
}

void TurnOutput::start_turn(uint64_t begin, uint64_t speech, float probability) {
  drop_until(begin);
  push_gap();
  speech_begin_ = samples_.time_of(speech);
  const guint64 announced = std::exchange(announced_, 0);
  turn_id_ = announced != 0 ? announced : take_number();
  ++stats_.turns;
  open_ = true;
  held_ = false;
  chunk_ = 0;
  discont_ = true;
  gst_pad_push_event(srcpad_, gst_minicpmo_event_new_turn_start(turn_id_));
  post(gst_structure_new(GST_MINICPMO_EVENT_TURN_START, "turn-id", G_TYPE_UINT64, turn_id_,
                         "running-time", G_TYPE_UINT64, running_time(speech_begin_), "probability",
                         G_TYPE_DOUBLE, static_cast<double>(probability), nullptr));
}

GstFlowReturn TurnOutput::announce_end(uint64_t position) {
  const GstFlowReturn flow = send_until(position);
  held_ = true;
  ++stats_.speculative_ends;
  gst_pad_push_event(
      srcpad_, gst_minicpmo_event_new_turn_end_full(turn_id_, running_time(speech_end_), TRUE));
  return flow;
}

void TurnOutput::resume() {
  held_ = false;
  ++stats_.resumed;
  gst_pad_push_event(srcpad_, gst_minicpmo_event_new_turn_resume(turn_id_));
}

GstFlowReturn TurnOutput::end_turn(uint64_t position, EndReason reason) {
  const GstClockTime now = samples_.end_time_of(position);
  const GstClockTime speech_end = running_time(speech_end_);
  const bool announced = std::exchange(held_, false);
  const GstFlowReturn flow = announced ? GST_FLOW_OK : send_until(position);
  open_ = false;
  gst_pad_push_event(srcpad_,
                     announced ? gst_minicpmo_event_new_turn_confirm(turn_id_)
                               : gst_minicpmo_event_new_turn_end_full(turn_id_, speech_end, FALSE));
  post(gst_structure_new(
      GST_MINICPMO_EVENT_TURN_END, "turn-id", G_TYPE_UINT64, turn_id_, "running-time",
      G_TYPE_UINT64, running_time(now), "speech-end", G_TYPE_UINT64, speech_end, "duration",
      G_TYPE_UINT64, speech_end_ - std::min(speech_end_, speech_begin_), "decision-delay",
      G_TYPE_UINT64, now - std::min(now, speech_end_), "speculative", G_TYPE_BOOLEAN, announced,
      "reason", G_TYPE_STRING, reason_name(reason), nullptr));
  return flow;
}

void TurnOutput::cancel_turn(uint64_t position, EndReason reason) {
  open_ = held_ = false;
  ++stats_.cancelled;
  gst_pad_push_event(srcpad_, gst_minicpmo_event_new_turn_cancel(turn_id_));
  post(gst_structure_new(GST_MINICPMO_EVENT_TURN_CANCEL, "turn-id", G_TYPE_UINT64, turn_id_,
                         "running-time", G_TYPE_UINT64,
                         running_time(samples_.end_time_of(position)), "reason", G_TYPE_STRING,
                         reason_name(reason), nullptr));
}

}  // namespace minicpmo
