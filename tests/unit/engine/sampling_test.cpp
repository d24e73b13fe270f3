// Sampling against distributions computed by hand.
#include "engine/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace minicpmo {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> out;
  for (double p : probabilities) out.push_back(static_cast<float>(std::log(p)));
  return out;
}

std::vector<int> kept(const std::vector<float>& logits) {
  std::vector<int> out;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -kInf) out.push_back(static_cast<int>(i));
  }
  return out;
}

// Known-answer vectors published with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, MatchesThePublishedKnownAnswers) {
  struct Vector {
    uint32_t counter[4], key[2], answer[4];
  };
  const Vector vectors[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const Vector& v : vectors) {
    uint32_t out[4];
    Philox::block(v.counter, v.key, out);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(out[i], v.answer[i]) << i;
  }
}

TEST(Philox, UniformTakesTheBlocksOfSeedAndStreamInOrder) {
  Philox random(0x1122334455667788, 0x99aabbccddeeff00);
  for (uint32_t block = 0; block < 3; ++block) {
    const uint32_t counter[4] = {block, 0, 0xddeeff00, 0x99aabbcc};
    const uint32_t key[2] = {0x55667788, 0x11223344};
    uint32_t out[4];
    Philox::block(counter, key, out);
    for (uint32_t word : out)
      EXPECT_EQ(random.uniform(), static_cast<float>(word >> 8) / 16777216.0f);
  }
}

TEST(Philox, UniformIsInRangeAndFlat) {
  Philox random(7, 0);
  double sum = 0;
  std::vector<int> bins(16);
  for (int i = 0; i < 160'000; ++i) {
    const float u = random.uniform();
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    sum += u;
    ++bins[static_cast<int>(u * 16)];
  }
  EXPECT_NEAR(sum / 160'000, 0.5, 0.003);
  for (int n : bins) EXPECT_NEAR(n, 10'000, 500);
}

TEST(Philox, SeedsAndStreamsDiffer) {
  const float a = Philox(1, 0).uniform();
  EXPECT_EQ(a, Philox(1, 0).uniform());
  EXPECT_NE(a, Philox(2, 0).uniform());
  EXPECT_NE(a, Philox(1, 1).uniform());
}

TEST(Argmax, TakesTheFirstOfEqualOnes) {
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(argmax(std::vector<float>{-kInf, -5}), 1);
  EXPECT_EQ(argmax(std::vector<float>{kNan, 1, kNan}), 1);
  EXPECT_EQ(argmax(std::vector<float>{kNan, kNan}), 0);
}

TEST(RepetitionPenalty, DividesPositiveAndMultipliesNegativeOnce) {
  std::vector<float> x = {2, -2, 3, 0};
  apply_repetition_penalty(x, std::vector<int32_t>{0, 1, 0, 0, 1, 3}, 2.0);
  EXPECT_EQ(x, (std::vector<float>{1, -4, 3, 0}));
}

TEST(RepetitionPenalty, IgnoresIdsOutsideTheVocabulary) {
  std::vector<float> x = {2, 2};
  apply_repetition_penalty(x, std::vector<int32_t>{-1, 2, 1 << 30, 1}, 2.0);
  EXPECT_EQ(x, (std::vector<float>{2, 1}));
}

TEST(TopK, KeepsTheBestAndTheTiesWithTheLastOfThem) {
  std::vector<float> x = {1, 5, 3, 3, 2};
  apply_top_k(x, 2);
  EXPECT_EQ(kept(x), (std::vector<int>{1, 2, 3}));
  x = {1, 5, 3, 4, 2};
  apply_top_k(x, 2);
  EXPECT_EQ(kept(x), (std::vector<int>{1, 3}));
}

TEST(TopK, ZeroIsOffAndMinKeepWins) {
  std::vector<float> x = {1, 2, 3, 4};
  apply_top_k(x, 0);
  apply_top_k(x, 10);
  EXPECT_EQ(kept(x).size(), 4u);
  apply_top_k(x, 1, 3);
  EXPECT_EQ(kept(x), (std::vector<int>{1, 2, 3}));
}

TEST(TopP, DropsTheTailWhoseSumIsAtMostOneMinusP) {
  // Ascending: 0.05, 0.1, 0.25, 0.6; cumulative 0.05, 0.15, 0.4, 1.
  const std::vector<float> logits = logs({0.6, 0.05, 0.25, 0.1});
  const std::pair<double, std::vector<int>> cases[] = {
      {0.99, {0, 1, 2, 3}}, {0.94, {0, 2, 3}}, {0.86, {0, 2, 3}}, {0.84, {0, 2}},
      {0.61, {0, 2}},       {0.59, {0}},       {0.0, {0}}};
  for (const auto& [p, expected] : cases) {
    std::vector<float> x = logits;
    apply_top_p(x, p);
    EXPECT_EQ(kept(x), expected) << p;
  }
}

TEST(TopP, KeepsAtLeastMinKeepAndLeavesKeptValuesAlone) {
  std::vector<float> x = logs({0.97, 0.01, 0.02});
  const std::vector<float> before = x;
  apply_top_p(x, 0.5, 2);
  EXPECT_EQ(kept(x), (std::vector<int>{0, 2}));
  EXPECT_EQ(x[0], before[0]);
  EXPECT_EQ(x[2], before[2]);
  x = before;
  apply_top_p(x, 1.0);
  EXPECT_EQ(x, before);
}

TEST(TopP, CountsOnlyWhatIsStillPossible) {
  std::vector<float> x = logs({0.4, 0.3, 0.2, 0.1});
  x[0] = -kInf;  // the others: 0.5, 0.33, 0.17
  apply_top_p(x, 0.8);
  EXPECT_EQ(kept(x), (std::vector<int>{1, 2}));
}

// The speech model filters top-p first, the language model top-k first: the results differ.
TEST(Filters, TheirOrderMatters) {
  const std::vector<float> logits = logs({0.3, 0.25, 0.2, 0.15, 0.1});
  std::vector<float> p_first = logits, k_first = logits;
  apply_top_p(p_first, 0.6);  // drops 0.1, 0.15; then 0.2 makes 0.45 > 0.4
  apply_top_k(p_first, 3);
  EXPECT_EQ(kept(p_first), (std::vector<int>{0, 1, 2}));
  apply_top_k(k_first, 3);    // 0.4, 0.33, 0.27 of what is left
  apply_top_p(k_first, 0.6);  // drops 0.27
  EXPECT_EQ(kept(k_first), (std::vector<int>{0, 1}));
}

TEST(Sample, InvertsTheCumulativeDistribution) {
  const std::vector<float> x = logs({0.2, 0.5, 0.3});
  EXPECT_EQ(sample(x, 0.0f), 0);
  EXPECT_EQ(sample(x, 0.19f), 0);
  EXPECT_EQ(sample(x, 0.21f), 1);
  EXPECT_EQ(sample(x, 0.69f), 1);
  EXPECT_EQ(sample(x, 0.71f), 2);
  EXPECT_EQ(sample(x, 0x1.fffffep-1f), 2);
}

TEST(Sample, FollowsTheDistribution) {
  const std::vector<double> p = {0.05, 0.4, 0.0001, 0.2499, 0.3};
  const std::vector<float> x = logs(p);
  Philox random(3, 1);
  std::vector<int> hits(p.size());
  const int n = 100'000;
  for (int i = 0; i < n; ++i) ++hits[sample(x, random.uniform())];
  for (size_t i = 0; i < p.size(); ++i) {
    EXPECT_NEAR(hits[i], n * p[i], 5 * std::sqrt(n * p[i]) + 1) << i;
  }
}

TEST(Sample, NeverTakesWhatWasFilteredOut) {
  std::vector<float> x(50, 1.0f);
  for (int i = 0; i < 50; i += 2) x[i] = -kInf;
  Philox random(9, 0);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(sample(x, random.uniform()) % 2, 1);
  EXPECT_EQ(sample(x, 0.0f), 1);
}

TEST(Sample, HostileLogitsGiveAnIdInRange) {
  const std::vector<std::vector<float>> cases = {
      {kNan, kNan, kNan}, {-kInf, -kInf}, {kInf, 1, kInf}, {kNan, 2, -kInf}, {3e38f, -3e38f}, {0}};
  for (auto x : cases) {
    for (float u : {0.0f, 0.5f, 0x1.fffffep-1f}) {
      auto y = x;
      apply_repetition_penalty(y, std::vector<int32_t>{0}, 1.05);
      apply_top_k(y, 1);
      apply_top_p(y, 0.7, 3);
      const int32_t id = sample(y, u);
      EXPECT_GE(id, 0);
      EXPECT_LT(id, static_cast<int32_t>(x.size()));
    }
  }
  EXPECT_EQ(sample(std::vector<float>{kNan, 2, -kInf}, 0.9f), 1);
  EXPECT_EQ(sample(std::vector<float>{0, kInf}, 0.1f), 1);
}

}  // namespace
}  // namespace minicpmo
