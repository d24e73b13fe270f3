// UTF-8, normalisation and the split regex.
#include <gtest/gtest.h>

#include "engine/unicode_text.h"
#include "llm/split_regex.h"

namespace minicpmo {
namespace {

using Pieces = std::vector<std::string>;
constexpr char kQwen[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Pieces split(const std::string& regex, const std::string& text) {
  auto compiled = SplitRegex::compile(regex);
  EXPECT_TRUE(compiled.ok()) << (compiled.ok() ? "" : compiled.error().message);
  Pieces pieces;
  if (compiled) compiled->split(text, [&](std::string_view p) { pieces.emplace_back(p); });
  return pieces;
}

TEST(UnicodeText, ReplacesMaximalParts) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98"), bad);  // cut short: one
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98"
                          "a"),
            bad + "a");
  EXPECT_EQ(to_valid_utf8("\xC0\xAF"), bad + bad);                      // overlong
  EXPECT_EQ(to_valid_utf8("\xE0\x80\x80"), bad + bad + bad);            // overlong
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80"), bad + bad + bad + bad);  // over U+10FFFF
  EXPECT_EQ(to_valid_utf8("\xE4\xB8\xE4\xB8\xAD"), bad + "中");
  EXPECT_EQ(to_valid_utf8("a中😀" + bad), "a中😀" + bad);
}

TEST(UnicodeText, TellsValidUtf8) {
  EXPECT_TRUE(is_valid_utf8(""));
  EXPECT_TRUE(is_valid_utf8("\xEF\xBF\xBD"));
  EXPECT_TRUE(is_valid_utf8(std::string("\0", 1)));
  EXPECT_FALSE(is_valid_utf8("\xED\xBF\xBF"));
  EXPECT_FALSE(is_valid_utf8("a\x80"));
}

TEST(UnicodeText, EveryCodePointSurvivesUtf8) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string bytes;
    append_utf8(bytes, c);
    size_t at = 0;
    ASSERT_EQ(next_code_point(bytes, at), c);
    ASSERT_EQ(at, bytes.size());
  }
}

TEST(UnicodeText, ComposesAndOrders) {
  EXPECT_EQ(normalize_nfc("e\u0301"), "é");
  EXPECT_EQ(normalize_nfc("a\u0301\u0323"), "ạ\u0301");  // dot below goes first, and composes
  EXPECT_EQ(normalize_nfc("\u1100\u1161\u11A8"), "각");
  EXPECT_EQ(normalize_nfc("\u212B"), "Å");
  EXPECT_EQ(normalize_nfc("\u0958"), "\u0915\u093C");  // excluded from composition
  EXPECT_EQ(normalize_nfc("q\u0307\u0323"), "q\u0323\u0307");
}

TEST(UnicodeText, NormalizesBehindNul) {
  EXPECT_EQ(normalize_nfc(std::string("\0e\u0301", 4)), std::string("\0é", 3));
}

TEST(UnicodeText, LeavesNewerCharactersAlone) {
  EXPECT_EQ(normalize_nfc("\U00011935\U00011930"), "\U00011935\U00011930");  // Unicode 13
  EXPECT_EQ(normalize_nfc("\u0301\u0898\u0323"), "\u0301\u0898\u0323");      // Unicode 14
}

TEST(UnicodeText, FindsRanges) {
  constexpr CodeRange kRanges[] = {{5, 7}, {10, 10}};
  for (char32_t c = 0; c < 20; ++c) {
    EXPECT_EQ(contains(kRanges, c), (c >= 5 && c <= 7) || c == 10) << static_cast<unsigned>(c);
  }
  EXPECT_FALSE(contains({}, 1));
}

TEST(SplitRegex, CutsLikeQwen) {
  EXPECT_EQ(split(kQwen, "I'm 25, you'LL see"),
            (Pieces{"I", "'m", " ", "2", "5", ",", " you", "'LL", " see"}));
  EXPECT_EQ(split(kQwen, "a   b  "), (Pieces{"a", "  ", " b", "  "}));
  EXPECT_EQ(split(kQwen, "x \n\n y!?\r\nz"), (Pieces{"x", " \n\n", " y", "!?\r\n", "z"}));
}

TEST(SplitRegex, HasTheReferencesClasses) {
  EXPECT_EQ(split(R"(\s)", "a\u180Eb\u3000c"), (Pieces{"a\u180Eb", "\u3000", "c"}));
  EXPECT_EQ(split(R"(\p{L}+)", "1\U00031350a2"), (Pieces{"1", "\U00031350a", "2"}));  // Unicode 15
  EXPECT_EQ(split(R"([^\p{N}])", "1\U00010D40-"), (Pieces{"1\U00010D40", "-"}));      // Unicode 16
  EXPECT_EQ(split(R"(\P{L}+)", "a1 b"), (Pieces{"a", "1 ", "b"}));
}

TEST(SplitRegex, StretchesBetweenMatchesArePieces) {
  EXPECT_EQ(split("b+", "abbac"), (Pieces{"a", "bb", "ac"}));
  EXPECT_EQ(split("b+", "xyz"), (Pieces{"xyz"}));
  EXPECT_EQ(split("b+", ""), (Pieces{}));
}

TEST(SplitRegex, StopsOnARegexThatExplodes) {
  std::string text(60, 'a');
  Pieces pieces = split("(?:a+)+b|(?:a|aa)+c", text + "!");
  std::string joined;
  for (const auto& piece : pieces) joined += piece;
  EXPECT_EQ(joined, text + "!");
}

class RefusedRegex : public testing::TestWithParam<const char*> {};
TEST_P(RefusedRegex, IsAnErrorThatSaysWhy) {
  auto compiled = SplitRegex::compile(GetParam());
  ASSERT_FALSE(compiled.ok()) << GetParam();
  EXPECT_EQ(compiled.error().code, ErrorCode::kCorrupt);
  EXPECT_GT(compiled.error().message.size(), 10u);
}
INSTANTIATE_TEST_SUITE_P(Patterns, RefusedRegex,
                         testing::Values("a(", "[a", "a*", "", "^a", "a$", "[a[b]]", "[a&&b]",
                                         R"(\w+)", R"(\d)", R"(a\b)", R"(\p{Han})", R"([^\S])",
                                         "(?x)a", "(?<n>a)", "(*FAIL)a", "(?R)a", "[]a]", "\\",
                                         R"(\C)", "a{9999999}", "(?P>x)"));

TEST(SplitRegex, RefusesAGiantPattern) {
  EXPECT_FALSE(SplitRegex::compile(std::string(1 << 20, '(')).ok());
  EXPECT_FALSE(SplitRegex::compile(std::string(4000, '(')).ok());
}

}  // namespace
}  // namespace minicpmo
