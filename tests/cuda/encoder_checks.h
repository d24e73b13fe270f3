// What the audio encoder's runner has to do, on a GPU (encoder_runner_test.cpp) and on the CPU
// (emulation/encoder_runner_test.cpp). The oracle is the ATen code of the same model, in float32
// and in bfloat16.
#pragma once

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "audioenc/audio_encoder.h"
#include "audioenc/encoder_weights.h"
#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"
#include "value_of.h"

namespace minicpmo::encoder_checks {

using ModelPtr = std::shared_ptr<const AudioEncoderModel>;

inline ModelConfig config_of(int64_t hidden, int64_t layers, int64_t heads, int64_t mel_bins,
                             int64_t max_positions, int64_t language) {
  ModelConfig config;
  config.audio.hidden_size = hidden;
  config.audio.layers = layers;
  config.audio.heads = heads;
  config.audio.intermediate_size = 4 * hidden;
  config.audio.mel_bins = mel_bins;
  config.audio.max_positions = max_positions;
  config.audio.pool_step = 2;
  config.language.hidden_size = language;
  return config;
}

inline ModelPtr load(const Checkpoint& checkpoint, const ModelConfig& config,
                     const StageDevice& device) {
  return value_of(load_audio_encoder(checkpoint, config, device, {}, CancelFlag()));
}

// One model three times. `runner`: as the sessions use it, bfloat16.
struct Models {
  ModelPtr exact, coarse, runner;

  // device: with runners.
  Models(const Checkpoint& checkpoint, const ModelConfig& config, const StageDevice& device) {
    StageDevice aten = device;
    aten.runners = nullptr;
    exact = load(checkpoint, config, aten.with(at::kFloat));
    coarse = load(checkpoint, config, aten.with(at::kBFloat16));
    runner = load(checkpoint, config, device.with(at::kBFloat16));
  }
};

inline std::vector<float> noise(int64_t samples, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.4f, 0.4f);
  std::vector<float> pcm(static_cast<size_t>(samples));
  float low = 0;
  for (float& x : pcm) x = low = 0.7f * low + uniform(random);
  return pcm;
}

// Embeddings as float32 on the CPU.
inline at::Tensor step(AudioEncoder& session, const std::vector<float>& pcm) {
  const TensorPtr rows = value_of(session.step(pcm, CancelFlag()));
  if (rows == nullptr) throw std::runtime_error("no rows");
  value_of(rows->host_bytes());
  return value_of(unwrap_tensor(*rows)).to(at::kCPU, at::kFloat);
}

inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return a.sub(b).norm().item<double>() / b.norm().item<double>();
}

struct Errors {
  double coarse = 0, runner = 0;  // worst relative error against float32: ATen's, the runner's
};

// Turns of chunks (samples), each from an empty cache. The runner, which keeps more in float32, has
// to be about as good as ATen in bfloat16.
inline Errors expect_close(const Models& models, const std::vector<std::vector<int64_t>>& turns,
                           double bound) {
  const StageScope scope;
  auto exact = value_of(new_audio_encoder(models.exact));
  auto coarse = value_of(new_audio_encoder(models.coarse));
  auto runner = value_of(new_audio_encoder(models.runner));
  Errors worst;
  unsigned seed = 0;
  for (const auto& turn : turns) {
    for (AudioEncoder* session : {exact.get(), coarse.get(), runner.get()}) session->reset();
    for (size_t i = 0; i < turn.size(); ++i) {
      const auto pcm = noise(turn[i], ++seed);
      const at::Tensor expected = step(*exact, pcm);
      const at::Tensor rows = step(*runner, pcm);
      EXPECT_EQ(rows.sizes(), expected.sizes());
      const double error = relative_error(rows, expected);
      const double allowed = relative_error(step(*coarse, pcm), expected);
      EXPECT_LE(error, 1.25 * allowed + 1e-3) << turn[i] << " samples, chunk " << i;
      EXPECT_LE(error, bound) << turn[i] << " samples, chunk " << i;
      worst.runner = std::max(worst.runner, error);
      worst.coarse = std::max(worst.coarse, allowed);
    }
  }
  EXPECT_GT(worst.runner, 1e-5);  // otherwise this was not bfloat16
  return worst;
}

// The shortest, odd and even numbers of mel frames and of positions, one short of all, all.
inline const std::vector<int64_t> kLengths = {321,  480,  481,   640,   641,   960,   1600,
                                              5130, 8000, 10240, 10401, 15361, 15999, 16000};

// Each of them alone and after a full chunk.
inline std::vector<std::vector<int64_t>> partial_turns() {
  std::vector<std::vector<int64_t>> turns;
  for (int64_t samples : kLengths) {
    turns.push_back({samples});
    turns.push_back({16000, samples, 16000});
  }
  return turns;
}

// The chunk that would fill the last position starts the cache anew.
inline void expect_anew(const ModelPtr& model, int64_t chunks_before) {
  const StageScope scope;
  auto session = value_of(new_audio_encoder(model));
  const auto pcm = noise(16000, 1);
  const at::Tensor first = step(*session, pcm);
  for (int64_t i = 1; i < chunks_before; ++i) {
    EXPECT_FALSE(step(*session, pcm).equal(first)) << "chunk " << i;
  }
  EXPECT_TRUE(step(*session, pcm).equal(first));
  session->reset();
  EXPECT_TRUE(step(*session, pcm).equal(first));
}

// A chunk's rows do not depend on what the chunks before left in the runner's memory.
inline void expect_no_trace(const ModelPtr& model) {
  const StageScope scope;
  auto fresh = value_of(new_audio_encoder(model)), used = value_of(new_audio_encoder(model));
  for (unsigned seed = 1; seed < 4; ++seed) step(*used, noise(16000, seed));
  used->reset();
  for (int64_t samples : {int64_t{3000}, int64_t{321}, int64_t{16000}}) {
    EXPECT_TRUE(step(*used, noise(samples, 9)).equal(step(*fresh, noise(samples, 9)))) << samples;
  }
}

// Graph or single launches: the same bits. streams: of the two runners.
inline void expect_graph_equals_eager(const AudioEncoderModel& model,
                                      const cuda::RunnerOptions& eager_options,
                                      const cuda::RunnerOptions& graph_options,
                                      const std::function<void()>& wait) {
  const StageScope scope;
  AudioCache caches[2];
  std::unique_ptr<cuda::EncoderRunner> runners[2];
  for (int i = 0; i < 2; ++i) {
    model.prepare(caches[i], 0);
    cuda::RunnerOptions options = i == 0 ? eager_options : graph_options;
    options.graphs = i == 1;
    runners[i] = value_of(model.new_runner(options, 100, caches[i]));
  }
  int cached = 0;
  for (int64_t samples : {16000, 16000, 7000, 16000, 321, 16000}) {
    const at::Tensor mel = model.mel(noise(samples, static_cast<unsigned>(samples)));
    const int positions = static_cast<int>((mel.size(0) + 1) / 2);
    at::Tensor rows[2];
    for (int i = 0; i < 2; ++i) {
      rows[i] = at::empty({positions / 2, model.language_size()}, model.device().options());
      const auto done =
          runners[i]->step({mel.const_data_ptr<float>(), static_cast<size_t>(mel.numel())}, cached,
                           bfloat16_data(rows[i]));
      ASSERT_TRUE(done.ok()) << done.error().message;
    }
    wait();
    EXPECT_TRUE(rows[0].equal(rows[1])) << samples << " samples";
    cached += positions;
  }
  for (size_t i = 0; i < caches[0].keys.size(); ++i) {
    const auto used = [&](const at::Tensor& cache) { return cache.narrow(1, 0, cached); };
    EXPECT_TRUE(used(caches[0].keys[i]).equal(used(caches[1].keys[i]))) << "layer " << i;
    EXPECT_TRUE(used(caches[0].values[i]).equal(used(caches[1].values[i]))) << "layer " << i;
  }
}

inline void expect_refusals(cuda::EncoderRunner& runner, const AudioEncoderModel& model) {
  const StageScope scope;
  const int bins = static_cast<int>(model.config().mel_bins);
  const int most = static_cast<int>(model.config().max_positions);
  const at::Tensor rows = at::empty({50, model.language_size()}, model.device().options());
  const std::vector<float> mel(static_cast<size_t>(102 * bins));
  const auto fails = [&](int frames, int cached) {
    const auto result = runner.step(std::span(mel).first(static_cast<size_t>(frames * bins)),
                                    cached, bfloat16_data(rows));
    return !result.ok() && result.error().code == ErrorCode::kFailed;
  };
  EXPECT_TRUE(fails(0, 0));
  EXPECT_TRUE(fails(101, 0));
  EXPECT_TRUE(fails(100, -1));
  EXPECT_TRUE(fails(100, most - 49));
  EXPECT_FALSE(fails(100, most - 50));
}

}  // namespace minicpmo::encoder_checks
