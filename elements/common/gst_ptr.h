// Owning pointers for GStreamer's types. `release()` them at the calls that consume a reference
// (gst_pad_push, gst_pad_push_event, gst_element_post_message, ...).
#pragma once

#include <gst/base/gstadapter.h>
#include <gst/gst.h>

#include <memory>
#include <span>

namespace minicpmo {

struct GstDeleter {
  void operator()(GstBuffer* p) const { gst_buffer_unref(p); }
  void operator()(GstMemory* p) const { gst_memory_unref(p); }
  void operator()(GstCaps* p) const { gst_caps_unref(p); }
  void operator()(GstEvent* p) const { gst_event_unref(p); }
  void operator()(GstQuery* p) const { gst_query_unref(p); }
  void operator()(GstMessage* p) const { gst_message_unref(p); }
  void operator()(GstContext* p) const { gst_context_unref(p); }
  void operator()(GstStructure* p) const { gst_structure_free(p); }
  void operator()(GstIterator* p) const { gst_iterator_free(p); }
  void operator()(GstPad* p) const { gst_object_unref(p); }
  void operator()(GstElement* p) const { gst_object_unref(p); }
  void operator()(GstBus* p) const { gst_object_unref(p); }
  void operator()(GstAdapter* p) const { g_object_unref(p); }
  void operator()(GError* p) const { g_error_free(p); }
  void operator()(gchar* p) const { g_free(p); }
};

using BufferPtr = std::unique_ptr<GstBuffer, GstDeleter>;
using MemoryPtr = std::unique_ptr<GstMemory, GstDeleter>;
using CapsPtr = std::unique_ptr<GstCaps, GstDeleter>;
using EventPtr = std::unique_ptr<GstEvent, GstDeleter>;
using QueryPtr = std::unique_ptr<GstQuery, GstDeleter>;
using MessagePtr = std::unique_ptr<GstMessage, GstDeleter>;
using ContextPtr = std::unique_ptr<GstContext, GstDeleter>;
using StructurePtr = std::unique_ptr<GstStructure, GstDeleter>;
using IteratorPtr = std::unique_ptr<GstIterator, GstDeleter>;
using PadPtr = std::unique_ptr<GstPad, GstDeleter>;
using ElementPtr = std::unique_ptr<GstElement, GstDeleter>;
using BusPtr = std::unique_ptr<GstBus, GstDeleter>;
using AdapterPtr = std::unique_ptr<GstAdapter, GstDeleter>;
using GErrorPtr = std::unique_ptr<GError, GstDeleter>;
using GCharPtr = std::unique_ptr<gchar, GstDeleter>;

// A buffer mapped for reading as long as this lives. The buffer must outlive it.
class BufferMap {
 public:
  explicit BufferMap(GstBuffer* buffer) : buffer_(buffer) {
    mapped_ = gst_buffer_map(buffer, &info_, GST_MAP_READ);
  }
  ~BufferMap() {
    if (mapped_) gst_buffer_unmap(buffer_, &info_);
  }
  BufferMap(const BufferMap&) = delete;
  BufferMap& operator=(const BufferMap&) = delete;

  bool ok() const { return mapped_; }
  std::span<const std::byte> bytes() const {
    if (!mapped_) return {};
    return {reinterpret_cast<const std::byte*>(info_.data), info_.size};
  }

 private:
  GstBuffer* buffer_;
  GstMapInfo info_ = GST_MAP_INFO_INIT;
  bool mapped_ = false;
};

}  // namespace minicpmo
