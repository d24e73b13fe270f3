#include "tts/text_normalizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace minicpmo {
namespace {

std::vector<std::string> normalized(Compatibility compatibility,
                                    const std::vector<std::string>& bursts,
                                    bool knows_chinese = true) {
  TextNormalizer normalizer(compatibility, knows_chinese);
  normalizer.start();
  std::vector<std::string> out;
  for (const std::string& burst : bursts) out.push_back(normalizer.normalize(burst).text);
  return out;
}

using Texts = std::vector<std::string>;
constexpr auto kNone = Compatibility::kNone;
constexpr auto kUpstream = Compatibility::kUpstream;

TEST(TextNormalizer, EnglishDigitsAreReadOneByOne) {
  EXPECT_EQ(normalized(kNone, {"I have 23 books"}), Texts{"I have two three books"});
  EXPECT_EQ(normalized(kNone, {"pi is 3.14"}), Texts{"pi is three.one four"});
}

TEST(TextNormalizer, ChineseDigitsStandWithoutSpaces) {
  EXPECT_EQ(normalized(kNone, {"我有25个苹果"}), Texts{"我有二五个苹果"});
}

TEST(TextNormalizer, AsManyIdeographsAsLettersIsChinese) {
  EXPECT_EQ(normalized(kNone, {"ab我有 1"}), Texts{"ab我有 一"});
  EXPECT_EQ(normalized(kNone, {"abc我有 1"}), Texts{"abc我有 one"});
  EXPECT_EQ(normalized(kNone, {"42"}), Texts{"四二"});
}

TEST(TextNormalizer, EnglishWhereTheTokenizerHasNoChinese) {
  EXPECT_EQ(normalized(kNone, {"42"}, false), Texts{"four two"});
}

TEST(TextNormalizer, DigitsSplitOverBurstsStayApart) {
  EXPECT_EQ(normalized(kNone, {"It is 2", "5", " now"}), (Texts{"It is two", " five", " now"}));
  EXPECT_EQ(normalized(kNone, {"room ", "7", "c"}), (Texts{"room ", "seven", " c"}));
}

TEST(TextNormalizer, DigitsAndLettersStayApart) {
  EXPECT_EQ(normalized(kNone, {"the 5th B2B x"}), Texts{"the five th B two B x"});
}

TEST(TextNormalizer, UpstreamGluesDigitsSplitOverBursts) {
  EXPECT_EQ(normalized(kUpstream, {"It is ", "2", "5"}), (Texts{"It is ", "two", "five"}));
  EXPECT_EQ(normalized(kUpstream, {"It is ", "25 B2B"}), (Texts{"It is ", "two five BtwoB"}));
}

TEST(TextNormalizer, UpstreamLeavesTheFirstBurstAlone) {
  EXPECT_EQ(normalized(kUpstream, {"**1** is", " *2*"}), (Texts{"**1** is", " two"}));
}

TEST(TextNormalizer, UpstreamContinuationNormalisesItsFirstBurst) {
  TextNormalizer normalizer(kUpstream);
  normalizer.start_continuation("the end of it");
  EXPECT_EQ(normalizer.normalize(" 7").text, " seven");
}

TEST(TextNormalizer, UpstreamContinuationDecidesTheLanguageAnew) {
  TextNormalizer normalizer(kUpstream);
  normalizer.start();
  normalizer.normalize("english text");
  EXPECT_EQ(normalizer.normalize("1").text, "one");
  normalizer.start_continuation("我有");
  EXPECT_EQ(normalizer.normalize("1").text, "一");
}

TEST(TextNormalizer, LanguageIsKeptAfterTheThirdBurst) {
  EXPECT_EQ(normalized(kNone, {"abc", "d", "e", "我有很多很多苹果 ", "1"}).back(), "one");
  EXPECT_EQ(normalized(kNone, {"abc", "d", "我有很多很多苹果", "1", "1"}).back(), "一");
  EXPECT_EQ(normalized(kUpstream, {"abc", "d", "e", "我有很多很多苹果 ", "1"}).back(), "one");
}

TEST(TextNormalizer, StarsGoEverywhere) {
  EXPECT_EQ(normalized(kNone, {"**Bold** 2*3", "*"}), (Texts{"Bold two three", ""}));
  EXPECT_EQ(normalized(kUpstream, {"a", "**b** 2*3"}), (Texts{"a", "b twothree"}));
}

TEST(TextNormalizer, DigitsOfOtherScripts) {
  EXPECT_EQ(normalized(kNone, {"it is ２３"}), Texts{"it is two three"});
  EXPECT_EQ(normalized(kUpstream, {"it is", " ２３ and 1"}), (Texts{"it is", "  and one"}));
}

TEST(TextNormalizer, PlainTextIsLeftAsItIs) {
  const std::string text = "Oslo, she said: isn't it? Così è…  \n ÄÖ 好 🙂";
  EXPECT_EQ(normalized(kNone, {text}), Texts{text});
  EXPECT_EQ(normalized(kUpstream, {"", text}), (Texts{"", text}));
}

size_t end_of(const std::vector<std::string>& bursts) {
  TextNormalizer normalizer(kNone);
  normalizer.start();
  NormalizedBurst last;
  for (const std::string& burst : bursts) last = normalizer.normalize(burst);
  return last.sentence_end;
}

TEST(SentenceEnd, AfterTheLastOne) {
  EXPECT_EQ(end_of({"Yes. No. Hm"}), 8U);
  EXPECT_EQ(end_of({"好。 Hm"}), 6U);
  EXPECT_EQ(end_of({"What?! Hm"}), 6U);
  EXPECT_EQ(end_of({"no end, here"}), NormalizedBurst::kNone);
  EXPECT_EQ(end_of({""}), NormalizedBurst::kNone);
}

TEST(SentenceEnd, NotAfterADigit) {
  EXPECT_EQ(end_of({"it is 3.14 or"}), NormalizedBurst::kNone);
  EXPECT_EQ(end_of({"it is 3", ".14 or"}), NormalizedBurst::kNone);
  EXPECT_EQ(end_of({"1. First. Then"}), 11U);  // in "one. First. Then"
}

TEST(SentenceEnd, OffsetCountsTheNormalisedText) {
  TextNormalizer normalizer(kNone);
  normalizer.start();
  const NormalizedBurst burst = normalizer.normalize("Take 22. Or *two*. Then");
  EXPECT_EQ(burst.text.substr(0, burst.sentence_end), "Take two two. Or two.");
}

TEST(SentenceEnd, UpstreamTakesTheFirstKindInItsList) {
  EXPECT_EQ(upstream_sentence_end("Hm! Yes. No"), ".");
  EXPECT_EQ(upstream_sentence_end("Was? 好。"), "。");
  EXPECT_EQ(upstream_sentence_end("Ja！"), "！");
  EXPECT_EQ(upstream_sentence_end("nothing, here"), "");
}

TEST(SentenceEnd, UpstreamLooksAtTheFirstFullStopOnly) {
  EXPECT_EQ(upstream_sentence_end("3.14"), "");
  EXPECT_EQ(upstream_sentence_end("3.14. Then"), "");
  EXPECT_EQ(upstream_sentence_end("3.14? Then."), "?");
  EXPECT_EQ(upstream_sentence_end(".14"), ".");
}

TEST(ValidUtf8, ReplacesBadBytesOnly) {
  EXPECT_EQ(valid_utf8("plain é 好"), "plain é 好");
  EXPECT_EQ(valid_utf8("a\xFFz"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(valid_utf8("cut \xE5\xA5"), "cut \xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(valid_utf8(std::string_view("a\0b", 3)), std::string("a\0b", 3));
  EXPECT_EQ(valid_utf8("\xED\xA0\x80").find('\xED'), std::string::npos);  // a surrogate
}

}  // namespace
}  // namespace minicpmo
