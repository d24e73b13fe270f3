#include "engine/tokenizer_json.h"

#include <algorithm>

#include "engine/unicode_text.h"

namespace minicpmo {
namespace {

using nlohmann::json;

// Bounds the table of texts against a file with a few tokens and an id of two thousand million.
constexpr int64_t kMaxGap = 1 << 20;
constexpr size_t kMaxAddedTokenBytes = 1024;

size_t white_space_before(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    size_t begin = end - 1;
    while (begin > limit && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    size_t at = begin;
    if (!is_white_space(next_code_point(text, at))) break;
    end = begin;
  }
  return end;
}

size_t white_space_behind(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t at = begin;
    if (!is_white_space(next_code_point(text, at))) break;
    begin = at;
  }
  return begin;
}

// A vocabulary id; -1 if `value` is no integer in [0, 2^31).
int64_t checked_id(const json& value) {
  if (!value.is_number_integer()) return -1;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX) return -1;
  return std::clamp<int64_t>(value.get<int64_t>(), -1, INT64_C(1) << 31);
}

std::string shown(std::string_view token) {
  constexpr size_t kLongest = 60;
  if (token.size() <= kLongest) return "\"" + std::string(token) + "\"";
  return "\"" + to_valid_utf8(token.substr(0, kLongest)) + "...\"";
}

}  // namespace

JsonNode JsonNode::operator[](const char* key) const {
  JsonNode node = *this;
  node.key_ = key_.empty() ? key : key_ + "." + key;
  node.value_ = nullptr;
  if (value_ != nullptr && value_->is_object()) {
    if (auto found = value_->find(key); found != value_->end()) node.value_ = &*found;
  }
  return node;
}

JsonNode JsonNode::element(size_t index) const {
  JsonNode node = *this;
  node.key_ = key_ + "[" + std::to_string(index) + "]";
  node.value_ = &(*value_)[index];
  return node;
}

Error JsonNode::error(const std::string& what) const {
  return {ErrorCode::kCorrupt, file_ + ": " + (key_.empty() ? "the file" : key_) + " " + what, ""};
}

Result<void> JsonNode::expect_object() const {
  if (absent()) return error("is missing");
  if (!value_->is_object()) return error("must be an object");
  return {};
}

Result<void> JsonNode::expect_array() const {
  if (absent()) return error("is missing");
  if (!value_->is_array()) return error("must be an array");
  return {};
}

Result<std::string> JsonNode::text() const {
  if (absent()) return error("is missing");
  if (!value_->is_string()) return error("must be a string");
  return value_->get<std::string>();
}

Result<std::string> JsonNode::text_or(std::string fallback) const {
  if (absent()) return fallback;
  return text();
}

Result<bool> JsonNode::flag() const {
  if (absent()) return error("is missing");
  if (!value_->is_boolean()) return error("must be true or false");
  return value_->get<bool>();
}

Result<bool> JsonNode::flag_or(bool fallback) const {
  if (absent()) return fallback;
  return flag();
}

Result<void> JsonNode::expect_type(const char* type) const {
  RETURN_IF_ERROR(expect_object());
  JsonNode member = (*this)["type"];
  ASSIGN_OR_RETURN(std::string actual, member.text());
  if (actual == type) return {};
  return member.error("is " + shown(actual) + "; only \"" + type + "\" is supported here");
}

Result<void> JsonNode::expect_flag(bool wanted) const {
  ASSIGN_OR_RETURN(bool actual, flag_or(wanted));
  if (actual == wanted) return {};
  return error(actual ? "is true, which is not supported" : "is false, which is not supported");
}

void Trie::insert(std::string_view key, int32_t value) {
  if (key.empty()) return;
  first_[static_cast<unsigned char>(key[0])] = true;
  uint32_t node = 0;
  for (char byte : key) {
    auto [next, fresh] = edges_.try_emplace(edge(node, byte), nodes_);
    if (fresh) ++nodes_;
    node = next->second;
  }
  values_[node] = value;
}

std::pair<size_t, int32_t> Trie::longest(std::string_view text, size_t at) const {
  std::pair<size_t, int32_t> best{0, -1};
  if (at >= text.size() || !first_[static_cast<unsigned char>(text[at])]) return best;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    auto next = edges_.find(edge(node, text[i]));
    if (next == edges_.end()) break;
    node = next->second;
    if (auto value = values_.find(node); value != values_.end()) best = {i + 1 - at, value->second};
  }
  return best;
}

Result<void> JsonTokenizer::load_tokens(const JsonNode& root) {
  RETURN_IF_ERROR(load_vocabulary(root["model"]["vocab"]));
  return load_added_tokens(root["added_tokens"]);
}

Result<void> JsonTokenizer::load_vocabulary(const JsonNode& vocab) {
  RETURN_IF_ERROR(vocab.expect_object());
  if (vocab.json().empty()) return vocab.error("is empty");
  int64_t count = static_cast<int64_t>(vocab.json().size());
  for (const auto& [token, value] : vocab.json().items()) {
    int64_t id = checked_id(value);
    if (id < 0 || id >= 2 * count + kMaxGap) {
      return vocab.error("gives token " + shown(token) +
                         " an id that is no integer in a sane range: " + value.dump());
    }
    auto entry = vocabulary_.emplace(token, static_cast<int32_t>(id)).first;
    if (texts_.size() <= static_cast<size_t>(id)) texts_.resize(id + 1, nullptr);
    if (texts_[id] != nullptr) {
      return vocab.error("gives the id " + std::to_string(id) + " to both " + shown(*texts_[id]) +
                         " and " + shown(token));
    }
    texts_[id] = &entry->first;
  }
  size_ = static_cast<int32_t>(texts_.size());
  return {};
}

Result<void> JsonTokenizer::load_added_tokens(const JsonNode& list) {
  if (list.absent()) return {};
  RETURN_IF_ERROR(list.expect_array());
  auto next_id = static_cast<int32_t>(vocabulary_.size());
  for (size_t i = 0; i < list.json().size(); ++i) {
    RETURN_IF_ERROR(add_token(list.element(i), &next_id));
  }
  return {};
}

Result<void> JsonTokenizer::add_token(const JsonNode& entry, int32_t* next_id) {
  RETURN_IF_ERROR(entry.expect_object());
  AddedToken token;
  ASSIGN_OR_RETURN(token.content, entry["content"].text());
  ASSIGN_OR_RETURN(bool single_word, entry["single_word"].flag());
  ASSIGN_OR_RETURN(token.lstrip, entry["lstrip"].flag());
  ASSIGN_OR_RETURN(token.rstrip, entry["rstrip"].flag());
  ASSIGN_OR_RETURN(token.normalized, entry["normalized"].flag());
  RETURN_IF_ERROR(entry["special"].flag());
  JsonNode id_node = entry["id"];
  if (id_node.absent()) return id_node.error("is missing");
  int64_t id = checked_id(id_node.json());
  if (id < 0 || id > INT32_MAX) return id_node.error("must be an integer in [0, 2^31)");
  if (single_word) return entry["single_word"].error("is true, which is not supported");
  if (token.content.empty()) return entry["content"].error("is empty");
  if (token.content.size() > kMaxAddedTokenBytes) {
    return entry["content"].error("is longer than " + std::to_string(kMaxAddedTokenBytes) +
                                  " bytes");
  }
  if (added_ids_.contains(token.content)) {
    return entry["content"].error("repeats " + shown(token.content));
  }
  // `tokenizers` does not take the id from the file: a token of the model keeps its id, others are
  // counted on.
  auto known = vocabulary_.find(token.content);
  token.id = known != vocabulary_.end() ? known->second : (*next_id)++;
  if (token.id != id) {
    return id_node.error("is " + std::to_string(id) + " for " + shown(token.content) +
                         ", and must be " + std::to_string(token.id));
  }
  if (known == vocabulary_.end() && token_text(token.id) != nullptr) {
    return id_node.error("is " + std::to_string(id) + ", which is taken by " +
                         shown(*token_text(token.id)));
  }
  std::string text = token.normalized ? normalize(token.content) : token.content;
  Trie& trie = token.normalized ? normalized_trie_ : raw_trie_;
  if (text.empty()) return entry["content"].error("normalises to nothing: " + shown(token.content));
  if (trie.longest(text, 0).first == text.size()) {
    return entry["content"].error("normalises to the same text as another: " +
                                  shown(token.content));
  }
  trie.insert(text, token.id);
  size_ = std::max(size_, token.id + 1);
  added_ids_.emplace(token.content, token.id);
  added_text_.emplace(token.id, std::move(text));
  added_.emplace(token.id, std::move(token));
  return {};
}

const std::string* JsonTokenizer::token_text(int32_t id) const {
  if (auto added = added_text_.find(id); added != added_text_.end()) return &added->second;
  if (id < 0 || static_cast<size_t>(id) >= texts_.size()) return nullptr;
  return texts_[id];
}

int32_t JsonTokenizer::token_to_id(std::string_view token) const {
  std::string key(token);
  if (auto added = added_ids_.find(key); added != added_ids_.end()) return added->second;
  auto known = vocabulary_.find(key);
  return known == vocabulary_.end() ? -1 : known->second;
}

std::string JsonTokenizer::id_to_token(int32_t id) const {
  const std::string* text = token_text(id);
  return text == nullptr ? std::string() : *text;
}

// Cuts the tokens of `trie` out of `text`, from left to right, the longest first; the rest goes to
// encode_piece.
template <class EncodePiece>
void JsonTokenizer::split(std::string_view text, const Trie& trie, std::vector<int32_t>& ids,
                          const EncodePiece& encode_piece) const {
  size_t done = 0;  // everything before is encoded
  for (size_t at = 0; at < text.size() && !trie.empty();) {
    auto [length, id] = trie.longest(text, at);
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = added_.at(id);
    size_t begin = token.lstrip ? white_space_before(text, at, std::min(done, at)) : at;
    at += length;
    if (done < begin) encode_piece(text.substr(done, begin - done));
    ids.push_back(id);
    done = token.rstrip ? white_space_behind(text, at) : at;
  }
  if (done < text.size()) encode_piece(text.substr(done));
}

void JsonTokenizer::encode_normalized(std::string_view piece, std::vector<int32_t>& ids) const {
  std::string text = normalize(piece);
  split(text, normalized_trie_, ids, [&](std::string_view rest) { encode_piece(rest, ids); });
}

std::vector<int32_t> JsonTokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = to_valid_utf8(text);
  std::vector<int32_t> ids;
  split(text, raw_trie_, ids, [&](std::string_view piece) { encode_normalized(piece, ids); });
  return ids;
}

Result<void> check_tokenizer_header(const JsonNode& root) {
  RETURN_IF_ERROR(root.expect_object());
  ASSIGN_OR_RETURN(std::string version, root["version"].text_or("1.0"));
  if (version != "1.0")
    return root["version"].error("is " + shown(version) + "; only \"1.0\" is known");
  JsonNode processor = root["post_processor"];
  if (processor.absent()) return {};
  RETURN_IF_ERROR(processor.expect_object());
  ASSIGN_OR_RETURN(std::string type, processor["type"].text());
  for (const char* harmless :
       {"ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing", "Sequence"}) {
    if (type == harmless) return {};
  }
  return processor["type"].error("is " + shown(type) + ", which is not supported");
}

}  // namespace minicpmo
