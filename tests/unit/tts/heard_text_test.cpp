#include "tts/heard_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace minicpmo {
namespace {

HeardText finished(std::string_view text, int64_t rows) {
  HeardText heard;
  heard.begin();
  heard.add_text(text);
  heard.add_rows(rows);
  heard.end();
  return heard;
}

// What has been heard after each row, each text once.
std::vector<std::string> steps(const HeardText& heard, const std::string& text, int64_t rows) {
  std::vector<std::string> out;
  for (int64_t row = 0; row <= rows; ++row) {
    const int64_t bytes = heard.bytes_at(row);
    EXPECT_GE(bytes, 0);
    EXPECT_LE(bytes, static_cast<int64_t>(text.size()));
    const std::string part = text.substr(0, static_cast<size_t>(bytes));
    if (out.empty() || part != out.back()) out.push_back(part);
  }
  EXPECT_TRUE(std::is_sorted(out.begin(), out.end(),
                             [](const auto& a, const auto& b) { return a.size() < b.size(); }));
  return out;
}

std::vector<std::string> steps_of(const std::string& text, int64_t rows) {
  return steps(finished(text, rows), text, rows);
}

using Texts = std::vector<std::string>;

TEST(HeardText, GrowsByWholeWordsWithTheirPunctuation) {
  EXPECT_EQ(steps_of("Yes, I do.", 60), (Texts{"", "Yes,", "Yes, I", "Yes, I do."}));
  EXPECT_EQ(steps_of(" \"Go\" (now)!\n", 60),
            (Texts{"", " \"Go\"", " \"Go\" (now)!", " \"Go\" (now)!\n"}));
}

TEST(HeardText, LettersShareTheTime) {
  // 4 rows of silence, 20 letters in 60 rows, 8 rows of silence.
  const HeardText heard = finished("aaaaaaaaaa bbbbbbbbbb", 72);
  EXPECT_EQ(heard.bytes_at(4 + 24), 0);
  EXPECT_EQ(heard.bytes_at(4 + 26), 10);
  EXPECT_EQ(heard.bytes_at(4 + 54), 10);
  EXPECT_EQ(heard.bytes_at(4 + 56), 21);
}

TEST(HeardText, PunctuationAfterAWordIsAPauseAndInsideItIsNot) {
  const auto begin_of_last = [](const std::string& text) {
    const HeardText heard = finished(text, 120);
    int64_t row = 0;
    while (heard.bytes_at(row) < static_cast<int64_t>(text.size())) ++row;
    return row;
  };
  EXPECT_GT(begin_of_last("aaaa, bb cccccc"), begin_of_last("aaaa bb cccccc"));
  EXPECT_EQ(begin_of_last("aaaa... bb cccccc"), begin_of_last("aaaa, bb cccccc"));
  EXPECT_EQ(begin_of_last("aa.aa bb cccccc"), begin_of_last("aaaa bb cccccc"));
}

TEST(HeardText, WhatIsNotSaidTakesNoTime) {
  EXPECT_EQ(finished("**aaaaaaaaaa** bbbbbbbbbb", 72).bytes_at(4 + 26), 14);
  const std::string smile = "\xF0\x9F\x98\x80";
  EXPECT_EQ(steps_of("Hi " + smile + " there", 60),
            (Texts{"", "Hi", "Hi " + smile, "Hi " + smile + " there"}));
}

TEST(HeardText, ADigitIsAWord) {
  // "ninety eight" is said "nine eight": eight letters' time, as the other word.
  const HeardText heard = finished("98 aaaaaaaa", 12 + 48);
  EXPECT_EQ(heard.bytes_at(4 + 20), 0);
  EXPECT_EQ(heard.bytes_at(4 + 21), 2);
}

TEST(HeardText, ScriptsWithoutSpacesGoBySyllables) {
  EXPECT_EQ(steps_of("你好，GPU吗？", 80),
            (Texts{"", "你", "你好，", "你好，GPU", "你好，GPU吗？"}));
}

TEST(HeardText, LongRunsAreCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "ä";
  const Texts parts = steps_of(text, 400);
  EXPECT_GE(parts.size(), 3U);
  for (const std::string& part : parts) EXPECT_EQ(part.size() % 2, 0U);
}

TEST(HeardText, UnfinishedAnswersGoByTheRate) {
  HeardText heard;
  heard.begin();
  heard.add_text("One two three four fi");
  heard.add_rows(1000);
  EXPECT_EQ(heard.bytes_at(0), 0);
  // 1000 rows have been made of these words: they are said slowly.
  EXPECT_EQ(heard.bytes_at(300), 3);
  EXPECT_EQ(heard.bytes_at(990), 18) << "the last word may go on";
  heard.add_text("ve ");
  EXPECT_EQ(heard.bytes_at(1000), 23);
  heard.begin();
  heard.add_text("One two three four five six seven eight nine ten ");
  heard.add_rows(25);
  EXPECT_EQ(heard.bytes_at(4 + 9), 3);
  EXPECT_EQ(heard.bytes_at(4 + 19), 7);
  EXPECT_EQ(heard.bytes_at(100), heard.bytes_at(25)) << "more played than made";
}

TEST(HeardText, LearnsTheRateOfFinishedAnswers) {
  const std::string text = "aaaaaaaaaa bbbbbbbbbb cccccccccc dddddddddd ";
  const auto at_63 = [&](HeardText heard) {
    heard.begin();
    heard.add_text(text);
    heard.add_rows(64);
    return heard.bytes_at(63);
  };
  HeardText heard;
  EXPECT_EQ(at_63(heard), 10);
  for (int i = 0; i < 100; ++i) {
    heard.begin();
    heard.add_text(text);
    heard.add_rows(12 + 80);
    heard.end();
  }
  EXPECT_EQ(at_63(heard), 32) << "two rows per letter";
  for (int i = 0; i < 100; ++i) {
    heard.begin();
    heard.add_text(text);
    heard.add_rows(2048);
    heard.end();
  }
  EXPECT_EQ(at_63(heard), 32) << "nobody speaks as slowly: it was something else";
}

TEST(HeardText, TakesAnything) {
  HeardText nothing;
  EXPECT_EQ(nothing.bytes_at(100), 0);
  EXPECT_EQ(nothing.bytes_at(-1), 0);
  nothing.end();
  EXPECT_EQ(nothing.bytes_at(100), 0);

  EXPECT_EQ(steps_of("", 10), Texts{""});
  EXPECT_EQ(steps_of("*** 😀 -", 10), (Texts{"", "*** 😀 -"}));
  EXPECT_EQ(finished("*** 😀 -", 10).bytes_at(9), 0);
  EXPECT_EQ(steps_of("Yes.", 1), (Texts{"", "Yes."}));
  EXPECT_EQ(finished("not a sound", 0).bytes_at(0), 0);
  EXPECT_EQ(finished("not a sound", 0).bytes_at(1), 11);
  EXPECT_EQ(finished("words", 20).bytes_at(1 << 30), 5);
  const std::string broken("a\xFF\xC3 \0b \xE4\xBD", 8);
  EXPECT_EQ(steps_of(broken, 60).back(), broken);

  HeardText pieces;
  pieces.begin();
  for (const char byte : std::string("你好 there"))
    pieces.add_text(std::string_view(&byte, 1)), pieces.add_text("");
  pieces.add_rows(60);
  pieces.end();
  for (int64_t row = 0; row <= 60; ++row)
    EXPECT_EQ(pieces.bytes_at(row), finished("你好 there", 60).bytes_at(row));
}

TEST(HeardText, AMegabyteIsNoTrouble) {
  std::string text;
  while (text.size() < (1U << 20)) text += "a few words, ";
  const HeardText heard = finished(text, 3'000'000);
  const auto half = static_cast<double>(heard.bytes_at(1'500'000));
  EXPECT_NEAR(half / static_cast<double>(text.size()), 0.5, 0.001);
  EXPECT_GT(finished(std::string(1U << 20, 'a'), 3'000'000).bytes_at(1'500'000), 500'000);
}

TEST(HeardText, ACopyGoesItsOwnWay) {
  HeardText one = finished("one two", 60);
  HeardText two = one;
  two.begin();
  EXPECT_EQ(two.bytes_at(60), 0);
  EXPECT_EQ(one.bytes_at(60), 7);
}

}  // namespace
}  // namespace minicpmo
