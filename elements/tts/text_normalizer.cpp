#include "tts/text_normalizer.h"

#include <glib.h>

#include <array>

namespace minicpmo {
namespace {

constexpr std::array<std::string_view, 10> kEnglish = {"zero", "one", "two",   "three", "four",
                                                       "five", "six", "seven", "eight", "nine"};
constexpr std::array<std::string_view, 10> kChinese = {"零", "一", "二", "三", "四",
                                                       "五", "六", "七", "八", "九"};
constexpr std::array<std::string_view, 6> kSentenceEnds = {".", "。", "!", "?", "！", "？"};
constexpr int64_t kDecidingBursts = 3;

// Calls f(character, its bytes) for each character of valid UTF-8.
template <class F>
void for_each_character(std::string_view text, F&& f) {
  for (size_t i = 0; i < text.size();) {
    const char* p = text.data() + i;
    const auto n = static_cast<size_t>(g_utf8_skip[static_cast<unsigned char>(*p)]);
    f(g_utf8_get_char(p), text.substr(i, n));
    i += n;
  }
}

bool is_digit_before(std::string_view text, size_t offset) {
  if (offset == 0) return false;
  const char* p = g_utf8_find_prev_char(text.data(), text.data() + offset);
  return p != nullptr && g_unichar_isdigit(g_utf8_get_char(p));
}

bool is_sentence_end(std::string_view character) {
  for (std::string_view end : kSentenceEnds) {
    if (character == end) return true;
  }
  return false;
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  // g_utf8_make_valid() is linear, but takes a NUL for the end of the text.
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const char* end = nullptr;
    g_utf8_validate(text.data(), static_cast<gssize>(text.size()), &end);
    const auto good = static_cast<size_t>(end - text.data());
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) break;
    out += text[0] == '\0' ? std::string_view("\0", 1) : std::string_view("\xEF\xBF\xBD");
    text.remove_prefix(1);
  }
  return out;
}

std::string_view upstream_sentence_end(std::string_view burst) {
  for (std::string_view end : kSentenceEnds) {
    const size_t at = burst.find(end);
    if (at == std::string_view::npos) continue;
    if (end == "." && is_digit_before(burst, at)) continue;
    return end;
  }
  return {};
}

void TextNormalizer::start() {
  chinese_ = false;
  bursts_ = ideographs_ = letters_ = 0;
  last_ = Last::kOther;
}

void TextNormalizer::start_continuation(std::string_view head) {
  start();
  bursts_ = 1;  // what an answer's second burst is: the first one of the driver's loop
  count_letters(head);
}

NormalizedBurst TextNormalizer::normalize(std::string_view burst) {
  const int64_t index = bursts_++;
  if (index < kDecidingBursts) {
    count_letters(burst);
    chinese_ = ideographs_ >= letters_;
  }
  if (compatibility_ == Compatibility::kNone) return keep_apart(burst);
  if (index == 0) return {std::string(burst)};
  return {glue(burst)};
}

void TextNormalizer::count_letters(std::string_view text) {
  for_each_character(text, [&](gunichar c, std::string_view) {
    if (c >= 0x4E00 && c <= 0x9FFF) ++ideographs_;
    if (c < 0x80 && g_ascii_isalpha(static_cast<char>(c))) ++letters_;
  });
}

NormalizedBurst TextNormalizer::keep_apart(std::string_view burst) {
  const bool english = !(chinese_ && knows_chinese_);
  NormalizedBurst out;
  for_each_character(burst, [&](gunichar c, std::string_view bytes) {
    if (c == '*') return;
    const int digit = g_unichar_isdigit(c) ? g_unichar_digit_value(c) : -1;
    const bool letter = g_unichar_isalpha(c);
    if (english && digit >= 0 ? last_ != Last::kOther : letter && last_ == Last::kEnglishDigit)
      out.text += ' ';
    if (digit >= 0) {
      out.text += (english ? kEnglish : kChinese)[static_cast<size_t>(digit)];
      last_ = english ? Last::kEnglishDigit : Last::kDigit;
      return;
    }
    out.text += bytes;
    const bool after_digit = last_ == Last::kDigit || last_ == Last::kEnglishDigit;
    if (is_sentence_end(bytes) && !(c == '.' && after_digit)) out.sentence_end = out.text.size();
    last_ = letter ? Last::kLetter : Last::kOther;
  });
  return out;
}

std::string TextNormalizer::glue(std::string_view burst) const {
  std::string out;
  bool spoken = false;  // whether the current run of digits has given a word
  for_each_character(burst, [&](gunichar c, std::string_view bytes) {
    if (g_unichar_isdigit(c)) {  // upstream finds digits of all scripts and drops those beyond 0..9
      if (c > '9') return;
      if (spoken && !chinese_) out += ' ';
      out += chinese_ ? kChinese[c - '0'] : kEnglish[c - '0'];
      spoken = true;
      return;
    }
    spoken = false;
    if (c != '*') out += bytes;
  });
  return out;
}

}  // namespace minicpmo
