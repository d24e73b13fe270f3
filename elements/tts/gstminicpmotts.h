// minicpmotts: the words of an answer in, chunks of audio codes out.
#pragma once

#include <gst/gst.h>

#include "common/gstminicpmoelement.h"

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_TTS (gst_minicpmo_tts_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoTts, gst_minicpmo_tts, GST, MINICPMO_TTS, GstMiniCpmoElement)

GST_ELEMENT_REGISTER_DECLARE(minicpmotts);

G_END_DECLS
