/**
 * SECTION:element-minicpmovocoder
 * @title: minicpmovocoder
 *
 * The voice of MiniCPM-o: turns audio codes of minicpmotts into sound (24 kHz mono, 512 samples for
 * each row of four codes). Each chunk is cross-faded into the next over 2048 samples (85 ms), which
 * are held back until then; the end of an answer (minicpmo/answer-end), EOS and a new segment send
 * them.
 *
 * Timestamps count samples from the first buffer of an answer. Codes without chunk marks (a dump
 * that is replayed) are cut into chunks of 25 rows. When upstream is live, the element adds those
 * 85 ms of latency.
 *
 * ## Example
 * |[
 * gst-launch-1.0 filesrc location=sentence.txt ! text/x-raw,format=utf8 ! minicpmotts !
 * minicpmovocoder ! audioconvert ! wavenc ! filesink location=sentence.wav
 * ]| Speaks a text.
 * |[
 * gst-launch-1.0 filesrc location=codes.u16 !
 * "tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,dims=(int)<0,4>,dims-order=row-major" !
 * minicpmovocoder ! audioconvert ! wavenc ! filesink location=codes.wav
 * ]| Replays codes that were dumped with filesink.
 *
 * ## Messages
 * PROGRESS (code "load") while the model loads.
 */
#include "vocoder/gstminicpmovocoder.h"

#include <memory>
#include <utility>

#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"
#include "vocoder/gstminicpmocodestream.h"

using minicpmo::BufferPtr;
using minicpmo::CodeStream;
using minicpmo::EventPtr;
using minicpmo::guard;

GST_DEBUG_CATEGORY(gst_minicpmo_vocoder_debug);
#define GST_CAT_DEFAULT gst_minicpmo_vocoder_debug

struct _GstMiniCpmoVocoder {
  GstMiniCpmoElement parent;
  GstPad* sinkpad;
  GstPad* srcpad;
  CodeStream* stream;
};

enum { PROP_0, PROP_COMPATIBILITY, PROP_HEADROOM, PROP_STATS };

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE(
    "sink", GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("tensor/strided, tensor-id=(string)" GST_MINICPMO_TENSOR_ID_CODE
                    ", type=(string){ uint16, int32 }, dims=(int)<0, 4>, "
                    "dims-order=(string)row-major"));
static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE(
    "src", GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("audio/x-raw, format=(string)F32LE, rate=(int)24000, channels=(int)1, "
                    "layout=(string)interleaved"));

G_DEFINE_TYPE_WITH_CODE(GstMiniCpmoVocoder, gst_minicpmo_vocoder, GST_TYPE_MINICPMO_ELEMENT,
                        GST_DEBUG_CATEGORY_INIT(gst_minicpmo_vocoder_debug, "minicpmovocoder", 0,
                                                "MiniCPM-o: codes to sound"))
GST_ELEMENT_REGISTER_DEFINE(minicpmovocoder, "minicpmovocoder", GST_RANK_NONE,
                            GST_TYPE_MINICPMO_VOCODER)

// ---- Session ----------------------------------------------------------------

static minicpmo::Result<void> open_session(GstMiniCpmoElement* element,
                                           const std::shared_ptr<minicpmo::Engine>& engine) {
  auto* self = GST_MINICPMO_VOCODER(element);
  minicpmo::VocoderOptions options;
  options.compatibility = self->stream->compatibility();
  ASSIGN_OR_RETURN(auto session, engine->new_vocoder(options));
  self->stream->open(std::move(session));
  return {};
}

static void close_session(GstMiniCpmoElement* element) {
  GST_MINICPMO_VOCODER(element)->stream->close();
}

static void reset(GstMiniCpmoElement* element, gboolean flushed) {
  GST_MINICPMO_VOCODER(element)->stream->reset(flushed != FALSE);
}

// ---- Pads -------------------------------------------------------------------

static GstFlowReturn chain(GstPad*, GstObject* parent, GstBuffer* data) {
  auto* self = GST_MINICPMO_VOCODER(parent);
  BufferPtr buffer(data);
  return guard(GST_ELEMENT(self), GST_FLOW_ERROR,
               [&] { return self->stream->chain(std::move(buffer)); });
}

static bool serialized_event(GstMiniCpmoVocoder* self, EventPtr event) {
  CodeStream& stream = *self->stream;
  switch (GST_EVENT_TYPE(event.get())) {
    case GST_EVENT_STREAM_START:
      return stream.stream_start(std::move(event));
    case GST_EVENT_CAPS: {
      GstCaps* caps = nullptr;
      gst_event_parse_caps(event.get(), &caps);
      return stream.caps(caps);
    }
    case GST_EVENT_SEGMENT:
      return stream.segment(std::move(event));
    case GST_EVENT_GAP:
      return stream.gap(std::move(event));
    case GST_EVENT_EOS:
      return stream.eos(std::move(event));
    default:
      if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_ANSWER_END))
        return stream.answer_end(std::move(event));
      if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_SPEAKER))
        return stream.speaker(std::move(event));
      return stream.other(std::move(event));
  }
}

static gboolean sink_event(GstPad* pad, GstObject* parent, GstEvent* data) {
  auto* self = GST_MINICPMO_VOCODER(parent);
  EventPtr event(data);
  return guard<gboolean>(GST_ELEMENT(self), FALSE, [&]() -> gboolean {
    switch (GST_EVENT_TYPE(event.get())) {
      case GST_EVENT_FLUSH_START:
      case GST_EVENT_FLUSH_STOP:
        return gst_minicpmo_element_flush(GST_MINICPMO_ELEMENT(self), self->srcpad,
                                          event.release());
      default:
        if (minicpmo::is_serialized(event.get())) return serialized_event(self, std::move(event));
        if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_CONFIRM))
          self->stream->confirm(gst_minicpmo_event_turn_id(event.get()));
        return gst_pad_event_default(pad, parent, event.release());
    }
  });
}

static gboolean sink_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  auto* self = GST_MINICPMO_VOCODER(parent);
  if (gst_minicpmo_query_is_heard(query)) return self->stream->heard(query);
  return gst_minicpmo_element_pad_query(pad, parent, query);
}

// The sinks are told when to render; so we know what has been heard.
static gboolean src_event(GstPad* pad, GstObject* parent, GstEvent* event) {
  if (GST_EVENT_TYPE(event) == GST_EVENT_LATENCY) {
    GstClockTime latency = 0;
    gst_event_parse_latency(event, &latency);
    if (GST_CLOCK_TIME_IS_VALID(latency))
      GST_MINICPMO_VOCODER(parent)->stream->set_latency(latency);
  }
  return gst_pad_event_default(pad, parent, event);
}

// ---- Properties -------------------------------------------------------------

static void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  switch (id) {
    case PROP_COMPATIBILITY:
      GST_MINICPMO_VOCODER(object)->stream->set_compatibility(
          static_cast<minicpmo::Compatibility>(g_value_get_enum(value)));
      break;
    case PROP_HEADROOM:
      GST_MINICPMO_VOCODER(object)->stream->set_headroom(g_value_get_uint64(value));
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

static GstStructure* make_stats(const minicpmo::VocoderStats& stats) {
  return gst_structure_new("application/x-minicpmovocoder-stats", "rows", G_TYPE_UINT64, stats.rows,
                           "samples", G_TYPE_UINT64, stats.samples, "answers", G_TYPE_UINT64,
                           stats.answers, "late", G_TYPE_UINT64, stats.late, "processing-time",
                           G_TYPE_UINT64, stats.processing_time, "gpu-time", G_TYPE_UINT64,
                           stats.gpu_time, nullptr);
}

static void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  auto* self = GST_MINICPMO_VOCODER(object);
  switch (id) {
    case PROP_COMPATIBILITY:
      g_value_set_enum(value, static_cast<int>(self->stream->compatibility()));
      break;
    case PROP_HEADROOM:
      g_value_set_uint64(value, self->stream->headroom());
      break;
    case PROP_STATS:
      g_value_take_boxed(value, make_stats(self->stream->stats()));
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

// ---- Class ------------------------------------------------------------------

static void finalize(GObject* object) {
  auto* self = GST_MINICPMO_VOCODER(object);
  delete self->stream;
  self->stream = nullptr;
  G_OBJECT_CLASS(gst_minicpmo_vocoder_parent_class)->finalize(object);
}

static void gst_minicpmo_vocoder_class_init(GstMiniCpmoVocoderClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  auto* element_class = GST_ELEMENT_CLASS(klass);
  auto* base_class = GST_MINICPMO_ELEMENT_CLASS(klass);
  object_class->set_property = set_property;
  object_class->get_property = get_property;
  object_class->finalize = finalize;
  base_class->stage = minicpmo::Stage::kVocoder;
  base_class->open_session = open_session;
  base_class->close_session = close_session;
  base_class->reset = reset;

  g_object_class_install_property(
      object_class, PROP_COMPATIBILITY,
      g_param_spec_enum("compatibility", "Compatibility",
                        "How a continuation segment joins the one before: cross-faded (none), or "
                        "with 85 ms doubled as upstream does. Read in NULL to READY",
                        GST_TYPE_MINICPMO_COMPATIBILITY,
                        static_cast<int>(minicpmo::Compatibility::kNone),
                        static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                 GST_PARAM_MUTABLE_READY)));
  g_object_class_install_property(
      object_class, PROP_HEADROOM,
      g_param_spec_uint64("headroom", "Headroom",
                          "In a live pipeline, how long in nanoseconds before it is due an "
                          "answer's first sound is sent on: for encoders and sinks behind",
                          0, 10 * GST_SECOND, CodeStream::kDefaultHeadroom,
                          static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                   GST_PARAM_MUTABLE_PLAYING)));
  g_object_class_install_property(
      object_class, PROP_STATS,
      g_param_spec_boxed("stats", "Statistics",
                         "Counted since the element was made: rows (of codes), samples (24 kHz), "
                         "answers, late (holes in live answers: the model did not keep up), "
                         "processing-time (ns), gpu-time (ns of it on a GPU)",
                         GST_TYPE_STRUCTURE,
                         static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS)));

  gst_element_class_add_static_pad_template(element_class, &sink_template);
  gst_element_class_add_static_pad_template(element_class, &src_template);
  gst_element_class_set_static_metadata(
      element_class, "MiniCPM-o vocoder", "Decoder/Audio/Converter",
      "Turns audio codes of minicpmotts into sound (MiniCPM-o 2.6)", "The gst-minicpmo developers");
}

static void gst_minicpmo_vocoder_init(GstMiniCpmoVocoder* self) {
  self->sinkpad = gst_pad_new_from_static_template(&sink_template, "sink");
  gst_pad_set_chain_function(self->sinkpad, GST_DEBUG_FUNCPTR(chain));
  gst_pad_set_event_function(self->sinkpad, GST_DEBUG_FUNCPTR(sink_event));
  gst_pad_set_query_function(self->sinkpad, GST_DEBUG_FUNCPTR(sink_query));
  // Caps without dims-order (written by hand) are as good.
  GST_PAD_SET_ACCEPT_INTERSECT(self->sinkpad);
  gst_element_add_pad(GST_ELEMENT(self), self->sinkpad);

  self->srcpad = gst_pad_new_from_static_template(&src_template, "src");
  gst_pad_set_query_function(self->srcpad, gst_minicpmo_element_pad_query);
  gst_pad_set_event_function(self->srcpad, GST_DEBUG_FUNCPTR(src_event));
  gst_element_add_pad(GST_ELEMENT(self), self->srcpad);
  self->stream = new CodeStream(GST_MINICPMO_ELEMENT(self), self->sinkpad, self->srcpad);
}
