// The language model against tools/tiny/reference (plain PyTorch, float32, greedy).
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "engine/torch_tensor.h"
#include "golden.h"
#include "llm/language_model.h"
#include "session_tools.h"

namespace minicpmo {
namespace {

constexpr double kBound = 1e-4;

class LanguageModelParity : public ::testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() { weights_ = load_test_model(at::kFloat); }
  static void TearDownTestSuite() { weights_.reset(); }

  static LanguageModelOptions greedy() {
    LanguageModelOptions options;
    options.temperature = 0;
    options.repetition_penalty = 1;
    return options;
  }
  static std::vector<int32_t> narrow(const std::vector<int64_t>& ids) {
    return {ids.begin(), ids.end()};
  }
  // Reads the golden's embeddings and starts the answer.
  std::unique_ptr<LanguageSession> ask(const Golden& golden) {
    auto session = std::make_unique<LanguageSession>(weights_, greedy());
    const int chunks = golden.count("chunk.", ".embed");
    EXPECT_GT(chunks, 0);
    for (int i = 0; i < chunks; ++i) {
      const auto embed = wrap_tensor(golden["chunk." + std::to_string(i) + ".embed"]);
      const auto result = session->prefill_audio(*embed, go_);
      EXPECT_TRUE(result.ok()) << result.error().message;
    }
    return session;
  }

  CancelFlag go_;
  static std::shared_ptr<const LanguageModelWeights> weights_;
};

std::shared_ptr<const LanguageModelWeights> LanguageModelParity::weights_;

TEST_P(LanguageModelParity, ReadsTheSameIds) {
  const Golden golden(GetParam());
  LanguageSession session(weights_, greedy());
  ASSERT_TRUE(session.prime(go_).ok());
  EXPECT_EQ(session.conversation().fed(), narrow(golden.integers("session.system_ids")));
  auto asked = ask(golden);
  ASSERT_TRUE(asked->start_answer(go_).ok());
  EXPECT_EQ(asked->conversation().fed(), narrow(golden.integers("session.prompt_ids")));
}

TEST_P(LanguageModelParity, SaysTheSameWithTheSameLogits) {
  const Golden golden(GetParam());
  const auto tokens = narrow(golden.integers("llm.tokens"));
  const at::Tensor logits = golden["llm.logits"];
  const auto session = ask(golden);
  double worst = 0;
  size_t step = 0;
  std::vector<int32_t> chosen;
  session->set_token_hook([&](std::span<const float> seen, int32_t id) {
    if (step >= tokens.size()) return id;
    const at::Tensor expected = logits.select(0, static_cast<int64_t>(step)).contiguous();
    const std::span<const float> row(expected.const_data_ptr<float>(),
                                     static_cast<size_t>(expected.numel()));
    worst = std::max(worst, relative_error(seen, row));
    chosen.push_back(id);
    return tokens[step++];
  });
  const Said said = answer(*session);
  EXPECT_EQ(chosen, tokens);
  EXPECT_EQ(said.ids, tokens);
  EXPECT_LE(worst, kBound);
  EXPECT_EQ(said.text, golden.metadata("reply"));
  EXPECT_EQ(said.finish, FinishReason::kStop);
  RecordProperty("worst", std::to_string(worst));
  std::printf("logits: worst relative error %.2e\n", worst);
}

TEST_P(LanguageModelParity, SpeakerVectorIsTheSame) {
  const Golden golden(GetParam());
  const auto session = ask(golden);
  ASSERT_TRUE(session->start_answer(go_).ok());
  const auto burst = session->next_burst(go_);
  ASSERT_TRUE(burst.ok());
  ASSERT_TRUE(burst->speaker);
  const auto speaker = unwrap_tensor(*burst->speaker);
  ASSERT_TRUE(speaker.ok());
  const double error = relative_error(*speaker, golden["llm.spk_hidden"]);
  EXPECT_LE(error, kBound);
  std::printf("speaker: relative error %.2e\n", error);
}

INSTANTIATE_TEST_SUITE_P(Golden, LanguageModelParity, ::testing::Values("q01_cap", "q05_count"));

}  // namespace
}  // namespace minicpmo
