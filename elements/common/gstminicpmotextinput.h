// Text as it comes from a stream: bytes that may be cut anywhere and need not be UTF-8. Knows
// nothing of GStreamer's objects, so that it can be tested by itself.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace minicpmo {

// Makes valid UTF-8 of any bytes. A character that is cut at the end of one call is completed by
// the next; what is no UTF-8 becomes U+FFFD, one for each maximal part of a character (Unicode 15,
// section 3.9, "Substitution of Maximal Subparts"), so the result never depends on where the bytes
// were cut.
class Utf8Repair {
 public:
  std::string feed(std::string_view bytes);
  // The end of the text: an unfinished character becomes U+FFFD.
  std::string finish();
  void reset();
  // Whether anything was replaced since the last reset.
  bool repaired() const { return repaired_; }

 private:
  void replace(std::string& out);

  std::string partial_;  // the bytes of an unfinished character, at most 3
  bool repaired_ = false;
};

// What a stream of text is made of.
enum class TextFraming {
  kBuffers,  // every buffer is one message (a segment in time)
  kLines,    // every line is one message, wherever the buffers end (a segment in bytes)
};

// Cuts a stream of text into messages. Messages are valid UTF-8 without the line's end; blank ones
// are left out; a byte order mark in front of the stream is removed.
class TextMessages {
 public:
  using Take = std::function<void(std::string message)>;

  // Longer messages (in bytes) are dropped whole and counted.
  void set_max_bytes(size_t max_bytes) { max_bytes_ = max_bytes; }
  void feed(std::string_view bytes, TextFraming framing, const Take& take);
  // End of the stream: what is left is the last line.
  void finish(const Take& take);
  // Drops what is left, and forgets the counts.
  void reset();
  bool repaired() const { return utf8_.repaired(); }
  size_t dropped() const { return dropped_; }

 private:
  void append(std::string_view text);
  void emit(const Take& take);

  Utf8Repair utf8_;
  std::string line_;
  size_t max_bytes_ = 256 * 1024;
  size_t dropped_ = 0;
  bool too_long_ = false;  // line_ is the start of a line that is dropped
  bool at_start_ = true;
};

// Whether `text` holds nothing but white space (ASCII, and U+FEFF).
bool is_blank(std::string_view text);

// Cuts running text into pieces like those of a language model: a word with the white space in
// front of it, at most 24 bytes (long words and scripts without spaces are cut between characters).
// Independent of how the text arrived.
class WordPieces {
 public:
  using Take = std::function<void(std::string_view piece)>;

  // `text` is valid UTF-8.
  void feed(std::string_view text, const Take& take);
  void finish(const Take& take);
  void reset() { piece_.clear(); }

 private:
  std::string piece_;
};

}  // namespace minicpmo
