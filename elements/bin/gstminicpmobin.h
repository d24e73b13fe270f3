// minicpmobin: the four elements as one, speech or text in, speech and captions out.
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_BIN (gst_minicpmo_bin_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoBin, gst_minicpmo_bin, GST, MINICPMO_BIN, GstBin)

GST_ELEMENT_REGISTER_DECLARE(minicpmobin);

G_END_DECLS
