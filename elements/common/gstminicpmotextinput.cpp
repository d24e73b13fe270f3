#include "common/gstminicpmotextinput.h"

#include <algorithm>
#include <utility>

namespace minicpmo {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr size_t kPieceBytes = 24;

unsigned char byte_at(std::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

// Bytes of the character that starts with `lead`, or 0 if no character does.
size_t character_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// Whether `next` may be byte `position` of a character that starts with `lead`: the second byte
// excludes overlong forms, surrogates and everything above U+10FFFF.
bool continues(unsigned char lead, size_t position, unsigned char next) {
  if (position == 1) {
    if (lead == 0xE0) return next >= 0xA0 && next <= 0xBF;
    if (lead == 0xED) return next >= 0x80 && next <= 0x9F;
    if (lead == 0xF0) return next >= 0x90 && next <= 0xBF;
    if (lead == 0xF4) return next >= 0x80 && next <= 0x8F;
  }
  return next >= 0x80 && next <= 0xBF;
}

}  // namespace

void Utf8Repair::replace(std::string& out) {
  out += kReplacement;
  partial_.clear();
  repaired_ = true;
}

std::string Utf8Repair::feed(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + partial_.size());
  for (size_t i = 0; i < bytes.size();) {
    const unsigned char next = byte_at(bytes, i);
    if (!partial_.empty()) {
      const unsigned char lead = byte_at(partial_, 0);
      if (!continues(lead, partial_.size(), next)) {
        replace(out);  // the same byte is looked at again, as the start of a character
        continue;
      }
      partial_ += bytes[i++];
      if (partial_.size() == character_length(lead)) out += std::exchange(partial_, {});
      continue;
    }
    ++i;
    const size_t length = character_length(next);
    if (length == 0) {
      replace(out);
    } else if (length == 1) {
      out += static_cast<char>(next);
    } else {
      partial_ = static_cast<char>(next);
    }
  }
  return out;
}

std::string Utf8Repair::finish() {
  std::string out;
  if (!partial_.empty()) replace(out);
  return out;
}

void Utf8Repair::reset() {
  partial_.clear();
  repaired_ = false;
}

bool is_blank(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (text.substr(i, kByteOrderMark.size()) == kByteOrderMark) {
      i += kByteOrderMark.size();
    } else if (is_space(text[i])) {
      ++i;
    } else {
      return false;
    }
  }
  return true;
}

void TextMessages::append(std::string_view text) {
  if (at_start_ && !text.empty()) {
    at_start_ = false;
    if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
      text.remove_prefix(kByteOrderMark.size());
    }
  }
  if (too_long_) return;
  if (line_.size() + text.size() > max_bytes_) {
    too_long_ = true;
    line_.clear();
    line_.shrink_to_fit();
    return;
  }
  line_ += text;
}

void TextMessages::emit(const Take& take) {
  if (std::exchange(too_long_, false)) {
    ++dropped_;
    return;
  }
  std::string message = std::exchange(line_, {});
  if (!message.empty() && message.back() == '\r') message.pop_back();
  if (!is_blank(message)) take(std::move(message));
}

void TextMessages::feed(std::string_view bytes, TextFraming framing, const Take& take) {
  if (framing == TextFraming::kBuffers) {
    append(utf8_.feed(bytes));
    append(utf8_.finish());
    emit(take);
    return;
  }
  const std::string text = utf8_.feed(bytes);
  std::string_view rest = text;
  for (size_t end; (end = rest.find('\n')) != rest.npos; rest.remove_prefix(end + 1)) {
    append(rest.substr(0, end));
    emit(take);
  }
  append(rest);
}

void TextMessages::finish(const Take& take) {
  append(utf8_.finish());
  emit(take);
}

void TextMessages::reset() {
  utf8_.reset();
  line_.clear();
  dropped_ = 0;
  too_long_ = false;
  at_start_ = true;
}

void WordPieces::feed(std::string_view text, const Take& take) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = std::max<size_t>(1, character_length(byte_at(text, i)));
    const std::string_view character = text.substr(i, length);
    const bool word_ends = is_space(character[0]) && !is_blank(piece_);
    if (word_ends || piece_.size() + character.size() > kPieceBytes) {
      if (!piece_.empty()) take(piece_);
      piece_.clear();
    }
    piece_ += character;
    i += character.size();
  }
}

void WordPieces::finish(const Take& take) {
  if (!piece_.empty()) take(piece_);
  piece_.clear();
}

}  // namespace minicpmo
