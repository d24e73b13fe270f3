// A user's turn that is taken back, and an answer that is: the session goes on as if it had not
// been.
#include "language_model_fixture.h"

namespace minicpmo {
namespace {

class LanguageModelTurns : public LanguageModelTest {
 protected:
  static constexpr const char* kQuestion = "What is the capital of Norway?";

  std::unique_ptr<LanguageSession> asked(const char* question,
                                         const LanguageModelOptions& options = greedy()) {
    auto s = session(options);
    EXPECT_TRUE(s->prefill_text(question, go_).ok());
    return s;
  }
  TensorPtr noise(int64_t rows) const {
    return embeddings(rows, weights_->config.language.hidden_size);
  }
  void cough(LanguageSession& s) {
    ASSERT_TRUE(s.prefill_audio(*noise(25), go_).ok());
    ASSERT_TRUE(s.prefill_audio(*noise(7), go_).ok());  // waits to be read with the answer prompt
  }
  // One more question in both: the same context gives the same answer.
  void expect_same(LanguageSession& a, LanguageSession& b) {
    std::vector<std::vector<int32_t>> ids;
    for (LanguageSession* s : {&a, &b}) {
      ASSERT_TRUE(s->prefill_text(kQuestion, go_).ok());
      ids.push_back(answer(*s).ids);
    }
    EXPECT_EQ(a.conversation().fed(), b.conversation().fed());
    EXPECT_EQ(ids[0], ids[1]);
  }
};

TEST_F(LanguageModelTurns, ACancelledTurnLeavesNothing) {
  auto s = asked("My name is Anna."), plain = asked("My name is Anna.");
  for (LanguageSession* each : {s.get(), plain.get()}) (void)answer(*each);
  cough(*s);
  ASSERT_TRUE(s->cancel_turn(false, go_).ok());
  EXPECT_FALSE(s->turn_open());
  EXPECT_EQ(s->context_used(), plain->context_used());
  expect_same(*s, *plain);
}

TEST_F(LanguageModelTurns, ACancelledFirstTurnLeavesTheSystemMessage) {
  auto s = session(), plain = session();
  cough(*s);
  ASSERT_TRUE(s->cancel_turn(false, go_).ok());
  expect_same(*s, *plain);
}

TEST_F(LanguageModelTurns, ACancelledTurnKeepsTheCut) {
  auto s = asked("Count to five."), plain = asked("Count to five.");
  for (LanguageSession* each : {s.get(), plain.get()}) {
    (void)answer(*each);
    each->interrupt(4);
  }
  cough(*s);
  ASSERT_TRUE(s->cancel_turn(false, go_).ok());
  expect_same(*s, *plain);
}

// After any number of bursts, cut anywhere: the answer goes on as it would have.
TEST_F(LanguageModelTurns, AnInterruptedAnswerGoesOn) {
  auto plain = asked("Count to twenty.", lively(7));
  const Said whole = answer(*plain);
  for (int bursts = 0; bursts <= 4; ++bursts) {
    for (const int64_t heard : {int64_t{-1}, int64_t{0}, int64_t{3}}) {
      SCOPED_TRACE(std::to_string(bursts) + " bursts, heard " + std::to_string(heard));
      auto s = asked("Count to twenty.", lively(7));
      Said said;
      ASSERT_TRUE(s->start_answer(go_).ok());
      for (int i = 0; i < bursts && said.finish == FinishReason::kNone; ++i) {
        const auto burst = s->next_burst(go_);
        ASSERT_TRUE(burst.ok());
        said.ids.insert(said.ids.end(), burst->ids.begin(), burst->ids.end());
        said.finish = burst->finish;
      }
      s->interrupt(heard);
      cough(*s);
      ASSERT_TRUE(s->cancel_turn(true, go_).ok());
      if (said.finish == FinishReason::kNone) collect(*s, &said);
      EXPECT_EQ(said.ids, whole.ids);
      auto again = asked("Count to twenty.", lively(7));
      (void)answer(*again);
      expect_same(*s, *again);
    }
  }
}

TEST_F(LanguageModelTurns, AnsweringEndsWhatCanBeCancelled) {
  auto s = asked(kQuestion);
  const Said first = answer(*s);
  const int64_t used = s->context_used();
  ASSERT_TRUE(s->cancel_turn(true, go_).ok());
  ASSERT_TRUE(s->cancel_turn(false, go_).ok());
  EXPECT_EQ(s->context_used(), used);
  s->reset();
  ASSERT_TRUE(s->cancel_turn(true, go_).ok());
  ASSERT_TRUE(s->prefill_text(kQuestion, go_).ok());
  EXPECT_EQ(answer(*s).ids, first.ids);
}

// The user paused, and went on after the answer had begun.
TEST_F(LanguageModelTurns, AReopenedTurnGoesOn) {
  for (int bursts = 0; bursts <= 3; ++bursts) {
    SCOPED_TRACE(bursts);
    auto s = session(lively(3)), plain = session(lively(3));
    ASSERT_TRUE(s->prefill_audio(*noise(7), go_).ok());
    ASSERT_TRUE(s->start_answer(go_).ok());
    for (int i = 0; i < bursts; ++i) ASSERT_TRUE(s->next_burst(go_).ok());
    s->reopen_turn();
    EXPECT_TRUE(s->turn_open());
    ASSERT_TRUE(plain->prefill_audio(*noise(7), go_).ok());
    for (LanguageSession* each : {s.get(), plain.get()})
      ASSERT_TRUE(each->prefill_audio(*noise(25), go_).ok());
    EXPECT_EQ(answer(*s).ids, answer(*plain).ids);
    EXPECT_EQ(s->conversation().fed(), plain->conversation().fed());
  }
}

TEST_F(LanguageModelTurns, ATurnIsReopenedOnlyBeforeTheNext) {
  auto s = asked(kQuestion);
  (void)answer(*s);
  ASSERT_TRUE(s->prefill_text("Hello", go_).ok());
  const int64_t used = s->context_used();
  s->reopen_turn();
  EXPECT_EQ(s->context_used(), used);
  EXPECT_TRUE(s->turn_open());
}

TEST_F(LanguageModelTurns, ACancelledCancelCanBeMadeAgain) {
  auto plain = asked("Count to twenty.");
  const Said whole = answer(*plain);
  auto s = asked("Count to twenty.");
  Said said;
  ASSERT_TRUE(s->start_answer(go_).ok());
  for (int i = 0; i < 3; ++i) {
    const auto burst = s->next_burst(go_);
    said.ids.insert(said.ids.end(), burst->ids.begin(), burst->ids.end());
  }
  s->interrupt(2);
  CancelFlag stop;
  stop.set();
  const auto cancelled = s->cancel_turn(true, stop);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
  ASSERT_TRUE(s->cancel_turn(true, go_).ok());
  collect(*s, &said);
  EXPECT_EQ(said.ids, whole.ids);
}

}  // namespace
}  // namespace minicpmo
