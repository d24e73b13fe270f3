// Endpointing: from the probability of speech, window by window, to where turns begin and end.
//
// Pure logic over sample counts (16 kHz); positions count from the start of the stream. A window is
// voiced from the first one at or above `threshold` until one falls below `release_threshold`
// (hysteresis). A turn starts when min_speech samples in a row were voiced, and begins `padding`
// before the first of them, but never before the end of what an earlier turn had. It ends when
// `silence` has passed since the last voiced sample, or when it is max_turn long.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/stage.h"

namespace minicpmo {

// Counts are samples at 16 kHz. Defaults: threshold, padding and silence as OpenAI's Realtime API,
// min_speech and the release threshold as LiveKit's plugin for silero, min_turn_speech as silero's
// own min_speech_duration.
struct EndpointingSettings {
  float threshold = 0.5f;
  float release_threshold = 0.35f;  // above threshold: as threshold
  uint64_t min_speech = 50 * 16;
  uint64_t silence = 500 * 16;
  uint64_t padding = 300 * 16;
  uint64_t max_turn = 60000 * 16;  // 0: no limit
  // A turn with fewer voiced samples was none: it is cancelled.
  uint64_t min_turn_speech = 250 * 16;
  // Voiced samples of a turn before it interrupts; in any case it does so before it ends.
  uint64_t interrupt_after = 0;
  // Silence after which the end is announced as a guess; 0, or `silence` and more: never.
  uint64_t speculative_after = 0;
};

enum class EndReason {
  kSilence,
  kMaxTurn,
  kRequest,  // end_now(), cancel_now(): a button
  kStream,   // finish(): the stream ends
};

struct Decision {
  enum class Kind {
    kInterrupt,       // whatever is being answered should stop; at the latest before an end
    kStart,           // a turn starts
    kSpeculativeEnd,  // it may be over: what follows is kept back until kResume or the end
    kResume,          // it was not
    kEnd,             // it is over
    kCancel,          // instead of kEnd: too little of it was speech
  };
  Kind kind;
  uint64_t at = 0;        // when it was decided: samples heard until then
  uint64_t begin = 0;     // kStart: first sample of the turn
  uint64_t speech = 0;    // kStart: first voiced sample. Otherwise: end of the last voiced one
  float probability = 0;  // of the window that decided it
  EndReason reason = EndReason::kSilence;  // of kEnd and kCancel
};

class Endpointing {
 public:
  static constexpr uint64_t kWindow = VoiceActivity::kWindow;

  // For the next window on.
  void set_settings(const EndpointingSettings& settings) { settings_ = settings; }

  // One probability for each window that was heard; NaN counts as 0.
  std::vector<Decision> step(std::span<const float> probabilities);
  // Starts a turn that is not open, or ends one that is, without regard to what is heard. After the
  // end no turn starts until one window was not voiced.
  std::vector<Decision> start_now();
  std::vector<Decision> end_now();
  // As end_now(), but the turn is cancelled whatever was heard.
  std::vector<Decision> cancel_now();
  // The stream ends here: so does an open turn, and what follows is another stream.
  std::vector<Decision> finish();
  // Samples that were heard and are no whole window.
  void skip(uint64_t samples) { position_ += samples; }

  uint64_t position() const { return position_; }
  bool in_turn() const { return in_turn_; }
  // A turn is open, or speech has begun that may become one.
  bool busy() const { return in_turn_ || run_ > 0; }
  // A speculative end has been announced and neither taken back nor confirmed.
  bool speculative() const { return speculative_; }
  uint64_t last_voiced_end() const { return last_voiced_end_; }
  // Between turns: the first sample that a turn could still begin with.
  uint64_t keep_from() const;

 private:
  using Decisions = std::vector<Decision>;
  void window(float probability, Decisions& out);
  void hear(float probability);
  void start(uint64_t speech, float probability, Decisions& out);
  void interrupt(Decisions& out, float probability);
  void end(EndReason reason, float probability, Decisions& out);
  void close(Decision::Kind kind, EndReason reason, float probability, Decisions& out);
  uint64_t padded(uint64_t position) const;

  EndpointingSettings settings_;
  uint64_t position_ = 0;
  uint64_t floor_ = 0;  // no turn begins before this
  bool voiced_ = false;
  bool blocked_ = false;  // until a window is not voiced
  uint64_t run_ = 0;      // voiced samples in a row, up to position_
  uint64_t last_voiced_end_ = 0;

  bool in_turn_ = false;
  bool speculative_ = false;
  bool interrupted_ = false;
  uint64_t turn_begin_ = 0;
  uint64_t speculative_at_ = 0;
  uint64_t voiced_in_turn_ = 0;
};

}  // namespace minicpmo
