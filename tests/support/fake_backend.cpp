#include "support/fake_backend.h"

#include <gtest/gtest.h>

#include <cassert>
#include <map>
#include <set>
#include <stdexcept>
#include <thread>
#include <tuple>

#include "common/gstminicpmomodel.h"
#include "support/fake_sessions.h"

namespace minicpmo::testing {

namespace {

std::atomic<FakeBackend*> current_backend{nullptr};

class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(const EngineOptions& options) : owner_(*FakeBackend::current()) {
    info_ = owner_.settings().info;
    info_.model_dir = options.model_dir;
    info_.device = options.device == "auto" ? "cpu" : options.device;
    info_.precision = options.precision == "auto" ? "float32" : options.precision;
    info_.notes = "fake";
    ++owner_.counters().engines_opened;
    ++owner_.counters().engines_alive;
  }
  ~FakeEngine() override { --owner_.counters().engines_alive; }

  const EngineInfo& info() const override { return info_; }

  Result<void> load(Stage stage, const Progress& progress, const CancelFlag& cancel) override {
    {
      std::lock_guard lock(mutex_);
      if (loaded_.count(stage) != 0) return {};
    }
    const FakeSettings& settings = owner_.settings();
    if (settings.throw_in_load) throw std::runtime_error("thrown by the fake load");
    for (int i = 1; i <= 10; ++i) {
      if (!sleep_unless_cancelled(settings.load_delay / 10, cancel)) {
        ++owner_.counters().cancelled;
        return Error{ErrorCode::kCancelled, "cancelled", ""};
      }
      progress(10 * i, "fake weights");
    }
    if (settings.load_error) return *settings.load_error;
    ++owner_.counters().loads;
    std::lock_guard lock(mutex_);
    loaded_.insert(stage);
    return {};
  }

  Result<std::unique_ptr<AudioEncoder>> new_audio_encoder() override {
    RETURN_IF_ERROR(check_loaded(Stage::kAudioEncoder));
    return new_fake_audio_encoder(owner_, info_);
  }
  Result<std::unique_ptr<LanguageModel>> new_language_model(
      const LanguageModelOptions& options) override {
    RETURN_IF_ERROR(check_loaded(Stage::kLanguageModel));
    owner_.remember(options);
    return new_fake_language_model(owner_, info_);
  }
  Result<std::unique_ptr<SpeechModel>> new_speech_model() override {
    RETURN_IF_ERROR(check_loaded(Stage::kSpeechModel));
    return new_fake_speech_model(owner_);
  }
  Result<std::unique_ptr<Vocoder>> new_vocoder(const VocoderOptions& options) override {
    RETURN_IF_ERROR(check_loaded(Stage::kVocoder));
    owner_.remember(options);
    return new_fake_vocoder(owner_);
  }

 private:
  Result<void> check_loaded(Stage stage) {
    if (owner_.settings().session_error) return *owner_.settings().session_error;
    std::lock_guard lock(mutex_);
    if (loaded_.count(stage) != 0) return {};
    return Error{ErrorCode::kFailed, "A session was asked for before its stage was loaded.", ""};
  }

  FakeBackend& owner_;
  EngineInfo info_;
  std::mutex mutex_;  // guards loaded_
  std::set<Stage> loaded_;
};

using EngineKey = std::tuple<std::string, std::string, std::string>;
std::mutex engines_mutex;  // guards engines
std::map<EngineKey, std::weak_ptr<Engine>>& engines() {
  static auto* const map = new std::map<EngineKey, std::weak_ptr<Engine>>;
  return *map;
}

Result<std::shared_ptr<Engine>> open_engine(const EngineOptions& options) {
  FakeBackend* owner = FakeBackend::current();
  if (owner == nullptr) return Error{ErrorCode::kFailed, "There is no fake backend.", ""};
  std::this_thread::sleep_for(owner->settings().open_delay);
  if (owner->settings().open_error) return *owner->settings().open_error;
  owner->remember(options);
  std::lock_guard lock(engines_mutex);
  std::weak_ptr<Engine>& slot =
      engines()[EngineKey(options.model_dir, options.device, options.precision)];
  std::shared_ptr<Engine> engine = slot.lock();
  if (engine == nullptr) {
    engine = std::make_shared<FakeEngine>(options);
    slot = engine;
  }
  return engine;
}

Result<std::unique_ptr<VoiceActivity>> new_voice_activity(const std::string& path) {
  FakeBackend* owner = FakeBackend::current();
  if (owner == nullptr) return Error{ErrorCode::kFailed, "There is no fake backend.", ""};
  if (owner->settings().session_error) return *owner->settings().session_error;
  owner->remember_voice_activity(path);
  return new_fake_voice_activity(*owner);
}

const Backend fake_backend{Backend::kVersion, open_engine, nullptr, new_voice_activity};

}  // namespace

bool sleep_unless_cancelled(std::chrono::milliseconds time, const CancelFlag& cancel) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
    if (cancel.is_set()) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  return !cancel.is_set();
}

void CallLog::add(std::string call) {
  std::lock_guard lock(mutex_);
  calls_.push_back(std::move(call));
}

std::vector<std::string> CallLog::take() {
  std::lock_guard lock(mutex_);
  return std::move(calls_);
}

std::vector<std::string> CallLog::calls() const {
  std::lock_guard lock(mutex_);
  return calls_;
}

int CallLog::count(const std::string& prefix) const {
  std::lock_guard lock(mutex_);
  int n = 0;
  for (const std::string& call : calls_) n += call.compare(0, prefix.size(), prefix) == 0;
  return n;
}

FakeBackend::FakeBackend() {
  settings_.info.hidden_size = 8;
  assert(current_backend.load() == nullptr);
  current_backend = this;
  gst_minicpmo_backend_set_for_testing(&fake_backend);
}

FakeBackend::~FakeBackend() {
  EXPECT_EQ(counters_.engines_alive, 0) << "an engine outlives its test";
  EXPECT_EQ(counters_.sessions_alive, 0) << "a session outlives its test";
  EXPECT_FALSE(counters_.overlapped) << "two threads were inside one session at a time";
  gst_minicpmo_backend_set_for_testing(nullptr);
  current_backend = nullptr;
}

FakeBackend* FakeBackend::current() {
  return current_backend;
}

LanguageModelOptions FakeBackend::language_model_options() const {
  std::lock_guard lock(options_mutex_);
  return language_model_options_;
}

SpeechModelOptions FakeBackend::speech_model_options() const {
  std::lock_guard lock(options_mutex_);
  return speech_model_options_;
}

VocoderOptions FakeBackend::vocoder_options() const {
  std::lock_guard lock(options_mutex_);
  return vocoder_options_;
}

std::vector<EngineOptions> FakeBackend::opened() const {
  std::lock_guard lock(options_mutex_);
  return opened_;
}

std::vector<std::string> FakeBackend::voice_activity_paths() const {
  std::lock_guard lock(options_mutex_);
  return voice_activity_paths_;
}

void FakeBackend::remember(const LanguageModelOptions& options) {
  std::lock_guard lock(options_mutex_);
  language_model_options_ = options;
}

void FakeBackend::remember(const SpeechModelOptions& options) {
  std::lock_guard lock(options_mutex_);
  speech_model_options_ = options;
}

void FakeBackend::remember(const VocoderOptions& options) {
  std::lock_guard lock(options_mutex_);
  vocoder_options_ = options;
}

void FakeBackend::remember(const EngineOptions& options) {
  std::lock_guard lock(options_mutex_);
  opened_.push_back(options);
}

void FakeBackend::remember_voice_activity(const std::string& path) {
  std::lock_guard lock(options_mutex_);
  voice_activity_paths_.push_back(path);
}

}  // namespace minicpmo::testing
