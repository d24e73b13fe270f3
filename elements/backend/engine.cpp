#include "backend/engine.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "audioenc/audio_encoder.h"
#include "backend/device.h"
#include "backend/log.h"
#include "backend/model_check.h"
#include "backend/rehearsal.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/paths.h"
#include "engine/stage_scope.h"
#include "engine/tokenizer.h"
#include "llm/language_model.h"
#include "tts/speech_model.h"
#include "vocoder/vocoder.h"

namespace minicpmo {
namespace {

constexpr const char* kLanguageTokenizer = "tokenizer.json";
constexpr const char* kSpeechTokenizer = "assets/chattts_tokenizer/tokenizer.json";
constexpr const char* kVocos = "assets/Vocos.safetensors";
constexpr const char* kVocosPickle = "assets/Vocos.pt";
constexpr const char* kDefaultSpeaker = "assets/default_speaker.f32";
constexpr int64_t kSampleRate = 16000;
constexpr int64_t kMelHop = 160;

// The weights of one stage: loaded at most once at a time, and again after a failure.
template <class Weights>
class Slot {
 public:
  std::shared_ptr<const Weights> get() const {
    std::lock_guard lock(value_mutex_);
    return value_;
  }

  // A second caller waits for the first, and takes over if that one fails.
  template <class Load>
  Result<void> load(Load&& load, const CancelFlag& cancel) {
    std::unique_lock lock(load_mutex_, std::defer_lock);
    while (!lock.try_lock_for(std::chrono::milliseconds(20))) {
      if (cancel.is_set()) return Error{ErrorCode::kCancelled, "loading was stopped"};
    }
    if (get()) return {};
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "loading was stopped"};
    ASSIGN_OR_RETURN(std::shared_ptr<const Weights> weights, load());
    std::lock_guard value_lock(value_mutex_);
    value_ = std::move(weights);
    return {};
  }

 private:
  std::timed_mutex load_mutex_;
  mutable std::mutex value_mutex_;
  std::shared_ptr<const Weights> value_;
};

class TorchEngine final : public Engine {
 public:
  static Result<std::shared_ptr<TorchEngine>> open(const std::string& directory,
                                                   const DeviceChoice& choice);

  const EngineInfo& info() const override { return info_; }
  Result<void> load(Stage stage, const Progress& progress, const CancelFlag& cancel) override;
  Result<std::unique_ptr<AudioEncoder>> new_audio_encoder() override;
  Result<std::unique_ptr<LanguageModel>> new_language_model(
      const LanguageModelOptions& options) override;
  Result<std::unique_ptr<SpeechModel>> new_speech_model() override;
  Result<std::unique_ptr<Vocoder>> new_vocoder(const VocoderOptions& options) override;
  int threads() const { return threads_; }

 private:
  using Tokenizers = Result<std::shared_ptr<const Tokenizer>>;
  Tokenizers language_tokenizer() const;
  Tokenizers speech_tokenizer() const;
  Result<std::shared_ptr<Checkpoint>> open_vocos() const;
  void fill_info(const DeviceChoice& choice);
  Result<void> read(Stage stage, const Progress& tell, const CancelFlag& cancel);
  void log_speed(Stage stage, int64_t bytes, std::chrono::duration<double> time) const;

  EngineInfo info_;
  ModelConfig config_;
  StageDevice device_;
  int threads_ = 1;
  std::shared_ptr<Checkpoint> checkpoint_;
  Slot<AudioEncoderModel> audio_;
  Slot<LanguageModelWeights> language_;
  Slot<SpeechModelWeights> speech_;
  Slot<VocoderModel> vocoder_;
};

// The matrices of a small model fit into the caches of one core, and handing parts of them to other
// cores takes longer than the sums. Large ones are limited by what all cores together read from
// memory.
int threads_for(const ModelConfig& config) {
  constexpr int64_t kSmall = 1024;
  const int64_t width = std::max(config.language.hidden_size, config.audio.hidden_size);
  return width < kSmall ? 1 : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Gives back what torch keeps free.
void empty_caches(const StageDevice& device) {
  std::unique_lock<std::mutex> lock;
  if (device.runners != nullptr) lock = std::unique_lock(device.runners->capture_mutex());
  c10::getDeviceAllocator(device.device.type())->emptyCache();
  at::getHostAllocator(device.device.type())->empty_cache();
}

// Waits for the weights and gives back what loading used beside them: a runner allocates outside
// torch's caches.
Result<void> finish_load(const StageDevice& device) {
  if (!device.is_cuda()) return {};
  const c10::impl::VirtualGuardImpl guard(device.device.type());
  guard.getStream(device.device).synchronize();
  empty_caches(device);
  return {};
}

const char* name_of(Stage stage) {
  switch (stage) {
    case Stage::kAudioEncoder:
      return "audio encoder";
    case Stage::kLanguageModel:
      return "language model";
    case Stage::kSpeechModel:
      return "speech model";
    case Stage::kVocoder:
      return "vocoder";
  }
  return "unknown stage";
}

// A runner takes its memory from the driver, which knows nothing of what torch keeps free: if it
// runs out, torch gives that back and it tries again.
template <class Make>
auto make_session(const char* what, const StageDevice& device, Make&& make) -> decltype(make()) {
  auto session = run_stage(what, make);
  if (session.ok() || !device.is_cuda() || session.error().code != ErrorCode::kNoSpace) {
    return session;
  }
  return run_stage(what, [&]() -> decltype(make()) {
    empty_caches(device);
    return make();
  });
}

Error not_loaded(const char* stage) {
  return Error{ErrorCode::kFailed, std::string("the ") + stage + " is not loaded",
               "Engine::load has to come first"};
}

Result<std::shared_ptr<TorchEngine>> TorchEngine::open(const std::string& directory,
                                                       const DeviceChoice& choice) {
  auto engine = std::make_shared<TorchEngine>();
  engine->info_.model_dir = directory;
  ASSIGN_OR_RETURN(engine->config_, read_config(directory));
  ASSIGN_OR_RETURN(engine->checkpoint_, Checkpoint::open(directory));
  RETURN_IF_ERROR(check_shapes(*engine->checkpoint_, engine->config_));
  engine->fill_info(choice);
  return engine;
}

void TorchEngine::fill_info(const DeviceChoice& choice) {
  device_ = choice.stage;
  threads_ = threads_for(config_);
  const AudioConfig& audio = config_.audio;
  info_.device = choice.device;
  info_.precision = choice.precision;
  info_.notes = choice.notes + "; threads per operation: " + std::to_string(threads_);
  info_.embedding_type = device_.type == at::kFloat ? DataType::kFloat32 : DataType::kBFloat16;
  info_.hidden_size = config_.language.hidden_size;
  info_.chunk_samples = std::llround(audio.chunk_seconds * static_cast<double>(kSampleRate));
  // The second convolution halves the mel frames, the pooling divides by pool_step and drops the
  // rest.
  const int64_t frames = (info_.chunk_samples + kMelHop - 1) / kMelHop;
  info_.chunk_rows = (frames + 1) / 2 / audio.pool_step;
  info_.min_chunk_samples = 2 * (audio.pool_step - 1) * kMelHop + 1;
  info_.max_chunk_samples = AudioEncoderModel::max_samples(audio);
  const auto speaker = resolve_inside(info_.model_dir, kDefaultSpeaker);
  if (speaker.ok()) info_.default_speaker = *speaker;
}

TorchEngine::Tokenizers TorchEngine::language_tokenizer() const {
  ASSIGN_OR_RETURN(const std::string path, resolve_inside(info_.model_dir, kLanguageTokenizer));
  ASSIGN_OR_RETURN(auto tokenizer, load_bpe_tokenizer(path));
  RETURN_IF_ERROR(check_language_tokenizer(*tokenizer, config_, path));
  return tokenizer;
}

TorchEngine::Tokenizers TorchEngine::speech_tokenizer() const {
  ASSIGN_OR_RETURN(const std::string path, resolve_inside(info_.model_dir, kSpeechTokenizer));
  ASSIGN_OR_RETURN(auto tokenizer, load_wordpiece_tokenizer(path));
  RETURN_IF_ERROR(check_speech_tokenizer(*tokenizer, config_, path));
  return tokenizer;
}

Result<std::shared_ptr<Checkpoint>> TorchEngine::open_vocos() const {
  const auto path = resolve_inside(info_.model_dir, kVocos);
  if (path.ok()) return Checkpoint::open_file(*path);
  if (path.error().code == ErrorCode::kNotFound &&
      resolve_inside(info_.model_dir, kVocosPickle).ok()) {
    return Error{ErrorCode::kCorrupt,
                 info_.model_dir + "/" + kVocosPickle +
                     ": a pickle, which can run code when it is read; convert it to safetensors "
                     "first, as " +
                     kVocos};
  }
  return path.error();
}

Result<void> TorchEngine::load(Stage stage, const Progress& progress, const CancelFlag& cancel) {
  const auto tell = [&](int percent, const std::string& what) {
    if (progress) progress(percent, what);
  };
  const int64_t before = Checkpoint::bytes_read();
  const auto start = std::chrono::steady_clock::now();
  auto result = run_stage("loading the model", [&] { return read(stage, tell, cancel); });
  const Result<void> finished =
      run_stage("loading the model", [&] { return finish_load(device_); });
  const int64_t bytes = Checkpoint::bytes_read() - before;
  if (result.ok() && bytes > 0) log_speed(stage, bytes, std::chrono::steady_clock::now() - start);
  return result.ok() ? finished : result;
}

void TorchEngine::log_speed(Stage stage, int64_t bytes, std::chrono::duration<double> time) const {
  char line[200];
  const double gb = static_cast<double>(bytes) / 1e9;
  std::snprintf(line, sizeof line, "%s: %.2f GB read to %s in %.2f s, %.2f GB/s", name_of(stage),
                gb, info_.device.c_str(), time.count(), gb / time.count());
  log_line(LogLevel::kInfo, line);
}

Result<void> TorchEngine::read(Stage stage, const Progress& tell, const CancelFlag& cancel) {
  switch (stage) {
    case Stage::kAudioEncoder:
      return audio_.load(
          [&] { return load_audio_encoder(*checkpoint_, config_, device_, tell, cancel); }, cancel);
    case Stage::kLanguageModel:
      return language_.load(
          [&]() -> Result<std::shared_ptr<const LanguageModelWeights>> {
            ASSIGN_OR_RETURN(const auto tokenizer, language_tokenizer());
            return load_language_model(*checkpoint_, config_, tokenizer, device_, tell, cancel);
          },
          cancel);
    case Stage::kSpeechModel:
      return speech_.load(
          [&]() -> Result<std::shared_ptr<const SpeechModelWeights>> {
            ASSIGN_OR_RETURN(const auto tokenizer, speech_tokenizer());
            return load_speech_model(*checkpoint_, config_, tokenizer, device_, tell, cancel);
          },
          cancel);
    case Stage::kVocoder:
      return vocoder_.load(
          [&]() -> Result<std::shared_ptr<const VocoderModel>> {
            ASSIGN_OR_RETURN(const auto vocos, open_vocos());
            return load_vocoder(*checkpoint_, *vocos, config_, device_, tell, cancel);
          },
          cancel);
  }
  return Error{ErrorCode::kSettings, "unknown stage"};
}

Result<std::unique_ptr<AudioEncoder>> TorchEngine::new_audio_encoder() {
  auto weights = audio_.get();
  if (!weights) return not_loaded("audio encoder");
  return make_session("audio encoder", device_, [&]() -> Result<std::unique_ptr<AudioEncoder>> {
    ASSIGN_OR_RETURN(auto session, minicpmo::new_audio_encoder(weights));
    if (device_.is_cuda()) RETURN_IF_ERROR(rehearse(*session, info_));
    return session;
  });
}

Result<std::unique_ptr<LanguageModel>> TorchEngine::new_language_model(
    const LanguageModelOptions& options) {
  auto weights = language_.get();
  if (!weights) return not_loaded("language model");
  return make_session("language model", device_, [&]() -> Result<std::unique_ptr<LanguageModel>> {
    ASSIGN_OR_RETURN(auto session, minicpmo::new_language_model(weights, options));
    if (device_.is_cuda()) RETURN_IF_ERROR(rehearse(*session, info_));
    return session;
  });
}

Result<std::unique_ptr<SpeechModel>> TorchEngine::new_speech_model() {
  auto weights = speech_.get();
  if (!weights) return not_loaded("speech model");
  return make_session("speech model", device_, [&]() -> Result<std::unique_ptr<SpeechModel>> {
    auto session = minicpmo::new_speech_model(weights);
    if (device_.is_cuda()) RETURN_IF_ERROR(rehearse(*session, info_));
    return session;
  });
}

Result<std::unique_ptr<Vocoder>> TorchEngine::new_vocoder(const VocoderOptions& options) {
  auto weights = vocoder_.get();
  if (!weights) return not_loaded("vocoder");
  return make_session("vocoder", device_, [&]() -> Result<std::unique_ptr<Vocoder>> {
    ASSIGN_OR_RETURN(auto session, minicpmo::new_vocoder(weights, options));
    if (device_.is_cuda()) RETURN_IF_ERROR(rehearse(*session));
    return session;
  });
}

// Directory, device, precision; whether runners are used, and with graphs.
using Key = std::tuple<std::string, std::string, std::string, bool, bool>;

struct EngineCache {
  std::mutex mutex;
  std::map<Key, std::weak_ptr<TorchEngine>> engines;
};

// Never destroyed: streaming threads may outlive static objects.
EngineCache& engine_cache() {
  static auto* cache = new EngineCache;
  return *cache;
}

Result<std::shared_ptr<Engine>> open_cached(const EngineOptions& options) {
  if (options.model_dir.empty()) {
    return Error{ErrorCode::kSettings, "no model: set the property \"model\" to a model directory"};
  }
  ASSIGN_OR_RETURN(const DeviceChoice choice, choose_device(options.device, options.precision));
  ASSIGN_OR_RETURN(const std::string directory, resolve_directory(options.model_dir));
  EngineCache& cache = engine_cache();
  std::lock_guard lock(cache.mutex);
  std::erase_if(cache.engines, [](const auto& item) { return item.second.expired(); });
  auto& place = cache.engines[Key(directory, choice.device, choice.precision,
                                  choice.stage.runners != nullptr, choice.stage.graphs)];
  std::shared_ptr<TorchEngine> engine = place.lock();
  if (!engine) {
    ASSIGN_OR_RETURN(engine, TorchEngine::open(directory, choice));
    place = engine;
  }
  int threads = 1;
  for (const auto& [key, weak] : cache.engines) {
    if (const auto other = weak.lock()) threads = std::max(threads, other->threads());
  }
  set_stage_threads(threads);
  return std::shared_ptr<Engine>(std::move(engine));
}

}  // namespace

Result<std::shared_ptr<Engine>> open_engine(const EngineOptions& options) {
  return run_stage("opening the model", [&] { return open_cached(options); });
}

}  // namespace minicpmo
