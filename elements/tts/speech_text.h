// Which text the speech model reads at which position, and when it may speak: the streaming driver
// of MiniCPM-o 2.6 (modeling_minicpmo.py: _generate_mel_spec_audio_streaming) without its network.
// No torch, no GStreamer.
//
// A segment has `slots` (300) text slots at positions 2..301, behind [Stts] and the speaker vector;
// position 302 is the audio start, codes follow. Text is prefilled in slices of `slice` (10)
// tokens, each once, from the text as it stood then; at most one slice per burst, each followed by
// one call of 25 codes. When all text of a segment is known its rest is prefilled with [Etts]
// behind it, and calls follow until the end of speech. A segment of 120 tokens or more ends with
// the next sentence; the next segment starts from its last five text ids and last 50 code rows.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/stage.h"
#include "engine/tokenizer.h"
#include "tts/text_normalizer.h"

namespace minicpmo {

// The ids of a growing text, equal to head_ids + tokenizer.encode(text), but each word is encoded
// anew only while it is the last one. (A word of more than 2048 bytes is the exception: it is cut
// there.)
class GrowingText {
 public:
  explicit GrowingText(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  void assign(std::vector<int32_t> head_ids, std::string_view text);
  void append(std::string_view text);
  void truncate(size_t bytes);  // keeps the first `bytes` of text()
  const std::string& text() const { return text_; }
  const std::vector<int32_t>& ids() const { return ids_; }
  size_t head_size() const { return head_size_; }

 private:
  void encode_tail();
  const Tokenizer* tokenizer_;
  std::string text_;
  std::vector<int32_t> ids_;
  size_t head_size_ = 0;
  size_t settled_bytes_ = 0;  // of text_; their ids are ids_[0, settled_ids_)
  size_t settled_ids_ = 0;
};

struct SpeechTextOptions {
  int64_t slots = 300;
  int64_t slice = 10;
  int32_t start_token = 0;    // [Stts]
  int32_t speaker_token = 0;  // [spk_emb]
  int32_t end_token = 0;      // [Etts]
};

// One call of the speech model: what to prefill, then up to 25 codes.
struct SpeechCall {
  bool new_segment = false;   // start with an empty KV cache (302 zero rows)
  bool continuation = false;  // of an earlier segment; new_segment only
  // continuation only: text ids for positions 2.., prefilled behind [Stts] and the speaker before
  // the last 50 code rows are; empty if the segment has nothing to go on from.
  std::vector<int32_t> prefix;
  int64_t begin = 0;           // position of ids[0]; 0: ids starts with [Stts] [spk_emb]
  std::vector<int32_t> ids;    // to prefill; may be empty
  int64_t text_tokens = 0;     // L: tokens of the segment's text so far, without specials
  bool text_complete = false;  // calls go on until the end of speech
};

class SpeechText {
 public:
  SpeechText(std::shared_ptr<const Tokenizer> tokenizer, const SpeechTextOptions& options);

  void start(Compatibility compatibility);
  // Linear in the length. compatibility none: a text longer than any burst (64 bytes) is read as a
  // sequence of bursts of a few words each.
  void push(std::string_view burst);
  void end();
  // The next call, if the text so far allows one. To be followed by generated().
  std::optional<SpeechCall> next();
  // What became of it. limit: the segment has as many codes as it may have.
  void generated(bool end_of_speech, bool limit);
  bool done() const { return phase_ == Phase::kDone; }
  // Of the current segment, without specials.
  const std::vector<int32_t>& text_ids() const { return text_.ids(); }
  const std::string& text() const { return text_.text(); }

 private:
  enum class Phase { kReading, kSpeakingRest, kDone };
  struct Pending {
    std::string text;
    size_t offset = 0;
    bool split = false;
  };

  bool upstream() const { return compatibility_ == Compatibility::kUpstream; }
  std::optional<std::string> take_burst();
  std::optional<SpeechCall> read(const std::string& burst);
  bool cut_at_sentence(const std::string& burst, const NormalizedBurst& normalized, size_t before);
  void cut_overlong();
  void cut(size_t offset);
  void text_ended();
  void keep_slots();
  SpeechCall slice_call();
  SpeechCall rest_call();
  SpeechCall new_call(int64_t begin, int64_t end, bool with_end_token);
  void end_segment(bool with_prefix);
  void split_unread();
  bool speakable(const std::vector<int32_t>& ids, size_t from) const;
  size_t word_boundary(int64_t max_tokens, bool whole_words) const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  SpeechTextOptions options_;
  bool knows_chinese_;
  int32_t unknown_token_;

  Compatibility compatibility_ = Compatibility::kNone;
  TextNormalizer normalizer_{Compatibility::kNone};
  Phase phase_ = Phase::kDone;
  std::deque<Pending> queue_;
  bool ended_ = false;   // end() was called
  bool marked_ = false;  // kSpeechEndMark was read
  int64_t bursts_ = 0;   // read in this segment
  bool first_segment_ = true;
  bool new_segment_ = true;
  bool rest_prefilled_ = false;
  bool speakable_ = false;  // the segment's text has something to say
  bool cut_ = false;        // another segment follows
  int64_t slices_ = 0;      // prefilled
  GrowingText text_;
  std::vector<int32_t> slot_ids_;  // what the slots hold: text_.ids(), cut to them
  std::vector<int32_t> prefix_;
  std::string rest_;  // text of the next segment
};

}  // namespace minicpmo
