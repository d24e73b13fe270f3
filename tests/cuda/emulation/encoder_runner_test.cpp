// The audio encoder's runner on the emulated device, against ATen.
#include <cuda_runtime.h>

#include <cstdio>

#include "encoder_checks.h"

namespace minicpmo {
namespace {

using namespace encoder_checks;

constexpr cuda::Library kLibrary = {cuda::Library::kVersion, nullptr, nullptr,
                                    cuda::new_encoder_runner, nullptr};

StageDevice emulated() {
  StageDevice device(at::kBFloat16);
  device.runners = &kLibrary;
  device.graphs = false;  // sessions on the CPU have no stream to capture
  return device;
}

Models models_of(const ModelConfig& config) {
  return Models(*encoder_weights(config, 88).open(), config, emulated());
}

ModelConfig small(int64_t max_positions) {
  return config_of(128, 2, 2, 16, max_positions, 136);
}

TEST(EncoderRunnerTest, EveryLengthEqualsTheOracle) {
  const Errors errors = expect_close(models_of(small(160)), partial_turns(), 0.03);
  std::printf("worst relative error: ATen %.2g, runner %.2g\n", errors.coarse, errors.runner);
}

// 650 keys: more tiles than splits.
TEST(EncoderRunnerTest, ChunksUpToTheEndOfTheCache) {
  expect_close(models_of(small(660)), {std::vector<int64_t>(14, 16000)}, 0.03);
}

// A chunk of one second takes part of a tile of queries; these take two.
TEST(EncoderRunnerTest, ChunksOfTwoSeconds) {
  ModelConfig config = small(400);
  config.audio.chunk_seconds = 2;
  expect_close(models_of(config), {{32000, 20480, 32000, 321}}, 0.03);
}

TEST(EncoderRunnerTest, OtherPoolStep) {
  ModelConfig config = small(160);
  config.audio.pool_step = 3;
  expect_close(models_of(config), {{16000, 9000}}, 0.03);
}

// The longer ones by ATen, on the same cache.
TEST(EncoderRunnerTest, LongChunkBetween) {
  expect_close(models_of(small(320)), {{16000, 40000, 16000}}, 0.03);
}

TEST(EncoderRunnerTest, CacheStartsAnew) {
  expect_anew(models_of(small(160)).runner, 3);
}

TEST(EncoderRunnerTest, ChunksLeaveNoTrace) {
  expect_no_trace(models_of(small(200)).runner);
}

TEST(EncoderRunnerTest, GraphEqualsEager) {
  const Models models = models_of(small(250));
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  expect_graph_equals_eager(*models.runner, {0, nullptr, false}, {0, stream, true}, [] {});
  cudaStreamDestroy(stream);
}

TEST(EncoderRunnerTest, WrongSizesAreRefused) {
  const Models models = models_of(small(160));
  AudioCache cache;
  models.runner->prepare(cache, 0);
  const auto runner = value_of(models.runner->new_runner({0, nullptr, false}, 100, cache));
  expect_refusals(*runner, *models.runner);
}

// Heads of 32 columns: the session stays with ATen.
TEST(EncoderRunnerTest, OtherHeadsAreLeftToAten) {
  const ModelConfig config = config_of(128, 1, 4, 16, 160, 136);
  const Models models = models_of(config);
  AudioCache cache;
  models.runner->prepare(cache, 0);
  const auto runner = models.runner->new_runner({0, nullptr, false}, 100, cache);
  ASSERT_FALSE(runner.ok());
  EXPECT_EQ(runner.error().code, ErrorCode::kSettings);
  const StageScope scope;
  auto with = value_of(new_audio_encoder(models.runner));
  auto without = value_of(new_audio_encoder(models.coarse));
  EXPECT_TRUE(step(*with, noise(16000, 1)).equal(step(*without, noise(16000, 1))));
}

}  // namespace
}  // namespace minicpmo
