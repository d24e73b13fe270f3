// The built plugin, from outside: what gst-inspect-1.0 shows, and what happens without libtorch.
#include <glib.h>
#include <gtest/gtest.h>
#ifdef __SANITIZE_ADDRESS__
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#endif

#include <chrono>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
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
#ifdef __SANITIZE_ADDRESS__
    // The tools are not built with the sanitizer that our plugin needs, and leak a little.
    Dl_info runtime{};
    EXPECT_NE(dladdr(reinterpret_cast<void*>(&__asan_poison_memory_region), &runtime), 0);
    set("LD_PRELOAD", runtime.dli_fname);
    const gchar* options = g_environ_getenv(environment, "ASAN_OPTIONS");
    set("ASAN_OPTIONS", std::string(options != nullptr ? options : "") + ":detect_leaks=0");
#endif
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
        Described{"minicpmobin", "MiniCPM-o", "Bin/Filter/Audio/Text"},
        Described{"minicpmoturn", "MiniCPM-o turn detector", "Filter/Analyzer/Audio"}}) {
    const Outcome outcome = run({"gst-inspect-1.0", element.name});
    EXPECT_EQ(outcome.status, 0) << element.name;
    expect_contains(outcome.text, std::string("Long-name                ") + element.long_name);
    expect_contains(outcome.text, std::string("Klass                    ") + element.klass);
    expect_contains(outcome.text, "Author                   The gst-minicpmo developers");
    expect_contains(outcome.text, "License                  MIT/X11");
    for (const char* part : {"Pad Templates:", "model  "}) expect_contains(outcome.text, part);
    EXPECT_LT(outcome.time.count(), 10.0) << element.name;
  }
}

// What gst-inspect-1.0 says of one element, for looking things up.
class Manual {
 public:
  explicit Manual(const std::string& text) {
    std::istringstream in(text);
    std::string property;
    bool in_properties = false;
    for (std::string line; std::getline(in, line);) {
      if (!line.empty() && line[0] != ' ') in_properties = line == "Element Properties:";
      std::string words = squeezed(line);
      if (words.empty()) continue;
      const size_t colon = words.find(": ");
      if (in_properties && line.rfind("  ", 0) == 0 && line[2] != ' ' &&
          colon != std::string::npos) {
        property = words.substr(0, words.find_first_of(" :"));
        words = words.substr(colon + 2);
      }
      (in_properties && !property.empty() ? properties_[property] : rest_) += words + "\n";
    }
  }
  // Its description, flags, range and default, each a line.
  std::string property(const std::string& name) const {
    const auto found = properties_.find(name);
    return found != properties_.end() ? found->second : "";
  }
  // Those that are not GStreamer's own.
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& [name, text] : properties_) names.insert(name);
    for (const char* inherited : {"name", "parent", "async-handling", "message-forward"})
      names.erase(inherited);
    return names;
  }
  const std::string& rest() const { return rest_; }

 private:
  static std::string squeezed(const std::string& line) {
    std::istringstream words(line);
    std::string out;
    for (std::string word; words >> word;) out += (out.empty() ? "" : " ") + word;
    return out;
  }

  std::map<std::string, std::string> properties_;
  std::string rest_;
};

constexpr const char* kPcm16Lines =
    "audio/x-raw\nformat: F32LE\nrate: 16000\nchannels: 1\nlayout: interleaved\n";
constexpr const char* kPcm24Lines =
    "audio/x-raw\nformat: F32LE\nrate: 24000\nchannels: 1\nlayout: interleaved\n";
constexpr const char* kTextLines = "text/x-raw\nformat: utf8\n";
constexpr const char* kEmbeddingLines =
    "tensor/strided\ntensor-id: minicpmo-audio-embedding\n"
    "type: { (string)float32, (string)bfloat16 }\n"
    "dims: < (int)0, (GstIntRange)[ 1, 2147483647 ] >\ndims-order: row-major\n";
constexpr const char* kSentCodeLines =
    "tensor/strided\ntensor-id: minicpmo-audio-code\ntype: uint16\n"
    "dims: < (int)0, (int)4 >\ndims-order: row-major\n";
constexpr const char* kReadCodeLines =
    "tensor/strided\ntensor-id: minicpmo-audio-code\ntype: { (string)uint16, (string)int32 }\n"
    "dims: < (int)0, (int)4 >\ndims-order: row-major\n";
constexpr const char* kActionLines =
    "Element Actions:\n\"interrupt\" : void user_function (GstElement* object);\n"
    "\"reset-session\" : void user_function (GstElement* object);\n"
    "\"push-text\" : gboolean user_function (GstElement* object,\ngchararray arg0);\n";

std::string pad(const char* direction, const char* name, const char* availability,
                const std::string& caps) {
  return std::string(direction) + " template: '" + name + "'\nAvailability: " + availability +
         "\nCapabilities:\n" + caps;
}

TEST_F(PluginTest, InspectShowsPadsAndActions) {
  const std::vector<std::pair<const char*, std::vector<std::string>>> expected = {
      {"minicpmoaudioenc",
       {pad("SINK", "sink", "Always", kPcm16Lines), pad("SRC", "src", "Always", kEmbeddingLines)}},
      {"minicpmollm",
       {pad("SINK", "sink", "Always", std::string(kEmbeddingLines) + kTextLines),
        pad("SINK", "text_sink", "On request", kTextLines), pad("SRC", "src", "Always", kTextLines),
        kActionLines}},
      {"minicpmotts",
       {pad("SINK", "sink", "Always", kTextLines), pad("SRC", "src", "Always", kSentCodeLines)}},
      {"minicpmovocoder",
       {pad("SINK", "sink", "Always", kReadCodeLines), pad("SRC", "src", "Always", kPcm24Lines)}},
      {"minicpmobin",
       {pad("SINK", "sink", "Always", kPcm16Lines),
        pad("SINK", "text_sink", "On request", kTextLines),
        pad("SRC", "src", "Always", kPcm24Lines), pad("SRC", "text", "On request", kTextLines),
        kActionLines, "Implemented Interfaces:\nGstChildProxy\n"}},
      {"minicpmoturn",
       {pad("SINK", "sink", "Always", kPcm16Lines), pad("SRC", "src", "Always", kPcm16Lines),
        "Element Actions:\n\"start-turn\" : void user_function (GstElement* object);\n"
        "\"end-turn\" : void user_function (GstElement* object);\n"}}};
  for (const auto& [element, parts] : expected) {
    const Manual manual(run({"gst-inspect-1.0", element}).text);
    for (const std::string& part : parts) expect_contains(manual.rest(), part);
  }
}

constexpr const char* kReady = "changeable only in NULL or READY state";
constexpr const char* kPlaying = "changeable in NULL, READY, PAUSED or PLAYING state";

struct DescribedProperty {
  const char* name;
  const char* text;      // part of the description: the unit, or what the values mean
  const char* flags;     // nullptr: read-only
  const char* default_;  // type, range and default
};

const DescribedProperty kProperties[] = {
    {"model", "Directory of the checkpoint", kReady, "String. Default: null"},
    {"device", "cpu, or cuda:N", kReady, "String. Default: \"auto\""},
    {"precision", "Number format of weights", kReady,
     "Enum \"GstMiniCpmoPrecision\" Default: 0, \"auto\""},
    {"async-load", "data waits until the model is loaded", kReady, "Boolean. Default: true"},
    {"compatibility", "upstream", kReady, "Enum \"GstMiniCpmoCompatibility\" Default: 0, \"none\""},
    {"max-turn-duration", "in nanoseconds (0 = no limit)", kPlaying,
     "Unsigned Integer64. Range: 0 - 18446744073709551615 Default: 60000000000"},
    {"temperature", "0 is greedy, -1 as the checkpoint says", kPlaying,
     "Double. Range: -1 - 10 Default: -1"},
    {"speech-temperature", "0 is greedy, -1 as the checkpoint says", kPlaying,
     "Double. Range: -1 - 10 Default: -1"},
    {"top-p", "0 to 1; 1 is off, -1 as the checkpoint says", kPlaying,
     "Double. Range: -1 - 1 Default: -1"},
    {"top-k", "0 is off, -1 as the checkpoint says", kPlaying,
     "Integer. Range: -1 - 2147483647 Default: -1"},
    {"repetition-penalty", "1 is off, -1 as the checkpoint says", kPlaying,
     "Double. Range: -1 - 10 Default: -1"},
    {"seed", "the same seed and", kPlaying,
     "Unsigned Integer64. Range: 0 - 18446744073709551615 Default: 0"},
    {"max-new-tokens", "in tokens", kPlaying, "Integer. Range: 1 - 2147483647 Default: 512"},
    {"context-length", "Positions", kPlaying, "Integer. Range: 64 - 1048576 Default: 8192"},
    {"system-prompt", "at the start of a session", kPlaying,
     "String. Default: \"You are a helpful assistant. You can accept audio and text input and "
     "output voice and text.\""},
    {"voice", "its first 30 s", kPlaying, "String. Default: null"},
    {"timestamp-mode", "timestamps", kReady,
     "Enum \"GstMiniCpmoTimestampMode\" Default: 2, \"auto\""},
    {"resume-false-interruption", "a cough", kPlaying, "Boolean. Default: true"},
    {"headroom", "in nanoseconds", kPlaying,
     "Unsigned Integer64. Range: 0 - 10000000000 Default: 20000000"},
    {"max-message-bytes", "in bytes", kPlaying,
     "Unsigned Integer. Range: 1 - 67108864 Default: 262144"},
    {"speaker", "raw little-endian float32", kPlaying, "String. Default: null"},
    {"max-codes", "code rows of 512 samples (21.3 ms)", kPlaying,
     "Integer. Range: 1 - 1048576 Default: 2048"},
    {"stats", "", nullptr, "Boxed pointer of type \"GstStructure\""},
};

void expect_described(const Manual& manual, const char* element,
                      const DescribedProperty& property) {
  SCOPED_TRACE(std::string(element) + "." + property.name);
  const std::string text = manual.property(property.name);
  const std::string flags =
      property.flags != nullptr ? std::string("readable, writable, ") + property.flags : "readable";
  expect_contains(text, property.text);
  expect_contains(text, "\nflags: " + flags + "\n" + property.default_ + "\n");
}

TEST_F(PluginTest, InspectDescribesEveryProperty) {
  const std::set<std::string> common{"model", "device", "precision", "async-load", "stats"};
  const std::vector<std::pair<const char*, std::set<std::string>>> expected = {
      {"minicpmoaudioenc", {"max-turn-duration"}},
      {"minicpmollm",
       {"temperature", "top-p", "top-k", "repetition-penalty", "seed", "max-new-tokens",
        "context-length", "system-prompt", "voice", "compatibility", "timestamp-mode",
        "resume-false-interruption", "max-message-bytes"}},
      {"minicpmotts", {"speaker", "temperature", "seed", "max-codes", "compatibility"}},
      {"minicpmovocoder", {"compatibility", "headroom"}},
      {"minicpmobin",
       {"temperature", "top-p", "top-k", "repetition-penalty", "seed", "max-new-tokens",
        "context-length", "system-prompt", "voice", "compatibility", "timestamp-mode",
        "resume-false-interruption", "speaker", "speech-temperature", "max-codes", "headroom"}}};
  for (auto [element, names] : expected) {
    names.insert(common.begin(), common.end());
    const Manual manual(run({"gst-inspect-1.0", element}).text);
    EXPECT_EQ(manual.names(), names) << element;
    for (const DescribedProperty& property : kProperties) {
      if (names.count(property.name) != 0) expect_described(manual, element, property);
    }
  }
}

const DescribedProperty kTurnProperties[] = {
    {"model", "silero_vad_16k.safetensors", kReady, "String. Default: null"},
    {"mode", "start-turn and end-turn", kPlaying,
     "Enum \"GstMiniCpmoTurnMode\" Default: 0, \"vad\""},
    {"threshold", "Probability of speech, 0 to 1", kPlaying, "Float. Range: 0 - 1 Default: 0.5"},
    {"release-threshold", "Probability of speech, 0 to 1", kPlaying,
     "Float. Range: 0 - 1 Default: 0.35"},
    {"min-speech", "in milliseconds", kPlaying, "Unsigned Integer. Range: 0 - 10000 Default: 50"},
    {"silence-duration", "in milliseconds", kPlaying,
     "Unsigned Integer. Range: 0 - 60000 Default: 500"},
    {"prefix-padding", "in milliseconds", kPlaying,
     "Unsigned Integer. Range: 0 - 10000 Default: 300"},
    {"max-turn", "in milliseconds (0 = no limit)", kPlaying,
     "Unsigned Integer. Range: 0 - 3600000 Default: 60000"},
    {"min-turn-speech", "in milliseconds", kPlaying,
     "Unsigned Integer. Range: 0 - 60000 Default: 250"},
    {"interrupt-after", "in milliseconds", kPlaying,
     "Unsigned Integer. Range: 0 - 60000 Default: 0"},
    {"speculative-after", "in milliseconds", kPlaying,
     "Unsigned Integer. Range: 0 - 60000 Default: 0"},
    {"barge-in", "interrupts an answer", kPlaying, "Boolean. Default: true"},
    {"stats", "vad-time", nullptr, "Boxed pointer of type \"GstStructure\""},
};

TEST_F(PluginTest, InspectDescribesEveryPropertyOfTheTurnDetector) {
  const Manual manual(run({"gst-inspect-1.0", "minicpmoturn"}).text);
  std::set<std::string> names;
  for (const DescribedProperty& property : kTurnProperties) {
    names.insert(property.name);
    expect_described(manual, "minicpmoturn", property);
  }
  EXPECT_EQ(manual.names(), names);
}

TEST_F(PluginTest, HasSixElementsAndNoMore) {
  const Outcome outcome = run({"gst-inspect-1.0", "minicpmo"});
  EXPECT_EQ(outcome.status, 0);
  expect_contains(outcome.text, "6 features:");
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

// Without preroll: gst-launch-1.0 of 1.22 sometimes hangs when two errors come while it prerolls
// (identity error-after=1 does it, too).
TEST_F(PluginTest, MissingBackendIsAnErrorThatNamesIt) {
  using Words = std::vector<std::string>;
  for (const Words& element :
       {Words{"minicpmoaudioenc", "async-load=true"}, Words{"minicpmoaudioenc", "async-load=false"},
        Words{"minicpmoturn"}}) {
    Words line{"gst-launch-1.0",
               "fakesrc",
               "num-buffers=3",
               "!",
               "audio/x-raw,format=F32LE,rate=16000,channels=1",
               "!"};
    line.insert(line.end(), element.begin(), element.end());
    line.insert(line.end(), {"!", "fakesink", "async=false"});
    const Outcome outcome = run(line);
    EXPECT_NE(outcome.status, 0);
    expect_contains(outcome.text, "libminicpmo-torch.so");
    expect_contains(outcome.text, "/nonexistent");
    expect_contains(outcome.text, "tools/setup");
    EXPECT_LT(outcome.time.count(), 50.0);  // it ended by itself
  }
}

}  // namespace
