/**
 * SECTION:element-minicpmoaudioenc
 * @title: minicpmoaudioenc
 *
 * The ears of MiniCPM-o: turns speech (16 kHz mono) into embeddings that minicpmollm reads, one
 * buffer for every second (25 rows) and a shorter one for the end of a turn. It encodes while the
 * user still speaks, so at the end of the question only the last partial second is left to do.
 *
 * A stream without turn events is one turn that ends with EOS. With minicpmo/turn-start and
 * minicpmo/turn-end events (see minicpmoturn) each turn is encoded by itself, and audio between
 * turns is dropped.
 *
 * GAP events and small holes in the timestamps inside a turn are heard as silence. Audio of a turn
 * beyond max-turn-duration is dropped with a warning. When upstream is live, the element adds one
 * chunk (1 s) of latency.
 *
 * ## Example
 * |[
 * gst-launch-1.0 filesrc location=question.wav ! wavparse ! audioconvert ! audioresample !
 * minicpmoaudioenc ! filesink location=embeddings.f32
 * ]| Writes the embeddings of a question as rows of little-endian float32.
 *
 * ## Messages
 * PROGRESS (code "load") while the model loads; a warning when samples are not finite or a turn is
 * too long.
 */
#include "audioenc/gstminicpmoaudioenc.h"

#include <memory>
#include <utility>

#include "audioenc/gstminicpmoaudioframer.h"
#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"

using minicpmo::AudioFramer;
using minicpmo::BufferPtr;
using minicpmo::EventPtr;
using minicpmo::guard;

GST_DEBUG_CATEGORY(gst_minicpmo_audio_enc_debug);
#define GST_CAT_DEFAULT gst_minicpmo_audio_enc_debug

struct _GstMiniCpmoAudioEnc {
  GstMiniCpmoElement parent;
  GstPad* sinkpad;
  GstPad* srcpad;
  AudioFramer* framer;
};

enum { PROP_0, PROP_MAX_TURN_DURATION, PROP_STATS };

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE(
    "sink", GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("audio/x-raw, format=(string)F32LE, rate=(int)16000, channels=(int)1, "
                    "layout=(string)interleaved"));
static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE(
    "src", GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("tensor/strided, tensor-id=(string)" GST_MINICPMO_TENSOR_ID_EMBEDDING
                    ", type=(string){ float32, bfloat16 }, dims=(int)<0, [ 1, 2147483647 ]>, "
                    "dims-order=(string)row-major"));

G_DEFINE_TYPE_WITH_CODE(GstMiniCpmoAudioEnc, gst_minicpmo_audio_enc, GST_TYPE_MINICPMO_ELEMENT,
                        GST_DEBUG_CATEGORY_INIT(gst_minicpmo_audio_enc_debug, "minicpmoaudioenc", 0,
                                                "MiniCPM-o: speech to embeddings"))
GST_ELEMENT_REGISTER_DEFINE(minicpmoaudioenc, "minicpmoaudioenc", GST_RANK_NONE,
                            GST_TYPE_MINICPMO_AUDIO_ENC)

// ---- Session ----------------------------------------------------------------

static minicpmo::Result<void> open_session(GstMiniCpmoElement* element,
                                           const std::shared_ptr<minicpmo::Engine>& engine) {
  auto* self = GST_MINICPMO_AUDIO_ENC(element);
  ASSIGN_OR_RETURN(auto session, engine->new_audio_encoder());
  self->framer->open(std::move(session), engine->info());
  return {};
}

static void close_session(GstMiniCpmoElement* element) {
  GST_MINICPMO_AUDIO_ENC(element)->framer->close();
}

static void reset(GstMiniCpmoElement* element, gboolean flushed) {
  GST_MINICPMO_AUDIO_ENC(element)->framer->reset(flushed != FALSE);
}

// ---- Pads -------------------------------------------------------------------

static GstFlowReturn chain(GstPad*, GstObject* parent, GstBuffer* data) {
  auto* self = GST_MINICPMO_AUDIO_ENC(parent);
  BufferPtr buffer(data);
  return guard(GST_ELEMENT(self), GST_FLOW_ERROR,
               [&] { return self->framer->chain(std::move(buffer)); });
}

static bool serialized_event(GstMiniCpmoAudioEnc* self, EventPtr event) {
  AudioFramer& framer = *self->framer;
  switch (GST_EVENT_TYPE(event.get())) {
    case GST_EVENT_STREAM_START:
      return framer.stream_start(std::move(event));
    case GST_EVENT_CAPS:
      return true;  // ours are made when the model is there
    case GST_EVENT_SEGMENT:
      return framer.segment(std::move(event));
    case GST_EVENT_GAP:
      return framer.gap(std::move(event));
    case GST_EVENT_EOS:
      return framer.eos(std::move(event));
    default:
      if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_START))
        return framer.turn_start(std::move(event));
      if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_END))
        return framer.turn_end(std::move(event));
      if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_CANCEL))
        return framer.turn_cancel(std::move(event));
      return framer.other(std::move(event));
  }
}

static gboolean sink_event(GstPad* pad, GstObject* parent, GstEvent* data) {
  auto* self = GST_MINICPMO_AUDIO_ENC(parent);
  EventPtr event(data);
  return guard<gboolean>(GST_ELEMENT(self), FALSE, [&]() -> gboolean {
    switch (GST_EVENT_TYPE(event.get())) {
      case GST_EVENT_FLUSH_START:
      case GST_EVENT_FLUSH_STOP:
        return gst_minicpmo_element_flush(GST_MINICPMO_ELEMENT(self), self->srcpad,
                                          event.release());
      default:
        if (minicpmo::is_serialized(event.get())) return serialized_event(self, std::move(event));
        return gst_pad_event_default(pad, parent, event.release());
    }
  });
}

static gboolean src_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  auto* self = GST_MINICPMO_AUDIO_ENC(parent);
  if (GST_QUERY_TYPE(query) == GST_QUERY_LATENCY)
    return gst_minicpmo_element_query_latency(self->sinkpad, query, self->framer->chunk_duration());
  return gst_minicpmo_element_pad_query(pad, parent, query);
}

// ---- Properties -------------------------------------------------------------

static void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  switch (id) {
    case PROP_MAX_TURN_DURATION:
      GST_MINICPMO_AUDIO_ENC(object)->framer->set_max_turn(g_value_get_uint64(value));
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

static GstStructure* make_stats(const minicpmo::AudioEncStats& stats) {
  return gst_structure_new(
      "application/x-minicpmoaudioenc-stats", "samples", G_TYPE_UINT64, stats.samples, "chunks",
      G_TYPE_UINT64, stats.chunks, "turns", G_TYPE_UINT64, stats.turns, "silence-samples",
      G_TYPE_UINT64, stats.silence_samples, "dropped-samples", G_TYPE_UINT64, stats.dropped_samples,
      "non-finite-samples", G_TYPE_UINT64, stats.non_finite_samples, "processing-time",
      G_TYPE_UINT64, stats.processing_time, "gpu-time", G_TYPE_UINT64, stats.gpu_time, nullptr);
}

static void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  auto* self = GST_MINICPMO_AUDIO_ENC(object);
  switch (id) {
    case PROP_MAX_TURN_DURATION:
      g_value_set_uint64(value, self->framer->max_turn());
      break;
    case PROP_STATS:
      g_value_take_boxed(value, make_stats(self->framer->stats()));
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

// ---- Class ------------------------------------------------------------------

static void finalize(GObject* object) {
  auto* self = GST_MINICPMO_AUDIO_ENC(object);
  delete self->framer;
  self->framer = nullptr;
  G_OBJECT_CLASS(gst_minicpmo_audio_enc_parent_class)->finalize(object);
}

static void gst_minicpmo_audio_enc_class_init(GstMiniCpmoAudioEncClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  auto* element_class = GST_ELEMENT_CLASS(klass);
  auto* base_class = GST_MINICPMO_ELEMENT_CLASS(klass);
  object_class->set_property = set_property;
  object_class->get_property = get_property;
  object_class->finalize = finalize;
  base_class->stage = minicpmo::Stage::kAudioEncoder;
  base_class->open_session = open_session;
  base_class->close_session = close_session;
  base_class->reset = reset;

  g_object_class_install_property(
      object_class, PROP_MAX_TURN_DURATION,
      g_param_spec_uint64("max-turn-duration", "Maximum Turn Duration",
                          "Longest turn in nanoseconds (0 = no limit); what is said after that is "
                          "dropped with a warning",
                          0, G_MAXUINT64, AudioFramer::kDefaultMaxTurn,
                          static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                   GST_PARAM_MUTABLE_PLAYING)));
  g_object_class_install_property(
      object_class, PROP_STATS,
      g_param_spec_boxed("stats", "Statistics",
                         "Counted since the element was made: samples, chunks, turns, "
                         "silence-samples, dropped-samples, non-finite-samples (16 kHz samples), "
                         "processing-time (ns), gpu-time (ns of it on a GPU)",
                         GST_TYPE_STRUCTURE,
                         static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS)));

  gst_element_class_add_static_pad_template(element_class, &sink_template);
  gst_element_class_add_static_pad_template(element_class, &src_template);
  gst_element_class_set_static_metadata(
      element_class, "MiniCPM-o audio encoder", "Encoder/Audio/Converter",
      "Turns speech into embeddings for minicpmollm (MiniCPM-o 2.6)",
      "The gst-minicpmo developers");
}

static void gst_minicpmo_audio_enc_init(GstMiniCpmoAudioEnc* self) {
  self->sinkpad = gst_pad_new_from_static_template(&sink_template, "sink");
  gst_pad_set_chain_function(self->sinkpad, GST_DEBUG_FUNCPTR(chain));
  gst_pad_set_event_function(self->sinkpad, GST_DEBUG_FUNCPTR(sink_event));
  gst_pad_set_query_function(self->sinkpad, gst_minicpmo_element_pad_query);
  // Caps without a layout (filesrc ! audio/x-raw,...) are as good.
  GST_PAD_SET_ACCEPT_INTERSECT(self->sinkpad);
  gst_element_add_pad(GST_ELEMENT(self), self->sinkpad);

  self->srcpad = gst_pad_new_from_static_template(&src_template, "src");
  gst_pad_set_query_function(self->srcpad, GST_DEBUG_FUNCPTR(src_query));
  gst_element_add_pad(GST_ELEMENT(self), self->srcpad);
  self->framer = new AudioFramer(GST_MINICPMO_ELEMENT(self), self->srcpad);
}
