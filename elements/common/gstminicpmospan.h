// What an element's thread does between its pads, for tracers: every call of a stage is told by two
// signals of GstMiniCpmoElement. Without a listener that is a look-up; with the meson option nvtx
// each call is also a range of NVTX.
//
//   stage-begin  stage (encode|prefill|decode|speech|vocoder), turn-id,
//                handed-in: gst_util_get_timestamp() when the work came, or NONE
//   stage-end    stage, turn-id, gpu-time: ns of the call on a GPU
#pragma once

#include "common/gstminicpmoelement.h"

// For class_init of the base.
void gst_minicpmo_span_install_signals(GType type);

namespace minicpmo {

class StageSpan {
 public:
  template <class Session>
  StageSpan(GstMiniCpmoElement* element, const char* stage, guint64 turn_id, const Session* session,
            GstClockTime handed_in = GST_CLOCK_TIME_NONE)
      : StageSpan(
            element, stage, turn_id, handed_in,
            [](const void* of) { return static_cast<const Session*>(of)->gpu_nanoseconds(); },
            session) {}
  ~StageSpan();
  StageSpan(const StageSpan&) = delete;
  StageSpan& operator=(const StageSpan&) = delete;

 private:
  using GpuTime = int64_t (*)(const void* session);
  StageSpan(GstMiniCpmoElement* element, const char* stage, guint64 turn_id, GstClockTime handed_in,
            GpuTime gpu_time, const void* session);

  GstMiniCpmoElement* const element_;
  const char* const stage_;
  const guint64 turn_id_;
  const GpuTime gpu_time_;
  const void* const session_;
  bool told_ = false;
  int64_t gpu_begin_ = 0;
};

}  // namespace minicpmo
