#include "audioenc/log_mel.h"

#include <ATen/ops/allclose.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/stage_scope.h"
#include "naive.h"

namespace minicpmo {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kMels = 80;

std::vector<float> noise(size_t samples, float level = 0.3f, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-level, level);
  std::vector<float> pcm(samples);
  for (float& x : pcm) x = uniform(random);
  return pcm;
}

// Height at `hz` of the triangle from mel point m to m + 2, written with the formula of the mel
// scale only.
double triangle(double hz, int m) {
  const auto mel = [](double f) {
    return f < 1000 ? 3 * f / 200 : 15 + 27 * std::log(f / 1000) / std::log(6.4);
  };
  const auto point = [&](int i) {
    const double wanted = mel(8000) * i / (kMels + 1);
    double low = 0, high = 9000;  // the inverse, by bisection
    for (int n = 0; n < 80; ++n) (mel((low + high) / 2) < wanted ? low : high) = (low + high) / 2;
    return low;
  };
  const double left = point(m), top = point(m + 1), right = point(m + 2);
  if (hz <= left || hz >= right) return 0;
  return (hz < top ? (hz - left) / (top - left) : (right - hz) / (right - top)) * 2 /
         (right - left);
}

// The feature extractor as it is specified: zeros up to 30 s, a reflection on both sides of that,
// 3000 frames, of which the first ones are kept. Frames that see nothing but zeros are not
// transformed. all_frames false: the largest value is taken of the kept frames only, which is
// wrong.
naive::Matrix naive_log_mel(const std::vector<float>& pcm, bool all_frames = true) {
  static const std::vector<std::vector<double>> filters = [] {
    std::vector<std::vector<double>> f(201, std::vector<double>(kMels));
    for (int bin = 0; bin < 201; ++bin) {
      for (int m = 0; m < kMels; ++m) f[bin][m] = triangle(40.0 * bin, m);
    }
    return f;
  }();
  std::vector<double> cosine(400);
  for (int i = 0; i < 400; ++i) cosine[i] = std::cos(2 * kPi * i / 400);
  const auto sample = [&](int i) -> double {
    if (i < 0) i = -i;
    if (i > 479999) i = 2 * 479999 - i;
    return i < static_cast<int>(pcm.size()) ? pcm[i] : 0;
  };
  const int kept = static_cast<int>((pcm.size() + 159) / 160);
  naive::Matrix mel;
  double top = -10;
  for (int t = 0; t < 3000; ++t) {
    std::vector<double> x(400);
    bool silent = true;
    for (int i = 0; i < 400; ++i) {
      x[i] = sample(160 * t - 200 + i) * (0.5 - 0.5 * cosine[i]);
      silent = silent && x[i] == 0;
    }
    naive::Row row(kMels, 0);
    for (int bin = 0; bin < 201 && !silent; ++bin) {
      double re = 0, im = 0;
      for (int i = 0; i < 400; ++i) {
        re += x[i] * cosine[bin * i % 400];
        im += x[i] * cosine[(bin * i + 100) % 400];
      }
      for (int m = 0; m < kMels; ++m) row[m] += filters[bin][m] * (re * re + im * im);
    }
    for (double& v : row) v = std::log10(std::max(v, 1e-10));
    if (all_frames || t < kept) top = std::max(top, *std::max_element(row.begin(), row.end()));
    if (t < kept) mel.push_back(row);
  }
  return naive::map(mel, [&](double v) { return (std::max(v, top - 8) + 4) / 4; });
}

class LogMelTest : public testing::Test {
 protected:
  StageScope scope_;
  LogMel log_mel_{kMels};
};

class LogMelLengths : public LogMelTest, public testing::WithParamInterface<size_t> {};

TEST_P(LogMelLengths, EqualsTheDefinition) {
  const auto pcm = noise(GetParam());
  const at::Tensor mel = log_mel_(pcm);
  EXPECT_EQ(mel.scalar_type(), at::kFloat);
  EXPECT_EQ(mel.size(0), LogMel::frames(static_cast<int64_t>(GetParam())));
  EXPECT_LE(naive::relative_error(mel, naive_log_mel(pcm)), 1e-5);
}

// From one sample, with the edges of frames, of the reflection, of the encoder and of the chunk.
INSTANTIATE_TEST_SUITE_P(Samples, LogMelLengths,
                         testing::Values(1, 2, 40, 159, 160, 161, 199, 200, 201, 320, 321, 479, 480,
                                         481, 6000, 15999, 16000, 16001));

TEST_F(LogMelTest, SilenceIsExactlyMinusOnePointFive) {
  for (size_t samples : {1, 321, 5000, 16000}) {
    const at::Tensor mel = log_mel_(std::vector<float>(samples, 0.f));
    EXPECT_TRUE(mel.eq(-1.5).all().item<bool>()) << samples << " samples";
  }
}

TEST_F(LogMelTest, ClickAtTheEndSetsTheMaximumFromAFrameThatIsCut) {
  std::vector<float> pcm = noise(16000, 1e-4f);
  pcm.back() = 1;
  const auto mel = log_mel_(pcm);
  EXPECT_LE(naive::relative_error(mel, naive_log_mel(pcm)), 1e-5);
  // The frames that are kept see the click only through the edge of their window.
  EXPECT_GE(naive::relative_error(mel, naive_log_mel(pcm, false)), 0.05);
}

TEST_F(LogMelTest, FullThirtySecondsReflectAtTheirEnd) {
  std::vector<float> pcm(480000, 0.f);
  const auto head = noise(700), tail = noise(700, 0.5f, 2);
  std::copy(head.begin(), head.end(), pcm.begin());
  std::copy(tail.begin(), tail.end(), pcm.end() - 700);
  const auto mel = log_mel_(pcm);
  EXPECT_EQ(mel.size(0), 3000);
  EXPECT_LE(naive::relative_error(mel, naive_log_mel(pcm)), 1e-5);
}

TEST_F(LogMelTest, NothingIsMoreThanEightDecadesBelowTheLargest) {
  std::vector<float> pcm(16000, 0.f);
  pcm[8000] = 1;
  const at::Tensor mel = log_mel_(pcm);
  EXPECT_FLOAT_EQ(mel.max().item<float>() - mel.min().item<float>(), 2.f);  // 8 / 4
}

TEST_F(LogMelTest, SamplesThatAreNotFiniteCountAsZero) {
  auto pcm = noise(4000), zeroed = pcm;
  for (size_t i = 0; i < pcm.size(); i += 37) {
    pcm[i] = i % 2 == 0 ? std::nanf("") : std::numeric_limits<float>::infinity();
    zeroed[i] = 0;
  }
  EXPECT_TRUE(log_mel_(pcm).equal(log_mel_(zeroed)));
}

TEST_F(LogMelTest, AbsurdSamplesGiveFiniteValues) {
  auto pcm = noise(4000);
  pcm[100] = std::numeric_limits<float>::max();
  pcm[200] = std::numeric_limits<float>::lowest();
  EXPECT_TRUE(log_mel_(pcm).isfinite().all().item<bool>());
}

TEST_F(LogMelTest, AToneLandsInItsFilter) {
  std::vector<float> pcm(16000);
  for (size_t i = 0; i < pcm.size(); ++i)
    pcm[i] = 0.5f * static_cast<float>(std::sin(2 * kPi * 1000 * i / 16000));
  // 1 kHz is mel 15 of 45.245; filter m is centred on point m + 1 of 81 steps, so m = 26 (25.85).
  EXPECT_EQ(log_mel_(pcm)[50].argmax().item<int64_t>(), 26);
}

TEST(SlaneyFilters, EqualTheFormula) {
  const at::Tensor filters = slaney_filters(201, kMels, 8000);
  ASSERT_EQ(filters.sizes(), at::IntArrayRef({201, kMels}));
  for (int bin = 0; bin < 201; ++bin) {
    for (int m = 0; m < kMels; ++m) {
      ASSERT_NEAR(filters[bin][m].item<float>(), triangle(40.0 * bin, m), 1e-8) << bin << " " << m;
    }
  }
}

TEST(SlaneyFilters, EachHasTheAreaOne) {
  // With bins fine enough for the narrowest triangle the sum is an integral.
  const at::Tensor area = slaney_filters(40001, kMels, 8000).to(at::kDouble).sum(0).mul(0.2);
  EXPECT_NEAR(area.min().item<double>(), 1, 1e-3);
  EXPECT_NEAR(area.max().item<double>(), 1, 1e-3);
}

}  // namespace
}  // namespace minicpmo
