// The speech model against the Python reference: float32, greedy.
#include <gtest/gtest.h>

#include "../../unit/tts/tiny_speech.h"

namespace minicpmo {
namespace {

constexpr double kBound = 1e-4;  // relative error of states and logits

// The bursts of a golden turn: its tokens by threes, without what the reference drops.
std::vector<std::string> bursts_of(const Golden& golden) {
  static const auto tokenizer =
      must(load_bpe_tokenizer(std::string(MODEL_DIR) + "/tokenizer.json"));
  std::vector<std::string> bursts;
  const auto tokens = golden.integers("llm.tokens");
  for (size_t i = 0; i < tokens.size(); i += 3) {
    std::vector<int32_t> ids;
    for (size_t k = i; k < std::min(i + 3, tokens.size()); ++k) {
      const auto id = static_cast<int32_t>(tokens[k]);
      if (!tokenizer->is_added_token(id)) ids.push_back(id);
    }
    bursts.push_back(tokenizer->decode(ids));
  }
  return bursts;
}

class SpeechTurn : public testing::TestWithParam<const char*> {
 protected:
  Golden golden{GetParam()};
  HostTensor speaker = speaker_tensor(golden.floats("llm.spk_hidden"));
  SpeechSession session{speech_weights()};
};

TEST_P(SpeechTurn, SpeakerEmbedding) {
  ASSERT_TRUE(session.start(speaker, {}).ok());
  EXPECT_LE(relative_error(session.decoder()->speaker(), golden["tts.spk_embedding"]), 1e-5);
}

TEST_P(SpeechTurn, LogitsWithForcedCodes) {
  const auto codes = to_code_rows(golden.integers("tts.codes"));
  const size_t steps = static_cast<size_t>(golden["tts.logits"].size(0));
  std::vector<float> logits;
  size_t n = 0;
  session.set_code_hook([&](std::span<const float> step, const CodeRow& row) {
    if (n < steps) logits.insert(logits.end(), step.begin(), step.end());
    return n < codes.size() ? codes[n++] : row;
  });
  speak(session, speaker, bursts_of(golden), {.temperature = 0});
  auto expected = golden.floats("tts.logits");
  ASSERT_EQ(logits.size(), expected.size());
  for (size_t i = 0; i < logits.size(); ++i) {  // the barred end is -inf in both
    ASSERT_EQ(std::isinf(logits[i]), std::isinf(expected[i])) << i;
    if (std::isinf(logits[i])) logits[i] = expected[i] = 0;
  }
  EXPECT_LE(relative_error(logits, expected), kBound);
}

TEST_P(SpeechTurn, GreedyCodes) {
  const Speech speech = speak(session, speaker, bursts_of(golden), {.temperature = 0});
  EXPECT_TRUE(speech.last);
  EXPECT_EQ(speech.codes, to_code_rows(golden.integers("tts.codes")));
}

TEST_P(SpeechTurn, TextIds) {
  speak(session, speaker, bursts_of(golden), {.temperature = 0});
  const auto expected = golden.integers("tts.text_ids");
  EXPECT_EQ(session.text().text_ids(), std::vector<int32_t>(expected.begin(), expected.end()));
}

TEST_P(SpeechTurn, ChunksAreTheWindowsOfTheReference) {
  const Speech speech = speak(session, speaker, bursts_of(golden), {.temperature = 0});
  const auto ranges = golden.integers("window.ranges");
  ASSERT_EQ(speech.rows.size(), ranges.size() / 2);
  int64_t end = 0;
  for (size_t i = 0; i < speech.rows.size(); ++i) {
    EXPECT_EQ(ranges[2 * i], std::max<int64_t>(end - 4, 0));
    end += speech.rows[i];
    EXPECT_EQ(ranges[2 * i + 1], end);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, SpeechTurn, testing::Values("q01_cap", "q05_count"));

}  // namespace
}  // namespace minicpmo
