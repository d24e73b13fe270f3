// Turns: the events that mark them, the query that asks what was heard, and the meta that every
// buffer made for one carries. Custom events; turn-id is a guint64, times are running times in ns.
//
// Downstream, in order with the data:
//   minicpmo/turn-start    turn-id. The user starts to speak.
//   minicpmo/turn-end      turn-id, speech-end (guint64, end of the last voiced sample; optional),
//                          speculative (boolean; optional). The user has finished: answer.
//                          Speculative: answer, but keep the sound until turn-confirm.
//   minicpmo/turn-cancel   turn-id. That was no speech after all: forget it, and whatever it
//                          interrupted may go on. Comes instead of turn-end.
//   minicpmo/speaker       turn-id, speaker (GstBuffer, raw float32 little-endian), speculative
//                          (boolean; optional). Sticky.
//   minicpmo/answer-end    turn-id, finish (stop|length|context|interrupted|discarded|empty)
// Downstream, out of band (queues let it pass):
//   minicpmo/interrupt     turn-id of the turn that begins now: answers to earlier turns stop.
//   minicpmo/turn-confirm  turn-id. The speculative end of this turn was its end.
//   minicpmo/turn-resume   turn-id. It was not: the user goes on, the answer is discarded.
// Upstream:
//   minicpmo/interrupt     heard-bytes (gint64 of the answer's text, -1: unknown). Stop answering.
// Query, custom, asked downstream by the language model:
//   minicpmo/heard         see gst_minicpmo_query_new_heard
// Query, custom, asked upstream by the language model:
//   minicpmo/next-turn     see gst_minicpmo_query_new_next_turn
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
#define GST_MINICPMO_EVENT_TURN_CANCEL "minicpmo/turn-cancel"
#define GST_MINICPMO_EVENT_TURN_CONFIRM "minicpmo/turn-confirm"
#define GST_MINICPMO_EVENT_TURN_RESUME "minicpmo/turn-resume"
#define GST_MINICPMO_QUERY_HEARD "minicpmo/heard"
#define GST_MINICPMO_QUERY_NEXT_TURN "minicpmo/next-turn"

GstEvent* gst_minicpmo_event_new_turn_start(guint64 turn_id);
GstEvent* gst_minicpmo_event_new_turn_end(guint64 turn_id);
// speech_end: running time of the end of the last voiced sample, or NONE.
GstEvent* gst_minicpmo_event_new_turn_end_full(guint64 turn_id, GstClockTime speech_end,
                                               gboolean speculative);
GstEvent* gst_minicpmo_event_new_turn_cancel(guint64 turn_id);
GstEvent* gst_minicpmo_event_new_turn_confirm(guint64 turn_id);
GstEvent* gst_minicpmo_event_new_turn_resume(guint64 turn_id);
// Takes `vector` (count floats) by copy.
GstEvent* gst_minicpmo_event_new_speaker(guint64 turn_id, const float* vector, gsize count);
GstEvent* gst_minicpmo_event_new_answer_end(guint64 turn_id, const gchar* finish);
GstEvent* gst_minicpmo_event_new_interrupt(gint64 heard_bytes);
// The one that goes downstream. turn_id: of the turn that begins.
GstEvent* gst_minicpmo_event_new_barge_in(guint64 turn_id);
// TRUE if `event` is the custom event `name`.
gboolean gst_minicpmo_event_is(GstEvent* event, const gchar* name);
// The field, or 0.
guint64 gst_minicpmo_event_turn_id(GstEvent* event);
// The field of a turn-end, or NONE.
GstClockTime gst_minicpmo_event_speech_end(GstEvent* event);
gboolean gst_minicpmo_event_is_speculative(GstEvent* event);
// The event must be writable.
void gst_minicpmo_event_set_speculative(GstEvent* event);

// Asks what the listener has heard of the answer to turn `turn_id`. The vocoder fills in samples
// (at 24 kHz, of this answer, whose time to be rendered has come), minicpmotts makes heard-bytes of
// it, bytes of the answer's text.
GstQuery* gst_minicpmo_query_new_heard(guint64 turn_id);
gboolean gst_minicpmo_query_is_heard(GstQuery* query);
guint64 gst_minicpmo_query_turn_id(GstQuery* query);
// complete: nothing more of the answer is to come, and all of it has been heard.
void gst_minicpmo_query_set_heard_samples(GstQuery* query, guint64 samples, gboolean complete);
gboolean gst_minicpmo_query_get_heard_samples(GstQuery* query, guint64* samples,
                                              gboolean* complete);
void gst_minicpmo_query_set_heard_bytes(GstQuery* query, gint64 bytes);
// -1: unknown.
gint64 gst_minicpmo_query_get_heard_bytes(GstQuery* query);

// Asks for the number of a turn that is not spoken: minicpmoturn, which numbers those that are,
// sets the turn-id. Turns that begin later have greater numbers.
GstQuery* gst_minicpmo_query_new_next_turn(void);
gboolean gst_minicpmo_query_is_next_turn(GstQuery* query);
void gst_minicpmo_query_set_turn_id(GstQuery* query, guint64 turn_id);

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
