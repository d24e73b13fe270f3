// The two tokenizers of the model, each read from a Hugging Face tokenizer.json and equal to it id
// for id. No torch, no GStreamer. Immutable after loading; may be used from several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace minicpmo {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of `text`; added tokens in the text become their ids, nothing is added around it
  // (add_special_tokens=False). Bytes that are not UTF-8 count as U+FFFD. Time is linear in the
  // length of the text.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // As tokenizers' decode(ids, skip_special_tokens=False). Unknown ids are left out. Always valid
  // UTF-8: an incomplete character at the end becomes U+FFFD.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  virtual int32_t token_to_id(std::string_view token) const = 0;  // -1 if there is none
  virtual std::string id_to_token(int32_t id) const = 0;          // empty if there is none
  virtual bool is_added_token(int32_t id) const = 0;
  virtual int32_t size() const = 0;  // largest id + 1
};

// Qwen2's byte-level BPE (NFC, split regex, byte-level alphabet). elements/llm/bpe_tokenizer.cpp
Result<std::shared_ptr<const Tokenizer>> load_bpe_tokenizer(const std::string& tokenizer_json);
// Bert's WordPiece (clean text, CJK, lower case, accents). elements/tts/wordpiece_tokenizer.cpp
Result<std::shared_ptr<const Tokenizer>> load_wordpiece_tokenizer(
    const std::string& tokenizer_json);

}  // namespace minicpmo
