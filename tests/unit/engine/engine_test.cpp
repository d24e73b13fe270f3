// The engine of the torch backend on the small checkpoint and on damaged copies of it.
#include "backend/engine.h"

#include <gtest/gtest.h>

#include <thread>

#include "backend/cuda_devices.h"
#include "common/stage.h"
#include "test_files.h"

namespace minicpmo {
namespace {

using namespace minicpmo::testing;
namespace fs = std::filesystem;

constexpr Stage kStages[] = {Stage::kAudioEncoder, Stage::kLanguageModel, Stage::kSpeechModel,
                             Stage::kVocoder};

EngineOptions options(const std::string& model, const std::string& device = "cpu",
                      const std::string& precision = "auto") {
  return {model, device, precision};
}

std::shared_ptr<Engine> open_small() {
  auto engine = open_engine(options(MODEL_DIR));
  EXPECT_TRUE(engine.ok()) << engine.error().message;
  return engine.ok() ? *engine : nullptr;
}

// A copy of the small checkpoint to be damaged.
class ModelCopy {
 public:
  ModelCopy() { fs::copy(MODEL_DIR, dir_.path(), fs::copy_options::recursive); }
  const std::string& path() const { return dir_.path(); }
  std::string operator/(const std::string& name) const { return dir_ / name; }
  void replace(const std::string& name, const std::string& from, const std::string& to) {
    std::string text = read_bytes(dir_ / name);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file(dir_ / name, text.replace(at, from.size(), to));
  }

 private:
  TempDir dir_;
};

TEST(OpenEngine, DescribesTheSmallCheckpoint) {
  const auto engine = open_small();
  ASSERT_TRUE(engine);
  const EngineInfo& info = engine->info();
  EXPECT_EQ(info.model_dir, fs::canonical(MODEL_DIR).string());
  EXPECT_EQ(info.device, "cpu");
  EXPECT_EQ(info.precision, "float32");
  EXPECT_NE(info.notes.find("auto"), std::string::npos);
  EXPECT_EQ(info.embedding_type, DataType::kFloat32);
  EXPECT_EQ(info.hidden_size, 256);
  EXPECT_EQ(info.chunk_samples, 16000);
  EXPECT_EQ(info.min_chunk_samples, 321);
  EXPECT_EQ(info.max_chunk_samples, 480000);
  EXPECT_EQ(info.chunk_rows, 25);
}

TEST(OpenEngine, NamesTheDefaultSpeakerIfThereIsOne) {
  const ModelCopy copy;
  fs::remove(copy / "assets/default_speaker.f32");
  EXPECT_EQ((*open_engine(options(copy.path())))->info().default_speaker, "");
  const ModelCopy other;
  write_file(other / "assets/default_speaker.f32", std::string(1024, '\0'));
  EXPECT_EQ((*open_engine(options(other.path())))->info().default_speaker,
            fs::canonical(other.path()).string() + "/assets/default_speaker.f32");
}

TEST(OpenEngine, SharesOneEngineForTheSameOptions) {
  const auto a = open_small();
  EXPECT_EQ(a, open_small());
  EXPECT_EQ(a, *open_engine(options(MODEL_DIR, "cpu", "float32")));
  EXPECT_EQ(a, *open_engine(options(std::string(MODEL_DIR) + "/../model/.")));
  const auto b = *open_engine(options(MODEL_DIR, "cpu", "bfloat16"));
  EXPECT_NE(a, b);
  EXPECT_EQ(b->info().embedding_type, DataType::kBFloat16);
}

TEST(OpenEngine, SharesOneEngineAmongThreads) {
  std::vector<std::shared_ptr<Engine>> engines(8);
  std::vector<std::thread> threads;
  for (auto& engine : engines) threads.emplace_back([&] { engine = open_small(); });
  for (auto& thread : threads) thread.join();
  for (const auto& engine : engines) EXPECT_EQ(engine, engines[0]);
}

TEST(OpenEngine, KeepsNoEngineAlive) {
  std::weak_ptr<Engine> weak;
  {
    const auto engine = open_small();
    weak = engine;
    EXPECT_FALSE(weak.expired());
  }
  EXPECT_TRUE(weak.expired());
  EXPECT_TRUE(open_small());
}

TEST(OpenEngine, RefusesUnknownDevicesAndPrecisions) {
  for (const char* device : {"", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:0x", "cuda0",
                             "mps", "cuda:99999999999"}) {
    EXPECT_TRUE(fails(open_engine(options(MODEL_DIR, device)), ErrorCode::kSettings,
                      {"\"" + std::string(device) + "\"", "auto, cpu, cuda:N"}));
  }
  for (const char* precision : {"", "fp16", "float16", "int8", "Float32"}) {
    EXPECT_TRUE(fails(open_engine(options(MODEL_DIR, "cpu", precision)), ErrorCode::kSettings,
                      {"\"" + std::string(precision) + "\"", "auto, float32, bfloat16"}));
  }
}

bool has_gpu() {
  const auto devices = list_cuda_devices();
  return devices.ok() && !devices->empty();
}

TEST(OpenEngine, WithoutAGpuCudaIsRefusedWithTheReason) {
  if (has_gpu()) GTEST_SKIP() << "this machine has a GPU";
  for (const char* device : {"cuda", "cuda:0", "cuda:7"}) {
    EXPECT_TRUE(fails(open_engine(options(MODEL_DIR, device)), ErrorCode::kNotFound,
                      {"\"" + std::string(device) + "\"", "NVIDIA driver", "set device=cpu"}));
  }
}

TEST(OpenEngine, WithoutAGpuAutoIsTheCpuAndSaysWhy) {
  if (has_gpu()) GTEST_SKIP() << "this machine has a GPU";
  const auto engine = open_engine(options(MODEL_DIR, "auto"));
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  EXPECT_EQ((*engine)->info().device, "cpu");
  EXPECT_EQ((*engine)->info().precision, "float32");
  EXPECT_NE((*engine)->info().notes.find("device=auto is the CPU: "), std::string::npos);
  EXPECT_NE((*engine)->info().notes.find("NVIDIA driver"), std::string::npos);
}

TEST(OpenEngine, SaysWhichFileIsMissing) {
  EXPECT_TRUE(fails(open_engine(options("")), ErrorCode::kSettings, {"model"}));
  EXPECT_TRUE(fails(open_engine(options("/nonexistent/model")), ErrorCode::kNotFound,
                    {"/nonexistent/model"}));
  EXPECT_TRUE(fails(open_engine(options(std::string(MODEL_DIR) + "/config.json")),
                    ErrorCode::kNotFound, {"not a directory"}));
  const TempDir empty;
  EXPECT_TRUE(fails(open_engine(options(empty.path())), ErrorCode::kNotFound, {"config.json"}));
  const ModelCopy copy;
  fs::remove(copy / "model-00002-of-00002.safetensors");
  EXPECT_TRUE(
      fails(open_engine(options(copy.path())), ErrorCode::kNotFound, {"model-00002-of-00002"}));
}

TEST(OpenEngine, RefusesAConfigurationOfOtherWeights) {
  struct Case {
    const char *from, *to, *key;
  };
  for (const Case& c :
       {Case{"\"vocab_size\": 2048", "\"vocab_size\": 2049", "vocab_size"},
        Case{"\"intermediate_size\": 768", "\"intermediate_size\": 512", "intermediate_size"},
        Case{"\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5", "num_hidden_layers"},
        Case{"\"encoder_layers\": 4", "\"encoder_layers\": 3", "encoder_layers"},
        Case{"\"num_text_tokens\": 800", "\"num_text_tokens\": 900", "num_text_tokens"},
        Case{"\"num_vq\": 4", "\"num_vq\": 2", "num_vq"}}) {
    ModelCopy copy;
    copy.replace("config.json", c.from, c.to);
    EXPECT_TRUE(fails(open_engine(options(copy.path())), ErrorCode::kCorrupt, {copy.path(), c.key}))
        << c.to;
  }
}

TEST(OpenEngine, ACorrectedModelOpensAfterAnError) {
  ModelCopy copy;
  copy.replace("config.json", "\"vocab_size\": 2048", "\"vocab_size\": 0");
  EXPECT_FALSE(open_engine(options(copy.path())).ok());
  copy.replace("config.json", "\"vocab_size\": 0", "\"vocab_size\": 2048");
  EXPECT_TRUE(open_engine(options(copy.path())).ok());
}

TEST(LoadStage, SessionsComeOnlyAfterLoading) {
  const auto engine = open_small();
  CancelFlag cancel;
  EXPECT_TRUE(
      fails(engine->new_audio_encoder(), ErrorCode::kFailed, {"audio encoder", "not loaded"}));
  EXPECT_TRUE(fails(engine->new_language_model({}), ErrorCode::kFailed, {"language model"}));
  EXPECT_TRUE(fails(engine->new_speech_model(), ErrorCode::kFailed, {"speech model"}));
  EXPECT_TRUE(fails(engine->new_vocoder({}), ErrorCode::kFailed, {"vocoder"}));
  for (const Stage stage : kStages) {
    const auto result = engine->load(stage, nullptr, cancel);
    ASSERT_TRUE(result.ok()) << result.error().message;
  }
  EXPECT_TRUE(engine->new_audio_encoder().ok());
  EXPECT_TRUE(engine->new_language_model({}).ok());
  EXPECT_TRUE(engine->new_speech_model().ok());
  EXPECT_TRUE(engine->new_vocoder({}).ok());
}

TEST(LoadStage, OnACpuThereIsNoGpuTime) {
  const auto engine = open_small();
  CancelFlag cancel;
  for (const Stage stage : kStages) ASSERT_TRUE(engine->load(stage, nullptr, cancel).ok());
  const auto encoder = *engine->new_audio_encoder();
  const auto language = *engine->new_language_model({});
  ASSERT_TRUE(encoder->step(std::vector<float>(16000, 0.01f), cancel).ok());
  ASSERT_TRUE(language->prefill_text("Hello", cancel).ok());
  ASSERT_TRUE(language->start_answer(cancel).ok());
  ASSERT_TRUE(language->next_burst(cancel).ok());
  EXPECT_EQ(encoder->gpu_nanoseconds(), 0);
  EXPECT_EQ(language->gpu_nanoseconds(), 0);
  EXPECT_EQ(language->gpu_prefill_nanoseconds(), 0);
  EXPECT_EQ((*engine->new_speech_model())->gpu_nanoseconds(), 0);
  EXPECT_EQ((*engine->new_vocoder({}))->gpu_nanoseconds(), 0);
}

TEST(LoadStage, LoadsInBfloat16) {
  const auto engine = *open_engine(options(MODEL_DIR, "cpu", "bfloat16"));
  CancelFlag cancel;
  for (const Stage stage : kStages) ASSERT_TRUE(engine->load(stage, nullptr, cancel).ok());
  auto encoder = engine->new_audio_encoder();
  ASSERT_TRUE(encoder.ok());
  const std::vector<float> pcm(16000, 0.01f);
  const auto rows = (*encoder)->step(pcm, cancel);
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  EXPECT_EQ((*rows)->type(), DataType::kBFloat16);
  EXPECT_EQ((*rows)->dims(), (std::vector<int64_t>{25, 256}));
}

TEST(LoadStage, ReportsProgressOnce) {
  const ModelCopy copy;  // an engine nobody has loaded yet
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  std::vector<int> percents;
  const Progress progress = [&](int percent, const std::string& what) {
    EXPECT_FALSE(what.empty());
    percents.push_back(percent);
  };
  ASSERT_TRUE(engine->load(Stage::kLanguageModel, progress, cancel).ok());
  ASSERT_FALSE(percents.empty());
  EXPECT_TRUE(std::is_sorted(percents.begin(), percents.end()));
  EXPECT_GE(percents.front(), 0);
  EXPECT_LE(percents.back(), 100);
  const size_t before = percents.size();
  ASSERT_TRUE(engine->load(Stage::kLanguageModel, progress, cancel).ok());
  EXPECT_EQ(percents.size(), before);
}

TEST(LoadStage, ACancelledLoadCanBeRepeated) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  cancel.set();
  for (const Stage stage : kStages) {
    EXPECT_TRUE(fails(engine->load(stage, nullptr, cancel), ErrorCode::kCancelled, {}));
  }
  cancel.clear();
  for (const Stage stage : kStages) EXPECT_TRUE(engine->load(stage, nullptr, cancel).ok());
}

TEST(LoadStage, CancellingInTheMiddleStops) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  const auto result = engine->load(
      Stage::kAudioEncoder, [&](int, const std::string&) { cancel.set(); }, cancel);
  EXPECT_TRUE(fails(result, ErrorCode::kCancelled, {}));
  cancel.clear();
  EXPECT_TRUE(engine->load(Stage::kAudioEncoder, nullptr, cancel).ok());
}

TEST(LoadStage, ThreadsLoadEachStageOnce) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  std::atomic<int> reports{0}, loaded{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      CancelFlag cancel;
      bool reported = false;
      const auto progress = [&](int, const std::string&) { reported = true; };
      if (engine->load(kStages[i % 2], progress, cancel).ok()) ++loaded;
      if (reported) ++reports;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(loaded, 8);
  EXPECT_EQ(reports, 2);
}

TEST(LoadStage, AFailedStageNamesItsFileAndCanBeRepeated) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  fs::rename(copy / "tokenizer.json", copy / "away.json");
  EXPECT_TRUE(fails(engine->load(Stage::kLanguageModel, nullptr, cancel), ErrorCode::kNotFound,
                    {"tokenizer.json"}));
  EXPECT_FALSE(engine->new_language_model({}).ok());
  EXPECT_TRUE(engine->load(Stage::kVocoder, nullptr, cancel).ok());  // the others do not care
  fs::rename(copy / "away.json", copy / "tokenizer.json");
  EXPECT_TRUE(engine->load(Stage::kLanguageModel, nullptr, cancel).ok());
}

TEST(LoadStage, RefusesTheTokenizerOfAnotherModel) {
  const ModelCopy copy;
  const std::string speech = "assets/chattts_tokenizer/tokenizer.json";
  const std::string language = read_bytes(copy / "tokenizer.json");
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  fs::copy_file(copy / speech, copy / "tokenizer.json", fs::copy_options::overwrite_existing);
  const auto swapped = engine->load(Stage::kLanguageModel, nullptr, cancel);
  EXPECT_TRUE(fails(swapped, ErrorCode::kCorrupt, {"tokenizer.json"}));
  write_file(copy / speech, language);
  EXPECT_TRUE(
      fails(engine->load(Stage::kSpeechModel, nullptr, cancel), ErrorCode::kCorrupt, {speech}));
}

TEST(LoadStage, RefusesSpeechTokensThatMoved) {
  ModelCopy copy;
  copy.replace("config.json", "\"audio_bos_token_id\": 9", "\"audio_bos_token_id\": 11");
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  EXPECT_TRUE(fails(engine->load(Stage::kSpeechModel, nullptr, cancel), ErrorCode::kCorrupt,
                    {"[Ptts]", "9", "11"}));
}

TEST(LoadStage, AVocoderThatIsAPickleIsToBeConverted) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  fs::rename(copy / "assets/Vocos.safetensors", copy / "away");
  EXPECT_TRUE(fails(engine->load(Stage::kVocoder, nullptr, cancel), ErrorCode::kNotFound,
                    {"Vocos.safetensors"}));
  write_file(copy / "assets/Vocos.pt", "PK\x03\x04");
  EXPECT_TRUE(fails(engine->load(Stage::kVocoder, nullptr, cancel), ErrorCode::kCorrupt,
                    {"Vocos.pt", "convert it to safetensors"}));
  fs::rename(copy / "away", copy / "assets/Vocos.safetensors");
  EXPECT_TRUE(engine->load(Stage::kVocoder, nullptr, cancel).ok());
}

TEST(LoadStage, AssetsMayNotLeadOutOfTheModel) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  fs::remove(copy / "assets/Vocos.safetensors");
  fs::create_symlink(std::string(MODEL_DIR) + "/assets/Vocos.safetensors",
                     copy / "assets/Vocos.safetensors");
  EXPECT_TRUE(fails(engine->load(Stage::kVocoder, nullptr, cancel), ErrorCode::kCorrupt,
                    {"link out of the model"}));
}

TEST(LoadStage, AFileThatShrinksBetweenOpenAndLoadIsAnError) {
  const ModelCopy copy;
  const auto engine = *open_engine(options(copy.path()));
  CancelFlag cancel;
  const std::string shard = copy / "model-00002-of-00002.safetensors";
  ASSERT_EQ(truncate(shard.c_str(), static_cast<off_t>(fs::file_size(shard) / 2)), 0);
  EXPECT_TRUE(fails(engine->load(Stage::kSpeechModel, nullptr, cancel), ErrorCode::kCorrupt,
                    {"model-00002-of-00002", "changed its size"}));
}

TEST(LoadStage, SessionsOutliveTheirEngine) {
  auto engine = open_small();
  CancelFlag cancel;
  ASSERT_TRUE(engine->load(Stage::kAudioEncoder, nullptr, cancel).ok());
  auto encoder = engine->new_audio_encoder();
  ASSERT_TRUE(encoder.ok());
  std::weak_ptr<Engine> weak = engine;
  engine.reset();
  EXPECT_TRUE(weak.expired());
  const std::vector<float> pcm(16000, 0.01f);
  EXPECT_TRUE((*encoder)->step(pcm, cancel).ok());
}

}  // namespace
}  // namespace minicpmo
