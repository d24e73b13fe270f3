// The language model against tools/tiny/reference (plain PyTorch, float32, greedy).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
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

// Whole sessions. tests/fixtures/golden/README.md describes the files.
class SessionParity : public LanguageModelParity {
 protected:
  using Json = nlohmann::json;

  void hear(LanguageSession& session, const Golden& golden, const std::string& prefix) {
    const int chunks = golden.count(prefix + "chunk.", ".embed");
    ASSERT_GT(chunks, 0);
    for (int i = 0; i < chunks; ++i) {
      const auto embed = wrap_tensor(golden[prefix + "chunk." + std::to_string(i) + ".embed"]);
      const auto result = session.prefill_audio(*embed, go_);
      ASSERT_TRUE(result.ok()) << result.error().message;
    }
  }

  // Answers, with at most `take` bursts, and compares everything the golden holds of this turn.
  void compare_answer(LanguageSession& session, const Golden& golden, const std::string& prefix,
                      const Json& turn, int take = -1) {
    SCOPED_TRACE(prefix);
    ASSERT_TRUE(session.start_answer(go_).ok());
    EXPECT_EQ(session.conversation().fed(), narrow(golden.integers(prefix + "fed_ids")));
    const at::Tensor logits =
        golden.has(prefix + "logits") ? golden[prefix + "logits"] : at::Tensor();
    int64_t step = 0;
    session.set_token_hook([&](std::span<const float> seen, int32_t id) {
      if (logits.defined() && step < logits.size(0)) {
        const at::Tensor expected = logits.select(0, step).contiguous();
        EXPECT_LE(relative_error(seen, {expected.const_data_ptr<float>(),
                                        static_cast<size_t>(expected.numel())}),
                  kBound);
      }
      ++step;
      return id;
    });
    Said said;
    for (int i = 0; i != take && said.finish == FinishReason::kNone; ++i) {
      const auto burst = session.next_burst(go_);
      ASSERT_TRUE(burst.ok()) << burst.error().message;
      if (i == 0 && golden.has(prefix + "spk_hidden")) {
        const auto speaker = unwrap_tensor(*burst->speaker);
        ASSERT_TRUE(speaker.ok());
        EXPECT_LE(relative_error(*speaker, golden[prefix + "spk_hidden"]), kBound);
      }
      said.text += burst->text;
      said.bursts.push_back(burst->text);
      said.ids.insert(said.ids.end(), burst->ids.begin(), burst->ids.end());
      said.finish = burst->finish;
    }
    EXPECT_EQ(said.ids, narrow(golden.integers(prefix + "tokens")));
    EXPECT_EQ(said.text, turn.at("text").get<std::string>());
    EXPECT_EQ(said.bursts, turn.at("bursts").get<std::vector<std::string>>());
    const std::string finish = turn.at("finish");
    EXPECT_EQ(said.finish, finish == "stop"     ? FinishReason::kStop
                           : finish == "length" ? FinishReason::kLength
                                                : FinishReason::kNone);
  }

  static Json parse(const Golden& golden, const std::string& key) {
    return Json::parse(golden.metadata(key));
  }
};

TEST_F(SessionParity, TwoSpokenTurns) {
  const Golden golden("two_turns");
  const Json turns = parse(golden, "turns");
  LanguageSession session(weights_, greedy());
  ASSERT_EQ(turns.size(), 2u);
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string prefix = "turn." + std::to_string(i) + ".";
    hear(session, golden, prefix);
    compare_answer(session, golden, prefix, turns[i]);
  }
}

TEST_F(SessionParity, TypedQuestions) {
  const Golden golden("text_question");
  const Json turns = parse(golden, "turns");
  LanguageSession session(weights_, greedy());
  ASSERT_GE(turns.size(), 2u);
  for (size_t i = 0; i < turns.size(); ++i) {
    ASSERT_TRUE(session.prefill_text(turns[i].at("question").get<std::string>(), go_).ok());
    compare_answer(session, golden, "turn." + std::to_string(i) + ".", turns[i]);
  }
}

TEST_F(SessionParity, LongQuestion) {
  const Golden golden("long_audio");
  auto options = greedy();
  options.max_new_tokens = 12;
  LanguageSession session(weights_, options);
  hear(session, golden, "");
  compare_answer(session, golden, "turn.0.", parse(golden, "turns").at(0));
}

class InterruptionParity : public SessionParity {};

TEST_P(InterruptionParity, NextTurnGoesOnFromWhatIsKept) {
  const Golden golden("interrupted_" + GetParam()), first("q05_count"), second("q01_cap");
  const bool upstream = GetParam() == "upstream";
  const Json cases = parse(golden, "cases");
  auto options = greedy();
  options.compatibility = upstream ? Compatibility::kUpstream : Compatibility::kNone;
  ASSERT_GE(cases.size(), 4u);
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string prefix = "case." + std::to_string(i) + ".";
    const int take = cases[i].at("bursts_taken");
    const Json& turns = cases[i].at("turns");
    // Upstream's consumer may leave between the last burst and the end; here the last burst is the
    // end.
    const size_t bursts = turns[0].at("bursts").size();
    if (upstream && take == static_cast<int>(bursts)) continue;
    LanguageSession session(weights_, options);
    hear(session, first, "");
    compare_answer(session, golden, prefix + "turn.0.", turns[0], take);
    // A completed answer was heard whole upstream: there is nothing to interrupt.
    if (!(upstream && take < 0)) session.interrupt(cases[i].at("heard_bytes"));
    hear(session, second, "");
    const auto kept = narrow(golden.integers(prefix + "kept_ids"));
    const auto& fed = session.conversation().fed();
    ASSERT_GE(fed.size(), kept.size());
    EXPECT_TRUE(std::equal(kept.begin(), kept.end(), fed.begin())) << prefix;
    compare_answer(session, golden, prefix + "turn.1.", turns[1]);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, InterruptionParity, ::testing::Values("none", "upstream"));

TEST_F(SessionParity, NoSystemPromptAndLimitedAnswers) {
  const Golden golden("session_limits"), first("q05_count"), second("q01_cap");
  const Json cases = parse(golden, "cases");
  ASSERT_GE(cases.size(), 5u);
  for (size_t i = 0; i < cases.size(); ++i) {
    auto options = greedy();
    options.compatibility = cases[i].at("compatibility") == "upstream" ? Compatibility::kUpstream
                                                                       : Compatibility::kNone;
    options.system_prompt = cases[i].at("system_prompt");
    options.max_new_tokens = cases[i].at("max_new_tokens");
    LanguageSession session(weights_, options);
    const std::string prefix = "case." + std::to_string(i) + ".turn.";
    hear(session, first, "");
    compare_answer(session, golden, prefix + "0.", cases[i].at("turns")[0]);
    hear(session, second, "");
    compare_answer(session, golden, prefix + "1.", cases[i].at("turns")[1]);
  }
}

// The probabilities that penalty, temperature, top-k and top-p leave, seen by drawing.
TEST_F(SessionParity, SamplingDrawsWithTheReferencesProbabilities) {
  const Golden golden("sampling");
  const Json settings = parse(golden, "llm");
  ASSERT_GE(settings.size(), 5u);
  constexpr int kDraws = 4000;
  for (size_t i = 0; i < settings.size(); ++i) {
    const std::string prefix = "llm." + std::to_string(i) + ".";
    const auto logits = golden.floats(prefix + "logits");
    const auto expected = golden.floats(prefix + "probabilities");
    const auto penalised = narrow(golden.integers(prefix + "penalised_ids"));
    const SamplingSettings sampling{settings[i].at("temperature"), settings[i].at("top_p"),
                                    settings[i].at("repetition_penalty"), settings[i].at("top_k")};
    std::vector<int> hits(logits.size());
    Philox random(i, 0);
    for (int n = 0; n < kDraws; ++n) {
      auto scores = logits;
      ++hits[static_cast<size_t>(choose_token(scores, penalised, sampling, &random))];
    }
    for (size_t id = 0; id < hits.size(); ++id) {
      const double p = expected[id];
      if (p == 0) {
        EXPECT_EQ(hits[id], 0) << prefix << id;
      }
      const double sigma = std::sqrt(p * (1 - p) / kDraws);
      EXPECT_NEAR(static_cast<double>(hits[id]) / kDraws, p, 6 * sigma + 1e-3) << prefix << id;
    }
  }
}

}  // namespace
}  // namespace minicpmo
