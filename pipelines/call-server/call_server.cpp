// minicpmo-call-server: calls from browsers, answered by the elements. See README.md.
#include <glib-unix.h>
#include <gst/gst.h>

#include <cstdio>

#include "call_pipeline.h"
#include "common/gst_ptr.h"
#include "server.h"
#include "settings.h"

namespace {

using namespace minicpmo;
using namespace minicpmo::call_server;

// Loads the model before the first call, and keeps it: a vocoder's session is the smallest thing
// that holds on to the weights, which all of the process share.
Result<ElementPtr> keep_model(const Settings& settings) {
  const auto make = [&](const char* factory) {
    GstElement* const element = gst_element_factory_make(factory, nullptr);
    if (element == nullptr) return ElementPtr();
    g_object_set(element, "device", settings.device.c_str(), "async-load", FALSE, nullptr);
    if (!settings.model.empty()) g_object_set(element, "model", settings.model.c_str(), nullptr);
    return ElementPtr(GST_ELEMENT(gst_object_ref_sink(element)));
  };
  const auto failed = [](GstElement* element) {
    const BusPtr bus(gst_bus_new());
    gst_element_set_bus(element, bus.get());
    const bool ready = gst_element_set_state(element, GST_STATE_READY) != GST_STATE_CHANGE_FAILURE;
    std::string reason;
    while (GstMessage* const message = gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR)) {
      GError* error = nullptr;
      gst_message_parse_error(message, &error, nullptr);
      if (reason.empty()) reason = error->message;
      g_error_free(error);
      gst_message_unref(message);
    }
    gst_element_set_bus(element, nullptr);
    return ready ? std::string() : reason.empty() ? "the model could not be loaded" : reason;
  };
  ElementPtr all = make("minicpmobin"), keeper = make("minicpmovocoder");
  if (!all || !keeper) {
    return Error{ErrorCode::kLibrary,
                 "GStreamer does not find the plugin minicpmo: set GST_PLUGIN_PATH to its folder",
                 ""};
  }
  std::string reason = failed(all.get());
  if (reason.empty()) reason = failed(keeper.get());
  gst_element_set_state(all.get(), GST_STATE_NULL);
  if (!reason.empty()) {
    gst_element_set_state(keeper.get(), GST_STATE_NULL);
    return Error{ErrorCode::kFailed, reason, ""};
  }
  return keeper;
}

gboolean stop(gpointer data) {
  (*static_cast<std::function<void()>*>(data))();
  return G_SOURCE_CONTINUE;
}

int fail(const Error& error) {
  std::fprintf(stderr, "minicpmo-call-server: %s\n", error.message.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto settings = parse_settings(argc, argv);
  if (!settings.ok()) return fail(settings.error());
  g_message("loading the model");
  const auto keeper = keep_model(*settings);
  if (!keeper.ok()) return fail(keeper.error());
  GMainLoop* const loop = g_main_loop_new(nullptr, FALSE);
  {
    Server server(*settings);
    const auto listening = server.listen();
    if (!listening.ok()) return fail(listening.error());
    std::printf("listening on %s\n", server.url().c_str());
    std::fflush(stdout);
    std::function<void()> drain = [&] {
      g_message("going down: calls that are being answered may finish");
      server.drain([loop] { g_main_loop_quit(loop); });
    };
    const guint term = g_unix_signal_add(SIGTERM, stop, &drain);
    const guint interrupt = g_unix_signal_add(SIGINT, stop, &drain);
    g_main_loop_run(loop);
    g_source_remove(term);
    g_source_remove(interrupt);
  }
  // Clients of WebSockets are told in the main loop.
  while (CallPipeline::stopping() > 0) {
    while (g_main_context_iteration(nullptr, FALSE)) {
    }
    g_usleep(10000);
  }
  gst_element_set_state(keeper->get(), GST_STATE_NULL);
  g_main_loop_unref(loop);
  return 0;
}
