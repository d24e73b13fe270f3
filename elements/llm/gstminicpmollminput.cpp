#include "llm/gstminicpmollminput.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_llm_debug);
#define GST_CAT_DEFAULT gst_minicpmo_llm_debug

namespace minicpmo {

namespace {

// Running time, also a little beyond the segment's end, where rounding may put the last buffer.
GstClockTime running_time(const GstSegment& segment, GstClockTime position) {
  if (segment.format != GST_FORMAT_TIME || !GST_CLOCK_TIME_IS_VALID(position))
    return GST_CLOCK_TIME_NONE;
  guint64 time = GST_CLOCK_TIME_NONE;
  if (gst_segment_to_running_time_full(&segment, GST_FORMAT_TIME, position, &time) < 0) return 0;
  return time;
}

}  // namespace

void LlmInput::reset() {
  gst_segment_init(&segment_, GST_FORMAT_UNDEFINED);
  gst_adapter_clear(rows_.get());
  messages_.reset();
  dropped_ = 0;
  warned_repaired_ = false;
  forget_partial_ = false;
  turn_id_ = 0;
  end_ = GST_CLOCK_TIME_NONE;
  capture_time_ = GST_CLOCK_TIME_NONE;
}

bool LlmInput::set_caps(const GstCaps* caps) {
  finish();
  if (gst_structure_has_name(gst_caps_get_structure(caps, 0), "text/x-raw")) {
    is_text_ = true;
    return true;
  }
  DataType type;
  gint64 columns;
  if (!gst_minicpmo_tensor_caps_parse(caps, GST_MINICPMO_TENSOR_ID_EMBEDDING, &type, &columns))
    return false;
  if (gst_minicpmo_element_wait_ready(element_) != GST_FLOW_OK) return false;
  const EngineInfo& info = gst_minicpmo_element_engine(element_)->info();
  if (columns != info.hidden_size) {
    gst_minicpmo_element_post_error(
        element_,
        {ErrorCode::kFormat,
         "The audio embeddings have " + std::to_string(columns) + " columns, but the model in " +
             info.model_dir + " needs " + std::to_string(info.hidden_size) +
             ". Use the same model for minicpmoaudioenc and minicpmollm.",
         ""});
    return false;
  }
  is_text_ = false;
  type_ = type;
  columns_ = columns;
  chunk_bytes_ = size_of(type) * static_cast<gsize>(columns) * static_cast<gsize>(info.chunk_rows);
  return true;
}

void LlmInput::set_segment(const GstEvent* event) {
  gst_event_copy_segment(const_cast<GstEvent*>(event), &segment_);
}

// A gap holds nothing to hear, but the turn ends no earlier than it.
void LlmInput::gap(GstEvent* event) {
  GstClockTime time, duration;
  gst_event_parse_gap(event, &time, &duration);
  if (!GST_CLOCK_TIME_IS_VALID(time)) return;
  if (GST_CLOCK_TIME_IS_VALID(duration)) time += duration;
  const GstClockTime end = running_time(segment_, time);
  if (GST_CLOCK_TIME_IS_VALID(end)) end_ = end;
}

void LlmInput::note_time(GstBuffer* buffer) {
  GstClockTime time = GST_BUFFER_PTS(buffer);
  if (GST_CLOCK_TIME_IS_VALID(time)) {
    if (GST_BUFFER_DURATION_IS_VALID(buffer)) time += GST_BUFFER_DURATION(buffer);
    end_ = running_time(segment_, time);
  }
  turn_id_ = 0;
  capture_time_ = end_;
  if (const GstMiniCpmoTurnMeta* meta = gst_buffer_get_minicpmo_turn_meta(buffer)) {
    turn_id_ = meta->turn_id;
    if (GST_CLOCK_TIME_IS_VALID(meta->capture_time)) capture_time_ = meta->capture_time;
  }
}

GstFlowReturn LlmInput::chain(GstBuffer* buffer) {
  if (forget_partial_.exchange(false)) {
    gst_adapter_clear(rows_.get());
    messages_.reset();
    dropped_ = 0;
  }
  return is_text_ ? take_text(buffer) : take_embeddings(buffer);
}

GstFlowReturn LlmInput::finish() {
  const GstFlowReturn flow = finish_rows();
  if (flow != GST_FLOW_OK) return flow;
  std::vector<std::string> found;
  messages_.finish([&](std::string text) { found.push_back(std::move(text)); });
  report_repaired();
  for (std::string& text : found) {
    LlmCommand command;
    command.kind = LlmCommand::Kind::kMessage;
    command.text = std::move(text);
    const GstFlowReturn pushed = push(std::move(command));
    if (pushed != GST_FLOW_OK) return pushed;
  }
  return report_dropped();
}

GstFlowReturn LlmInput::push(LlmCommand command) {
  command.from_text_sink = from_text_sink_;
  command.turn_id = turn_id_;
  command.end = end_;
  command.capture_time = capture_time_;
  return worker_->push(std::move(command), &gone_);
}

// ---------------------------------------------------------------- embeddings

GstFlowReturn LlmInput::take_embeddings(GstBuffer* buffer) {
  const GstMiniCpmoTurnMeta* meta = gst_buffer_get_minicpmo_turn_meta(buffer);
  const bool is_chunk = meta != nullptr && (meta->flags & GST_MINICPMO_TURN_CHUNK) != 0;
  if (is_chunk && gst_buffer_get_size(buffer) <= chunk_bytes_) return take_whole_chunk(buffer);
  note_time(buffer);
  gst_adapter_push(rows_.get(), gst_buffer_ref(buffer));
  while (gst_adapter_available(rows_.get()) >= chunk_bytes_) {
    const GstFlowReturn flow = push_rows(chunk_bytes_);
    if (flow != GST_FLOW_OK) return flow;
  }
  return GST_FLOW_OK;
}

GstFlowReturn LlmInput::take_whole_chunk(GstBuffer* buffer) {
  const GstFlowReturn flow = finish_rows();
  if (flow != GST_FLOW_OK) return flow;
  note_time(buffer);
  Result<TensorPtr> tensor = gst_minicpmo_buffer_get_tensor(buffer, type_, columns_);
  if (!tensor.ok()) return gst_minicpmo_element_post_error(element_, tensor.error());
  if ((*tensor)->rows() == 0) return GST_FLOW_OK;
  return push_tensor(std::move(tensor).value());
}

GstFlowReturn LlmInput::finish_rows() {
  const gsize left = gst_adapter_available(rows_.get());
  if (left == 0) return GST_FLOW_OK;
  const gsize row_bytes = size_of(type_) * static_cast<gsize>(columns_);
  if (left % row_bytes == 0) return push_rows(left);
  gst_adapter_clear(rows_.get());
  return gst_minicpmo_element_post_error(
      element_, {ErrorCode::kFormat,
                 "The audio embeddings end within a row: " + std::to_string(left % row_bytes) +
                     " bytes are left, a row has " + std::to_string(row_bytes) +
                     ". Is the dump whole, and do the caps fit it?",
                 ""});
}

// The adapter's first `bytes` (whole rows, at most a chunk) as one chunk.
GstFlowReturn LlmInput::push_rows(gsize bytes) {
  std::vector<std::byte> data(bytes);
  gst_adapter_copy(rows_.get(), data.data(), 0, bytes);
  gst_adapter_flush(rows_.get(), bytes);
  const auto rows = static_cast<int64_t>(bytes / (size_of(type_) * static_cast<gsize>(columns_)));
  return push_tensor(
      std::make_shared<HostTensor>(type_, std::vector<int64_t>{rows, columns_}, std::move(data)));
}

GstFlowReturn LlmInput::push_tensor(TensorPtr tensor) {
  LlmCommand command;
  command.kind = LlmCommand::Kind::kEmbeddings;
  command.embeddings = std::move(tensor);
  return push(std::move(command));
}

// ---------------------------------------------------------------- text

GstFlowReturn LlmInput::take_text(GstBuffer* buffer) {
  note_time(buffer);
  const BufferMap map(buffer);
  if (!map.ok()) {
    return gst_minicpmo_element_post_error(
        element_, {ErrorCode::kFailed, "Cannot read a text buffer.", "gst_buffer_map failed"});
  }
  const auto bytes = map.bytes();
  const TextFraming framing =
      segment_.format == GST_FORMAT_TIME ? TextFraming::kBuffers : TextFraming::kLines;
  std::vector<std::string> found;
  messages_.set_max_bytes(max_message_bytes_);
  messages_.feed({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, framing,
                 [&](std::string text) { found.push_back(std::move(text)); });
  report_repaired();
  for (std::string& text : found) {
    LlmCommand command;
    command.kind = LlmCommand::Kind::kMessage;
    command.text = std::move(text);
    const GstFlowReturn flow = push(std::move(command));
    if (flow != GST_FLOW_OK) return flow;
  }
  return report_dropped();
}

GstFlowReturn LlmInput::report_dropped() {
  if (messages_.dropped() == dropped_) return GST_FLOW_OK;
  dropped_ = messages_.dropped();
  LlmCommand command;
  command.kind = LlmCommand::Kind::kRefused;
  command.error = {ErrorCode::kContextFull,
                   "A text message has more than " + std::to_string(max_message_bytes_) +
                       " bytes (property max-message-bytes): it is not answered. "
                       "Send a shorter one, or raise max-message-bytes.",
                   ""};
  return push(std::move(command));
}

void LlmInput::report_repaired() {
  if (warned_repaired_ || !messages_.repaired()) return;
  warned_repaired_ = true;
  gst_minicpmo_element_post_warning(
      element_,
      {ErrorCode::kFormat, "The text is not valid UTF-8: what is not was replaced by U+FFFD.", ""});
}

}  // namespace minicpmo
