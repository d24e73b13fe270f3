// main() of the tests of elements: initialises GStreamer with the leaks tracer and a registry of
// its own, registers the elements of the plugin from the objects linked in, runs GoogleTest, and
// fails when gst_deinit() finds a leak. GStreamer's own plugins are taken from $GST_TEST_PLUGINS,
// otherwise from where they were when this was built.
#pragma once

#include <gst/gst.h>

namespace minicpmo::testing {

// Defined by each test program: registers what it needs, with
// GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr) etc.
void register_elements();

}  // namespace minicpmo::testing
