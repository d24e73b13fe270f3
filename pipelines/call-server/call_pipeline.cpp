#include "call_pipeline.h"

#include <malloc.h>

#include <thread>

#include "common/gstminicpmoturn.h"
#include "main_thread.h"

namespace minicpmo::call_server {
namespace {

constexpr GstClockTime kGap = 10 * GST_MSECOND;  // in an answer, that can be heard

std::string text_of(const GError* error, const gchar* debug) {
  return std::string(error->message) + (debug != nullptr ? std::string(" (") + debug + ")" : "");
}

std::shared_ptr<CallPipeline> lock(gpointer data) {
  return static_cast<WeakPipeline*>(data)->lock();
}

}  // namespace

void forget_pipeline(gpointer data) {
  delete static_cast<WeakPipeline*>(data);
}

// The plugin registers the meta; a program that linked it, too, would have another one.
bool turn_of(GstBuffer* buffer, uint64_t* turn) {
  static const GstMetaInfo* const info = gst_meta_get_info("GstMiniCpmoTurnMeta");
  if (info == nullptr) return false;
  const auto* const meta =
      reinterpret_cast<const GstMiniCpmoTurnMeta*>(gst_buffer_get_meta(buffer, info->api));
  if (meta != nullptr) *turn = meta->turn_id;
  return meta != nullptr;
}

ElementPtr CallPipeline::element(const char* name) const {
  return ElementPtr(gst_bin_get_by_name(GST_BIN(pipeline_.get()), name));
}

Result<void> CallPipeline::build(const Settings& settings, const char* description) {
  GError* raw = nullptr;
  GstElement* const made =
      gst_parse_launch_full(description, nullptr, GST_PARSE_FLAG_FATAL_ERRORS, &raw);
  const GErrorPtr error(raw);
  if (made == nullptr) {
    return Error{ErrorCode::kLibrary,
                 std::string("a call needs an element that is missing: ") + error->message, ""};
  }
  pipeline_.reset(GST_ELEMENT(gst_object_ref_sink(made)));
  model_ = element("model");
  turn_ = element("turn");
  g_object_set(model_.get(), "device", settings.device.c_str(), nullptr);
  if (!settings.model.empty()) g_object_set(model_.get(), "model", settings.model.c_str(), nullptr);
  if (!settings.system_prompt.empty())
    g_object_set(model_.get(), "system-prompt", settings.system_prompt.c_str(), nullptr);
  if (settings.max_codes > 0) g_object_set(model_.get(), "max-codes", settings.max_codes, nullptr);
  return {};
}

bool CallPipeline::play() {
  heard_something();
  const BusPtr bus(gst_element_get_bus(pipeline_.get()));
  bus_watch_ = gst_bus_add_watch_full(
      bus.get(), G_PRIORITY_DEFAULT,
      [](GstBus*, GstMessage* message, gpointer data) -> gboolean {
        const auto call = lock(data);
        return call ? call->on_message(message) : G_SOURCE_REMOVE;
      },
      new WeakPipeline(weak_from_this()), forget_pipeline);
  add_probes();
  if (gst_element_set_state(pipeline_.get(), GST_STATE_PLAYING) != GST_STATE_CHANGE_FAILURE)
    return true;
  // The bus says why; this comes only if it does not.
  post([](CallPipeline& call) { call.fail("the call's pipeline did not start"); });
  return false;
}

void CallPipeline::add_probe(const char* name, const char* pad_name, GstPadProbeType type,
                             GstPadProbeCallback callback) {
  const PadPtr pad(gst_element_get_static_pad(element(name).get(), pad_name));
  gst_pad_add_probe(pad.get(), type, callback, new WeakPipeline(weak_from_this()), forget_pipeline);
}

void CallPipeline::add_probes() {
  add_probe("words", "sink", GST_PAD_PROBE_TYPE_BUFFER,
            [](GstPad*, GstPadProbeInfo* info, gpointer data) -> GstPadProbeReturn {
              const auto call = lock(data);
              GstBuffer* const buffer = GST_PAD_PROBE_INFO_BUFFER(info);
              uint64_t turn = 0;
              const BufferMap map(buffer);
              if (!call || !turn_of(buffer, &turn) || !map.ok()) return GST_PAD_PROBE_OK;
              const auto bytes = map.bytes();
              std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
              call->post([turn, text = std::move(text)](CallPipeline& p) {
                p.callbacks_.words(turn, text);
              });
              return GST_PAD_PROBE_OK;
            });
  add_probe(
      "answer", "src",
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM |
                                   GST_PAD_PROBE_TYPE_EVENT_FLUSH),
      [](GstPad*, GstPadProbeInfo* info, gpointer data) -> GstPadProbeReturn {
        const auto call = lock(data);
        return call ? call->sound_probe(info) : GST_PAD_PROBE_OK;
      });
}

void CallPipeline::note_sound(uint64_t turn, GstBuffer* buffer) {
  if (!sound_ || sounding_ != turn)
    post([turn](CallPipeline& p) { p.callbacks_.sound_begins(turn); });
  else if (GST_BUFFER_PTS(buffer) > sound_end_ + kGap)  // the vocoder puts off what comes late
    post([](CallPipeline& p) { p.callbacks_.sound_late(); });
  sound_ = true;
  sounding_ = turn;
  sound_end_ = GST_BUFFER_PTS(buffer) + GST_BUFFER_DURATION(buffer);
}

// On the thread of the answer's queue, flushes on the language model's.
GstPadProbeReturn CallPipeline::sound_probe(GstPadProbeInfo* info) {
  if ((GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) != 0) {
    GstBuffer* const buffer = GST_PAD_PROBE_INFO_BUFFER(info);
    uint64_t turn = 0;
    if (turn_of(buffer, &turn)) note_sound(turn, buffer);
    return GST_PAD_PROBE_OK;
  }
  GstEvent* const event = GST_PAD_PROBE_INFO_EVENT(info);
  if (GST_EVENT_TYPE(event) == GST_EVENT_FLUSH_STOP) {
    sound_ = false;
    post([](CallPipeline& p) { p.callbacks_.sound_dropped(); });
  } else if (gst_event_has_name(event, GST_MINICPMO_EVENT_ANSWER_END)) {
    guint64 turn = 0;
    gst_structure_get_uint64(gst_event_get_structure(event), "turn-id", &turn);
    unsigned left = 0;
    if (sound_ && sounding_ == turn) {
      // Output time is running time.
      const GstClockTime now = gst_element_get_current_running_time(pipeline_.get());
      if (GST_CLOCK_TIME_IS_VALID(now) && sound_end_ > now)
        left = static_cast<unsigned>((sound_end_ - now) / GST_MSECOND);
    }
    sound_ = false;
    post([turn, left](CallPipeline& p) { p.callbacks_.sound_ends(turn, left); });
  }
  return GST_PAD_PROBE_OK;
}

void CallPipeline::post(std::function<void(CallPipeline&)> work) {
  on_main_thread([weak = weak_from_this(), work = std::move(work)] {
    if (const auto call = weak.lock(); call && !call->closed_) work(*call);
  });
}

double CallPipeline::silent_seconds() const {
  return static_cast<double>(g_get_monotonic_time() - last_sound_.load()) / 1e6;
}

void CallPipeline::start_turn() {
  g_signal_emit_by_name(turn(), "start-turn");
}

void CallPipeline::end_turn() {
  g_signal_emit_by_name(turn(), "end-turn");
}

void CallPipeline::cancel_turn() {
  g_signal_emit_by_name(turn(), "cancel-turn");
}

gboolean CallPipeline::on_message(GstMessage* message) {
  switch (GST_MESSAGE_TYPE(message)) {
    case GST_MESSAGE_ELEMENT: {
      const GstStructure* const fields = gst_message_get_structure(message);
      if (g_str_has_prefix(gst_structure_get_name(fields), "minicpmo/")) callbacks_.told(fields);
      break;
    }
    case GST_MESSAGE_ERROR: {
      GError* raw = nullptr;
      gchar* debug = nullptr;
      gst_message_parse_error(message, &raw, &debug);
      const GErrorPtr error(raw);
      const GCharPtr more(debug);
      if (is_transport(GST_MESSAGE_SRC(message)))
        callbacks_.gone();
      else
        fail(text_of(error.get(), more.get()));
      break;
    }
    case GST_MESSAGE_LATENCY:
      gst_bin_recalculate_latency(GST_BIN(pipeline_.get()));
      break;
    default:
      break;
  }
  return closed_ ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE;
}

void CallPipeline::fail(const std::string& message) {
  if (!closed_) callbacks_.failed(message);
}

void CallPipeline::close(const std::string& why) {
  if (closed_) return;
  closed_ = true;
  if (bus_watch_ != 0) g_source_remove(bus_watch_);
  bus_watch_ = 0;
  const auto goodbye = say_goodbye(why);
  if (!pipeline_) return;
  ++stopping_;
  // Stopping waits for the streaming threads.
  std::thread([pipeline = gst_object_ref(pipeline_.get()), goodbye] {
    if (goodbye) goodbye();
    gst_element_set_state(GST_ELEMENT(pipeline), GST_STATE_NULL);
    gst_object_unref(pipeline);
    // What a call had lies free between what is in use, in an arena for each of its threads: glibc
    // would keep it, hundreds of kilobytes a call.
    if (stopping_ == 1) malloc_trim(0);
    --stopping_;
  }).detach();
}

}  // namespace minicpmo::call_server
