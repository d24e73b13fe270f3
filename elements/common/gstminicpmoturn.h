// Turns: the events that mark them and the meta that every buffer made for one carries.
//
//   minicpmo/turn-start   serialized downstream  turn-id (guint64)                  the user starts
//   to speak minicpmo/turn-end     serialized downstream  turn-id                            the
//   user has finished: answer minicpmo/speaker      sticky downstream      turn-id, speaker
//   (GstBuffer, raw float32 little-endian) minicpmo/answer-end   serialized downstream  turn-id,
//   finish (stop|length|context|interrupted|empty) minicpmo/interrupt    upstream heard-bytes
//   (gint64, -1: unknown)  stop answering
//
// Streams without turn-start and turn-end (a file) are one turn that ends with EOS.
#pragma once

#include <gst/gst.h>

#include <cstdint>

G_BEGIN_DECLS

#define GST_MINICPMO_EVENT_TURN_START "minicpmo/turn-start"
#define GST_MINICPMO_EVENT_TURN_END "minicpmo/turn-end"
#define GST_MINICPMO_EVENT_SPEAKER "minicpmo/speaker"
#define GST_MINICPMO_EVENT_ANSWER_END "minicpmo/answer-end"
#define GST_MINICPMO_EVENT_INTERRUPT "minicpmo/interrupt"

GstEvent* gst_minicpmo_event_new_turn_start(guint64 turn_id);
GstEvent* gst_minicpmo_event_new_turn_end(guint64 turn_id);
// Takes `vector` (count floats) by copy.
GstEvent* gst_minicpmo_event_new_speaker(guint64 turn_id, const float* vector, gsize count);
GstEvent* gst_minicpmo_event_new_answer_end(guint64 turn_id, const gchar* finish);
GstEvent* gst_minicpmo_event_new_interrupt(gint64 heard_bytes);
// TRUE if `event` is the custom event `name`.
gboolean gst_minicpmo_event_is(GstEvent* event, const gchar* name);
// The field, or 0.
guint64 gst_minicpmo_event_turn_id(GstEvent* event);

typedef enum {
  GST_MINICPMO_TURN_CHUNK =
      1 << 0,  // the buffer is exactly one chunk of its stage: do not re-chunk it
  GST_MINICPMO_TURN_SEGMENT_START = 1 << 1,  // codes: a continuation segment starts here
  GST_MINICPMO_TURN_FIRST = 1 << 2,          // first buffer of an answer
} GstMiniCpmoTurnFlags;

typedef struct {
  GstMeta meta;
  guint64 turn_id;
  guint chunk;                // index within the turn, per stage
  guint flags;                // GstMiniCpmoTurnFlags
  GstClockTime capture_time;  // running time of the end of the user's last sample, or NONE
} GstMiniCpmoTurnMeta;

GType gst_minicpmo_turn_meta_api_get_type(void);
const GstMetaInfo* gst_minicpmo_turn_meta_get_info(void);
GstMiniCpmoTurnMeta* gst_buffer_add_minicpmo_turn_meta(GstBuffer* buffer, guint64 turn_id,
                                                       guint chunk, guint flags,
                                                       GstClockTime capture_time);
// NULL if there is none.
GstMiniCpmoTurnMeta* gst_buffer_get_minicpmo_turn_meta(GstBuffer* buffer);

G_END_DECLS
