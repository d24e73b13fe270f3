#include "engine/transformer.h"

#define AT_PER_OPERATOR_HEADERS  // TensorOperators.h would include every operator of torch
                                 // otherwise
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/cpu_kernels.h"

namespace minicpmo {
namespace {

// Rows of queries per block of attention: bounds the memory for scores of a long text.
constexpr int64_t kBlock = 256;

// x / sqrt(mean(x^2) + eps) in float32, rounded, then times the weight (Zhang, Sennrich 2019; as
// LlamaRMSNorm).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::mean(wide * wide, -1, true).add_(eps).rsqrt_();
  return (wide * scale).to(x.scalar_type()).mul_(weight);
}

// Rotary position embedding, half-split (Su et al. 2021, as in GPT-NeoX): x is (rows, heads,
// head_dim), float32 inside.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const at::Tensor wide = x.to(at::kFloat);
  const int64_t half = x.size(-1) / 2;
  const at::Tensor a = wide.narrow(-1, 0, half), b = wide.narrow(-1, half, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1).to(x.scalar_type());
}

// Row i of a block that starts at position `begin` sees keys [0, begin + i].
at::Tensor causal_mask(int64_t begin, int64_t rows, const StageDevice& device) {
  const float hidden = -std::numeric_limits<float>::infinity();
  return at::full({rows, begin + rows}, hidden, device.options()).triu_(begin + 1);
}

// q: (rows, heads, d); keys, values: (kv_heads, n, d). Query heads of a group lie side by side, so
// that a group is one matrix and no key is copied. Returns (rows, heads * d).
at::Tensor attend(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                  const std::optional<at::Tensor>& mask) {
  const int64_t rows = q.size(0), heads = q.size(1), d = q.size(2);
  const int64_t kv_heads = keys.size(0), group = heads / kv_heads, n = keys.size(1);
  const at::Tensor scaled = q * (1.0 / std::sqrt(static_cast<double>(d)));
  const at::Tensor grouped = scaled.transpose(0, 1).reshape({kv_heads, group * rows, d});
  at::Tensor scores = at::bmm(grouped, keys.transpose(1, 2));
  if (mask) scores.view({kv_heads, group, rows, n}).add_(*mask);
  const at::Tensor weights = at::softmax(scores, -1);
  const at::Tensor out = at::bmm(weights, values);
  return out.view({heads, rows, d}).transpose(0, 1).reshape({rows, heads * d});
}

// attend() for one row of float32 queries; reads the whole cache tensors.
at::Tensor attend_row(const at::Tensor& qkv, const at::Tensor& keys, const at::Tensor& values,
                      int64_t n, const cpu::HeadLayout& layout,
                      const std::optional<at::Tensor>& mask) {
  at::Tensor addends;
  if (mask) addends = mask->to(at::kFloat).contiguous();
  at::Tensor scores = at::empty({layout.heads, n});
  at::Tensor out = at::empty({1, layout.heads * layout.head_dim});
  const float* const mask_data = mask ? addends.const_data_ptr<float>() : nullptr;
  float* const score_data = scores.mutable_data_ptr<float>();
  float* const out_data = out.mutable_data_ptr<float>();
  // Below this many products other threads cost more than they save.
  constexpr int64_t kWorthwhile = 1 << 18;
  const int64_t work = layout.heads / layout.kv_heads * n * layout.head_dim;
  at::parallel_for(0, layout.kv_heads, std::max<int64_t>(1, kWorthwhile / work),
                   [&](int64_t first, int64_t last) {
                     cpu::attend(qkv.const_data_ptr<float>(), keys.const_data_ptr<float>(),
                                 values.const_data_ptr<float>(), mask_data, layout, n, first, last,
                                 score_data, out_data);
                   });
  return out;
}

void check_mask(const std::optional<at::Tensor>& mask, int64_t rows, int64_t end) {
  if (!mask) return;
  TORCH_CHECK(
      mask->dim() == 2 && (mask->size(0) == 1 || mask->size(0) == rows) && mask->size(1) == end,
      "the mask is ", mask->sizes(), ", not (1 or ", rows, ", ", end, ")");
}

}  // namespace

KvCache::KvCache(const DecoderConfig& config, int64_t capacity, const StageDevice& device,
                 int64_t zero_rows)
    : capacity_(capacity) {
  TORCH_CHECK(capacity > 0 && zero_rows >= 0 && zero_rows <= capacity, "KvCache: bad capacity ",
              capacity, " or zero rows ", zero_rows);
  const int64_t head_dim = config.hidden_size / config.heads;
  // The runners' kernels read whole blocks of rows, and a NaN times a weight of 0 is a NaN.
  const int64_t zeros = device.is_cuda() || device.runners != nullptr ? capacity : zero_rows;
  for (int64_t i = 0; i < config.layers; ++i) {
    for (auto* side : {&keys_, &values_}) {
      side->push_back(at::empty({config.kv_heads, capacity, head_dim}, device.options()));
      side->back().narrow(1, 0, zeros).zero_();
    }
  }
}

void KvCache::set_length(int64_t length) {
  TORCH_CHECK(length >= 0 && length <= capacity_, "KvCache: length ", length, " does not fit into ",
              capacity_);
  length_ = length;
}

Result<Transformer> Transformer::load(const Checkpoint& checkpoint, const std::string& prefix,
                                      const DecoderConfig& config, const StageDevice& device) {
  const int64_t width = config.hidden_size, ffn = config.intermediate_size;
  const int64_t kv_width = width / config.heads * config.kv_heads;
  const int64_t layers = checkpoint.count(prefix + "layers.", ".input_layernorm.weight");
  if (layers != config.layers) {
    return Error{ErrorCode::kCorrupt, checkpoint.location() + ": " + prefix + "layers holds " +
                                          std::to_string(layers) + " layers, config.json says " +
                                          std::to_string(config.layers)};
  }
  Transformer model;
  model.config_ = config;
  model.device_ = device;
  for (int64_t i = 0; i < layers; ++i) {
    const std::string base = prefix + "layers." + std::to_string(i) + ".";
    const auto load = [&](const std::string& name, const std::vector<int64_t>& shape) {
      return checkpoint.load(base + name, shape, device);
    };
    Layer layer;
    ASSIGN_OR_RETURN(layer.input_norm, load("input_layernorm.weight", {width}));
    ASSIGN_OR_RETURN(const auto q, load("self_attn.q_proj.weight", {width, width}));
    ASSIGN_OR_RETURN(const auto k, load("self_attn.k_proj.weight", {kv_width, width}));
    ASSIGN_OR_RETURN(const auto v, load("self_attn.v_proj.weight", {kv_width, width}));
    layer.qkv_weight = at::cat({q, k, v});
    if (config.qkv_bias) {
      ASSIGN_OR_RETURN(const auto q_bias, load("self_attn.q_proj.bias", {width}));
      ASSIGN_OR_RETURN(const auto k_bias, load("self_attn.k_proj.bias", {kv_width}));
      ASSIGN_OR_RETURN(const auto v_bias, load("self_attn.v_proj.bias", {kv_width}));
      layer.qkv_bias = at::cat({q_bias, k_bias, v_bias});
    }
    ASSIGN_OR_RETURN(layer.o_weight, load("self_attn.o_proj.weight", {width, width}));
    ASSIGN_OR_RETURN(layer.post_norm, load("post_attention_layernorm.weight", {width}));
    ASSIGN_OR_RETURN(const auto gate, load("mlp.gate_proj.weight", {ffn, width}));
    ASSIGN_OR_RETURN(const auto up, load("mlp.up_proj.weight", {ffn, width}));
    layer.gate_up_weight = at::cat({gate, up});
    ASSIGN_OR_RETURN(layer.down_weight, load("mlp.down_proj.weight", {width, ffn}));
    model.layers_.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(model.norm_, checkpoint.load(prefix + "norm.weight", {width}, device));
  const int64_t head_dim = width / config.heads;
  const at::Tensor exponents =
      at::arange(0, head_dim, 2, at::kFloat) / static_cast<double>(head_dim);
  const at::Tensor frequencies = at::pow(config.rope_theta, exponents).reciprocal_();
  const at::Tensor angles = at::outer(at::arange(config.max_positions, at::kFloat), frequencies);
  model.rope_cos_ = angles.cos().to(device.device);
  model.rope_sin_ = angles.sin().to(device.device);
  return model;
}

at::Tensor Transformer::forward(const at::Tensor& x, int64_t begin, KvCache& cache,
                                const std::optional<at::Tensor>& mask) const {
  const int64_t rows = x.size(0), end = begin + rows;
  TORCH_CHECK(begin >= 0 && end <= cache.capacity(), "positions ", begin, "..", end,
              " do not fit into a cache of ", cache.capacity());
  TORCH_CHECK(end <= config_.max_positions, "positions ", begin, "..", end, " exceed the model's ",
              config_.max_positions);
  check_mask(mask, rows, end);
  if (device_.type == at::kFloat && !device_.is_cuda()) {
    at::Tensor h = x.to(at::kFloat).contiguous();
    for (int64_t i = 0; i < config_.layers; ++i) h = run_layer_float(i, h, begin, cache, mask);
    at::Tensor y = at::empty_like(h);
    cpu::rms_norm(h.const_data_ptr<float>(), norm_.const_data_ptr<float>(),
                  y.mutable_data_ptr<float>(), rows, config_.hidden_size,
                  static_cast<float>(config_.rms_norm_eps));
    return y;
  }
  const at::Tensor cos = rope_cos_.narrow(0, begin, rows).unsqueeze(1);
  const at::Tensor sin = rope_sin_.narrow(0, begin, rows).unsqueeze(1);
  at::Tensor h = x.to(device_.device, device_.type);
  for (int64_t i = 0; i < config_.layers; ++i) h = run_layer(i, h, begin, cos, sin, cache, mask);
  return rms_norm(h, norm_, config_.rms_norm_eps);
}

// run_layer on float32, with the steps between the matrix products in one pass each.
at::Tensor Transformer::run_layer_float(int64_t index, const at::Tensor& x, int64_t begin,
                                        KvCache& cache,
                                        const std::optional<at::Tensor>& mask) const {
  const Layer& layer = layers_[index];
  const int64_t rows = x.size(0), width = config_.hidden_size, ffn = config_.intermediate_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const cpu::HeadLayout layout{config_.heads, config_.kv_heads, width / config_.heads,
                               cache.capacity()};
  at::Tensor normed = at::empty({rows, width});
  cpu::rms_norm(x.const_data_ptr<float>(), layer.input_norm.const_data_ptr<float>(),
                normed.mutable_data_ptr<float>(), rows, width, eps);
  const std::optional<at::Tensor> bias =
      layer.qkv_bias.defined() ? std::optional(layer.qkv_bias) : std::nullopt;
  at::Tensor qkv = at::linear(normed, layer.qkv_weight, bias);
  const at::Tensor keys = cache.keys(index), values = cache.values(index);
  const int64_t half = layout.head_dim / 2;
  for (int64_t r = 0; r < rows; ++r) {
    cpu::rotate_and_store(qkv.mutable_data_ptr<float>() + r * qkv.size(1),
                          rope_cos_.const_data_ptr<float>() + (begin + r) * half,
                          rope_sin_.const_data_ptr<float>() + (begin + r) * half, layout, begin + r,
                          keys.mutable_data_ptr<float>(), values.mutable_data_ptr<float>());
  }
  const at::Tensor attended =
      rows == 1 ? attend_row(qkv, keys, values, begin + 1, layout, mask)
                : attend_blocks(qkv.narrow(1, 0, width).view({rows, layout.heads, layout.head_dim}),
                                keys.narrow(1, 0, begin + rows), values.narrow(1, 0, begin + rows),
                                begin, mask);
  at::Tensor h = at::linear(attended, layer.o_weight);
  cpu::add(h.mutable_data_ptr<float>(), x.const_data_ptr<float>(), rows * width);
  cpu::rms_norm(h.const_data_ptr<float>(), layer.post_norm.const_data_ptr<float>(),
                normed.mutable_data_ptr<float>(), rows, width, eps);
  const at::Tensor gate_up = at::linear(normed, layer.gate_up_weight);
  at::Tensor inner = at::empty({rows, ffn});
  cpu::silu_times(gate_up.const_data_ptr<float>(), inner.mutable_data_ptr<float>(), rows, ffn);
  const at::Tensor down = at::linear(inner, layer.down_weight);
  cpu::add(h.mutable_data_ptr<float>(), down.const_data_ptr<float>(), rows * width);
  return h;
}

at::Tensor Transformer::run_layer(int64_t index, const at::Tensor& x, int64_t begin,
                                  const at::Tensor& cos, const at::Tensor& sin, KvCache& cache,
                                  const std::optional<at::Tensor>& mask) const {
  const Layer& layer = layers_[index];
  const int64_t rows = x.size(0), end = begin + rows;
  const int64_t heads = config_.heads, kv_heads = config_.kv_heads;
  const int64_t head_dim = config_.hidden_size / heads;
  const std::optional<at::Tensor> bias =
      layer.qkv_bias.defined() ? std::optional(layer.qkv_bias) : std::nullopt;
  const at::Tensor qkv =
      at::linear(rms_norm(x, layer.input_norm, config_.rms_norm_eps), layer.qkv_weight, bias)
          .view({rows, heads + 2 * kv_heads, head_dim});
  const at::Tensor qk = rotate(qkv.narrow(1, 0, heads + kv_heads), cos, sin);
  cache.keys(index).narrow(1, begin, rows).copy_(qk.narrow(1, heads, kv_heads).transpose(0, 1));
  cache.values(index)
      .narrow(1, begin, rows)
      .copy_(qkv.narrow(1, heads + kv_heads, kv_heads).transpose(0, 1));
  const at::Tensor attended =
      attend_blocks(qk.narrow(1, 0, heads), cache.keys(index).narrow(1, 0, end),
                    cache.values(index).narrow(1, 0, end), begin, mask);
  at::Tensor h = x + at::linear(attended, layer.o_weight);
  const at::Tensor gate_up =
      at::linear(rms_norm(h, layer.post_norm, config_.rms_norm_eps), layer.gate_up_weight);
  const int64_t ffn = config_.intermediate_size;
  at::Tensor inner = at::silu(gate_up.narrow(-1, 0, ffn)).mul_(gate_up.narrow(-1, ffn, ffn));
  return h.add_(at::linear(inner, layer.down_weight));
}

cuda::DecoderShape Transformer::decoder_shape() const {
  cuda::DecoderShape shape;
  shape.hidden = static_cast<int>(config_.hidden_size);
  shape.layers = static_cast<int>(config_.layers);
  shape.heads = static_cast<int>(config_.heads);
  shape.kv_heads = static_cast<int>(config_.kv_heads);
  shape.head_dim = static_cast<int>(config_.hidden_size / config_.heads);
  shape.ffn = static_cast<int>(config_.intermediate_size);
  shape.norm_eps = static_cast<float>(config_.rms_norm_eps);
  return shape;
}

cuda::DecoderWeights Transformer::decoder_weights(const KvCache& cache) const {
  TORCH_CHECK(cache.capacity() <= config_.max_positions, "a runner's cache has at most ",
              config_.max_positions, " rows");
  cuda::DecoderWeights weights;
  for (int64_t i = 0; i < config_.layers; ++i) {
    const Layer& layer = layers_[i];
    cuda::LayerWeights& to = weights.layers.emplace_back();
    to.input_norm = bfloat16_data(layer.input_norm);
    to.qkv = bfloat16_data(layer.qkv_weight);
    to.qkv_bias = layer.qkv_bias.defined() ? bfloat16_data(layer.qkv_bias) : nullptr;
    to.o = bfloat16_data(layer.o_weight);
    to.post_norm = bfloat16_data(layer.post_norm);
    to.gate_up = bfloat16_data(layer.gate_up_weight);
    to.down = bfloat16_data(layer.down_weight);
    to.keys = bfloat16_data(cache.keys(i));
    to.values = bfloat16_data(cache.values(i));
  }
  weights.final_norm = bfloat16_data(norm_);
  weights.rope_cos = rope_cos_.const_data_ptr<float>();
  weights.rope_sin = rope_sin_.const_data_ptr<float>();
  weights.capacity = static_cast<int>(cache.capacity());
  return weights;
}

at::Tensor Transformer::attend_blocks(const at::Tensor& q, const at::Tensor& keys,
                                      const at::Tensor& values, int64_t begin,
                                      const std::optional<at::Tensor>& mask) const {
  const int64_t rows = q.size(0);
  if (mask && rows <= kBlock)
    return attend(q, keys, values, mask->to(device_.device, device_.type));
  if (rows == 1) return attend(q, keys, values, std::nullopt);
  std::vector<at::Tensor> blocks;
  for (int64_t at = 0; at < rows; at += kBlock) {
    const int64_t n = std::min(kBlock, rows - at);
    const at::Tensor part = q.narrow(0, at, n);
    if (mask) {
      const at::Tensor block = mask->size(0) == 1 ? *mask : mask->narrow(0, at, n);
      blocks.push_back(attend(part, keys, values, block.to(device_.device, device_.type)));
    } else {  // later keys are hidden from the whole block: leave them out
      const int64_t seen = begin + at + n;
      blocks.push_back(attend(part, keys.narrow(1, 0, seen), values.narrow(1, 0, seen),
                              causal_mask(begin + at, n, device_)));
    }
  }
  return blocks.size() == 1 ? blocks[0] : at::cat(blocks);
}

}  // namespace minicpmo
