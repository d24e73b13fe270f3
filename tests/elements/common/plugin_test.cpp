// The built plugin, from outside: what gst-inspect-1.0 shows, and what happens without libtorch.
#include <glib.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct Outcome {
  int status = -1;
  std::string text;  // standard output and error
  std::chrono::duration<double> time{0};
};

// Runs a GStreamer tool that sees our plugin and the core elements only, and no backend.
class PluginTest : public ::testing::Test {
 protected:
  PluginTest() {
    gchar* made = g_dir_make_tmp("minicpmo-plugin-XXXXXX", nullptr);
    directory_ = made;
    g_free(made);
    fs::create_symlink(fs::path(GST_PLUGINS_DIR) / "libgstcoreelements.so",
                       directory_ / "libgstcoreelements.so");
    fs::create_symlink(PLUGIN, directory_ / "libgstminicpmo.so");
  }
  ~PluginTest() override { fs::remove_all(directory_); }

  Outcome run(std::vector<std::string> arguments) {
    gchar** environment = g_get_environ();
    const auto set = [&](const char* name, const std::string& value) {
      environment = g_environ_setenv(environment, name, value.c_str(), TRUE);
    };
    set("GST_PLUGIN_SYSTEM_PATH_1_0", directory_.string());
    set("GST_PLUGIN_PATH_1_0", "");
    set("GST_REGISTRY_1_0", (directory_ / "registry.bin").string());
    set("MINICPMO_BACKEND_DIR", "/nonexistent");
    set("LC_ALL", "C");
    arguments.insert(arguments.begin(), {"timeout", "60"});
    std::vector<gchar*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    gchar *out = nullptr, *err = nullptr;
    Outcome outcome;
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_TRUE(g_spawn_sync(nullptr, argv.data(), environment, G_SPAWN_SEARCH_PATH, nullptr,
                             nullptr, &out, &err, &outcome.status, nullptr));
    outcome.time = std::chrono::steady_clock::now() - begin;
    outcome.text = std::string(out != nullptr ? out : "") + (err != nullptr ? err : "");
    g_free(out);
    g_free(err);
    g_strfreev(environment);
    return outcome;
  }

  fs::path directory_;
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in:\n" << text;
}

struct Described {
  const char* name;
  const char* long_name;
  const char* klass;
};

TEST_F(PluginTest, InspectDescribesEveryElementWithoutABackend) {
  for (const Described& element :
       {Described{"minicpmoaudioenc", "MiniCPM-o audio encoder", "Encoder/Audio/Converter"},
        Described{"minicpmollm", "MiniCPM-o language model", "Filter/Converter/Text"},
        Described{"minicpmotts", "MiniCPM-o speech model", "Filter/Converter/Text/Audio"},
        Described{"minicpmovocoder", "MiniCPM-o vocoder", "Decoder/Audio/Converter"},
        Described{"minicpmobin", "MiniCPM-o", "Bin/Filter/Audio/Text"}}) {
    const Outcome outcome = run({"gst-inspect-1.0", element.name});
    EXPECT_EQ(outcome.status, 0) << element.name;
    expect_contains(outcome.text, std::string("Long-name                ") + element.long_name);
    expect_contains(outcome.text, std::string("Klass                    ") + element.klass);
    expect_contains(outcome.text, "Author                   The gst-minicpmo developers");
    expect_contains(outcome.text, "License                  MIT/X11");
    for (const char* part : {"Pad Templates:", "model  ", "device  ", "precision  "})
      expect_contains(outcome.text, part);
    EXPECT_LT(outcome.time.count(), 10.0) << element.name;
  }
}

TEST_F(PluginTest, HasFiveElementsAndNoMore) {
  const Outcome outcome = run({"gst-inspect-1.0", "minicpmo"});
  EXPECT_EQ(outcome.status, 0);
  expect_contains(outcome.text, "5 features:");
}

TEST_F(PluginTest, NamesNoTorchLibraryAndNoTorchSymbol) {
  const Outcome libraries = run({"ldd", PLUGIN});
  const Outcome symbols = run({"nm", "-D", "-C", PLUGIN});
  EXPECT_EQ(libraries.status, 0);
  EXPECT_EQ(symbols.status, 0);
  expect_contains(libraries.text, "libgstreamer-1.0");
  expect_contains(symbols.text, "gst_element_register");
  for (const char* torch : {"libtorch", "libc10", "libcuda"})
    EXPECT_EQ(libraries.text.find(torch), std::string::npos) << torch;
  for (const char* torch : {"c10::", "at::", "torch::"})
    EXPECT_EQ(symbols.text.find(std::string(" ") + torch), std::string::npos) << torch;
}

TEST_F(PluginTest, MissingBackendIsAnErrorThatNamesIt) {
  for (const char* async_load : {"true", "false"}) {
    const Outcome outcome =
        run({"gst-launch-1.0", "fakesrc", "num-buffers=3", "!",
             "audio/x-raw,format=F32LE,rate=16000,channels=1", "!", "minicpmoaudioenc",
             std::string("async-load=") + async_load, "!", "fakesink"});
    EXPECT_NE(outcome.status, 0);
    expect_contains(outcome.text, "libminicpmo-torch.so");
    expect_contains(outcome.text, "/nonexistent");
    expect_contains(outcome.text, "tools/setup");
    EXPECT_LT(outcome.time.count(), 50.0);  // it ended by itself
  }
}

}  // namespace
