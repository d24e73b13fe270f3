// Bert's WordPiece (Hugging Face tokenizers: normalizers/bert, pre_tokenizers/bert,
// models/wordpiece, decoders/wordpiece): clean, lower-case and strip accents, cut at white space
// and punctuation, then per word the longest known prefix, again and again; a word that does not
// come out is one unknown token.
#include <glib.h>

#include <optional>

#include "engine/json_file.h"
#include "engine/tokenizer_json.h"
#include "engine/unicode_text.h"
#include "tts/bert_unicode.h"

namespace minicpmo {
namespace {

// Rust's char::to_lowercase (Unicode 16) where GLib 2.74's simple mapping says otherwise: numerals
// and enclosed letters, which are no letters to GLib, and newer pairs. All of `range` move by the
// same distance.
struct LowerCase {
  CodeRange range;
  int distance;
};
constexpr LowerCase kLowerCase[] = {
    {{0x1c89, 0x1c89}, 1},       {{0x2160, 0x216f}, 16},     {{0x24b6, 0x24cf}, 26},
    {{0xa7cb, 0xa7cb}, -0xa567}, {{0xa7cc, 0xa7cc}, 1},      {{0xa7ce, 0xa7ce}, 1},
    {{0xa7d2, 0xa7d2}, 1},       {{0xa7d4, 0xa7d4}, 1},      {{0xa7da, 0xa7da}, 1},
    {{0xa7dc, 0xa7dc}, -0xa641}, {{0x10d50, 0x10d65}, 0x20}, {{0x16ea0, 0x16eb8}, 0x1b},
};

char32_t lower_case(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  for (const LowerCase& entry : kLowerCase) {
    if (c < entry.range.first) break;
    if (c <= entry.range.last) return static_cast<char32_t>(static_cast<int>(c) + entry.distance);
  }
  return g_unichar_tolower(c);
}

// BertNormalizer's own list, which leaves out 2B820..2B91F of extension E and everything newer.
bool is_chinese(char32_t c) {
  constexpr CodeRange kChinese[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},
                                    {0x20000, 0x2A6DF}, {0x2A700, 0x2B81F}, {0x2B920, 0x2CEAF},
                                    {0x2F800, 0x2FA1F}};
  return c >= 0x3400 && contains(kChinese, c);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

// The decoder's "cleanup", applied to each token with the space before it.
void clean_up(std::string& token) {
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
  };
  for (const auto& [from, to] : kRules) replace_all(token, from, to);
}

class WordPieceTokenizer : public JsonTokenizer {
 public:
  Result<void> load(const JsonNode& root);
  std::string decode(std::span<const int32_t> ids) const override;

 protected:
  std::string normalize(std::string_view valid_utf8) const override;
  void encode_piece(std::string_view normalized, std::vector<int32_t>& ids) const override;

 private:
  Result<void> load_normalizer(const JsonNode& node);
  Result<void> load_decoder(const JsonNode& node);
  Result<void> load_model(const JsonNode& node);
  std::u32string clean(std::string_view text) const;
  void encode_word(std::string_view word, size_t characters, std::vector<int32_t>& ids) const;

  bool clean_text_ = true, chinese_ = true, strip_accents_ = true, lower_case_ = true;
  bool clean_up_ = true;
  std::string decoder_prefix_ = "##";
  int32_t unknown_id_ = -1;
  size_t longest_word_ = 100;  // characters
  Trie initial_, continuing_;
};

Result<void> WordPieceTokenizer::load(const JsonNode& root) {
  RETURN_IF_ERROR(check_tokenizer_header(root));
  RETURN_IF_ERROR(root["model"].expect_type("WordPiece"));
  RETURN_IF_ERROR(load_normalizer(root["normalizer"]));
  RETURN_IF_ERROR(root["pre_tokenizer"].expect_type("BertPreTokenizer"));
  RETURN_IF_ERROR(load_decoder(root["decoder"]));
  RETURN_IF_ERROR(load_tokens(root));
  return load_model(root["model"]);
}

Result<void> WordPieceTokenizer::load_normalizer(const JsonNode& node) {
  RETURN_IF_ERROR(node.expect_type("BertNormalizer"));
  ASSIGN_OR_RETURN(clean_text_, node["clean_text"].flag());
  ASSIGN_OR_RETURN(chinese_, node["handle_chinese_chars"].flag());
  ASSIGN_OR_RETURN(lower_case_, node["lowercase"].flag());
  // null: accents go where case goes
  ASSIGN_OR_RETURN(strip_accents_, node["strip_accents"].flag_or(lower_case_));
  return {};
}

Result<void> WordPieceTokenizer::load_decoder(const JsonNode& node) {
  RETURN_IF_ERROR(node.expect_type("WordPiece"));
  ASSIGN_OR_RETURN(decoder_prefix_, node["prefix"].text());
  ASSIGN_OR_RETURN(clean_up_, node["cleanup"].flag());
  return {};
}

Result<void> WordPieceTokenizer::load_model(const JsonNode& node) {
  ASSIGN_OR_RETURN(std::string unknown, node["unk_token"].text());
  auto found = vocabulary().find(unknown);
  if (found == vocabulary().end()) {
    return node["unk_token"].error("is \"" + unknown + "\", which the vocabulary does not have");
  }
  unknown_id_ = found->second;
  ASSIGN_OR_RETURN(std::string prefix, node["continuing_subword_prefix"].text());
  JsonNode longest = node["max_input_chars_per_word"];
  if (longest.absent() || !longest.json().is_number_unsigned()) {
    return longest.error("must be an integer that is not negative");
  }
  longest_word_ = longest.json().get<size_t>();
  for (const auto& [token, id] : vocabulary()) {
    initial_.insert(token, id);
    if (token.starts_with(prefix)) {
      continuing_.insert(std::string_view(token).substr(prefix.size()), id);
    }
  }
  return {};
}

// The steps of BertNormalizer that look at one character.
std::u32string WordPieceTokenizer::clean(std::string_view text) const {
  std::u32string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    char32_t c = next_code_point(text, at);
    if (clean_text_) {
      if (is_bert_removed(c)) continue;
      if (is_white_space(c)) c = ' ';
    }
    if (chinese_ && is_chinese(c)) {
      out += {U' ', c, U' '};
    } else {
      out += c;
    }
  }
  return out;
}

std::string WordPieceTokenizer::normalize(std::string_view valid_utf8) const {
  std::u32string text = clean(valid_utf8);
  if (strip_accents_) {
    text = decompose(text);
    std::erase_if(text, is_nonspacing_mark);
  }
  std::string out;
  out.reserve(valid_utf8.size());
  for (char32_t c : text) {
    append_utf8(out, lower_case_ ? (c == 0x130 ? U'i' : lower_case(c)) : c);
    if (lower_case_ && c == 0x130) append_utf8(out, 0x307);  // the one mapping to two characters
  }
  return out;
}

void WordPieceTokenizer::encode_piece(std::string_view normalized,
                                      std::vector<int32_t>& ids) const {
  size_t begin = 0, characters = 0;  // of the word that is being read
  for (size_t at = 0; at < normalized.size();) {
    size_t here = at;
    char32_t c = next_code_point(normalized, at);
    bool space = is_white_space(c);
    if (!space && !is_bert_punctuation(c)) {
      ++characters;
      continue;
    }
    encode_word(normalized.substr(begin, here - begin), characters, ids);
    if (!space) encode_word(normalized.substr(here, at - here), 1, ids);
    begin = at;
    characters = 0;
  }
  encode_word(normalized.substr(begin), characters, ids);
}

void WordPieceTokenizer::encode_word(std::string_view word, size_t characters,
                                     std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  size_t first = ids.size();
  bool known = characters <= longest_word_;
  for (size_t at = 0; known && at < word.size();) {
    auto [length, id] = (at == 0 ? initial_ : continuing_).longest(word, at);
    known = length > 0;
    if (known) ids.push_back(id);
    at += length;
  }
  if (known) return;
  ids.resize(first);
  ids.push_back(unknown_id_);
}

std::string WordPieceTokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  bool first = true;
  for (int32_t id : ids) {
    const std::string* known = token_text(id);
    if (known == nullptr) continue;
    std::string token = *known;
    if (!first) {
      if (token.starts_with(decoder_prefix_)) {
        token.erase(0, decoder_prefix_.size());
      } else {
        token.insert(0, " ");
      }
    }
    if (clean_up_) clean_up(token);
    text += token;
    first = false;
  }
  return text;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_wordpiece_tokenizer(
    const std::string& tokenizer_json) {
  ASSIGN_OR_RETURN(nlohmann::json root, read_json_file(tokenizer_json));
  auto tokenizer = std::make_shared<WordPieceTokenizer>();
  RETURN_IF_ERROR(tokenizer->load(JsonNode(root, tokenizer_json)));
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

}  // namespace minicpmo
