// minicpmoturn: lets the audio of a speaking user through and marks where turns begin and end.
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_TURN (gst_minicpmo_turn_get_type())
G_DECLARE_FINAL_TYPE(GstMiniCpmoTurn, gst_minicpmo_turn, GST, MINICPMO_TURN, GstElement)

// Type of the property `mode`: vad, manual (the values of minicpmo::TurnMode).
#define GST_TYPE_MINICPMO_TURN_MODE (gst_minicpmo_turn_mode_get_type())
GType gst_minicpmo_turn_mode_get_type(void);

GST_ELEMENT_REGISTER_DECLARE(minicpmoturn);

G_END_DECLS
