// The properties of minicpmobin: each stands for one of its children's, or for the same one of
// several.
#pragma once

#include <gst/gst.h>

// Installs them, with the children's ranges, defaults and texts.
void gst_minicpmo_bin_properties_install(GObjectClass* object_class);

// Sets property `id` in every child of `bin` that has it, or reads it from the first. FALSE if `id`
// is none of them.
gboolean gst_minicpmo_bin_properties_set(GstBin* bin, guint id, const GValue* value);
gboolean gst_minicpmo_bin_properties_get(GstBin* bin, guint id, GValue* value);
