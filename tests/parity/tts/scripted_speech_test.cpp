// Scripted bursts through the whole speech model, in both compatibilities, against the Python
// reference.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../../unit/tts/tiny_speech.h"
#include "tts/text_normalizer.h"

namespace minicpmo {
namespace {

constexpr double kBound = 1e-4;

Compatibility compatibility(const Golden& golden) {
  return golden.metadata("compatibility") == "upstream" ? Compatibility::kUpstream
                                                        : Compatibility::kNone;
}

std::vector<std::string> bursts(const Golden& golden) {
  return nlohmann::json::parse(golden.metadata("bursts")).get<std::vector<std::string>>();
}

// Rows before the first step at which two codes are so close that rounding may decide.
size_t safe_rows(const Golden& golden, size_t all) {
  try {
    return std::stoul(golden.metadata("safe_rows"));
  } catch (const std::runtime_error&) {  // none: all of them are
    return all;
  }
}

class ScriptedSpeech : public testing::TestWithParam<const char*> {
 protected:
  Golden golden{GetParam()};
  SpeechSession session{speech_weights()};
  HostTensor speaker = speaker_tensor(default_speaker());
  SpeechModelOptions options{.temperature = 0, .compatibility = compatibility(golden)};
};

// The planner alone, told of the end of speech as the reference found it: every prefill and call.
TEST_P(ScriptedSpeech, PrefillsAndCalls) {
  const auto calls = golden.integers("calls"), prefills = golden.integers("prefills");
  const auto ids = golden.integers("prefill_ids");
  SpeechText text(speech_tokenizer(),
                  {.start_token = speech_weights()->start_token,
                   .speaker_token = speech_tokenizer()->token_to_id("[spk_emb]"),
                   .end_token = speech_tokenizer()->token_to_id("[Etts]")});
  text.start(options.compatibility);
  size_t call = 0, prefill = 0, id = 0;
  int64_t segment = -1, rows = 0;
  const auto expect_prefill = [&](int64_t begin, const std::vector<int32_t>& actual) {
    ASSERT_LT(prefill, prefills.size() / 4);
    EXPECT_EQ(prefills[4 * prefill + 1], begin);
    const auto n = static_cast<size_t>(prefills[4 * prefill + 2]);
    EXPECT_EQ(actual, std::vector<int32_t>(ids.begin() + id, ids.begin() + id + n))
        << "prefill " << prefill;
    ++prefill, id += n;
  };
  const auto run = [&](int64_t burst) {
    while (const auto next = text.next()) {
      ASSERT_LT(call, calls.size() / 5);
      const int64_t* expected = &calls[5 * call++];
      if (next->new_segment) ++segment, rows = 0;
      EXPECT_EQ(segment, expected[0]);
      EXPECT_EQ(next->text_complete ? -1 : burst, expected[2]);
      EXPECT_EQ(next->text_tokens, expected[3]);
      EXPECT_EQ(next->continuation, expected[4] != 0);
      if (next->continuation) {
        std::vector<int32_t> prefix = {speech_weights()->start_token,
                                       speech_tokenizer()->token_to_id("[spk_emb]")};
        prefix.insert(prefix.end(), next->prefix.begin(), next->prefix.end());
        expect_prefill(0, prefix);
      }
      if (!next->ids.empty()) expect_prefill(next->begin, next->ids);
      rows += expected[1];
      text.generated(expected[1]<kCodesPerCall, rows> 2048);
    }
  };
  const auto all = bursts(golden);
  for (size_t i = 0; i < all.size(); ++i) {
    text.push(all[i]);
    run(static_cast<int64_t>(i));
  }
  text.end();
  run(-1);
  EXPECT_TRUE(text.done());
  EXPECT_EQ(call, calls.size() / 5);
  // Upstream's prefill of the audio start, which has no effect, is left out.
  const bool left_out = prefill < prefills.size() / 4 && prefills[4 * prefill + 1] == 302;
  EXPECT_EQ(prefill + (left_out ? 1 : 0), prefills.size() / 4);
}

TEST_P(ScriptedSpeech, GreedyCodes) {
  const Speech speech = speak(session, speaker, bursts(golden), options);
  const auto expected = to_code_rows(golden.integers("codes"));
  EXPECT_TRUE(speech.last);
  const size_t safe = safe_rows(golden, expected.size());
  ASSERT_GE(speech.codes.size(), safe);
  for (size_t i = 0; i < safe; ++i) ASSERT_EQ(speech.codes[i], expected[i]) << "row " << i;
  if (safe < expected.size()) return;
  EXPECT_EQ(speech.codes.size(), safe);
}

TEST_P(ScriptedSpeech, LogitsOfEachSegmentWithForcedCodes) {
  const bool shortened = std::string(GetParam()) == "long_text_upstream";
  if (shortened) options.max_codes = 750;  // it never ends; the first calls will do
  const auto codes = to_code_rows(golden.integers("codes"));
  const auto calls = golden.integers("calls");
  // Index of the first step of each segment; a call that ended has one step more than rows.
  std::map<int64_t, int64_t> first_step;
  std::vector<bool> ends;  // per step
  for (size_t i = 0; i < calls.size() / 5; ++i) {
    first_step.try_emplace(calls[5 * i], std::ssize(ends));
    ends.insert(ends.end(), static_cast<size_t>(calls[5 * i + 1]), false);
    if (calls[5 * i + 1] < kCodesPerCall) ends.push_back(true);
  }
  std::vector<std::vector<float>> logits;
  size_t row = 0;
  session.set_code_hook([&](std::span<const float> step, const CodeRow&) {
    logits.emplace_back(step.begin(), step.end());
    const size_t n = logits.size() - 1;
    if (n >= ends.size() || ends[n] || row >= codes.size()) return CodeRow{625, 625, 625, 625};
    return codes[row++];
  });
  speak(session, speaker, bursts(golden), options);
  EXPECT_EQ(logits.size(), shortened ? 775 : ends.size());
  for (const auto& [segment, step] : first_step) {
    const auto expected = golden.floats("segment." + std::to_string(segment) + ".logits");
    std::vector<float> actual, finite;
    for (int64_t i = step; i < step + 5; ++i) {
      ASSERT_LT(i, std::ssize(logits));
      actual.insert(actual.end(), logits[i].begin(), logits[i].end());
    }
    ASSERT_EQ(actual.size(), expected.size());
    std::vector<float> wanted;
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_EQ(std::isinf(actual[i]), std::isinf(expected[i]));
      if (!std::isinf(actual[i])) finite.push_back(actual[i]), wanted.push_back(expected[i]);
    }
    EXPECT_LE(relative_error(finite, wanted), kBound) << "segment " << segment;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, ScriptedSpeech,
                         testing::Values("two_segments_none", "two_segments_upstream", "rest_none",
                                         "rest_upstream", "long_text_upstream", "empty_reply_none",
                                         "empty_reply_upstream"),
                         [](const auto& info) { return std::string(info.param); });

class Digits : public testing::TestWithParam<const char*> {};

TEST_P(Digits, AsTheReference) {
  const Golden golden(GetParam());
  const auto cases = nlohmann::json::parse(golden.metadata("cases"));
  ASSERT_GE(cases.size(), 10U);
  for (const auto& c : cases) {
    TextNormalizer normalizer(compatibility(golden));
    normalizer.start();
    std::vector<std::string> normalized;
    for (const auto& burst : c["bursts"].get<std::vector<std::string>>()) {
      normalized.push_back(normalizer.normalize(burst).text);
    }
    EXPECT_EQ(normalized, c["normalized"].get<std::vector<std::string>>()) << c["bursts"].dump();
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Digits, testing::Values("digits_none", "digits_upstream"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace minicpmo
