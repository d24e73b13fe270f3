/**
 * SECTION:element-minicpmobin
 * @title: minicpmobin
 *
 * MiniCPM-o as one element: minicpmoaudioenc ! minicpmollm ! queue ! minicpmotts ! queue !
 * minicpmovocoder. Speech goes in at sink, typed messages at the requested pad text_sink; the
 * answer's speech comes out at src, its words at the requested pad text.
 *
 * With text_sink requested and sink not linked when the element leaves NULL, the audio encoder
 * stays out: its weights are not read, and the stream ends with the text.
 *
 * The properties stand for those of the children (seed for the language model and the speech model,
 * speech-temperature for the temperature of the latter). The children are called audioenc, llm, tts
 * and vocoder, and can be reached through GstChildProxy. The signals are those of minicpmollm.
 *
 * ## Examples
 * |[
 * gst-launch-1.0 filesrc location=question.wav ! wavparse ! audioconvert ! audioresample !
 * minicpmobin ! audioconvert ! wavenc ! filesink location=answer.wav
 * ]| Answers a spoken question.
 * |[
 * gst-launch-1.0 minicpmobin name=omni ! audioconvert ! wavenc ! filesink location=answer.wav
 * filesrc location=question.txt ! text/x-raw,format=utf8 ! omni.text_sink omni.text ! fdsink
 * ]| Answers a typed question, and prints the words.
 *
 * ## Messages
 * Those of the children: PROGRESS, and minicpmo/answer at the end of every answer.
 */
#include "bin/gstminicpmobin.h"

#include "bin/gstminicpmobinproperties.h"
#include "common/gst_ptr.h"

GST_DEBUG_CATEGORY_STATIC(gst_minicpmo_bin_debug);
#define GST_CAT_DEFAULT gst_minicpmo_bin_debug

using minicpmo::PadPtr;

struct _GstMiniCpmoBin {
  GstBin parent;
  GstElement* audioenc;
  GstElement* llm;
  GstElement* words;  // tee
  GstElement* tts;
  GstElement* vocoder;
  GstPad* sink;          // ghost
  const gchar* missing;  // factory of a child that could not be made, or NULL
  gboolean text_only;    // the audio encoder is left out; changed by state changes only
  // Guarded by the object lock:
  GstPad* text_sink;  // ghost
  GstPad* text;       // ghost
};

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE(
    "sink", GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("audio/x-raw, format=(string)F32LE, rate=(int)16000, channels=(int)1, "
                    "layout=(string)interleaved"));
static GstStaticPadTemplate text_sink_template = GST_STATIC_PAD_TEMPLATE(
    "text_sink", GST_PAD_SINK, GST_PAD_REQUEST, GST_STATIC_CAPS("text/x-raw, format=(string)utf8"));
static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE(
    "src", GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("audio/x-raw, format=(string)F32LE, rate=(int)24000, channels=(int)1, "
                    "layout=(string)interleaved"));
static GstStaticPadTemplate text_template = GST_STATIC_PAD_TEMPLATE(
    "text", GST_PAD_SRC, GST_PAD_REQUEST, GST_STATIC_CAPS("text/x-raw, format=(string)utf8"));

G_DEFINE_TYPE(GstMiniCpmoBin, gst_minicpmo_bin, GST_TYPE_BIN)
GST_ELEMENT_REGISTER_DEFINE_WITH_CODE(minicpmobin, "minicpmobin", GST_RANK_NONE,
                                      GST_TYPE_MINICPMO_BIN,
                                      GST_DEBUG_CATEGORY_INIT(gst_minicpmo_bin_debug, "minicpmobin",
                                                              0, "MiniCPM-o: all stages in one"))

// ---- Children

// Bursts that the language model may be ahead of the speech model; chunks of half a second that the
// speech model may be ahead of the vocoder; and words that captions may wait with.
constexpr guint kWordsAhead = 64;
constexpr guint kChunksAhead = 8;
constexpr guint kCaptionsAhead = 512;
constexpr const gchar* kCaptions = "captions";  // the queue behind the pad text

static GstElement* add_child(GstMiniCpmoBin* self, const gchar* factory, const gchar* name) {
  GstElement* child = gst_element_factory_make(factory, name);
  if (child == nullptr) {
    self->missing = factory;
    return nullptr;
  }
  gst_bin_add(GST_BIN(self), child);
  return child;
}

static GstElement* add_queue(GstMiniCpmoBin* self, const gchar* name, guint buffers) {
  GstElement* queue = add_child(self, "queue", name);
  if (queue != nullptr) {
    g_object_set(queue, "max-size-buffers", buffers, "max-size-bytes", 0u, "max-size-time",
                 guint64{0}, nullptr);
  }
  return queue;
}

static GstPad* add_ghost(GstMiniCpmoBin* self, const gchar* name, GstPad* target) {
  GstPadTemplate* pad_template =
      gst_element_class_get_pad_template(GST_ELEMENT_GET_CLASS(self), name);
  GstPad* ghost = gst_ghost_pad_new_from_template(name, target, pad_template);
  gst_pad_set_active(ghost, TRUE);
  gst_element_add_pad(GST_ELEMENT(self), ghost);
  return ghost;
}

static GstPad* add_static_ghost(GstMiniCpmoBin* self, const gchar* name, GstElement* child) {
  const PadPtr target(gst_element_get_static_pad(child, name));
  return add_ghost(self, name, target.get());
}

static void build(GstMiniCpmoBin* self) {
  self->audioenc = add_child(self, "minicpmoaudioenc", "audioenc");
  self->llm = add_child(self, "minicpmollm", "llm");
  self->words = add_child(self, "tee", "words");
  GstElement* text_queue = add_queue(self, "textqueue", kWordsAhead);
  self->tts = add_child(self, "minicpmotts", "tts");
  GstElement* code_queue = add_queue(self, "codequeue", kChunksAhead);
  self->vocoder = add_child(self, "minicpmovocoder", "vocoder");
  if (self->missing != nullptr) return;
  gst_element_link_many(self->audioenc, self->llm, self->words, text_queue, self->tts, code_queue,
                        self->vocoder, nullptr);
  self->sink = add_static_ghost(self, "sink", self->audioenc);
  add_static_ghost(self, "src", self->vocoder);
}

// ---- Request pads

static GstPad* request_text_sink(GstMiniCpmoBin* self) {
  const PadPtr target(gst_element_request_pad_simple(self->llm, "text_sink"));
  if (target == nullptr) return nullptr;
  GstPad* ghost = add_ghost(self, "text_sink", target.get());
  GST_OBJECT_LOCK(self);
  self->text_sink = ghost;
  GST_OBJECT_UNLOCK(self);
  return ghost;
}

static void release_text_sink(GstMiniCpmoBin* self, GstPad* ghost) {
  const PadPtr target(gst_ghost_pad_get_target(GST_GHOST_PAD(ghost)));
  GST_OBJECT_LOCK(self);
  self->text_sink = nullptr;
  GST_OBJECT_UNLOCK(self);
  if (target != nullptr) gst_element_release_request_pad(self->llm, target.get());
  gst_pad_set_active(ghost, FALSE);
  gst_element_remove_pad(GST_ELEMENT(self), ghost);
}

static GstPad* request_text(GstMiniCpmoBin* self) {
  GST_OBJECT_LOCK(self);
  const bool taken = self->text != nullptr;
  GST_OBJECT_UNLOCK(self);
  if (taken) return nullptr;
  GstElement* queue = add_queue(self, kCaptions, kCaptionsAhead);
  if (queue == nullptr) return nullptr;
  const PadPtr source(gst_element_get_static_pad(queue, "src"));
  GstPad* ghost = add_ghost(self, "text", source.get());
  GST_OBJECT_LOCK(self);
  self->text = ghost;
  GST_OBJECT_UNLOCK(self);
  gst_element_sync_state_with_parent(queue);
  gst_element_link_pads(self->words, "src_%u", queue, "sink");
  return ghost;
}

static void remove_captions(GstMiniCpmoBin* self, GstElement* queue) {
  const PadPtr end(gst_element_get_static_pad(queue, "sink"));
  const PadPtr branch(gst_pad_get_peer(end.get()));
  // The tee's pad first: from then on the tee minds nothing that comes back from it. Then the
  // queue: a push that waits for room in it comes back.
  if (branch != nullptr) gst_element_release_request_pad(self->words, branch.get());
  gst_element_set_locked_state(queue, TRUE);
  gst_element_set_state(queue, GST_STATE_NULL);
}

static void release_text(GstMiniCpmoBin* self, GstPad* ghost) {
  GST_OBJECT_LOCK(self);
  self->text = nullptr;
  GST_OBJECT_UNLOCK(self);
  // None when the bin itself goes, and its children went before.
  const minicpmo::ElementPtr queue(gst_bin_get_by_name(GST_BIN(self), kCaptions));
  if (queue != nullptr) remove_captions(self, queue.get());
  gst_pad_set_active(ghost, FALSE);
  gst_element_remove_pad(GST_ELEMENT(self), ghost);
  if (queue != nullptr) gst_bin_remove(GST_BIN(self), queue.get());
}

static GstPad* request_new_pad(GstElement* element, GstPadTemplate* pad_template, const gchar*,
                               const GstCaps*) {
  auto* self = GST_MINICPMO_BIN(element);
  if (self->missing != nullptr) return nullptr;
  if (GST_PAD_TEMPLATE_DIRECTION(pad_template) == GST_PAD_SINK) return request_text_sink(self);
  return request_text(self);
}

static void release_pad(GstElement* element, GstPad* pad) {
  auto* self = GST_MINICPMO_BIN(element);
  if (GST_PAD_IS_SINK(pad)) {
    release_text_sink(self, pad);
  } else {
    release_text(self, pad);
  }
}

// ---- State

// Takes the audio encoder out of the pipeline (its weights are then not read), or puts it back.
static void set_text_only(GstMiniCpmoBin* self, gboolean text_only) {
  if (self->text_only == text_only) return;
  self->text_only = text_only;
  if (text_only) {
    GST_INFO_OBJECT(self, "sink is not linked: text only");
    gst_element_unlink(self->audioenc, self->llm);
    gst_element_set_locked_state(self->audioenc, TRUE);
  } else {
    gst_element_set_locked_state(self->audioenc, FALSE);
    gst_element_link(self->audioenc, self->llm);
  }
}

static GstStateChangeReturn change_state(GstElement* element, GstStateChange transition) {
  auto* self = GST_MINICPMO_BIN(element);
  if (transition == GST_STATE_CHANGE_NULL_TO_READY) {
    if (self->missing != nullptr) {
      GST_ELEMENT_ERROR(self, CORE, MISSING_PLUGIN,
                        ("The element %s is missing. Is GStreamer's coreelements plugin installed?",
                         self->missing),
                        (nullptr));
      return GST_STATE_CHANGE_FAILURE;
    }
    GST_OBJECT_LOCK(self);
    const bool has_text = self->text_sink != nullptr;
    GST_OBJECT_UNLOCK(self);
    set_text_only(self, has_text && !gst_pad_is_linked(self->sink));
  }
  const GstStateChangeReturn result =
      GST_ELEMENT_CLASS(gst_minicpmo_bin_parent_class)->change_state(element, transition);
  if (transition == GST_STATE_CHANGE_READY_TO_NULL && result != GST_STATE_CHANGE_FAILURE)
    set_text_only(self, FALSE);
  return result;
}

// ---- Actions

static void on_interrupt(GstMiniCpmoBin* self) {
  if (self->llm != nullptr) g_signal_emit_by_name(self->llm, "interrupt");
}

static void on_reset_session(GstMiniCpmoBin* self) {
  if (self->llm != nullptr) g_signal_emit_by_name(self->llm, "reset-session");
}

static gboolean on_push_text(GstMiniCpmoBin* self, const gchar* text) {
  gboolean taken = FALSE;
  if (self->llm != nullptr) g_signal_emit_by_name(self->llm, "push-text", text, &taken);
  return taken;
}

// ---- Properties

static void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  if (!gst_minicpmo_bin_properties_set(GST_BIN(object), id, value))
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
}

static void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  if (!gst_minicpmo_bin_properties_get(GST_BIN(object), id, value))
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
}

// ---- Class

static void install_actions(GType type) {
  const auto flags = static_cast<GSignalFlags>(G_SIGNAL_RUN_LAST | G_SIGNAL_ACTION);
  // See minicpmollm.
  g_signal_new_class_handler("interrupt", type, flags, G_CALLBACK(on_interrupt), nullptr, nullptr,
                             nullptr, G_TYPE_NONE, 0);
  g_signal_new_class_handler("reset-session", type, flags, G_CALLBACK(on_reset_session), nullptr,
                             nullptr, nullptr, G_TYPE_NONE, 0);
  g_signal_new_class_handler("push-text", type, flags, G_CALLBACK(on_push_text), nullptr, nullptr,
                             nullptr, G_TYPE_BOOLEAN, 1, G_TYPE_STRING);
}

static void gst_minicpmo_bin_class_init(GstMiniCpmoBinClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  auto* element_class = GST_ELEMENT_CLASS(klass);
  object_class->set_property = set_property;
  object_class->get_property = get_property;
  element_class->change_state = GST_DEBUG_FUNCPTR(change_state);
  element_class->request_new_pad = GST_DEBUG_FUNCPTR(request_new_pad);
  element_class->release_pad = GST_DEBUG_FUNCPTR(release_pad);
  gst_minicpmo_bin_properties_install(object_class);
  install_actions(G_TYPE_FROM_CLASS(klass));
  gst_element_class_add_static_pad_template(element_class, &sink_template);
  gst_element_class_add_static_pad_template(element_class, &text_sink_template);
  gst_element_class_add_static_pad_template(element_class, &src_template);
  gst_element_class_add_static_pad_template(element_class, &text_template);
  gst_element_class_set_static_metadata(
      element_class, "MiniCPM-o", "Bin/Filter/Audio/Text",
      "Answers speech or text with speech and captions (MiniCPM-o 2.6)",
      "The gst-minicpmo developers");
}

static void gst_minicpmo_bin_init(GstMiniCpmoBin* self) {
  build(self);
}
