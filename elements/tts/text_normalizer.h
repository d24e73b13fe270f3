// Text of the language model as it is to be spoken: digits become words, markdown stars go. No
// torch, no GStreamer. (MiniCPM-o 2.6, utils.py: sentence_end, NumberToTextConverter;
// modeling_minicpmo.py: its streaming driver.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/stage.h"

namespace minicpmo {

// Marks where the spoken part of an answer ends; nothing from it on is spoken.
inline constexpr std::string_view kSpeechEndMark = "<|tts_eos|>";

// `text` with every byte that is not part of valid UTF-8 replaced by U+FFFD.
std::string valid_utf8(std::string_view text);

// The character that upstream takes for the sentence end of a burst: the first of . 。 ! ? ！ ？
// (in this order) that occurs in it, where "." does not count if its first occurrence follows a
// digit ("3.14", "1."). Empty if there is none.
std::string_view upstream_sentence_end(std::string_view burst);

struct NormalizedBurst {
  static constexpr size_t kNone = static_cast<size_t>(-1);
  std::string text;
  // Byte offset in `text` after the burst's last sentence end (any of the above; a "." after a
  // digit, also one of the burst before, is none), or kNone. Compatibility none only.
  size_t sentence_end = kNone;
};

// Compatibility none: every burst is normalised; the words of digits and their neighbours are kept
// apart with spaces, also where digits are split over bursts ("2" | "5" is "two five"). upstream:
// the first burst of an answer is left as it is, digits split over bursts are glued ("twofive").
//
// The language of the digits is Chinese if the text so far has at least as many ideographs
// (U+4E00..U+9FFF) as ASCII letters; it is decided at the first three bursts of an answer
// (upstream: the second and third; and the first two of a continuation segment) and then kept.
class TextNormalizer {
 public:
  // knows_chinese: whether the speech tokenizer has Chinese digits; without them compatibility none
  // says English ones.
  explicit TextNormalizer(Compatibility compatibility, bool knows_chinese = true)
      : compatibility_(compatibility), knows_chinese_(knows_chinese) {}
  // Before the first burst of an answer.
  void start();
  // Upstream only: before the first burst of a continuation segment whose text begins with `head`.
  void start_continuation(std::string_view head);
  // `burst` is valid UTF-8 without kSpeechEndMark.
  NormalizedBurst normalize(std::string_view burst);

 private:
  enum class Last { kOther, kLetter, kDigit, kEnglishDigit };  // what the raw text ends with
  void count_letters(std::string_view text);
  NormalizedBurst keep_apart(std::string_view burst);
  std::string glue(std::string_view burst) const;

  Compatibility compatibility_;
  bool knows_chinese_;
  bool chinese_ = false;
  int64_t bursts_ = 0;
  int64_t ideographs_ = 0;
  int64_t letters_ = 0;
  Last last_ = Last::kOther;
};

}  // namespace minicpmo
