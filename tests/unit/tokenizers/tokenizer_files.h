// Small tokenizer.json files for the tests, and what the tests do with them.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/tokenizer.h"

namespace minicpmo {

// A file that goes with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content) {
    path_ = (std::filesystem::temp_directory_path() / "minicpmo-tokenizer-XXXXXX").string();
    int fd = mkstemp(path_.data());
    // Not through a stream that truncates: some file systems then flush to disk at each close.
    for (size_t done = 0; fd >= 0 && done < content.size();) {
      ssize_t written = write(fd, content.data() + done, content.size() - done);
      if (written <= 0) break;
      done += static_cast<size_t>(written);
    }
    if (fd >= 0) close(fd);
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

using Loaded = Result<std::shared_ptr<const Tokenizer>>;

inline Loaded load_bpe(const nlohmann::json& content) {
  TemporaryFile file(content.dump());
  return load_bpe_tokenizer(file.path());
}

inline Loaded load_wordpiece(const nlohmann::json& content) {
  TemporaryFile file(content.dump());
  return load_wordpiece_tokenizer(file.path());
}

inline nlohmann::json added_token(int id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

// a b c 0..2, the space 3, ab 4, bc 5, abc 6, the bytes of e with acute 7 8, <x> 9, <x><y> 10.
inline nlohmann::json small_bpe() {
  return nlohmann::json::parse(R"json({
    "version": "1.0", "truncation": null, "padding": null,
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)|[^\\p{L}]+"}, "behavior": "Isolated",
       "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "bc": 5, "abc": 6, "Ã": 7, "©": 8},
      "merges": [["b", "c"], ["a", "b"], ["a", "bc"]]},
    "added_tokens": []})json")
      .patch({{{"op", "add"}, {"path", "/added_tokens/-"}, {"value", added_token(9, "<x>")}},
              {{"op", "add"}, {"path", "/added_tokens/-"}, {"value", added_token(10, "<x><y>")}}});
}

// [UNK] 0, un 1, ##able 2, able 3, ' 4, t 5, . 6, ##s 7, the Chinese for "middle" 8, e 9, [X] 10.
inline nlohmann::json small_wordpiece() {
  return nlohmann::json::parse(R"json({
    "version": "1.0", "truncation": null, "padding": null,
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
      "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": null,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
      "vocab": {"[UNK]": 0, "un": 1, "##able": 2, "able": 3, "'": 4, "t": 5, ".": 6, "##s": 7, "中": 8,
        "e": 9}},
    "added_tokens": []})json")
      .patch({{{"op", "add"}, {"path", "/added_tokens/-"}, {"value", added_token(10, "[X]")}}});
}

}  // namespace minicpmo
