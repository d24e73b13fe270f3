// Checkpoints that are missing, cut short, too long, lying or hostile: every element that needs
// what is broken says so in one message, which names the file, and nothing hangs or crashes.
#include <gtest/gtest.h>

#include "robustness/damaged_model.h"
#include "robustness/robustness.h"

namespace minicpmo::testing {
namespace {

using nlohmann::json;

constexpr const char* kConfig = "config.json";
constexpr const char* kGeneration = "generation_config.json";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";
constexpr const char* kTokens = "tokenizer.json";
constexpr const char* kSpeechTokens = "assets/chattts_tokenizer/tokenizer.json";
constexpr const char* kVocos = "assets/Vocos.safetensors";
constexpr const char* kSpeaker = "assets/default_speaker.f32";
constexpr const char* kNorm = "llm.model.norm.weight";

struct Damage {
  const char* name;
  void (*damage)(DamagedModel&);
  std::vector<std::string> says;
};

void PrintTo(const Damage& damage, std::ostream* out) {
  *out << damage.name;
}

class Checkpoint : public ::testing::TestWithParam<Damage> {};

TEST_P(Checkpoint, IsRefusedWithOneError) {
  DamagedModel model;
  GetParam().damage(model);
  const TemporaryFile question(good_question());
  PipelineRun run(source_of(question, kAudioCaps) + element("minicpmobin", model.path()) +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, GetParam().name));
  expect_one_error(run, GetParam().says);
}

// The first tensor of the file that is a matrix.
json& some_matrix(json& header) {
  for (auto& [name, entry] : header.items())
    if (name != "__metadata__" && entry.at("shape").size() == 2) return entry;
  throw std::runtime_error("no matrix");
}

std::string repeated(const std::string& text, size_t count) {
  std::string all;
  for (size_t i = 0; i < count; ++i) all += text;
  return all;
}

std::string le64(uint64_t value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

using M = DamagedModel;

const Damage kConfigs[] = {
    {"ConfigMissing", [](M& m) { m.remove(kConfig); }, {kConfig, "does not exist"}},
    {"ConfigEmpty", [](M& m) { m.write(kConfig, ""); }, {kConfig}},
    {"ConfigNotJson", [](M& m) { m.write(kConfig, "<html>404</html>"); }, {kConfig}},
    {"ConfigCut", [](M& m) { m.resize(kConfig, 700); }, {kConfig}},
    {"ConfigIsArray", [](M& m) { m.write(kConfig, "[1]"); }, {kConfig, "object"}},
    {"ConfigNested", [](M& m) { m.write(kConfig, repeated("[", 100000)); }, {kConfig}},
    {"ConfigHuge", [](M& m) { m.resize(kConfig, 5ull << 30); }, {kConfig, "limit"}},
    {"ConfigBinary", [](M& m) { m.write(kConfig, std::string(300, '\xff')); }, {kConfig}},
    {"ConfigDirectory", [](M& m) { m.make_directory(kConfig); }, {kConfig, "file"}},
    {"ConfigFifo", [](M& m) { m.make_fifo(kConfig); }, {kConfig, "file"}},
    {"ConfigLinkOut", [](M& m) { m.link_out(kConfig); }, {kConfig, "out of the model directory"}},
    {"ConfigLinkLoop",
     [](M& m) {
       m.remove(kConfig);
       std::filesystem::create_symlink(kConfig, m / kConfig);
     },
     {kConfig}},
    {"KeyMissing",
     [](M& m) { m.edit(kConfig, [](json& j) { j.erase("hidden_size"); }); },
     {kConfig, "hidden_size", "missing"}},
    {"KeyZero", [](M& m) { m.set(kConfig, "/hidden_size", 0); }, {kConfig, "hidden_size", "0"}},
    {"KeyNegative", [](M& m) { m.set(kConfig, "/vocab_size", -5); }, {"vocab_size", "-5"}},
    {"KeyHuge", [](M& m) { m.set(kConfig, "/hidden_size", 1e30); }, {"hidden_size"}},
    {"KeyBigInteger",
     [](M& m) { m.set(kConfig, "/hidden_size", 18446744073709551615ull); },
     {"hidden_size"}},
    {"KeyText", [](M& m) { m.set(kConfig, "/hidden_size", "256"); }, {"hidden_size"}},
    {"KeyFraction", [](M& m) { m.set(kConfig, "/hidden_size", 256.5); }, {"hidden_size"}},
    {"LayersLie",
     [](M& m) { m.set(kConfig, "/num_hidden_layers", 1000); },
     {"num_hidden_layers", "1000"}},
    {"WidthLies", [](M& m) { m.set(kConfig, "/hidden_size", 512); }, {"hidden_size", "512"}},
    {"VocabularyLies", [](M& m) { m.set(kConfig, "/vocab_size", 2047); }, {"vocab_size", "2047"}},
    {"HeadsDoNotDivide",
     [](M& m) { m.set(kConfig, "/num_attention_heads", 7); },
     {"num_attention_heads", "7"}},
    {"HeadsLie",
     [](M& m) { m.set(kConfig, "/num_key_value_heads", 4); },
     {"k_proj", "(128, 256)", "(256, 256)"}},
    {"MelLies", [](M& m) { m.set(kConfig, "/audio_config/num_mel_bins", 128); }, {"num_mel_bins"}},
    {"PoolLies", [](M& m) { m.set(kConfig, "/audio_pool_step", 65); }, {"audio_pool_step"}},
    {"ChunkLies", [](M& m) { m.set(kConfig, "/audio_chunk_length", 1e9); }, {"audio_chunk_length"}},
    {"OtherModel", [](M& m) { m.set(kConfig, "/model_type", "llama"); }, {"model_type", "llama"}},
    {"OtherVersion", [](M& m) { m.set(kConfig, "/version", "3.0"); }, {"version", "3.0"}},
    {"NoAudio",
     [](M& m) { m.edit(kConfig, [](json& j) { j.erase("audio_config"); }); },
     {"audio_config"}},
    {"SpeechIsText", [](M& m) { m.set(kConfig, "/tts_config", "none"); }, {"tts_config"}},
    {"BooksLie", [](M& m) { m.set(kConfig, "/tts_config/num_vq", 3); }, {"num_vq", "3"}},
    {"CodesLie", [](M& m) { m.set(kConfig, "/tts_config/num_audio_tokens", 600); }, {"600"}},
    {"SlotsLie",
     [](M& m) { m.set(kConfig, "/tts_config/streaming_text_reserved_len", 5000); },
     {"max_position_embeddings"}},
    {"GenerationText", [](M& m) { m.set(kGeneration, "/temperature", "hot"); }, {kGeneration}},
    {"GenerationNotJson", [](M& m) { m.write(kGeneration, "{"); }, {kGeneration}},
    {"GenerationFifo", [](M& m) { m.make_fifo(kGeneration); }, {kGeneration}},
};

const Damage kShards[] = {
    {"IndexAndShardsMissing",
     [](M& m) {
       for (const char* file : {kIndex, kShard1, kShard2}) m.remove(file);
     },
     {kIndex, "layout"}},
    {"OnlyPickle",
     [](M& m) {
       for (const char* file : {kIndex, kShard1, kShard2}) m.remove(file);
       m.write("pytorch_model.bin", "\x80\x04.");
     },
     {"pytorch_model.bin", "pickle", "convert"}},
    {"IndexMissing", [](M& m) { m.remove(kIndex); }, {kIndex}},
    {"IndexNotJson", [](M& m) { m.write(kIndex, "version https://git-lfs"); }, {kIndex}},
    {"IndexWithoutMap", [](M& m) { m.write(kIndex, "{}"); }, {kIndex, "weight_map"}},
    {"IndexEmptyMap", [](M& m) { m.write(kIndex, R"({"weight_map":{}})"); }, {kIndex, "empty"}},
    {"IndexNumbers", [](M& m) { m.write(kIndex, R"({"weight_map":{"a":1}})"); }, {kIndex, "\"a\""}},
    {"IndexLeadsOut",
     [](M& m) { m.write(kIndex, R"({"weight_map":{"a":"../../etc/passwd"}})"); },
     {kIndex, "out of the model directory"}},
    {"IndexAbsolute",
     [](M& m) { m.write(kIndex, R"({"weight_map":{"a":"/etc/passwd"}})"); },
     {kIndex}},
    {"IndexDotDot", [](M& m) { m.write(kIndex, R"({"weight_map":{"a":".."}})"); }, {".."}},
    {"IndexLies",
     [](M& m) { m.edit(kIndex, [](json& j) { j["weight_map"]["no.such.tensor"] = kShard1; }); },
     {kIndex, "no.such.tensor"}},
    {"TensorMissing",
     [](M& m) {
       m.edit(kIndex, [](json& j) { j["weight_map"]["renamed"] = j["weight_map"][kNorm]; });
       m.edit(kIndex, [](json& j) { j["weight_map"].erase(kNorm); });
       for (const char* shard : {kShard1, kShard2}) {
         m.edit_header(shard, [](json& h) {
           if (!h.contains(kNorm)) return;
           h["renamed"] = h[kNorm];
           h.erase(kNorm);
         });
       }
     },
     {kNorm, "no tensor"}},
    {"ShardMissing", [](M& m) { m.remove(kShard2); }, {kShard2, "does not exist"}},
    {"ShardEmpty", [](M& m) { m.resize(kShard2, 0); }, {kShard2, "0 bytes"}},
    {"ShardOfFourBytes", [](M& m) { m.resize(kShard2, 4); }, {kShard2, "4 bytes"}},
    {"ShardOfEightBytes", [](M& m) { m.resize(kShard2, 8); }, {kShard2, "cut short"}},
    {"ShardHalfHeader", [](M& m) { m.resize(kShard2, 900); }, {kShard2, "cut short"}},
    {"ShardHalf", [](M& m) { m.resize(kShard1, 8000000); }, {kShard1, "cut short"}},
    {"ShardOneByteLess",
     [](M& m) { m.resize(kShard2, std::filesystem::file_size(m / kShard2) - 1); },
     {kShard2, "cut short"}},
    {"ShardOneByteMore",
     [](M& m) { m.resize(kShard2, std::filesystem::file_size(m / kShard2) + 1); },
     {kShard2, "1 bytes follow"}},
    {"ShardOversized", [](M& m) { m.resize(kShard2, 1ull << 40); }, {kShard2, "follow"}},
    {"ShardIsPointerFile",
     [](M& m) { m.write(kShard1, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"); },
     {kShard1, "Git LFS", "git lfs pull"}},
    {"HeaderSizeAll", [](M& m) { m.patch(kShard1, 0, le64(~0ull)); }, {kShard1, "header size"}},
    {"HeaderSizeSign", [](M& m) { m.patch(kShard1, 0, le64(1ull << 63)); }, {"header size"}},
    {"HeaderSizeZero", [](M& m) { m.patch(kShard1, 0, le64(0)); }, {kShard1}},
    {"HeaderSizeShort", [](M& m) { m.patch(kShard1, 0, le64(100)); }, {kShard1}},
    {"HeaderNotJson", [](M& m) { m.patch(kShard1, 8, std::string(40, '\0')); }, {kShard1}},
    {"HeaderNested", [](M& m) { m.patch(kShard1, 8, repeated("[", 3000)); }, {kShard1}},
    {"WrongDtype",
     [](M& m) { m.edit_header(kShard1, [](json& h) { some_matrix(h)["dtype"] = "I16"; }); },
     {kShard1, "dtype"}},
    {"UnknownDtype",
     [](M& m) { m.edit_header(kShard1, [](json& h) { some_matrix(h)["dtype"] = "F3"; }); },
     {kShard1, "F3"}},
    {"DtypeLies",
     [](M& m) { m.edit_header(kShard1, [](json& h) { some_matrix(h)["dtype"] = "F64"; }); },
     {kShard1}},
    {"ShapeSwapped",
     [](M& m) {
       m.edit_header(kShard1, [](json& h) {
         auto& entry = h["llm.model.layers.0.mlp.down_proj.weight"];
         std::swap(entry["shape"][0], entry["shape"][1]);
       });
     },
     {"down_proj", "shape", "expected"}},
    {"ShapeNegative",
     [](M& m) { m.edit_header(kShard1, [](json& h) { some_matrix(h)["shape"][0] = -1; }); },
     {kShard1}},
    {"ShapeOverflows",
     [](M& m) {
       m.edit_header(kShard1, [](json& h) {
         some_matrix(h)["shape"] = {1ull << 32, 1ull << 32, 16};
       });
     },
     {kShard1}},
    {"OffsetsBeyond",
     [](M& m) {
       m.edit_header(kShard1, [](json& h) { some_matrix(h)["data_offsets"][1] = 1ull << 50; });
     },
     {kShard1}},
    {"OffsetsBackwards",
     [](M& m) { m.edit_header(kShard1, [](json& h) {
                  some_matrix(h)["data_offsets"] = {9, 1};
                }); },
     {kShard1}},
    {"NotFinite",
     [](M& m) {
       m.patch(kShard1, std::filesystem::file_size(m / kShard1) - 16, std::string(16, '\xff'));
     },
     {kShard1, "not finite"}},
    {"ShardDirectory", [](M& m) { m.make_directory(kShard2); }, {kShard2, "file"}},
    {"ShardFifo", [](M& m) { m.make_fifo(kShard2); }, {kShard2, "file"}},
    {"ShardLinkOut", [](M& m) { m.link_out(kShard2); }, {kShard2, "out of the model directory"}},
};

const Damage kAssets[] = {
    {"TokensMissing", [](M& m) { m.remove(kTokens); }, {kTokens, "does not exist"}},
    {"TokensEmpty", [](M& m) { m.write(kTokens, ""); }, {kTokens}},
    {"TokensCut", [](M& m) { m.resize(kTokens, 60000); }, {kTokens}},
    {"TokensNoModel", [](M& m) { m.write(kTokens, "{}"); }, {kTokens, "model"}},
    {"TokensNoVocabulary", [](M& m) { m.set(kTokens, "/model/vocab", 3); }, {kTokens, "vocab"}},
    {"TokensTwice",
     [](M& m) {
       m.edit(kTokens, [](json& j) {
         for (auto& [token, id] : j["model"]["vocab"].items()) id = 7;
       });
     },
     {kTokens}},
    {"TokensNegative",
     [](M& m) { m.edit(kTokens, [](json& j) { *j["model"]["vocab"].begin() = -1; }); },
     {kTokens}},
    {"TokensHugeId",
     [](M& m) { m.edit(kTokens, [](json& j) { *j["model"]["vocab"].begin() = 2000000000; }); },
     {kTokens}},
    {"TokensNoSpecials",
     [](M& m) { m.set(kTokens, "/added_tokens", json::array()); },
     {kTokens, "<|im_start|>"}},
    {"TokensFifo", [](M& m) { m.make_fifo(kTokens); }, {kTokens}},
    {"SpeechTokensMissing", [](M& m) { m.remove(kSpeechTokens); }, {kSpeechTokens}},
    {"SpeechTokensEmpty", [](M& m) { m.write(kSpeechTokens, "{}"); }, {kSpeechTokens}},
    {"SpeechTokensOther",
     [](M& m) { m.write(kSpeechTokens, m.read(kTokens)); },
     {kSpeechTokens, "WordPiece"}},
    {"VocosMissing", [](M& m) { m.remove(kVocos); }, {kVocos, "does not exist"}},
    {"VocosPickle",
     [](M& m) { std::filesystem::rename(m / kVocos, m / "assets/Vocos.pt"); },
     {"Vocos.pt", "pickle", "convert", kVocos}},
    {"VocosIsPickle", [](M& m) { m.patch(kVocos, 0, "PK\x03\x04\x14\x14\x14\x14"); }, {"pickle"}},
    {"VocosCut", [](M& m) { m.resize(kVocos, 1000000); }, {kVocos, "cut short"}},
    {"VocosShape",
     [](M& m) {
       m.edit_header(kVocos, [](json& h) {
         auto& entry = h["backbone.embed.weight"];
         std::swap(entry["shape"][0], entry["shape"][1]);
       });
     },
     {kVocos, "backbone.embed.weight", "shape"}},
};

const auto kNames = [](const ::testing::TestParamInfo<Damage>& info) {
  return std::string(info.param.name);
};
INSTANTIATE_TEST_SUITE_P(Config, Checkpoint, ::testing::ValuesIn(kConfigs), kNames);
INSTANTIATE_TEST_SUITE_P(Shards, Checkpoint, ::testing::ValuesIn(kShards), kNames);
INSTANTIATE_TEST_SUITE_P(Assets, Checkpoint, ::testing::ValuesIn(kAssets), kNames);

// ---- The voice is read when something is to be said

class Speaker : public ::testing::TestWithParam<Damage> {};

TEST_P(Speaker, IsRefusedWithOneError) {
  DamagedModel model;
  GetParam().damage(model);
  const TemporaryFile text("Hello.");
  PipelineRun run(source_of(text, kTextCaps) + element("minicpmotts", model.path()) +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, GetParam().name));
  expect_one_error(run, GetParam().says);
}

const Damage kSpeakers[] = {
    {"SpeakerMissing", [](M& m) { m.remove(kSpeaker); }, {"speaker", "256"}},
    {"SpeakerEmpty", [](M& m) { m.resize(kSpeaker, 0); }, {kSpeaker, "0 bytes", "1024"}},
    {"SpeakerShort", [](M& m) { m.resize(kSpeaker, 1020); }, {kSpeaker, "1020", "1024"}},
    {"SpeakerLong", [](M& m) { m.resize(kSpeaker, 1ull << 40); }, {kSpeaker, "1024"}},
    {"SpeakerNotFinite",
     [](M& m) { m.patch(kSpeaker, 0, std::string(4, '\xff')); },
     {kSpeaker, "not finite"}},
    {"SpeakerDirectory", [](M& m) { m.make_directory(kSpeaker); }, {kSpeaker, "not a file"}},
    {"SpeakerFifo", [](M& m) { m.make_fifo(kSpeaker); }, {kSpeaker, "not a file"}},
};
INSTANTIATE_TEST_SUITE_P(Voice, Speaker, ::testing::ValuesIn(kSpeakers), kNames);

// Not needed when the language model sends its speaker along.
TEST(Checkpoints, WorkWithoutADefaultSpeaker) {
  DamagedModel model;
  model.remove(kSpeaker);
  const TemporaryFile question(good_question());
  PipelineRun run(source_of(question, kAudioCaps) + element("minicpmobin", model.path()) +
                  " ! fakesink async=false");
  ASSERT_TRUE(play(run, "NoDefaultSpeaker")) << run.first_error();
  EXPECT_EQ(run.answers, std::vector<std::string>{kCapital});
}

// ---- Settings

struct Setting {
  const char* name;
  std::string properties;
  std::vector<std::string> says;
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

class Settings : public ::testing::TestWithParam<Setting> {};

TEST_P(Settings, AreRefusedWithOneError) {
  const TemporaryFile question(good_question());
  PipelineRun run(source_of(question, kAudioCaps) + "minicpmobin " + GetParam().properties +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, GetParam().name));
  expect_one_error(run, GetParam().says);
}

#define REAL_MODEL " model=" MODEL_DIR
const Setting kSettings[] = {
    {"ModelMissing", "model=/no/such/directory", {"/no/such/directory", "does not exist"}},
    {"ModelIsFile", "model=" MODEL_DIR "/config.json", {"config.json", "directory"}},
    {"ModelEmptyDirectory", "model=/proc/self/fdinfo", {"config.json"}},
    {"ModelIsDevice", "model=/dev/null", {"/dev/null", "directory"}},
    {"DeviceUnknown", "device=tpu" REAL_MODEL, {"\"tpu\"", "auto, cpu, cuda:N"}},
    {"DeviceEmpty", "device=\"\"" REAL_MODEL, {"device", "auto, cpu, cuda:N"}},
    {"DeviceNegative", "device=cuda:-1" REAL_MODEL, {"cuda:-1"}},
    {"DeviceOverflow", "device=cuda:99999999999" REAL_MODEL, {"cuda:99999999999"}},
    {"DeviceCuda", "device=cuda:0" REAL_MODEL, {"cuda:0", "set device=cpu"}},
    {"DeviceCudaMany", "device=cuda:77" REAL_MODEL, {"cuda:77", "set device=cpu"}},
};
INSTANTIATE_TEST_SUITE_P(Element, Settings, ::testing::ValuesIn(kSettings),
                         [](const auto& info) { return std::string(info.param.name); });

// gst_parse_launch() itself says so, as it does for every enum.
TEST(SettingsOfEnums, UnknownPrecisionIsRefused) {
  GError* error = nullptr;
  const ElementPtr made(gst_parse_launch("minicpmollm precision=float8", &error));
  ASSERT_NE(error, nullptr);
  EXPECT_NE(std::string(error->message).find("precision"), std::string::npos) << error->message;
  printf("| PrecisionUnknown | error | %s |\n", error->message);
  g_error_free(error);
}

}  // namespace
}  // namespace minicpmo::testing
