// tokenizer.json files that are damaged, hostile, or of a kind that is not supported: each is one
// clear error that names the file and the key, never a crash.
#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include "tokenizer_files.h"

namespace minicpmo {
namespace {

using nlohmann::json;

struct Case {
  const char* name;
  const char* patch;  // RFC 6902, on the small file
  const char* message;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}
std::string name_of(const testing::TestParamInfo<Case>& info) {
  return info.param.name;
}

void expect_refused(const Loaded& loaded, const std::string& path, const Case& expected) {
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(loaded.error().message.find(path), std::string::npos) << loaded.error().message;
  EXPECT_NE(loaded.error().message.find(expected.message), std::string::npos)
      << loaded.error().message;
  EXPECT_LT(loaded.error().message.size(), 1000u);
}

class HostileBpe : public testing::TestWithParam<Case> {};
TEST_P(HostileBpe, IsRefused) {
  TemporaryFile file(small_bpe().patch(json::parse(GetParam().patch)).dump());
  expect_refused(load_bpe_tokenizer(file.path()), file.path(), GetParam());
}

#define REMOVE(path) R"([{"op": "remove", "path": ")" path R"("}])"
#define SET(path, value) R"([{"op": "add", "path": ")" path R"(", "value": )" value "}]"

INSTANTIATE_TEST_SUITE_P(
    Files, HostileBpe,
    testing::Values(
        Case{"no_merges", REMOVE("/model/merges"), "model.merges is missing"},
        Case{"merges_no_array", SET("/model/merges", R"({"a": "b"})"),
             "model.merges must be an array"},
        Case{"merge_of_three", SET("/model/merges/0", R"(["a","b","c"])"), "model.merges[0]"},
        Case{"merge_of_numbers", SET("/model/merges/1", R"([1,2])"), "model.merges[1]"},
        Case{"merge_without_space", SET("/model/merges", R"(["ab"])"), "model.merges[0]"},
        Case{"merge_with_two_spaces", SET("/model/merges", R"(["a b c"])"), "model.merges[0]"},
        Case{"merges_mixed", SET("/model/merges/1", R"("a b")"), "model.merges[1]"},
        Case{"merges_mixed_other_way", SET("/model/merges", R"(["a b", ["b","c"]])"),
             "model.merges[1]"},
        Case{"merge_of_strangers", SET("/model/merges/0", R"(["q","r"])"),
             "vocabulary does not have: \"q\""},
        Case{"merge_without_result", SET("/model/merges/0", R"(["c","a"])"),
             "does not have: \"ca\""},
        Case{"merge_of_nothing", SET("/model/merges/0", R"(["","a"])"), "empty token"},
        Case{"no_vocab", REMOVE("/model/vocab"), "model.vocab is missing"},
        Case{"empty_vocab", SET("/model/vocab", "{}"), "model.vocab is empty"},
        Case{"vocab_array", SET("/model/vocab", R"(["a","b"])"), "model.vocab must be an object"},
        Case{"negative_id", SET("/model/vocab/a", "-1"), "\"a\""},
        Case{"huge_id", SET("/model/vocab/a", "2000000000"), "\"a\""},
        Case{"id_past_64_bits", SET("/model/vocab/a", "18446744073709551615"), "\"a\""},
        Case{"fractional_id", SET("/model/vocab/a", "0.5"), "\"a\""},
        Case{"id_as_text", SET("/model/vocab/a", "\"0\""), "\"a\""},
        Case{"id_twice", SET("/model/vocab/a", "1"), "gives the id 1 to both"},
        Case{"unigram", SET("/model/type", "\"Unigram\""), "model.type is \"Unigram\""},
        Case{"no_model", REMOVE("/model"), "model is missing"},
        Case{"model_array", SET("/model", "[]"), "model must be an object"},
        Case{"no_type", REMOVE("/model/type"), "model.type is missing"},
        Case{"dropout", SET("/model/dropout", "0.1"), "model.dropout"},
        Case{"dropout_text", SET("/model/dropout", "\"no\""), "model.dropout"},
        Case{"byte_fallback", SET("/model/byte_fallback", "true"), "model.byte_fallback is true"},
        Case{"ignore_merges", SET("/model/ignore_merges", "true"), "model.ignore_merges is true"},
        Case{"flag_as_number", SET("/model/ignore_merges", "0"), "must be true or false"},
        Case{"prefix", SET("/model/continuing_subword_prefix", "\"##\""),
             "continuing_subword_prefix"},
        Case{"suffix", SET("/model/end_of_word_suffix", "\"</w>\""), "end_of_word_suffix"},
        Case{"unknown_unknown", SET("/model/unk_token", "\"<unk>\""), "model.unk_token"},
        Case{"nfkc", SET("/normalizer/type", "\"NFKC\""), "normalizer.type is \"NFKC\""},
        Case{"no_pre_tokenizer", SET("/pre_tokenizer", "null"), "pre_tokenizer is missing"},
        Case{"one_pre_tokenizer", REMOVE("/pre_tokenizer/pretokenizers/0"),
             "a Split and a ByteLevel"},
        Case{"other_split", SET("/pre_tokenizer/pretokenizers/0/type", "\"Digits\""),
             "pretokenizers[0].type"},
        Case{"removed", SET("/pre_tokenizer/pretokenizers/0/behavior", "\"Removed\""),
             "behavior is \"Removed\""},
        Case{"invert", SET("/pre_tokenizer/pretokenizers/0/invert", "true"), "invert is true"},
        Case{"literal", SET("/pre_tokenizer/pretokenizers/0/pattern", R"({"String": " "})"),
             "pattern.Regex"},
        Case{"bad_regex", SET("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a(\""),
             "pattern.Regex is no valid"},
        Case{"prefix_space", SET("/pre_tokenizer/pretokenizers/1/add_prefix_space", "true"),
             "add_prefix_space"},
        Case{"own_regex", REMOVE("/pre_tokenizer/pretokenizers/1/use_regex"),
             "use_regex is missing"},
        Case{"no_decoder", REMOVE("/decoder"), "decoder is missing"},
        Case{"other_decoder", SET("/decoder/type", "\"Metaspace\""),
             "decoder.type is \"Metaspace\""},
        Case{"version", SET("/version", "\"2.0\""), "version is \"2.0\""},
        Case{"version_number", SET("/version", "1"), "version must be a string"},
        Case{"post_processor", SET("/post_processor", R"({"type": "Odd"})"),
             "post_processor.type is \"Odd\""},
        Case{"added_object", SET("/added_tokens", "{}"), "added_tokens must be an array"},
        Case{"added_text", SET("/added_tokens/0", "\"<x>\""), "added_tokens[0] must be an object"},
        Case{"added_empty", SET("/added_tokens/0/content", "\"\""),
             "added_tokens[0].content is empty"},
        Case{"added_no_flag", REMOVE("/added_tokens/0/lstrip"),
             "added_tokens[0].lstrip is missing"},
        Case{"added_single_word", SET("/added_tokens/0/single_word", "true"),
             "single_word is true"},
        Case{"added_no_id", REMOVE("/added_tokens/0/id"), "added_tokens[0].id is missing"},
        Case{"added_negative", SET("/added_tokens/0/id", "-9"), "added_tokens[0].id must be"},
        Case{"added_gap", SET("/added_tokens/0/id", "11"), "must be 9"},
        Case{"added_on_model_token", SET("/added_tokens/0/id", "3"), "must be 9"},
        Case{"added_other_id_for_model_token", SET("/added_tokens/0/content", "\"abc\""),
             "must be 6"},
        Case{"added_twice", SET("/added_tokens/1/content", "\"<x>\""),
             "added_tokens[1].content repeats"},
        Case{"added_into_gap", SET("/model/vocab/zz", "10"), "must be 10"}),
    name_of);

class HostileWordPiece : public testing::TestWithParam<Case> {};
TEST_P(HostileWordPiece, IsRefused) {
  TemporaryFile file(small_wordpiece().patch(json::parse(GetParam().patch)).dump());
  expect_refused(load_wordpiece_tokenizer(file.path()), file.path(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Files, HostileWordPiece,
    testing::Values(
        Case{"bpe", SET("/model/type", "\"BPE\""), "model.type is \"BPE\""},
        Case{"no_unknown", REMOVE("/model/unk_token"), "model.unk_token is missing"},
        Case{"unknown_unknown", SET("/model/unk_token", "\"<unk>\""),
             "model.unk_token is \"<unk>\""},
        Case{"no_prefix", REMOVE("/model/continuing_subword_prefix"),
             "continuing_subword_prefix is missing"},
        Case{"no_limit", REMOVE("/model/max_input_chars_per_word"), "max_input_chars_per_word"},
        Case{"negative_limit", SET("/model/max_input_chars_per_word", "-1"),
             "max_input_chars_per_word"},
        Case{"no_normalizer", SET("/normalizer", "null"), "normalizer is missing"},
        Case{"other_normalizer", SET("/normalizer/type", "\"NFD\""), "normalizer.type is \"NFD\""},
        Case{"no_lowercase", REMOVE("/normalizer/lowercase"), "normalizer.lowercase is missing"},
        Case{"accents_text", SET("/normalizer/strip_accents", "\"yes\""),
             "strip_accents must be true or false"},
        Case{"other_pre_tokenizer", SET("/pre_tokenizer/type", "\"Whitespace\""),
             "pre_tokenizer.type"},
        Case{"no_decoder", SET("/decoder", "null"), "decoder is missing"},
        Case{"decoder_prefix", SET("/decoder/prefix", "7"), "decoder.prefix must be a string"},
        Case{"added_vanishes",
             R"([{"op":"add","path":"/added_tokens/0/normalized","value":true},
                 {"op":"add","path":"/added_tokens/0/content","value":"\u0000\u200b"}])",
             "normalises to nothing"},
        Case{"added_collide",
             R"([{"op":"add","path":"/added_tokens/0/normalized","value":true},
                 {"op":"add","path":"/added_tokens/-","value":{"id":11,"content":"[x]","single_word":false,
                  "lstrip":false,"rstrip":false,"normalized":true,"special":false}}])",
             "same text as another"}),
    name_of);

TEST(HostileTokenizerFile, MissingFileIsNamed) {
  for (auto* load : {&load_bpe_tokenizer, &load_wordpiece_tokenizer}) {
    auto loaded = load("/nonexistent/tokenizer.json");
    ASSERT_FALSE(loaded.ok());
    EXPECT_EQ(loaded.error().code, ErrorCode::kNotFound);
    EXPECT_NE(loaded.error().message.find("/nonexistent/tokenizer.json"), std::string::npos);
  }
}

TEST(HostileTokenizerFile, DirectoryIsRefused) {
  EXPECT_FALSE(load_bpe_tokenizer(MODEL_DIR).ok());
}

TEST(HostileTokenizerFile, EveryTruncationIsRefused) {
  for (const json& content : {small_bpe(), small_wordpiece()}) {
    std::string text = content.dump();
    for (size_t length = 0; length < text.size(); length += 7) {
      TemporaryFile file(text.substr(0, length));
      EXPECT_FALSE(load_bpe_tokenizer(file.path()).ok()) << length;
      EXPECT_FALSE(load_wordpiece_tokenizer(file.path()).ok()) << length;
    }
  }
}

TEST(HostileTokenizerFile, DamagedBytesNeverCrash) {
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    bool bpe = round % 2 == 0;
    std::string text = (bpe ? small_bpe() : small_wordpiece()).dump();
    for (int i = 0; i < 1 + round % 3; ++i) {
      text[random() % text.size()] =
          round % 5 == 0 ? static_cast<char>(random()) : "{}[]\",:0-9e\\"[random() % 12];
    }
    TemporaryFile file(text);
    auto loaded = bpe ? load_bpe_tokenizer(file.path()) : load_wordpiece_tokenizer(file.path());
    refused += !loaded.ok();
    if (loaded.ok()) (*loaded)->decode((*loaded)->encode("abc un [X] <x><y> é 中\xFF"));
  }
  EXPECT_GT(refused, 1000);
}

TEST(HostileTokenizerFile, WrongTypesEverywhereNeverCrash) {
  const json values = json::parse(R"([null, true, -1, 3.5, "x", [], {}, [[]], 1e300])");
  for (bool bpe : {true, false}) {
    const json flat = (bpe ? small_bpe() : small_wordpiece()).flatten();
    for (const auto& [path, old] : flat.items()) {
      for (const json& value : values) {
        json content = bpe ? small_bpe() : small_wordpiece();
        content[json::json_pointer(path)] = value;
        auto loaded = bpe ? load_bpe(content) : load_wordpiece(content);
        if (loaded.ok()) (*loaded)->decode((*loaded)->encode("abc un [X] <x> é"));
      }
    }
  }
}

TEST(HostileTokenizerFile, DuplicateKeysAreRefused) {
  std::string text = small_bpe().dump();
  const std::string key = "\"vocab\":{";
  text.insert(text.find(key) + key.size(), "\"a\":0,");
  TemporaryFile file(text);
  EXPECT_FALSE(load_bpe_tokenizer(file.path()).ok());
}

TEST(HostileTokenizerFile, GiantStringsAreRefusedInShortMessages) {
  json content = small_bpe();
  content["added_tokens"][0]["content"] = std::string(2 << 20, 'y');
  auto loaded = load_bpe(content);
  ASSERT_FALSE(loaded.ok());
  EXPECT_LT(loaded.error().message.size(), 500u);
  content = small_bpe();
  content["model"]["vocab"][std::string(2 << 20, 'y')] = -1;
  loaded = load_bpe(content);
  ASSERT_FALSE(loaded.ok());
  EXPECT_LT(loaded.error().message.size(), 500u);
  content = small_bpe();
  content["normalizer"]["type"] = std::string(2 << 20, 'y');
  EXPECT_LT(load_bpe(content).error().message.size(), 500u);
}

TEST(HostileTokenizerFile, GiantFileIsRefused) {
  TemporaryFile file("\"" + std::string(65 << 20, 'x') + "\"");
  EXPECT_FALSE(load_bpe_tokenizer(file.path()).ok());
}

TEST(HostileTokenizerFile, DeepNestingIsRefused) {
  TemporaryFile file(std::string(100000, '['));
  EXPECT_FALSE(load_wordpiece_tokenizer(file.path()).ok());
}

TEST(HostileTokenizerFile, GapsInTheIdsAreHarmless) {
  json content = small_bpe();
  content["model"]["vocab"]["zz"] = 500;
  content["added_tokens"] = json::array();
  auto loaded = load_bpe(content);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ((*loaded)->size(), 501);
  EXPECT_EQ((*loaded)->id_to_token(400), "");
  EXPECT_EQ((*loaded)->decode(std::vector<int32_t>{0, 400, 500}), "azz");
}

}  // namespace
}  // namespace minicpmo
