// minicpmoaudioenc: PCM to embeddings for minicpmollm, one buffer per chunk of one second.
#pragma once

#include "common/gstminicpmoelement.h"

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_AUDIO_ENC (gst_minicpmo_audio_enc_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoAudioEnc, gst_minicpmo_audio_enc, GST, MINICPMO_AUDIO_ENC,
                     GstMiniCpmoElement)

GST_ELEMENT_REGISTER_DECLARE(minicpmoaudioenc);

G_END_DECLS
