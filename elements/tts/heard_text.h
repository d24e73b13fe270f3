// How much of an answer's text has been heard when so many of its code rows (512 samples at 24 kHz
// each) have been played. No torch, no GStreamer.
//
// The speech model gives no alignment, so time is shared out by what there is to say: a letter
// counts 1, a digit (a word of four letters) 4, an ideograph or Hangul syllable 3, kana 2, a pause
// at punctuation after a word 4, everything else (markdown, emoji) nothing. An answer begins with
// 4 rows of silence and ends with 8. Once all its rows are known they are spread over its text; up
// to then a rate is used, 3.2 rows per letter at first, later that of the answers before. These
// constants were fitted to English speech whose words' times are known
// (tools/tiny/evaluate/heard_words.py); those for other scripts are estimates.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace minicpmo {

// Not thread-safe. A copy costs as much as the answer's text.
class HeardText {
 public:
  // A new answer. What was learnt of the speaker's rate stays.
  void begin();
  // Text of the answer, UTF-8, in pieces as they come; may be cut inside a character.
  void add_text(std::string_view burst);
  // Code rows made of the answer, more than before.
  void add_rows(int64_t rows);
  // All rows of the answer have been made.
  void end();
  // Bytes of the text that have been heard when `rows` rows have been played: up to the end of the
  // last word of which most has been, with its punctuation. 0 at 0 rows, never less for more rows,
  // all of the text from the last row of a finished answer on. While the answer is not finished
  // its last word counts only if a space follows. Linear in the text.
  int64_t bytes_at(int64_t rows) const;

 private:
  std::string text_;
  int64_t rows_ = 0;
  bool ended_ = false;
  // Of finished answers, the latest counting most; begins with the default rate.
  double learnt_rows_ = 640;
  double learnt_letters_ = 200;
};

}  // namespace minicpmo
