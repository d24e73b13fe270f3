// The vocoder's runner on the emulated device against the ATen path.
#include <gtest/gtest.h>

#include "cuda_runtime.h"
#include "vocoder/small_vocoder.h"
#include "vocoder_checks.h"

namespace minicpmo {
namespace {

// A CPU whose "GPU library" is the emulation.
StageDevice emulated() {
  static const cuda::Library library = {cuda::Library::kVersion, nullptr, nullptr, nullptr,
                                        cuda::new_vocoder_runner};
  StageDevice device(at::kFloat);
  device.runners = &library;
  device.graphs = false;
  return device;
}

class EmulatedVocoder : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = load_small(emulated()); }
  static void TearDownTestSuite() { model_.reset(); }
  static ModelPtr model_;
};
ModelPtr EmulatedVocoder::model_;

TEST_F(EmulatedVocoder, WindowsEqualAten) {
  const auto runner = value_of(cuda::new_vocoder_runner(model_->runner_spec({0, nullptr, false})));
  double worst = 0, loudest = 0;
  for (const int64_t rows : {29, 1, 2, 8, 9, 17, 25}) {
    const auto codes = some_codes(rows, static_cast<uint64_t>(rows));
    const auto exact = aten_window(*model_, codes);
    const auto pcm = runner_window(*model_, *runner, codes);
    EXPECT_LE(difference(pcm, exact), kRunnerBound) << rows << " rows";
    worst = std::max(worst, difference(pcm, exact));
    for (const float sample : exact) loudest = std::max(loudest, std::abs(double{sample}));
  }
  std::printf("runner and ATen: %.2g of full scale, loudest sample %.2g\n", worst, loudest);
  EXPECT_GT(loudest, 0.05);
}

TEST_F(EmulatedVocoder, GraphEqualsEager) {
  EmulatedStream stream;
  cuda::VocoderRunnerSpec spec = model_->runner_spec({0, &stream, true});
  spec.max_rows = 9;
  const auto graphs = value_of(cuda::new_vocoder_runner(spec));
  spec.options.graphs = false;
  const auto eager = value_of(cuda::new_vocoder_runner(spec));
  for (const int64_t rows : {3, 9, 1}) {
    const auto codes = some_codes(rows);
    EXPECT_EQ(runner_window(*model_, *graphs, codes), runner_window(*model_, *eager, codes));
  }
}

TEST_F(EmulatedVocoder, AStreamEqualsAten) {
  const auto codes = some_codes(21);
  const std::vector<int64_t> ends = {6, 13, 14, 21};
  EXPECT_LE(difference(stream(model_, codes, ends), stream(load_small(at::kFloat), codes, ends)),
            kRunnerBound);
}

TEST_F(EmulatedVocoder, WindowsOfAnotherSizeAreErrors) {
  cuda::VocoderRunnerSpec spec = model_->runner_spec({0, nullptr, false});
  spec.max_rows = 2;
  const auto runner = value_of(cuda::new_vocoder_runner(spec));
  std::vector<float> pcm(3 * 512);
  EXPECT_FALSE(runner->decode(some_codes(3), pcm).ok());
  EXPECT_FALSE(runner->decode({}, {}).ok());
  EXPECT_FALSE(runner->decode(some_codes(2), pcm).ok());
}

TEST(EmulatedVocoderShapes, WhatTheKernelsCannotRunStaysWithAten) {
  const auto load = [](const StageDevice& device) {
    return value_of(load_vocoder(*dvae_weights().open(), *vocos_weights().open(), vocoder_config(),
                                 device, {}, CancelFlag()));
  };
  const ModelPtr model = load(emulated());
  const auto refused = cuda::new_vocoder_runner(model->runner_spec({}));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kSettings);
  const auto codes = some_codes(9);
  EXPECT_EQ(stream(model, codes, {5, 9}), stream(load(at::kFloat), codes, {5, 9}));
}

}  // namespace
}  // namespace minicpmo
