// GstMiniCpmoTurnsTracer: the tracer `minicpmoturns`. See README.md.
#pragma once

#include <gst/gst.h>
#include <gst/gsttracer.h>

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_TURNS_TRACER (gst_minicpmo_turns_tracer_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoTurnsTracer, gst_minicpmo_turns_tracer, GST, MINICPMO_TURNS_TRACER,
                     GstTracer)

G_END_DECLS
