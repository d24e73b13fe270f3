// DVAE and Vocos: their formulas, and weights that are not what they should be.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/stage_scope.h"
#include "small_vocoder.h"

namespace minicpmo {
namespace {

Dvae dvae_of(const WeightsFile& weights, at::ScalarType type = at::kFloat) {
  auto dvae = Dvae::load(*weights.open(), "tts.dvae.", 4, 625, type);
  if (!dvae.ok()) throw std::runtime_error(dvae.error().message);
  return *dvae;
}

Vocos vocos_of(const WeightsFile& weights) {
  auto vocos = Vocos::load(*weights.open(), kMels);
  if (!vocos.ok()) throw std::runtime_error(vocos.error().message);
  return *vocos;
}

at::Tensor to_tensor(const naive::Matrix& x) {
  at::Tensor tensor =
      at::zeros({static_cast<int64_t>(x.size()), static_cast<int64_t>(x[0].size())});
  float* out = tensor.mutable_data_ptr<float>();
  for (const auto& row : x) {
    for (double v : row) *out++ = static_cast<float>(v);
  }
  return tensor;
}

class DvaeTest : public testing::Test {
 protected:
  StageScope scope_;
};

TEST_F(DvaeTest, EveryCodeOfEveryBookIsItsDigits) {
  const WeightsFile weights = dvae_weights();
  std::vector<int32_t> codes;
  for (int32_t code = 0; code < 625; ++code) {
    for (int32_t book = 0; book < 4; ++book) codes.push_back((code * (2 * book + 1) + book) % 625);
  }
  EXPECT_LE(
      naive::relative_error(dvae_of(weights).dequantize(codes), naive::dequantize(weights, codes)),
      1e-6);
}

TEST_F(DvaeTest, BooksZeroAndOneMakeTheEvenFrames) {
  const Dvae dvae = dvae_of(dvae_weights());
  const at::Tensor base = dvae.dequantize(std::vector<int32_t>{7, 8, 9, 10});
  for (size_t book = 0; book < 4; ++book) {
    std::vector<int32_t> codes = {7, 8, 9, 10};
    codes[book] = 300;
    const at::Tensor changed = dvae.dequantize(codes);
    EXPECT_EQ(changed[0].equal(base[0]), book >= 2) << book;
    EXPECT_EQ(changed[1].equal(base[1]), book < 2) << book;
  }
}

TEST_F(DvaeTest, EqualsTheFormulas) {
  const WeightsFile weights = dvae_weights();
  const Dvae dvae = dvae_of(weights);
  for (int64_t rows : {1, 2, 5, 25, 29}) {
    const auto codes = some_codes(rows);
    EXPECT_LE(naive::relative_error(dvae.decode(codes), naive::dvae(weights, codes)), 1e-5) << rows;
  }
}

TEST_F(DvaeTest, SizesComeFromTheTensors) {
  const Dvae dvae = dvae_of(dvae_weights());
  EXPECT_EQ(dvae.groups(), 2);
  EXPECT_EQ(dvae.mel_bins(), kMels);
  EXPECT_EQ(dvae.blocks(), kBlocks);
  WeightsFile more = dvae_weights();
  add_convnext(more, "tts.dvae.decoder.decoder_block.2.", "coef", 8, 24);
  EXPECT_EQ(dvae_of(more).blocks(), 3);
}

TEST_F(DvaeTest, BFloat16StaysNearFloat32) {
  const auto codes = some_codes(29);
  const at::Tensor exact = dvae_of(dvae_weights()).decode(codes);
  const at::Tensor coarse = dvae_of(dvae_weights(), at::kBFloat16).decode(codes);
  ASSERT_EQ(coarse.scalar_type(), at::kBFloat16);
  const double error =
      exact.sub(coarse).abs().max().item<double>() / exact.abs().max().item<double>();
  EXPECT_LE(error, 0.05);
  EXPECT_GT(error, 1e-4);
}

class VocosTest : public testing::Test {
 protected:
  StageScope scope_;
};

TEST_F(VocosTest, EqualsTheFormulas) {
  const WeightsFile weights = vocos_weights(32);
  const Vocos vocos = vocos_of(weights);
  EXPECT_EQ(vocos.n_fft(), 32);
  EXPECT_EQ(vocos.hop(), 8);
  const WeightsFile codec = dvae_weights();
  for (int64_t rows : {1, 4, 29}) {
    const naive::Matrix mel = naive::dvae(codec, some_codes(rows));
    const at::Tensor wave = vocos.decode(to_tensor(mel));
    EXPECT_EQ(wave.sizes(), at::IntArrayRef({2 * rows * 8}));
    EXPECT_LE(naive::relative_error(wave.unsqueeze(0), {naive::vocos(weights, mel)}), 1e-5) << rows;
  }
}

TEST_F(VocosTest, FullWindowLengthEqualsTheFormulas) {
  const WeightsFile weights = vocos_weights(1024);
  const naive::Matrix mel = naive::dvae(dvae_weights(), some_codes(2));
  const at::Tensor wave = vocos_of(weights).decode(to_tensor(mel));
  EXPECT_EQ(wave.sizes(), at::IntArrayRef({4 * 256}));
  EXPECT_LE(naive::relative_error(wave.unsqueeze(0), {naive::vocos(weights, mel)}), 1e-5);
}

TEST_F(VocosTest, OneFrameGivesOneHop) {
  const Vocos vocos = vocos_of(vocos_weights(32));
  const at::Tensor wave = vocos.decode(at::full({1, kMels}, -3.0));
  EXPECT_EQ(wave.sizes(), at::IntArrayRef({8}));
  EXPECT_TRUE(wave.isfinite().all().item<bool>());
}

TEST_F(VocosTest, MagnitudesStopAtOneHundred) {
  const Vocos vocos = vocos_of(vocos_weights(32));
  const at::Tensor loud = vocos.inverse_stft(at::full({6, 34}, 50.0));  // e^50
  at::Tensor limited = at::full({6, 34}, 50.0);
  limited.narrow(1, 0, 17).fill_(std::log(100.0));
  EXPECT_TRUE(loud.isfinite().all().item<bool>());
  EXPECT_LE(loud.sub(vocos.inverse_stft(limited)).abs().max().item<double>(), 1e-3);
  EXPECT_GT(loud.abs().max().item<double>(), 1);
}

TEST_F(VocosTest, AConstantSpectrumOfDirectCurrentIsLevel) {
  // Every frame is the constant 32 / 32 = 1; dividing by the squared windows must undo windowing
  // each frame once more, up to the window itself: sum(w) / sum(w^2) = (n / 2) / (3 n / 8) = 4 / 3
  // wherever 4 frames overlap.
  const Vocos vocos = vocos_of(vocos_weights(32));
  at::Tensor head = at::full({12, 34}, -100.0);
  head.narrow(1, 17, 17).fill_(0);
  head.select(1, 0).fill_(std::log(32.0));
  const at::Tensor wave = vocos.inverse_stft(head).narrow(0, 16, 64);
  EXPECT_NEAR(wave.min().item<double>(), 4.0 / 3, 1e-5);
  EXPECT_NEAR(wave.max().item<double>(), 4.0 / 3, 1e-5);
}

TEST_F(VocosTest, AcceptsABFloat16Spectrogram) {
  const Vocos vocos = vocos_of(vocos_weights(32));
  const at::Tensor mel = at::full({4, kMels}, -2.5);
  const at::Tensor wave = vocos.decode(mel.to(at::kBFloat16));  // -2.5 is exact in both
  EXPECT_EQ(wave.scalar_type(), at::kFloat);
  EXPECT_TRUE(wave.equal(vocos.decode(mel)));
}

// --- weights that are not what they should be
// -------------------------------------------------------------------

Error load_error(const WeightsFile& dvae, const WeightsFile& vocos,
                 ModelConfig config = vocoder_config()) {
  auto model = load_vocoder(*dvae.open(), *vocos.open(), config, at::kFloat, {}, CancelFlag());
  return model.ok() ? Error{ErrorCode::kFailed, "loaded", ""} : model.error();
}

TEST(VocoderWeights, EveryMissingTensorIsNamed) {
  const WeightsFile dvae = dvae_weights(), vocos = vocos_weights(32);
  for (const WeightsFile* file : {&dvae, &vocos}) {
    for (const auto& [name, values] : file->tensors()) {
      WeightsFile broken = *file;
      broken.remove(name);
      const Error error = file == &dvae ? load_error(broken, vocos) : load_error(dvae, broken);
      EXPECT_EQ(error.code, ErrorCode::kCorrupt) << name;
      EXPECT_NE(error.message.find(name), std::string::npos) << name << ": " << error.message;
    }
  }
}

TEST(VocoderWeights, TensorsOfAnotherShapeAreRefused) {
  const WeightsFile dvae = dvae_weights(), vocos = vocos_weights(32);
  for (const WeightsFile* file : {&dvae, &vocos}) {
    for (const auto& [name, values] : file->tensors()) {
      for (size_t d = 0; d < values.shape.size(); ++d) {
        for (int64_t change : {-1, 1}) {
          auto shape = values.shape;
          shape[d] += change;
          WeightsFile broken = *file;
          broken.add(name, shape, 1);
          const Error error = file == &dvae ? load_error(broken, vocos) : load_error(dvae, broken);
          EXPECT_EQ(error.code, ErrorCode::kCorrupt)
              << name << " dimension " << d << ": " << error.message;
        }
      }
    }
  }
}

TEST(VocoderWeights, AGapInTheNumbersOfTheBlocksIsRefused) {
  for (bool in_dvae : {true, false}) {
    WeightsFile dvae = dvae_weights(), vocos = vocos_weights(32);
    if (in_dvae) {
      add_convnext(dvae, "tts.dvae.decoder.decoder_block.3.", "coef", 8, 16);
    } else {
      add_convnext(vocos, "backbone.convnext.3.", "gamma", 8, 12);
    }
    const Error error = load_error(dvae, vocos);
    EXPECT_EQ(error.code, ErrorCode::kCorrupt);
    EXPECT_NE(error.message.find("2.dwconv.weight"), std::string::npos) << error.message;
  }
}

TEST(VocoderWeights, TheMelOfBothHalvesMustFit) {
  WeightsFile dvae = dvae_weights();
  dvae.add_linear("tts.dvae.out_conv", {kMels + 1, 6, 3}, false);
  dvae.add("tts.dvae.coef", {1, kMels + 1, 1}, 1);
  const Error error = load_error(dvae, vocos_weights(32));
  EXPECT_EQ(error.code, ErrorCode::kCorrupt);
  EXPECT_NE(error.message.find("backbone.embed.weight"), std::string::npos) << error.message;
}

TEST(VocoderWeights, TheConfigurationMustFitTheQuantizers) {
  ModelConfig config = vocoder_config();
  config.speech.audio_tokens = 600;
  EXPECT_EQ(load_error(dvae_weights(), vocos_weights(32), config).code, ErrorCode::kCorrupt);
  config = vocoder_config();
  config.speech.books = 3;
  EXPECT_EQ(load_error(dvae_weights(), vocos_weights(32), config).code, ErrorCode::kCorrupt);
}

TEST(VocoderWeights, AWindowThatIsNoWindowIsRefused) {
  EXPECT_EQ(load_error(dvae_weights(), vocos_weights(30)).code, ErrorCode::kCorrupt);
  WeightsFile none = vocos_weights(32);
  none.add_linear("head.out", {2, 8});
  EXPECT_EQ(load_error(dvae_weights(), none).code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace minicpmo
