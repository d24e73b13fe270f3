#include "common/gstminicpmoelement.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "common/gst_ptr.h"
#include "common/gstminicpmoerror.h"
#include "common/gstminicpmomodel.h"
#include "common/gstminicpmospan.h"
#include "common/guard.h"

using minicpmo::Engine;
using minicpmo::EngineOptions;
using minicpmo::Error;
using minicpmo::ErrorCode;
using minicpmo::Result;

GST_DEBUG_CATEGORY_STATIC(gst_minicpmo_element_debug);
#define GST_CAT_DEFAULT gst_minicpmo_element_debug

namespace {

constexpr const gchar* kProgressCode = "load";

enum class LoadState { kIdle, kLoading, kReady, kFailed, kCancelled };

// The enum's values as the backend names them.
enum Precision { kPrecisionAuto, kPrecisionFloat32, kPrecisionBFloat16 };

const gchar* precision_name(int precision) {
  switch (precision) {
    case kPrecisionFloat32:
      return "float32";
    case kPrecisionBFloat16:
      return "bfloat16";
    default:
      return "auto";
  }
}

struct Settings {
  std::optional<std::string> model;
  std::string device = "auto";
  int precision = kPrecisionAuto;
  bool async_load = true;
};

struct Element {
  std::mutex settings_mutex;  // guards settings
  Settings settings;

  std::mutex state_mutex;  // guards load_state, stopped, flushing, engine
  std::condition_variable state_changed;
  LoadState load_state = LoadState::kIdle;
  bool stopped = true;  // below PAUSED
  bool flushing = false;
  std::shared_ptr<Engine>
      engine;  // also read without the mutex after wait_ready(), while it cannot change

  minicpmo::CancelFlag cancel;       // stopped || flushing
  minicpmo::CancelFlag load_cancel;  // READY to NULL while loading
  std::thread loader;                // touched by state changes only
};

}  // namespace

struct GstMiniCpmoElementPrivate {
  Element* impl;
};

enum { PROP_0, PROP_MODEL, PROP_DEVICE, PROP_PRECISION, PROP_ASYNC_LOAD };

G_DEFINE_ABSTRACT_TYPE_WITH_CODE(GstMiniCpmoElement, gst_minicpmo_element, GST_TYPE_ELEMENT,
                                 G_ADD_PRIVATE(GstMiniCpmoElement);
                                 GST_DEBUG_CATEGORY_INIT(gst_minicpmo_element_debug,
                                                         "minicpmoelement", 0,
                                                         "MiniCPM-o: base of the model elements"))

GType gst_minicpmo_precision_get_type(void) {
  static const GType type = [] {
    static const GEnumValue values[] = {
        {kPrecisionAuto, "What suits the device: float32 on a CPU", "auto"},
        {kPrecisionFloat32, "32-bit floating point", "float32"},
        {kPrecisionBFloat16, "bfloat16: half the memory, as the weights were published",
         "bfloat16"},
        {0, nullptr, nullptr}};
    return g_enum_register_static("GstMiniCpmoPrecision", values);
  }();
  return type;
}

GType gst_minicpmo_compatibility_get_type(void) {
  static const GType type = [] {
    static const GEnumValue values[] = {
        {static_cast<int>(minicpmo::Compatibility::kNone),
         "Upstream's flaws are mended (see README, Compatibility)", "none"},
        {static_cast<int>(minicpmo::Compatibility::kUpstream),
         "As upstream's streaming code, flaw for flaw", "upstream"},
        {0, nullptr, nullptr}};
    return g_enum_register_static("GstMiniCpmoCompatibility", values);
  }();
  return type;
}

static Element& impl_of(GstMiniCpmoElement* self) {
  return *static_cast<GstMiniCpmoElementPrivate*>(gst_minicpmo_element_get_instance_private(self))
              ->impl;
}

// ---- Loading ----------------------------------------------------------------

static void post_progress(GstMiniCpmoElement* self, GstProgressType type, int percent,
                          const std::string& text) {
  const minicpmo::GCharPtr valid(g_utf8_make_valid(text.data(), static_cast<gssize>(text.size())));
  GstMessage* message =
      gst_message_new_progress(GST_OBJECT(self), type, kProgressCode, valid.get());
  gst_structure_set(gst_message_writable_structure(message), "percent", G_TYPE_INT, percent,
                    nullptr);
  gst_element_post_message(GST_ELEMENT(self), message);
}

static EngineOptions engine_options(Element& impl) {
  std::lock_guard lock(impl.settings_mutex);
  EngineOptions options;
  options.model_dir = impl.settings.model.value_or(gst_minicpmo_default_model());
  options.device = impl.settings.device;
  options.precision = precision_name(impl.settings.precision);
  return options;
}

// The engine, with this element's weights and session.
static Result<std::shared_ptr<Engine>> load_engine(GstMiniCpmoElement* self,
                                                   const EngineOptions& options) {
  Element& impl = impl_of(self);
  GstMiniCpmoElementClass* klass = GST_MINICPMO_ELEMENT_GET_CLASS(self);
  ASSIGN_OR_RETURN(auto engine, gst_minicpmo_ensure_engine(GST_ELEMENT(self), options));
  if (impl.load_cancel.is_set()) return Error{ErrorCode::kCancelled, "cancelled", ""};
  int posted = 0;
  const auto progress = [self, &posted](int percent, const std::string& what) {
    if (percent <= posted) return;
    posted = percent;
    post_progress(self, GST_PROGRESS_TYPE_CONTINUE, percent, what);
  };
  RETURN_IF_ERROR(engine->load(klass->stage, progress, impl.load_cancel));
  if (impl.load_cancel.is_set()) return Error{ErrorCode::kCancelled, "cancelled", ""};
  if (klass->open_session != nullptr) RETURN_IF_ERROR(klass->open_session(self, engine));
  return engine;
}

static Result<std::shared_ptr<Engine>> load_engine_guarded(GstMiniCpmoElement* self,
                                                           const EngineOptions& options) {
  try {
    return load_engine(self, options);
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoSpace, "out of memory", "std::bad_alloc"};
  } catch (const std::exception& e) {
    return Error{ErrorCode::kFailed, "Internal error while loading the model.", e.what()};
  } catch (...) {
    return Error{ErrorCode::kFailed, "Internal error while loading the model.",
                 "unknown exception"};
  }
}

// The stages name the file or value; here is said what it means for the user, and what to do.
static Error for_the_user(const Error& error) {
  Error said = error;
  const char* stop = error.message.ends_with('?') ? "" : ".";
  switch (error.code) {
    case ErrorCode::kCorrupt:
      said.message = "Cannot load the model: " + error.message + stop +
                     " The checkpoint is damaged, incomplete or of another kind: copy its files "
                     "again, or name another with the property model.";
      break;
    case ErrorCode::kNotFound:
    case ErrorCode::kOpenRead:
    case ErrorCode::kSettings:
    case ErrorCode::kNoSpace:
      said.message = "Cannot load the model: " + error.message + stop;
      break;
    default:
      break;
  }
  return said;
}

static void publish(Element& impl, LoadState state, std::shared_ptr<Engine> engine) {
  {
    std::lock_guard lock(impl.state_mutex);
    impl.load_state = state;
    impl.engine.swap(engine);
  }
  impl.state_changed.notify_all();
  // The old engine, if this was its last user, goes here: freeing gigabytes takes its time.
}

// Loads and says how it went: on the bus first, so that whoever waits finds the message there
// already.
static bool load(GstMiniCpmoElement* self, const EngineOptions& options) {
  Element& impl = impl_of(self);
  post_progress(self, GST_PROGRESS_TYPE_START, 0, "Loading the model");
  auto engine = load_engine_guarded(self, options);
  if (impl.load_cancel.is_set() || (!engine.ok() && engine.error().code == ErrorCode::kCancelled)) {
    publish(impl, LoadState::kCancelled, nullptr);
    post_progress(self, GST_PROGRESS_TYPE_CANCELED, -1, "Loading the model was cancelled");
    return false;
  }
  if (!engine.ok()) {
    const Error error = for_the_user(engine.error());
    post_progress(self, GST_PROGRESS_TYPE_ERROR, -1, error.message);
    gst_minicpmo_element_post_error(self, error);
    publish(impl, LoadState::kFailed, nullptr);
    return false;
  }
  publish(impl, LoadState::kReady, std::move(engine).value());
  GST_INFO_OBJECT(self, "ready");
  post_progress(self, GST_PROGRESS_TYPE_COMPLETE, 100, "Loaded the model");
  return true;
}

// NULL to READY.
static bool start_load(GstMiniCpmoElement* self) {
  Element& impl = impl_of(self);
  bool async_load;
  {
    std::lock_guard lock(impl.settings_mutex);
    async_load = impl.settings.async_load;
  }
  impl.load_cancel.clear();
  publish(impl, LoadState::kLoading, nullptr);
  // As set now: what is set while the loader runs is for the next start.
  const EngineOptions options = engine_options(impl);
  if (!async_load) return load(self, options);
  impl.loader = std::thread([self, options] { load(self, options); });
  return true;
}

// READY to NULL: cancels and joins the loader, drops session and engine.
static bool stop_load(GstMiniCpmoElement* self) {
  Element& impl = impl_of(self);
  if (impl.loader.get_id() == std::this_thread::get_id()) {
    // A bus sync handler sets our state: GStreamer forbids it, and joining ourselves would never
    // end.
    GST_ERROR_OBJECT(self, "state change from the loader's own thread refused");
    return false;
  }
  impl.load_cancel.set();
  if (impl.loader.joinable()) impl.loader.join();
  GstMiniCpmoElementClass* klass = GST_MINICPMO_ELEMENT_GET_CLASS(self);
  if (klass->close_session != nullptr) klass->close_session(self);
  publish(impl, LoadState::kIdle, nullptr);
  return true;
}

// ---- State ------------------------------------------------------------------

// Sets stopped or flushing, and the cancel flag that follows from them.
static void set_interrupted(Element& impl, bool Element::*which, bool value) {
  std::lock_guard lock(impl.state_mutex);
  impl.*which = value;
  if (impl.stopped || impl.flushing) {
    impl.cancel.set();
  } else {
    impl.cancel.clear();
  }
  impl.state_changed.notify_all();
}

static void reset(GstMiniCpmoElement* self, gboolean flushed) {
  const auto reset = GST_MINICPMO_ELEMENT_GET_CLASS(self)->reset;
  if (reset != nullptr) reset(self, flushed);
}

static GstStateChangeReturn change_state(GstElement* element, GstStateChange transition) {
  GstMiniCpmoElement* self = GST_MINICPMO_ELEMENT(element);
  Element& impl = impl_of(self);
  switch (transition) {
    case GST_STATE_CHANGE_NULL_TO_READY:
      if (!start_load(self)) {
        stop_load(self);
        return GST_STATE_CHANGE_FAILURE;
      }
      break;
    case GST_STATE_CHANGE_READY_TO_PAUSED:
      set_interrupted(impl, &Element::flushing, false);
      set_interrupted(impl, &Element::stopped, false);
      break;
    case GST_STATE_CHANGE_PAUSED_TO_READY:
      // Before the parent takes the stream locks: whoever waits or computes under one must let go
      // of it.
      set_interrupted(impl, &Element::stopped, true);
      break;
    case GST_STATE_CHANGE_READY_TO_NULL:
      if (!stop_load(self)) return GST_STATE_CHANGE_FAILURE;
      break;
    default:
      break;
  }
  const GstStateChangeReturn result =
      GST_ELEMENT_CLASS(gst_minicpmo_element_parent_class)->change_state(element, transition);
  if (result == GST_STATE_CHANGE_FAILURE) {
    if (transition == GST_STATE_CHANGE_NULL_TO_READY) stop_load(self);
    if (transition == GST_STATE_CHANGE_READY_TO_PAUSED)
      set_interrupted(impl, &Element::stopped, true);
  }
  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY) reset(self, FALSE);
  return result;
}

static GstStateChangeReturn gst_minicpmo_element_change_state(GstElement* element,
                                                              GstStateChange transition) {
  return minicpmo::guard(element, GST_STATE_CHANGE_FAILURE,
                         [&] { return change_state(element, transition); });
}

// ---- Properties -------------------------------------------------------------

static void gst_minicpmo_element_set_property(GObject* object, guint id, const GValue* value,
                                              GParamSpec* spec) {
  Element& impl = impl_of(GST_MINICPMO_ELEMENT(object));
  std::lock_guard lock(impl.settings_mutex);
  switch (id) {
    case PROP_MODEL:
      if (const gchar* model = g_value_get_string(value)) {
        impl.settings.model = model;
      } else {
        impl.settings.model.reset();
      }
      break;
    case PROP_DEVICE: {
      const gchar* device = g_value_get_string(value);
      impl.settings.device = device != nullptr ? device : "auto";
      break;
    }
    case PROP_PRECISION:
      impl.settings.precision = g_value_get_enum(value);
      break;
    case PROP_ASYNC_LOAD:
      impl.settings.async_load = g_value_get_boolean(value);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

static void gst_minicpmo_element_get_property(GObject* object, guint id, GValue* value,
                                              GParamSpec* spec) {
  Element& impl = impl_of(GST_MINICPMO_ELEMENT(object));
  std::lock_guard lock(impl.settings_mutex);
  switch (id) {
    case PROP_MODEL:
      g_value_set_string(value, impl.settings.model ? impl.settings.model->c_str() : nullptr);
      break;
    case PROP_DEVICE:
      g_value_set_string(value, impl.settings.device.c_str());
      break;
    case PROP_PRECISION:
      g_value_set_enum(value, impl.settings.precision);
      break;
    case PROP_ASYNC_LOAD:
      g_value_set_boolean(value, impl.settings.async_load);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
}

static void install_properties(GObjectClass* object_class) {
  const auto flags = static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                              GST_PARAM_MUTABLE_READY);
  g_object_class_install_property(
      object_class, PROP_MODEL,
      g_param_spec_string("model", "Model",
                          "Directory of the checkpoint, in the published layout of "
                          "openbmb/MiniCPM-o-2_6; none: $MINICPMO_MODEL, or the small checkpoint "
                          "that comes with the project. Read in NULL to READY",
                          nullptr, flags));
  g_object_class_install_property(
      object_class, PROP_DEVICE,
      g_param_spec_string("device", "Device",
                          "Where to compute: auto (the first CUDA device that works, otherwise the "
                          "CPU), cpu, or cuda:N with N >= 0. Read in NULL to READY",
                          "auto", flags));
  g_object_class_install_property(
      object_class, PROP_PRECISION,
      g_param_spec_enum("precision", "Precision",
                        "Number format of weights and arithmetic. Read in NULL to READY",
                        GST_TYPE_MINICPMO_PRECISION, kPrecisionAuto, flags));
  g_object_class_install_property(
      object_class, PROP_ASYNC_LOAD,
      g_param_spec_boolean("async-load", "Async Load",
                           "TRUE: NULL to READY returns at once, and data waits until the model is "
                           "loaded. FALSE: NULL to READY loads the model, and fails if it cannot",
                           TRUE, flags));
}

// ---- Class ------------------------------------------------------------------

static void gst_minicpmo_element_finalize(GObject* object) {
  GstMiniCpmoElement* self = GST_MINICPMO_ELEMENT(object);
  auto* priv =
      static_cast<GstMiniCpmoElementPrivate*>(gst_minicpmo_element_get_instance_private(self));
  if (priv->impl->loader.joinable()) {
    priv->impl->load_cancel.set();
    priv->impl->loader.join();
  }
  delete priv->impl;
  priv->impl = nullptr;
  G_OBJECT_CLASS(gst_minicpmo_element_parent_class)->finalize(object);
}

static void gst_minicpmo_element_class_init(GstMiniCpmoElementClass* klass) {
  auto* object_class = G_OBJECT_CLASS(klass);
  object_class->set_property = gst_minicpmo_element_set_property;
  object_class->get_property = gst_minicpmo_element_get_property;
  object_class->finalize = gst_minicpmo_element_finalize;
  GST_ELEMENT_CLASS(klass)->change_state = GST_DEBUG_FUNCPTR(gst_minicpmo_element_change_state);
  install_properties(object_class);
  gst_minicpmo_span_install_signals(G_TYPE_FROM_CLASS(klass));
  gst_type_mark_as_plugin_api(GST_TYPE_MINICPMO_ELEMENT, static_cast<GstPluginAPIFlags>(0));
  gst_type_mark_as_plugin_api(GST_TYPE_MINICPMO_PRECISION, static_cast<GstPluginAPIFlags>(0));
  gst_type_mark_as_plugin_api(GST_TYPE_MINICPMO_COMPATIBILITY, static_cast<GstPluginAPIFlags>(0));
}

static void gst_minicpmo_element_init(GstMiniCpmoElement* self) {
  auto* priv =
      static_cast<GstMiniCpmoElementPrivate*>(gst_minicpmo_element_get_instance_private(self));
  priv->impl = new Element;
  priv->impl->cancel.set();
}

// ---- For subclasses ---------------------------------------------------------

GstFlowReturn gst_minicpmo_element_wait_ready(GstMiniCpmoElement* self) {
  Element& impl = impl_of(self);
  std::unique_lock lock(impl.state_mutex);
  impl.state_changed.wait(lock, [&impl] {
    return impl.stopped || impl.flushing || impl.load_state != LoadState::kLoading;
  });
  if (impl.stopped || impl.flushing) return GST_FLOW_FLUSHING;
  switch (impl.load_state) {
    case LoadState::kReady:
      return GST_FLOW_OK;
    case LoadState::kFailed:
      return GST_FLOW_ERROR;
    default:
      return GST_FLOW_FLUSHING;
  }
}

gboolean gst_minicpmo_element_wait_until(GstMiniCpmoElement* self,
                                         const std::function<bool()>& done, GstClockTime patience) {
  Element& impl = impl_of(self);
  std::unique_lock lock(impl.state_mutex);
  impl.state_changed.wait_for(lock, std::chrono::nanoseconds(patience),
                              [&] { return impl.stopped || impl.flushing || done(); });
  return !impl.stopped && !impl.flushing;
}

void gst_minicpmo_element_wake(GstMiniCpmoElement* self) {
  Element& impl = impl_of(self);
  // Taken and given back, so that no waiter is between its look at the condition and its sleep.
  { std::lock_guard lock(impl.state_mutex); }
  impl.state_changed.notify_all();
}

const std::shared_ptr<Engine>& gst_minicpmo_element_engine(GstMiniCpmoElement* self) {
  return impl_of(self).engine;
}

const minicpmo::CancelFlag& gst_minicpmo_element_cancel_flag(GstMiniCpmoElement* self) {
  return impl_of(self).cancel;
}

const minicpmo::CancelFlag& gst_minicpmo_element_load_cancel_flag(GstMiniCpmoElement* self) {
  return impl_of(self).load_cancel;
}

void gst_minicpmo_element_set_flushing(GstMiniCpmoElement* self, gboolean flushing) {
  set_interrupted(impl_of(self), &Element::flushing, flushing != FALSE);
}

gboolean gst_minicpmo_element_flush(GstMiniCpmoElement* self, GstPad* srcpad, GstEvent* event) {
  const gboolean starts = GST_EVENT_TYPE(event) == GST_EVENT_FLUSH_START;
  if (!starts) reset(self, TRUE);
  gst_minicpmo_element_set_flushing(self, starts);
  return gst_pad_push_event(srcpad, event);
}

std::shared_ptr<Engine> gst_minicpmo_element_peek_engine(GstMiniCpmoElement* self) {
  Element& impl = impl_of(self);
  std::lock_guard lock(impl.state_mutex);
  return impl.engine;
}

// ---- Errors -----------------------------------------------------------------

GstFlowReturn gst_minicpmo_element_post_error(GstMiniCpmoElement* self, const Error& error) {
  if (error.code == ErrorCode::kCancelled) return GST_FLOW_FLUSHING;
  GST_ERROR_OBJECT(self, "%s (%s)", error.message.c_str(), error.detail.c_str());
  gst_minicpmo_post(GST_ELEMENT(self), GST_MESSAGE_ERROR, error);
  return GST_FLOW_ERROR;
}

void gst_minicpmo_element_post_warning(GstMiniCpmoElement* self, const Error& error) {
  if (error.code == ErrorCode::kCancelled) return;
  GST_WARNING_OBJECT(self, "%s (%s)", error.message.c_str(), error.detail.c_str());
  gst_minicpmo_post(GST_ELEMENT(self), GST_MESSAGE_WARNING, error);
}

// ---- Queries ----------------------------------------------------------------

gboolean gst_minicpmo_element_query_default(GstMiniCpmoElement* self, GstPad* pad,
                                            GstQuery* query) {
  if (GST_QUERY_TYPE(query) == GST_QUERY_CONTEXT) {
    const gchar* type = nullptr;
    gst_query_parse_context_type(query, &type);
    if (g_strcmp0(type, GST_MINICPMO_CONTEXT_TYPE) == 0) {
      minicpmo::ContextPtr context(
          gst_element_get_context(GST_ELEMENT(self), GST_MINICPMO_CONTEXT_TYPE));
      if (context) {
        gst_query_set_context(query, context.get());
        return TRUE;
      }
    }
  }
  return gst_pad_query_default(pad, GST_OBJECT(self), query);
}

gboolean gst_minicpmo_element_pad_query(GstPad* pad, GstObject* parent, GstQuery* query) {
  return gst_minicpmo_element_query_default(GST_MINICPMO_ELEMENT(parent), pad, query);
}

gboolean gst_minicpmo_element_query_latency(GstPad* sinkpad, GstQuery* query, GstClockTime own) {
  if (!gst_pad_peer_query(sinkpad, query)) return FALSE;
  gboolean live = FALSE;
  GstClockTime min = 0;
  GstClockTime max = GST_CLOCK_TIME_NONE;
  gst_query_parse_latency(query, &live, &min, &max);
  if (!live) return TRUE;
  min += own;
  if (GST_CLOCK_TIME_IS_VALID(max)) max += own;
  gst_query_set_latency(query, live, min, max);
  return TRUE;
}

gboolean gst_minicpmo_pad_is_live(GstPad* sinkpad) {
  const minicpmo::QueryPtr query(gst_query_new_latency());
  if (!gst_pad_peer_query(sinkpad, query.get())) return FALSE;
  gboolean live = FALSE;
  gst_query_parse_latency(query.get(), &live, nullptr, nullptr);
  return live;
}
