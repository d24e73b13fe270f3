#include <glib/gstdio.h>

#include <cstdlib>

#include "audioenc/gstminicpmoaudioenc.h"
#include "call.h"
#include "gstminicpmoturnstracer.h"
#include "llm/gstminicpmollm.h"
#include "support/gst_test_main.h"
#include "tts/gstminicpmotts.h"
#include "turn/gstminicpmoturn.h"
#include "vocoder/gstminicpmovocoder.h"

namespace minicpmo::testing {

const std::string& turns_path() {
  static const TemporaryFile file;
  return file.path();
}

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr);
  GST_ELEMENT_REGISTER(minicpmollm, nullptr);
  GST_ELEMENT_REGISTER(minicpmotts, nullptr);
  GST_ELEMENT_REGISTER(minicpmoturn, nullptr);
  GST_ELEMENT_REGISTER(minicpmovocoder, nullptr);
  // More than the other tests need.
  for (const char* name : {"netsim", "rtpmanager", "udp"}) {
    const std::string file = std::string(GST_PLUGINS_DIR) + "/libgst" + name + ".so";
    if (GstPlugin* plugin = gst_plugin_load_file(file.c_str(), nullptr)) gst_object_unref(plugin);
  }
  // As GST_TRACERS would, and until gst_deinit().
  const std::string params = "file=" + turns_path();
  static_cast<void>(
      g_object_new(gst_minicpmo_turns_tracer_get_type(), "params", params.c_str(), nullptr));
}

}  // namespace minicpmo::testing
