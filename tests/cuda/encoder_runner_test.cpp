// The audio encoder on a GPU: runner and ATen against ATen in float32, on the small checkpoint and
// on random weights of the full size; times. Environment: MINICPMO_TEST_MODEL, the small model's
// directory.
#include "encoder_checks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "gpu_test.h"

namespace minicpmo {
namespace {

using namespace encoder_checks;

std::string small_model() {
  const char* const path = std::getenv("MINICPMO_TEST_MODEL");
  return path ? path : MODEL_DIR;
}

class EncoderRunnerTest : public GpuTest {
 protected:
  Models small() const {
    const std::string directory = small_model();
    return Models(*value_of(Checkpoint::open(directory)), value_of(read_config(directory)),
                  device_);
  }
};

void print(const char* what, const Errors& errors) {
  std::printf("%s: worst relative error against float32: ATen bfloat16 %.2g, runner %.2g\n", what,
              errors.coarse, errors.runner);
}

// As MiniCPM-o 2.6 has it.
const ModelConfig& full_config() {
  static const ModelConfig config = config_of(1024, 24, 16, 80, 1500, 3584);
  return config;
}

const Checkpoint& full_checkpoint() {
  static const std::shared_ptr<Checkpoint> checkpoint = encoder_weights(full_config(), 3584).open();
  return *checkpoint;
}

std::vector<int64_t> seconds(int64_t count) {
  return std::vector<int64_t>(static_cast<size_t>(count), 16000);
}

TEST_F(EncoderRunnerTest, SmallModel) {
  const Models models = small();
  print("every length", expect_close(models, partial_turns(), 0.03));
  print("a full cache", expect_close(models, {seconds(31)}, 0.03));
  print("a reference voice", expect_close(models, {{16000, 208000, 16000}}, 0.03));
  expect_anew(models.runner, 29);
  expect_no_trace(models.runner);
}

TEST_F(EncoderRunnerTest, FullSize) {
  const Models models(full_checkpoint(), full_config(), device_);
  print("every length", expect_close(models, partial_turns(), 0.05));
  print("a full cache", expect_close(models, {seconds(31)}, 0.05));
  print("a reference voice", expect_close(models, {{480000, 16000}, {16000, 208000, 16000}}, 0.05));
  expect_anew(models.runner, 29);
  expect_no_trace(models.runner);
}

// The CPU is the oracle of the oracle.
TEST_F(EncoderRunnerTest, Float32EqualsTheCpu) {
  const std::string directory = small_model();
  const auto checkpoint = value_of(Checkpoint::open(directory));
  const ModelConfig config = value_of(read_config(directory));
  const StageScope scope;
  auto cpu = value_of(new_audio_encoder(load(*checkpoint, config, at::kFloat)));
  auto gpu = value_of(new_audio_encoder(load(*checkpoint, config, device_.with(at::kFloat))));
  double worst = 0;
  for (int64_t samples : {16000, 16000, 208000, 5130}) {
    const auto pcm = noise(samples, static_cast<unsigned>(samples));
    worst = std::max(worst, relative_error(step(*gpu, pcm), step(*cpu, pcm)));
  }
  std::printf("float32, GPU against CPU: worst relative error %.2g\n", worst);
  EXPECT_LE(worst, 1e-4);
}

TEST_F(EncoderRunnerTest, GraphEqualsEager) {
  const Models models = small();
  const StageStream eager(device_, false), graph(device_, false);
  const auto wait = [&] {
    eager.stream()->synchronize();
    graph.stream()->synchronize();
  };
  expect_graph_equals_eager(*models.runner, eager.runner_options(device_),
                            graph.runner_options(device_), wait);
}

TEST_F(EncoderRunnerTest, WrongSizesAreRefused) {
  const Models models = small();
  const StageStream stream(device_, false);
  AudioCache cache;
  {
    const StageScope scope;
    const StreamScope on(stream);
    models.runner->prepare(cache, 0);
  }
  const auto runner =
      value_of(models.runner->new_runner(stream.runner_options(device_), 100, cache));
  expect_refusals(*runner, *models.runner);
  stream.stream()->synchronize();
}

// --- times

struct Times {
  double alone = 0;  // ms, median from call to result
  double rate = 0;   // ms a call when calls follow each other
};

Times measure(const StageStream& stream, const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  const auto ms = [](Clock::duration d) {
    return std::chrono::duration<double, std::milli>(d).count();
  };
  constexpr int kCalls = 100;
  std::vector<double> alone;
  for (int i = 0; i < 10; ++i) call();
  stream.stream()->synchronize();
  for (int i = 0; i < kCalls; ++i) {
    const auto start = Clock::now();
    call();
    stream.stream()->synchronize();
    alone.push_back(ms(Clock::now() - start));
  }
  std::nth_element(alone.begin(), alone.begin() + kCalls / 2, alone.end());
  const auto start = Clock::now();
  for (int i = 0; i < kCalls; ++i) call();
  stream.stream()->synchronize();
  return {alone[kCalls / 2], ms(Clock::now() - start) / kCalls};
}

TEST_F(EncoderRunnerTest, Times) {
  const Models models(full_checkpoint(), full_config(), device_);
  const AudioEncoderModel& model = *models.runner;
  const StageStream stream(device_, false);
  const StageScope scope;
  const StreamScope on(stream);
  AudioCache cache, aten_cache;
  model.prepare(cache, 0);
  model.prepare(aten_cache, 0);
  cuda::RunnerOptions options = stream.runner_options(device_);
  const auto runner = value_of(model.new_runner(options, 100, cache));
  options.graphs = false;
  AudioCache eager_cache;
  model.prepare(eager_cache, 0);
  const auto eager = value_of(model.new_runner(options, 100, eager_cache));
  const at::Tensor rows = at::empty({25, model.language_size()}, model.device().options());
  std::printf("ms per chunk, alone / one after another\n");
  for (int64_t samples : {16000, 4800}) {
    const auto pcm = noise(samples, 1);
    const at::Tensor mel = model.mel(pcm);
    const std::span<const float> frames(mel.const_data_ptr<float>(),
                                        static_cast<size_t>(mel.numel()));
    for (int cached : {0, 250, 750, 1440}) {
      const auto run = [&](cuda::EncoderRunner& r) {
        return measure(stream, [&] { value_of(r.step(frames, cached, bfloat16_data(rows))); });
      };
      const Times graph = run(*runner), single = run(*eager);
      const Times aten = measure(stream, [&] {
        aten_cache.length = cached;
        model.project(models.coarse->encode(mel, aten_cache, CancelFlag()));
      });
      std::printf(
          "%5ld samples, cache %4d: graph %.3f / %.3f, launches %.3f / %.3f, ATen %.3f / %.3f\n",
          static_cast<long>(samples), cached, graph.alone, graph.rate, single.alone, single.rate,
          aten.alone, aten.rate);
      EXPECT_LT(graph.rate, aten.rate);
    }
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 100; ++i) model.mel(pcm);
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    std::printf("%5ld samples: log-mel on the CPU %.3f ms\n", static_cast<long>(samples),
                time.count() / 100);
  }
  AudioCache voice;
  model.prepare(voice, 0);
  const at::Tensor mel = model.mel(noise(480000, 1));
  const Times long_chunk = measure(stream, [&] {
    voice.length = 0;
    model.project(models.coarse->encode(mel, voice, CancelFlag()));
  });
  std::printf("30 s as one chunk, ATen: %.3f ms\n", long_chunk.alone);
}

}  // namespace
}  // namespace minicpmo
