/**
 * SECTION:element-minicpmotts
 * @title: minicpmotts
 *
 * The voice of MiniCPM-o: turns the words of minicpmollm, or any text, into audio codes for
 * minicpmovocoder (four codes for every 512 samples at 24 kHz).
 *
 * On a segment in time one buffer is one burst of the language model, and a GAP event is a burst
 * without text; bursts matter, because each lets the model speak a little further. On a segment in
 * bytes (filesrc ! text/x-raw) the text is one long answer that is read word by word. An answer
 * ends with the event minicpmo/answer-end, a new SEGMENT, or EOS: what is left of it is spoken
 * before the event goes on.
 *
 * The voice is the vector of the sticky event minicpmo/speaker; without one that of the file named
 * by the property speaker, otherwise the checkpoint's default.
 *
 * Speech of one answer is contiguous in time. It starts at the timestamp of the answer's first
 * text, but not before the end of the answer before it. The element works in the thread that pushes
 * the text: put a queue before it. A flush stops it at the next code, and drops the answer.
 *
 * ## Examples
 * |[
 * gst-launch-1.0 filesrc location=sentence.txt ! text/x-raw,format=utf8 ! minicpmotts ! queue !
 * minicpmovocoder ! audioconvert ! wavenc ! filesink location=sentence.wav
 * ]| Reads a file aloud.
 * |[
 * gst-launch-1.0 filesrc location=sentence.txt ! text/x-raw,format=utf8 ! minicpmotts
 * speaker=voice.f32 ! filesink location=codes.u16
 * ]| Writes the codes as rows of four little-endian uint16.
 *
 * ## Messages
 * PROGRESS (code "load") while the model loads; a warning when the text is not UTF-8.
 */
#include "tts/gstminicpmotts.h"

#include <climits>
#include <utility>

#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"
#include "tts/gstminicpmospeechstream.h"

using minicpmo::EventPtr;
using minicpmo::guard;
using minicpmo::SpeechStream;

GST_DEBUG_CATEGORY(gst_minicpmo_tts_debug);
#define GST_CAT_DEFAULT gst_minicpmo_tts_debug

struct _GstMiniCpmoTts {
  GstMiniCpmoElement parent;
  GstPad* sinkpad;
  GstPad* srcpad;
  SpeechStream* stream;
};

enum {
  PROP_0,
  PROP_SPEAKER,
  PROP_TEMPERATURE,
  PROP_SEED,
  PROP_MAX_CODES,
  PROP_COMPATIBILITY,
  PROP_STATS
};

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE(
    "sink", GST_PAD_SINK, GST_PAD_ALWAYS, GST_STATIC_CAPS("text/x-raw, format=(string)utf8"));
static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE(
    "src", GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("tensor/strided, tensor-id=(string)" GST_MINICPMO_TENSOR_ID_CODE
                    ", type=(string)uint16, dims=(int)<0, 4>, dims-order=(string)row-major"));

G_DEFINE_TYPE(GstMiniCpmoTts, gst_minicpmo_tts, GST_TYPE_MINICPMO_ELEMENT)
GST_ELEMENT_REGISTER_DEFINE_WITH_CODE(minicpmotts, "minicpmotts", GST_RANK_NONE,
                                      GST_TYPE_MINICPMO_TTS,
                                      GST_DEBUG_CATEGORY_INIT(gst_minicpmo_tts_debug, "minicpmotts",
                                                              0, "MiniCPM-o: text to audio codes"))

// ---- Session

static minicpmo::Result<void> open_session(GstMiniCpmoElement* element,
                                           const std::shared_ptr<minicpmo::Engine>& engine) {
  ASSIGN_OR_RETURN(auto session, engine->new_speech_model());
  GST_MINICPMO_TTS(element)->stream->open(std::move(session));
  return {};
}

static void close_session(GstMiniCpmoElement* element) {
  GST_MINICPMO_TTS(element)->stream->close();
}

static void reset(GstMiniCpmoElement* element, gboolean flushed) {
  GST_MINICPMO_TTS(element)->stream->reset(flushed == FALSE);
}

// ---- Pads

static GstFlowReturn chain(GstPad*, GstObject* parent, GstBuffer* data) {
  auto* self = GST_MINICPMO_TTS(parent);
  const minicpmo::BufferPtr buffer(data);
  return guard(GST_ELEMENT(self), GST_FLOW_ERROR,
               [&] { return self->stream->chain(buffer.get()); });
}

static bool handle_event(GstMiniCpmoTts* self, EventPtr event) {
  SpeechStream& stream = *self->stream;
  switch (GST_EVENT_TYPE(event.get())) {
    case GST_EVENT_FLUSH_START:
    case GST_EVENT_FLUSH_STOP:
      return gst_minicpmo_element_flush(GST_MINICPMO_ELEMENT(self), self->srcpad, event.release());
    case GST_EVENT_STREAM_START:
      return stream.stream_start(std::move(event));
    case GST_EVENT_CAPS:
      return true;  // there is one form of text, and one of codes
    case GST_EVENT_SEGMENT:
      return stream.segment(std::move(event));
    case GST_EVENT_GAP:
      return stream.gap(std::move(event));
    case GST_EVENT_EOS:
      return stream.answer_end(std::move(event));
    default:
      break;
  }
  if ((gst_event_type_get_flags(GST_EVENT_TYPE(event.get())) & GST_EVENT_TYPE_SERIALIZED) == 0)
    return gst_pad_push_event(self->srcpad, event.release());
  if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_SPEAKER))
    return stream.speaker(std::move(event));
  if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_ANSWER_END))
    return stream.answer_end(std::move(event));
  return stream.other(std::move(event));
}

static gboolean sink_event(GstPad*, GstObject* parent, GstEvent* data) {
  auto* self = GST_MINICPMO_TTS(parent);
  EventPtr event(data);
  return guard<gboolean>(GST_ELEMENT(self), FALSE,
                         [&]() -> gboolean { return handle_event(self, std::move(event)); });
}

static gboolean sink_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  auto* self = GST_MINICPMO_TTS(parent);
  if (gst_minicpmo_query_is_heard(query))
    return guard<gboolean>(GST_ELEMENT(self), FALSE, [&] { return self->stream->heard(query); });
  // The caps of the two sides have nothing in common: no CAPS query passes.
  return gst_minicpmo_element_pad_query(pad, parent, query);
}

// ---- Properties

static void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  using Options = minicpmo::SpeechModelOptions;
  SpeechStream& stream = *GST_MINICPMO_TTS(object)->stream;
  switch (id) {
    case PROP_SPEAKER:
      stream.set_speaker_file(g_value_get_string(value));
      break;
    case PROP_TEMPERATURE:
      stream.change_options([=](Options& o) { o.temperature = g_value_get_double(value); });
      break;
    case PROP_SEED:
      stream.change_options([=](Options& o) { o.seed = g_value_get_uint64(value); });
      break;
    case PROP_MAX_CODES:
      stream.change_options([=](Options& o) { o.max_codes = g_value_get_int(value); });
      break;
    case PROP_COMPATIBILITY:
      stream.change_options([=](Options& o) {
        o.compatibility = static_cast<minicpmo::Compatibility>(g_value_get_enum(value));
      });
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

static GstStructure* make_stats(const minicpmo::SpeechStats& stats) {
  const double model = static_cast<double>(stats.model_time) / GST_SECOND;
  const auto codes = static_cast<double>(stats.codes);
  const double speech = codes * 512 / 24000;
  return gst_structure_new(
      "application/x-minicpmotts-stats", "answers", G_TYPE_UINT64, stats.answers, "bursts",
      G_TYPE_UINT64, stats.bursts, "chunks", G_TYPE_UINT64, stats.chunks, "codes", G_TYPE_UINT64,
      stats.codes, "model-time", G_TYPE_UINT64, stats.model_time, "gpu-time", G_TYPE_UINT64,
      stats.gpu_time, "codes-per-second", G_TYPE_DOUBLE, model > 0 ? codes / model : 0.0,
      "real-time-factor", G_TYPE_DOUBLE, speech > 0 ? model / speech : 0.0, nullptr);
}

static void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  const SpeechStream& stream = *GST_MINICPMO_TTS(object)->stream;
  const minicpmo::SpeechModelOptions options = stream.options();
  switch (id) {
    case PROP_SPEAKER: {
      const std::string file = stream.speaker_file();
      g_value_set_string(value, file.empty() ? nullptr : file.c_str());
      break;
    }
    case PROP_TEMPERATURE:
      g_value_set_double(value, options.temperature);
      break;
    case PROP_SEED:
      g_value_set_uint64(value, options.seed);
      break;
    case PROP_MAX_CODES:
      g_value_set_int(value, options.max_codes);
      break;
    case PROP_COMPATIBILITY:
      g_value_set_enum(value, static_cast<int>(options.compatibility));
      break;
    case PROP_STATS:
      g_value_take_boxed(value, make_stats(stream.stats()));
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

static void install_properties(GObjectClass* object_class) {
  constexpr auto playing = static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                    GST_PARAM_MUTABLE_PLAYING);
  const minicpmo::SpeechModelOptions defaults;
  g_object_class_install_property(
      object_class, PROP_SPEAKER,
      g_param_spec_string("speaker", "Speaker",
                          "File with the speaker vector (raw little-endian float32, as many values "
                          "as the language model is wide), used when none comes from upstream; "
                          "none: the checkpoint's default. Takes effect with the next answer",
                          nullptr, playing));
  g_object_class_install_property(
      object_class, PROP_TEMPERATURE,
      g_param_spec_double("temperature", "Temperature",
                          "Factor on the model's sampling temperatures (0.1, 0.3, 0.1, 0.3), up to "
                          "10; 0 is greedy, -1 as the checkpoint says. Takes effect with the next "
                          "answer",
                          -1, 10, defaults.temperature, playing));
  g_object_class_install_property(
      object_class, PROP_SEED,
      g_param_spec_uint64("seed", "Seed",
                          "Seed of the random numbers; the same seed and text give the same speech",
                          0, G_MAXUINT64, defaults.seed, playing));
  g_object_class_install_property(
      object_class, PROP_MAX_CODES,
      g_param_spec_int("max-codes", "Maximum Codes",
                       "Longest segment of speech in code rows of 512 samples (21.3 ms)", 1,
                       1 << 20, defaults.max_codes, playing));
  g_object_class_install_property(
      object_class, PROP_COMPATIBILITY,
      g_param_spec_enum("compatibility", "Compatibility",
                        "Whether flaws of upstream's streaming code are mended or kept",
                        GST_TYPE_MINICPMO_COMPATIBILITY, static_cast<int>(defaults.compatibility),
                        static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                 GST_PARAM_MUTABLE_READY)));
  g_object_class_install_property(
      object_class, PROP_STATS,
      g_param_spec_boxed("stats", "Statistics",
                         "Counted since the element was made: answers, bursts, chunks, codes "
                         "(rows), model-time (ns), gpu-time (ns of it on a GPU), "
                         "codes-per-second, real-time-factor (model time by duration of the "
                         "speech)",
                         GST_TYPE_STRUCTURE,
                         static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS)));
}

// ---- Class

static void finalize(GObject* object) {
  auto* self = GST_MINICPMO_TTS(object);
  delete self->stream;
  self->stream = nullptr;
  G_OBJECT_CLASS(gst_minicpmo_tts_parent_class)->finalize(object);
}

static void gst_minicpmo_tts_class_init(GstMiniCpmoTtsClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  auto* element_class = GST_ELEMENT_CLASS(klass);
  auto* base_class = GST_MINICPMO_ELEMENT_CLASS(klass);
  object_class->set_property = set_property;
  object_class->get_property = get_property;
  object_class->finalize = finalize;
  base_class->stage = minicpmo::Stage::kSpeechModel;
  base_class->open_session = open_session;
  base_class->close_session = close_session;
  base_class->reset = reset;
  install_properties(object_class);
  gst_element_class_add_static_pad_template(element_class, &sink_template);
  gst_element_class_add_static_pad_template(element_class, &src_template);
  gst_element_class_set_static_metadata(
      element_class, "MiniCPM-o speech model", "Filter/Converter/Text/Audio",
      "Turns text into audio codes for minicpmovocoder (MiniCPM-o 2.6)",
      "The gst-minicpmo developers");
}

static void gst_minicpmo_tts_init(GstMiniCpmoTts* self) {
  self->sinkpad = gst_pad_new_from_static_template(&sink_template, "sink");
  gst_pad_set_chain_function(self->sinkpad, GST_DEBUG_FUNCPTR(chain));
  gst_pad_set_event_function(self->sinkpad, GST_DEBUG_FUNCPTR(sink_event));
  gst_pad_set_query_function(self->sinkpad, GST_DEBUG_FUNCPTR(sink_query));
  gst_element_add_pad(GST_ELEMENT(self), self->sinkpad);

  self->srcpad = gst_pad_new_from_static_template(&src_template, "src");
  gst_pad_set_query_function(self->srcpad, gst_minicpmo_element_pad_query);
  gst_pad_use_fixed_caps(self->srcpad);
  gst_element_add_pad(GST_ELEMENT(self), self->srcpad);
  self->stream = new SpeechStream(GST_MINICPMO_ELEMENT(self), self->srcpad);
}
