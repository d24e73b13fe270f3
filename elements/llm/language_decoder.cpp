#include "llm/language_decoder.h"

#include <ATen/ops/linear.h>

#include <algorithm>
#include <cmath>
#include <utility>

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
    const StageStream& /*stream*/) {
  return std::unique_ptr<LanguageDecoder>(
      std::make_unique<AtenDecoder>(std::move(weights), capacity));
}

}  // namespace minicpmo
