// How a token is chosen from logits: the settings, and the choice on the host.
#pragma once

#include <cstdint>
#include <span>

#include "common/stage.h"
#include "engine/config.h"
#include "engine/sampling.h"

namespace minicpmo {

// LanguageModelOptions with the defaults of the checkpoint filled in.
struct SamplingSettings {
  double temperature, top_p, repetition_penalty;
  int64_t top_k;
};
SamplingSettings resolve_sampling(const LanguageModelOptions& options,
                                  const GenerationDefaults& defaults);

// One token from logits (changed on the way): repetition penalty over `penalised`, temperature,
// top-k, top-p, softmax, draw; temperature 0 takes the best after the penalty.
int32_t choose_token(std::span<float> logits, std::span<const int32_t> penalised,
                     const SamplingSettings& settings, Philox* random);

}  // namespace minicpmo
