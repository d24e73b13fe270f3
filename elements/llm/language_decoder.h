// The passes of the language model over the KV cache of one session. ATen's run on every device;
// those of the CUDA kernels also draw tokens on the device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/result.h"
#include "common/stage.h"
#include "engine/sampling.h"
#include "engine/stage_device.h"
#include "engine/transformer.h"
#include "llm/token_choice.h"

namespace minicpmo {

struct LanguageModelWeights;

// Sees the raw logits (vocab) of each token and the id chosen; returns the id to go on with (for
// tests that force a reference's tokens).
using TokenHook = std::function<int32_t(std::span<const float> logits, int32_t id)>;

// Tokens to draw one after the other.
struct TokenDraws {
  std::optional<int32_t> carried;      // read first
  int64_t begin = 0;                   // position of the next row
  int count = 0;                       // at most; a stop token ends the burst
  std::span<const int32_t> penalised;  // besides those of the burst
  std::span<const int32_t> stops;
  SamplingSettings sampling;
};

// Functions may throw c10::Error.
class LanguageDecoder {
 public:
  virtual ~LanguageDecoder() = default;

  KvCache& cache() { return cache_; }

  // Reads x (rows, hidden) at positions [begin, begin + rows), and writes those rows of the cache.
  // Returns the states after the final norm of the last `keep` rows or more, valid until the next
  // read. If keep > 0 an answer can be drawn afterwards.
  virtual Result<at::Tensor> read(const at::Tensor& x, int64_t begin, int64_t keep) = 0;

  // Draws tokens; without `carried` the first one follows the last read with keep > 0. Waits.
  // `random` moves on by what was drawn. After an error or cancellation it can be made again.
  virtual Result<std::vector<int32_t>> draw(const TokenDraws& draws, const TokenHook& hook,
                                            Philox* random, const CancelFlag& cancel);

 protected:
  LanguageDecoder(KvCache cache, int64_t vocab) : cache_(std::move(cache)), logits_(vocab) {}

  // The logits of the next token, on the host. `carried` is read first, at position `begin`;
  // without it they are those of the last read with keep > 0.
  virtual Result<void> next_logits(std::optional<int32_t> carried, int64_t begin,
                                   std::span<float> logits) = 0;

  KvCache cache_;  // rows [0, length) are in use

 private:
  std::vector<float> logits_;
};

// By the kernels where device and shapes allow it. Throws c10::Error.
Result<std::unique_ptr<LanguageDecoder>> make_language_decoder(
    std::shared_ptr<const LanguageModelWeights> weights, int64_t capacity,
    const StageStream& stream);

}  // namespace minicpmo
