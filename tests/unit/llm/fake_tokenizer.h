// A tokenizer whose ids are easy to read in a test: one id per byte, added tokens from 256 on, then
// pieces of several bytes that only decode() knows.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer.h"

namespace minicpmo {

class FakeTokenizer final : public Tokenizer {
 public:
  static std::vector<std::string> dialogue_tokens() {
    return {"<|im_start|>",    "<|im_end|>",    "<|endoftext|>", "<unk>",
            "<|audio_start|>", "<|audio_end|>", "<|spk_bos|>",   "<|spk|>",
            "<|spk_eos|>",     "<|tts_bos|>",   "<|tts_eos|>"};
  }

  explicit FakeTokenizer(std::vector<std::string> added = dialogue_tokens(),
                         std::vector<std::string> pieces = {})
      : added_(std::move(added)), pieces_(std::move(pieces)) {}

  int32_t piece(size_t index) const { return static_cast<int32_t>(256 + added_.size() + index); }

  // As in the real vocabulary, id 0 is "!"; the two bytes change places.
  static int32_t of_byte(char c) {
    if (c == '!') return 0;
    return c == '\0' ? '!' : static_cast<unsigned char>(c);
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      const auto hit = std::find_if(added_.begin(), added_.end(),
                                    [&](const std::string& t) { return text.starts_with(t); });
      if (hit != added_.end()) {
        ids.push_back(256 + static_cast<int32_t>(hit - added_.begin()));
        text.remove_prefix(hit->size());
      } else {
        ids.push_back(of_byte(text[0]));
        text.remove_prefix(1);
      }
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string bytes;
    for (int32_t id : ids) {
      if (id >= 0 && id < 256) {
        bytes += static_cast<char>(id == 0 ? '!' : id == '!' ? '\0' : id);
      } else {
        bytes += id_to_token(id);
      }
    }
    return repair(bytes);
  }

  int32_t token_to_id(std::string_view token) const override {
    const auto hit = std::find(added_.begin(), added_.end(), token);
    if (hit != added_.end()) return 256 + static_cast<int32_t>(hit - added_.begin());
    return token.size() == 1 ? of_byte(token[0]) : -1;
  }
  std::string id_to_token(int32_t id) const override {
    if (id < 0 || id >= size()) return "";
    if (id < 256) return std::string(1, static_cast<char>(id));
    const auto index = static_cast<size_t>(id - 256);
    return index < added_.size() ? added_[index] : pieces_[index - added_.size()];
  }
  bool is_added_token(int32_t id) const override { return id >= 256 && id < piece(0); }
  int32_t size() const override { return piece(pieces_.size()); }

 private:
  // One U+FFFD for each longest piece that starts a character and does not finish it (tests use
  // only valid text and such pieces, so overlong forms and surrogates do not matter).
  static std::string repair(const std::string& bytes) {
    std::string out;
    for (size_t i = 0; i < bytes.size();) {
      const auto c = static_cast<unsigned char>(bytes[i]);
      const size_t need = c < 0x80 ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 0;
      size_t have = 1;
      while (have < need && i + have < bytes.size() && (bytes[i + have] & 0xC0) == 0x80) ++have;
      if (have == need) {
        out += bytes.substr(i, need);
      } else {
        out += "\xEF\xBF\xBD";
      }
      i += have;
    }
    return out;
  }

  std::vector<std::string> added_, pieces_;
};

}  // namespace minicpmo
