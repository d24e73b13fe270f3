// The language model's step on a GPU: prefill of many rows, and tokens that are sampled on the
// device.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/stage.h"
#include "cuda/runners.h"

namespace minicpmo::cuda {

struct LanguageRunnerSpec {
  RunnerOptions options;
  DecoderShape shape;
  // With the session's cache, all of it initialised: a row that no token was written to must hold
  // finite values.
  DecoderWeights weights;
  const bfloat16_bits* embedding = nullptr;  // (vocab, hidden)
  int vocab = 0;
};

// As SamplingSettings and Philox of the stage (llm/language_model.h, engine/sampling.h).
struct TokenSampling {
  float temperature = 0;  // 0: the best token after the penalty
  int top_k = 0;          // 0: off
  double top_p = 1;       // >= 1: off
  float repetition_penalty = 1;
  uint64_t seed = 0, stream = 0, counter = 0;
};

// Tokens drawn one after the other.
struct TokenBurst {
  std::optional<int32_t>
      carried;    // read first; without it the first draw is from the prefill's logits
  int begin = 0;  // position of the next row
  int count = 1;  // 1..LanguageRunner::kMaxBurst
  std::span<const int32_t> penalised;  // besides the burst's own tokens; at most kMaxPenalised
  std::span<const int32_t> stops;      // a burst ends with one of these
  TokenSampling sampling;
};

class LanguageRunner {
 public:
  static constexpr int kMaxBurst = 3;
  static constexpr size_t kMaxPenalised = 1024;
  static constexpr int kMaxRows = 512;  // of one prefill
  virtual ~LanguageRunner() = default;

  // Rows of input, (rows <= kMaxRows, hidden) bfloat16, at positions begin, begin + 1, ...: writes
  // the cache. Leaves the states after the final norm of the last `keep` rows in states(), and the
  // logits of the last row for the next draw if keep > 0.
  virtual Result<void> prefill(const bfloat16_bits* x, int rows, int begin, int keep) = 0;
  virtual const float* states() const = 0;  // (keep, hidden) of the last prefill with keep > 0

  // Copies the logits of the next token to the host, (vocab). Waits. Reads `carried` first, at
  // position `begin`; without it they are those of the last prefill with keep > 0.
  virtual Result<void> next_logits(std::optional<int32_t> carried, int begin,
                                   std::span<float> logits) = 0;

  // Draws burst.count tokens, fewer if a stop token comes. Waits. Fails with kFailed if the logit
  // of a drawn token is not finite, and with kCancelled after the token at which `cancel` was seen;
  // either way it can be made again.
  virtual Result<std::vector<int32_t>> draw(const TokenBurst& burst, const CancelFlag& cancel) = 0;
};

Result<std::unique_ptr<LanguageRunner>> new_language_runner(const LanguageRunnerSpec& spec);

}  // namespace minicpmo::cuda
