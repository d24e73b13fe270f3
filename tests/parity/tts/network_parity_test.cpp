// Parts of the speech model against the Python reference: the network in a continuation segment,
// where unfilled slots are seen as zeros, and the filters that codes are drawn through.
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "../../unit/tts/tiny_speech.h"
#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"

namespace minicpmo {
namespace {

std::vector<int32_t> ids(const Golden& golden, const std::string& name) {
  const auto values = golden.integers(name);
  return {values.begin(), values.end()};
}

TEST(ContinuationSegment, PrefixStatesLogitsAndCodes) {
  const Golden golden("continuation_steps");
  StageScope scope;
  SpeechDecoder decoder(speech_weights(), 200);
  decoder.set_speaker(must(unwrap_tensor(speaker_tensor(default_speaker()))));
  decoder.begin_segment();
  const std::vector<int32_t> start = {speech_weights()->start_token,
                                      static_cast<int32_t>(speech_weights()->config.speaker_token)};
  const auto with = [](std::vector<int32_t> head, std::span<const int32_t> tail) {
    head.insert(head.end(), tail.begin(), tail.end());
    return head;
  };
  const auto carried = ids(golden, "carried_ids"), text = ids(golden, "text_ids");
  const auto rows = to_code_rows(golden.integers("carried_codes"));
  const auto codes = to_code_rows(golden.integers("codes"));
  decoder.prefill_text(with(start, carried), 0);
  const at::Tensor states =
      decoder.prefill_codes(std::span(rows).first(rows.size() - 1), std::ssize(carried));
  EXPECT_LE(relative_error(states, golden["prefix_states"]), 1e-4);

  const auto kept = golden.integers("steps");
  const auto expected = golden.floats("logits");
  size_t k = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (i == 0) decoder.prefill_text(with(start, std::span(text).first(10)), 0);
    if (i == 25) decoder.prefill_text(std::span(text).subspan(10, 10), 12);
    if (i == 50) {
      auto rest = with({}, std::span(text).subspan(20));
      rest.push_back(static_cast<int32_t>(speech_weights()->config.text_eos_token));
      decoder.prefill_text(rest, 22);
    }
    const auto logits = decoder.step(i == 0 ? rows.back() : codes[i - 1], std::ssize(text));
    if (k < kept.size() && kept[k] == static_cast<int64_t>(i)) {
      const std::span<const float> wanted(&expected[k++ * logits.size()], logits.size());
      EXPECT_LE(relative_error(logits, wanted), 1e-4) << "step " << i;
    }
    for (size_t book = 0; book < kBooks; ++book) {
      const auto best = argmax(logits.subspan(book * 626, 625));
      EXPECT_EQ(best, codes[i][book]) << "step " << i << ", book " << book;
    }
  }
  EXPECT_EQ(k, kept.size());
}

TEST(SampledCodes, ProbabilitiesAsTheReference) {
  const Golden golden("sampling");
  const auto cases = nlohmann::json::parse(golden.metadata("tts"));
  ASSERT_GE(cases.size(), 5U);
  for (size_t n = 0; n < cases.size(); ++n) {
    const std::string prefix = "tts." + std::to_string(n);
    auto logits = golden.floats(prefix + ".logits");
    const auto expected = golden.floats(prefix + ".probabilities");
    filter_codes(logits, {.temperature = cases[n]["temperature_factor"]}, cases[n]["first"],
                 cases[n]["step"].get<int>() >= kCodesBeforeEnd);
    for (size_t book = 0; book < kBooks; ++book) {
      double sum = 0;
      const std::span<const float> scores(&logits[book * 626], 626);
      const double top = scores[static_cast<size_t>(argmax(scores))];
      for (float x : scores) sum += std::exp(x - top);
      for (size_t i = 0; i < 626; ++i) {
        ASSERT_NEAR(std::exp(scores[i] - top) / sum, expected[book * 626 + i], 1e-5)
            << "case " << n << ", book " << book << ", code " << i;
      }
    }
  }
}

}  // namespace
}  // namespace minicpmo
