// GstMiniCpmoElement: the abstract base of the four model elements. It owns what they share: the
// properties model, device, precision and async-load, the engine found through GstContext, loading
// on a thread of its own with PROGRESS messages, flushing and cancelling, and errors that become
// one message on the bus.
//
// Why not GstAudioEncoder and GstAudioDecoder: an encoder base class parks GAP and custom events
// until the next frame, and both tie caps, latency and draining to audio on one side. Our seams
// carry tensors and text, and the order of turn events and data must hold.
#pragma once

#include <gst/gst.h>

#include <functional>
#include <memory>

#include "common/stage.h"

G_BEGIN_DECLS

#define GST_TYPE_MINICPMO_ELEMENT (gst_minicpmo_element_get_type())
G_DECLARE_DERIVABLE_TYPE(GstMiniCpmoElement, gst_minicpmo_element, GST, MINICPMO_ELEMENT,
                         GstElement)

struct _GstMiniCpmoElementClass {
  GstElementClass parent_class;

  // Set by the subclass's class_init: which weights to load.
  minicpmo::Stage stage;

  // Makes the session. Called on the loader thread, without locks, after Engine::load of the stage.
  minicpmo::Result<void> (*open_session)(GstMiniCpmoElement* self,
                                         const std::shared_ptr<minicpmo::Engine>& engine);
  // Drops the session. Called in READY to NULL, when no streaming thread runs. May be called
  // without open_session.
  void (*close_session)(GstMiniCpmoElement* self);
  // Drops what is left of the stream: at FLUSH_STOP (flushed, from gst_minicpmo_element_flush) and
  // in PAUSED to READY, when no streaming thread runs. May be null.
  void (*reset)(GstMiniCpmoElement* self, gboolean flushed);
};

// Type of the property `precision`: auto, float32, bfloat16.
#define GST_TYPE_MINICPMO_PRECISION (gst_minicpmo_precision_get_type())
GType gst_minicpmo_precision_get_type(void);
// Type of the property `compatibility` of the elements that have one: none, upstream (the values of
// minicpmo::Compatibility).
#define GST_TYPE_MINICPMO_COMPATIBILITY (gst_minicpmo_compatibility_get_type())
GType gst_minicpmo_compatibility_get_type(void);

G_END_DECLS

// What a streaming thread calls before it uses the session: waits for the loader. GST_FLOW_FLUSHING
// when the element is flushed or shut down meanwhile, GST_FLOW_ERROR when loading failed (the error
// is on the bus already).
GstFlowReturn gst_minicpmo_element_wait_ready(GstMiniCpmoElement* self);

// Waits until `done` says so (it is asked after every wake), at most `patience` ns. FALSE when the
// element is flushed or shut down meanwhile.
gboolean gst_minicpmo_element_wait_until(GstMiniCpmoElement* self,
                                         const std::function<bool()>& done, GstClockTime patience);
void gst_minicpmo_element_wake(GstMiniCpmoElement* self);

// Valid after wait_ready returned GST_FLOW_OK, until READY to NULL.
const std::shared_ptr<minicpmo::Engine>& gst_minicpmo_element_engine(GstMiniCpmoElement* self);

// Set while the element is flushing or shutting down; handed to every stage call.
const minicpmo::CancelFlag& gst_minicpmo_element_cancel_flag(GstMiniCpmoElement* self);

// Set when the element goes to NULL while it loads; for open_session.
const minicpmo::CancelFlag& gst_minicpmo_element_load_cancel_flag(GstMiniCpmoElement* self);

// FLUSH_START / FLUSH_STOP and PAUSED to READY: sets or clears the cancel flag and wakes
// wait_ready. The base does it for state changes (set before the parent's change_state deactivates
// pads, cleared in READY to PAUSED); the subclass calls it in its event function.
void gst_minicpmo_element_set_flushing(GstMiniCpmoElement* self, gboolean flushing);

// What FLUSH_START and FLUSH_STOP on the sink pad mean for an element with one src pad: stops or
// resets it, and passes the event on. Takes the event.
gboolean gst_minicpmo_element_flush(GstMiniCpmoElement* self, GstPad* srcpad, GstEvent* event);

// Posts `error` once (kCancelled: never) with the right GStreamer domain and code, and returns the
// flow return that goes with it: GST_FLOW_FLUSHING for kCancelled, GST_FLOW_ERROR otherwise.
GstFlowReturn gst_minicpmo_element_post_error(GstMiniCpmoElement* self,
                                              const minicpmo::Error& error);
// The same as a warning message.
void gst_minicpmo_element_post_warning(GstMiniCpmoElement* self, const minicpmo::Error& error);

// The engine once it is loaded, otherwise nullptr. Does not wait, and may be called from any thread
// at any time: for queries, which run while the element changes state.
std::shared_ptr<minicpmo::Engine> gst_minicpmo_element_peek_engine(GstMiniCpmoElement* self);

// For a pad's query function: answers CONTEXT with the engine in use, everything else as
// gst_pad_query_default.
gboolean gst_minicpmo_element_query_default(GstMiniCpmoElement* self, GstPad* pad, GstQuery* query);
// The same as a pad's query function.
gboolean gst_minicpmo_element_pad_query(GstPad* pad, GstObject* parent, GstQuery* query);
// For a src pad's query function: when upstream is live, adds `own` to its minimum and maximum
// latency.
gboolean gst_minicpmo_element_query_latency(GstPad* sinkpad, GstQuery* query, GstClockTime own);
// Whether what comes into this pad comes from a live source.
gboolean gst_minicpmo_pad_is_live(GstPad* sinkpad);
