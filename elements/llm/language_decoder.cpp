#include "llm/language_decoder.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cuda/language_runner.h"
#include "llm/language_model.h"

namespace minicpmo {
namespace {

constexpr const char* kWhat = "language model";

class AtenDecoder final : public LanguageDecoder {
 public:
  AtenDecoder(std::shared_ptr<const LanguageModelWeights> weights, int64_t capacity)
      : LanguageDecoder(KvCache(weights->config.language, capacity, weights->device),
                        weights->config.language.vocab_size),
        weights_(std::move(weights)) {}

  Result<at::Tensor> read(const at::Tensor& x, int64_t begin, int64_t keep) override {
    at::Tensor hidden = weights_->transformer.forward(x, begin, cache_);
    if (keep > 0) prompt_logits_ = logits_of(hidden);
    return hidden;
  }

 private:
  Result<void> next_logits(std::optional<int32_t> carried, int64_t begin,
                           std::span<float> logits) override {
    at::Tensor raw = prompt_logits_;
    if (carried) {
      const at::Tensor x = weights_->embed_tokens.narrow(0, *carried, 1);
      raw = logits_of(weights_->transformer.forward(x, begin, cache_));
    }
    raw = raw.to(at::kCPU, at::kFloat).contiguous();
    std::copy_n(raw.const_data_ptr<float>(), logits.size(), logits.begin());
    return {};
  }

  at::Tensor logits_of(const at::Tensor& hidden) const {
    return at::linear(hidden.narrow(0, hidden.size(0) - 1, 1), weights_->lm_head);
  }

  std::shared_ptr<const LanguageModelWeights> weights_;
  at::Tensor prompt_logits_;  // (1, vocab)
};

// By the kernels of libminicpmo-cuda.so.
class RunnerDecoder final : public LanguageDecoder {
 public:
  RunnerDecoder(std::shared_ptr<const LanguageModelWeights> weights, int64_t capacity)
      : LanguageDecoder(KvCache(weights->config.language, capacity, weights->device, capacity),
                        weights->config.language.vocab_size),
        weights_(std::move(weights)) {}

  Result<void> init(const StageStream& stream) {
    cuda::LanguageRunnerSpec spec;
    spec.options = stream.runner_options(weights_->device);
    spec.shape = weights_->transformer.decoder_shape();
    spec.weights = weights_->transformer.decoder_weights(cache_);
    spec.weights.head = bits_of(weights_->lm_head);
    spec.weights.head_rows = spec.vocab = static_cast<int>(weights_->lm_head.size(0));
    spec.embedding = bits_of(weights_->embed_tokens);
    ASSIGN_OR_RETURN(runner_, weights_->device.runners->new_language_runner(spec));
    return {};
  }

  Result<at::Tensor> read(const at::Tensor& x, int64_t begin, int64_t keep) override {
    const at::Tensor rows = x.to(at::kBFloat16).contiguous();
    RETURN_IF_ERROR(runner_->prefill(bits_of(rows), static_cast<int>(rows.size(0)),
                                     static_cast<int>(begin), static_cast<int>(keep)));
    if (keep == 0) return at::Tensor();
    return at::for_blob(const_cast<float*>(runner_->states()), {keep, rows.size(1)})
        .options(rows.options().dtype(at::kFloat))
        .target_device(rows.device())
        .make_tensor();
  }

  Result<std::vector<int32_t>> draw(const TokenDraws& draws, const TokenHook& hook, Philox* random,
                                    const CancelFlag& cancel) override {
    const bool fits = draws.count <= cuda::LanguageRunner::kMaxBurst &&
                      draws.penalised.size() <= cuda::LanguageRunner::kMaxPenalised;
    if (hook || !fits) return LanguageDecoder::draw(draws, hook, random, cancel);
    if (draws.count <= 0) return std::vector<int32_t>();
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "cancelled", kWhat};
    const SamplingSettings& s = draws.sampling;
    const cuda::TokenBurst burst{draws.carried,
                                 static_cast<int>(draws.begin),
                                 draws.count,
                                 draws.penalised,
                                 draws.stops,
                                 {static_cast<float>(s.temperature), static_cast<int>(s.top_k),
                                  s.top_p, static_cast<float>(s.repetition_penalty), random->seed(),
                                  random->stream(), random->counter()}};
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, runner_->draw(burst, cancel));
    if (s.temperature > 0) random->set_counter(random->counter() + ids.size());
    return ids;
  }

 private:
  static const cuda::bfloat16_bits* bits_of(const at::Tensor& tensor) {
    return static_cast<const cuda::bfloat16_bits*>(tensor.const_data_ptr());
  }

  Result<void> next_logits(std::optional<int32_t> carried, int64_t begin,
                           std::span<float> logits) override {
    return runner_->next_logits(carried, static_cast<int>(begin), logits);
  }

  std::shared_ptr<const LanguageModelWeights> weights_;
  std::unique_ptr<cuda::LanguageRunner> runner_;
};

// Null if ATen is to do it.
Result<std::unique_ptr<LanguageDecoder>> try_runner(
    const std::shared_ptr<const LanguageModelWeights>& weights, int64_t capacity,
    const StageStream& stream) {
  const StageDevice& device = weights->device;
  if (device.type != at::kBFloat16 || device.runners == nullptr ||
      device.runners->new_language_runner == nullptr) {
    return std::unique_ptr<LanguageDecoder>();
  }
  auto decoder = std::make_unique<RunnerDecoder>(weights, capacity);
  if (const Result<void> ready = decoder->init(stream); !ready.ok()) {
    if (ready.error().code == ErrorCode::kSettings) return std::unique_ptr<LanguageDecoder>();
    return ready.error();
  }
  return std::unique_ptr<LanguageDecoder>(std::move(decoder));
}

}  // namespace

Result<std::vector<int32_t>> LanguageDecoder::draw(const TokenDraws& draws, const TokenHook& hook,
                                                   Philox* random, const CancelFlag& cancel) {
  std::vector<int32_t> penalised(draws.penalised.begin(), draws.penalised.end()), ids;
  std::vector<float> scores(logits_.size());
  std::optional<int32_t> carried = draws.carried;
  int64_t begin = draws.begin;
  while (static_cast<int>(ids.size()) < draws.count) {
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "cancelled", kWhat};
    RETURN_IF_ERROR(next_logits(carried, begin, logits_));
    if (carried) ++begin;
    scores = logits_;
    int32_t id = choose_token(scores, penalised, draws.sampling, random);
    if (hook) id = hook(logits_, id);
    if (id < 0 || id >= static_cast<int32_t>(logits_.size()) || !std::isfinite(logits_[id])) {
      return Error{ErrorCode::kFailed,
                   "language model: the logits are not finite; the weights may be damaged", kWhat};
    }
    ids.push_back(id);
    penalised.push_back(id);
    carried = id;
    if (std::find(draws.stops.begin(), draws.stops.end(), id) != draws.stops.end()) break;
  }
  return ids;
}

Result<std::unique_ptr<LanguageDecoder>> make_language_decoder(
    std::shared_ptr<const LanguageModelWeights> weights, int64_t capacity,
    const StageStream& stream) {
  ASSIGN_OR_RETURN(auto decoder, try_runner(weights, capacity, stream));
  if (decoder) return decoder;
  return std::unique_ptr<LanguageDecoder>(
      std::make_unique<AtenDecoder>(std::move(weights), capacity));
}

}  // namespace minicpmo
