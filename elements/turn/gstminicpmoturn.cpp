/**
 * SECTION:element-minicpmoturn
 * @title: minicpmoturn
 *
 * Hears when the user speaks, and makes a conversation of a stream of audio: stands before
 * minicpmoaudioenc (or minicpmobin) and lets audio through only while somebody speaks, between the
 * serialized events minicpmo/turn-start and minicpmo/turn-end. Between turns there are GAP events
 * instead, so time goes on. Voice activity comes from silero's network; a turn starts with
 * min-speech of voice and prefix-padding before it, and ends with silence-duration of silence.
 *
 * When a turn starts, the event minicpmo/interrupt goes ahead of everything else, out of band: an
 * answer that is still being made or played stops (barge-in). A turn with less than min-turn-speech
 * of voice (a cough) ends with minicpmo/turn-cancel, and what it interrupted may go on.
 *
 * With speculative-after, the answer is begun before it is sure that the user has finished: after
 * that much silence a minicpmo/turn-end with the field speculative goes out. It is confirmed when
 * silence-duration is over (minicpmo/turn-confirm), or taken back when the user goes on
 * (minicpmo/turn-resume, then the audio from the speculative end on).
 *
 * With mode=manual no network is used: the action signals start-turn and end-turn, the two ends of
 * the press of a button, make the turns. They work with mode=vad, too. Both take effect with the
 * next audio that comes.
 *
 * Holes in the input (timestamps that jump, GAP events, lost packets) are heard as silence. EOS, a
 * new segment and a new stream end an open turn; a flush drops it. When upstream is live, the
 * element adds prefix-padding and min-speech, in whole windows of 32 ms, to the latency: so long
 * the first sample of a turn waits until it is known to be one. With speculative-after it adds
 * silence-duration less speculative-after, if that is more.
 *
 * ## Examples
 * |[
 * gst-launch-1.0 -m filesrc location=tools/tiny/samples/session_1.wav ! wavparse ! audioconvert !
 * audioresample ! minicpmoturn ! fakesink
 * ]| Says where the turns of a recording are.
 * |[
 * gst-launch-1.0 filesrc location=tools/tiny/samples/session_1.wav ! wavparse ! audioconvert !
 * audioresample ! minicpmoturn ! queue ! minicpmoaudioenc ! queue ! minicpmollm ! fdsink
 * ]| Answers each question of a recording.
 *
 * ## Messages
 * Element messages, times in nanoseconds: minicpmo/turn-start (turn-id, running-time of the first
 * voiced sample, probability), minicpmo/turn-end (turn-id, running-time of the decision,
 * speech-end, duration of the speech, decision-delay, speculative: whether the end was announced
 * before, reason: silence, max-turn, request, stream), minicpmo/turn-cancel (turn-id, running-time,
 * reason: these or flush).
 */
#include "turn/gstminicpmoturn.h"

#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "common/gst_stream.h"
#include "common/gstminicpmoelement.h"
#include "common/gstminicpmoerror.h"
#include "common/gstminicpmoturn.h"
#include "common/guard.h"
#include "turn/gstminicpmoturngate.h"
#include "turn/gstminicpmoturnproperties.h"

using minicpmo::BufferPtr;
using minicpmo::EventPtr;
using minicpmo::guard;
using minicpmo::TurnGate;

GST_DEBUG_CATEGORY(gst_minicpmo_turn_debug);
#define GST_CAT_DEFAULT gst_minicpmo_turn_debug

struct _GstMiniCpmoTurn {
  GstElement parent;
  GstPad* sinkpad;
  GstPad* srcpad;
  minicpmo::TurnProperties* properties;
  TurnGate* gate;
};

enum { SIGNAL_START_TURN, SIGNAL_END_TURN, SIGNAL_CANCEL_TURN, SIGNAL_COUNT };
static guint signals[SIGNAL_COUNT];

#define PCM_CAPS                                                          \
  "audio/x-raw, format=(string)F32LE, rate=(int)16000, channels=(int)1, " \
  "layout=(string)interleaved"
static GstStaticPadTemplate sink_template =
    GST_STATIC_PAD_TEMPLATE("sink", GST_PAD_SINK, GST_PAD_ALWAYS, GST_STATIC_CAPS(PCM_CAPS));
static GstStaticPadTemplate src_template =
    GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS, GST_STATIC_CAPS(PCM_CAPS));

G_DEFINE_TYPE_WITH_CODE(GstMiniCpmoTurn, gst_minicpmo_turn, GST_TYPE_ELEMENT,
                        GST_DEBUG_CATEGORY_INIT(gst_minicpmo_turn_debug, "minicpmoturn", 0,
                                                "MiniCPM-o: turns of a conversation"))
GST_ELEMENT_REGISTER_DEFINE(minicpmoturn, "minicpmoturn", GST_RANK_NONE, GST_TYPE_MINICPMO_TURN)

// ---- Pads -------------------------------------------------------------------

static GstFlowReturn chain(GstPad*, GstObject* parent, GstBuffer* data) {
  auto* self = GST_MINICPMO_TURN(parent);
  BufferPtr buffer(data);
  return guard(GST_ELEMENT(self), GST_FLOW_ERROR,
               [&] { return self->gate->chain(std::move(buffer)); });
}

static bool serialized_event(TurnGate& gate, EventPtr event) {
  switch (GST_EVENT_TYPE(event.get())) {
    case GST_EVENT_STREAM_START:
      return gate.stream_start(std::move(event));
    case GST_EVENT_CAPS:
      return gate.caps();
    case GST_EVENT_SEGMENT:
      return gate.segment(std::move(event));
    case GST_EVENT_GAP:
      return gate.gap(std::move(event));
    case GST_EVENT_EOS:
      return gate.eos(std::move(event));
    default:
      return gate.other(std::move(event));
  }
}

static gboolean sink_event(GstPad* pad, GstObject* parent, GstEvent* data) {
  auto* self = GST_MINICPMO_TURN(parent);
  EventPtr event(data);
  return guard<gboolean>(GST_ELEMENT(self), FALSE, [&]() -> gboolean {
    switch (GST_EVENT_TYPE(event.get())) {
      case GST_EVENT_FLUSH_START:
        self->gate->set_flushing(true);
        return gst_pad_push_event(self->srcpad, event.release());
      case GST_EVENT_FLUSH_STOP:
        self->gate->reset(true);
        self->gate->set_flushing(false);
        return gst_pad_push_event(self->srcpad, event.release());
      default:
        if (minicpmo::is_serialized(event.get()))
          return serialized_event(*self->gate, std::move(event));
        return gst_pad_event_default(pad, parent, event.release());
    }
  });
}

static gboolean src_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  auto* self = GST_MINICPMO_TURN(parent);
  if (GST_QUERY_TYPE(query) == GST_QUERY_LATENCY)
    return gst_minicpmo_element_query_latency(self->sinkpad, query,
                                              TurnGate::latency(self->gate->settings()));
  if (gst_minicpmo_query_is_next_turn(query)) {
    gst_minicpmo_query_set_turn_id(query, self->gate->take_number());
    return TRUE;
  }
  return gst_pad_query_default(pad, parent, query);
}

// ---- State ------------------------------------------------------------------

static bool open_gate(GstMiniCpmoTurn* self) {
  const auto opened = self->gate->open(self->properties->model());
  if (!opened.ok()) gst_minicpmo_post(GST_ELEMENT(self), GST_MESSAGE_ERROR, opened.error());
  return opened.ok();
}

static GstStateChangeReturn change_state(GstElement* element, GstStateChange transition) {
  auto* self = GST_MINICPMO_TURN(element);
  if (transition == GST_STATE_CHANGE_NULL_TO_READY && !open_gate(self))
    return GST_STATE_CHANGE_FAILURE;
  if (transition == GST_STATE_CHANGE_READY_TO_PAUSED) self->gate->set_flushing(false);
  // Before the parent takes the stream lock: whoever listens under it must let go.
  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY) self->gate->set_flushing(true);
  const GstStateChangeReturn result =
      GST_ELEMENT_CLASS(gst_minicpmo_turn_parent_class)->change_state(element, transition);
  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY) self->gate->reset(false);
  if (transition == GST_STATE_CHANGE_READY_TO_NULL) self->gate->close();
  return result;
}

static GstStateChangeReturn guarded_change_state(GstElement* element, GstStateChange transition) {
  return guard(element, GST_STATE_CHANGE_FAILURE,
               [&] { return change_state(element, transition); });
}

// ---- Properties and signals -------------------------------------------------

static void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  auto* self = GST_MINICPMO_TURN(object);
  const minicpmo::TurnSettings before = self->gate->settings();
  if (!self->properties->set(id, value, *self->gate)) {
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
    return;
  }
  if (TurnGate::latency(before) != TurnGate::latency(self->gate->settings()))
    gst_element_post_message(GST_ELEMENT(self), gst_message_new_latency(GST_OBJECT(self)));
}

static void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  auto* self = GST_MINICPMO_TURN(object);
  if (!self->properties->get(id, value, *self->gate))
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
}

static void start_turn(GstMiniCpmoTurn* self) {
  self->gate->request_start();
}

static void end_turn(GstMiniCpmoTurn* self) {
  self->gate->request_end();
}

static void cancel_turn(GstMiniCpmoTurn* self) {
  self->gate->request_cancel();
}

// ---- Class ------------------------------------------------------------------

static void finalize(GObject* object) {
  auto* self = GST_MINICPMO_TURN(object);
  delete self->gate;
  delete self->properties;
  G_OBJECT_CLASS(gst_minicpmo_turn_parent_class)->finalize(object);
}

static guint new_action(GstMiniCpmoTurnClass* klass, const gchar* name, GCallback handler) {
  return g_signal_new_class_handler(name, G_TYPE_FROM_CLASS(klass),
                                    static_cast<GSignalFlags>(G_SIGNAL_RUN_LAST | G_SIGNAL_ACTION),
                                    handler, nullptr, nullptr, nullptr, G_TYPE_NONE, 0);
}

static void gst_minicpmo_turn_class_init(GstMiniCpmoTurnClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  auto* element_class = GST_ELEMENT_CLASS(klass);
  object_class->set_property = set_property;
  object_class->get_property = get_property;
  object_class->finalize = finalize;
  element_class->change_state = GST_DEBUG_FUNCPTR(guarded_change_state);
  minicpmo::TurnProperties::install(object_class);
  /**
   * GstMiniCpmoTurn::start-turn:
   *
   * Starts a turn with the next audio that comes, prefix-padding of what came before included.
   */
  signals[SIGNAL_START_TURN] = new_action(klass, "start-turn", G_CALLBACK(start_turn));
  /**
   * GstMiniCpmoTurn::end-turn:
   *
   * Ends the turn before the next audio that comes. In mode=vad no other turn starts until there
   * was a pause.
   */
  signals[SIGNAL_END_TURN] = new_action(klass, "end-turn", G_CALLBACK(end_turn));
  /**
   * GstMiniCpmoTurn::cancel-turn:
   *
   * Throws the turn away, as if nothing had been said: no answer, and what it interrupted may go
   * on.
   */
  signals[SIGNAL_CANCEL_TURN] = new_action(klass, "cancel-turn", G_CALLBACK(cancel_turn));
  gst_type_mark_as_plugin_api(GST_TYPE_MINICPMO_TURN_MODE, static_cast<GstPluginAPIFlags>(0));
  gst_element_class_add_static_pad_template(element_class, &sink_template);
  gst_element_class_add_static_pad_template(element_class, &src_template);
  gst_element_class_set_static_metadata(
      element_class, "MiniCPM-o turn detector", "Filter/Analyzer/Audio",
      "Lets the speech of a user through and marks the turns of a conversation (MiniCPM-o 2.6)",
      "The gst-minicpmo developers");
}

static void gst_minicpmo_turn_init(GstMiniCpmoTurn* self) {
  self->sinkpad = gst_pad_new_from_static_template(&sink_template, "sink");
  gst_pad_set_chain_function(self->sinkpad, GST_DEBUG_FUNCPTR(chain));
  gst_pad_set_event_function(self->sinkpad, GST_DEBUG_FUNCPTR(sink_event));
  // Caps without a layout (filesrc ! audio/x-raw,...) are as good.
  GST_PAD_SET_ACCEPT_INTERSECT(self->sinkpad);
  gst_element_add_pad(GST_ELEMENT(self), self->sinkpad);

  self->srcpad = gst_pad_new_from_static_template(&src_template, "src");
  gst_pad_set_query_function(self->srcpad, GST_DEBUG_FUNCPTR(src_query));
  gst_element_add_pad(GST_ELEMENT(self), self->srcpad);
  self->properties = new minicpmo::TurnProperties;
  self->gate = new TurnGate(GST_ELEMENT(self), self->srcpad);
}
