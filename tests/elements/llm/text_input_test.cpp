#include "common/gstminicpmotextinput.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace minicpmo {
namespace {

const std::string kBad = "\xEF\xBF\xBD";

std::string repair(const std::string& bytes) {
  Utf8Repair utf8;
  const std::string fed = utf8.feed(bytes);
  return fed + utf8.finish();
}

std::vector<std::string> lines(const std::vector<std::string>& pieces) {
  TextMessages messages;
  std::vector<std::string> found;
  const auto take = [&](std::string text) { found.push_back(std::move(text)); };
  for (const std::string& piece : pieces) messages.feed(piece, TextFraming::kLines, take);
  messages.finish(take);
  return found;
}

std::vector<std::string> words(const std::string& text) {
  WordPieces pieces;
  std::vector<std::string> found;
  const auto take = [&](std::string_view piece) { found.emplace_back(piece); };
  pieces.feed(text, take);
  pieces.finish(take);
  return found;
}

TEST(Utf8Repair, LeavesValidTextAlone) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 \xED\x9F\xBF\xF4\x8F\xBF\xBF";
  Utf8Repair utf8;
  EXPECT_EQ(utf8.feed(text), text);
  EXPECT_EQ(utf8.finish(), "");
  EXPECT_FALSE(utf8.repaired());
}

TEST(Utf8Repair, KeepsNulBytes) {
  const std::string text("a\0b", 3);
  EXPECT_EQ(repair(text), text);
}

// Table 3-8 of the Unicode standard and its neighbours.
TEST(Utf8Repair, ReplacesMaximalSubparts) {
  EXPECT_EQ(repair("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a" + kBad + kBad + kBad + "b" + kBad + "c" + kBad + kBad + "d");
  EXPECT_EQ(repair("\xC0\xAF"), kBad + kBad);                        // overlong /
  EXPECT_EQ(repair("\xED\xA0\x80"), kBad + kBad + kBad);             // a surrogate
  EXPECT_EQ(repair("\xF4\x90\x80\x80"), kBad + kBad + kBad + kBad);  // above U+10FFFF
  EXPECT_EQ(repair("\xFF\xFE"), kBad + kBad);
  EXPECT_EQ(repair("\xE2\x82"), kBad);  // cut at the end
}

TEST(Utf8Repair, DoesNotDependOnWhereTheBytesAreCut) {
  std::mt19937 random(7);
  std::string bytes;
  for (int i = 0; i < 400; ++i) {
    // Lead bytes, continuation bytes and ASCII, so that sequences of every kind come up.
    constexpr unsigned char kPool[] = {0x41, 0x80, 0xBF, 0xC3, 0xE2, 0xE0, 0xED,
                                       0xF0, 0xF4, 0xFF, 0x82, 0xAC, 0x9F};
    bytes += static_cast<char>(kPool[random() % sizeof(kPool)]);
  }
  const std::string whole = repair(bytes);
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    Utf8Repair utf8;
    std::string parts = utf8.feed(std::string_view(bytes).substr(0, cut));
    parts += utf8.feed(std::string_view(bytes).substr(cut));
    parts += utf8.finish();
    ASSERT_EQ(parts, whole) << "cut at " << cut;
  }
  Utf8Repair utf8;
  std::string one_by_one;
  for (char byte : bytes) one_by_one += utf8.feed(std::string_view(&byte, 1));
  EXPECT_EQ(one_by_one + utf8.finish(), whole);
}

TEST(Utf8Repair, ResetForgetsTheUnfinishedCharacter) {
  Utf8Repair utf8;
  EXPECT_EQ(utf8.feed("\xE2\x82"), "");
  utf8.reset();
  EXPECT_EQ(utf8.feed("x"), "x");
  EXPECT_FALSE(utf8.repaired());
}

TEST(TextMessages, CutsLinesWhereverTheBuffersEnd) {
  const std::vector<std::string> expected{"Hello there.", "How are you?", "Bye"};
  const std::string text = "Hello there.\nHow are you?\nBye";
  for (size_t cut = 0; cut <= text.size(); ++cut)
    EXPECT_EQ(lines({text.substr(0, cut), text.substr(cut)}), expected) << cut;
}

TEST(TextMessages, LeavesOutBlankLinesAndLineEnds) {
  EXPECT_EQ(lines({"\r\n \t\nfirst\r\n\n\xEF\xBB\xBF\nlast\n"}),
            (std::vector<std::string>{"first", "last"}));
  EXPECT_TRUE(lines({""}).empty());
  EXPECT_TRUE(lines({"\n\n\n"}).empty());
}

TEST(TextMessages, RemovesAByteOrderMark) {
  EXPECT_EQ(lines({"\xEF\xBB", "\xBFHi\n"}), std::vector<std::string>{"Hi"});
}

TEST(TextMessages, ABufferIsAMessage) {
  TextMessages messages;
  std::vector<std::string> found;
  const auto take = [&](std::string text) { found.push_back(std::move(text)); };
  messages.feed("two\nlines", TextFraming::kBuffers, take);
  messages.feed("", TextFraming::kBuffers, take);
  messages.feed("cut \xC3", TextFraming::kBuffers, take);
  messages.feed("\xA9", TextFraming::kBuffers, take);
  EXPECT_EQ(found, (std::vector<std::string>{"two\nlines", "cut " + kBad, kBad}));
  EXPECT_TRUE(messages.repaired());
}

TEST(TextMessages, DropsWhatIsTooLongAndGoesOn) {
  TextMessages messages;
  messages.set_max_bytes(4);
  std::vector<std::string> found;
  const auto take = [&](std::string text) { found.push_back(std::move(text)); };
  messages.feed("four\nfi", TextFraming::kLines, take);
  messages.feed("vee", TextFraming::kLines, take);
  messages.feed(std::string(100000, 'x') + "\nok\n", TextFraming::kLines, take);
  messages.finish(take);
  EXPECT_EQ(found, (std::vector<std::string>{"four", "ok"}));
  EXPECT_EQ(messages.dropped(), 1u);
}

TEST(WordPieces, ASpaceStartsAPiece) {
  EXPECT_EQ(words("The capital of  Norway\nis Oslo."),
            (std::vector<std::string>{"The", " capital", " of", "  Norway", "\nis", " Oslo."}));
  EXPECT_TRUE(words("").empty());
}

TEST(WordPieces, CutsLongWordsBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 20; ++i) text += "\xE6\x97\xA5";  // 60 bytes without a space
  const auto pieces = words(text);
  ASSERT_EQ(pieces.size(), 3u);
  std::string joined;
  for (const std::string& piece : pieces) {
    EXPECT_EQ(piece.size() % 3, 0u);
    EXPECT_LE(piece.size(), 24u);
    joined += piece;
  }
  EXPECT_EQ(joined, text);
}

TEST(WordPieces, DoNotDependOnWhereTheTextIsCut) {
  const std::string text = "One two,  three.\nFour";
  const auto whole = words(text);
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    WordPieces pieces;
    std::vector<std::string> found;
    const auto take = [&](std::string_view piece) { found.emplace_back(piece); };
    pieces.feed(std::string_view(text).substr(0, cut), take);
    pieces.feed(std::string_view(text).substr(cut), take);
    pieces.finish(take);
    EXPECT_EQ(found, whole) << cut;
  }
}

}  // namespace
}  // namespace minicpmo
