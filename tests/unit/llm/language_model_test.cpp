// Sessions of the language model on the small trained checkpoint. What it says is checked against
// the Python reference in tests/parity/llm; here: that context, limits and sampling work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "language_model_fixture.h"

namespace minicpmo {
namespace {

TEST_F(LanguageModelTest, AnswersATypedQuestion) {
  auto s = session();
  ASSERT_TRUE(s->prefill_text("What is the capital of Norway?", go_).ok());
  EXPECT_TRUE(s->turn_open());
  const Said said = answer(*s);
  EXPECT_EQ(said.finish, FinishReason::kStop);
  EXPECT_FALSE(said.text.empty());
  EXPECT_EQ(said.text.find('<'), std::string::npos) << said.text;
  EXPECT_FALSE(s->turn_open());
}

TEST_F(LanguageModelTest, SpeakerVectorComesWithTheFirstBurstOnly) {
  auto s = session();
  ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
  ASSERT_TRUE(s->start_answer(go_).ok());
  const Burst first = s->next_burst(go_).value();
  ASSERT_TRUE(first.speaker);
  EXPECT_EQ(first.speaker->type(), DataType::kFloat32);
  EXPECT_EQ(first.speaker->dims(),
            (std::vector<int64_t>{1, weights_->config.language.hidden_size}));
  EXPECT_EQ(first.ids.size(), 3u);
  EXPECT_FALSE(s->next_burst(go_).value().speaker);
}

TEST_F(LanguageModelTest, ContextHoldsAllButTheLastTokenOfABurst) {
  auto s = session();
  const int64_t system = s->context_used();
  EXPECT_GT(system, 0);
  ASSERT_TRUE(s->prefill_audio(*embeddings(25, 256), go_).ok());
  ASSERT_TRUE(s->prefill_audio(*embeddings(8, 256), go_).ok());
  const auto prompt = static_cast<int64_t>(weights_->prompts->answer.ids.size());
  const auto user = static_cast<int64_t>(weights_->prompts->user.ids.size());
  EXPECT_EQ(s->context_used(), system + user + 27 + 10);
  force(*s, std::vector<int32_t>(20, letter('a')));
  ASSERT_TRUE(s->start_answer(go_).ok());
  const int64_t begin = s->context_used();
  EXPECT_EQ(begin, system + user + 37 + prompt);
  for (int64_t used : {2, 5, 8}) {
    ASSERT_TRUE(s->next_burst(go_).ok());
    EXPECT_EQ(s->context_used(), begin + used);
  }
}

TEST_F(LanguageModelTest, CacheIsWhatOnePassOverTheHistoryMakes) {
  auto s = session();
  std::vector<float> seen;
  ASSERT_TRUE(s->prefill_text("Hello ", go_).ok());
  ASSERT_TRUE(s->prefill_text("there", go_).ok());
  (void)answer(*s);
  ASSERT_TRUE(s->prefill_text("And again", go_).ok());
  ASSERT_TRUE(s->start_answer(go_).ok());
  const auto history = s->conversation().fed();
  s->set_token_hook([&](std::span<const float> logits, int32_t id) {
    if (seen.empty()) seen.assign(logits.begin(), logits.end());
    return id;
  });
  ASSERT_TRUE(s->next_burst(go_).ok());
  EXPECT_LT(relative_difference(seen, logits_from_scratch(history)), 1e-4);
}

// The rows of the voice are read into the cache once, and every session of the element keeps them.
TEST_F(LanguageModelTest, VoiceIsReadWithTheSystemMessage) {
  LanguageModelOptions options = greedy();
  const int64_t without = session(options)->context_used();
  options.voice = embeddings(30, 256);
  auto s = session(options);
  // 30 rows, two pairs of marks around them, and the sentences of the prompt instead of the default
  // one.
  EXPECT_GT(s->context_used(), 34);
  EXPECT_NE(s->context_used(), without);
  const int64_t primed = s->context_used();
  std::vector<float> logits[2];
  for (auto& seen : logits) {
    s->set_token_hook([&seen](std::span<const float> all, int32_t id) {
      if (seen.empty()) seen.assign(all.begin(), all.end());
      return id;
    });
    ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
    ASSERT_TRUE(s->start_answer(go_).ok());
    ASSERT_TRUE(s->next_burst(go_).ok());
    s->reset();
    EXPECT_EQ(s->context_used(), primed);
  }
  EXPECT_EQ(logits[0], logits[1]);
  // Another voice is another input.
  options.voice = embeddings(30, 256, 5.0F);
  auto other = session(options);
  std::vector<float> heard;
  other->set_token_hook([&heard](std::span<const float> all, int32_t id) {
    if (heard.empty()) heard.assign(all.begin(), all.end());
    return id;
  });
  ASSERT_TRUE(other->prefill_text("Hello", go_).ok());
  ASSERT_TRUE(other->start_answer(go_).ok());
  ASSERT_TRUE(other->next_burst(go_).ok());
  EXPECT_GT(relative_difference(heard, logits[0]), 1e-4);
}

TEST_F(LanguageModelTest, RowsInOneCallOrTwoAreTheSame) {
  std::vector<float> logits[2];
  const auto all = embeddings(33, 256);
  for (int way = 0; way < 2; ++way) {
    auto s = session();
    if (way == 0) {
      ASSERT_TRUE(s->prefill_audio(*all, go_).ok());
    } else {
      ASSERT_TRUE(s->prefill_audio(*rows_of(*all, 0, 25), go_).ok());
      ASSERT_TRUE(s->prefill_audio(*rows_of(*all, 25, 8), go_).ok());
    }
    ASSERT_TRUE(s->start_answer(go_).ok());
    s->set_token_hook([&](std::span<const float> l, int32_t id) {
      if (logits[way].empty()) logits[way].assign(l.begin(), l.end());
      return id;
    });
    ASSERT_TRUE(s->next_burst(go_).ok());
  }
  EXPECT_LT(relative_difference(logits[1], logits[0]), 1e-5);
}

TEST_F(LanguageModelTest, SameSeedSameAnswerOtherSeedOtherAnswer) {
  std::vector<std::vector<int32_t>> ids;
  for (uint64_t seed : {1, 1, 2, 3}) {
    auto s = session(lively(seed));
    ASSERT_TRUE(s->prefill_text("Tell me something", go_).ok());
    ids.push_back(answer(*s).ids);
  }
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_NE(ids[0], ids[2]);
  EXPECT_NE(ids[2], ids[3]);
}

TEST_F(LanguageModelTest, AnswersOfASessionDifferAndResetRepeatsThem) {
  auto s = session(lively(5));
  std::vector<std::vector<int32_t>> ids;
  for (int i = 0; i < 4; ++i) {
    if (i == 2) s->reset();
    ASSERT_TRUE(s->prefill_text("Tell me something", go_).ok());
    ids.push_back(answer(*s).ids);
  }
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_EQ(ids[0], ids[2]);
  EXPECT_EQ(ids[1], ids[3]);
}

TEST_F(LanguageModelTest, EveryBurstDrawsNewNumbers) {
  auto options = lively(1);
  options.temperature = 1e9;  // every token as likely as the others
  auto s = session(options);
  ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
  ASSERT_TRUE(s->start_answer(go_).ok());
  const auto first = s->next_burst(go_)->ids;
  const auto second = s->next_burst(go_)->ids;
  EXPECT_NE(first, second);
}

TEST_F(LanguageModelTest, EveryAnswerDrawsNewNumbers) {
  auto options = lively(1);
  options.temperature = 1e9;  // the context does not matter then
  auto s = session(options);
  std::vector<int32_t> first[2];
  for (auto& ids : first) {
    ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
    ASSERT_TRUE(s->start_answer(go_).ok());
    ids = s->next_burst(go_)->ids;
  }
  EXPECT_NE(first[0], first[1]);
}

TEST_F(LanguageModelTest, GreedyDoesNotDependOnTheSeed) {
  auto options = greedy();
  std::vector<int32_t> ids[2];
  for (auto& one : ids) {
    options.seed += 7;
    auto s = session(options);
    ASSERT_TRUE(s->prefill_text("What comes after Monday?", go_).ok());
    one = answer(*s).ids;
  }
  EXPECT_EQ(ids[0], ids[1]);
}

TEST_F(LanguageModelTest, MaxNewTokensIsExactAndUpstreamOverruns) {
  for (const auto& [mode, limit, count] :
       {std::tuple(Compatibility::kNone, 1, 1), std::tuple(Compatibility::kNone, 7, 7),
        std::tuple(Compatibility::kUpstream, 7, 9), std::tuple(Compatibility::kUpstream, 40, 42)}) {
    auto options = greedy();
    options.max_new_tokens = limit;
    options.compatibility = mode;
    auto s = session(options);
    force(*s, std::vector<int32_t>(60, letter('a')));
    ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
    const Said said = answer(*s);
    EXPECT_EQ(said.ids.size(), static_cast<size_t>(count));
    EXPECT_EQ(said.finish, FinishReason::kLength);
  }
}

// The penalty of each burst covers the answer prompt (first burst) or the carried token (later),
// and the burst's own tokens: worked out here from the raw logits.
TEST_F(LanguageModelTest, PenaltyScopeIsTheBurst) {
  auto options = greedy();
  options.repetition_penalty = 50;
  options.max_new_tokens = 24;
  auto s = session(options);
  std::vector<int32_t> said;
  bool penalty_mattered = false, own_mattered = false;
  s->set_token_hook([&](std::span<const float> logits, int32_t id) {
    std::vector<float> scores(logits.begin(), logits.end());
    std::vector<int32_t> scope;
    if (said.size() < 3) {
      scope = weights_->prompts->answer.ids;
      scope.insert(scope.end(), said.begin(), said.end());
    } else {
      const size_t burst = said.size() / 3 * 3;
      scope.assign(said.begin() + static_cast<std::ptrdiff_t>(burst) - 1, said.end());
    }
    std::sort(scope.begin(), scope.end());
    scope.erase(std::unique(scope.begin(), scope.end()), scope.end());
    const auto best = [](const std::vector<float>& v) {
      return static_cast<int32_t>(std::max_element(v.begin(), v.end()) - v.begin());
    };
    const int32_t plain = best(scores);
    for (int32_t i : scope) {
      float& score = scores[static_cast<size_t>(i)];
      score = score < 0 ? score * 50 : score / 50;
    }
    penalty_mattered |= plain != best(scores);
    // The likeliest was said before in this very burst: the commas of a spelled word.
    const auto begin = said.begin() + static_cast<std::ptrdiff_t>(said.size() / 3 * 3);
    own_mattered |= std::find(begin, said.end(), plain) != said.end() && plain != best(scores);
    EXPECT_EQ(id, best(scores)) << said.size();
    // Go on with the likeliest token, so that the penalty has something to hit.
    said.push_back(weights_->prompts->text_end == plain || weights_->prompts->turn_end == plain
                       ? letter('a')
                       : plain);
    return said.back();
  });
  ASSERT_TRUE(s->prefill_text("Please spell the word queen.", go_).ok());
  (void)answer(*s);
  EXPECT_EQ(said.size(), 24u);
  EXPECT_TRUE(own_mattered);
  EXPECT_TRUE(penalty_mattered);
}

TEST_F(LanguageModelTest, TurnThatDoesNotFitIsRefusedAndNothingChanges) {
  auto options = greedy();
  options.context_length = 200;
  auto s = session(options), undisturbed = session(options);
  for (auto* one : {s.get(), undisturbed.get()}) ASSERT_TRUE(one->prefill_text("Hello", go_).ok());
  const auto fed = s->conversation().fed();
  const auto full = s->prefill_text(std::string(4000, 'x'), go_);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::kContextFull);
  EXPECT_NE(full.error().message.find("200"), std::string::npos) << full.error().message;
  EXPECT_EQ(s->conversation().fed(), fed);
  EXPECT_EQ(answer(*s).ids, answer(*undisturbed).ids);
}

TEST_F(LanguageModelTest, AFirstTurnThatNeverFitsOpensNothing) {
  auto options = greedy();
  options.context_length = 20;  // less than the system prompt
  auto s = session(options);
  EXPECT_EQ(s->context_used(), 0);
  const auto full = s->prefill_audio(*embeddings(25, 256), go_);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::kContextFull);
  EXPECT_FALSE(s->turn_open());
}

TEST_F(LanguageModelTest, EndlessAudioIsRefusedWhenTheContextIsFullAndStillAnswered) {
  auto options = greedy();
  options.context_length = 300;
  options.max_new_tokens = 6;
  auto s = session(options);
  Result<void> result;
  int chunks = 0;
  while (result.ok() && chunks < 100) {
    result = s->prefill_audio(*embeddings(25, 256), go_);
    chunks += result.ok();
  }
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kContextFull);
  EXPECT_EQ(chunks, 9);  // (300 - 24 - 3 - 9 - 16) / 27
  EXPECT_EQ(s->sessions(), 1);
  EXPECT_FALSE(answer(*s).ids.empty());
}

TEST_F(LanguageModelTest, NewSessionWhenTheNextTurnMightNotFit) {
  auto options = greedy();
  options.context_length = 256;
  options.max_new_tokens = 32;
  auto s = session(options);
  const int64_t system = s->context_used();
  const std::string question = "What is the capital of Norway?";
  int64_t used = 0, turns = 0;
  while (s->sessions() == 1 && turns < 50) {
    used = s->context_used();
    ASSERT_TRUE(s->prefill_text(question, go_).ok());
    if (s->sessions() == 1) {
      EXPECT_LE(used + 29 + 32 + 9, 256) << "should have begun anew";
    }
    (void)answer(*s);
    ++turns;
  }
  EXPECT_EQ(s->sessions(), 2);
  EXPECT_GT(used, 256 - 32 - 9 - 40);
  EXPECT_LT(s->context_used(), used);
  // It knows the system prompt and the last turn only.
  auto fresh = session(options);
  EXPECT_EQ(fresh->context_used(), system);
  ASSERT_TRUE(fresh->prefill_text(question, go_).ok());
  (void)answer(*fresh);
  EXPECT_EQ(fresh->conversation().fed(), s->conversation().fed());
}

TEST_F(LanguageModelTest, AnswerEndsWhenTheContextIsFull) {
  auto options = greedy();
  options.context_length = 100;
  auto s = session(options);
  force(*s, std::vector<int32_t>(200, letter('a')));
  ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
  ASSERT_TRUE(s->start_answer(go_).ok());
  const int64_t begin = s->context_used();
  Said said;
  collect(*s, &said);
  EXPECT_EQ(said.finish, FinishReason::kContext);
  EXPECT_EQ(s->context_used(), 100);
  EXPECT_EQ(static_cast<int64_t>(said.ids.size()), 100 - begin + 1);
  ASSERT_TRUE(s->prefill_text("Hello", go_).ok());  // in a new session
  EXPECT_EQ(s->sessions(), 2);
}

TEST_F(LanguageModelTest, ContextLengthIsLimitedByTheModel) {
  auto options = greedy();
  options.context_length = 1 << 30;
  auto s = session(options);
  const auto full = s->prefill_text(std::string(100'000, 'x'), go_);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::kContextFull);
}

TEST_F(LanguageModelTest, InterruptionLeavesWhatAShorterAnswerWouldHave) {
  std::vector<int32_t> one_by_one;
  for (char c : std::string("ABCDEF")) one_by_one.push_back(letter(c));
  for (int heard = 1; heard <= 6; ++heard) {
    auto cut = session();
    force(*cut, one_by_one);
    ASSERT_TRUE(cut->prefill_text("Spell it", go_).ok());
    ASSERT_TRUE(cut->start_answer(go_).ok());
    EXPECT_EQ(cut->next_burst(go_)->text, "ABC");
    EXPECT_EQ(cut->next_burst(go_)->text, "DEF");
    cut->interrupt(heard);
    auto options = greedy();
    options.max_new_tokens = heard;
    auto small = session(options);
    force(*small, one_by_one);
    ASSERT_TRUE(small->prefill_text("Spell it", go_).ok());
    (void)answer(*small);
    small->interrupt(-1);
    small->set_options(greedy());
    std::vector<int32_t> next[2];
    for (int i = 0; i < 2; ++i) {
      LanguageSession& s = i == 0 ? *cut : *small;
      s.set_token_hook(nullptr);
      ASSERT_TRUE(s.prefill_text("What is the capital of Norway?", go_).ok());
      next[i] = answer(s).ids;
    }
    EXPECT_EQ(cut->conversation().fed(), small->conversation().fed()) << heard;
    EXPECT_EQ(next[0], next[1]) << heard;
  }
}

TEST_F(LanguageModelTest, InterruptionEndsTheAnswer) {
  auto s = session();
  ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
  ASSERT_TRUE(s->start_answer(go_).ok());
  ASSERT_TRUE(s->next_burst(go_).ok());
  s->interrupt(0);
  const auto more = s->next_burst(go_);
  ASSERT_FALSE(more.ok());
  EXPECT_EQ(more.error().code, ErrorCode::kFailed);
  s->interrupt(0);  // again: nothing left to end
}

TEST(Sampling, PenaltyComesBeforeTheChoiceAndCountsOnce) {
  const SamplingSettings settings{0, 1, 2, 0};
  std::vector<float> logits = {1, 3, 2};
  Philox random(0, 0);
  EXPECT_EQ(choose_token(logits, std::vector<int32_t>{}, settings, &random), 1);
  logits = {1, 3, 2};
  EXPECT_EQ(choose_token(logits, std::vector<int32_t>{1}, settings, &random), 2);
  logits = {1, 3, 0.5};
  EXPECT_EQ(choose_token(logits, std::vector<int32_t>{1, 1, 1}, settings, &random), 1);  // 1.5
  logits = {-1, -3, -4};
  EXPECT_EQ(choose_token(logits, std::vector<int32_t>{0}, settings, &random), 0);  // -2
}

TEST(Sampling, NarrowSettingsTakeTheBest) {
  for (const auto& settings : {SamplingSettings{1, 1, 1, 1}, SamplingSettings{1, 1e-6, 1, 0},
                               SamplingSettings{1e-30, 1, 1, 0}}) {
    Philox random(3, 0);
    for (int i = 0; i < 50; ++i) {
      std::vector<float> logits = {1, 3, 2.9f, -4};
      EXPECT_EQ(choose_token(logits, std::vector<int32_t>{}, settings, &random), 1);
    }
  }
}

TEST(Sampling, FrequenciesFollowTheTemperature) {
  const SamplingSettings settings{2, 1, 1, 0};
  Philox random(1, 0);
  int hits = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> logits = {0, 2};
    hits += choose_token(logits, std::vector<int32_t>{}, settings, &random);
  }
  const double expected = std::exp(1) / (1 + std::exp(1));
  EXPECT_NEAR(static_cast<double>(hits) / kDraws, expected, 0.015);  // over four sigma
}

TEST(Sampling, DefaultsComeFromTheCheckpoint) {
  GenerationDefaults defaults;
  LanguageModelOptions options;
  auto settings = resolve_sampling(options, defaults);
  EXPECT_EQ(settings.temperature, 0.7);
  EXPECT_EQ(settings.top_p, 0.8);
  EXPECT_EQ(settings.top_k, 100);
  EXPECT_EQ(settings.repetition_penalty, 1.05);
  defaults.do_sample = false;
  EXPECT_EQ(resolve_sampling(options, defaults).temperature, 0);
  options.temperature = 0.3;
  options.top_k = 0;
  settings = resolve_sampling(options, defaults);
  EXPECT_EQ(settings.temperature, 0.3);
  EXPECT_EQ(settings.top_k, 0);
}

TEST(RowsPerChunk, FollowsTheEncoder) {
  AudioConfig audio;
  EXPECT_EQ(rows_per_chunk(audio), 25);
  audio.pool_step = 5;
  EXPECT_EQ(rows_per_chunk(audio), 10);
}
}  // namespace
}  // namespace minicpmo
