// What tests of language model sessions share: the small checkpoint, made-up embeddings, forced
// answers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/checkpoint.h"
#include "engine/config.h"
#include "llm/language_model.h"

namespace minicpmo {

struct TestModel {
  std::shared_ptr<Checkpoint> checkpoint;
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
};

inline TestModel open_test_model() {
  auto checkpoint = Checkpoint::open(MODEL_DIR);
  auto config = read_config(MODEL_DIR);
  auto tokenizer = load_bpe_tokenizer(MODEL_DIR "/tokenizer.json");
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_TRUE(config.ok()) << config.error().message;
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return {*checkpoint, *config, *tokenizer};
}

inline std::shared_ptr<const LanguageModelWeights> load_test_model(at::ScalarType type) {
  const TestModel parts = open_test_model();
  auto weights = load_language_model(*parts.checkpoint, parts.config, parts.tokenizer, type,
                                     nullptr, CancelFlag());
  EXPECT_TRUE(weights.ok()) << weights.error().message;
  return weights.ok() ? *weights : nullptr;
}

// Reproducible noise; `last` replaces the last value if it is not 0.
inline TensorPtr embeddings(int64_t rows, int64_t columns, float last = 0) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  uint32_t state = 12345;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
  }
  if (last != 0) values.back() = last;
  std::vector<std::byte> bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return std::make_shared<HostTensor>(DataType::kFloat32, std::vector<int64_t>{rows, columns},
                                      std::move(bytes));
}

inline TensorPtr rows_of(const Tensor& tensor, int64_t first, int64_t rows) {
  const auto bytes = tensor.host_bytes().value();
  const size_t row = tensor.byte_size() / static_cast<size_t>(tensor.rows());
  const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(row * static_cast<size_t>(first));
  return std::make_shared<HostTensor>(
      tensor.type(), std::vector<int64_t>{rows, tensor.dims()[1]},
      std::vector<std::byte>(begin,
                             begin + static_cast<std::ptrdiff_t>(row * static_cast<size_t>(rows))));
}

struct Said {
  std::string text;
  std::vector<std::string> bursts;
  std::vector<int32_t> ids;
  FinishReason finish = FinishReason::kNone;
};

inline void collect(LanguageModel& session, Said* said) {
  while (said->finish == FinishReason::kNone && said->ids.size() < 10000) {
    const auto burst = session.next_burst(CancelFlag());
    ASSERT_TRUE(burst.ok()) << burst.error().message;
    said->text += burst->text;
    said->bursts.push_back(burst->text);
    said->ids.insert(said->ids.end(), burst->ids.begin(), burst->ids.end());
    said->finish = burst->finish;
  }
}

inline Said answer(LanguageModel& session) {
  Said said;
  const auto started = session.start_answer(CancelFlag());
  EXPECT_TRUE(started.ok()) << started.error().message;
  if (started.ok()) collect(session, &said);
  return said;
}

// The session says `ids`, whatever the model thinks.
inline void force(LanguageSession& session, std::vector<int32_t> ids) {
  auto next = std::make_shared<size_t>(0);
  session.set_token_hook([ids = std::move(ids), next](std::span<const float>, int32_t id) {
    return *next < ids.size() ? ids[(*next)++] : id;
  });
}

// max|a - b| / max|b|
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || b.empty()) return HUGE_VAL;
  double worst = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - b[i]));
    scale = std::max(scale, std::fabs(static_cast<double>(b[i])));
  }
  return worst / scale;
}

}  // namespace minicpmo
