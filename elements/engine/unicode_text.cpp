#include "engine/unicode_text.h"

#include <glib.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace minicpmo {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

// Characters newer than Unicode 9 that combine or decompose in GLib 2.74 (Unicode 15).
// tests/unit/tokenizers compares every code point with the reference and fails if a newer GLib
// needs more of them here.
constexpr CodeRange kUnknownToReference[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
    {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0},
    {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42},
    {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1},
    {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef},
};

int combining_class(char32_t c) {
  if (c < 0x300 || contains(kUnknownToReference, c)) return 0;
  return g_unichar_combining_class(c);
}

// The number of continuation bytes after `lead`, and the range of the first of them; 0 if `lead`
// starts nothing.
struct LeadByte {
  int continuation;
  unsigned char low, high;
};
LeadByte lead_byte(unsigned char lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};  // no surrogates
  if (lead >= 0xE1 && lead <= 0xEF) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

// Marks between two starters in the order of their classes, equal ones as they stood.
void sort_marks(std::u32string& text) {
  std::vector<std::pair<int, char32_t>> marks;
  for (size_t i = 0; i < text.size(); ++i) {
    marks.clear();
    size_t begin = i;
    for (; i < text.size(); ++i) {
      int klass = combining_class(text[i]);
      if (klass == 0) break;
      marks.emplace_back(klass, text[i]);
    }
    if (marks.size() < 2) continue;
    std::stable_sort(marks.begin(), marks.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [klass, c] : marks) text[begin++] = c;
  }
}

bool compose_pair(char32_t a, char32_t b, char32_t* composed) {
  gunichar c = 0;
  if (!g_unichar_compose(a, b, &c) || contains(kUnknownToReference, c)) return false;
  *composed = c;
  return true;
}

// `text` is decomposed and in canonical order. Composes in place.
void compose(std::u32string& text) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  size_t out = 0, starter = kNone;
  int last_class = -1;  // of the character before, -1: it is the starter itself
  for (char32_t c : text) {
    int klass = combining_class(c);
    if (starter != kNone && last_class < klass && compose_pair(text[starter], c, &text[starter])) {
      continue;
    }
    if (klass == 0) {
      starter = out;
      last_class = -1;
    } else {
      last_class = klass;
    }
    text[out++] = c;
  }
  text.resize(out);
}

}  // namespace

bool contains(std::span<const CodeRange> ranges, char32_t c) {
  auto after = std::upper_bound(ranges.begin(), ranges.end(), c,
                                [](char32_t value, const CodeRange& r) { return value < r.first; });
  return after != ranges.begin() && c <= std::prev(after)->last;
}

char32_t next_code_point(std::string_view bytes, size_t& at) {
  auto lead = static_cast<unsigned char>(bytes[at++]);
  if (lead < 0x80) return lead;
  LeadByte expected = lead_byte(lead);
  if (expected.continuation == 0) return kReplacement;
  char32_t c = lead & (0x3F >> expected.continuation);
  for (int i = 0; i < expected.continuation; ++i) {
    if (at >= bytes.size()) return kReplacement;
    auto byte = static_cast<unsigned char>(bytes[at]);
    if (byte < expected.low || byte > expected.high) return kReplacement;
    c = c << 6 | (byte & 0x3F);
    expected.low = 0x80;
    expected.high = 0xBF;
    ++at;
  }
  return c;
}

void append_utf8(std::string& text, char32_t c) {
  if (c < 0x80) {
    text.push_back(static_cast<char>(c));
    return;
  }
  if (c < 0x800) {
    text.push_back(static_cast<char>(0xC0 | c >> 6));
  } else {
    if (c < 0x10000) {
      text.push_back(static_cast<char>(0xE0 | c >> 12));
    } else {
      text.push_back(static_cast<char>(0xF0 | c >> 18));
      text.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    }
    text.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
  }
  text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
}

bool is_valid_utf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    size_t begin = at;
    // U+FFFD that was read from three bytes stood there.
    if (next_code_point(bytes, at) == kReplacement &&
        bytes.substr(begin, at - begin) != "\xEF\xBF\xBD") {
      return false;
    }
  }
  return true;
}

std::string to_valid_utf8(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string text;
  text.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) append_utf8(text, next_code_point(bytes, at));
  return text;
}

std::u32string to_utf32(std::string_view bytes) {
  std::u32string text;
  text.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) text.push_back(next_code_point(bytes, at));
  return text;
}

std::string to_utf8(std::u32string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (char32_t c : text) append_utf8(bytes, c);
  return bytes;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::u32string decompose(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (char32_t c : text) {
    if (c < 0xC0 || contains(kUnknownToReference, c)) {
      out.push_back(c);
      continue;
    }
    gunichar parts[G_UNICHAR_MAX_DECOMPOSITION_LENGTH];
    size_t n = g_unichar_fully_decompose(c, FALSE, parts, std::size(parts));
    out.append(parts, parts + n);
  }
  sort_marks(out);
  return out;
}

std::string normalize_nfc(std::string_view valid_utf8) {
  // Nothing below U+0300 (first byte 0xCC) changes under NFC without a character above it.
  bool plain = std::all_of(valid_utf8.begin(), valid_utf8.end(),
                           [](char byte) { return static_cast<unsigned char>(byte) < 0xCC; });
  if (plain) return std::string(valid_utf8);
  std::u32string text = decompose(to_utf32(valid_utf8));
  compose(text);
  return to_utf8(text);
}

}  // namespace minicpmo
