#include "audioenc/gstminicpmoaudioframer.h"

#include <gst/audio/audio.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "common/gstminicpmospan.h"
#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_audio_enc_debug);
#define GST_CAT_DEFAULT gst_minicpmo_audio_enc_debug

namespace minicpmo {

namespace {

constexpr gsize kBytesPerSample = sizeof(float);
// Timestamps that are off by less are jitter.
constexpr GstClockTime kJitter = 40 * GST_MSECOND;
// A GAP event may claim any duration: no more silence than this is made of one.
constexpr uint64_t kMaxGapSamples = 60 * AudioFramer::kRate;

GstClockTime time_of(uint64_t samples) {
  return gst_util_uint64_scale(samples, GST_SECOND, AudioFramer::kRate);
}

uint64_t samples_of(GstClockTime time) {
  return gst_util_uint64_scale_round(time, AudioFramer::kRate, GST_SECOND);
}

}  // namespace

AudioFramer::AudioFramer(GstMiniCpmoElement* element, GstPad* srcpad)
    : element_(element), srcpad_(srcpad), adapter_(gst_adapter_new()) {
  gst_segment_init(&segment_, GST_FORMAT_TIME);
}

void AudioFramer::open(std::unique_ptr<AudioEncoder> session, const EngineInfo& info) {
  {
    std::lock_guard lock(stats_mutex_);
    session_ = std::move(session);
  }
  chunk_samples_ = static_cast<size_t>(info.chunk_samples);
  chunk_duration_ = time_of(chunk_samples_);
}

void AudioFramer::close() {
  std::unique_ptr<AudioEncoder> closed;
  std::lock_guard lock(stats_mutex_);
  closed.swap(session_);
  if (closed) stats_.gpu_time += closed->gpu_nanoseconds();
}

void AudioFramer::reset(bool keep_caps) {
  gst_adapter_clear(adapter_.get());
  held_events_.clear();
  segment_event_.reset();
  gst_segment_init(&segment_, GST_FORMAT_TIME);
  have_caps_ = have_caps_ && keep_caps;
  counted_ = false;
  marked_turns_ = false;
  in_turn_ = may_go_on_ = false;
  discont_ = true;
  failed_ = false;
  samples_out_ = samples_in_;
  expected_pts_ = GST_CLOCK_TIME_NONE;
  if (!keep_caps) {
    turn_id_ = 0;
    warned_non_finite_ = false;
  }
}

AudioEncStats AudioFramer::stats() const {
  std::lock_guard lock(stats_mutex_);
  AudioEncStats stats = stats_;
  if (session_) stats.gpu_time += session_->gpu_nanoseconds();
  return stats;
}

size_t AudioFramer::held_samples() const {
  return gst_adapter_available(adapter_.get()) / kBytesPerSample;
}

// ---- Before data: caps, segment ---------------------------------------------

// Waits for the model, whose size is part of the caps; then sends what must come before any data.
GstFlowReturn AudioFramer::negotiate() {
  const GstFlowReturn ready = gst_minicpmo_element_wait_ready(element_);
  if (ready != GST_FLOW_OK) return ready;
  if (!have_caps_) {
    const EngineInfo& info = gst_minicpmo_element_engine(element_)->info();
    CapsPtr caps(gst_minicpmo_tensor_caps_new(GST_MINICPMO_TENSOR_ID_EMBEDDING, info.embedding_type,
                                              info.hidden_size));
    GST_DEBUG_OBJECT(element_, "caps %" GST_PTR_FORMAT, caps.get());
    if (!gst_pad_push_event(srcpad_, gst_event_new_caps(caps.get())) &&
        GST_PAD_IS_FLUSHING(srcpad_)) {
      return GST_FLOW_FLUSHING;
    }
    have_caps_ = true;
    if (chunk_duration_ != GST_SECOND) {
      gst_element_post_message(GST_ELEMENT(element_),
                               gst_message_new_latency(GST_OBJECT(element_)));
    }
  }
  if (segment_event_) gst_pad_push_event(srcpad_, segment_event_.release());
  held_events_.push_until(srcpad_, samples_out_);
  return GST_FLOW_OK;
}

bool AudioFramer::stream_start(EventPtr event) {
  finish_turn();
  return gst_pad_push_event(srcpad_, event.release());
}

bool AudioFramer::segment(EventPtr event) {
  TimeSegment next = to_time_segment(event.get());
  if (have_caps_ && !segment_event_ && gst_segment_is_equal(&segment_, &next.segment)) {
    return other(std::move(next.event));
  }
  // What is held belongs to the old segment.
  if (in_turn_ && process(true) == GST_FLOW_FLUSHING) return false;
  segment_ = next.segment;
  counted_ = next.counted;
  expected_pts_ = counted_ ? 0 : GST_CLOCK_TIME_NONE;
  discont_ = true;
  segment_event_ = std::move(next.event);
  return true;
}

bool AudioFramer::other(EventPtr event) {
  held_events_.hold(std::move(event), samples_in_);
  if (have_caps_ && !segment_event_) held_events_.push_until(srcpad_, samples_out_);
  return true;
}

// ---- Turns ------------------------------------------------------------------

GstFlowReturn AudioFramer::begin_turn(guint64 turn_id) {
  in_turn_ = true;
  may_go_on_ = false;
  turn_id_ = turn_id;
  chunk_in_turn_ = 0;
  turn_samples_ = 0;
  warned_max_turn_ = false;
  session_->reset();
  std::lock_guard lock(stats_mutex_);
  ++stats_.turns;
  GST_DEBUG_OBJECT(element_, "turn %" G_GUINT64_FORMAT " begins", turn_id);
  return GST_FLOW_OK;
}

GstFlowReturn AudioFramer::finish_turn() {
  if (!in_turn_) return GST_FLOW_OK;
  const GstFlowReturn flow = process(true);
  in_turn_ = false;
  if (const gsize rest = gst_adapter_available(adapter_.get()); rest > 0) {
    GST_DEBUG_OBJECT(element_, "%" G_GSIZE_FORMAT " bytes are no whole sample", rest);
    gst_adapter_clear(adapter_.get());
  }
  return flow;
}

bool AudioFramer::turn_start(EventPtr event) {
  const GstFlowReturn flow = negotiate();
  if (flow != GST_FLOW_OK) return false;
  finish_turn();
  marked_turns_ = true;
  if (!counted_) expected_pts_ = GST_CLOCK_TIME_NONE;  // what lies between turns is no hole
  begin_turn(gst_minicpmo_event_turn_id(event.get()));
  return other(std::move(event));
}

bool AudioFramer::turn_end(EventPtr event) {
  const GstFlowReturn flow = negotiate();
  if (flow != GST_FLOW_OK) return false;
  if (finish_turn() == GST_FLOW_FLUSHING) return false;
  may_go_on_ = gst_minicpmo_event_is_speculative(event.get());
  return other(std::move(event));
}

bool AudioFramer::turn_cancel(EventPtr event) {
  if (negotiate() != GST_FLOW_OK) return false;
  {
    std::lock_guard lock(stats_mutex_);
    stats_.dropped_samples += held_samples();
  }
  gst_adapter_clear(adapter_.get());
  samples_out_ = samples_in_;
  in_turn_ = may_go_on_ = false;
  discont_ = true;
  return other(std::move(event));
}

bool AudioFramer::eos(EventPtr event) {
  GstFlowReturn flow = negotiate();
  if (flow == GST_FLOW_OK) flow = finish_turn();
  if (flow == GST_FLOW_FLUSHING) return false;
  marked_turns_ = false;
  // After an error too: the error is on the bus, and downstream must not wait for more.
  held_events_.push_until(srcpad_, samples_in_);
  return gst_pad_push_event(srcpad_, event.release());
}

// ---- Data -------------------------------------------------------------------

GstFlowReturn AudioFramer::chain(BufferPtr buffer) {
  const GstFlowReturn flow = negotiate();
  if (flow != GST_FLOW_OK) return flow;
  if (!counted_ && GST_BUFFER_PTS_IS_VALID(buffer.get())) {
    buffer.reset(gst_audio_buffer_clip(buffer.release(), &segment_, kRate, kBytesPerSample));
    if (!buffer) return GST_FLOW_OK;
  }
  const GstClockTime pts = counted_ ? GST_CLOCK_TIME_NONE : GST_BUFFER_PTS(buffer.get());
  if (!in_turn_) {
    if (may_go_on_) {
      in_turn_ = true;  // and it did: minicpmo/turn-resume went ahead
    } else if (marked_turns_) {
      std::lock_guard lock(stats_mutex_);
      stats_.dropped_samples += gst_buffer_get_size(buffer.get()) / kBytesPerSample;
      return GST_FLOW_OK;
    } else {
      begin_turn(turn_id_ + 1);
    }
  }
  return take_stretch(pts, std::move(buffer));
}

// A stretch of samples (or, without a buffer, of silence that append_silence makes) that starts at
// `pts`.
GstFlowReturn AudioFramer::take_stretch(GstClockTime pts, BufferPtr buffer) {
  if (GST_CLOCK_TIME_IS_VALID(pts) && GST_CLOCK_TIME_IS_VALID(expected_pts_)) {
    const GstFlowReturn flow = bridge_gap(pts);
    if (flow != GST_FLOW_OK) return flow;
  }
  if (!GST_CLOCK_TIME_IS_VALID(pts)) pts = expected_pts_;
  if (!GST_CLOCK_TIME_IS_VALID(pts)) pts = segment_.start;
  return append(std::move(buffer), pts);
}

// Samples that were lost: a short gap is filled with silence, so that the encoder hears the pause.
// A long one only as far as the current chunk goes: it stays a whole chunk, and time goes on after
// the jump. A jump back loses nothing.
GstFlowReturn AudioFramer::bridge_gap(GstClockTime pts) {
  const GstClockTimeDiff gap = GST_CLOCK_DIFF(expected_pts_, pts);
  if (gap >= -static_cast<GstClockTimeDiff>(kJitter) &&
      gap <= static_cast<GstClockTimeDiff>(kJitter)) {
    return GST_FLOW_OK;
  }
  GST_INFO_OBJECT(element_, "timestamps jump from %" GST_TIME_FORMAT " to %" GST_TIME_FORMAT,
                  GST_TIME_ARGS(expected_pts_), GST_TIME_ARGS(pts));
  if (gap > 0 && static_cast<GstClockTime>(gap) <= chunk_duration_) {
    return append_silence(samples_of(static_cast<GstClockTime>(gap)), expected_pts_);
  }
  const size_t held = held_samples();
  if (gap > 0 && held > 0) {
    const GstFlowReturn flow = append_silence(chunk_samples_ - held, expected_pts_);
    if (flow != GST_FLOW_OK) return flow;
  }
  discont_ = true;
  return GST_FLOW_OK;
}

// How many of `samples` the turn still takes.
uint64_t AudioFramer::room_in_turn(uint64_t samples) {
  const guint64 max_turn = max_turn_;
  if (max_turn == 0) return samples;
  const uint64_t most = std::max<uint64_t>(samples_of(max_turn), 1);
  const uint64_t room = std::min(samples, most - std::min(most, turn_samples_));
  if (room == samples) return room;
  {
    std::lock_guard lock(stats_mutex_);
    stats_.dropped_samples += samples - room;
  }
  if (!warned_max_turn_) {
    warned_max_turn_ = true;
    gst_minicpmo_element_post_warning(
        element_,
        Error{ErrorCode::kFormat,
              "A turn is longer than max-turn-duration (" + std::to_string(max_turn / GST_MSECOND) +
                  " ms): the rest of it is not heard. Raise max-turn-duration, or ask in parts.",
              "turn " + std::to_string(turn_id_)});
  }
  return room;
}

GstFlowReturn AudioFramer::append(BufferPtr buffer, GstClockTime pts) {
  const gsize bytes = gst_buffer_get_size(buffer.get());
  const uint64_t samples = bytes / kBytesPerSample;
  expected_pts_ = pts + time_of(samples);
  const uint64_t room = room_in_turn(samples);
  if (room < samples) {
    if (room == 0) return GST_FLOW_OK;
    buffer.reset(
        gst_buffer_copy_region(buffer.get(), GST_BUFFER_COPY_ALL, 0, room * kBytesPerSample));
  }
  buffer.reset(gst_buffer_make_writable(buffer.release()));
  GST_BUFFER_PTS(buffer.get()) = pts;
  const size_t before = held_samples();
  gst_adapter_push(adapter_.get(), buffer.release());
  // Bytes that are no whole sample are kept: the next buffer has the rest (filesrc cuts anywhere).
  const size_t added = held_samples() - before;
  if (room == samples) expected_pts_ = pts + time_of(added);
  samples_in_ += added;
  turn_samples_ += added;
  return process(false);
}

GstFlowReturn AudioFramer::append_silence(uint64_t samples, GstClockTime pts) {
  while (samples > 0) {
    const uint64_t part = std::min<uint64_t>(samples, chunk_samples_);
    BufferPtr silence(gst_buffer_new_allocate(nullptr, part * kBytesPerSample, nullptr));
    gst_buffer_memset(silence.get(), 0, 0, part * kBytesPerSample);
    {
      std::lock_guard lock(stats_mutex_);
      stats_.silence_samples += part;
    }
    const GstFlowReturn flow = append(std::move(silence), pts);
    if (flow != GST_FLOW_OK) return flow;
    pts += time_of(part);
    samples -= part;
  }
  return GST_FLOW_OK;
}

// In a turn a GAP is silence that was not sent; between turns it is passed on.
bool AudioFramer::gap(EventPtr event) {
  if (!in_turn_ || counted_) return other(std::move(event));
  GstClockTime pts = GST_CLOCK_TIME_NONE;
  GstClockTime duration = GST_CLOCK_TIME_NONE;
  gst_event_parse_gap(event.get(), &pts, &duration);
  if (!GST_CLOCK_TIME_IS_VALID(duration) || negotiate() != GST_FLOW_OK) return true;
  if (GST_CLOCK_TIME_IS_VALID(pts) && GST_CLOCK_TIME_IS_VALID(expected_pts_) &&
      bridge_gap(pts) != GST_FLOW_OK) {
    return false;
  }
  if (!GST_CLOCK_TIME_IS_VALID(pts)) pts = expected_pts_;
  if (!GST_CLOCK_TIME_IS_VALID(pts)) pts = segment_.start;
  return append_silence(std::min(samples_of(duration), kMaxGapSamples), pts) == GST_FLOW_OK;
}

// ---- The encoder ------------------------------------------------------------

GstFlowReturn AudioFramer::process(bool drain) {
  if (failed_) {
    gst_adapter_clear(adapter_.get());
    samples_out_ = samples_in_;
    return GST_FLOW_ERROR;
  }
  while (held_samples() >= chunk_samples_ || (drain && held_samples() > 0)) {
    const GstFlowReturn flow = encode(std::min(held_samples(), chunk_samples_));
    if (flow != GST_FLOW_OK) return flow;
  }
  return GST_FLOW_OK;
}

GstFlowReturn AudioFramer::encode(size_t samples) {
  guint64 distance = 0;
  GstClockTime pts = gst_adapter_prev_pts(adapter_.get(), &distance);
  if (GST_CLOCK_TIME_IS_VALID(pts)) pts += time_of(distance / kBytesPerSample);
  std::vector<float> pcm(samples);
  gst_adapter_copy(adapter_.get(), pcm.data(), 0, samples * kBytesPerSample);
  gst_adapter_flush(adapter_.get(), samples * kBytesPerSample);
  samples_out_ += samples;
  check_finite(pcm);

  const GstClockTime begin = gst_util_get_timestamp();
  failed_ = true;  // also if it throws
  auto embeddings = [&] {
    const StageSpan span(element_, "encode", turn_id_);
    return session_->step(pcm, gst_minicpmo_element_cancel_flag(element_));
  }();
  const GstClockTime spent = gst_util_get_timestamp() - begin;
  failed_ = !embeddings.ok() && embeddings.error().code != ErrorCode::kCancelled;
  if (!embeddings.ok()) return gst_minicpmo_element_post_error(element_, embeddings.error());
  const bool heard = *embeddings != nullptr;
  {
    std::lock_guard lock(stats_mutex_);
    stats_.processing_time += spent;
    (heard ? stats_.samples : stats_.dropped_samples) += samples;
    if (heard) ++stats_.chunks;
  }
  GstFlowReturn flow = GST_FLOW_OK;
  if (heard) {
    flow = push(*std::move(embeddings), pts, time_of(samples));
  } else {
    GST_DEBUG_OBJECT(element_, "%zu samples are too short to hear", samples);
  }
  held_events_.push_until(srcpad_, samples_out_);
  return flow;
}

GstFlowReturn AudioFramer::push(TensorPtr embeddings, GstClockTime pts, GstClockTime duration) {
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(std::move(embeddings)));
  GST_BUFFER_PTS(buffer.get()) = pts;
  GST_BUFFER_DURATION(buffer.get()) = duration;
  if (discont_) GST_BUFFER_FLAG_SET(buffer.get(), GST_BUFFER_FLAG_DISCONT);
  discont_ = false;
  GstClockTime captured = GST_CLOCK_TIME_NONE;
  if (GST_CLOCK_TIME_IS_VALID(pts))
    captured = gst_segment_to_running_time(&segment_, GST_FORMAT_TIME, pts + duration);
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), turn_id_, chunk_in_turn_++,
                                    GST_MINICPMO_TURN_CHUNK, captured);
  GST_LOG_OBJECT(element_, "push %" GST_PTR_FORMAT, buffer.get());
  return gst_pad_push(srcpad_, buffer.release());
}

void AudioFramer::check_finite(const std::vector<float>& pcm) {
  const auto bad = static_cast<guint64>(
      std::count_if(pcm.begin(), pcm.end(), [](float x) { return !std::isfinite(x); }));
  if (bad == 0) return;
  {
    std::lock_guard lock(stats_mutex_);
    stats_.non_finite_samples += bad;
  }
  if (warned_non_finite_) return;
  warned_non_finite_ = true;
  gst_minicpmo_element_post_warning(
      element_, Error{ErrorCode::kFormat,
                      "The audio has samples that are no finite numbers: they are taken as "
                      "silence. Check what makes them (a filter that went unstable?).",
                      std::to_string(bad) + " in one chunk"});
}

}  // namespace minicpmo
