#include "tts/speech_text.h"

#include <glib.h>

#include <algorithm>
#include <span>
#include <utility>

namespace minicpmo {
namespace {

constexpr size_t kLongestWord = 2048;  // bytes of a last word that is encoded anew with every burst
constexpr size_t kLongestBurst = 64;   // three tokens of a language model are shorter
constexpr size_t kPiece = 12;  // bytes after which a piece of a longer text ends with its word
constexpr size_t kLongestPiece = 48;  // ... or anywhere
// A segment ends with the next sentence when no more slots are left than these.
constexpr int64_t kSlotsLeftAtSegmentEnd = 180;
constexpr size_t kPrefixTokens = 5;     // text a continuation segment starts from
constexpr int64_t kSpecialsBefore = 2;  // [Stts] and the speaker vector

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

// Characters that the tokenizer does not split at: words are runs of them.
bool is_word(gunichar c) {
  return c < 0x2E80 && (g_unichar_isalnum(c) || g_unichar_ismark(c));
}

gunichar character_at(const std::string& text, size_t offset) {
  return g_utf8_get_char(text.data() + offset);
}

size_t previous_character(const std::string& text, size_t offset) {
  do {
    --offset;
  } while (offset > 0 && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80);
  return offset;
}

size_t piece_end(const std::string& text, size_t begin) {
  bool ideograph = false;
  size_t i = begin;
  while (i < text.size()) {
    if (i - begin >= kPiece && (ideograph || is_space(text[i]))) break;
    if (i - begin >= kLongestPiece) break;
    ideograph = character_at(text, i) >= 0x2E80;
    i += static_cast<size_t>(g_utf8_skip[static_cast<unsigned char>(text[i])]);
  }
  return i;
}

bool has_letter_or_digit(const std::string& token) {
  for (const char* p = token.c_str(); *p != '\0'; p = g_utf8_next_char(p)) {
    if (g_unichar_isalnum(g_utf8_get_char(p))) return true;
  }
  return false;
}

}  // namespace

void GrowingText::assign(std::vector<int32_t> head_ids, std::string_view text) {
  text_ = text;
  ids_ = std::move(head_ids);
  head_size_ = settled_ids_ = ids_.size();
  settled_bytes_ = 0;
  encode_tail();
}

void GrowingText::append(std::string_view text) {
  text_ += text;
  encode_tail();
}

void GrowingText::truncate(size_t bytes) {
  text_.resize(std::min(bytes, text_.size()));
  if (bytes < settled_bytes_) {
    settled_bytes_ = 0;
    settled_ids_ = head_size_;
  }
  encode_tail();
}

void GrowingText::encode_tail() {
  ids_.resize(settled_ids_);
  const auto encode = [&](size_t begin, size_t end) {
    const auto ids = tokenizer_->encode(std::string_view(text_).substr(begin, end - begin));
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  };
  // No word reaches across a space, so what is before the last one stays as it is.
  size_t space = text_.size();
  while (space > settled_bytes_ && !is_space(text_[space - 1])) --space;
  if (space > settled_bytes_) {
    encode(settled_bytes_, space);
    settled_bytes_ = space;
    settled_ids_ = ids_.size();
  }
  encode(settled_bytes_, text_.size());
  if (text_.size() - settled_bytes_ > kLongestWord) {
    settled_bytes_ = text_.size();
    settled_ids_ = ids_.size();
  }
}

SpeechText::SpeechText(std::shared_ptr<const Tokenizer> tokenizer, const SpeechTextOptions& options)
    : tokenizer_(std::move(tokenizer)),
      options_(options),
      knows_chinese_(tokenizer_->token_to_id("一") >= 0),
      unknown_token_(tokenizer_->token_to_id("[UNK]")),
      text_(*tokenizer_) {}

void SpeechText::start(Compatibility compatibility) {
  compatibility_ = compatibility;
  normalizer_ = TextNormalizer(compatibility, knows_chinese_);
  normalizer_.start();
  phase_ = Phase::kReading;
  queue_.clear();
  ended_ = marked_ = rest_prefilled_ = speakable_ = cut_ = false;
  first_segment_ = new_segment_ = true;
  bursts_ = slices_ = 0;
  text_.assign({}, {});
  prefix_.clear();
  rest_.clear();
  keep_slots();
}

void SpeechText::push(std::string_view burst) {
  if (ended_ || phase_ == Phase::kDone) return;
  if (marked_) burst = {};
  if (const size_t mark = burst.find(kSpeechEndMark); mark != std::string_view::npos) {
    burst = burst.substr(0, mark);
    marked_ = !upstream();  // upstream speaks on if a later burst has text
  }
  Pending pending{valid_utf8(burst)};
  pending.split = !upstream() && pending.text.size() > kLongestBurst;
  queue_.push_back(std::move(pending));
}

void SpeechText::end() {
  ended_ = true;
}

std::optional<std::string> SpeechText::take_burst() {
  if (queue_.empty()) return std::nullopt;
  Pending& front = queue_.front();
  const size_t begin = front.offset;
  front.offset = front.split ? piece_end(front.text, begin) : front.text.size();
  std::string burst = front.text.substr(begin, front.offset - begin);
  if (front.offset == front.text.size()) queue_.pop_front();
  return burst;
}

std::optional<SpeechCall> SpeechText::next() {
  while (phase_ == Phase::kReading) {
    if (auto burst = take_burst()) {
      if (auto call = read(*burst)) return call;
    } else if (ended_) {
      text_ended();
    } else {
      return std::nullopt;
    }
  }
  if (phase_ == Phase::kSpeakingRest) return rest_call();
  return std::nullopt;
}

std::optional<SpeechCall> SpeechText::read(const std::string& burst) {
  const bool opens_answer = first_segment_ && bursts_ == 0;
  const bool opens_continuation = !first_segment_ && bursts_ == 0;
  ++bursts_;
  if (upstream() && opens_continuation && burst.empty()) {
    phase_ = Phase::kDone;  // and what was left of the segment before is lost
    return std::nullopt;
  }
  const size_t before = text_.text().size();
  const NormalizedBurst normalized = normalizer_.normalize(burst);
  text_.append(normalized.text);
  keep_slots();
  if (!speakable_) speakable_ = speakable(text_.ids(), text_.head_size());
  if (opens_answer)
    return std::nullopt;  // it comes with the speaker vector; sound starts with the second one
  if (cut_at_sentence(burst, normalized, before)) return std::nullopt;
  if (!upstream() && std::ssize(text_.ids()) >= options_.slots) {
    cut_overlong();
    return std::nullopt;
  }
  if (std::ssize(slot_ids_) < (slices_ + 1) * options_.slice) return std::nullopt;
  if (!upstream() && !speakable_) return std::nullopt;
  return slice_call();
}

bool SpeechText::cut_at_sentence(const std::string& burst, const NormalizedBurst& normalized,
                                 size_t before) {
  if (std::ssize(slot_ids_) < options_.slots - kSlotsLeftAtSegmentEnd) return false;
  if (upstream()) {
    const std::string_view end = upstream_sentence_end(burst);
    if (end.empty()) return false;
    cut(text_.text().rfind(end) + end.size());
    return true;
  }
  if (normalized.sentence_end == NormalizedBurst::kNone) return false;
  cut(before + normalized.sentence_end);
  if (phase_ == Phase::kSpeakingRest && std::ssize(text_.ids()) >= options_.slots) cut_overlong();
  return true;
}

// One slot is left for [Etts].
void SpeechText::cut_overlong() {
  size_t offset = word_boundary(options_.slots - 1, true);
  if (offset == 0) offset = word_boundary(options_.slots - 1, false);
  if (offset == 0) {  // a single word, longer than a segment: only ids that no real text has
    offset = text_.text().size();
    while (offset > 0 && std::ssize(text_.ids()) >= options_.slots) {
      offset = previous_character(text_.text(), offset);
      const std::string kept = text_.text();
      text_.truncate(offset);
      rest_ = kept.substr(offset) + rest_;
    }
  }
  cut(offset);
}

// Ends the segment behind `offset` bytes of its text.
void SpeechText::cut(size_t offset) {
  rest_ = text_.text().substr(offset) + rest_;
  text_.truncate(offset);
  keep_slots();
  if (!upstream() && !speakable_) {  // nothing to say so far: the segment starts again behind it
    const auto begin = text_.ids().begin();
    const std::vector<int32_t> head(begin, begin + static_cast<int64_t>(text_.head_size()));
    text_.assign(head, std::exchange(rest_, {}));
    keep_slots();
    return;
  }
  cut_ = true;
  phase_ = Phase::kSpeakingRest;
}

void SpeechText::text_ended() {
  // Upstream never asks whether there is anything to say, but loses what a cut left if no burst
  // follows it.
  const bool speaks = upstream() ? bursts_ > 0 : speakable_;
  phase_ = speaks ? Phase::kSpeakingRest : Phase::kDone;
  if (speaks && !upstream() && std::ssize(text_.ids()) >= options_.slots) cut_overlong();
}

void SpeechText::keep_slots() {
  slot_ids_ = text_.ids();
  if (std::ssize(slot_ids_) < options_.slots) return;
  // Upstream only: a text that is too long is cut to its slots, decoded, and encoded again.
  slot_ids_.resize(static_cast<size_t>(options_.slots));
  if (!upstream()) return;
  slot_ids_ = tokenizer_->encode(tokenizer_->decode(slot_ids_));
  slot_ids_.resize(static_cast<size_t>(options_.slots), options_.end_token);
}

SpeechCall SpeechText::slice_call() {
  const int64_t begin = slices_ * options_.slice;
  ++slices_;
  return new_call(begin, std::min(begin + options_.slice, options_.slots), false);
}

SpeechCall SpeechText::rest_call() {
  if (std::exchange(rest_prefilled_, true)) {
    SpeechCall call;
    call.text_tokens = std::ssize(slot_ids_);
    call.text_complete = true;
    return call;
  }
  // Upstream has no [Etts] behind a text that fills all slots; it prefills the audio start instead,
  // which nothing reads.
  const bool end_token = std::ssize(slot_ids_) < options_.slots;
  return new_call(slices_ * options_.slice, std::ssize(slot_ids_), end_token);
}

// The call that prefills text tokens [begin, end).
SpeechCall SpeechText::new_call(int64_t begin, int64_t end, bool with_end_token) {
  SpeechCall call;
  call.new_segment = std::exchange(new_segment_, false);
  call.continuation = call.new_segment && !first_segment_;
  if (call.continuation) call.prefix = prefix_;
  call.text_tokens = std::ssize(slot_ids_);
  call.text_complete = phase_ == Phase::kSpeakingRest;
  call.begin = begin == 0 ? 0 : begin + kSpecialsBefore;
  if (begin == 0) call.ids = {options_.start_token, options_.speaker_token};
  if (begin < end)
    call.ids.insert(call.ids.end(), slot_ids_.begin() + begin, slot_ids_.begin() + end);
  // begin > end: a growing word has become fewer tokens, and there is no slot left for [Etts] where
  // it belongs.
  if (with_end_token && begin <= end) call.ids.push_back(options_.end_token);
  return call;
}

void SpeechText::generated(bool end_of_speech, bool limit) {
  if (!end_of_speech && !limit) return;
  const bool early = phase_ == Phase::kReading;
  if (upstream() ? early || limit || !cut_ : !early && !cut_) {
    phase_ = Phase::kDone;
    return;
  }
  if (early) split_unread();
  end_segment(!limit);
  // If nothing is left to say the last chunk can tell already.
  if (ended_ && queue_.empty() && !upstream() && !speakable_) phase_ = Phase::kDone;
}

// The speech has ended before its text: what was not prefilled is for the next segment.
void SpeechText::split_unread() {
  const int64_t read = slices_ * options_.slice;
  if (std::ssize(text_.ids()) <= read) return;
  const size_t offset = word_boundary(read, false);
  rest_ = text_.text().substr(offset);
  text_.truncate(offset);
  keep_slots();
}

// with_prefix: the next segment goes on from the sound of this one.
void SpeechText::end_segment(bool with_prefix) {
  const size_t n = with_prefix ? std::min(kPrefixTokens, slot_ids_.size()) : 0;
  prefix_.assign(slot_ids_.end() - static_cast<int64_t>(n), slot_ids_.end());
  if (upstream()) {  // "##ously" and all: the ids of the text are not those of the prefix then
    const std::string head = tokenizer_->decode(prefix_) + rest_;
    text_.assign({}, head);
    normalizer_.start_continuation(head);
  } else {
    text_.assign(prefix_, rest_);
  }
  rest_.clear();
  keep_slots();
  speakable_ = speakable(text_.ids(), text_.head_size());
  first_segment_ = rest_prefilled_ = cut_ = false;
  new_segment_ = true;
  bursts_ = slices_ = 0;
  phase_ = Phase::kReading;
}

// Whether any of the ids is that of a word or a part of one.
bool SpeechText::speakable(const std::vector<int32_t>& ids, size_t from) const {
  return std::any_of(ids.begin() + static_cast<int64_t>(from), ids.end(), [&](int32_t id) {
    return id != unknown_token_ && !tokenizer_->is_added_token(id) &&
           has_letter_or_digit(tokenizer_->id_to_token(id));
  });
}

// The last byte offset in the segment's text, other than its end, that is between two words and has
// at most `max_tokens` tokens before it; 0 if there is none. whole_words: not at punctuation.
size_t SpeechText::word_boundary(int64_t max_tokens, bool whole_words) const {
  const std::string& text = text_.text();
  const auto head = static_cast<int64_t>(text_.head_size());
  for (size_t i = text.size(); i > 0;) {
    i = previous_character(text, i);
    if (i == 0) break;
    const gunichar c = character_at(text, i);
    const gunichar before = character_at(text, previous_character(text, i));
    const bool boundary =
        whole_words ? is_space(text[i]) || c >= 0x2E80 : !is_word(c) || !is_word(before);
    if (!boundary) continue;
    const auto tokens = std::ssize(tokenizer_->encode(std::string_view(text).substr(0, i)));
    if (head + tokens <= max_tokens) return i;
  }
  return 0;
}

}  // namespace minicpmo
