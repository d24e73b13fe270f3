#include "tts/gstminicpmospeechstream.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "common/gstminicpmospan.h"
#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_tts_debug);
#define GST_CAT_DEFAULT gst_minicpmo_tts_debug

namespace minicpmo {

namespace {

constexpr guint64 kSamplesPerRow = 512;
constexpr guint64 kSampleRate = 24000;
constexpr gint64 kCodeColumns = 4;

GstClockTime duration_of_rows(guint64 rows) {
  return gst_util_uint64_scale(rows * kSamplesPerRow, GST_SECOND, kSampleRate);
}

TensorPtr speaker_tensor(const void* data, gint64 size) {
  std::vector<std::byte> bytes(static_cast<size_t>(size) * sizeof(float));
  std::memcpy(bytes.data(), data, bytes.size());
  return std::make_shared<HostTensor>(DataType::kFloat32, std::vector<int64_t>{1, size},
                                      std::move(bytes));
}

}  // namespace

SpeechStream::SpeechStream(GstMiniCpmoElement* element, GstPad* src)
    : element_(element), src_(src) {
  reset(true);
}

void SpeechStream::open(std::unique_ptr<SpeechModel> session) {
  std::lock_guard lock(mutex_);
  session_ = std::move(session);
}

void SpeechStream::close() {
  session_used_ = false;
  std::unique_ptr<SpeechModel> closed;
  std::lock_guard lock(mutex_);
  closed.swap(session_);
  if (closed) stats_.gpu_time += closed->gpu_nanoseconds();
}

SpeechModelOptions SpeechStream::options() const {
  std::lock_guard lock(mutex_);
  return options_;
}

void SpeechStream::set_speaker_file(const char* path) {
  std::lock_guard lock(mutex_);
  speaker_file_ = path != nullptr ? path : "";
}

std::string SpeechStream::speaker_file() const {
  std::lock_guard lock(mutex_);
  return speaker_file_;
}

SpeechStats SpeechStream::stats() const {
  std::lock_guard lock(mutex_);
  SpeechStats stats = stats_;
  if (session_) stats.gpu_time += session_->gpu_nanoseconds();
  return stats;
}

bool SpeechStream::heard(GstQuery* query) const {
  guint64 samples = 0;
  gboolean complete = FALSE;
  if (!gst_pad_peer_query(src_, query) ||
      !gst_minicpmo_query_get_heard_samples(query, &samples, &complete)) {
    return false;
  }
  std::lock_guard lock(mutex_);
  const guint64 turn_id = gst_minicpmo_query_turn_id(query);
  // Nothing of a turn that has not come this far; of one that has gone nobody knows any more.
  gint64 bytes = turn_id > heard_turn_ ? 0 : -1;
  if (turn_id == heard_turn_)
    bytes = heard_.bytes_at(static_cast<int64_t>(samples / kSamplesPerRow));
  gst_minicpmo_query_set_heard_bytes(query, bytes);
  return true;
}

void SpeechStream::reset(bool stopped) {
  if (session_used_ && session_ != nullptr) session_->reset();
  gst_segment_init(&input_, GST_FORMAT_UNDEFINED);
  gst_segment_init(&output_, GST_FORMAT_TIME);
  segment_sent_ = false;
  flow_ = GST_FLOW_OK;
  utf8_.reset();
  pieces_.reset();
  warned_repaired_ = false;
  active_ = false;
  next_pts_ = 0;
  if (!stopped) return;
  stream_started_ = false;
  speaker_.clear();
  speaker_fresh_ = false;
}

// ---------------------------------------------------------------- text

GstFlowReturn SpeechStream::chain(GstBuffer* buffer) {
  if (flow_ != GST_FLOW_OK) return flow_;
  ensure_started();
  return remember(guard(GST_ELEMENT(element_), GST_FLOW_ERROR, [&] { return take_text(buffer); }));
}

GstFlowReturn SpeechStream::take_text(GstBuffer* buffer) {
  std::string text;
  {
    const BufferMap map(buffer);
    if (!map.ok()) {
      return gst_minicpmo_element_post_error(
          element_, {ErrorCode::kFailed, "Cannot read a text buffer.", "gst_buffer_map failed"});
    }
    text = utf8_.feed({reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size()});
  }
  if (input_.format == GST_FORMAT_TIME) {
    text += utf8_.finish();
    report_repaired();
    return burst(text, buffer);
  }
  report_repaired();
  return take_words(text, false);
}

// Running text, word by word.
GstFlowReturn SpeechStream::take_words(std::string_view text, bool last) {
  GstFlowReturn flow = GST_FLOW_OK;
  const auto take = [&](std::string_view piece) {
    if (flow == GST_FLOW_OK) flow = burst(piece, nullptr);
  };
  pieces_.feed(text, take);
  if (last) pieces_.finish(take);
  return flow;
}

void SpeechStream::report_repaired() {
  if (warned_repaired_ || !utf8_.repaired()) return;
  warned_repaired_ = true;
  gst_minicpmo_element_post_warning(
      element_,
      {ErrorCode::kFormat, "The text is not valid UTF-8: what is not was replaced by U+FFFD.", ""});
}

// A flow that ends the stream also answers the buffers after it.
GstFlowReturn SpeechStream::remember(GstFlowReturn flow) {
  if (flow != GST_FLOW_OK && flow != GST_FLOW_FLUSHING) flow_ = flow;
  return flow;
}

GstFlowReturn SpeechStream::burst(std::string_view text, GstBuffer* from) {
  if (!active_) {
    const GstFlowReturn flow = begin_answer(from);
    if (flow != GST_FLOW_OK) return flow;
  }
  if (said_all_) return GST_FLOW_OK;
  GST_LOG_OBJECT(element_, "burst \"%.*s\"", static_cast<int>(text.size()), text.data());
  session_->push_text(text);
  {
    std::lock_guard lock(mutex_);
    ++stats_.bursts;
    heard_.add_text(text);
  }
  return step();
}

GstFlowReturn SpeechStream::begin_answer(GstBuffer* from) {
  const GstFlowReturn ready = gst_minicpmo_element_wait_ready(element_);
  if (ready != GST_FLOW_OK) return ready;
  Result<TensorPtr> speaker = find_speaker();
  if (!speaker.ok()) return gst_minicpmo_element_post_error(element_, speaker.error());
  session_used_ = true;
  const Result<void> started = session_->start(**speaker, options());
  if (!started.ok()) return gst_minicpmo_element_post_error(element_, started.error());
  active_ = true;
  said_all_ = false;
  speaker_fresh_ = false;
  first_chunk_ = true;
  segment_start_ = false;
  chunk_ = 0;
  answer_rows_ = 0;
  answer_pts_ = next_pts_;
  capture_time_ = GST_CLOCK_TIME_NONE;
  if (from != nullptr && GST_BUFFER_PTS_IS_VALID(from))
    answer_pts_ = std::max(answer_pts_, GST_BUFFER_PTS(from));
  if (const auto* meta = from != nullptr ? gst_buffer_get_minicpmo_turn_meta(from) : nullptr) {
    turn_id_ = meta->turn_id;
    capture_time_ = meta->capture_time;
  }
  std::lock_guard lock(mutex_);
  ++stats_.answers;
  heard_.begin();
  heard_turn_ = turn_id_;
  return GST_FLOW_OK;
}

// ---------------------------------------------------------------- codes

// Makes and pushes chunks as far as the text allows.
GstFlowReturn SpeechStream::step() {
  while (!said_all_) {
    const auto begin = std::chrono::steady_clock::now();
    const auto chunk = [&] {
      const StageSpan span(element_, "speech", turn_id_);
      return session_->step(gst_minicpmo_element_cancel_flag(element_));
    }();
    const auto time = std::chrono::steady_clock::now() - begin;
    {
      std::lock_guard lock(mutex_);
      stats_.model_time += std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
    }
    if (!chunk.ok()) {
      active_ = false;
      const GstFlowReturn flow = gst_minicpmo_element_post_error(element_, chunk.error());
      session_->reset();
      return flow;
    }
    if (!*chunk) return GST_FLOW_OK;
    said_all_ = (**chunk).last;
    const GstFlowReturn flow = push_chunk(**chunk);
    if (flow != GST_FLOW_OK) return flow;
  }
  return GST_FLOW_OK;
}

GstFlowReturn SpeechStream::push_chunk(const CodeChunk& chunk) {
  segment_start_ = segment_start_ || chunk.segment_start;
  const auto rows = static_cast<guint64>(chunk.codes != nullptr ? chunk.codes->rows() : 0);
  {
    std::lock_guard lock(mutex_);
    heard_.add_rows(static_cast<int64_t>(rows));
    if (chunk.last) heard_.end();
  }
  if (rows == 0) return GST_FLOW_OK;
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(chunk.codes));
  GST_BUFFER_PTS(buffer.get()) = answer_pts_ + duration_of_rows(answer_rows_);
  answer_rows_ += rows;
  next_pts_ = answer_pts_ + duration_of_rows(answer_rows_);
  GST_BUFFER_DURATION(buffer.get()) = next_pts_ - GST_BUFFER_PTS(buffer.get());
  guint flags = GST_MINICPMO_TURN_CHUNK;
  if (std::exchange(segment_start_, false)) flags |= GST_MINICPMO_TURN_SEGMENT_START;
  if (std::exchange(first_chunk_, false)) {
    flags |= GST_MINICPMO_TURN_FIRST;
    GST_BUFFER_FLAG_SET(buffer.get(), GST_BUFFER_FLAG_DISCONT);
  }
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), turn_id_, chunk_++, flags, capture_time_);
  {
    std::lock_guard lock(mutex_);
    ++stats_.chunks;
    stats_.codes += rows;
  }
  return gst_pad_push(src_, buffer.release());
}

// Says what is left of the answer.
GstFlowReturn SpeechStream::end_answer() {
  if (input_.format != GST_FORMAT_TIME) {
    const std::string rest = utf8_.finish();
    report_repaired();
    const GstFlowReturn flow = take_words(rest, true);
    if (flow != GST_FLOW_OK) return flow;
  }
  if (!active_) return GST_FLOW_OK;
  session_->end_text();
  return step();
}

GstFlowReturn SpeechStream::finish_answer() {
  if (flow_ == GST_FLOW_OK) {
    const GstFlowReturn flow =
        guard(GST_ELEMENT(element_), GST_FLOW_ERROR, [&] { return end_answer(); });
    // No buffer follows whose flow would tell upstream.
    if (flow == GST_FLOW_NOT_LINKED || flow == GST_FLOW_NOT_NEGOTIATED)
      GST_ELEMENT_FLOW_ERROR(element_, flow);
    remember(flow);
  }
  active_ = false;
  pieces_.reset();
  return flow_;
}

// ---------------------------------------------------------------- the speaker

// The vector of the speaker event, of the property's file, or of the checkpoint's file.
Result<TensorPtr> SpeechStream::find_speaker() const {
  const EngineInfo& info = gst_minicpmo_element_engine(element_)->info();
  if (!speaker_.empty()) {
    if (static_cast<gint64>(speaker_.size()) != info.hidden_size) {
      return Error{ErrorCode::kFormat,
                   "The speaker vector from upstream has " + std::to_string(speaker_.size()) +
                       " values, but the model in " + info.model_dir + " needs " +
                       std::to_string(info.hidden_size) +
                       ". Use the same model for minicpmollm and minicpmotts.",
                   ""};
    }
    return speaker_tensor(speaker_.data(), info.hidden_size);
  }
  const std::string file = speaker_file();
  if (!file.empty()) return read_speaker(file, info.hidden_size);
  if (!info.default_speaker.empty()) return read_speaker(info.default_speaker, info.hidden_size);
  return Error{ErrorCode::kSettings,
               "There is no voice to speak with: set the property speaker to a file with a speaker "
               "vector (" +
                   std::to_string(info.hidden_size) +
                   " raw float32 values), or put minicpmollm before this element.",
               "the checkpoint has no default speaker"};
}

Result<TensorPtr> SpeechStream::read_speaker(const std::string& path, gint64 size) const {
  std::error_code code;
  const auto status = std::filesystem::status(path, code);
  if (!std::filesystem::exists(status)) {
    return Error{ErrorCode::kNotFound, "The speaker file " + path + " does not exist.",
                 code.message()};
  }
  const auto bytes = static_cast<uintmax_t>(size) * sizeof(float);
  if (!std::filesystem::is_regular_file(status)) {
    return Error{ErrorCode::kOpenRead, "The speaker file " + path + " is not a file.", ""};
  }
  const auto found = std::filesystem::file_size(path, code);
  std::ifstream in(path, std::ios::binary);
  if (code || !in) {
    return Error{ErrorCode::kOpenRead, "Cannot read the speaker file " + path + ".",
                 code.message()};
  }
  if (found != bytes) {
    return Error{ErrorCode::kCorrupt,
                 "The speaker file " + path + " has " + std::to_string(found) +
                     " bytes; this model needs " + std::to_string(size) + " float32 values (" +
                     std::to_string(bytes) + " bytes).",
                 ""};
  }
  std::vector<float> values(static_cast<size_t>(size));
  if (!in.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(bytes)))
    return Error{ErrorCode::kOpenRead, "Cannot read the speaker file " + path + ".", ""};
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
    return Error{ErrorCode::kCorrupt,
                 "The speaker file " + path + " holds a value that is not finite.", ""};
  }
  return speaker_tensor(values.data(), size);
}

// ---------------------------------------------------------------- events

bool SpeechStream::stream_start(EventPtr event) {
  finish_answer();
  flow_ = GST_FLOW_OK;
  speaker_.clear();
  speaker_fresh_ = false;
  utf8_.reset();
  warned_repaired_ = false;
  stream_started_ = true;
  segment_sent_ = false;
  gst_segment_init(&input_, GST_FORMAT_UNDEFINED);
  return gst_pad_push_event(src_, event.release());
}

bool SpeechStream::segment(EventPtr event) {
  finish_answer();
  gst_event_copy_segment(event.get(), &input_);
  segment_seqnum_ = gst_event_get_seqnum(event.get());
  if (input_.format == GST_FORMAT_TIME) {
    output_ = input_;
    // Speech takes longer than the question or the text that it answers.
    output_.stop = GST_CLOCK_TIME_NONE;
    output_.duration = GST_CLOCK_TIME_NONE;
  } else {
    gst_segment_init(&output_, GST_FORMAT_TIME);
  }
  next_pts_ = output_.start;
  segment_sent_ = false;
  ensure_started();
  return true;
}

// A burst without text, if it belongs to an answer; otherwise nothing happens for a while.
bool SpeechStream::gap(EventPtr event) {
  if (!active_ && !speaker_fresh_) return other(std::move(event));
  ensure_started();
  if (flow_ != GST_FLOW_OK) return false;
  return remember(guard(GST_ELEMENT(element_), GST_FLOW_ERROR,
                        [&] { return burst({}, nullptr); })) == GST_FLOW_OK;
}

bool SpeechStream::speaker(EventPtr event) {
  const GValue* value = gst_structure_get_value(gst_event_get_structure(event.get()), "speaker");
  GstBuffer* buffer = value != nullptr && G_VALUE_HOLDS(value, GST_TYPE_BUFFER)
                          ? gst_value_get_buffer(value)
                          : nullptr;
  if (buffer == nullptr) {
    GST_WARNING_OBJECT(element_, "a speaker event without a speaker");
    return other(std::move(event));
  }
  turn_id_ = gst_minicpmo_event_turn_id(event.get());
  speaker_.resize(gst_buffer_get_size(buffer) / sizeof(float));
  gst_buffer_extract(buffer, 0, speaker_.data(), speaker_.size() * sizeof(float));
  speaker_fresh_ = true;
  return other(std::move(event));
}

bool SpeechStream::answer_end(EventPtr event) {
  finish_answer();
  speaker_fresh_ = false;
  return other(std::move(event));
}

bool SpeechStream::other(EventPtr event) {
  ensure_started();
  return gst_pad_push_event(src_, event.release());
}

// STREAM_START, CAPS and SEGMENT come before anything else, whatever the input sent.
void SpeechStream::ensure_started() {
  if (!stream_started_) {
    GCharPtr id(gst_pad_create_stream_id(src_, GST_ELEMENT(element_), "speech"));
    gst_pad_push_event(src_, gst_event_new_stream_start(id.get()));
    stream_started_ = true;
  }
  if (segment_sent_) return;
  segment_sent_ = true;
  CapsPtr caps(
      gst_minicpmo_tensor_caps_new(GST_MINICPMO_TENSOR_ID_CODE, DataType::kUInt16, kCodeColumns));
  gst_pad_push_event(src_, gst_event_new_caps(caps.get()));
  EventPtr event(gst_event_new_segment(&output_));
  if (segment_seqnum_ != GST_SEQNUM_INVALID) gst_event_set_seqnum(event.get(), segment_seqnum_);
  gst_pad_push_event(src_, event.release());
}

}  // namespace minicpmo
