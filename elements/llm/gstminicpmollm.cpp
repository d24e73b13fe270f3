/**
 * SECTION:element-minicpmollm
 * @title: minicpmollm
 *
 * The mind of MiniCPM-o: reads what minicpmoaudioenc heard, or text, and answers with text, burst
 * by burst (three tokens each) while it thinks.
 *
 * The sink pad takes the embeddings of minicpmoaudioenc or text; the requested pad text_sink adds
 * typed messages to a spoken conversation. A turn ends, and its answer starts, with a
 * minicpmo/turn-end event, with EOS, or with a text message. On a segment in time every text buffer
 * is one message; on one in bytes (filesrc, fdsrc) every line is. Embeddings without chunk marks (a
 * dump) are cut into chunks of one second.
 *
 * Everything that arrives while an answer runs waits behind it, in order: data, events, EOS. An
 * answer is preceded by the sticky event minicpmo/speaker (the vector that conditions the voice),
 * each burst is a buffer (or a GAP event, if it has no text), and minicpmo/answer-end follows the
 * last. Output timestamps are running times: by timestamp-mode the end of the question, or now.
 * They have no duration, because text does not tell how long it takes to say.
 *
 * A flush of the sink pad stops a running answer at its next token and starts a new session:
 * nothing of the conversation is kept. A flush of text_sink drops the messages that wait. Tags of
 * the input end here; of seeks, only flushing ones at normal speed pass.
 *
 * ## Interruption
 * An answer ends at its next token when minicpmoturn hears the user (live pipelines only: the turns
 * of a file are all answered), when the event minicpmo/interrupt comes upstream from behind, or on
 * the action signal interrupt. In a live pipeline whatever is on its way to the listener is then
 * flushed, and the conversation is cut back to the words that were heard: minicpmovocoder knows how
 * much sound has been rendered by now, minicpmotts how many words that were. If it was no speech
 * after all (minicpmo/turn-cancel: a cough), the answer goes on from the word it stopped at, unless
 * resume-false-interruption is off. Sinks behind need async=false, or a flush pauses the pipeline.
 *
 * Input that does not fit into the model's context is refused with a warning, and the turn is
 * answered from what was heard. A stream that ends with nothing but refused input is an error; one
 * that ends without any question is a warning.
 *
 * ## Examples
 * |[
 * gst-launch-1.0 filesrc location=question.wav ! wavparse ! audioconvert ! audioresample !
 * minicpmoaudioenc ! queue ! minicpmollm ! fdsink
 * ]| Prints the words of the answer to a spoken question.
 * |[
 * gst-launch-1.0 fdsrc ! text/x-raw,format=utf8 ! minicpmollm ! fdsink
 * ]| A typed conversation: every line is a message.
 *
 * ## Messages
 * Element message minicpmo/answer at the end of every answer: turn-id (guint64), text (all of it),
 * finish (stop, length, context, interrupted, discarded, empty), tokens (guint64, of the
 * answer), context-used (guint64, positions of the context after it).
 * minicpmo/barge-in when one was not heard to its end: turn-id, heard-bytes (gint64, of its text;
 * -1: unknown), heard (text). PROGRESS (code "load") while the model loads.
 */
#include "llm/gstminicpmollm.h"

#include <mutex>
#include <string>
#include <utility>

#include "common/gst_stream.h"
#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"
#include "llm/gstminicpmollminput.h"
#include "llm/gstminicpmollmsettings.h"
#include "llm/gstminicpmollmworker.h"
#include "llm/gstminicpmovoice.h"

using minicpmo::EventPtr;
using minicpmo::guard;
using minicpmo::LlmCommand;
using minicpmo::LlmInput;
using minicpmo::LlmWorker;
using minicpmo::TimestampMode;

GST_DEBUG_CATEGORY(gst_minicpmo_llm_debug);
#define GST_CAT_DEFAULT gst_minicpmo_llm_debug

namespace {

struct Llm {
  Llm(GstMiniCpmoElement* element, GstPad* sink, GstPad* src)
      : worker(element, sink, src), main(element, &worker, false), text(element, &worker, true) {}

  LlmWorker worker;
  LlmInput main;  // of the pad sink
  LlmInput text;  // of the pad text_sink

  minicpmo::LlmSettings settings;

  std::mutex pads_mutex;  // guards what follows, and `eos` of both inputs
  GstPad* text_pad = nullptr;
  bool eos_sent = false;
};

}  // namespace

struct _GstMiniCpmoLlm {
  GstMiniCpmoElement parent;
  GstPad* sinkpad;
  GstPad* srcpad;
  Llm* impl;
};

enum { SIGNAL_INTERRUPT, SIGNAL_RESET_SESSION, SIGNAL_PUSH_TEXT, SIGNAL_COUNT };
static guint signals[SIGNAL_COUNT];

#define TEXT_CAPS "text/x-raw, format=(string)utf8"

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE(
    "sink", GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("tensor/strided, tensor-id=(string)" GST_MINICPMO_TENSOR_ID_EMBEDDING
                    ", type=(string){ float32, bfloat16 }, dims=(int)<0, [ 1, 2147483647 ]>, "
                    "dims-order=(string)row-major; " TEXT_CAPS));
static GstStaticPadTemplate text_sink_template =
    GST_STATIC_PAD_TEMPLATE("text_sink", GST_PAD_SINK, GST_PAD_REQUEST, GST_STATIC_CAPS(TEXT_CAPS));
static GstStaticPadTemplate src_template =
    GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS, GST_STATIC_CAPS(TEXT_CAPS));

G_DEFINE_TYPE(GstMiniCpmoLlm, gst_minicpmo_llm, GST_TYPE_MINICPMO_ELEMENT)
GST_ELEMENT_REGISTER_DEFINE_WITH_CODE(minicpmollm, "minicpmollm", GST_RANK_NONE,
                                      GST_TYPE_MINICPMO_LLM,
                                      GST_DEBUG_CATEGORY_INIT(gst_minicpmo_llm_debug, "minicpmollm",
                                                              0, "MiniCPM-o: language model"))

// ---- Session

// On the task, before a new session: a voice that was set while playing.
static void prepare_session(GstMiniCpmoLlm* self) {
  auto* element = GST_MINICPMO_ELEMENT(self);
  if (!self->impl->settings.voice_due()) return;
  const auto done =
      minicpmo::adopt_voice(self->impl->settings, *gst_minicpmo_element_engine(element),
                            gst_minicpmo_element_cancel_flag(element));
  if (!done.ok() && done.error().code != minicpmo::ErrorCode::kCancelled)
    gst_minicpmo_element_post_warning(element, done.error());
  self->impl->worker.set_options(self->impl->settings.values().options);
}

static minicpmo::Result<void> open_session(GstMiniCpmoElement* element,
                                           const std::shared_ptr<minicpmo::Engine>& engine) {
  Llm& impl = *GST_MINICPMO_LLM(element)->impl;
  impl.settings.set_voice_embeddings(nullptr, "");  // of another checkpoint, maybe
  RETURN_IF_ERROR(minicpmo::adopt_voice(impl.settings, *engine,
                                        gst_minicpmo_element_load_cancel_flag(element)));
  const minicpmo::LanguageModelOptions options = impl.settings.values().options;
  impl.worker.set_options(options);  // what was set before knew nothing of the voice
  ASSIGN_OR_RETURN(auto session, engine->new_language_model(options));
  impl.worker.open(std::move(session));
  return {};
}

static void close_session(GstMiniCpmoElement* element) {
  GST_MINICPMO_LLM(element)->impl->worker.close();
}

// ---- The task

static void loop(gpointer data) {
  auto* self = GST_MINICPMO_LLM(data);
  const bool again = guard(GST_ELEMENT(self), false, [&] { return self->impl->worker.run_once(); });
  if (!again) gst_pad_pause_task(self->srcpad);
}

static gboolean src_activate_mode(GstPad* pad, GstObject* parent, GstPadMode mode,
                                  gboolean active) {
  auto* self = GST_MINICPMO_LLM(parent);
  if (mode != GST_PAD_MODE_PUSH) return FALSE;
  if (active) {
    self->impl->worker.start();
    return gst_pad_start_task(pad, loop, self, nullptr);
  }
  self->impl->worker.stop();
  return gst_pad_stop_task(pad);
}

// ---- Sink pads

static LlmInput& input_of(GstMiniCpmoLlm* self, GstPad* pad) {
  return pad == self->sinkpad ? self->impl->main : self->impl->text;
}

static GstFlowReturn chain(GstPad* pad, GstObject* parent, GstBuffer* data) {
  auto* self = GST_MINICPMO_LLM(parent);
  minicpmo::BufferPtr buffer(data);
  return guard(GST_ELEMENT(self), GST_FLOW_ERROR,
               [&] { return input_of(self, pad).chain(buffer.get()); });
}

// Once every linked sink pad has had EOS, the output gets it too, behind all that waits.
static bool send_eos_if_all_ended(GstMiniCpmoLlm* self, LlmInput& input, EventPtr event) {
  Llm& impl = *self->impl;
  {
    std::lock_guard lock(impl.pads_mutex);
    const bool main_runs = !impl.main.eos && gst_pad_is_linked(self->sinkpad);
    const bool text_runs =
        impl.text_pad != nullptr && !impl.text.eos && gst_pad_is_linked(impl.text_pad);
    if (main_runs || text_runs || impl.eos_sent) return true;
    impl.eos_sent = true;
  }
  LlmCommand command;
  command.kind = LlmCommand::Kind::kEos;
  command.event = std::move(event);
  return input.push(std::move(command)) == GST_FLOW_OK;
}

static bool end_input(GstMiniCpmoLlm* self, LlmInput& input, EventPtr event) {
  // After a failure here there is an error message already; EOS still has to get through.
  input.finish();
  if (&input == &self->impl->main) {
    LlmCommand command;
    command.kind = LlmCommand::Kind::kEndOfInput;
    if (input.push(std::move(command)) != GST_FLOW_OK) return false;
  }
  {
    std::lock_guard lock(self->impl->pads_mutex);
    input.eos = true;
  }
  return send_eos_if_all_ended(self, input, std::move(event));
}

static void begin_stream(GstMiniCpmoLlm* self, LlmInput& input) {
  input.finish();
  input.reset();
  std::lock_guard lock(self->impl->pads_mutex);
  input.eos = false;
  self->impl->eos_sent = false;
}

static bool push_event_command(LlmInput& input, LlmCommand::Kind kind, EventPtr event) {
  LlmCommand command;
  command.kind = kind;
  command.event = std::move(event);
  return input.push(std::move(command)) == GST_FLOW_OK;
}

static bool flush_main(GstMiniCpmoLlm* self, EventPtr event) {
  Llm& impl = *self->impl;
  auto* element = GST_MINICPMO_ELEMENT(self);
  if (GST_EVENT_TYPE(event.get()) == GST_EVENT_FLUSH_START) {
    gst_minicpmo_element_set_flushing(element, TRUE);
    impl.worker.begin_flush();
    const bool pushed = gst_pad_push_event(self->srcpad, event.release());
    gst_pad_pause_task(self->srcpad);
    return pushed;
  }
  impl.main.reset();
  {
    std::lock_guard lock(impl.pads_mutex);
    impl.main.eos = false;
    impl.eos_sent = false;
  }
  const bool pushed = gst_pad_push_event(self->srcpad, event.release());
  gst_minicpmo_element_set_flushing(element, FALSE);
  // Not when the element goes down meanwhile: nobody would stop the task.
  if (impl.worker.end_flush()) gst_pad_start_task(self->srcpad, loop, self, nullptr);
  return pushed;
}

static bool main_event(GstMiniCpmoLlm* self, EventPtr event) {
  using Kind = LlmCommand::Kind;
  LlmInput& input = self->impl->main;
  switch (GST_EVENT_TYPE(event.get())) {
    case GST_EVENT_FLUSH_START:
    case GST_EVENT_FLUSH_STOP:
      return flush_main(self, std::move(event));
    case GST_EVENT_STREAM_START:
      begin_stream(self, input);
      return push_event_command(input, Kind::kStreamStart, std::move(event));
    case GST_EVENT_CAPS: {
      GstCaps* caps = nullptr;
      gst_event_parse_caps(event.get(), &caps);
      return input.set_caps(caps);
    }
    case GST_EVENT_SEGMENT:
      input.set_segment(event.get());
      return push_event_command(input, Kind::kSegment, std::move(event));
    case GST_EVENT_GAP:
      input.gap(event.get());
      return true;
    case GST_EVENT_EOS:
      return end_input(self, input, std::move(event));
    case GST_EVENT_TAG:
    case GST_EVENT_TOC:
      return true;  // title and chapters of the question say nothing about the answer
    default:
      break;
  }
  const GstEventTypeFlags flags = gst_event_type_get_flags(GST_EVENT_TYPE(event.get()));
  if ((flags & GST_EVENT_TYPE_SERIALIZED) == 0) {
    const guint64 turn_id = gst_minicpmo_event_turn_id(event.get());
    if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_INTERRUPT)) {
      self->impl->worker.barge_in(turn_id);
      return true;
    }
    if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_RESUME)) {
      self->impl->worker.resume_turn(turn_id);
      return true;
    }
    return gst_pad_push_event(self->srcpad, event.release());
  }
  if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_CANCEL)) {
    input.forget_partial();
    return push_event_command(input, Kind::kTurnCancel, std::move(event));
  }
  Kind kind = Kind::kEvent;
  if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_START)) kind = Kind::kTurnStart;
  if (gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_TURN_END)) kind = Kind::kTurnEnd;
  if (kind != Kind::kEvent && input.finish() != GST_FLOW_OK) return false;
  return push_event_command(input, kind, std::move(event));
}

// The stream of text_sink adds messages to the conversation; its events end here.
static bool text_event(GstMiniCpmoLlm* self, EventPtr event) {
  Llm& impl = *self->impl;
  LlmInput& input = impl.text;
  switch (GST_EVENT_TYPE(event.get())) {
    case GST_EVENT_FLUSH_START:
      input.gone() = true;
      impl.worker.wake();
      return true;
    case GST_EVENT_FLUSH_STOP: {
      impl.worker.drop_text_sink_messages();
      input.reset();
      input.gone() = false;
      std::lock_guard lock(impl.pads_mutex);
      input.eos = false;
      return true;
    }
    case GST_EVENT_STREAM_START:
      begin_stream(self, input);
      return true;
    case GST_EVENT_SEGMENT:
      input.set_segment(event.get());
      return true;
    case GST_EVENT_EOS:
      return end_input(self, input, std::move(event));
    default:
      return true;
  }
}

static gboolean sink_event(GstPad* pad, GstObject* parent, GstEvent* data) {
  auto* self = GST_MINICPMO_LLM(parent);
  EventPtr event(data);
  return guard<gboolean>(GST_ELEMENT(self), FALSE, [&]() -> gboolean {
    if (pad == self->sinkpad) return main_event(self, std::move(event));
    return text_event(self, std::move(event));
  });
}

// Once the model is known, only embeddings of its width.
static GstCaps* sink_caps(GstMiniCpmoLlm* self, GstPad* pad) {
  GstCaps* caps = gst_pad_get_pad_template_caps(pad);
  if (pad != self->sinkpad) return caps;
  const auto engine = gst_minicpmo_element_peek_engine(GST_MINICPMO_ELEMENT(self));
  if (engine == nullptr) return caps;
  minicpmo::CapsPtr all(caps);
  minicpmo::CapsPtr wanted(gst_minicpmo_tensor_caps_new(
      GST_MINICPMO_TENSOR_ID_EMBEDDING, minicpmo::DataType::kFloat32, engine->info().hidden_size));
  GstStructure* other = gst_structure_copy(gst_caps_get_structure(wanted.get(), 0));
  gst_structure_set(other, "type", G_TYPE_STRING, "bfloat16", nullptr);
  gst_caps_append_structure(wanted.get(), other);
  gst_caps_append(wanted.get(), gst_caps_from_string(TEXT_CAPS));
  return gst_caps_intersect_full(all.get(), wanted.get(), GST_CAPS_INTERSECT_FIRST);
}

static gboolean sink_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  auto* self = GST_MINICPMO_LLM(parent);
  return guard<gboolean>(GST_ELEMENT(self), FALSE, [&]() -> gboolean {
    if (GST_QUERY_TYPE(query) != GST_QUERY_CAPS)
      return gst_minicpmo_element_query_default(GST_MINICPMO_ELEMENT(self), pad, query);
    minicpmo::CapsPtr caps(sink_caps(self, pad));
    GstCaps* filter = nullptr;
    gst_query_parse_caps(query, &filter);
    if (filter != nullptr)
      caps.reset(gst_caps_intersect_full(filter, caps.get(), GST_CAPS_INTERSECT_FIRST));
    gst_query_set_caps_result(query, caps.get());
    return TRUE;
  });
}

// ---- Source pad

static gboolean src_event(GstPad* pad, GstObject* parent, GstEvent* event) {
  if (GST_EVENT_TYPE(event) == GST_EVENT_SEEK && !minicpmo::is_flushing_seek(event)) {
    GST_DEBUG_OBJECT(parent, "refused %" GST_PTR_FORMAT, event);
    gst_event_unref(event);
    return FALSE;
  }
  if (!gst_minicpmo_event_is(event, GST_MINICPMO_EVENT_INTERRUPT))
    return gst_pad_event_default(pad, parent, event);
  const EventPtr owned(event);
  gint64 heard = -1;
  gst_structure_get_int64(gst_event_get_structure(event), "heard-bytes", &heard);
  GST_MINICPMO_LLM(parent)->impl->worker.interrupt(heard);
  return TRUE;
}

// Words of timestamp-mode arrival come when they come: thinking is no part of the latency, or every
// sink would wait that long for every buffer.
static gboolean src_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  auto* self = GST_MINICPMO_LLM(parent);
  const TimestampMode mode = self->impl->settings.values().timestamp_mode;
  if (GST_QUERY_TYPE(query) == GST_QUERY_LATENCY && mode != TimestampMode::kInput) {
    if (mode == TimestampMode::kArrival || gst_minicpmo_pad_is_live(self->sinkpad)) {
      gst_query_set_latency(query, TRUE, 0, GST_CLOCK_TIME_NONE);
      return TRUE;
    }
  }
  return gst_minicpmo_element_query_default(GST_MINICPMO_ELEMENT(self), pad, query);
}

// ---- Request pad

static GstPad* new_sink_pad(GstStaticPadTemplate* pad_template, const gchar* name) {
  GstPad* pad = gst_pad_new_from_static_template(pad_template, name);
  gst_pad_set_chain_function(pad, GST_DEBUG_FUNCPTR(chain));
  gst_pad_set_event_function(pad, GST_DEBUG_FUNCPTR(sink_event));
  gst_pad_set_query_function(pad, GST_DEBUG_FUNCPTR(sink_query));
  // Caps without dims-order (written by hand) are as good.
  GST_PAD_SET_ACCEPT_INTERSECT(pad);
  return pad;
}

static GstPad* request_new_pad(GstElement* element, GstPadTemplate*, const gchar*, const GstCaps*) {
  auto* self = GST_MINICPMO_LLM(element);
  Llm& impl = *self->impl;
  GstPad* pad;
  {
    std::lock_guard lock(impl.pads_mutex);
    if (impl.text_pad != nullptr) {
      GST_WARNING_OBJECT(self, "there is one text_sink only");
      return nullptr;
    }
    pad = new_sink_pad(&text_sink_template, "text_sink");
    impl.text.eos = false;
    impl.text_pad = pad;
  }
  impl.text.reset();
  impl.text.gone() = false;
  gst_element_add_pad(element, pad);
  return pad;
}

static void release_pad(GstElement* element, GstPad* pad) {
  auto* self = GST_MINICPMO_LLM(element);
  Llm& impl = *self->impl;
  impl.text.gone() = true;
  impl.worker.wake();
  gst_pad_set_active(pad, FALSE);
  bool main_ended;
  {
    std::lock_guard lock(impl.pads_mutex);
    impl.text_pad = nullptr;
    main_ended = impl.main.eos;
  }
  gst_element_remove_pad(element, pad);
  if (main_ended) {
    guard(element, false,
          [&] { return send_eos_if_all_ended(self, impl.main, EventPtr(gst_event_new_eos())); });
  }
}

// ---- Actions

static void on_interrupt(GstMiniCpmoLlm* self) {
  self->impl->worker.interrupt(-1);
}

static void on_reset_session(GstMiniCpmoLlm* self) {
  guard(GST_ELEMENT(self), false, [&] {
    self->impl->main.forget_partial();
    self->impl->worker.reset_session();
    return true;
  });
}

static gboolean on_push_text(GstMiniCpmoLlm* self, const gchar* text) {
  return guard<gboolean>(GST_ELEMENT(self), FALSE, [&]() -> gboolean {
    if (text == nullptr) return FALSE;
    minicpmo::Utf8Repair repair;
    LlmCommand command;
    command.kind = LlmCommand::Kind::kMessage;
    command.text = repair.feed(text) + repair.finish();
    if (minicpmo::is_blank(command.text)) return FALSE;
    // Before and after the spoken turns that there are, if somebody numbers those.
    const minicpmo::QueryPtr number(gst_minicpmo_query_new_next_turn());
    if (gst_pad_peer_query(self->sinkpad, number.get()))
      command.turn_id = gst_minicpmo_query_turn_id(number.get());
    command.end = gst_element_get_current_running_time(GST_ELEMENT(self));
    return self->impl->worker.try_push(std::move(command));
  });
}

// ---- State

static GstStateChangeReturn change_state(GstElement* element, GstStateChange transition) {
  Llm& impl = *GST_MINICPMO_LLM(element)->impl;
  // Before the parent takes the stream locks: whoever waits or computes must let go of them.
  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY) impl.worker.stop();
  const GstStateChangeReturn result =
      GST_ELEMENT_CLASS(gst_minicpmo_llm_parent_class)->change_state(element, transition);
  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY) {
    impl.main.reset();
    impl.text.reset();
    impl.text.gone() = false;  // its flush, if one was under way, ends with the stream
    std::lock_guard lock(impl.pads_mutex);
    impl.main.eos = false;
    impl.text.eos = false;
    impl.eos_sent = false;
  }
  return result;
}

// ---- Properties

static void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  Llm& impl = *GST_MINICPMO_LLM(object)->impl;
  if (!impl.settings.set(id, value)) {
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
    return;
  }
  const minicpmo::LlmSettingsValues values = impl.settings.values();
  impl.worker.set_options(values.options);
  impl.worker.set_timestamp_mode(values.timestamp_mode);
  impl.worker.set_resume(values.resume);
  impl.main.set_max_message_bytes(values.max_message_bytes);
  impl.text.set_max_message_bytes(values.max_message_bytes);
}

static void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  const Llm& impl = *GST_MINICPMO_LLM(object)->impl;
  if (!impl.settings.get(id, value, impl.worker))
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
}

// ---- Class

static void finalize(GObject* object) {
  auto* self = GST_MINICPMO_LLM(object);
  delete self->impl;
  self->impl = nullptr;
  G_OBJECT_CLASS(gst_minicpmo_llm_parent_class)->finalize(object);
}

// The actions, as every element that holds a language model has them (minicpmobin too).
static void install_actions(GType type) {
  const auto flags = static_cast<GSignalFlags>(G_SIGNAL_RUN_LAST | G_SIGNAL_ACTION);
  // Ends the running answer at its next token.
  signals[SIGNAL_INTERRUPT] =
      g_signal_new_class_handler("interrupt", type, flags, G_CALLBACK(on_interrupt), nullptr,
                                 nullptr, nullptr, G_TYPE_NONE, 0);
  // Ends the running answer, drops what waits, forgets the conversation.
  signals[SIGNAL_RESET_SESSION] =
      g_signal_new_class_handler("reset-session", type, flags, G_CALLBACK(on_reset_session),
                                 nullptr, nullptr, nullptr, G_TYPE_NONE, 0);
  // A text message, as from text_sink. FALSE if it is blank or cannot be taken now.
  signals[SIGNAL_PUSH_TEXT] =
      g_signal_new_class_handler("push-text", type, flags, G_CALLBACK(on_push_text), nullptr,
                                 nullptr, nullptr, G_TYPE_BOOLEAN, 1, G_TYPE_STRING);
}

static void gst_minicpmo_llm_class_init(GstMiniCpmoLlmClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  auto* element_class = GST_ELEMENT_CLASS(klass);
  auto* base_class = GST_MINICPMO_ELEMENT_CLASS(klass);
  object_class->set_property = set_property;
  object_class->get_property = get_property;
  object_class->finalize = finalize;
  element_class->change_state = GST_DEBUG_FUNCPTR(change_state);
  element_class->request_new_pad = GST_DEBUG_FUNCPTR(request_new_pad);
  element_class->release_pad = GST_DEBUG_FUNCPTR(release_pad);
  base_class->stage = minicpmo::Stage::kLanguageModel;
  base_class->open_session = open_session;
  base_class->close_session = close_session;
  minicpmo::LlmSettings::install(object_class);
  install_actions(G_TYPE_FROM_CLASS(klass));
  gst_element_class_add_static_pad_template(element_class, &sink_template);
  gst_element_class_add_static_pad_template(element_class, &text_sink_template);
  gst_element_class_add_static_pad_template(element_class, &src_template);
  gst_element_class_set_static_metadata(
      element_class, "MiniCPM-o language model", "Filter/Converter/Text",
      "Answers speech (embeddings of minicpmoaudioenc) or text with text (MiniCPM-o 2.6)",
      "The gst-minicpmo developers");
  gst_type_mark_as_plugin_api(GST_TYPE_MINICPMO_TIMESTAMP_MODE, static_cast<GstPluginAPIFlags>(0));
}

static void gst_minicpmo_llm_init(GstMiniCpmoLlm* self) {
  self->sinkpad = new_sink_pad(&sink_template, "sink");
  gst_element_add_pad(GST_ELEMENT(self), self->sinkpad);
  self->srcpad = gst_pad_new_from_static_template(&src_template, "src");
  gst_pad_set_activatemode_function(self->srcpad, GST_DEBUG_FUNCPTR(src_activate_mode));
  gst_pad_set_event_function(self->srcpad, GST_DEBUG_FUNCPTR(src_event));
  gst_pad_set_query_function(self->srcpad, GST_DEBUG_FUNCPTR(src_query));
  gst_pad_use_fixed_caps(self->srcpad);
  gst_element_add_pad(GST_ELEMENT(self), self->srcpad);
  self->impl = new Llm(GST_MINICPMO_ELEMENT(self), self->sinkpad, self->srcpad);
  self->impl->worker.set_prepare_session([self] { prepare_session(self); });
}
