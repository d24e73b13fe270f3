// UTF-8 and Unicode normalisation, as the tokenizers' normalisers do them.
//
// Character data come from GLib, restricted to what the crate behind Hugging Face's tokenizers
// knows (Unicode 9): a character that was added later is left alone by its NFC and NFD, so it must
// be by ours. g_utf8_normalize() itself cannot be used: it knows newer characters, stops at U+0000
// and takes quadratic time on long runs of marks.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace minicpmo {

struct CodeRange {
  char32_t first;
  char32_t last;  // inclusive
};

// Whether `c` lies in one of `ranges`, which are sorted and apart.
bool contains(std::span<const CodeRange> ranges, char32_t c);

// Reads the character at `at` (< bytes.size()) and moves `at` behind it. What is not UTF-8 yields
// U+FFFD for each maximal part of a character (Unicode 3.9, "substitution of maximal subparts"; as
// Rust's from_utf8_lossy).
char32_t next_code_point(std::string_view bytes, size_t& at);
void append_utf8(std::string& text, char32_t c);

bool is_valid_utf8(std::string_view bytes);
// `bytes` with each part that is not UTF-8 replaced by U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

std::u32string to_utf32(std::string_view bytes);
std::string to_utf8(std::u32string_view text);

// Unicode's White_Space property.
bool is_white_space(char32_t c);

// Canonical decomposition (NFD) and composition (NFC) of Unicode Standard Annex 15. O(n log n) at
// worst, O(n) on anything but long runs of combining marks.
std::u32string decompose(std::u32string_view text);
std::string normalize_nfc(std::string_view valid_utf8);

}  // namespace minicpmo
