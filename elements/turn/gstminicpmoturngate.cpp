#include "turn/gstminicpmoturngate.h"

#include <gst/audio/audio.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/gstminicpmoerror.h"
#include "common/gstminicpmomodel.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_turn_debug);
#define GST_CAT_DEFAULT gst_minicpmo_turn_debug

namespace minicpmo {

namespace {

constexpr int kRate = 16000;
constexpr gsize kBytesPerSample = sizeof(float);
// Timestamps that are off by less are jitter.
constexpr GstClockTime kJitter = 40 * GST_MSECOND;
// A hole is heard as silence: this much of it always, and as long as a turn is open more; but a GAP
// event may claim any duration.
constexpr uint64_t kAlwaysFilled = kRate;
constexpr uint64_t kMostFilled = 60 * kRate;
constexpr GstClockTime kLongestHole = 24 * 3600 * GST_SECOND;
// What is taken from a buffer at a time.
constexpr size_t kBlockBytes = kRate * kBytesPerSample;
constexpr size_t kMostRequests = 16;

GstClockTime duration_of(uint64_t samples) {
  return samples * TimedSamples::kSampleTime;
}

uint64_t samples_of(GstClockTime time) {
  return (time + TimedSamples::kSampleTime / 2) / TimedSamples::kSampleTime;
}

}  // namespace

TurnGate::TurnGate(GstElement* element, GstPad* srcpad)
    : element_(element), output_(element, srcpad, stats_), samples_(output_.samples()) {
  gst_segment_init(&segment_, GST_FORMAT_TIME);
}

// ---- From any thread --------------------------------------------------------

void TurnGate::request(Request request) {
  std::lock_guard lock(mutex_);
  if (requests_.size() < kMostRequests) requests_.push_back(request);
}

TurnSettings TurnGate::settings() const {
  std::lock_guard lock(mutex_);
  return settings_;
}

void TurnGate::set_settings(const TurnSettings& settings) {
  std::lock_guard lock(mutex_);
  settings_ = settings;
}

// The first sample of the pre-roll waits until its turn starts; what comes after a speculative end,
// until that is taken back: at the latest when the hang-over would have been over.
GstClockTime TurnGate::latency(const TurnSettings& settings) {
  const EndpointingSettings& s = settings.endpointing;
  const auto whole_windows = [](uint64_t samples) {
    return (samples + Endpointing::kWindow - 1) / Endpointing::kWindow * Endpointing::kWindow;
  };
  if (settings.mode == TurnMode::kManual) return duration_of(s.padding + Endpointing::kWindow);
  uint64_t samples = s.padding + whole_windows(std::max<uint64_t>(s.min_speech, 1));
  if (s.speculative_after > 0 && s.speculative_after < s.silence)
    samples = std::max(samples, whole_windows(s.silence) - whole_windows(s.speculative_after));
  return duration_of(samples);
}

// ---- State ------------------------------------------------------------------

Result<void> TurnGate::open(std::string vad_path) {
  vad_path_ = std::move(vad_path);
  if (settings().mode == TurnMode::kVad) return ensure_vad();
  return {};
}

void TurnGate::close() {
  vad_.reset();
}

Result<void> TurnGate::ensure_vad() {
  if (vad_) return {};
  ASSIGN_OR_RETURN(const Backend* backend, gst_minicpmo_backend_get());
  auto opened = backend->new_voice_activity(vad_path_);
  if (!opened.ok()) {
    Error error = opened.error();
    error.message = "Cannot open the voice activity network: " + error.message +
                    (error.message.ends_with('.') ? "" : ".") +
                    " Run tools/setup, or name the file with the property model; mode=manual "
                    "needs none.";
    return error;
  }
  vad_ = std::move(opened).value();
  return {};
}

void TurnGate::reset(bool flushed) {
  skip_rest();
  endpointing_.finish();
  output_.reset(flushed);
  partial_.clear();
  gst_segment_init(&segment_, GST_FORMAT_TIME);
  have_segment_ = counted_ = timed_ = failed_ = false;
  if (!flushed) warned_non_finite_ = false;
  if (vad_) vad_->reset();
  std::lock_guard lock(mutex_);
  requests_.clear();
}

// ---- Events -----------------------------------------------------------------

bool TurnGate::stream_start(EventPtr event) {
  if (have_segment_) finish();
  return output_.push(std::move(event));
}

bool TurnGate::caps() {
  output_.ensure_caps();
  return true;
}

bool TurnGate::segment(EventPtr event) {
  TimeSegment next = to_time_segment(event.get());
  if (have_segment_ && counted_ == next.counted && gst_segment_is_equal(&segment_, &next.segment))
    return other(std::move(next.event));
  if (have_segment_ && finish() == GST_FLOW_FLUSHING) return false;
  samples_.clear();
  partial_.clear();
  if (vad_) vad_->reset();
  segment_ = next.segment;
  counted_ = next.counted;
  have_segment_ = true;
  timed_ = false;
  return output_.push_segment(segment_, std::move(next.event));
}

bool TurnGate::other(EventPtr event) {
  output_.push_in_order(std::move(event));
  return true;
}

bool TurnGate::eos(EventPtr event) {
  output_.ensure_caps();
  if (finish() == GST_FLOW_FLUSHING) return false;
  // After an error too: the error is on the bus, and downstream must not wait for more.
  return output_.push(std::move(event));
}

// A GAP is silence that was not sent.
bool TurnGate::gap(EventPtr event) {
  if (counted_) return other(std::move(event));
  if (failed_) return true;
  output_.ensure_caps();
  GstClockTime pts = GST_CLOCK_TIME_NONE;
  GstClockTime duration = GST_CLOCK_TIME_NONE;
  gst_event_parse_gap(event.get(), &pts, &duration);
  GstFlowReturn flow = align(pts);
  if (flow == GST_FLOW_OK) flow = apply_requests();
  if (flow == GST_FLOW_OK && GST_CLOCK_TIME_IS_VALID(duration)) flow = hole(duration);
  return flow == GST_FLOW_OK;
}

// ---- Data -------------------------------------------------------------------

GstFlowReturn TurnGate::chain(BufferPtr buffer) {
  if (failed_) return GST_FLOW_ERROR;
  output_.ensure_caps();
  if (!counted_ && GST_BUFFER_PTS_IS_VALID(buffer.get())) {
    buffer.reset(gst_audio_buffer_clip(buffer.release(), &segment_, kRate, kBytesPerSample));
    if (!buffer) return GST_FLOW_OK;
  }
  GstFlowReturn flow = align(counted_ ? GST_CLOCK_TIME_NONE : GST_BUFFER_PTS(buffer.get()));
  if (flow == GST_FLOW_OK) flow = apply_requests();
  if (flow != GST_FLOW_OK) return flow;
  BufferMap map(buffer.get());
  if (!map.ok())
    return fail(Error{ErrorCode::kFailed, "A buffer of audio cannot be read.", "gst_buffer_map"});
  return take(map.bytes());
}

// Makes the time of the next sample `pts`: what is missing until then is silence.
GstFlowReturn TurnGate::align(GstClockTime pts) {
  const bool usable = GST_CLOCK_TIME_IS_VALID(pts) && pts <= G_MAXINT64;
  if (!timed_) {
    timed_ = true;
    samples_.set_time(usable ? pts : segment_.start, false);
    return GST_FLOW_OK;
  }
  if (!usable) return GST_FLOW_OK;
  const GstClockTime expected = samples_.time_of(samples_.end());
  const GstClockTimeDiff ahead = GST_CLOCK_DIFF(expected, pts);
  if (ahead > static_cast<GstClockTimeDiff>(kJitter)) {
    GST_INFO_OBJECT(element_, "hole of %" GST_STIME_FORMAT, GST_STIME_ARGS(ahead));
    const GstFlowReturn flow = hole(static_cast<GstClockTime>(ahead));
    if (flow != GST_FLOW_OK) return flow;
  } else if (ahead < -static_cast<GstClockTimeDiff>(kJitter)) {
    GST_INFO_OBJECT(element_, "timestamps jump by %" GST_STIME_FORMAT, GST_STIME_ARGS(ahead));
    jump_to(pts);
  }
  samples_.set_time(pts, false);
  return GST_FLOW_OK;
}

// Nothing was heard for that long. What is not filled with silence is a jump in time.
GstFlowReturn TurnGate::hole(GstClockTime duration) {
  const GstClockTime begin = samples_.time_of(samples_.end());
  const uint64_t missing = samples_of(std::min(duration, kLongestHole));
  uint64_t filled = 0;
  while (filled < std::min(missing, kMostFilled) &&
         (missing <= kAlwaysFilled || endpointing_.busy())) {
    const uint64_t part = std::min<uint64_t>(missing - filled, Endpointing::kWindow);
    scratch_.assign(static_cast<size_t>(part), 0.0f);
    samples_.append(scratch_);
    stats_.filled_samples += part;
    filled += part;
    const GstFlowReturn flow = process();
    if (flow != GST_FLOW_OK) return flow;
  }
  if (filled < missing) jump_to(begin + duration_of(missing));
  return GST_FLOW_OK;
}

// In a turn the audio goes on with another time; otherwise nothing from before is of use any more.
void TurnGate::jump_to(GstClockTime time) {
  if (endpointing_.busy()) {
    samples_.set_time(time, true);
    return;
  }
  skip_rest();
  output_.drop_until(samples_.end());
  const GstClockTime end = samples_.time_of(samples_.end());
  if (time > end) output_.add_gap(end, time - end);
  output_.push_gap();
  samples_.clear();
  samples_.set_time(time, false);
  partial_.clear();
  if (vad_) vad_->reset();
}

GstFlowReturn TurnGate::take(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kBlockBytes));
    bytes = bytes.subspan(part.size());
    // Bytes that are no whole sample are kept: the next buffer has the rest (filesrc cuts
    // anywhere).
    partial_.insert(partial_.end(), part.begin(), part.end());
    scratch_.resize(partial_.size() / kBytesPerSample);
    const size_t whole = scratch_.size() * kBytesPerSample;
    std::memcpy(scratch_.data(), partial_.data(), whole);
    partial_.erase(partial_.begin(), partial_.begin() + static_cast<std::ptrdiff_t>(whole));
    sanitize(scratch_);
    samples_.append(scratch_);
    const GstFlowReturn flow = process();
    if (flow != GST_FLOW_OK) return flow;
  }
  return GST_FLOW_OK;
}

void TurnGate::sanitize(std::span<float> pcm) {
  guint64 bad = 0;
  for (float& sample : pcm) {
    if (std::isfinite(sample)) continue;
    sample = 0;
    ++bad;
  }
  if (bad == 0) return;
  stats_.non_finite_samples += bad;
  if (warned_non_finite_) return;
  warned_non_finite_ = true;
  gst_minicpmo_post(element_, GST_MESSAGE_WARNING,
                    Error{ErrorCode::kFormat,
                          "The audio has samples that are no finite numbers: they are taken as "
                          "silence. Check what makes them (a filter that went unstable?).",
                          std::to_string(bad) + " at once"});
}

// ---- Listening --------------------------------------------------------------

GstFlowReturn TurnGate::process() {
  while (samples_.end() - endpointing_.position() >= Endpointing::kWindow) {
    if (flushing_) return GST_FLOW_FLUSHING;
    const GstFlowReturn flow = window();
    if (flow != GST_FLOW_OK) return flow;
  }
  return GST_FLOW_OK;
}

GstFlowReturn TurnGate::window() {
  const TurnSettings settings = this->settings();
  endpointing_.set_settings(settings.endpointing);
  const GstClockTime begin = gst_util_get_timestamp();
  failed_ = true;  // also if it throws
  const auto heard =
      probability(samples_.view(endpointing_.position(), Endpointing::kWindow), settings.mode);
  if (!heard.ok()) return fail(heard.error());
  failed_ = false;
  stats_.vad_time += gst_util_get_timestamp() - begin;
  const auto decisions = endpointing_.step(std::span(&*heard, 1));
  const uint64_t position = endpointing_.position();
  const bool voiced = endpointing_.last_voiced_end() == position;
  if (voiced) output_.set_speech_end(samples_.end_time_of(position));
  (voiced ? stats_.speech_time : stats_.silence_time) += duration_of(Endpointing::kWindow);
  const GstFlowReturn flow = act(decisions);
  return flow == GST_FLOW_OK ? follow() : flow;
}

// Without a network, speech is what comes between two presses of a button.
Result<float> TurnGate::probability(std::span<const float> pcm, TurnMode mode) {
  if (mode == TurnMode::kManual) return output_.in_turn() ? 1.0f : 0.0f;
  RETURN_IF_ERROR(ensure_vad());
  return vad_->step(std::span<const float, VoiceActivity::kWindow>(pcm));
}

GstFlowReturn TurnGate::fail(const Error& error) {
  GST_ERROR_OBJECT(element_, "%s (%s)", error.message.c_str(), error.detail.c_str());
  failed_ = true;
  gst_minicpmo_post(element_, GST_MESSAGE_ERROR, error);
  return GST_FLOW_ERROR;
}

GstFlowReturn TurnGate::act(const std::vector<Decision>& decisions) {
  GstFlowReturn flow = GST_FLOW_OK;
  for (const Decision& decision : decisions) {
    const GstFlowReturn next = act(decision);
    if (flow == GST_FLOW_OK) flow = next;
  }
  return flow;
}

GstFlowReturn TurnGate::act(const Decision& decision) {
  const uint64_t position = endpointing_.position();
  switch (decision.kind) {
    case Decision::Kind::kInterrupt:
      if (settings().barge_in) output_.interrupt();
      break;
    case Decision::Kind::kStart:
      output_.start_turn(decision.begin, decision.speech, decision.probability);
      break;
    case Decision::Kind::kSpeculativeEnd:
      return output_.announce_end(position);
    case Decision::Kind::kResume:
      output_.resume();
      break;
    case Decision::Kind::kEnd:
      return output_.end_turn(position, decision.reason);
    case Decision::Kind::kCancel:
      output_.cancel_turn(position, decision.reason);
      break;
  }
  return GST_FLOW_OK;
}

// Lets go of what need not wait.
GstFlowReturn TurnGate::follow() {
  if (output_.in_turn())
    return output_.held() ? GST_FLOW_OK : output_.send_until(endpointing_.position());
  output_.drop_until(endpointing_.keep_from());
  return GST_FLOW_OK;
}

GstFlowReturn TurnGate::apply_requests() {
  std::vector<Request> requests;
  {
    std::lock_guard lock(mutex_);
    requests.swap(requests_);
  }
  GstFlowReturn flow = GST_FLOW_OK;
  for (const Request request : requests) {
    endpointing_.set_settings(settings().endpointing);
    if (request == Request::kStart && !output_.in_turn()) {
      output_.set_speech_end(samples_.time_of(endpointing_.position()));
      flow = act(endpointing_.start_now());
    } else if (request == Request::kEnd && output_.in_turn()) {
      skip_rest();
      flow = act(endpointing_.end_now());
    } else if (request == Request::kCancel && output_.in_turn()) {
      skip_rest();
      flow = act(endpointing_.cancel_now());
    }
    if (flow == GST_FLOW_OK) flow = follow();
    if (flow != GST_FLOW_OK) break;
  }
  return flow;
}

// Samples that are no whole window: nobody listens to them, but they belong to an open turn.
void TurnGate::skip_rest() {
  endpointing_.skip(samples_.end() - endpointing_.position());
  if (output_.in_turn() && settings().mode == TurnMode::kManual)
    output_.set_speech_end(samples_.end_time_of(samples_.end()));
}

GstFlowReturn TurnGate::finish() {
  skip_rest();
  endpointing_.set_settings(settings().endpointing);
  const GstFlowReturn flow = act(endpointing_.finish());
  output_.drop_until(samples_.end());
  output_.push_gap();
  return flow;
}

}  // namespace minicpmo
