// The speech model on a GPU: prefill of a slice of text, and a call of up to 25 code rows as one
// graph, sampled on the device.
#pragma once

#include <array>
#include <span>

#include "cuda/runners.h"

namespace minicpmo::cuda {

struct SpeechRunnerSpec {
  RunnerOptions options;
  DecoderShape shape;
  DecoderWeights weights;  // with the session's cache; head: the four books' below one another
  const bfloat16_bits* text_embedding = nullptr;  // (text_tokens, hidden)
  const bfloat16_bits* code_embedding = nullptr;  // (books, tokens, hidden)
  int tokens = 0;                                 // codes of a book; the last one means end
  int text_slots = 300, text_slice = 10, codes_per_slice = 50;
  int audio_bos_token = 0;
};

struct SpeechSampling {
  float temperature[4] = {};  // all 0: greedy
  int top_k = 20, min_keep = 3;
  double top_p = 0.7;
  uint64_t seed = 0, stream = 0, counter = 0;  // as class Philox (engine/sampling.h)
};

struct SpeechCallSpec {
  int position = 0;     // cache row of the first step; text_slots + 2: the audio start
  int text_tokens = 0;  // known so far, without specials
  int steps = 25;
  int min_steps = 10;             // the end code is barred before
  std::array<int32_t, 4> last{};  // what the first step reads, unless it is the audio start
  SpeechSampling sampling;
};

class SpeechRunner {
 public:
  virtual ~SpeechRunner() = default;
  // Text rows at positions begin, ...; each sees [0, its own position]. speaker: (hidden) float32,
  // takes the place of row 1 if begin == 0. ids: host.
  virtual Result<void> prefill_text(std::span<const int32_t> ids, int begin,
                                    const float* speaker) = 0;
  // Up to `steps` code rows. Waits. codes: host, room for steps; returns how many were made, and
  // whether a book drew the end code (its row is not counted).
  struct Outcome {
    int count = 0;
    bool ended = false;
    uint64_t counter = 0;  // of the random numbers, afterwards
  };
  virtual Result<Outcome> speak(const SpeechCallSpec& call,
                                std::span<std::array<uint16_t, 4>> codes) = 0;
};

}  // namespace minicpmo::cuda
