#include "support/gst_test_main.h"

#include <gst/check/gstharness.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>

namespace {

std::atomic<bool> leaks_found{false};

// The leaks tracer says what it found with a warning from gst_deinit().
void log_handler(const gchar* domain, GLogLevelFlags level, const gchar* message, gpointer) {
  if (message != nullptr && std::strstr(message, "Leaks detected") != nullptr) leaks_found = true;
  g_log_default_handler(domain, level, message, nullptr);
}

// A directory of our own with links to the few plugins that the tests use: the scan is quick,
// nothing else on the machine can change a result, and two test programs do not share a registry.
std::string make_plugin_directory() {
  gchar* made = g_dir_make_tmp("minicpmo-test-XXXXXX", nullptr);
  if (made == nullptr) return "";
  const std::string directory = made;
  g_free(made);
  const char* set = g_getenv("GST_TEST_PLUGINS");
  const std::filesystem::path source = set != nullptr ? set : GST_PLUGINS_DIR;
  for (const char* name :
       {"coreelements", "coretracers", "wavenc", "wavparse", "audioconvert", "audioresample", "app",
        "playback", "typefindfunctions", "opus", "rtp"}) {
    const std::string file = std::string("libgst") + name + ".so";
    std::error_code error;
    std::filesystem::create_symlink(source / file, std::filesystem::path(directory) / file, error);
  }
  return directory;
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const std::string directory = make_plugin_directory();
  g_setenv("GST_PLUGIN_SYSTEM_PATH_1_0", directory.c_str(), TRUE);
  g_setenv("GST_PLUGIN_PATH_1_0", "", TRUE);
  g_setenv("GST_REGISTRY_1_0", (directory + "/registry.bin").c_str(), TRUE);
  g_setenv("GST_REGISTRY_FORK", "no", TRUE);
  // Tests that start themselves again in a child process (death tests) must not report its leaks as
  // theirs.
  if (g_getenv("GST_TRACERS") == nullptr) g_setenv("GST_TRACERS", "leaks", TRUE);
  const std::string log = directory + "/leaks.log";
  if (g_getenv("GST_DEBUG") == nullptr) {
    g_setenv("GST_DEBUG", "GST_TRACER:7", TRUE);
    g_setenv("GST_DEBUG_FILE", log.c_str(), TRUE);
  }
  g_log_set_always_fatal(
      static_cast<GLogLevelFlags>(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_ERROR));
  g_log_set_default_handler(log_handler, nullptr);

  gst_init(&argc, &argv);
  minicpmo::testing::register_elements();
  int result = RUN_ALL_TESTS();
  gst_deinit();
  if (leaks_found) {
    std::fprintf(stderr, "Leaked objects: see %s\n", log.c_str());
    result = 1;
  } else {
    std::error_code error;
    std::filesystem::remove_all(directory, error);
  }
  return result;
}
