// The vocoder against tools/tiny/reference: every window, and the whole stitched answer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/stage_scope.h"
#include "golden.h"
#include "vocoder/vocoder.h"

namespace minicpmo {
namespace {

constexpr double kMelBound = 1e-4;  // relative
constexpr double kPcmBound = 1e-5;  // of full scale; what is required is 1e-3

std::shared_ptr<const VocoderModel> load_model(at::ScalarType type) {
  auto config = read_config(MODEL_DIR);
  auto checkpoint = Checkpoint::open(MODEL_DIR);
  auto vocos = Checkpoint::open_file(MODEL_DIR "/assets/Vocos.safetensors");
  if (!config.ok() || !checkpoint.ok() || !vocos.ok())
    throw std::runtime_error("cannot open " MODEL_DIR);
  auto model = load_vocoder(**checkpoint, **vocos, *config, type, {}, CancelFlag());
  if (!model.ok()) throw std::runtime_error(model.error().message);
  return *model;
}

std::vector<int32_t> codes_of(const Golden& golden) {
  const auto wide = golden.integers("tts.codes");
  return {wide.begin(), wide.end()};
}

TensorPtr rows_of(const std::vector<int32_t>& codes, int64_t begin, int64_t end) {
  const auto bytes = std::as_bytes(std::span(codes).subspan(4 * begin, 4 * (end - begin)));
  return std::make_shared<HostTensor>(DataType::kInt32, std::vector<int64_t>{end - begin, 4},
                                      std::vector<std::byte>(bytes.begin(), bytes.end()));
}

void append(std::vector<float>& pcm, const Tensor& tensor) {
  const auto bytes = *tensor.host_bytes();
  const size_t begin = pcm.size();
  pcm.resize(begin + bytes.size() / sizeof(float));
  std::memcpy(pcm.data() + begin, bytes.data(), bytes.size());
}

// The answer as the session streams it, in the calls the reference made.
std::vector<float> stream(const std::shared_ptr<const VocoderModel>& model, const Golden& golden) {
  const auto codes = codes_of(golden);
  const auto ranges = golden.integers("window.ranges");
  const auto session = std::move(*new_vocoder(model, VocoderOptions()));
  std::vector<float> pcm;
  int64_t begin = 0;
  for (size_t i = 0; i < ranges.size(); i += 2) {
    const int64_t end = ranges[i + 1];
    auto piece = session->step(*rows_of(codes, begin, end), false, CancelFlag());
    if (!piece.ok()) throw std::runtime_error(piece.error().message);
    append(pcm, **piece);
    // Early emission: nothing that is final is held back.
    EXPECT_EQ(pcm.size(), static_cast<size_t>(512 * end - 2048));
    begin = end;
  }
  append(pcm, **session->flush());
  return pcm;
}

class VocoderParity : public testing::TestWithParam<const char*> {
 protected:
  static void SetUpTestSuite() { model_ = load_model(at::kFloat); }
  static void TearDownTestSuite() { model_.reset(); }

  StageScope scope_;
  static std::shared_ptr<const VocoderModel> model_;
};
std::shared_ptr<const VocoderModel> VocoderParity::model_;

TEST_P(VocoderParity, MelAndWaveformOfEveryWindow) {
  const Golden golden(GetParam());
  const auto codes = codes_of(golden);
  const auto ranges = golden.integers("window.ranges");
  double worst_mel = 0, worst_wav = 0;
  for (size_t i = 0; i < ranges.size() / 2; ++i) {
    const int64_t begin = ranges[2 * i], end = ranges[2 * i + 1];
    const auto window = model_->decode(std::span(codes).subspan(4 * begin, 4 * (end - begin)));
    const std::string name = "window." + std::to_string(i);
    worst_mel = std::max(worst_mel, relative_error(window.mel.t(), golden[name + ".mel"]));
    const auto wav = golden.floats(name + ".wav");
    worst_wav = std::max(worst_wav, max_difference({window.wav.const_data_ptr<float>(),
                                                    static_cast<size_t>(window.wav.numel())},
                                                   wav));
  }
  std::printf("%s: mel %.2g relative, wav %.2g of full scale\n", GetParam(), worst_mel, worst_wav);
  EXPECT_LE(worst_mel, kMelBound);
  EXPECT_LE(worst_wav, kPcmBound);
}

TEST_P(VocoderParity, StitchedAnswer) {
  const Golden golden(GetParam());
  const auto pcm = stream(model_, golden);
  const double error = max_difference(pcm, golden.floats("output.audio"));
  std::printf("%s: stitched %.2g of full scale\n", GetParam(), error);
  EXPECT_LE(error, kPcmBound);
}

// Where a window takes over, and where its cross-fade ends, the waveform must not jump.
TEST_P(VocoderParity, NoJumpAtTheJoins) {
  const Golden golden(GetParam());
  const auto pcm = stream(model_, golden);
  const auto ranges = golden.integers("window.ranges");
  std::vector<size_t> joins;
  for (size_t i = 1; i + 2 < ranges.size(); i += 2) {
    joins.push_back(static_cast<size_t>(512 * ranges[i] - 2048));
    joins.push_back(static_cast<size_t>(512 * ranges[i]));
  }
  double inside = 0, at_joins = 0;
  for (size_t i = 1; i < pcm.size(); ++i) {
    double& worst = std::find(joins.begin(), joins.end(), i) == joins.end() ? inside : at_joins;
    worst = std::max(worst, std::abs(static_cast<double>(pcm[i]) - pcm[i - 1]));
  }
  ASSERT_GE(joins.size(), 8u);
  EXPECT_GT(inside, 0.01);
  EXPECT_LE(at_joins, 1.2 * inside);
}

// DVAE in bfloat16 (Vocos stays float32): the mel spectrogram, in units of the natural logarithm.
TEST_P(VocoderParity, BFloat16MelStaysWithinItsBound) {
  const Golden golden(GetParam());
  const auto model = load_model(at::kBFloat16);
  const auto codes = codes_of(golden);
  const auto ranges = golden.integers("window.ranges");
  double worst = 0;
  for (size_t i = 0; i < ranges.size() / 2; ++i) {
    const int64_t begin = ranges[2 * i], end = ranges[2 * i + 1];
    const auto window = model->decode(std::span(codes).subspan(4 * begin, 4 * (end - begin)));
    ASSERT_EQ(window.mel.scalar_type(), at::kBFloat16);
    ASSERT_EQ(window.wav.scalar_type(), at::kFloat);
    worst = std::max(
        worst, relative_error(window.mel.t(), golden["window." + std::to_string(i) + ".mel"]));
  }
  const auto pcm = stream(model, golden);
  const double wav = max_difference(pcm, golden.floats("output.audio"));
  std::printf("%s: bfloat16 mel %.2g relative, wav %.2g of full scale\n", GetParam(), worst, wav);
  EXPECT_LE(worst, 0.02);  // 0.0057 was measured
  EXPECT_LE(wav, 0.03);    // 0.0073 was measured
  EXPECT_GT(worst, 1e-4);  // otherwise this did not run in bfloat16
}

// Answers of several segments; the golden sound is stored in float16, which rounds by up to 2.5e-4.
class SegmentParity : public testing::TestWithParam<Compatibility> {};

TEST_P(SegmentParity, JoinsOfSegments) {
  const bool upstream = GetParam() == Compatibility::kUpstream;
  const Golden golden(upstream ? "two_segments_upstream" : "two_segments_none");
  const StageScope scope;
  const auto wide = golden.integers("codes"), calls = golden.integers("calls");
  const std::vector<int32_t> codes(wide.begin(), wide.end());
  const auto session = std::move(*new_vocoder(load_model(at::kFloat), VocoderOptions{GetParam()}));
  std::vector<float> pcm;
  int64_t begin = 0, joins = 0;
  for (size_t i = 0; i < calls.size();
       i += 5) {  // segment, new rows, burst, text tokens, first of a continuation
    auto piece = session->step(*rows_of(codes, begin, begin + calls[i + 1]), calls[i + 4] == 1,
                               CancelFlag());
    ASSERT_TRUE(piece.ok()) << piece.error().message;
    append(pcm, **piece);
    begin += calls[i + 1];
    joins += calls[i + 4];
  }
  append(pcm, **session->flush());
  EXPECT_EQ(joins, upstream ? 1 : 3);
  EXPECT_EQ(pcm.size(), codes.size() / 4 * 512 + (upstream ? 2048 : 0));
  const double error = max_difference(pcm, golden.floats("output.audio"));
  std::printf("%s: %.2g of full scale\n", upstream ? "upstream" : "none", error);
  EXPECT_LE(error, 3e-4);
}

INSTANTIATE_TEST_SUITE_P(Compatibility, SegmentParity,
                         testing::Values(Compatibility::kNone, Compatibility::kUpstream),
                         [](const auto& test) {
                           return std::string(test.param == Compatibility::kNone ? "none"
                                                                                 : "upstream");
                         });

INSTANTIATE_TEST_SUITE_P(Golden, VocoderParity, testing::Values("q01_cap", "q05_count"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace minicpmo
