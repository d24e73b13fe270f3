// libgstminicpmotracers.so: registers the tracer.
#include "gstminicpmoturnstracer.h"

static gboolean plugin_init(GstPlugin* plugin) {
  return gst_tracer_register(plugin, "minicpmoturns", GST_TYPE_MINICPMO_TURNS_TRACER);
}

GST_PLUGIN_DEFINE(GST_VERSION_MAJOR, GST_VERSION_MINOR, minicpmotracers,
                  "Where the time of a turn goes (MiniCPM-o 2.6)", plugin_init, VERSION, "MIT/X11",
                  PACKAGE, "https://github.com/OpenBMB/MiniCPM-o")
