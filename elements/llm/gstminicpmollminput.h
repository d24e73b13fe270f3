// What arrives at one sink pad of minicpmollm, made into commands for its worker: embeddings are
// cut into the chunks that the model reads, text into messages. Used under the pad's stream lock.
#pragma once

#include <gst/gst.h>

#include <atomic>

#include "common/gst_ptr.h"
#include "common/gstminicpmoelement.h"
#include "common/gstminicpmotextinput.h"
#include "llm/gstminicpmollmworker.h"

namespace minicpmo {

class LlmInput {
 public:
  // from_text_sink: not the main input. Element and worker outlive it.
  LlmInput(GstMiniCpmoElement* element, LlmWorker* worker, bool from_text_sink)
      : element_(element), worker_(worker), from_text_sink_(from_text_sink) {
    reset();
  }

  // A new stream: what is left of the last one is dropped.
  void reset();
  // Waits for the model if the caps are those of embeddings, to compare their width. False after an
  // error message, or when flushing.
  bool set_caps(const GstCaps* caps);
  void set_segment(const GstEvent* event);
  void gap(GstEvent* event);
  GstFlowReturn chain(GstBuffer* buffer);
  // The end of a turn or of the stream: what is left makes a last chunk or message.
  GstFlowReturn finish();
  GstFlowReturn push(LlmCommand command);

  // Set while the pad flushes or goes away; the worker's wake() makes a waiting push() look.
  std::atomic<bool>& gone() { return gone_; }
  // Set by reset-session, from any thread: the part of a chunk or line read so far is dropped.
  void forget_partial() { forget_partial_ = true; }
  void set_max_message_bytes(guint bytes) { max_message_bytes_ = bytes; }

  bool eos = false;  // guarded by the element's pads_mutex

 private:
  GstFlowReturn take_embeddings(GstBuffer* buffer);
  GstFlowReturn take_whole_chunk(GstBuffer* buffer);
  GstFlowReturn push_rows(gsize bytes);
  GstFlowReturn push_tensor(TensorPtr tensor);
  GstFlowReturn take_text(GstBuffer* buffer);
  GstFlowReturn finish_rows();
  GstFlowReturn report_dropped();
  void report_repaired();
  void note_time(GstBuffer* buffer);

  GstMiniCpmoElement* const element_;
  LlmWorker* const worker_;
  const bool from_text_sink_;
  std::atomic<bool> gone_{false};
  std::atomic<bool> forget_partial_{false};
  std::atomic<guint> max_message_bytes_{256 * 1024};

  GstSegment segment_;
  bool is_text_ = true;
  DataType type_ = DataType::kFloat32;
  gint64 columns_ = 0;
  gsize chunk_bytes_ = 0;
  AdapterPtr rows_{gst_adapter_new()};
  TextMessages messages_;
  size_t dropped_ = 0;  // messages that were reported as too long
  bool warned_repaired_ = false;
  guint64 turn_id_ = 0;
  GstClockTime end_ = GST_CLOCK_TIME_NONE;
  GstClockTime capture_time_ = GST_CLOCK_TIME_NONE;
};

}  // namespace minicpmo
