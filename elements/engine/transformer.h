// The decoder-only transformer that the language model (Qwen2) and the speech model (Llama) share:
// RMSNorm, rotary attention with grouped key/value heads over a static KV cache, SiLU MLP.
// model-spec 3, 4.1.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "cuda/decoder_types.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/stage_device.h"

namespace minicpmo {

// Keys and values of every layer, preallocated: (kv_heads, capacity, head_dim) each. Rows [0,
// length) are in use.
class KvCache {
 public:
  // Rows beyond `zero_rows` are uninitialised until written; on a GPU or with runners all are 0.
  // Throws c10::Error.
  KvCache(const DecoderConfig& config, int64_t capacity, const StageDevice& device,
          int64_t zero_rows = 0);
  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  // Drops rows from the end, or (for the speech model's zero rows) declares rows in use.
  void set_length(int64_t length);
  at::Tensor keys(int64_t layer) const { return keys_[layer]; }
  at::Tensor values(int64_t layer) const { return values_[layer]; }

 private:
  int64_t capacity_;
  int64_t length_ = 0;
  std::vector<at::Tensor> keys_, values_;
};

class Transformer {
 public:
  // prefix: "llm.model." or "tts.model.". Shapes are checked against `config`.
  static Result<Transformer> load(const Checkpoint& checkpoint, const std::string& prefix,
                                  const DecoderConfig& config, const StageDevice& device);

  // Runs x (rows, hidden) at positions [begin, begin + rows): writes those rows of the cache, and
  // attends to rows [0, begin + rows). Causal unless `mask` is given: additive, (1 or rows, begin +
  // rows), broadcast over heads. Returns the states after the final norm, (rows, hidden). Does not
  // change cache.length(). Throws c10::Error.
  at::Tensor forward(const at::Tensor& x, int64_t begin, KvCache& cache,
                     const std::optional<at::Tensor>& mask = std::nullopt) const;

  const DecoderConfig& config() const { return config_; }
  at::ScalarType type() const { return device_.type; }
  const StageDevice& device() const { return device_; }

  // For a runner, bfloat16 only (throws c10::Error otherwise). The pointers are valid as
  // long as this object and the cache. The caller adds the output head.
  cuda::DecoderShape decoder_shape() const;
  cuda::DecoderWeights decoder_weights(const KvCache& cache) const;

 private:
  struct Layer {
    at::Tensor input_norm, qkv_weight, qkv_bias, o_weight, post_norm, gate_up_weight, down_weight;
  };
  at::Tensor run_layer_float(int64_t index, const at::Tensor& x, int64_t begin, KvCache& cache,
                             const std::optional<at::Tensor>& mask) const;
  at::Tensor run_layer(int64_t index, const at::Tensor& x, int64_t begin, const at::Tensor& cos,
                       const at::Tensor& sin, KvCache& cache,
                       const std::optional<at::Tensor>& mask) const;
  at::Tensor attend_blocks(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                           int64_t begin, const std::optional<at::Tensor>& mask) const;

  DecoderConfig config_;
  StageDevice device_;
  std::vector<Layer> layers_;
  at::Tensor norm_;
  at::Tensor rope_cos_, rope_sin_;  // (max_positions, head_dim / 2), float32
};

}  // namespace minicpmo
