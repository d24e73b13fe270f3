#include "support/element_harness.h"

#include <gtest/gtest.h>

#include <cstring>

namespace minicpmo::testing {

ElementHarness::ElementHarness(const char* factory, const Setup& setup, const char* sink,
                               const char* src)
    : element_(GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make(factory, nullptr)))),
      bus_(gst_bus_new()) {
  gst_element_set_bus(element_.get(), bus_.get());
  if (setup) setup(element_.get());
  if (PadPtr pad{gst_element_get_static_pad(element_.get(), src)}) {
    gst_pad_add_probe(pad.get(),
                      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER |
                                                   GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM |
                                                   GST_PAD_PROBE_TYPE_EVENT_FLUSH),
                      probe, this, nullptr);
  }
  harness_ = gst_harness_new_with_element(element_.get(), sink, src);
  gst_harness_set_live(harness_, FALSE);  // as a file; GstHarness says TRUE
}

ElementHarness::~ElementHarness() {
  gst_harness_teardown(harness_);
  gst_element_set_state(element_.get(), GST_STATE_NULL);
  gst_element_set_bus(element_.get(), nullptr);
}

GstPadProbeReturn ElementHarness::probe(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<ElementHarness*>(data);
  std::string what = "buffer";
  if ((GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) == 0) {
    GstEvent* event = GST_PAD_PROBE_INFO_EVENT(info);
    const GstStructure* fields = gst_event_get_structure(event);
    what = GST_EVENT_TYPE_NAME(event);
    if (what.compare(0, 6, "custom") == 0 && fields != nullptr)
      what = gst_structure_get_name(fields);
  }
  std::lock_guard lock(self->order_mutex_);
  self->order_.push_back(what);
  return GST_PAD_PROBE_OK;
}

std::vector<BufferPtr> ElementHarness::pull_all() {
  std::vector<BufferPtr> buffers;
  while (BufferPtr buffer = try_pull()) buffers.push_back(std::move(buffer));
  return buffers;
}

std::vector<EventPtr> ElementHarness::events() {
  std::vector<EventPtr> events;
  while (GstEvent* event = gst_harness_try_pull_event(harness_)) events.emplace_back(event);
  return events;
}

std::vector<std::string> ElementHarness::take_order() {
  std::lock_guard lock(order_mutex_);
  return std::move(order_);
}

std::vector<MessagePtr> ElementHarness::messages(GstMessageType types) {
  std::vector<MessagePtr> found;
  while (MessagePtr message{gst_bus_pop(bus_.get())}) {
    if ((GST_MESSAGE_TYPE(message.get()) & types) != 0) found.push_back(std::move(message));
  }
  return found;
}

MessagePtr ElementHarness::wait_message(GstMessageType types) {
  return MessagePtr(gst_bus_timed_pop_filtered(bus_.get(), 10 * GST_SECOND, types));
}

bool ElementHarness::wait_loaded() {
  while (MessagePtr message =
             wait_message(static_cast<GstMessageType>(GST_MESSAGE_PROGRESS | GST_MESSAGE_ERROR))) {
    if (GST_MESSAGE_TYPE(message.get()) == GST_MESSAGE_ERROR) return false;
    GstProgressType type;
    gst_message_parse_progress(message.get(), &type, nullptr, nullptr);
    if (type == GST_PROGRESS_TYPE_COMPLETE) return true;
  }
  return false;
}

BufferPtr pcm_buffer(size_t count, float value, GstClockTime pts) {
  const std::vector<float> samples(count, value);
  BufferPtr buffer(gst_buffer_new_memdup(samples.data(), count * sizeof(float)));
  GST_BUFFER_PTS(buffer.get()) = pts;
  if (GST_CLOCK_TIME_IS_VALID(pts))
    GST_BUFFER_DURATION(buffer.get()) = gst_util_uint64_scale(count, GST_SECOND, 16000);
  return buffer;
}

BufferPtr code_buffer(size_t rows, int first, GstClockTime pts) {
  std::vector<uint16_t> codes;
  for (size_t row = 0; row < rows; ++row)
    codes.insert(codes.end(), 4, static_cast<uint16_t>((static_cast<size_t>(first) + row) % 625));
  BufferPtr buffer(codes.empty()
                       ? gst_buffer_new()
                       : gst_buffer_new_memdup(codes.data(), codes.size() * sizeof(uint16_t)));
  GST_BUFFER_PTS(buffer.get()) = pts;
  return buffer;
}

std::vector<float> floats_of(GstBuffer* buffer) {
  BufferMap map(buffer);
  std::vector<float> values(map.bytes().size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), map.bytes().data(), map.bytes().size());
  return values;
}

std::string progress_text(GstMessage* message) {
  GstProgressType type;
  gchar* code = nullptr;
  gst_message_parse_progress(message, &type, &code, nullptr);
  GCharPtr owned(code);
  gint percent = -2;
  gst_structure_get_int(gst_message_get_structure(message), "percent", &percent);
  const char* names[] = {"start", "continue", "complete", "canceled", "error"};
  return std::string(code) + "/" + names[type] + " " + std::to_string(percent);
}

GErrorPtr error_of(GstMessage* message) {
  GError* error = nullptr;
  if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_ERROR) {
    gst_message_parse_error(message, &error, nullptr);
  } else {
    gst_message_parse_warning(message, &error, nullptr);
  }
  return GErrorPtr(error);
}

}  // namespace minicpmo::testing
