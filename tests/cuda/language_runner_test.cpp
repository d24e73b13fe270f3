// The language model's sessions with the runner, against ATen on the same device and the same
// weights (the small checkpoint; MINICPMO_MODEL, by default the one that this was built with).
// Skipped without a GPU.
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <optional>

#include "engine/stage_scope.h"
#include "llm/language_model.h"
#ifdef EMULATED
#include "cuda/language_runner.h"
#else
#include "backend/device.h"
#endif

namespace minicpmo {
namespace {

#ifdef EMULATED
constexpr int kTokens = 6;  // slow
#else
constexpr int kTokens = 48;
#endif
constexpr const char* kQuestion = "What is the capital of Norway?";

#ifdef EMULATED
Result<StageDevice> device_with_runners() {
  static const cuda::Library library = {cuda::Library::kVersion, cuda::new_language_runner, nullptr,
                                        nullptr, nullptr};
  StageDevice device(at::kBFloat16);
  device.runners = &library;
  device.graphs = false;  // a CPU has no stream to capture
  return device;
}
#else
Result<StageDevice> device_with_runners() {
  ASSIGN_OR_RETURN(const DeviceChoice choice, choose_device("cuda", "bfloat16"));
  return choice.stage;
}
#endif

std::shared_ptr<const LanguageModelWeights> load(const StageDevice& device) {
  const char* const set = std::getenv("MINICPMO_MODEL");
  const std::string path = set ? set : MODEL_DIR;
  auto weights = run_stage("test", [&]() -> Result<std::shared_ptr<const LanguageModelWeights>> {
    ASSIGN_OR_RETURN(const ModelConfig config, read_config(path));
    ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::open(path));
    ASSIGN_OR_RETURN(const auto words, load_bpe_tokenizer(path + "/tokenizer.json"));
    return load_language_model(*checkpoint, config, words, device, {}, CancelFlag());
  });
  EXPECT_TRUE(weights.ok()) << weights.error().message << " " << weights.error().detail;
  return weights.ok() ? *weights : nullptr;
}

// The same weights, run otherwise.
std::shared_ptr<const LanguageModelWeights> with(const LanguageModelWeights& weights,
                                                 const cuda::Library* runners, bool graphs) {
  auto copy = std::make_shared<LanguageModelWeights>(weights);
  copy->device.runners = runners;
  copy->device.graphs = graphs;
  return copy;
}

LanguageModelOptions greedy(int tokens) {
  LanguageModelOptions options;
  options.temperature = 0;
  options.repetition_penalty = 1;
  options.max_new_tokens = tokens;
  options.context_length = 160;
  return options;
}

LanguageModelOptions lively(int tokens) {
  LanguageModelOptions options = greedy(tokens);
  options.temperature = 8;  // the small model is very sure of itself
  options.top_k = 50;
  options.top_p = 0.95;
  options.repetition_penalty = 1.1;
  options.seed = 7;
  return options;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || b.empty()) return HUGE_VAL;
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    size += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / size);
}

class LanguageRunnerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const auto device = device_with_runners();
    if (!device.ok()) {
      reason_ = device.error();
      return;
    }
    runner_ = load(*device);
    if (!runner_) return;
    aten_ = with(*runner_, nullptr, true);
    StageDevice wide = *device;
    wide.type = at::kFloat;
    wide.runners = nullptr;
    exact_ = load(wide);
  }
  static void TearDownTestSuite() { runner_ = aten_ = exact_ = nullptr; }
  void SetUp() override {
    if (reason_ && reason_->code == ErrorCode::kNotFound) GTEST_SKIP() << reason_->message;
    ASSERT_FALSE(reason_) << reason_->message << " " << reason_->detail;
    ASSERT_TRUE(runner_ && exact_);
    ASSERT_NE(runner_->device.runners, nullptr);
  }

  struct Said {
    std::vector<int32_t> ids;
    std::vector<float> logits;  // of all tokens, if a hook saw them
    std::vector<float> speaker;
    FinishReason finish = FinishReason::kNone;
  };

  static void go_on(LanguageSession& session, Said* said) {
    while (said->finish == FinishReason::kNone) {
      const auto burst = session.next_burst(CancelFlag());
      ASSERT_TRUE(burst.ok()) << burst.error().message << " " << burst.error().detail;
      said->ids.insert(said->ids.end(), burst->ids.begin(), burst->ids.end());
      said->finish = burst->finish;
      if (!burst->speaker) continue;
      const auto bytes = burst->speaker->host_bytes();
      ASSERT_TRUE(bytes.ok());
      const auto* const values = reinterpret_cast<const float*>(bytes->data());
      said->speaker.assign(values, values + bytes->size() / 4);
    }
  }

  // hook: logits are copied to the host and tokens chosen there. `forced` come first then.
  static Said say(const std::shared_ptr<const LanguageModelWeights>& weights,
                  const LanguageModelOptions& options, bool hook = false,
                  const std::vector<int32_t>& forced = {}) {
    LanguageSession session(weights, options);
    Said said;
    size_t next = 0;
    if (hook) {
      session.set_token_hook([&](std::span<const float> logits, int32_t id) {
        said.logits.insert(said.logits.end(), logits.begin(), logits.end());
        return next < forced.size() ? forced[next++] : id;
      });
    }
    EXPECT_TRUE(session.prefill_text(kQuestion, CancelFlag()).ok());
    const auto started = session.start_answer(CancelFlag());
    EXPECT_TRUE(started.ok()) << started.error().message << " " << started.error().detail;
    if (started.ok()) go_on(session, &said);
    return said;
  }

  static inline std::optional<Error> reason_;
  static inline std::shared_ptr<const LanguageModelWeights> runner_, aten_, exact_;
};

// ATen in bfloat16 rounds more often than the runner, which keeps the residual stream in float32.
TEST_F(LanguageRunnerTest, LogitsAreAsCloseToFloat32AsAtens) {
  const auto options = greedy(kTokens);
  const Said exact = say(exact_, options, true);
  const Said aten = say(aten_, options, true, exact.ids);
  const Said runner = say(runner_, options, true, exact.ids);
  ASSERT_EQ(runner.ids, exact.ids);
  const double of_runner = distance(runner.logits, exact.logits);
  const double of_aten = distance(aten.logits, exact.logits);
  std::printf("relative distance to float32: runner %.2e, ATen in bfloat16 %.2e\n", of_runner,
              of_aten);
  EXPECT_LT(of_runner, 1.5 * of_aten + 1e-4);
  EXPECT_LT(of_runner, 5e-2);
  EXPECT_LT(distance(runner.speaker, exact.speaker), 5e-2);
}

TEST_F(LanguageRunnerTest, GreedyTokensAreAtens) {
  const auto options = greedy(kTokens);
  const Said runner = say(runner_, options);
  EXPECT_EQ(runner.ids, say(aten_, options).ids);
  EXPECT_EQ(runner.ids, say(exact_, options).ids);
}

TEST_F(LanguageRunnerTest, TokensDrawnOnTheDeviceAreTheHostsChoice) {
  const auto options = lively(kTokens);
  const Said drawn = say(runner_, options);
  EXPECT_GE(drawn.ids.size(), 3u);
  EXPECT_EQ(drawn.ids, say(runner_, options, true).ids);
}

#ifndef EMULATED
TEST_F(LanguageRunnerTest, GraphsChangeNothing) {
  const auto options = lively(kTokens);
  const auto eager = with(*runner_, runner_->device.runners, false);
  EXPECT_EQ(say(runner_, options).ids, say(eager, options).ids);
  EXPECT_EQ(say(runner_, options).speaker, say(eager, options).speaker);
}
#endif

TEST_F(LanguageRunnerTest, CancelledBurstIsMadeAgain) {
  const auto options = lively(kTokens);
  const Said undisturbed = say(runner_, options);
  LanguageSession session(runner_, options);
  ASSERT_TRUE(session.prefill_text(kQuestion, CancelFlag()).ok());
  ASSERT_TRUE(session.start_answer(CancelFlag()).ok());
  CancelFlag cancel;
  cancel.set();
  Said said;
  while (said.finish == FinishReason::kNone) {
    const auto cancelled = session.next_burst(cancel);
    ASSERT_FALSE(cancelled.ok());
    EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
    const auto burst = session.next_burst(CancelFlag());
    ASSERT_TRUE(burst.ok()) << burst.error().message;
    said.ids.insert(said.ids.end(), burst->ids.begin(), burst->ids.end());
    said.finish = burst->finish;
  }
  EXPECT_EQ(said.ids, undisturbed.ids);
}

// The second turn reads the rows that the first one left.
TEST_F(LanguageRunnerTest, SecondTurnFollowsTheFirst) {
  const auto options = greedy(6);
  std::vector<int32_t> ids[2];
  for (const bool runner : {false, true}) {
    LanguageSession session(runner ? runner_ : aten_, options);
    for (const char* text : {kQuestion, "And of Sweden?"}) {
      ASSERT_TRUE(session.prefill_text(text, CancelFlag()).ok());
      ASSERT_TRUE(session.start_answer(CancelFlag()).ok());
      Said said;
      go_on(session, &said);
      session.interrupt(2);
      ids[runner].insert(ids[runner].end(), said.ids.begin(), said.ids.end());
    }
  }
  EXPECT_EQ(ids[0], ids[1]);
}

TEST_F(LanguageRunnerTest, AnswerEndsWhereTheContextDoes) {
  LanguageModelOptions options = lively(400);
  LanguageSession probe(runner_, options);
  ASSERT_TRUE(probe.prefill_text(kQuestion, CancelFlag()).ok());
  ASSERT_TRUE(probe.start_answer(CancelFlag()).ok());
  options.context_length = static_cast<int>(probe.context_used()) + 17;
  // The question's own stop tokens are ruled out: the answer is forced on by the host.
  const Said aten = say(aten_, options, true, std::vector<int32_t>(400, 100));
  const Said runner = say(runner_, options, true, std::vector<int32_t>(400, 100));
  EXPECT_EQ(aten.finish, FinishReason::kContext);
  EXPECT_EQ(runner.finish, FinishReason::kContext);
  EXPECT_EQ(aten.ids.size(), runner.ids.size());
  const Said drawn = say(runner_, options);
  EXPECT_LE(drawn.ids.size(), aten.ids.size());
}

}  // namespace
}  // namespace minicpmo
