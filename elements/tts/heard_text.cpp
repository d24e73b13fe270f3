#include "tts/heard_text.h"

#include <glib.h>

#include <algorithm>

namespace minicpmo {

namespace {

constexpr double kLeadRows = 4;
constexpr double kTailRows = 8;
constexpr double kPause = 4;
// A word counts as heard when this part of it has been.
constexpr double kMostOfWord = 0.85;
// A longer run of letters is cut anywhere: a script without spaces, or no language.
constexpr double kLongestWord = 32;
// The rate follows about the last hundred words.
constexpr double kLearntLetters = 500;
// Rows per letter. Outside of these the speech model did not say the text.
constexpr double kFastest = 1.6;
constexpr double kSlowest = 6.4;

enum class Kind { kSpace, kSilent, kPause, kLetter, kSyllable };

struct Character {
  Kind kind;
  double letters = 0;  // it takes as long as so many
};

Character classify(gunichar c) {
  if (g_unichar_isspace(c)) return {Kind::kSpace};
  if (g_unichar_isdigit(c)) return {Kind::kLetter, 4};
  if (g_unichar_isalpha(c)) {
    switch (g_unichar_get_script(c)) {
      case G_UNICODE_SCRIPT_HAN:
      case G_UNICODE_SCRIPT_HANGUL:
        return {Kind::kSyllable, 3};
      case G_UNICODE_SCRIPT_HIRAGANA:
      case G_UNICODE_SCRIPT_KATAKANA:
        return {Kind::kSyllable, 2};
      default:
        return {Kind::kLetter, 1};
    }
  }
  constexpr std::u32string_view kPauses = U".,;:!?…–—。，、；：！？";
  if (kPauses.find(static_cast<char32_t>(c)) != kPauses.npos) return {Kind::kPause};
  return {Kind::kSilent};
}

struct Word {
  size_t end = 0;  // byte after it and its punctuation
  bool last = false;
  double begins = 0;  // in letters
  double ends = 0;
};

// The words of a text, one after the other: what is between spaces, or a single syllable of a
// script without them; with the punctuation behind it.
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {}
  bool next(Word* word);

 private:
  std::string_view text_;
  size_t at_ = 0;
  double letters_ = 0;
};

bool Words::next(Word* word) {
  word->begins = letters_;
  bool open = false;
  bool pause = false;
  Kind before = Kind::kSpace;
  for (; at_ < text_.size();) {
    const gunichar c =
        g_utf8_get_char_validated(text_.data() + at_, static_cast<gssize>(text_.size() - at_));
    const bool valid = c <= 0x10FFFF;
    const Character character = valid ? classify(c) : Character{Kind::kSilent};
    const bool sounds = character.letters > 0;
    const bool too_long = letters_ - word->begins >= kLongestWord;
    const bool apart = character.kind == Kind::kSyllable || before == Kind::kSyllable || too_long;
    if (open && (character.kind == Kind::kSpace || (sounds && letters_ > word->begins && apart)))
      break;
    open = open || character.kind != Kind::kSpace;
    // "3.14" and "e.g." have none inside.
    pause = character.kind == Kind::kPause || (pause && !sounds);
    if (sounds) before = character.kind;
    letters_ += character.letters;
    at_ += valid ? static_cast<size_t>(g_unichar_to_utf8(c, nullptr)) : 1;
  }
  word->end = at_;
  word->last = at_ == text_.size();
  word->ends = letters_;
  if (pause) letters_ += kPause;
  return open;
}

// Letters up to the end of the last word.
double count_letters(std::string_view text) {
  Words words(text);
  double letters = 0;
  for (Word word; words.next(&word);) letters = word.ends;
  return letters;
}

// Rows of an answer in which something is said.
double speech_rows(int64_t rows) {
  return std::max(static_cast<double>(rows) - kLeadRows - kTailRows, static_cast<double>(rows) / 2);
}

}  // namespace

void HeardText::begin() {
  text_.clear();
  rows_ = 0;
  ended_ = false;
}

void HeardText::add_text(std::string_view burst) {
  text_ += burst;
}

void HeardText::add_rows(int64_t rows) {
  rows_ += rows;
}

void HeardText::end() {
  ended_ = true;
  const double letters = count_letters(text_);
  const double rows = speech_rows(rows_);
  if (rows < kFastest * letters || rows > kSlowest * letters) return;
  learnt_rows_ += rows;
  learnt_letters_ += letters;
  const double keep = std::min(1.0, kLearntLetters / learnt_letters_);
  learnt_rows_ *= keep;
  learnt_letters_ *= keep;
}

int64_t HeardText::bytes_at(int64_t rows) const {
  if (rows <= 0) return 0;
  if (ended_ && rows >= rows_) return static_cast<int64_t>(text_.size());
  const double total = count_letters(text_);
  if (total <= 0) return 0;
  // What has been made says no more than the text so far.
  const double slowest = speech_rows(rows_) / total;
  const double per_letter = ended_ ? slowest : std::max(slowest, learnt_rows_ / learnt_letters_);
  const double lead = std::min(kLeadRows, static_cast<double>(rows_) / 6);
  const double at = (static_cast<double>(std::min(rows, rows_)) - lead) / per_letter;
  int64_t heard = 0;
  Words words(text_);
  for (Word word; words.next(&word);) {
    if (at < word.begins + kMostOfWord * (word.ends - word.begins)) break;
    if (word.last && !ended_) break;
    heard = static_cast<int64_t>(word.end);
  }
  return heard;
}

}  // namespace minicpmo
