// A GstHarness around one element, with a bus, so that tests can read messages, and owning
// pointers.
#pragma once

#include <gst/check/gstharness.h>
#include <gst/gst.h>

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "common/gst_ptr.h"

namespace minicpmo::testing {

constexpr const char* kPcmCaps =
    "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
constexpr const char* kCodeCaps =
    "tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,dims=(int)<0,4>,dims-order=row-major";

class ElementHarness {
 public:
  using Setup = std::function<void(GstElement*)>;
  // `setup` runs in NULL, before the harness sets the element to PLAYING.
  explicit ElementHarness(const char* factory, const Setup& setup = {}, const char* sink = "sink",
                          const char* src = "src");
  ~ElementHarness();
  ElementHarness(const ElementHarness&) = delete;
  ElementHarness& operator=(const ElementHarness&) = delete;

  GstElement* element() const { return element_.get(); }
  GstHarness* get() const { return harness_; }

  // stream-start, caps and a segment in time.
  void set_caps(const char* caps) { gst_harness_set_src_caps_str(harness_, caps); }
  GstFlowReturn push(BufferPtr buffer) { return gst_harness_push(harness_, buffer.release()); }
  bool push_event(GstEvent* event) { return gst_harness_push_event(harness_, event); }
  bool push_eos() { return push_event(gst_event_new_eos()); }
  // What has been pushed, nullptr if nothing.
  BufferPtr try_pull() { return BufferPtr(gst_harness_try_pull(harness_)); }
  std::vector<BufferPtr> pull_all();
  // All events that reached downstream since the last call, in order.
  std::vector<EventPtr> events();
  // Buffers and events in the order they came out: "caps", "segment", "buffer", "eos", or the name
  // of a custom event.
  std::vector<std::string> take_order();

  // Takes all messages of these types from the bus (and drops the others).
  std::vector<MessagePtr> messages(GstMessageType types);
  // Waits for one; nullptr after 10 s.
  MessagePtr wait_message(GstMessageType types);
  // Waits until the model is loaded.
  bool wait_loaded();

 private:
  static GstPadProbeReturn probe(GstPad* pad, GstPadProbeInfo* info, gpointer self);

  ElementPtr element_;
  BusPtr bus_;
  GstHarness* harness_ = nullptr;
  std::mutex order_mutex_;  // guards order_
  std::vector<std::string> order_;
};

// `count` samples of `value`. A NONE pts leaves it out.
BufferPtr pcm_buffer(size_t count, float value, GstClockTime pts = GST_CLOCK_TIME_NONE);
// Rows of four equal codes: first, first + 1, ... modulo 625.
BufferPtr code_buffer(size_t rows, int first = 0, GstClockTime pts = GST_CLOCK_TIME_NONE);
std::vector<float> floats_of(GstBuffer* buffer);
// "load/complete 100" and so on.
std::string progress_text(GstMessage* message);
GErrorPtr error_of(GstMessage* message);

}  // namespace minicpmo::testing
