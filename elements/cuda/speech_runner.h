// The speech model on a GPU: prefill of a slice of text, and calls of up to 25 code rows that are
// sampled on the device, a few steps to a graph.
#pragma once

#include <array>
#include <span>

#include "common/stage.h"
#include "cuda/runners.h"

namespace minicpmo::cuda {

struct SpeechRunnerSpec {
  RunnerOptions options;
  DecoderShape shape;
  DecoderWeights weights;  // with the session's cache; head: the four books' below one another
  const bfloat16_bits* text_embedding = nullptr;  // (text_tokens, hidden)
  int text_tokens = 0;
  const bfloat16_bits* code_embedding = nullptr;  // (books, tokens, hidden)
  int tokens = 0;                                 // codes of a book; the last one means end
  const bfloat16_bits* speaker = nullptr;         // (hidden): the input of row 1, whatever its id
  int text_slots = 300, text_slice = 10, codes_per_slice = 50;
  int audio_bos_token = 0;
};

struct SpeechSampling {
  std::array<float, 4> temperature{};  // all 0: greedy
  int top_k = 20, min_keep = 3;
  double top_p = 0.7;
  uint64_t seed = 0, stream = 0, counter = 0;  // as class Philox (engine/sampling.h)
};

struct SpeechCallSpec {
  int position = 0;                // cache row of the first step; text_slots + 2: the audio start
  int text_tokens = 0;             // known so far, without specials
  int steps = 25;                  // 1..kMaxSteps
  int min_steps = 10;              // the end code is barred before
  std::array<uint16_t, 4> last{};  // what the first step reads, unless it is the audio start
  SpeechSampling sampling;
};

class SpeechRunner {
 public:
  static constexpr int kMaxSteps = 64;
  virtual ~SpeechRunner() = default;
  // Zeros in the rows before the audio start.
  virtual Result<void> begin_segment() = 0;
  // Text rows at positions begin, ..., all before the audio start; each sees [0, its own position].
  // ids: host. Waits for an earlier prefill only.
  virtual Result<void> prefill_text(std::span<const int32_t> ids, int begin) = 0;
  // Up to `steps` code rows, whose cache rows must exist. Waits. codes: host, room for steps;
  // returns how many were made, and whether a book drew the end code (its row is not counted).
  // kCancelled within ten steps of the flag; the cache rows from call.position on are then unknown.
  struct Outcome {
    int count = 0;
    bool ended = false;
    uint64_t counter = 0;  // of the random numbers, afterwards
  };
  virtual Result<Outcome> speak(const SpeechCallSpec& call, const CancelFlag& cancel,
                                std::span<std::array<uint16_t, 4>> codes) = 0;
  // Of the last step that was run, float32 (4, tokens), in device memory; for tests.
  virtual const float* logits() = 0;
};

// Library::new_speech_runner.
Result<std::unique_ptr<SpeechRunner>> new_speech_runner(const SpeechRunnerSpec& spec);

}  // namespace minicpmo::cuda
