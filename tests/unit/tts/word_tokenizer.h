// A tokenizer that tests can count with: every word and every "." "," "!" is one token.
#pragma once

#include <string>
#include <vector>

#include "engine/tokenizer.h"

namespace minicpmo {

// Word n is id 1000 + n: "w" and the number with letters for digits ("wbc" is 12: digits themselves
// would be read out). "." is 10, "," 11, "!" 12. Anything else is [UNK], 1.
class WordTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kUnknown = 1, kStart = 2, kSpeaker = 3, kEnd = 4, kStop = 10;
  static constexpr int32_t kWords = 1000;

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    std::string word;
    const auto flush = [&] {
      if (!word.empty()) ids.push_back(id_of(word));
      word.clear();
    };
    for (char c : text) {
      if (c == ' ' || c == '\n') {
        flush();
      } else if (c == '.' || c == ',' || c == '!') {
        flush();
        ids.push_back(id_of(std::string(1, c)));
      } else {
        word += c;
      }
    }
    flush();
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) {
      if (!text.empty() && id >= kWords) text += ' ';
      text += id_to_token(id);
    }
    return text;
  }
  int32_t token_to_id(std::string_view token) const override {
    return token == "[UNK]" ? kUnknown : token == "一" ? -1 : id_of(std::string(token));
  }
  std::string id_to_token(int32_t id) const override {
    if (id >= kWords) return word(id - kWords);
    return id == 10 ? "." : id == 11 ? "," : id == 12 ? "!" : "[UNK]";
  }
  bool is_added_token(int32_t id) const override { return id < 10; }
  int32_t size() const override { return 1 << 24; }

  static std::string word(int n) {
    std::string text = std::to_string(n);
    for (char& c : text) c = static_cast<char>(c - '0' + 'a');
    return "w" + text;
  }

 private:
  static int32_t id_of(const std::string& word) {
    if (word == ".") return 10;
    if (word == ",") return 11;
    if (word == "!") return 12;
    if (word.size() < 2 || word.size() > 7 || word[0] != 'w') return kUnknown;
    int32_t n = 0;
    for (size_t i = 1; i < word.size(); ++i) {
      if (word[i] < 'a' || word[i] > 'j') return kUnknown;
      n = 10 * n + word[i] - 'a';
    }
    return kWords + n;
  }
};

}  // namespace minicpmo
