#include "vocoder/gstminicpmocodestream.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/gstminicpmospan.h"
#include "common/gstminicpmotensormemory.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_vocoder_debug);
#define GST_CAT_DEFAULT gst_minicpmo_vocoder_debug

namespace minicpmo {

namespace {

constexpr int64_t kBooks = 4;
// Longer than any hang-over: whoever was to confirm is gone.
constexpr GstClockTime kMostSpeculation = 10 * GST_SECOND;

GstClockTime time_of(uint64_t samples) {
  return gst_util_uint64_scale(samples, GST_SECOND, CodeStream::kRate);
}

}  // namespace

// ---- Playout ----------------------------------------------------------------

void Playout::begin(guint64 turn_id) {
  turn_id_ = turn_id;
  ended_ = false;
  stretches_.clear();
}

void Playout::add(GstClockTime running_time, uint64_t samples) {
  if (!stretches_.empty()) {
    Stretch& last = stretches_.back();
    const GstClockTime end = last.begin + time_of(last.samples);
    if (running_time <= end + GST_USECOND) {  // time_of rounds
      last.samples += samples;
      return;
    }
  }
  stretches_.push_back({running_time, samples});
}

uint64_t Playout::samples_at(GstClockTime running_time) const {
  uint64_t samples = 0;
  for (const Stretch& stretch : stretches_) {
    if (running_time <= stretch.begin) break;
    const uint64_t gone =
        gst_util_uint64_scale(running_time - stretch.begin, CodeStream::kRate, GST_SECOND);
    samples += std::min(gone, stretch.samples);
  }
  return samples;
}

bool Playout::complete_at(GstClockTime running_time) const {
  if (!ended_ || stretches_.empty()) return ended_;
  const Stretch& last = stretches_.back();
  return running_time >= last.begin + time_of(last.samples);
}

// ---- The stream -------------------------------------------------------------

CodeStream::CodeStream(GstMiniCpmoElement* element, GstPad* sinkpad, GstPad* srcpad)
    : element_(element), sinkpad_(sinkpad), srcpad_(srcpad), adapter_(gst_adapter_new()) {
  gst_segment_init(&segment_, GST_FORMAT_TIME);
}

void CodeStream::open(std::unique_ptr<Vocoder> session) {
  std::lock_guard lock(stats_mutex_);
  session_ = std::move(session);
}

void CodeStream::close() {
  std::unique_ptr<Vocoder> closed;
  std::lock_guard lock(stats_mutex_);
  closed.swap(session_);
  if (closed) stats_.gpu_time += closed->gpu_nanoseconds();
}

void CodeStream::reset(bool keep_caps) {
  gst_adapter_clear(adapter_.get());
  held_events_.clear();
  segment_event_.reset();
  gst_segment_init(&segment_, GST_FORMAT_TIME);
  have_caps_ = have_caps_ && keep_caps;
  counted_ = false;
  in_answer_ = false;
  failed_ = false;
  rows_out_ = rows_in_;
  end_ = GST_CLOCK_TIME_NONE;
  capture_time_ = GST_CLOCK_TIME_NONE;
  speculative_turn_ = 0;
  if (keep_caps) return;
  turn_id_ = 0;
  confirmed_turn_ = 0;
}

VocoderStats CodeStream::stats() const {
  std::lock_guard lock(stats_mutex_);
  VocoderStats stats = stats_;
  if (session_) stats.gpu_time += session_->gpu_nanoseconds();
  return stats;
}

bool CodeStream::heard(GstQuery* query) const {
  const GstClockTime now = gst_element_get_current_running_time(GST_ELEMENT(element_));
  if (!GST_CLOCK_TIME_IS_VALID(now)) return false;
  const GstClockTime latency = latency_;
  const GstClockTime rendered = now - std::min(now, latency);
  std::lock_guard lock(stats_mutex_);
  const bool known = playout_.turn_id() == gst_minicpmo_query_turn_id(query);
  gst_minicpmo_query_set_heard_samples(query, known ? playout_.samples_at(rendered) : 0,
                                       known && playout_.complete_at(rendered));
  return true;
}

size_t CodeStream::held_rows() const {
  return gst_adapter_available(adapter_.get()) / row_bytes();
}

// ---- Before data: caps, segment --------------------------------------------

// Sends what must come before any data. Our caps do not depend on the model, so that a sink that
// needs them to write an empty file (wavenc) has them even if no data ever comes.
void CodeStream::negotiate() {
  if (!have_caps_) {
    CapsPtr caps(gst_caps_new_simple("audio/x-raw", "format", G_TYPE_STRING, "F32LE", "rate",
                                     G_TYPE_INT, kRate, "channels", G_TYPE_INT, 1, "layout",
                                     G_TYPE_STRING, "interleaved", nullptr));
    gst_pad_push_event(srcpad_, gst_event_new_caps(caps.get()));
    have_caps_ = true;
  }
  if (segment_event_) gst_pad_push_event(srcpad_, segment_event_.release());
  held_events_.push_until(srcpad_, rows_out_);
}

bool CodeStream::stream_start(EventPtr event) {
  finish_answer();
  return gst_pad_push_event(srcpad_, event.release());
}

bool CodeStream::caps(GstCaps* caps) {
  DataType type = DataType::kUInt16;
  gint64 columns = 0;
  if (!gst_minicpmo_tensor_caps_parse(caps, GST_MINICPMO_TENSOR_ID_CODE, &type, &columns) ||
      columns != kBooks || (type != DataType::kUInt16 && type != DataType::kInt32)) {
    GST_WARNING_OBJECT(element_, "refused caps %" GST_PTR_FORMAT, caps);
    return false;
  }
  if (type != type_ && in_answer_) decode_held(true);
  type_ = type;
  return true;
}

bool CodeStream::segment(EventPtr event) {
  TimeSegment next = to_time_segment(event.get());
  if (have_caps_ && !segment_event_ && gst_segment_is_equal(&segment_, &next.segment))
    return other(std::move(next.event));
  // What is held belongs to the old segment.
  if (finish_answer() == GST_FLOW_FLUSHING) return false;
  segment_ = next.segment;
  counted_ = next.counted;
  end_ = GST_CLOCK_TIME_NONE;
  segment_event_ = std::move(next.event);
  negotiate();
  return true;
}

// Sound that is still to be rendered is no gap.
bool CodeStream::gap(EventPtr event) {
  GstClockTime pts = GST_CLOCK_TIME_NONE, duration = GST_CLOCK_TIME_NONE;
  gst_event_parse_gap(event.get(), &pts, &duration);
  const bool known = GST_CLOCK_TIME_IS_VALID(pts) && GST_CLOCK_TIME_IS_VALID(duration);
  if (!known || counted_ || !GST_CLOCK_TIME_IS_VALID(end_) || pts >= end_)
    return other(std::move(event));
  if (pts + duration <= end_) return true;
  return other(EventPtr(gst_event_new_gap(end_, pts + duration - end_)));
}

bool CodeStream::speaker(EventPtr event) {
  const bool speculative = gst_minicpmo_event_is_speculative(event.get());
  speculative_turn_ = speculative ? gst_minicpmo_event_turn_id(event.get()) : 0;
  return other(std::move(event));
}

void CodeStream::confirm(guint64 turn_id) {
  confirmed_turn_ = turn_id;
  gst_minicpmo_element_wake(element_);
}

// False when flushed: the turn went on, most likely.
bool CodeStream::wait_confirmed() {
  if (speculative_turn_ == 0 || speculative_turn_ != turn_id_) return true;
  const auto confirmed = [this] { return confirmed_turn_ >= speculative_turn_; };
  if (!gst_minicpmo_element_wait_until(element_, confirmed, kMostSpeculation)) return false;
  speculative_turn_ = 0;
  return true;
}

bool CodeStream::other(EventPtr event) {
  held_events_.hold(std::move(event), rows_in_);
  if (have_caps_ && !segment_event_) held_events_.push_until(srcpad_, rows_out_);
  return true;
}

// ---- Answers ---------------------------------------------------------------

// Time is counted from `pts`, or goes on where the last answer ended if that is later. Live, the
// words came some time ago: the sound starts now.
GstFlowReturn CodeStream::begin_answer(GstClockTime pts, guint64 turn_id) {
  in_answer_ = true;
  first_ = true;
  chunk_ = 0;
  stretch_samples_ = 0;
  stretch_start_ = GST_CLOCK_TIME_IS_VALID(pts) && !counted_ ? pts : segment_.start;
  if (GST_CLOCK_TIME_IS_VALID(end_)) {
    const bool known = GST_CLOCK_TIME_IS_VALID(pts) && !counted_;
    stretch_start_ = known ? std::max(stretch_start_, end_) : end_;
  }
  live_ = !counted_ && gst_minicpmo_pad_is_live(sinkpad_);
  session_->reset();
  std::lock_guard lock(stats_mutex_);
  ++stats_.answers;
  playout_.begin(turn_id);
  return GST_FLOW_OK;
}

GstFlowReturn CodeStream::finish_answer() {
  if (!in_answer_) return GST_FLOW_OK;
  in_answer_ = false;
  const GstFlowReturn flow = decode_held(true);
  if (flow != GST_FLOW_OK) return flow;
  auto tail = session_->flush();
  if (!tail.ok()) return fail(tail.error());
  const GstFlowReturn pushed = push(*std::move(tail));
  std::lock_guard lock(stats_mutex_);
  playout_.end();
  return pushed;
}

bool CodeStream::answer_end(EventPtr event) {
  if (finish_answer() == GST_FLOW_FLUSHING) return false;
  return other(std::move(event));
}

bool CodeStream::eos(EventPtr event) {
  // Waits, so that EOS does not overtake the message of a failed load.
  GstFlowReturn flow = gst_minicpmo_element_wait_ready(element_);
  if (flow == GST_FLOW_OK) flow = finish_answer();
  if (flow == GST_FLOW_FLUSHING) return false;
  if (segment_event_) negotiate();
  held_events_.push_until(srcpad_, rows_in_);
  return gst_pad_push_event(srcpad_, event.release());
}

// ---- Data ------------------------------------------------------------------

GstFlowReturn CodeStream::chain(BufferPtr buffer) {
  GstFlowReturn flow = gst_minicpmo_element_wait_ready(element_);
  if (flow != GST_FLOW_OK) return flow;
  negotiate();
  if (failed_) return GST_FLOW_ERROR;
  const GstMiniCpmoTurnMeta* meta = gst_buffer_get_minicpmo_turn_meta(buffer.get());
  if (in_answer_ && meta != nullptr && meta->turn_id != turn_id_ && turn_id_ != 0) {
    // Another turn without an answer-end in between.
    flow = finish_answer();
    if (flow != GST_FLOW_OK) return flow;
  }
  if (meta != nullptr) {
    turn_id_ = meta->turn_id;
    capture_time_ = meta->capture_time;
  }
  if (!in_answer_) begin_answer(GST_BUFFER_PTS(buffer.get()), turn_id_);
  const guint flags = meta != nullptr ? meta->flags : 0;
  if ((flags & (GST_MINICPMO_TURN_CHUNK | GST_MINICPMO_TURN_SEGMENT_START)) != 0)
    return decode_chunk(buffer.get(), (flags & GST_MINICPMO_TURN_SEGMENT_START) != 0);
  const size_t before = held_rows();
  gst_adapter_push(adapter_.get(), buffer.release());
  rows_in_ += held_rows() - before;
  return decode_held(false);
}

// One chunk as the speech model made it.
GstFlowReturn CodeStream::decode_chunk(GstBuffer* buffer, bool segment_start) {
  GstFlowReturn flow = decode_held(true);
  if (flow != GST_FLOW_OK) return flow;
  auto codes = gst_minicpmo_buffer_get_tensor(buffer, type_, kBooks);
  if (!codes.ok()) return fail(codes.error());
  const auto rows = static_cast<size_t>((*codes)->rows());
  if (rows > kChunkRows) {
    rows_in_ += rows;
    gst_adapter_push(adapter_.get(), gst_buffer_ref(buffer));
    return decode_held(true);
  }
  if (rows == 0) return GST_FLOW_OK;
  rows_in_ += rows;
  return decode(**codes, segment_start);
}

GstFlowReturn CodeStream::decode_held(bool drain) {
  if (failed_) {
    gst_adapter_clear(adapter_.get());
    rows_out_ = rows_in_;
    return GST_FLOW_ERROR;
  }
  while (held_rows() >= kChunkRows || (drain && held_rows() > 0)) {
    const GstFlowReturn flow = decode_bytes(std::min(held_rows(), kChunkRows));
    if (flow != GST_FLOW_OK) return flow;
  }
  const gsize rest = gst_adapter_available(adapter_.get());
  if (drain && rest > 0) {
    gst_adapter_clear(adapter_.get());
    return fail(Error{ErrorCode::kFormat,
                      "The audio codes end in the middle of a row (" + std::to_string(rest) +
                          " of " + std::to_string(row_bytes()) +
                          " bytes): check that type and dims of the caps fit the data.",
                      ""});
  }
  return GST_FLOW_OK;
}

GstFlowReturn CodeStream::decode_bytes(size_t rows) {
  std::vector<std::byte> bytes(rows * row_bytes());
  gst_adapter_copy(adapter_.get(), bytes.data(), 0, bytes.size());
  gst_adapter_flush(adapter_.get(), bytes.size());
  const std::vector<int64_t> dims{static_cast<int64_t>(rows), kBooks};
  return decode(HostTensor(type_, dims, std::move(bytes)), false);
}

GstFlowReturn CodeStream::decode(const Tensor& codes, bool segment_start) {
  const auto rows = static_cast<uint64_t>(codes.rows());
  rows_out_ += rows;
  const GstClockTime begin = gst_util_get_timestamp();
  failed_ = true;  // also if it throws
  auto pcm = [&] {
    const StageSpan span(element_, "vocoder", turn_id_);
    return session_->step(codes, segment_start, gst_minicpmo_element_cancel_flag(element_));
  }();
  const GstClockTime spent = gst_util_get_timestamp() - begin;
  if (!pcm.ok()) return fail(pcm.error());
  failed_ = false;
  {
    std::lock_guard lock(stats_mutex_);
    stats_.rows += rows;
    stats_.processing_time += spent;
  }
  const GstFlowReturn flow = push(*std::move(pcm));
  held_events_.push_until(srcpad_, rows_out_);
  return flow;
}

GstFlowReturn CodeStream::fail(const Error& error) {
  failed_ = error.code != ErrorCode::kCancelled;
  return gst_minicpmo_element_post_error(element_, error);
}

// An answer starts now, and what comes too late to be rendered in time is put off rather than lost.
// Live segments start at 0: positions are running times.
void CodeStream::keep_live() {
  const GstClockTime now = gst_element_get_current_running_time(GST_ELEMENT(element_));
  if (!GST_CLOCK_TIME_IS_VALID(now)) return;
  const GstClockTime pts = stretch_start_ + time_of(stretch_samples_);
  const GstClockTime latest =
      first_ ? now + headroom_ : now - std::min<GstClockTime>(now, latency_);
  if (pts >= latest) return;
  if (!first_) {
    GST_INFO_OBJECT(element_, "%" GST_TIME_FORMAT " too late", GST_TIME_ARGS(now - pts));
    std::lock_guard lock(stats_mutex_);
    ++stats_.late;
  }
  stretch_start_ = now + headroom_;
  stretch_samples_ = 0;
}

GstFlowReturn CodeStream::push(TensorPtr pcm) {
  if (pcm == nullptr || pcm->rows() == 0) return GST_FLOW_OK;
  const auto samples = static_cast<uint64_t>(pcm->rows());
  if (!wait_confirmed()) return GST_FLOW_FLUSHING;
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(std::move(pcm)));
  if (live_) keep_live();
  const GstClockTime pts = stretch_start_ + time_of(stretch_samples_);
  if (first_ || stretch_samples_ == 0) GST_BUFFER_FLAG_SET(buffer.get(), GST_BUFFER_FLAG_DISCONT);
  stretch_samples_ += samples;
  end_ = stretch_start_ + time_of(stretch_samples_);
  GST_BUFFER_PTS(buffer.get()) = pts;
  GST_BUFFER_DURATION(buffer.get()) = end_ - pts;
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), turn_id_, chunk_++,
                                    first_ ? GST_MINICPMO_TURN_FIRST : 0, capture_time_);
  first_ = false;
  {
    std::lock_guard lock(stats_mutex_);
    stats_.samples += samples;
    playout_.add(gst_segment_to_running_time(&segment_, GST_FORMAT_TIME, pts), samples);
  }
  GST_LOG_OBJECT(element_, "push %" GST_PTR_FORMAT, buffer.get());
  const GstFlowReturn flow = gst_pad_push(srcpad_, buffer.release());
  // A queue before us sends EOS after an error: the tail would make the sink fail once more.
  if (flow == GST_FLOW_ERROR) failed_ = true;
  return flow;
}

}  // namespace minicpmo
