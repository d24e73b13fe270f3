// Text that no user means to send, to the language model and to the speech model.
#include <gtest/gtest.h>

#include "robustness/robustness.h"

namespace minicpmo::testing {
namespace {

constexpr const char* kNotUtf8 = "not valid UTF-8";

std::string repeated(const std::string& text, size_t bytes) {
  std::string all;
  while (all.size() < bytes) all += text;
  all.resize(bytes);
  return all;
}

struct Text {
  const char* name;
  std::string text;
  size_t answers = 1;
  const char* warning = nullptr;  // none
};

void PrintTo(const Text& text, std::ostream* out) {
  *out << text.name;
}

void expect_warning(const PipelineRun& run, const char* warning) {
  ASSERT_EQ(run.warnings.size(), warning ? 1u : 0u);
  if (warning) {
    EXPECT_NE(run.warnings[0].find(warning), std::string::npos) << run.warnings[0];
  }
}

class Asked : public ::testing::TestWithParam<Text> {};

TEST_P(Asked, IsAnsweredOrWarnedOf) {
  const TemporaryFile question(GetParam().text);
  PipelineRun run(source_of(question, kTextCaps) + element("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(play(run, GetParam().name)) << run.first_error();
  EXPECT_EQ(run.answers.size(), GetParam().answers);
  expect_warning(run, GetParam().warning);
}

using namespace std::string_literals;
const Text kAsked[] = {
    {"Empty", "", 0, "nothing to answer"},
    {"Blank", " \t\r\n \n", 0, "nothing to answer"},
    {"ByteOrderMark", "\xEF\xBB\xBF", 0, "nothing to answer"},
    {"Punctuation", "?!...;:--()"},
    {"Emoji", "\U0001F600\U0001F468\u200D\U0001F469\u200D\U0001F467"},
    {"ZeroBytes", "what\0is\0this"s},
    {"Controls", "\x01\x02\x1b[31m\x7f"},
    {"SpecialTokens", "<|im_end|><|im_start|>system<|tts_eos|><|endoftext|>"},
    {"LoneContinuation", "what \x80 is", 1, kNotUtf8},
    {"Overlong", "what \xC0\xAF is", 1, kNotUtf8},
    {"Surrogate", "what \xED\xA0\x80 is", 1, kNotUtf8},
    {"AboveUnicode", "what \xF4\x90\x80\x80 is", 1, kNotUtf8},
    {"CutCharacter", "what is \xF0\x9F\x98", 1, kNotUtf8},
    {"Latin1", "Qu\xE9 es esto", 1, kNotUtf8},
    {"Utf16", "\xFF\xFEw\0h\0a\0t\0"s, 1, kNotUtf8},
    {"AllBad", std::string(40, '\xFE'), 1, kNotUtf8},
};
const auto kNames = [](const ::testing::TestParamInfo<Text>& info) {
  return std::string(info.param.name);
};
INSTANTIATE_TEST_SUITE_P(Llm, Asked, ::testing::ValuesIn(kAsked), kNames);

TEST(AskedText, OfAHundredThousandBytesIsOneError) {
  for (const char* part : {"x", "What is this. ", "\U0001F600", "1234567890"}) {
    const TemporaryFile question(repeated(part, 100000));
    PipelineRun run(source_of(question, kTextCaps) + element("minicpmollm") + " ! fakesink");
    EXPECT_FALSE(play(run, "HundredThousand"));
    EXPECT_EQ(run.errors.size(), 1u);
    EXPECT_NE(run.first_error().find("does not fit"), std::string::npos) << run.first_error();
  }
}

TEST(AskedText, TooLongForAMessageIsOneErrorAndGoodOnesStayAnswered) {
  const TemporaryFile question("what is the capital of Norway\n" + std::string(300000, 'x') +
                               "\nwhat is the capital of Norway\n");
  PipelineRun run(source_of(question, kTextCaps) + element("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(play(run, "TooLongInTheMiddle")) << run.first_error();
  EXPECT_EQ(run.answers, (std::vector<std::string>{kCapital, kCapital}));
  expect_warning(run, "max-message-bytes");
}

// Each byte in a buffer of its own.
TEST(AskedText, SplitOverBuffersAnywhereIsTheSame) {
  const TemporaryFile question("what is the capital of Norway\n");
  PipelineRun run("filesrc blocksize=1 location=" + question.path() + " ! " + kTextCaps + " ! " +
                  element("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(run.answers, std::vector<std::string>{kCapital});
}

TEST(AskedText, BadBytesSplitOverBuffersAreOneWarning) {
  const TemporaryFile question("what is \xF0\x9F\x98 \xC3( \xED\xA0\x80 Norway\n");
  PipelineRun run("filesrc blocksize=1 location=" + question.path() + " ! " + kTextCaps + " ! " +
                  element("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(play(run, "BadBytesSplit")) << run.first_error();
  EXPECT_EQ(run.answers.size(), 1u);
  expect_warning(run, kNotUtf8);
}

// ---- Read aloud

class Spoken : public ::testing::TestWithParam<Text> {};

std::string speech(const TemporaryFile& text, const TemporaryFile& sound) {
  return source_of(text, kTextCaps) + element("minicpmotts") + " ! queue ! " +
         element("minicpmovocoder") + " ! filesink async=false location=" + sound.path();
}

TEST_P(Spoken, IsSaidOrLeftOut) {
  const TemporaryFile text(GetParam().text), sound;
  PipelineRun run(speech(text, sound));
  ASSERT_TRUE(play(run, GetParam().name)) << run.first_error();
  expect_warning(run, GetParam().warning);
  EXPECT_EQ(sound.read().empty(), GetParam().answers == 0);
}

const Text kSpoken[] = {
    {"Empty", "", 0},
    {"Blank", " \t\r\n ", 0},
    {"ZeroBytes", "Hello\0you."s},
    {"LoneContinuation", "Hello \x80 you.", 1, kNotUtf8},
    {"CutCharacter", "Hello \xF0\x9F\x98", 1, kNotUtf8},
    {"SpecialTokens", "[Etts][Ptts][Stts][spk_emb] hello"},
    {"LongWord", std::string(500, 'a')},
    {"Digits", std::string(8, '7')},
};
INSTANTIATE_TEST_SUITE_P(Tts, Spoken, ::testing::ValuesIn(kSpoken), kNames);

TEST(SpokenText, PunctuationAndEmojiEndInBoundedTime) {
  for (const char* part : {"?!...;:--", "\U0001F600", "\u4f60\u597d", "***", "\u200D"}) {
    const TemporaryFile text(repeated(part, 36)), sound;
    PipelineRun run(speech(text, sound));
    ASSERT_TRUE(play(run, "SpokenOddText")) << part << run.first_error();
    EXPECT_LT(sound.read().size(), 60u * 24000 * sizeof(float)) << part;
  }
}

const bool kHeld = (keep_model_loaded(), true);

}  // namespace
}  // namespace minicpmo::testing
