#include "common/gstminicpmospan.h"

#ifdef MINICPMO_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace {

enum { SIGNAL_STAGE_BEGIN, SIGNAL_STAGE_END, SIGNAL_COUNT };
guint signals[SIGNAL_COUNT];

}  // namespace

void gst_minicpmo_span_install_signals(GType type) {
  signals[SIGNAL_STAGE_BEGIN] = g_signal_new(
      "stage-begin", type, G_SIGNAL_RUN_LAST, 0, nullptr, nullptr, nullptr, G_TYPE_NONE, 3,
      G_TYPE_STRING | G_SIGNAL_TYPE_STATIC_SCOPE, G_TYPE_UINT64, G_TYPE_UINT64);
  signals[SIGNAL_STAGE_END] =
      g_signal_new("stage-end", type, G_SIGNAL_RUN_LAST, 0, nullptr, nullptr, nullptr, G_TYPE_NONE,
                   2, G_TYPE_STRING | G_SIGNAL_TYPE_STATIC_SCOPE, G_TYPE_UINT64);
}

namespace minicpmo {

StageSpan::StageSpan(GstMiniCpmoElement* element, const char* stage, guint64 turn_id,
                     GstClockTime handed_in)
    : element_(element), stage_(stage), turn_id_(turn_id) {
#ifdef MINICPMO_NVTX
  nvtxRangePushA(stage_);
#endif
  told_ = g_signal_has_handler_pending(element_, signals[SIGNAL_STAGE_END], 0, FALSE) != FALSE;
  if (told_) g_signal_emit(element_, signals[SIGNAL_STAGE_BEGIN], 0, stage_, turn_id_, handed_in);
}

StageSpan::~StageSpan() {
  if (told_) g_signal_emit(element_, signals[SIGNAL_STAGE_END], 0, stage_, turn_id_);
#ifdef MINICPMO_NVTX
  nvtxRangePop();
#endif
}

}  // namespace minicpmo
