// minicpmollm: audio embeddings or text in, the words of the answer out, burst by burst.
#pragma once

#include <gst/gst.h>

#include "common/gstminicpmoelement.h"

G_BEGIN_DECLS

// Type of the property `timestamp-mode` (the values of minicpmo::TimestampMode).
#define GST_TYPE_MINICPMO_TIMESTAMP_MODE (gst_minicpmo_timestamp_mode_get_type())
GType gst_minicpmo_timestamp_mode_get_type(void);

#define GST_TYPE_MINICPMO_LLM (gst_minicpmo_llm_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoLlm, gst_minicpmo_llm, GST, MINICPMO_LLM, GstMiniCpmoElement)

GST_ELEMENT_REGISTER_DECLARE(minicpmollm)

G_END_DECLS
