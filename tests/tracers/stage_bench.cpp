// How much work the stages do for one fixed question, with the small checkpoint on one thread:
//
//   stage_bench time BACKEND MODEL WAV     JSON: the stages' CPU time over that of a fixed workload
//                                          of ATen, the least of several rounds, and the same work
//                                          once for `count`
//   stage_bench count BACKEND MODEL WAV    the stages once, between calls of a function that does
//                                          nothing: callgrind counts there
//
// Greedy, so every run computes the same.
#include <ATen/Parallel.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rand.h>
#include <dlfcn.h>
#include <valgrind/callgrind.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/stage.h"

namespace {

using namespace minicpmo;

constexpr int kRounds = 9;
constexpr int kMostBursts = 4;
constexpr int kMostCodes = 25;  // valgrind takes long for each: it has no fused multiplication

template <class T>
T need(Result<T> result, const char* what) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s: %s\n", what, result.error().message.c_str());
  std::exit(1);
}

void need(const Result<void>& result, const char* what) {
  if (result.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, result.error().message.c_str());
  std::exit(1);
}

double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

// 16-bit mono at 16 kHz with a header of 44 bytes, as the samples are; the first second.
std::vector<float> read_second(const char* path) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(44);
  std::vector<int16_t> pcm(16000);
  if (!file.read(reinterpret_cast<char*>(pcm.data()),
                 static_cast<std::streamsize>(2 * pcm.size()))) {
    std::fprintf(stderr, "%s has no second of sound\n", path);
    std::exit(1);
  }
  std::vector<float> samples(pcm.size());
  std::transform(pcm.begin(), pcm.end(), samples.begin(),
                 [](int16_t s) { return static_cast<float>(s) / 32768; });
  return samples;
}

class Stages {
 public:
  Stages(const Backend& backend, const char* model) {
    EngineOptions options;
    options.model_dir = model;
    options.device = "cpu";
    options.precision = "float32";
    engine_ = need(backend.open_engine(options), model);
    for (const Stage stage :
         {Stage::kAudioEncoder, Stage::kLanguageModel, Stage::kSpeechModel, Stage::kVocoder})
      need(engine_->load(
               stage, [](int, const std::string&) {}, cancel_),
           "load");
    LanguageModelOptions language;
    language.temperature = 0;
    encoder_ = need(engine_->new_audio_encoder(), "encoder");
    llm_ = need(engine_->new_language_model(language), "language model");
    speech_ = need(engine_->new_speech_model(), "speech model");
    vocoder_ = need(engine_->new_vocoder({}), "vocoder");
  }

  void reset() {
    encoder_->reset();
    llm_->reset();
    speech_->reset();
    vocoder_->reset();
    codes_.clear();
    bursts_.clear();
  }
  void encode(const std::vector<float>& pcm) {
    heard_ = need(encoder_->step(pcm, cancel_), "encode");
  }
  void prefill() {
    need(llm_->prefill_audio(*heard_, cancel_), "prefill");
    need(llm_->start_answer(cancel_), "start");
  }
  void decode() {
    for (int i = 0; i < kMostBursts; ++i) {
      Burst burst = need(llm_->next_burst(cancel_), "decode");
      const bool last = burst.finish != FinishReason::kNone;
      bursts_.push_back(std::move(burst));
      if (last) break;
    }
  }
  void speak() {
    SpeechModelOptions options;
    options.temperature = 0;
    options.max_codes = kMostCodes;
    need(speech_->start(*bursts_.at(0).speaker, options), "speaker");
    for (const Burst& burst : bursts_) speech_->push_text(burst.text);
    speech_->end_text();
    for (bool last = false; !last;) {
      auto chunk = need(speech_->step(cancel_), "speak");
      if (!chunk) break;
      last = chunk->last;
      if (chunk->codes->rows() > 0) codes_.push_back(chunk->codes);
    }
  }
  void vocode() {
    for (const TensorPtr& codes : codes_) need(vocoder_->step(*codes, false, cancel_), "vocode");
  }

 private:
  CancelFlag cancel_;
  std::shared_ptr<Engine> engine_;
  std::unique_ptr<AudioEncoder> encoder_;
  std::unique_ptr<LanguageModel> llm_;
  std::unique_ptr<SpeechModel> speech_;
  std::unique_ptr<Vocoder> vocoder_;
  TensorPtr heard_;
  std::vector<Burst> bursts_;
  std::vector<TensorPtr> codes_;
};

// Products of the sizes that the stages have: one row, and a chunk of rows.
void workload() {
  static const at::Tensor weights = at::rand({512, 1024});
  static const at::Tensor row = at::rand({1, 512}), rows = at::rand({50, 512});
  for (int i = 0; i < 60; ++i) at::matmul(row, weights);
  for (int i = 0; i < 12; ++i) at::matmul(rows, weights);
}

}  // namespace

// callgrind's --toggle-collect names these. Not inlined, and not to be merged into one.
extern "C" {
#define STAGE(name, ...)                                              \
  __attribute__((noinline, visibility("default"))) void bench_##name( \
      Stages& stages, const std::vector<float>& pcm) {                \
    static_cast<void>(pcm);                                           \
    stages.__VA_ARGS__;                                               \
  }
STAGE(encode, encode(pcm))
STAGE(prefill, prefill())
STAGE(decode, decode())
STAGE(speech, speak())
STAGE(vocoder, vocode())
#undef STAGE
}

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: stage_bench time|count BACKEND MODEL WAV\n");
    return 2;
  }
  at::set_num_threads(1);
  void* library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const auto function = reinterpret_cast<BackendFunction>(dlsym(library, kBackendSymbol));
  Stages stages(*function(), argv[3]);
  const std::vector<float> pcm = read_second(argv[4]);
  const std::vector<std::pair<const char*, void (*)(Stages&, const std::vector<float>&)>> parts{
      {"encode", bench_encode},
      {"prefill", bench_prefill},
      {"decode", bench_decode},
      {"speech", bench_speech},
      {"vocoder", bench_vocoder}};
  const bool count = std::strcmp(argv[1], "count") == 0;
  std::map<std::string, double> least;
  double least_work = 1e9;
  std::vector<double> works;
  // What comes before is not counted, and so not slowed down as much.
  if (count) CALLGRIND_START_INSTRUMENTATION;
  for (int round = 0; round < (count ? 1 : kRounds); ++round) {
    stages.reset();
    for (const auto& [name, run] : parts) {
      // Before every stage: both see the same machine.
      double begin = cpu_seconds();
      if (!count) workload();
      works.push_back(cpu_seconds() - begin);
      least_work = std::min(least_work, works.back());
      begin = cpu_seconds();
      run(stages, pcm);
      const double spent = cpu_seconds() - begin;
      const auto found = least.find(name);
      least[name] = found == least.end() ? spent : std::min(found->second, spent);
    }
  }
  if (count) CALLGRIND_STOP_INSTRUMENTATION;
  nlohmann::json out;
  for (const auto& [name, seconds] : least)
    out[name] = {{"ms", seconds * 1000}, {"ratio", seconds / least_work}};
  if (count) return 0;
  std::nth_element(works.begin(), works.begin() + works.size() / 2, works.end());
  const double spread = works[works.size() / 2] / least_work;
  const nlohmann::json report{
      {"workload_ms", least_work * 1000}, {"spread", spread}, {"stages", out}};
  std::printf("%s\n", report.dump().c_str());
  return 0;
}
