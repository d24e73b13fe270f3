// What both tokenizers share: typed reading of a tokenizer.json, its vocabulary, and its added
// tokens. The format is Hugging Face's (crate `tokenizers` 0.23.1, tokenizer/serialization.rs and
// added_vocabulary.rs).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/result.h"
#include "engine/tokenizer.h"

namespace minicpmo {

// A place in a tokenizer.json. Errors (kCorrupt) name the file and the key.
class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, std::string file)
      : value_(&value), file_(std::move(file)) {}

  // The member `key`; absent if there is none. The place itself must be an object.
  JsonNode operator[](const char* key) const;
  bool absent() const { return value_ == nullptr || value_->is_null(); }
  const nlohmann::json& json() const { return *value_; }  // absent() must be false

  Result<void> expect_object() const;
  Result<void> expect_array() const;
  Result<std::string> text() const;
  Result<std::string> text_or(std::string fallback) const;  // absent: fallback
  Result<bool> flag_or(bool fallback) const;
  Result<bool> flag() const;
  // The element of an array, for errors inside it.
  JsonNode element(size_t index) const;

  // An object's "type" must be `type`.
  Result<void> expect_type(const char* type) const;
  // Refuses a setting other than what the file may say: `flag()` must equal `wanted` where present.
  Result<void> expect_flag(bool wanted) const;
  Error error(const std::string& what) const;

 private:
  const nlohmann::json* value_;
  std::string file_;
  std::string key_;
};

// Longest match over a set of byte strings.
class Trie {
 public:
  // Empty strings are ignored; the last value wins.
  void insert(std::string_view key, int32_t value);
  // The longest key that `text` has at `at`: its length and value; {0, -1} if there is none.
  std::pair<size_t, int32_t> longest(std::string_view text, size_t at) const;
  bool empty() const { return nodes_ == 1; }

 private:
  static uint64_t edge(uint32_t node, char byte) {
    return uint64_t{node} << 8 | static_cast<unsigned char>(byte);
  }
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::unordered_map<uint32_t, int32_t> values_;  // of the nodes that end a key
  bool first_[256] = {};
  uint32_t nodes_ = 1;
};

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool lstrip = false;      // takes the white space before it
  bool rstrip = false;      // takes the white space behind it
  bool normalized = false;  // is looked for in the normalised text, itself normalised
};

// The tokenizer.json part of a Tokenizer; the model (BPE, WordPiece) derives from it.
class JsonTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override;
  int32_t token_to_id(std::string_view token) const override;
  std::string id_to_token(int32_t id) const override;
  bool is_added_token(int32_t id) const override { return added_text_.contains(id); }
  int32_t size() const override { return size_; }

 protected:
  // Reads "model.vocab" and "added_tokens" and refuses what makes no sense: wrong types, negative
  // or huge ids, an id given twice, an added token whose id is not the one that `tokenizers` would
  // give it. normalize() must work.
  Result<void> load_tokens(const JsonNode& root);

  virtual std::string normalize(std::string_view valid_utf8) const = 0;
  // Appends the ids of normalised text that holds no added token.
  virtual void encode_piece(std::string_view normalized, std::vector<int32_t>& ids) const = 0;

  const std::unordered_map<std::string, int32_t>& vocabulary() const { return vocabulary_; }
  // The token's text for decoding; null if there is none.
  const std::string* token_text(int32_t id) const;

 private:
  Result<void> load_vocabulary(const JsonNode& vocab);
  Result<void> load_added_tokens(const JsonNode& list);
  Result<void> add_token(const JsonNode& entry, int32_t* next_id);
  void encode_normalized(std::string_view piece, std::vector<int32_t>& ids) const;
  template <class EncodePiece>
  void split(std::string_view text, const Trie& trie, std::vector<int32_t>& ids,
             const EncodePiece& encode_piece) const;

  std::unordered_map<std::string, int32_t> vocabulary_;
  std::vector<const std::string*> texts_;  // by id, into vocabulary_; null in gaps
  std::unordered_map<std::string, int32_t> added_ids_;
  std::unordered_map<int32_t, AddedToken> added_;
  std::unordered_map<int32_t, std::string> added_text_;  // normalised if `normalized`
  Trie raw_trie_, normalized_trie_;
  int32_t size_ = 0;
};

// The checks on the top level of a tokenizer.json that both models share: version 1.0 and a
// post-processor that only adds special tokens or mends offsets, of which encode() has none.
Result<void> check_tokenizer_header(const JsonNode& root);

}  // namespace minicpmo
