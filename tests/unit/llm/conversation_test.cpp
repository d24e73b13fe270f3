// The dialogue's ids, state by state (MiniCPM-o 2.6, modeling_minicpmo.py: streaming_prefill,
// streaming_generate).
#include "llm/conversation.h"

#include <gtest/gtest.h>

#include "fake_tokenizer.h"

namespace minicpmo {
namespace {

constexpr const char* kPrompt =
    "<|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>";

class ConversationTest : public ::testing::Test {
 protected:
  void SetUp() override { start("Be kind.", Compatibility::kNone); }

  void start(const std::string& system_prompt, Compatibility compatibility, int voice_rows = 0) {
    auto prompts = Prompts::load(*tokenizer_, tokenizer_->size(), 25, "test");
    ASSERT_TRUE(prompts.ok()) << prompts.error().message;
    prompts_ = std::make_shared<const Prompts>(*prompts);
    talk_ = std::make_unique<Conversation>(tokenizer_, prompts_);
    talk_->begin_session(system_prompt, voice_rows, compatibility);
  }

  std::vector<int32_t> ids(const std::string& text) const { return tokenizer_->encode(text); }
  // The text of what was fed; an audio embedding shows as ~.
  std::string fed() const { return show(talk_->fed()); }
  std::string show(const std::vector<int32_t>& fed) const {
    std::string text;
    for (int32_t id : fed)
      text += id == prompts_->audio_slot ? "~" : tokenizer_->decode(std::span(&id, 1));
    return text;
  }
  static std::string audio(int rows) {
    return "<|audio_start|>" + std::string(static_cast<size_t>(rows), '~') + "<|audio_end|>";
  }

  void hear(int rows) { talk_->accept_user(talk_->user_audio(rows)); }
  void read(const std::string& text) { talk_->accept_user(talk_->user_text(text)); }
  void answer(int max_new_tokens = 512) {
    talk_->accept_answer(talk_->answer_prompt(), max_new_tokens);
  }
  Burst burst(std::vector<int32_t> ids) {
    const bool stop = !ids.empty() && talk_->is_stop(ids.back());
    return talk_->accept_burst(ids, stop ? FinishReason::kStop : FinishReason::kNone);
  }
  Burst burst(const std::string& text) { return burst(ids(text)); }

  std::shared_ptr<const FakeTokenizer> tokenizer_ = std::make_shared<const FakeTokenizer>(
      FakeTokenizer::dialogue_tokens(), std::vector<std::string>{"x\xE6"});
  std::shared_ptr<const Prompts> prompts_;
  std::unique_ptr<Conversation> talk_;
};

TEST_F(ConversationTest, FirstTurnReadsTheSystemPromptAsAUserMessage) {
  EXPECT_FALSE(talk_->turn_open());
  hear(3);
  EXPECT_TRUE(talk_->turn_open());
  EXPECT_EQ(fed(), "<|im_start|>user\nBe kind.<|im_end|>\n<|im_start|>user\n" + audio(3));
}

TEST_F(ConversationTest, SystemPromptReadBeforehandIsNotReadAgain) {
  talk_->accept_system(talk_->system_message());
  EXPECT_EQ(fed(), "<|im_start|>user\nBe kind.<|im_end|>\n");
  EXPECT_TRUE(talk_->fresh());
  EXPECT_EQ(talk_->system_message().rows(), 0);
  hear(1);
  EXPECT_EQ(fed(), "<|im_start|>user\nBe kind.<|im_end|>\n<|im_start|>user\n" + audio(1));
}

// model-spec 3.2, audio_assistant.
TEST_F(ConversationTest, VoiceIsPartOfTheSystemMessage) {
  start(LanguageModelOptions().system_prompt, Compatibility::kNone, 30);
  const Feed feed = talk_->system_message();
  ASSERT_EQ(feed.audio.size(), 2u);
  EXPECT_TRUE(feed.audio[0].voice && feed.audio[1].voice);
  EXPECT_EQ(feed.audio[1].row, 25);
  talk_->accept_system(feed);
  const std::string message =
      "<|im_start|>user\nUse the voice in the audio prompt to synthesize new content.\n" +
      audio(25) + audio(5) +
      "\nYou are a helpful assistant with the above voice style.<|im_end|>\n";
  EXPECT_EQ(fed(), message);
  hear(2);
  EXPECT_EQ(fed(), message + "<|im_start|>user\n" + audio(2));
  talk_->restart();
  EXPECT_EQ(fed(), message);
}

TEST_F(ConversationTest, VoiceKeepsAnOwnSystemPrompt) {
  start("Be brief.", Compatibility::kNone, 3);
  hear(1);
  EXPECT_EQ(fed(),
            "<|im_start|>user\nUse the voice in the audio prompt to synthesize new content.\n" +
                audio(3) + "\nBe brief.<|im_end|>\n<|im_start|>user\n" + audio(1));
  const Feed feed = talk_->user_audio(1);
  ASSERT_EQ(feed.audio.size(), 1u);
  EXPECT_FALSE(feed.audio[0].voice);
}

TEST_F(ConversationTest, ChunksOfOneTurnAreAppendedBare) {
  hear(25);
  const auto before = talk_->fed().size();
  hear(25);
  hear(8);
  EXPECT_EQ(fed().substr(show({talk_->fed().begin(), talk_->fed().begin() + before}).size()),
            audio(25) + audio(8));
}

TEST_F(ConversationTest, AudioGroupsHoldAtMost25Rows) {
  const Feed feed = talk_->user_audio(60);
  ASSERT_EQ(feed.audio.size(), 3u);
  EXPECT_EQ(feed.audio[0].rows, 25);
  EXPECT_EQ(feed.audio[1].row, 25);
  EXPECT_EQ(feed.audio[2].rows, 10);
  EXPECT_EQ(feed.audio[2].row, 50);
  for (const AudioSlots& slots : feed.audio) {
    EXPECT_EQ(feed.ids[slots.at - 1], prompts_->audio_start);
    EXPECT_EQ(feed.ids[slots.at], prompts_->audio_slot);
    EXPECT_EQ(feed.ids[slots.at + static_cast<size_t>(slots.rows)], prompts_->audio_end);
  }
}

TEST_F(ConversationTest, PlanningAFeedChangesNothing) {
  const Feed once = talk_->user_audio(4);
  EXPECT_EQ(talk_->length(), 0);
  EXPECT_EQ(talk_->user_audio(4).ids, once.ids);
  EXPECT_FALSE(talk_->turn_open());
}

TEST_F(ConversationTest, AnswerPromptClosesTheUserTurn) {
  hear(1);
  const std::string before = fed();
  answer();
  EXPECT_EQ(fed(), before + kPrompt);
  EXPECT_FALSE(talk_->turn_open());
  EXPECT_TRUE(talk_->answering());
  EXPECT_EQ(talk_->answer_prompt().ids[prompts_->speaker_at], prompts_->speaker);
}

TEST_F(ConversationTest, LastTokenOfABurstIsFedByTheNextOne) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  EXPECT_EQ(fed(), before + "ab");
  EXPECT_EQ(talk_->carried(), 'c');
  burst("def");
  EXPECT_EQ(fed(), before + "abcde");
}

TEST_F(ConversationTest, TurnAfterACompletedAnswer) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  EXPECT_EQ(burst("<|tts_eos|><|im_end|>").finish, FinishReason::kStop);
  EXPECT_FALSE(talk_->answering());
  EXPECT_EQ(fed(), before + "abc<|tts_eos|>");
  hear(1);
  EXPECT_EQ(fed(), before + "abc<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, EndOfTextStopsToo) {
  hear(1);
  answer();
  EXPECT_EQ(burst("a<|endoftext|>").finish, FinishReason::kStop);
}

TEST_F(ConversationTest, TurnAfterAnInterruptionKeepsTheLastToken) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  talk_->interrupt(-1);
  hear(1);
  EXPECT_EQ(fed(), before + "abc<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, TurnAfterAnInterruptionUpstreamLosesTheLastToken) {
  start("Be kind.", Compatibility::kUpstream);
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  talk_->interrupt(1);  // upstream keeps what was not heard
  hear(1);
  EXPECT_EQ(fed(), before + "ab<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, TurnWithoutInterruptCutsTheAnswerAsItStands) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  hear(1);
  EXPECT_EQ(fed(), before + "abc<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
  EXPECT_FALSE(talk_->answering());
}

TEST_F(ConversationTest, InterruptCutsBackToTheTokenThatCompletesWhatWasHeard) {
  const struct {
    int heard;
    const char* kept;
  } cases[] = {{0, ""},      {1, "a"},      {2, "ab"},     {3, "abc"},
               {5, "abcde"}, {6, "abcdef"}, {99, "abcdef"}};
  for (const auto& c : cases) {
    start("", Compatibility::kNone);
    hear(1);
    answer();
    const std::string before = fed();
    burst("abc");
    burst("def");
    talk_->interrupt(c.heard);
    hear(1);
    EXPECT_EQ(fed(), before + c.kept + "<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1))
        << c.heard;
  }
}

TEST_F(ConversationTest, InterruptAfterTheLastTokenWasSampledStillCutsBack) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  burst("d<|tts_eos|><|im_end|>");
  talk_->interrupt(2);
  hear(1);
  EXPECT_EQ(fed(), before + "ab<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, InterruptAfterEverythingWasHeardChangesNothing) {
  hear(1);
  answer();
  burst("d<|tts_eos|><|im_end|>");
  const std::string before = fed();
  talk_->interrupt(1);
  hear(1);
  EXPECT_EQ(fed(), before + "<|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, InterruptInTheUsersTurnChangesNothing) {
  hear(1);
  answer();
  burst("abc");
  hear(1);
  const std::string before = fed();
  talk_->interrupt(0);
  EXPECT_EQ(fed(), before);
  EXPECT_TRUE(talk_->turn_open());
}

TEST_F(ConversationTest, InterruptCountsBytesOfWholeCharacters) {
  hear(1);
  answer();
  burst("a\xE6\x97");  // the first two bytes of U+65E5
  burst(
      "\xA5"
      "bc");
  talk_->interrupt(2);  // within the character: it was heard
  const auto kept = talk_->fed();
  const std::vector<int32_t> tail(kept.end() - 4, kept.end());
  EXPECT_EQ(tail, ids("a\xE6\x97\xA5"));
}

TEST_F(ConversationTest, SpeechEndIsNotDoubledWhenTheAnswerWasCutBehindIt) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("ab<|tts_eos|>");
  talk_->interrupt(-1);
  hear(1);
  EXPECT_EQ(fed(), before + "ab<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, NoSystemPromptOpensAProperTurn) {
  start("", Compatibility::kNone);
  EXPECT_EQ(talk_->system_message().rows(), 0);
  hear(2);
  hear(1);
  EXPECT_EQ(fed(), "<|im_start|>user\n" + audio(2) + audio(1));
}

TEST_F(ConversationTest, NoSystemPromptUpstreamWrapsTheFirstChunk) {
  start("", Compatibility::kUpstream);
  hear(2);
  EXPECT_TRUE(talk_->turn_open());
  hear(1);
  hear(1);
  EXPECT_EQ(fed(), "<|im_start|>user\n" + audio(2) + "<|im_end|>\n<|im_start|>user\n" + audio(1) +
                       audio(1));
}

TEST_F(ConversationTest, NoSystemPromptUpstreamWrapsTheFirstText) {
  start("", Compatibility::kUpstream);
  read("hi");
  EXPECT_EQ(fed(), "<|im_start|>user\nhi<|im_end|>\n");
}

TEST_F(ConversationTest, TextAndAudioInOneTurn) {
  start("", Compatibility::kNone);
  read("Listen: ");
  hear(2);
  read("What is it?");
  EXPECT_EQ(fed(), "<|im_start|>user\nListen: " + audio(2) + "What is it?");
}

TEST_F(ConversationTest, TypedNamesOfSpecialTokensAreOnlyText) {
  start("", Compatibility::kNone);
  read("a<|im_end|>b");
  EXPECT_EQ(fed(), "<|im_start|>user\na<|im_end|>b");
  const auto& fed_ids = talk_->fed();
  EXPECT_EQ(std::count(fed_ids.begin(), fed_ids.end(), prompts_->turn_end), 0);
  start("", Compatibility::kUpstream);
  read("a<|im_end|>b");
  EXPECT_EQ(std::count(talk_->fed().begin(), talk_->fed().end(), prompts_->turn_end), 2);
}

TEST_F(ConversationTest, HoldsBackAnIncompleteCharacter) {
  hear(1);
  answer();
  EXPECT_EQ(burst("h\xC3").text, "h");
  EXPECT_EQ(burst("\xA9!x").text, "\xC3\xA9!x");
  EXPECT_EQ(burst("\xF0\x9F\x98").text, "");
  EXPECT_EQ(burst("\x80yz").text, "\xF0\x9F\x98\x80yz");
}

TEST_F(ConversationTest, DamageIsNotHeldBackForever) {
  hear(1);
  answer();
  EXPECT_EQ(burst("\x80\x80\x80").text, "");  // three tokens may still be a character
  // The fourth one says that they are not.
  EXPECT_EQ(burst("\x80\x80\x80").text,
            "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_F(ConversationTest, UnfinishedCharacterAtTheEndIsDropped) {
  hear(1);
  answer();
  const Burst last = burst("a\xE6<|im_end|>");
  EXPECT_EQ(last.text, "a");
  EXPECT_EQ(last.finish, FinishReason::kStop);
}

TEST_F(ConversationTest, WholeCharactersOfAnUnfinishedTokenAreReportedAtTheEnd) {
  hear(1);
  answer();
  EXPECT_EQ(burst(std::vector<int32_t>{tokenizer_->piece(0)}).text, "");
  EXPECT_EQ(burst(std::vector<int32_t>{prompts_->turn_end}).text, "x");
  start("x", Compatibility::kUpstream);
  hear(1);
  answer();
  EXPECT_EQ(burst(std::vector<int32_t>{tokenizer_->piece(0)}).text, "");
  EXPECT_EQ(burst(std::vector<int32_t>{prompts_->turn_end}).text, "");  // lost
}

TEST_F(ConversationTest, InterruptDropsTheStartOfACharacterThatWasNeverReported) {
  hear(1);
  answer();
  const std::string before = fed();
  EXPECT_EQ(burst("ab\xE6").text, "ab");
  talk_->interrupt(2);
  hear(1);
  EXPECT_EQ(fed(), before + "ab<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, SpecialTokensAreNoText) {
  hear(1);
  answer();
  EXPECT_EQ(burst("a<|spk|>b").text, "ab");
  const Burst end = burst("c<|tts_eos|>d");
  EXPECT_EQ(end.text, "c");
  EXPECT_EQ(end.ids, ids("c<|tts_eos|>d"));
  EXPECT_EQ(burst("e<|im_end|>").text, "");  // still behind <|tts_eos|>
}

TEST_F(ConversationTest, UpstreamLooksForSpeechEndInEachBurst) {
  start("x", Compatibility::kUpstream);
  hear(1);
  answer();
  EXPECT_EQ(burst("c<|tts_eos|>d").text, "c");
  EXPECT_EQ(burst("e<|im_end|>").text, "e");
}

TEST_F(ConversationTest, NextAnswerHasTextAgainAfterSpeechEnd) {
  hear(1);
  answer();
  burst("a<|tts_eos|><|im_end|>");
  hear(1);
  answer();
  EXPECT_EQ(burst("xyz").text, "xyz");
}

TEST_F(ConversationTest, ExclamationMarkIsKept) {
  hear(1);
  answer();
  EXPECT_EQ(burst("Hi!").text, "Hi!");
}

TEST_F(ConversationTest, UpstreamDropsTheExclamationMark) {
  start("x", Compatibility::kUpstream);
  hear(1);
  answer();
  EXPECT_EQ(burst("Hi!").text, "Hi");
  EXPECT_EQ(burst("!!!").text, "");
}

TEST_F(ConversationTest, MaxNewTokensIsExact) {
  hear(1);
  answer(7);
  int total = 0;
  FinishReason finish = FinishReason::kNone;
  while (finish == FinishReason::kNone && total < 20) {
    const int n = talk_->burst_limit();
    finish = burst(std::string(static_cast<size_t>(n), 'a')).finish;
    total += n;
  }
  EXPECT_EQ(total, 7);
  EXPECT_EQ(finish, FinishReason::kLength);
  const std::string before = fed();
  hear(1);
  EXPECT_EQ(fed(), before + "<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, InterruptAfterMaxNewTokensKeepsTheLastToken) {
  hear(1);
  answer(3);
  const std::string before = fed();
  EXPECT_EQ(burst("abc").finish, FinishReason::kLength);
  talk_->interrupt(3);
  hear(1);
  EXPECT_EQ(fed(), before + "abc<|tts_eos|><|im_end|>\n<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, UpstreamOverrunsMaxNewTokens) {
  for (const auto& [limit, sampled] : {std::pair(7, 9), std::pair(40, 42), std::pair(9, 9)}) {
    start("x", Compatibility::kUpstream);
    hear(1);
    answer(limit);
    int total = 0;
    FinishReason finish = FinishReason::kNone;
    while (finish == FinishReason::kNone && total < 60) {
      const int n = talk_->burst_limit();
      finish = burst(std::string(static_cast<size_t>(n), 'a')).finish;
      total += n;
    }
    EXPECT_EQ(total, sampled);
    EXPECT_EQ(finish, FinishReason::kLength);
  }
}

TEST_F(ConversationTest, StopTokenAtTheLimitCountsAsStop) {
  hear(1);
  answer(2);
  EXPECT_EQ(burst("a<|im_end|>").finish, FinishReason::kStop);
}

TEST_F(ConversationTest, PenaltyCoversThePromptFirstAndThenTheCarriedToken) {
  hear(1);
  answer();
  EXPECT_EQ(talk_->penalty_scope(), talk_->answer_prompt().ids);
  burst("abc");
  EXPECT_EQ(talk_->penalty_scope(), ids("c"));
  burst("def");
  EXPECT_EQ(talk_->penalty_scope(), ids("f"));
}

TEST_F(ConversationTest, RestartKeepsTheSystemMessageOnly) {
  talk_->accept_system(talk_->system_message());
  const std::string system = fed();
  hear(2);
  answer();
  burst("abc");
  talk_->restart();
  EXPECT_EQ(fed(), system);
  EXPECT_TRUE(talk_->fresh());
  EXPECT_FALSE(talk_->answering());
  hear(1);
  EXPECT_EQ(fed(), system + "<|im_start|>user\n" + audio(1));
}

TEST_F(ConversationTest, RestartAfterAnUnprimedFirstTurnKeepsTheSystemMessageToo) {
  hear(2);
  talk_->restart();
  EXPECT_EQ(fed(), "<|im_start|>user\nBe kind.<|im_end|>\n");
}

TEST_F(ConversationTest, ContextFullKeepsTheTokenThatWasNotFed) {
  hear(1);
  answer();
  const std::string before = fed();
  burst("abc");
  const Burst end = talk_->accept_burst(ids("d"), FinishReason::kContext);
  EXPECT_EQ(end.finish, FinishReason::kContext);
  EXPECT_EQ(end.text, "d");
  EXPECT_EQ(fed(), before + "abc");
  EXPECT_EQ(talk_->accept_burst({}, FinishReason::kContext).text, "");
  EXPECT_EQ(talk_->carried(), 'd');
}

TEST_F(ConversationTest, EveryDialogueTokenIsNeeded) {
  for (const std::string& missing : FakeTokenizer::dialogue_tokens()) {
    auto tokens = FakeTokenizer::dialogue_tokens();
    std::erase(tokens, missing);
    const auto prompts = Prompts::load(FakeTokenizer(tokens), 1000, 25, "MODEL");
    ASSERT_FALSE(prompts.ok()) << missing;
    EXPECT_EQ(prompts.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(prompts.error().message.find(missing), std::string::npos) << prompts.error().message;
    EXPECT_NE(prompts.error().message.find("MODEL"), std::string::npos);
  }
}

TEST_F(ConversationTest, VocabularyMustCoverTheTokenizer) {
  const auto prompts = Prompts::load(*tokenizer_, tokenizer_->size() - 1, 25, "MODEL");
  ASSERT_FALSE(prompts.ok());
  EXPECT_EQ(prompts.error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace minicpmo
