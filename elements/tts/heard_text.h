// How much of an answer's text has been heard when so many of its code rows (512 samples at 24 kHz
// each) have been played. No torch, no GStreamer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace minicpmo {

// Not thread-safe. A copy costs as much as the answer's text.
class HeardText {
 public:
  // A new answer.
  void begin();
  // Text of the answer, UTF-8, in pieces as they come; may be cut inside a character.
  void add_text(std::string_view burst);
  // Code rows made of the answer, more than before.
  void add_rows(int64_t rows);
  // All rows of the answer have been made.
  void end();
  // Bytes of the text that have been heard when `rows` rows have been played, up to the end of a
  // word; 0 at 0 rows, never less for more rows, all of the text from the last row of a finished
  // answer on.
  int64_t bytes_at(int64_t rows) const;

 private:
  std::string text_;
  int64_t rows_ = 0;
  bool ended_ = false;
};

}  // namespace minicpmo
