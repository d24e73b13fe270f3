// Sessions on the small trained checkpoint, loaded once per group of tests.
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/stage_scope.h"
#include "llm/language_model.h"
#include "session_tools.h"

namespace minicpmo {

class LanguageModelTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { weights_ = load_test_model(at::kFloat); }
  static void TearDownTestSuite() { weights_.reset(); }

  static LanguageModelOptions greedy() {
    LanguageModelOptions options;
    options.temperature = 0;
    options.repetition_penalty = 1;
    return options;
  }
  static LanguageModelOptions lively(uint64_t seed) {
    LanguageModelOptions options;
    options.temperature = 20;  // the small model is very sure of itself
    options.top_p = 1;
    options.top_k = 0;
    options.repetition_penalty = 1;
    options.max_new_tokens = 12;
    options.seed = seed;
    return options;
  }
  std::unique_ptr<LanguageSession> session(const LanguageModelOptions& options = greedy()) {
    auto made = std::make_unique<LanguageSession>(weights_, options);
    EXPECT_TRUE(made->prime(CancelFlag()).ok());
    return made;
  }
  int32_t letter(char c) const { return weights_->tokenizer->encode(std::string(1, c)).at(0); }

  // What a model that reads all of fed() at once says next. No audio in fed().
  std::vector<float> logits_from_scratch(const std::vector<int32_t>& fed) const {
    StageScope scope;
    at::Tensor x =
        at::Tensor(weights_->embed_tokens)
            .new_empty({static_cast<int64_t>(fed.size()), weights_->embed_tokens.size(1)});
    for (size_t i = 0; i < fed.size(); ++i)
      x.select(0, static_cast<int64_t>(i)).copy_(weights_->embed_tokens.select(0, fed[i]));
    KvCache cache(weights_->config.language, x.size(0), weights_->device);
    const at::Tensor h = weights_->transformer.forward(x, 0, cache);
    const at::Tensor out = weights_->lm_head.matmul(h.select(0, h.size(0) - 1));
    const float* data = out.const_data_ptr<float>();
    return {data, data + out.numel()};
  }

  CancelFlag go_;
  static inline std::shared_ptr<const LanguageModelWeights> weights_;
};

}  // namespace minicpmo
