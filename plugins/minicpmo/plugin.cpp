// libgstminicpmo.so: registers the elements. Links GStreamer only, so that it is found and scanned
// quickly wherever it is installed; the model's backend is opened when an element leaves NULL.
#include <gst/gst.h>

GST_ELEMENT_REGISTER_DECLARE(minicpmoaudioenc);
GST_ELEMENT_REGISTER_DECLARE(minicpmollm);
GST_ELEMENT_REGISTER_DECLARE(minicpmotts);
GST_ELEMENT_REGISTER_DECLARE(minicpmovocoder);
GST_ELEMENT_REGISTER_DECLARE(minicpmobin);
GST_ELEMENT_REGISTER_DECLARE(minicpmoturn);

static gboolean plugin_init(GstPlugin* plugin) {
  gboolean registered = FALSE;
  registered |= GST_ELEMENT_REGISTER(minicpmoaudioenc, plugin);
  registered |= GST_ELEMENT_REGISTER(minicpmollm, plugin);
  registered |= GST_ELEMENT_REGISTER(minicpmotts, plugin);
  registered |= GST_ELEMENT_REGISTER(minicpmovocoder, plugin);
  registered |= GST_ELEMENT_REGISTER(minicpmobin, plugin);
  registered |= GST_ELEMENT_REGISTER(minicpmoturn, plugin);
  return registered;
}

GST_PLUGIN_DEFINE(GST_VERSION_MAJOR, GST_VERSION_MINOR, minicpmo,
                  "MiniCPM-o 2.6: speech and text in, speech and captions out", plugin_init,
                  VERSION, "MIT/X11", PACKAGE, "https://github.com/OpenBMB/MiniCPM-o")
