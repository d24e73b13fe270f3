// The language model's step on a GPU: prefill of many rows, and bursts of tokens that are sampled
// on the device.
#pragma once

#include <span>

#include "cuda/runners.h"

namespace minicpmo::cuda {

struct LanguageRunnerSpec {
  RunnerOptions options;
  DecoderShape shape;
  DecoderWeights weights;                    // with the session's cache
  const bfloat16_bits* embedding = nullptr;  // (vocab, hidden)
  int vocab = 0;
};

// As SamplingSettings and Philox of the stage (llm/language_model.h, engine/sampling.h).
struct TokenSampling {
  float temperature = 0;  // 0: the best token after the penalty
  int top_k = 0;          // 0: off; at most LanguageRunner::kMaxTopK
  double top_p = 1;       // >= 1: off
  float repetition_penalty = 1;
  uint64_t seed = 0, stream = 0, counter = 0;
};

class LanguageRunner {
 public:
  static constexpr int kMaxTopK = 1024;
  static constexpr int kMaxBurst = 3;
  virtual ~LanguageRunner() = default;

  // Rows of input, (rows, hidden) bfloat16, at positions begin, begin + 1, ...: writes the cache.
  // Leaves the states after the final norm of the last `keep` rows in states(), and the logits of
  // the last row in logits() if keep > 0.
  virtual Result<void> prefill(const bfloat16_bits* x, int rows, int begin, int keep) = 0;
  virtual const float* states() const = 0;  // (keep, hidden) of the last prefill
  virtual const float* logits() const = 0;  // (vocab) of the last row or token

  // Draws `count` (1..kMaxBurst) tokens one after the other and reads back their ids. Waits. If
  // `carried` >= 0 that token is read first, at position `begin`; otherwise the first draw is from
  // logits(). The penalty covers `penalised` (host) and the tokens of the burst. Fails with kFailed
  // if the logit of a drawn token is not finite. The caller ignores what comes after a stop token.
  virtual Result<void> burst(int carried, int begin, int count, std::span<const int32_t> penalised,
                             const TokenSampling& sampling, std::span<int32_t> ids) = 0;
};

}  // namespace minicpmo::cuda
