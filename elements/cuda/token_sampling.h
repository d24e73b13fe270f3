// Draws tokens of the language model from its logits on the device, by the rules of choose_token
// (llm/language_model.h) and engine/sampling.h: repetition penalty, temperature, top-k, top-p, then
// the inverse of the cumulative distribution in the order of the ids with a Philox number. All
// settings are in device memory, so that a draw can be captured into a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace minicpmo::cuda {

constexpr int kMaxDrawnTokens = 64;

// In device memory; the host sets it before the first draw of a burst and reads it after the last.
struct TokenState {
  int32_t token = 0;       // the latest token drawn: DecodeStep::token_step reads it
  int32_t drawn = 0;       // how many tokens are in `ids`
  int32_t not_finite = 0;  // 1: the logit of a drawn token was not finite; ids are valid even then
  int32_t penalised = 0;   // entries of the list of penalised ids; each draw appends its token
  float penalty = 1;       // 1, or not above 0: off
  float temperature = 0;   // not above 0: the best token, no random number is used
  int32_t top_k = 0;       // not above 0: off. Equals of the k-th best stay
  int32_t unused = 0;
  double top_p = 1;                            // >= 1: off
  uint64_t seed = 0, stream = 0, counter = 0;  // as class Philox
  int32_t ids[kMaxDrawnTokens] = {};           // later draws are counted in `drawn` alone
};

// Owns the buffers between the kernels. Not thread-safe; one per sequence.
class TokenSampler {
 public:
  static constexpr int kMaxVocabulary = 262144;

  TokenSampler() = default;
  ~TokenSampler();
  TokenSampler(const TokenSampler&) = delete;
  TokenSampler& operator=(const TokenSampler&) = delete;

  // Allocates. cudaErrorInvalidValue: `vocabulary` is not in [1, kMaxVocabulary], or
  // `most_penalised` is negative. `overlap`: as DecodeStep::init.
  cudaError_t init(int vocabulary, int most_penalised, bool overlap);

  // Enqueues one draw from logits (vocabulary), which stay as they are. 16-byte aligned.
  // penalised(): the list, in which an id may occur several times and ids outside the vocabulary
  // count for nothing; what does not fit into it is not penalised.
  cudaError_t draw(const float* logits, TokenState* state, cudaStream_t stream);

  int32_t* penalised() { return penalised_; }  // (most_penalised), device
  int most_penalised() const { return most_penalised_; }

 private:
  int vocabulary_ = 0, most_penalised_ = 0;
  bool overlap_ = false;
  void* memory_ = nullptr;
  float *scores_ = nullptr, *maxima_ = nullptr;
  uint64_t* best_ = nullptr;
  int32_t* penalised_ = nullptr;
};

}  // namespace minicpmo::cuda
