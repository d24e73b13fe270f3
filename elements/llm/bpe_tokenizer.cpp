// Byte-level byte-pair encoding as Qwen2's tokenizer.json asks for it (Hugging Face tokenizers:
// models/bpe, pre_tokenizers/byte_level): NFC, split by a regex, bytes as symbols, then the merges
// by rank, leftmost first.
#include <array>
#include <queue>
#include <unordered_map>

#include "engine/json_file.h"
#include "engine/tokenizer_json.h"
#include "engine/unicode_text.h"
#include "llm/split_regex.h"

namespace minicpmo {
namespace {

using nlohmann::json;

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

struct Merge {
  uint32_t rank;
  int32_t id;  // of the merged token
};

struct PairHash {
  size_t operator()(uint64_t pair) const {
    pair *= 0x9E3779B97F4A7C15u;  // Fibonacci hashing
    return pair ^ pair >> 32;
  }
};

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// One word while it is merged: a linked list in a vector.
struct Symbol {
  int32_t id;
  int32_t previous;
  int32_t next;  // -1: none
  bool alive;
};

struct Candidate {
  uint32_t rank;
  int32_t position;
  int32_t id;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

class BpeTokenizer : public JsonTokenizer {
 public:
  Result<void> load(const JsonNode& root);
  std::string decode(std::span<const int32_t> ids) const override;

 protected:
  std::string normalize(std::string_view valid_utf8) const override {
    return nfc_ ? normalize_nfc(valid_utf8) : std::string(valid_utf8);
  }
  void encode_piece(std::string_view normalized, std::vector<int32_t>& ids) const override {
    split_->split(normalized, [&](std::string_view word) { encode_word(word, ids); });
  }

 private:
  Result<void> load_normalizer(const JsonNode& node);
  Result<void> load_pre_tokenizer(const JsonNode& node);
  Result<void> load_model(const JsonNode& node);
  Result<void> load_merges(const JsonNode& list);
  Result<void> add_merge(const JsonNode& entry, const std::string& left, const std::string& right);
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  std::vector<Symbol> symbols(std::string_view word) const;
  void merge(std::vector<Symbol>& word) const;
  const Merge* find_merge(const std::vector<Symbol>& word, int32_t left) const;

  bool nfc_ = false;
  std::optional<SplitRegex> split_;
  std::array<int32_t, 256> byte_ids_{};  // -1: not in the vocabulary
  std::unordered_map<char32_t, uint8_t> bytes_;
  std::unordered_map<uint64_t, Merge, PairHash> merges_;
  uint32_t next_rank_ = 0;
  int32_t unknown_id_ = -1;
  bool fuse_unknown_ = false;
};

Result<void> BpeTokenizer::load(const JsonNode& root) {
  RETURN_IF_ERROR(check_tokenizer_header(root));
  RETURN_IF_ERROR(root["model"].expect_type("BPE"));
  RETURN_IF_ERROR(load_normalizer(root["normalizer"]));
  RETURN_IF_ERROR(load_pre_tokenizer(root["pre_tokenizer"]));
  RETURN_IF_ERROR(root["decoder"].expect_type("ByteLevel"));
  RETURN_IF_ERROR(load_tokens(root));
  return load_model(root["model"]);
}

Result<void> BpeTokenizer::load_normalizer(const JsonNode& node) {
  if (node.absent()) return {};
  RETURN_IF_ERROR(node.expect_type("NFC"));
  nfc_ = true;
  return {};
}

Result<void> BpeTokenizer::load_pre_tokenizer(const JsonNode& node) {
  RETURN_IF_ERROR(node.expect_type("Sequence"));
  JsonNode list = node["pretokenizers"];
  RETURN_IF_ERROR(list.expect_array());
  if (list.json().size() != 2) return list.error("must be a Split and a ByteLevel");
  JsonNode split = list.element(0), bytes = list.element(1);
  RETURN_IF_ERROR(split.expect_type("Split"));
  RETURN_IF_ERROR(bytes.expect_type("ByteLevel"));
  RETURN_IF_ERROR(bytes["add_prefix_space"].expect_flag(false));
  RETURN_IF_ERROR(bytes["use_regex"].flag());  // absent would mean true
  RETURN_IF_ERROR(bytes["use_regex"].expect_flag(false));
  RETURN_IF_ERROR(split["invert"].expect_flag(false));
  ASSIGN_OR_RETURN(std::string behavior, split["behavior"].text());
  if (behavior != "Isolated") {
    return split["behavior"].error("is \"" + behavior + "\"; only \"Isolated\" is supported");
  }
  JsonNode pattern = split["pattern"];
  RETURN_IF_ERROR(pattern.expect_object());
  ASSIGN_OR_RETURN(std::string regex, pattern["Regex"].text());
  auto compiled = SplitRegex::compile(regex);
  if (!compiled) return pattern["Regex"].error(compiled.error().message);
  split_ = std::move(*compiled);
  return {};
}

Result<void> BpeTokenizer::load_model(const JsonNode& node) {
  JsonNode dropout = node["dropout"];
  if (!dropout.absent() && !(dropout.json().is_number() && dropout.json().get<double>() == 0.0)) {
    return dropout.error("must be null: ids that change from run to run are not supported");
  }
  RETURN_IF_ERROR(node["byte_fallback"].expect_flag(false));
  RETURN_IF_ERROR(node["ignore_merges"].expect_flag(false));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(std::string affix, node[key].text_or(""));
    if (!affix.empty()) return node[key].error("is \"" + affix + "\"; only null is supported");
  }
  ASSIGN_OR_RETURN(fuse_unknown_, node["fuse_unk"].flag_or(false));
  JsonNode unknown = node["unk_token"];
  if (!unknown.absent()) {
    ASSIGN_OR_RETURN(std::string token, unknown.text());
    auto found = vocabulary().find(token);
    if (found == vocabulary().end()) return unknown.error("is not in the vocabulary: " + token);
    unknown_id_ = found->second;
  }
  const auto alphabet = byte_alphabet();
  for (size_t byte = 0; byte < alphabet.size(); ++byte) {
    std::string symbol;
    append_utf8(symbol, alphabet[byte]);
    auto found = vocabulary().find(symbol);
    byte_ids_[byte] = found == vocabulary().end() ? -1 : found->second;
    bytes_[alphabet[byte]] = static_cast<uint8_t>(byte);
  }
  return load_merges(node["merges"]);
}

// Both forms: ["a", "b"] and, up to 2024, "a b".
Result<void> BpeTokenizer::load_merges(const JsonNode& list) {
  RETURN_IF_ERROR(list.expect_array());
  const json& entries = list.json();
  bool legacy = !entries.empty() && entries[0].is_string();
  merges_.reserve(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const json& entry = entries[i];
    std::string left, right;
    if (legacy && entry.is_string()) {
      const auto& line = entry.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        return list.element(i).error("must be two tokens with one space between");
      }
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (!legacy && entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      left = entry[0].get<std::string>();
      right = entry[1].get<std::string>();
    } else {
      return list.element(i).error("must be two tokens, in the form of the first merge");
    }
    RETURN_IF_ERROR(add_merge(list.element(i), left, right));
  }
  return {};
}

Result<void> BpeTokenizer::add_merge(const JsonNode& entry, const std::string& left,
                                     const std::string& right) {
  if (left.empty() || right.empty()) return entry.error("has an empty token");
  std::array<int32_t, 3> ids{};
  const std::array<std::string, 3> tokens{left, right, left + right};
  for (size_t i = 0; i < tokens.size(); ++i) {
    auto found = vocabulary().find(tokens[i]);
    if (found == vocabulary().end()) {
      return entry.error("needs a token that the vocabulary does not have: \"" +
                         tokens[i].substr(0, 80) + "\"");
    }
    ids[i] = found->second;
  }
  // A pair that is listed twice has its last rank, as in the reference.
  merges_[pair_key(ids[0], ids[1])] = {next_rank_++, ids[2]};
  return {};
}

std::vector<Symbol> BpeTokenizer::symbols(std::string_view word) const {
  std::vector<Symbol> list;
  list.reserve(word.size());
  bool after_unknown = false;
  for (char c : word) {
    int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    bool unknown = id < 0;
    // Without an unknown token the reference drops what the vocabulary lacks.
    bool drop = unknown && (unknown_id_ < 0 || (fuse_unknown_ && after_unknown));
    after_unknown = unknown;
    if (drop) continue;
    auto at = static_cast<int32_t>(list.size());
    if (at > 0) list.back().next = at;
    list.push_back({unknown ? unknown_id_ : id, at - 1, -1, true});
  }
  return list;
}

// The merge of the symbol at `left` with the one after it; null if there is none.
const Merge* BpeTokenizer::find_merge(const std::vector<Symbol>& word, int32_t left) const {
  if (left < 0 || word[left].next < 0) return nullptr;
  auto found = merges_.find(pair_key(word[left].id, word[word[left].next].id));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeTokenizer::merge(std::vector<Symbol>& word) const {
  std::vector<Candidate> candidates;
  candidates.reserve(word.size());
  auto count = static_cast<int32_t>(word.size());
  for (int32_t i = 0; i < count; ++i) {
    if (const Merge* m = find_merge(word, i)) candidates.push_back({m->rank, i, m->id});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(
      std::greater<>(), std::move(candidates));
  while (!queue.empty()) {
    Candidate top = queue.top();
    queue.pop();
    Symbol& left = word[top.position];
    if (!left.alive) continue;
    const Merge* current = find_merge(word, top.position);
    // The pair may have changed since; the reference goes on as long as the result is the same
    // token.
    if (current == nullptr || current->id != top.id) continue;
    Symbol& right = word[left.next];
    left.id = top.id;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) word[left.next].previous = top.position;
    for (int32_t changed : {left.previous, top.position}) {
      if (const Merge* m = find_merge(word, changed)) queue.push({m->rank, changed, m->id});
    }
  }
}

void BpeTokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  std::vector<Symbol> list = symbols(word);
  merge(list);
  for (const Symbol& symbol : list) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids) const {
  std::string bytes;
  for (int32_t id : ids) {
    const std::string* text = token_text(id);
    if (text == nullptr) continue;
    size_t start = bytes.size();
    for (size_t at = 0; at < text->size();) {
      auto found = bytes_.find(next_code_point(*text, at));
      if (found == bytes_.end()) {  // not of the alphabet: the token stands for its own text
        bytes.replace(start, std::string::npos, *text);
        break;
      }
      bytes.push_back(static_cast<char>(found->second));
    }
  }
  return to_valid_utf8(bytes);
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_bpe_tokenizer(const std::string& tokenizer_json) {
  ASSIGN_OR_RETURN(json root, read_json_file(tokenizer_json));
  auto tokenizer = std::make_shared<BpeTokenizer>();
  RETURN_IF_ERROR(tokenizer->load(JsonNode(root, tokenizer_json)));
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

}  // namespace minicpmo
