// Both tokenizers on stored results of PyPI's `tokenizers` and on vocabularies small enough to
// check by eye.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "engine/unicode_text.h"
#include "tokenizer_files.h"

namespace minicpmo {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;

std::shared_ptr<const Tokenizer> take(Loaded loaded) {
  if (!loaded.ok()) throw std::runtime_error(loaded.error().message);  // GoogleTest reports it
  return *loaded;
}

std::shared_ptr<const Tokenizer> tiny_bpe() {
  return take(load_bpe_tokenizer(MODEL_DIR "/tokenizer.json"));
}
std::shared_ptr<const Tokenizer> tiny_wordpiece() {
  return take(load_wordpiece_tokenizer(MODEL_DIR "/assets/chattts_tokenizer/tokenizer.json"));
}

void expect_stored_results(const Tokenizer& tokenizer, const char* name) {
  json cases = json::parse(std::ifstream(CASES));
  ASSERT_GE(cases[name].size(), 30u);
  for (const json& entry : cases[name]) {
    auto text = entry["text"].get<std::string>();
    auto ids = entry["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids), entry["decoded"].get<std::string>()) << text;
  }
}

double seconds_to_encode(const Tokenizer& tokenizer, const std::string& text) {
  auto begin = std::chrono::steady_clock::now();
  tokenizer.encode(text);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// A quadratic encoder would take minutes to hours here; the bound leaves room for sanitizers and
// slow machines.
void expect_linear_time(const Tokenizer& tokenizer) {
  constexpr size_t kBytes = 1 << 20;
  for (const char* unit :
       {"a", " ", "\n", "1", "\xcc\x81\xcc\xa3", "<|im_start|", "[", "a b ", "中", "\xff"}) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    EXPECT_LT(seconds_to_encode(tokenizer, text), 20.0) << unit;
  }
}

TEST(BpeTokenizer, EqualsStoredResults) {
  expect_stored_results(*tiny_bpe(), "bpe");
}

TEST(BpeTokenizer, KnowsItsTokens) {
  auto tokenizer = tiny_bpe();
  EXPECT_EQ(tokenizer->size(), 2048);
  EXPECT_EQ(tokenizer->id_to_token(0), "!");
  EXPECT_EQ(tokenizer->token_to_id("!"), 0);
  int32_t start = tokenizer->token_to_id("<|im_start|>");
  EXPECT_GE(start, 0);
  EXPECT_TRUE(tokenizer->is_added_token(start));
  EXPECT_EQ(tokenizer->id_to_token(start), "<|im_start|>");
  EXPECT_FALSE(tokenizer->is_added_token(0));
  EXPECT_EQ(tokenizer->token_to_id("no such token"), -1);
  EXPECT_EQ(tokenizer->id_to_token(2048), "");
  EXPECT_EQ(tokenizer->id_to_token(-1), "");
}

TEST(BpeTokenizer, EncodesNothingAsNothing) {
  EXPECT_TRUE(tiny_bpe()->encode("").empty());
  EXPECT_EQ(tiny_bpe()->decode({}), "");
}

TEST(BpeTokenizer, MergesByRankThenFromTheLeft) {
  auto tokenizer = take(load_bpe(small_bpe()));
  EXPECT_EQ(tokenizer->encode("abc"), (Ids{6}));  // bc first (rank 0), then a+bc
  EXPECT_EQ(tokenizer->encode("ab"), (Ids{4}));
  EXPECT_EQ(tokenizer->encode("abab"), (Ids{4, 4}));
  EXPECT_EQ(tokenizer->encode("abbc"), (Ids{4, 5}));
  EXPECT_EQ(tokenizer->encode("ab c"), (Ids{4, 3, 2}));  // no merge across words
}

TEST(BpeTokenizer, LeftmostOfOverlappingPairsWins) {
  json file = small_bpe();
  file["model"]["vocab"] = {{"a", 0}, {"aa", 1}};
  file["model"]["merges"] = json::array({json::array({"a", "a"})});
  file["added_tokens"] = json::array();
  EXPECT_EQ(take(load_bpe(file))->encode("aaaaa"), (Ids{1, 1, 0}));
}

TEST(BpeTokenizer, ReadsMergesInBothForms) {
  json file = small_bpe();
  file["model"]["merges"] = {"#version: 0.2", "b c", "a b", "a bc"};
  auto old_form = take(load_bpe(file)), new_form = take(load_bpe(small_bpe()));
  for (const char* text : {"abc", "ab", "bcab", "aabbcc abcabc"}) {
    EXPECT_EQ(old_form->encode(text), new_form->encode(text)) << text;
  }
}

TEST(BpeTokenizer, ComposesBeforeItLooks) {
  auto tokenizer = take(load_bpe(small_bpe()));
  EXPECT_EQ(tokenizer->encode("e\xCC\x81"), (Ids{7, 8}));  // e + combining acute = C3 A9
  json file = small_bpe();
  file["normalizer"] = nullptr;
  EXPECT_EQ(take(load_bpe(file))->encode("a\xCC\x81"), (Ids{0}));
}

TEST(BpeTokenizer, DropsBytesThatTheVocabularyLacks) {
  EXPECT_EQ(take(load_bpe(small_bpe()))->encode("azb"), (Ids{4}));  // and what is left meets
}

TEST(BpeTokenizer, UnknownTokenStandsForMissingBytes) {
  json file = small_bpe();
  file["model"]["unk_token"] = "c";
  EXPECT_EQ(take(load_bpe(file))->encode("azzb"), (Ids{0, 2, 2, 1}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(take(load_bpe(file))->encode("azzb"), (Ids{0, 2, 1}));
}

TEST(BpeTokenizer, LongestAddedTokenWins) {
  auto tokenizer = take(load_bpe(small_bpe()));
  EXPECT_EQ(tokenizer->encode("a<x>b"), (Ids{0, 9, 1}));
  EXPECT_EQ(tokenizer->encode("a<x><y>b"), (Ids{0, 10, 1}));
  EXPECT_EQ(tokenizer->encode("<x><x><y><x>"), (Ids{9, 10, 9}));
  EXPECT_EQ(tokenizer->encode("<x><"), (Ids{9}));
}

TEST(BpeTokenizer, AddedTokensTakeTheirWhiteSpace) {
  json file = small_bpe();
  file["added_tokens"][0]["lstrip"] = true;
  auto left = take(load_bpe(file));
  EXPECT_EQ(left->encode("a  \n\xE3\x80\x80<x> b"), (Ids{0, 9, 3, 1}));
  file["added_tokens"][0]["lstrip"] = false;
  file["added_tokens"][0]["rstrip"] = true;
  EXPECT_EQ(take(load_bpe(file))->encode("a <x> \n b"), (Ids{0, 3, 9, 1}));
}

TEST(BpeTokenizer, NormalizedAddedTokenIsFoundInNormalizedText) {
  json file = small_bpe();
  file["added_tokens"][0]["content"] = "e\xCC\x81!";
  file["added_tokens"][0]["normalized"] = true;
  auto tokenizer = take(load_bpe(file));
  EXPECT_EQ(tokenizer->encode("a\xC3\xA9!b"), (Ids{0, 9, 1}));
  EXPECT_EQ(tokenizer->encode("ae\xCC\x81!b"), (Ids{0, 9, 1}));
}

TEST(BpeTokenizer, InvalidUtf8CountsAsReplacementCharacters) {
  auto tokenizer = tiny_bpe();
  auto encode = [&](const std::string& text) { return tokenizer->encode(text); };
  EXPECT_EQ(encode("a\xFF"), encode("a\xEF\xBF\xBD"));
  EXPECT_EQ(encode("\xE4\xB8z"), encode("\xEF\xBF\xBDz"));  // one maximal part
  EXPECT_EQ(encode("\xED\xA0\x80"), encode("\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"));  // a surrogate
  EXPECT_EQ(encode("\x80\x80"), encode("\xEF\xBF\xBD\xEF\xBF\xBD"));
}

TEST(BpeTokenizer, KeepsNul) {
  auto tokenizer = tiny_bpe();
  const std::string text("a\0b\0", 4);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(BpeTokenizer, GivesBackNormalizedText) {
  auto tokenizer = tiny_bpe();
  const std::string text =
      "Hello, 你好! <|im_start|>مرحبا 👨‍👩‍👧‍👦\r\n  end  ";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(BpeTokenizer, EveryPartOfAnAnswerDecodesToValidUtf8) {
  auto tokenizer = tiny_bpe();
  auto ids = tokenizer->encode("你好 é 👨‍👩‍👧‍👦 한국어");
  ASSERT_GT(ids.size(), 20u);  // bytes, mostly
  for (size_t begin = 0; begin < ids.size(); ++begin) {
    for (size_t end = begin; end <= ids.size(); ++end) {
      std::string text = tokenizer->decode(std::span(ids).subspan(begin, end - begin));
      EXPECT_TRUE(is_valid_utf8(text)) << begin << ".." << end;
    }
  }
}

TEST(BpeTokenizer, IncompleteCharacterAtTheEndBecomesOneReplacement) {
  auto tokenizer = tiny_bpe();
  auto ids = tokenizer->encode("\xF0\x9F\x98\x80");
  ASSERT_EQ(ids.size(), 4u);
  EXPECT_EQ(tokenizer->decode(std::span(ids).first(3)), "\xEF\xBF\xBD");
}

TEST(BpeTokenizer, LeavesOutUnknownIds) {
  auto tokenizer = take(load_bpe(small_bpe()));
  EXPECT_EQ(tokenizer->decode(Ids{0, -1, 11, 1 << 30, 3, 9, 1}), "a <x>b");
}

TEST(BpeTokenizer, TokenOutsideTheByteAlphabetStandsForItself) {
  json file = small_bpe();
  file["model"]["vocab"]["中 a"] = 9;
  file["added_tokens"] = json::array();
  EXPECT_EQ(take(load_bpe(file))->decode(Ids{0, 9, 7, 8}), "a中 aé");
}

TEST(BpeTokenizer, TakesLinearTime) {
  expect_linear_time(*tiny_bpe());
}

TEST(BpeTokenizer, ServesSeveralThreads) {
  auto tokenizer = tiny_bpe();
  const std::string text = "what's the capital of France? <|im_end|> 你好";
  const Ids expected = tokenizer->encode(text);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 200; ++k) wrong += tokenizer->encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(WordPieceTokenizer, EqualsStoredResults) {
  expect_stored_results(*tiny_wordpiece(), "wordpiece");
}

TEST(WordPieceTokenizer, KnowsItsTokens) {
  auto tokenizer = tiny_wordpiece();
  EXPECT_EQ(tokenizer->size(), 800);
  EXPECT_EQ(tokenizer->token_to_id("[PAD]"), 0);
  EXPECT_TRUE(tokenizer->is_added_token(tokenizer->token_to_id("[Stts]")));
  EXPECT_EQ(tokenizer->token_to_id("[stts]"), -1);
  EXPECT_EQ(tokenizer->id_to_token(800), "");
}

TEST(WordPieceTokenizer, TakesTheLongestPieceEachTime) {
  auto tokenizer = take(load_wordpiece(small_wordpiece()));
  EXPECT_EQ(tokenizer->encode("unable ables"), (Ids{1, 2, 3, 7}));
  EXPECT_EQ(tokenizer->encode("unables"), (Ids{1, 2, 7}));
}

TEST(WordPieceTokenizer, WordThatDoesNotComeOutIsUnknownWhole) {
  auto tokenizer = take(load_wordpiece(small_wordpiece()));
  EXPECT_EQ(tokenizer->encode("unablex un"), (Ids{0, 1}));
}

TEST(WordPieceTokenizer, WordOverTheLimitIsUnknown) {
  json file = small_wordpiece();
  file["model"]["max_input_chars_per_word"] = 3;
  auto tokenizer = take(load_wordpiece(file));
  EXPECT_EQ(tokenizer->encode("uns able"), (Ids{1, 7, 0}));
}

TEST(WordPieceTokenizer, LimitCountsCharactersNotBytes) {
  json file = small_wordpiece();
  file["model"]["max_input_chars_per_word"] = 2;
  file["model"]["vocab"]["дд"] = 10;
  file["added_tokens"] = json::array();
  EXPECT_EQ(take(load_wordpiece(file))->encode("дд"), (Ids{10}));
}

TEST(WordPieceTokenizer, LowersStripsAndCutsLikeBert) {
  auto tokenizer = take(load_wordpiece(small_wordpiece()));
  EXPECT_EQ(tokenizer->encode("UN\tÉ."), (Ids{1, 9, 6}));
  EXPECT_EQ(tokenizer->encode("un中un"), (Ids{1, 8, 1}));
  EXPECT_EQ(tokenizer->encode(std::string("u\0n\xE2\x80\x8B", 6)),
            (Ids{1}));  // NUL, zero-width space
  EXPECT_EQ(tokenizer->encode("un't"), (Ids{1, 4, 5}));
}

TEST(WordPieceTokenizer, AccentsStayWhereCaseStays) {
  json file = small_wordpiece();
  file["normalizer"]["lowercase"] = false;
  auto tokenizer = take(load_wordpiece(file));
  EXPECT_EQ(tokenizer->encode("é e UN"), (Ids{0, 9, 0}));
  file["normalizer"]["strip_accents"] = true;
  EXPECT_EQ(take(load_wordpiece(file))->encode("é e UN"), (Ids{9, 9, 0}));
}

TEST(WordPieceTokenizer, AddedTokensAreCutOutBeforeAnythingElse) {
  auto tokenizer = take(load_wordpiece(small_wordpiece()));
  EXPECT_EQ(tokenizer->encode("un[X]s"), (Ids{1, 10, 0}));
  EXPECT_EQ(tokenizer->encode("[x]"), (Ids{0, 0, 0}));
}

TEST(WordPieceTokenizer, DecodesWithCleanUp) {
  auto tokenizer = take(load_wordpiece(small_wordpiece()));
  EXPECT_EQ(tokenizer->decode(Ids{1, 2, 6}), "unable.");
  EXPECT_EQ(tokenizer->decode(Ids{2, 1, 99, 7}), "##able uns");  // a first piece keeps its prefix
  EXPECT_EQ(tokenizer->decode(Ids{1, 10, 8}), "un [X] 中");
  json file = small_wordpiece();
  file["decoder"]["cleanup"] = false;
  EXPECT_EQ(take(load_wordpiece(file))->decode(Ids{1, 2, 6}), "unable .");
}

TEST(WordPieceTokenizer, InvalidUtf8Vanishes) {  // as U+FFFD does under clean_text
  auto tokenizer = take(load_wordpiece(small_wordpiece()));
  EXPECT_EQ(tokenizer->encode("u\xFFn\xE4\xB8"), (Ids{1}));
}

TEST(WordPieceTokenizer, TakesLinearTime) {
  expect_linear_time(*tiny_wordpiece());
}

}  // namespace
}  // namespace minicpmo
