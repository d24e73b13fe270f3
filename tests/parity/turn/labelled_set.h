// Sounds with known beginnings and ends of speech, for endpointing: recorded questions with pauses
// put into them, silence around them, and noise, coughs, tones and DC over it. The same at every
// run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace minicpmo {

// Mono, 16 kHz.
using Pcm = std::vector<float>;

struct LabelledItem {
  std::string sound;  // what is heard besides clean speech, e.g. "pink 10 dB"
  Pcm pcm;
  bool has_speech = false;
  uint64_t speech_begin = 0, speech_end = 0;  // samples: first and behind the last above the
                                              // label's threshold, 40 dB below the loudest 10 ms
  int longest_pause = 0;  // ms, within the speech
};

class LabelledSet {
 public:
  // sources: clean recordings of speech, one sentence each, with silence around it.
  explicit LabelledSet(std::vector<Pcm> sources) : sources_(std::move(sources)) {}

  static constexpr int kSpeechItems = 288;
  static constexpr int kOtherItems = 64;

  // index < kSpeechItems.
  LabelledItem speech(int index) const;
  // Nobody speaks. index < kOtherItems.
  LabelledItem other(int index) const;

 private:
  std::vector<Pcm> sources_;
};

}  // namespace minicpmo
