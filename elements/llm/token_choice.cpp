#include "llm/token_choice.h"

namespace minicpmo {

SamplingSettings resolve_sampling(const LanguageModelOptions& options,
                                  const GenerationDefaults& defaults) {
  const double temperature = defaults.do_sample ? defaults.temperature : 0.0;
  return {options.temperature < 0 ? temperature : options.temperature,
          options.top_p < 0 ? defaults.top_p : options.top_p,
          options.repetition_penalty < 0 ? defaults.repetition_penalty : options.repetition_penalty,
          options.top_k < 0 ? defaults.top_k : options.top_k};
}

int32_t choose_token(std::span<float> logits, std::span<const int32_t> penalised,
                     const SamplingSettings& settings, Philox* random) {
  if (settings.repetition_penalty > 0 && settings.repetition_penalty != 1)
    apply_repetition_penalty(logits, penalised, settings.repetition_penalty);
  const int32_t best = argmax(logits);
  if (settings.temperature <= 0) return best;
  // Counted from the best one, a very low temperature cannot overflow; the softmax is the same.
  const float top = logits[static_cast<size_t>(best)];
  const auto temperature = static_cast<float>(settings.temperature);
  for (float& logit : logits) logit = logit == top ? 0 : (logit - top) / temperature;
  if (settings.top_k > 0) apply_top_k(logits, settings.top_k);
  if (settings.top_p < 1) apply_top_p(logits, settings.top_p);
  return sample(logits, random->uniform());
}

}  // namespace minicpmo
