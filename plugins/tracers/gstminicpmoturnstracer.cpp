#include "gstminicpmoturnstracer.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "outputs.h"
#include "pipeline_trace.h"

using minicpmo::tracers::Outputs;
using minicpmo::tracers::PadInfo;
using minicpmo::tracers::PadInfoPtr;
using minicpmo::tracers::PipelineTrace;
using minicpmo::tracers::PipelineTracePtr;

GST_DEBUG_CATEGORY_STATIC(gst_minicpmo_turns_debug);
#define GST_CAT_DEFAULT gst_minicpmo_turns_debug

namespace {

// All that one tracer has. Pads keep what they need of it.
struct Tracer {
  Outputs outputs;
  std::mutex mutex;  // guards what follows
  std::map<GstObject*, PipelineTracePtr> pipelines;
  int number = 0;

  PipelineTracePtr pipeline_of(GstObject* member);
};

// GStreamer runs one of each kind of tracer; a second one listens to nothing.
std::atomic<Tracer*> running{nullptr};

// No C++ exception may cross GStreamer's frames; a tracer that fails must not stop a call.
template <class Body>
void guarded(Body&& body) noexcept {
  try {
    body();
  } catch (const std::exception& e) {
    GST_ERROR("minicpmoturns: %s", e.what());
  } catch (...) {
    GST_ERROR("minicpmoturns: unknown exception");
  }
}

void forget_pipeline(gpointer data, GObject* object) {
  guarded([&] {
    auto* tracer = static_cast<Tracer*>(data);
    if (running != tracer) return;
    PipelineTracePtr gone;
    {
      std::lock_guard lock(tracer->mutex);
      const auto found = tracer->pipelines.find(reinterpret_cast<GstObject*>(object));
      if (found == tracer->pipelines.end()) return;
      gone = std::move(found->second);
      tracer->pipelines.erase(found);
    }
    gone->finish();
  });
}

// By the topmost bin: callers in one process are told apart by their pipelines.
PipelineTracePtr Tracer::pipeline_of(GstObject* member) {
  GstObject* top = GST_OBJECT(gst_object_ref(member));
  while (GstObject* parent = gst_object_get_parent(top)) {
    gst_object_unref(top);
    top = parent;
  }
  std::lock_guard lock(mutex);
  PipelineTracePtr& found = pipelines[top];
  if (!found) {
    gchar* name = gst_object_get_name(top);
    found = std::make_shared<PipelineTrace>(name, ++number, outputs);
    g_free(name);
    g_object_weak_ref(G_OBJECT(top), forget_pipeline, this);
  }
  PipelineTracePtr result = found;
  gst_object_unref(top);
  return result;
}

GQuark pad_quark() {
  static const GQuark quark = g_quark_from_static_string("minicpmoturns-pad");
  return quark;
}

void drop_info(gpointer info) {
  delete static_cast<PadInfoPtr*>(info);
}

// Of a pad that has pushed something before.
PadInfo* info_of(GstPad* pad) {
  auto* info = static_cast<PadInfoPtr*>(g_object_get_qdata(G_OBJECT(pad), pad_quark()));
  return info != nullptr ? info->get() : nullptr;
}

}  // namespace

namespace minicpmo::tracers {

PadInfoPtr pad_info(GstPad* pad) {
  auto* known = static_cast<PadInfoPtr*>(g_object_get_qdata(G_OBJECT(pad), pad_quark()));
  if (known != nullptr) return *known;
  Tracer* tracer = running;
  GstElement* element = gst_pad_get_parent_element(pad);
  if (tracer == nullptr || element == nullptr) return nullptr;  // inside of a ghost pad
  auto* made =
      new PadInfoPtr(std::make_shared<PadInfo>(element, tracer->pipeline_of(GST_OBJECT(element))));
  gst_object_unref(element);
  // Another thread may have been faster.
  if (!g_object_replace_qdata(G_OBJECT(pad), pad_quark(), nullptr, made, drop_info, nullptr)) {
    delete made;
    known = static_cast<PadInfoPtr*>(g_object_get_qdata(G_OBJECT(pad), pad_quark()));
    return known != nullptr ? *known : nullptr;
  }
  return *made;
}

}  // namespace minicpmo::tracers

struct _GstMiniCpmoTurnsTracer {
  GstTracer parent;
  Tracer* tracer;
};

G_DEFINE_TYPE_WITH_CODE(GstMiniCpmoTurnsTracer, gst_minicpmo_turns_tracer, GST_TYPE_TRACER,
                        GST_DEBUG_CATEGORY_INIT(gst_minicpmo_turns_debug, "minicpmoturns", 0,
                                                "MiniCPM-o: where the time of a turn goes"))

// ---- Hooks: called from any thread, with whatever its caller has locked ------

static void on_push(GObject*, GstClockTime, GstPad* pad, GstBuffer* buffer) {
  PadInfo* info = info_of(pad);
  if (info != nullptr) guarded([&] { info->pipeline->buffer(pad, *info, buffer); });
}

static void on_push_list(GObject*, GstClockTime, GstPad* pad, GstBufferList* list) {
  PadInfo* info = info_of(pad);
  if (info == nullptr) return;
  guarded([&] {
    for (guint i = 0; i < gst_buffer_list_length(list); ++i)
      info->pipeline->buffer(pad, *info, gst_buffer_list_get(list, i));
  });
}

static void on_pushed(GObject*, GstClockTime, GstPad* pad, GstFlowReturn) {
  PadInfo* info = info_of(pad);
  if (info != nullptr) guarded([&] { info->pipeline->taken(*info); });
}

static void on_event(GObject*, GstClockTime, GstPad* pad, GstEvent* event) {
  if (!GST_PAD_IS_SRC(pad)) return;
  guarded([&] {
    // Every stream begins with events: here pads become known.
    const PadInfoPtr info = minicpmo::tracers::pad_info(pad);
    if (info) info->pipeline->event(pad, *info, event);
  });
}

static PipelineTracePtr pipeline_of_element(GstElement* element) {
  Tracer* tracer = running;
  return tracer != nullptr ? tracer->pipeline_of(GST_OBJECT(element)) : nullptr;
}

static void on_message(GObject*, GstClockTime, GstElement* element, GstMessage* message) {
  if (!gst_message_has_name(message, "minicpmo/answer")) return;
  const GstStructure* fields = gst_message_get_structure(message);
  guint64 turn_id = 0, tokens = 0;
  gst_structure_get_uint64(fields, "turn-id", &turn_id);
  gst_structure_get_uint64(fields, "tokens", &tokens);
  guarded([&] {
    if (const PipelineTracePtr pipeline = pipeline_of_element(element))
      pipeline->answer(turn_id, tokens);
  });
}

static void on_stage_begin(GstElement* element, const gchar* stage, guint64 turn_id,
                           guint64 handed_in, gpointer) {
  guarded([&] {
    if (const PipelineTracePtr pipeline = pipeline_of_element(element))
      pipeline->stage_begin(element, stage, turn_id, handed_in);
  });
}

static void on_stage_end(GstElement* element, const gchar* stage, guint64 turn_id, gpointer) {
  guarded([&] {
    if (const PipelineTracePtr pipeline = pipeline_of_element(element))
      pipeline->stage_end(element, stage, turn_id);
  });
}

static void on_change_state(GObject*, GstClockTime, GstElement* element,
                            GstStateChange transition) {
  if (transition == GST_STATE_CHANGE_NULL_TO_READY) {
    const GType type = g_type_from_name("GstMiniCpmoElement");
    if (type == 0 || !g_type_is_a(G_OBJECT_TYPE(element), type)) return;
    const auto begun = reinterpret_cast<gpointer>(on_stage_begin);
    if (g_signal_handler_find(element, G_SIGNAL_MATCH_FUNC, 0, 0, nullptr, begun, nullptr) != 0)
      return;
    g_signal_connect(element, "stage-begin", G_CALLBACK(on_stage_begin), nullptr);
    g_signal_connect(element, "stage-end", G_CALLBACK(on_stage_end), nullptr);
  } else if (transition == GST_STATE_CHANGE_PAUSED_TO_READY &&
             GST_OBJECT_PARENT(element) == nullptr) {
    guarded([&] {
      if (const PipelineTracePtr pipeline = pipeline_of_element(element)) pipeline->finish();
    });
  }
}

// ---- Parameters --------------------------------------------------------------

// People who set GST_TRACERS look at the terminal, not at a log that they have to ask for.
static void complain(const std::string& about) {
  GST_WARNING("%s", about.c_str());
  g_printerr("minicpmoturns: %s\n", about.c_str());
}

static void open_file(const std::string& parameter, const GValue* value, Outputs& outputs,
                      bool (Outputs::*open)(const std::string&)) {
  if (!G_VALUE_HOLDS_STRING(value)) return complain(parameter + " needs the name of a file");
  const std::string path = g_value_get_string(value);
  if (!(outputs.*open)(path))
    complain("cannot write " + parameter + " " + path + ": " + g_strerror(errno));
}

static gboolean take_parameter(GQuark id, const GValue* value, gpointer data) {
  Outputs& outputs = static_cast<Tracer*>(data)->outputs;
  const std::string name = g_quark_to_string(id);
  if (name == "file")
    open_file(name, value, outputs, &Outputs::open_lines);
  else if (name == "trace")
    open_file(name, value, outputs, &Outputs::open_trace);
  else
    complain("there is no parameter " + name + "; there are file=LINES.jsonl and trace=TRACE.json");
  return TRUE;
}

static void take_parameters(GstMiniCpmoTurnsTracer* self) {
  gchar* params = nullptr;
  g_object_get(self, "params", &params, nullptr);
  if (params == nullptr || params[0] == '\0') {
    g_free(params);
    return;
  }
  gchar* text = g_strdup_printf("minicpmoturns,%s", params);
  if (GstStructure* fields = gst_structure_from_string(text, nullptr)) {
    gst_structure_foreach(fields, take_parameter, self->tracer);
    gst_structure_free(fields);
  } else {
    complain(std::string("cannot read the parameters \"") + params +
             "\"; write minicpmoturns(file=LINES.jsonl,trace=TRACE.json)");
  }
  g_free(text);
  g_free(params);
}

// ---- Class -------------------------------------------------------------------

// With a tracer GStreamer looks for listeners in a hash table at each reference that is taken or
// dropped, in vain. Our seven fill the smallest table, in which that takes long; with these, which
// cost nothing, it is four times as large.
constexpr std::array kRareHooks{
    "bin-add-pre",   "bin-add-post",   "bin-remove-pre",  "bin-remove-post", "pad-link-pre",
    "pad-link-post", "pad-unlink-pre", "pad-unlink-post", "element-add-pad", "element-remove-pad"};

static void constructed(GObject* object) {
  G_OBJECT_CLASS(gst_minicpmo_turns_tracer_parent_class)->constructed(object);
  auto* self = GST_MINICPMO_TURNS_TRACER(object);
  guarded([&] { take_parameters(self); });
  Tracer* none = nullptr;
  if (!running.compare_exchange_strong(none, self->tracer)) return;
  auto* tracer = GST_TRACER(self);
  gst_tracing_register_hook(tracer, "pad-push-pre", G_CALLBACK(on_push));
  gst_tracing_register_hook(tracer, "pad-push-list-pre", G_CALLBACK(on_push_list));
  gst_tracing_register_hook(tracer, "pad-push-post", G_CALLBACK(on_pushed));
  gst_tracing_register_hook(tracer, "pad-push-list-post", G_CALLBACK(on_pushed));
  gst_tracing_register_hook(tracer, "pad-push-event-pre", G_CALLBACK(on_event));
  gst_tracing_register_hook(tracer, "element-post-message-pre", G_CALLBACK(on_message));
  gst_tracing_register_hook(tracer, "element-change-state-pre", G_CALLBACK(on_change_state));
  for (const char* hook : kRareHooks)
    gst_tracing_register_hook(tracer, hook, G_CALLBACK(+[](GObject*) {}));
}

static void finalize(GObject* object) {
  auto* self = GST_MINICPMO_TURNS_TRACER(object);
  Tracer* tracer = self->tracer;
  if (running == tracer) {
    guarded([&] {
      for (const auto& [top, pipeline] : tracer->pipelines) pipeline->finish();
    });
    running = nullptr;
    for (const auto& [top, pipeline] : tracer->pipelines)
      g_object_weak_unref(G_OBJECT(top), forget_pipeline, tracer);
  }
  delete tracer;
  G_OBJECT_CLASS(gst_minicpmo_turns_tracer_parent_class)->finalize(object);
}

static void gst_minicpmo_turns_tracer_class_init(GstMiniCpmoTurnsTracerClass* klass) {
  G_OBJECT_CLASS(klass)->constructed = constructed;
  G_OBJECT_CLASS(klass)->finalize = finalize;
  minicpmo::tracers::init_records();
}

static void gst_minicpmo_turns_tracer_init(GstMiniCpmoTurnsTracer* self) {
  self->tracer = new Tracer;
  GST_OBJECT_FLAG_SET(self, GST_OBJECT_FLAG_MAY_BE_LEAKED);
}
