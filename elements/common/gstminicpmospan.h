// What an element's thread does between its pads, for tracers: every call of a stage is told by two
// signals of GstMiniCpmoElement. Without a listener that is a look-up; with the meson option nvtx
// each call is also a range of NVTX.
//
//   stage-begin  stage (encode|prefill|decode|speech|vocoder), turn-id,
//                handed-in: gst_util_get_timestamp() when the work came, or NONE
//   stage-end    stage, turn-id
//
// What the calls cost on a GPU is in the elements' `stats`: a call may return before the GPU is
// done.
#pragma once

#include "common/gstminicpmoelement.h"

// For class_init of the base.
void gst_minicpmo_span_install_signals(GType type);

namespace minicpmo {

class StageSpan {
 public:
  StageSpan(GstMiniCpmoElement* element, const char* stage, guint64 turn_id,
            GstClockTime handed_in = GST_CLOCK_TIME_NONE);
  ~StageSpan();
  StageSpan(const StageSpan&) = delete;
  StageSpan& operator=(const StageSpan&) = delete;

 private:
  GstMiniCpmoElement* const element_;
  const char* const stage_;
  const guint64 turn_id_;
  bool told_ = false;
};

}  // namespace minicpmo
