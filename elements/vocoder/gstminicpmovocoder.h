// minicpmovocoder: audio codes of minicpmotts to PCM.
#pragma once

#include "common/gstminicpmoelement.h"

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_VOCODER (gst_minicpmo_vocoder_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoVocoder, gst_minicpmo_vocoder, GST, MINICPMO_VOCODER,
                     GstMiniCpmoElement)

GST_ELEMENT_REGISTER_DECLARE(minicpmovocoder);

G_END_DECLS
