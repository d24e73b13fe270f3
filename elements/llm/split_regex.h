// The split regex of a tokenizer.json ("pre_tokenizer": Split with Regex, behaviour Isolated), run
// by PCRE2.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/result.h"

namespace minicpmo {

// The file's regex is written for Oniguruma with the Unicode tables of its day. Where PCRE2 10.42
// (Unicode 14) differs, the pattern is rewritten: \s without U+180E, \p{L} and \p{N} with the
// letters and numbers added since. Constructs that the two read differently (line anchors, nested
// classes, \w, \d, \b ...) are refused.
class SplitRegex {
 public:
  // Errors: kCorrupt; the message is to follow the name of the file and key.
  static Result<SplitRegex> compile(const std::string& pattern);

  // Calls `piece` for each match and for each stretch between matches, in order; together they are
  // `valid_utf8`. Matching a hostile regex stops at a limit of steps; the rest is then one piece.
  // Thread-safe.
  void split(std::string_view valid_utf8, const std::function<void(std::string_view)>& piece) const;

 private:
  explicit SplitRegex(std::shared_ptr<const void> code) : code_(std::move(code)) {}
  std::shared_ptr<const void> code_;  // pcre2_code_8
};

}  // namespace minicpmo
