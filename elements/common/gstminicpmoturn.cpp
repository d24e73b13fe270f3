#include "common/gstminicpmoturn.h"

namespace {

constexpr const gchar* kTurnId = "turn-id";

constexpr const gchar* kSpeechEnd = "speech-end";
constexpr const gchar* kSpeculative = "speculative";
constexpr const gchar* kSamples = "samples";
constexpr const gchar* kComplete = "complete";
constexpr const gchar* kHeardBytes = "heard-bytes";

// Takes `fields` over.
GstEvent* new_downstream(GstStructure* fields) {
  return gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM, fields);
}

GstStructure* fields_of_turn(const gchar* name, guint64 turn_id) {
  return gst_structure_new(name, kTurnId, G_TYPE_UINT64, turn_id, nullptr);
}

GstEvent* new_out_of_band(const gchar* name, guint64 turn_id) {
  return gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM_OOB, fields_of_turn(name, turn_id));
}

gboolean turn_meta_init(GstMeta* meta, gpointer, GstBuffer*) {
  auto* turn = reinterpret_cast<GstMiniCpmoTurnMeta*>(meta);
  turn->turn_id = 0;
  turn->chunk = 0;
  turn->flags = 0;
  turn->capture_time = GST_CLOCK_TIME_NONE;
  return TRUE;
}

gboolean turn_meta_transform(GstBuffer* to, GstMeta* meta, GstBuffer*, GQuark type, gpointer data) {
  if (!GST_META_TRANSFORM_IS_COPY(type)) return FALSE;
  const auto* from = reinterpret_cast<GstMiniCpmoTurnMeta*>(meta);
  guint flags = from->flags;
  // A part of a chunk is no chunk.
  if (static_cast<GstMetaTransformCopy*>(data)->region) flags &= ~guint{GST_MINICPMO_TURN_CHUNK};
  return gst_buffer_add_minicpmo_turn_meta(to, from->turn_id, from->chunk, flags,
                                           from->capture_time) != nullptr;
}

}  // namespace

GstEvent* gst_minicpmo_event_new_turn_start(guint64 turn_id) {
  return new_downstream(fields_of_turn(GST_MINICPMO_EVENT_TURN_START, turn_id));
}

GstEvent* gst_minicpmo_event_new_turn_end(guint64 turn_id) {
  return gst_minicpmo_event_new_turn_end_full(turn_id, GST_CLOCK_TIME_NONE, FALSE);
}

GstEvent* gst_minicpmo_event_new_turn_end_full(guint64 turn_id, GstClockTime speech_end,
                                               gboolean speculative) {
  GstStructure* fields = fields_of_turn(GST_MINICPMO_EVENT_TURN_END, turn_id);
  if (GST_CLOCK_TIME_IS_VALID(speech_end))
    gst_structure_set(fields, kSpeechEnd, G_TYPE_UINT64, speech_end, nullptr);
  GstEvent* event = new_downstream(fields);
  if (speculative) gst_minicpmo_event_set_speculative(event);
  return event;
}

GstEvent* gst_minicpmo_event_new_turn_cancel(guint64 turn_id) {
  return new_downstream(fields_of_turn(GST_MINICPMO_EVENT_TURN_CANCEL, turn_id));
}

GstEvent* gst_minicpmo_event_new_turn_confirm(guint64 turn_id) {
  return new_out_of_band(GST_MINICPMO_EVENT_TURN_CONFIRM, turn_id);
}

GstEvent* gst_minicpmo_event_new_turn_resume(guint64 turn_id) {
  return new_out_of_band(GST_MINICPMO_EVENT_TURN_RESUME, turn_id);
}

GstEvent* gst_minicpmo_event_new_speaker(guint64 turn_id, const float* vector, gsize count) {
  GstBuffer* buffer = gst_buffer_new_memdup(vector, count * sizeof(float));
  GstStructure* fields = gst_structure_new(GST_MINICPMO_EVENT_SPEAKER, kTurnId, G_TYPE_UINT64,
                                           turn_id, "speaker", GST_TYPE_BUFFER, buffer, nullptr);
  gst_buffer_unref(buffer);
  return gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM_STICKY, fields);
}

GstEvent* gst_minicpmo_event_new_answer_end(guint64 turn_id, const gchar* finish) {
  return new_downstream(gst_structure_new(GST_MINICPMO_EVENT_ANSWER_END, kTurnId, G_TYPE_UINT64,
                                          turn_id, "finish", G_TYPE_STRING, finish, nullptr));
}

GstEvent* gst_minicpmo_event_new_interrupt(gint64 heard_bytes) {
  return gst_event_new_custom(GST_EVENT_CUSTOM_UPSTREAM,
                              gst_structure_new(GST_MINICPMO_EVENT_INTERRUPT, "heard-bytes",
                                                G_TYPE_INT64, heard_bytes, nullptr));
}

GstEvent* gst_minicpmo_event_new_barge_in(guint64 turn_id) {
  return new_out_of_band(GST_MINICPMO_EVENT_INTERRUPT, turn_id);
}

gboolean gst_minicpmo_event_is(GstEvent* event, const gchar* name) {
  switch (GST_EVENT_TYPE(event)) {
    case GST_EVENT_CUSTOM_DOWNSTREAM:
    case GST_EVENT_CUSTOM_DOWNSTREAM_STICKY:
    case GST_EVENT_CUSTOM_DOWNSTREAM_OOB:
    case GST_EVENT_CUSTOM_UPSTREAM:
      return gst_event_has_name(event, name);
    default:
      return FALSE;
  }
}

guint64 gst_minicpmo_event_turn_id(GstEvent* event) {
  const GstStructure* fields = gst_event_get_structure(event);
  guint64 turn_id = 0;
  if (fields != nullptr) gst_structure_get_uint64(fields, kTurnId, &turn_id);
  return turn_id;
}

GstClockTime gst_minicpmo_event_speech_end(GstEvent* event) {
  const GstStructure* fields = gst_event_get_structure(event);
  guint64 time = GST_CLOCK_TIME_NONE;
  if (fields != nullptr) gst_structure_get_uint64(fields, kSpeechEnd, &time);
  return time;
}

gboolean gst_minicpmo_event_is_speculative(GstEvent* event) {
  const GstStructure* fields = gst_event_get_structure(event);
  gboolean speculative = FALSE;
  if (fields != nullptr) gst_structure_get_boolean(fields, kSpeculative, &speculative);
  return speculative;
}

void gst_minicpmo_event_set_speculative(GstEvent* event) {
  gst_structure_set(gst_event_writable_structure(event), kSpeculative, G_TYPE_BOOLEAN, TRUE,
                    nullptr);
}

GstQuery* gst_minicpmo_query_new_heard(guint64 turn_id) {
  return gst_query_new_custom(GST_QUERY_CUSTOM, fields_of_turn(GST_MINICPMO_QUERY_HEARD, turn_id));
}

gboolean gst_minicpmo_query_is_heard(GstQuery* query) {
  return GST_QUERY_TYPE(query) == GST_QUERY_CUSTOM &&
         gst_structure_has_name(gst_query_get_structure(query), GST_MINICPMO_QUERY_HEARD);
}

guint64 gst_minicpmo_query_turn_id(GstQuery* query) {
  guint64 turn_id = 0;
  gst_structure_get_uint64(gst_query_get_structure(query), kTurnId, &turn_id);
  return turn_id;
}

GstQuery* gst_minicpmo_query_new_next_turn(void) {
  return gst_query_new_custom(GST_QUERY_CUSTOM, fields_of_turn(GST_MINICPMO_QUERY_NEXT_TURN, 0));
}

gboolean gst_minicpmo_query_is_next_turn(GstQuery* query) {
  return GST_QUERY_TYPE(query) == GST_QUERY_CUSTOM &&
         gst_structure_has_name(gst_query_get_structure(query), GST_MINICPMO_QUERY_NEXT_TURN);
}

void gst_minicpmo_query_set_turn_id(GstQuery* query, guint64 turn_id) {
  gst_structure_set(gst_query_writable_structure(query), kTurnId, G_TYPE_UINT64, turn_id, nullptr);
}

void gst_minicpmo_query_set_heard_samples(GstQuery* query, guint64 samples, gboolean complete) {
  gst_structure_set(gst_query_writable_structure(query), kSamples, G_TYPE_UINT64, samples,
                    kComplete, G_TYPE_BOOLEAN, complete, nullptr);
}

gboolean gst_minicpmo_query_get_heard_samples(GstQuery* query, guint64* samples,
                                              gboolean* complete) {
  return gst_structure_get(gst_query_get_structure(query), kSamples, G_TYPE_UINT64, samples,
                           kComplete, G_TYPE_BOOLEAN, complete, nullptr);
}

void gst_minicpmo_query_set_heard_bytes(GstQuery* query, gint64 bytes) {
  gst_structure_set(gst_query_writable_structure(query), kHeardBytes, G_TYPE_INT64, bytes, nullptr);
}

gint64 gst_minicpmo_query_get_heard_bytes(GstQuery* query) {
  gint64 bytes = -1;
  gst_structure_get_int64(gst_query_get_structure(query), kHeardBytes, &bytes);
  return bytes;
}

GType gst_minicpmo_turn_meta_api_get_type(void) {
  static const GType type = [] {
    static const gchar* tags[] = {nullptr};
    return gst_meta_api_type_register("GstMiniCpmoTurnMetaAPI", tags);
  }();
  return type;
}

const GstMetaInfo* gst_minicpmo_turn_meta_get_info(void) {
  static const GstMetaInfo* const info =
      gst_meta_register(gst_minicpmo_turn_meta_api_get_type(), "GstMiniCpmoTurnMeta",
                        sizeof(GstMiniCpmoTurnMeta), turn_meta_init, nullptr, turn_meta_transform);
  return info;
}

GstMiniCpmoTurnMeta* gst_buffer_add_minicpmo_turn_meta(GstBuffer* buffer, guint64 turn_id,
                                                       guint chunk, guint flags,
                                                       GstClockTime capture_time) {
  auto* meta = reinterpret_cast<GstMiniCpmoTurnMeta*>(
      gst_buffer_add_meta(buffer, gst_minicpmo_turn_meta_get_info(), nullptr));
  if (meta == nullptr) return nullptr;
  meta->turn_id = turn_id;
  meta->chunk = chunk;
  meta->flags = flags;
  meta->capture_time = capture_time;
  return meta;
}

GstMiniCpmoTurnMeta* gst_buffer_get_minicpmo_turn_meta(GstBuffer* buffer) {
  return reinterpret_cast<GstMiniCpmoTurnMeta*>(
      gst_buffer_get_meta(buffer, gst_minicpmo_turn_meta_api_get_type()));
}
