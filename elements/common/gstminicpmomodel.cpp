#include "common/gstminicpmomodel.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "common/gst_ptr.h"

using minicpmo::Backend;
using minicpmo::Engine;
using minicpmo::EngineOptions;
using minicpmo::Error;
using minicpmo::ErrorCode;
using minicpmo::Result;

namespace {

constexpr const gchar* kLibraryName = "libminicpmo-torch.so";
constexpr const gchar* kWhatToDo =
    "Run tools/setup, or install PyPI's torch package and build again; MINICPMO_BACKEND_DIR names "
    "another directory to look in.";

GstDebugCategory* model_category() {
  static GstDebugCategory* const category = [] {
    GstDebugCategory* made = nullptr;
    GST_DEBUG_CATEGORY_INIT(made, "minicpmomodel", 0, "MiniCPM-o: finding and sharing the model");
    return made;
  }();
  return category;
}

GstDebugCategory* backend_category() {
  static GstDebugCategory* const category = [] {
    GstDebugCategory* made = nullptr;
    GST_DEBUG_CATEGORY_INIT(made, "minicpmo-torch", 0, "MiniCPM-o: what the backend says");
    return made;
  }();
  return category;
}

void log_from_backend(minicpmo::LogLevel level, const char* message) {
  switch (level) {
    case minicpmo::LogLevel::kWarning:
      GST_CAT_WARNING(backend_category(), "%s", message);
      break;
    case minicpmo::LogLevel::kInfo:
      GST_CAT_INFO(backend_category(), "%s", message);
      break;
    case minicpmo::LogLevel::kDebug:
      GST_CAT_DEBUG(backend_category(), "%s", message);
      break;
  }
}

std::string join_path(const std::string& directory, const gchar* name) {
  return directory + G_DIR_SEPARATOR_S + name;
}

// The directory of the shared object (or program) that holds this code.
std::string own_directory() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&own_directory), &info) == 0 || info.dli_fname == nullptr)
    return "";
  minicpmo::GCharPtr directory(g_path_get_dirname(info.dli_fname));
  return directory.get();
}

std::vector<std::string> backend_directories() {
  if (const gchar* wanted = g_getenv("MINICPMO_BACKEND_DIR"); wanted != nullptr && *wanted != 0)
    return {wanted};
  std::vector<std::string> directories;
  if (const std::string own = own_directory(); !own.empty()) {
    directories.push_back(own);
    // The plugin is installed in gstreamer-1.0/ below the backend's directory.
    directories.push_back(own + G_DIR_SEPARATOR_S "..");
  }
#ifdef MINICPMO_BACKEND_BUILD_DIR
  directories.push_back(MINICPMO_BACKEND_BUILD_DIR);
#endif
#ifdef MINICPMO_BACKEND_INSTALL_DIR
  directories.push_back(MINICPMO_BACKEND_INSTALL_DIR);
#endif
  return directories;
}

Result<void*> open_library() {
  std::string looked;
  std::string path;
  for (const std::string& directory : backend_directories()) {
    const std::string candidate = join_path(directory, kLibraryName);
    if (g_file_test(candidate.c_str(), G_FILE_TEST_EXISTS)) {
      path = candidate;
      break;
    }
    looked += (looked.empty() ? "" : ", ") + directory;
  }
  if (path.empty()) {
    const gchar* wanted = g_getenv("MINICPMO_BACKEND_DIR");
    if (wanted != nullptr && *wanted != 0) {
      return Error{ErrorCode::kLibrary,
                   std::string("The model's backend library ") + kLibraryName +
                       " is not in MINICPMO_BACKEND_DIR (" + wanted + "). " + kWhatToDo,
                   ""};
    }
    path = kLibraryName;  // left to the loader: LD_LIBRARY_PATH, /etc/ld.so.conf
  }
  GST_CAT_INFO(model_category(), "opening %s", path.c_str());
  // RTLD_NOW: a missing symbol is an error here, not an abort in the middle of a stream.
  // RTLD_LOCAL: torch's symbols stay out of the application's way.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Error{ErrorCode::kLibrary,
                 "Cannot load the model's backend library: " +
                     std::string(reason != nullptr ? reason : path) + ". " + kWhatToDo,
                 looked.empty() ? "" : "not found in " + looked};
  }
  return handle;
}

Result<const Backend*> open_backend() {
  ASSIGN_OR_RETURN(void* handle, open_library());
  // Never closed again: torch does not survive it.
  auto entry = reinterpret_cast<minicpmo::BackendFunction>(dlsym(handle, minicpmo::kBackendSymbol));
  if (entry == nullptr) {
    return Error{ErrorCode::kLibrary,
                 std::string(kLibraryName) + " has no entry point \"" + minicpmo::kBackendSymbol +
                     "\": it is no backend of this plugin. " + kWhatToDo,
                 ""};
  }
  const Backend* backend = entry();
  if (backend == nullptr || backend->version != Backend::kVersion) {
    return Error{ErrorCode::kLibrary,
                 std::string(kLibraryName) + " has version " +
                     std::to_string(backend != nullptr ? backend->version : 0) +
                     " of the interface and the plugin " + std::to_string(Backend::kVersion) +
                     ": build both together.",
                 ""};
  }
  if (backend->set_log != nullptr) backend->set_log(log_from_backend);
  return backend;
}

std::atomic<const Backend*> testing_backend{nullptr};

// What the context carries, as a boxed type, so that a GstStructure can copy and free it.
struct EngineHolder {
  std::shared_ptr<Engine> engine;
  EngineOptions options;
};

GType engine_holder_get_type() {
  static const GType type = g_boxed_type_register_static(
      "GstMiniCpmoEngineHolder",
      [](gpointer p) -> gpointer { return new EngineHolder(*static_cast<EngineHolder*>(p)); },
      [](gpointer p) { delete static_cast<EngineHolder*>(p); });
  return type;
}

bool fits(const EngineHolder& held, const EngineOptions& wanted) {
  const minicpmo::EngineInfo& info = held.engine->info();
  const bool model =
      wanted.model_dir == held.options.model_dir || wanted.model_dir == info.model_dir;
  const bool device = wanted.device == held.options.device || wanted.device == info.device;
  const bool precision =
      wanted.precision == held.options.precision || wanted.precision == info.precision;
  return model && device && precision;
}

std::shared_ptr<Engine> engine_of_element(GstElement* element, const EngineOptions& options) {
  minicpmo::ContextPtr context(gst_element_get_context(element, GST_MINICPMO_CONTEXT_TYPE));
  return context ? gst_minicpmo_context_get_engine(context.get(), options) : nullptr;
}

// Asks the peers of the element's pads on one side.
std::shared_ptr<Engine> engine_of_neighbours(GstElement* element, GstPadDirection direction,
                                             const EngineOptions& options) {
  std::vector<minicpmo::PadPtr> pads;
  GST_OBJECT_LOCK(element);
  for (GList* l = direction == GST_PAD_SRC ? element->srcpads : element->sinkpads; l; l = l->next)
    pads.emplace_back(GST_PAD(gst_object_ref(l->data)));
  GST_OBJECT_UNLOCK(element);
  for (const minicpmo::PadPtr& pad : pads) {
    minicpmo::QueryPtr query(gst_query_new_context(GST_MINICPMO_CONTEXT_TYPE));
    if (!gst_pad_peer_query(pad.get(), query.get())) continue;
    GstContext* context = nullptr;
    gst_query_parse_context(query.get(), &context);
    if (context == nullptr) continue;
    if (auto engine = gst_minicpmo_context_get_engine(context, options)) {
      gst_element_set_context(element, context);
      return engine;
    }
  }
  return nullptr;
}

}  // namespace

Result<const Backend*> gst_minicpmo_backend_get() {
  if (const Backend* testing = testing_backend.load()) return testing;
  static std::mutex open_mutex;  // guards `backend`, and opens the library once
  static const Backend* backend = nullptr;
  std::lock_guard lock(open_mutex);
  if (backend == nullptr) {
    ASSIGN_OR_RETURN(backend, open_backend());
  }
  return backend;
}

void gst_minicpmo_backend_set_for_testing(const Backend* backend) {
  testing_backend.store(backend);
}

const gchar* gst_minicpmo_default_model() {
  if (const gchar* wanted = g_getenv("MINICPMO_MODEL"); wanted != nullptr && *wanted != 0)
    return wanted;
#if defined(MINICPMO_INSTALLED_MODEL) && defined(MINICPMO_DEFAULT_MODEL)
  if (!g_file_test(MINICPMO_INSTALLED_MODEL, G_FILE_TEST_IS_DIR)) return MINICPMO_DEFAULT_MODEL;
  return MINICPMO_INSTALLED_MODEL;
#else
  return "";
#endif
}

GstContext* gst_minicpmo_context_new(const std::shared_ptr<Engine>& engine,
                                     const EngineOptions& options) {
  // Not persistent: the weights go when the elements do, in READY to NULL. An application that
  // wants to keep them holds a reference to the context.
  GstContext* context = gst_context_new(GST_MINICPMO_CONTEXT_TYPE, FALSE);
  EngineHolder holder{engine, options};
  GstStructure* fields = gst_context_writable_structure(context);
  gst_structure_set(fields, "engine", engine_holder_get_type(), &holder, "model", G_TYPE_STRING,
                    engine->info().model_dir.c_str(), "device", G_TYPE_STRING,
                    engine->info().device.c_str(), "precision", G_TYPE_STRING,
                    engine->info().precision.c_str(), nullptr);
  return context;
}

std::shared_ptr<Engine> gst_minicpmo_context_get_engine(GstContext* context,
                                                        const EngineOptions& options) {
  if (!gst_context_has_context_type(context, GST_MINICPMO_CONTEXT_TYPE)) return nullptr;
  const GValue* value = gst_structure_get_value(gst_context_get_structure(context), "engine");
  if (value == nullptr || !G_VALUE_HOLDS(value, engine_holder_get_type())) return nullptr;
  const auto* holder = static_cast<const EngineHolder*>(g_value_get_boxed(value));
  if (holder == nullptr || holder->engine == nullptr || !fits(*holder, options)) return nullptr;
  return holder->engine;
}

Result<std::shared_ptr<Engine>> gst_minicpmo_ensure_engine(GstElement* element,
                                                           const EngineOptions& options) {
  if (auto engine = engine_of_element(element, options)) return engine;
  if (auto engine = engine_of_neighbours(element, GST_PAD_SRC, options)) return engine;
  if (auto engine = engine_of_neighbours(element, GST_PAD_SINK, options)) return engine;
  GstMessage* need = gst_message_new_need_context(GST_OBJECT(element), GST_MINICPMO_CONTEXT_TYPE);
  gst_element_post_message(element, need);
  if (auto engine = engine_of_element(element, options)) return engine;

  ASSIGN_OR_RETURN(const Backend* backend, gst_minicpmo_backend_get());
  ASSIGN_OR_RETURN(auto engine, backend->open_engine(options));
  GST_CAT_INFO_OBJECT(model_category(), element, "opened %s on %s in %s (%s)",
                      engine->info().model_dir.c_str(), engine->info().device.c_str(),
                      engine->info().precision.c_str(), engine->info().notes.c_str());
  GstContext* context = gst_minicpmo_context_new(engine, options);
  gst_element_set_context(element, context);
  gst_element_post_message(element, gst_message_new_have_context(GST_OBJECT(element), context));
  return engine;
}
