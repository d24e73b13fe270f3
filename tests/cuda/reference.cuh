// Two plain references of one decode step: float64 on the host, and float32 on the device with one
// simple kernel for each operation.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "random_model.cuh"

namespace minicpmo::cuda::test {

using Doubles = std::vector<double>;

inline void parallel(int count, const std::function<void(int)>& body) {
  const int threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      for (int i = t; i < count; i += threads) body(i);
    });
  }
  for (auto& thread : pool) thread.join();
}

inline Doubles product(const std::vector<uint16_t>& w, const Doubles& x) {
  Doubles y(w.size() / x.size());
  parallel(static_cast<int>(y.size()), [&](int r) {
    const uint16_t* const row = w.data() + r * x.size();
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(wide(row[i])) * x[i];
    y[r] = sum;
  });
  return y;
}

inline Doubles rms_norm(const Doubles& x, const std::vector<uint16_t>& weight, double eps) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  Doubles y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * wide(weight[i]);
  return y;
}

inline bool visible(const DecodeState& s, int row) {
  return row < s.visible_front || row >= s.visible_from;
}

struct HostReference {
  const RandomModel& model;

  Doubles qkv(int layer, const Doubles& x) const {
    const auto& w = model.weights.layers[layer];
    const int hidden = model.shape.hidden;
    const int rows = (model.shape.heads + 2 * model.shape.kv_heads) * model.shape.head_dim;
    Doubles y = product(to_host(w.qkv, static_cast<size_t>(rows) * hidden),
                        rms_norm(x, to_host(w.input_norm, hidden), model.shape.norm_eps));
    if (w.qkv_bias != nullptr) {
      const auto bias = to_host(w.qkv_bias, rows);
      for (int i = 0; i < rows; ++i) y[i] += wide(bias[i]);
    }
    return y;
  }

  Doubles rotated(const double* x, int position) const {
    const int half = model.shape.head_dim / 2;
    Doubles y(2 * half);
    for (int d = 0; d < half; ++d) {
      const double c = model.cos[static_cast<size_t>(position) * half + d];
      const double s = model.sin[static_cast<size_t>(position) * half + d];
      y[d] = x[d] * c - x[d + half] * s;
      y[d + half] = x[d + half] * c + x[d] * s;
    }
    return y;
  }

  // keys, values: the layer's cache before the step; the new row is written into them.
  Doubles attend(const Doubles& qkv, const DecodeState& state, std::vector<uint16_t>& keys,
                 std::vector<uint16_t>& values) const {
    const auto& shape = model.shape;
    const int dim = shape.head_dim, group = shape.heads / shape.kv_heads, p = state.position;
    Doubles out(shape.heads * dim);
    for (int h = 0; h < shape.kv_heads; ++h) {
      const double* const k = qkv.data() + (shape.heads + h) * dim;
      const double* const v = k + shape.kv_heads * dim;
      const Doubles key = rotated(k, p);
      const size_t base = static_cast<size_t>(h) * model.weights.capacity * dim;
      for (int d = 0; d < dim; ++d) {
        keys[base + static_cast<size_t>(p) * dim + d] = rounded(static_cast<float>(key[d]));
        values[base + static_cast<size_t>(p) * dim + d] = rounded(static_cast<float>(v[d]));
      }
    }
    parallel(shape.heads, [&](int head) {
      const size_t base = static_cast<size_t>(head / group) * model.weights.capacity * dim;
      const Doubles q = rotated(qkv.data() + head * dim, p);
      Doubles score(p + 1, -std::numeric_limits<double>::infinity());
      double best = score[0], sum = 0;
      for (int r = 0; r <= p; ++r) {
        if (!visible(state, r)) continue;
        double x = 0;
        for (int d = 0; d < dim; ++d)
          x += q[d] * wide(keys[base + static_cast<size_t>(r) * dim + d]);
        score[r] = x / std::sqrt(static_cast<double>(dim));
        best = std::max(best, score[r]);
      }
      for (int r = 0; r <= p; ++r) {
        if (!visible(state, r)) continue;
        const double e = std::exp(score[r] - best);
        sum += e;
        for (int d = 0; d < dim; ++d) {
          out[head * dim + d] += e * wide(values[base + static_cast<size_t>(r) * dim + d]);
        }
      }
      for (int d = 0; d < dim; ++d) out[head * dim + d] /= sum;
    });
    return out;
  }

  Doubles plus(Doubles x, const Doubles& y) const {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    return x;
  }
  Doubles o(int layer, const Doubles& x, const Doubles& attended) const {
    return plus(
        x, product(to_host(model.weights.layers[layer].o, x.size() * attended.size()), attended));
  }
  Doubles gate_up(int layer, const Doubles& x) const {
    const auto& w = model.weights.layers[layer];
    const int ffn = model.shape.ffn;
    const Doubles both = product(to_host(w.gate_up, 2 * ffn * x.size()),
                                 rms_norm(x, to_host(w.post_norm, x.size()), model.shape.norm_eps));
    Doubles y(ffn);
    for (int i = 0; i < ffn; ++i) y[i] = both[i] / (1 + std::exp(-both[i])) * both[i + ffn];
    return y;
  }
  Doubles down(int layer, const Doubles& x, const Doubles& inner) const {
    return plus(x,
                product(to_host(model.weights.layers[layer].down, x.size() * inner.size()), inner));
  }
  Doubles hidden(const Doubles& x) const {
    return rms_norm(x, to_host(model.weights.final_norm, x.size()), model.shape.norm_eps);
  }
  Doubles head(const Doubles& x) const {
    return product(to_host(model.weights.head, model.weights.head_rows * x.size()), hidden(x));
  }
};

// --- on the device

__device__ inline float device_wide(uint16_t v) {
  return __uint_as_float(static_cast<uint32_t>(v) << 16);
}

static __global__ void naive_norm(const float* x, const uint16_t* weight, int n, float eps,
                                  float* y) {
  float squares = 0;
  for (int i = threadIdx.x; i < n; i += 32) squares += x[i] * x[i];
  for (int d = 16; d > 0; d /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, d);
  const float scale = 1.0F / sqrtf(squares / n + eps);
  for (int i = threadIdx.x; i < n; i += 32) y[i] = x[i] * scale * device_wide(weight[i]);
}

// y = w x + bias + add; a warp for each row.
static __global__ void naive_product(const uint16_t* w, const float* x, const uint16_t* bias,
                                     const float* add, int k, float* y) {
  const int row = blockIdx.x;
  float sum = 0;
  for (int i = threadIdx.x; i < k; i += 32)
    sum += device_wide(w[static_cast<size_t>(row) * k + i]) * x[i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) {
    y[row] = sum + (bias != nullptr ? device_wide(bias[row]) : 0) + (add != nullptr ? add[row] : 0);
  }
}

static __global__ void naive_gate(const float* both, int ffn, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < ffn) y[i] = both[i] / (1.0F + expf(-both[i])) * both[i + ffn];
}

// Grid: heads + kv_heads; block: head_dim / 2. Rotates q in place, k into the cache; v into the
// cache.
static __global__ void naive_rotate(float* qkv, const float* cos, const float* sin, int position,
                                    int heads, int kv_heads, int capacity, uint16_t* keys,
                                    uint16_t* values) {
  const int half = blockDim.x, d = threadIdx.x, head = blockIdx.x, dim = 2 * half;
  float* const x = qkv + head * dim;
  const float c = cos[position * half + d], s = sin[position * half + d];
  const float a = x[d] * c - x[d + half] * s, b = x[d + half] * c + x[d] * s;
  x[d] = a;
  x[d + half] = b;
  if (head < heads) return;
  const size_t at = (static_cast<size_t>(head - heads) * capacity + position) * dim;
  const float* const v = x + kv_heads * dim;
  for (int e = d; e < dim; e += half) values[at + e] = rounded_bits(__float_as_uint(v[e]));
  keys[at + d] = rounded_bits(__float_as_uint(a));
  keys[at + d + half] = rounded_bits(__float_as_uint(b));
}

// Grid: heads; one warp. score: (heads, capacity).
static __global__ void naive_attend(const float* q, const uint16_t* keys, const uint16_t* values,
                                    DecodeState state, int group, int dim, int capacity,
                                    float* score, float* out) {
  const int head = blockIdx.x, rows = state.position + 1;
  const size_t base = static_cast<size_t>(head / group) * capacity * dim;
  float* const s = score + static_cast<size_t>(head) * capacity;
  float best = -INFINITY;
  for (int r = threadIdx.x; r < rows; r += 32) {
    float x = 0;
    for (int d = 0; d < dim; ++d)
      x += q[head * dim + d] * device_wide(keys[base + static_cast<size_t>(r) * dim + d]);
    const bool seen = r < state.visible_front || r >= state.visible_from;
    s[r] = seen ? x / sqrtf(static_cast<float>(dim)) : -INFINITY;
    best = fmaxf(best, s[r]);
  }
  for (int d = 16; d > 0; d /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, d));
  float sum = 0;
  for (int r = threadIdx.x; r < rows; r += 32) sum += s[r] = expf(s[r] - best);
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  __syncwarp();
  for (int d = threadIdx.x; d < dim; d += 32) {
    float x = 0;
    for (int r = 0; r < rows; ++r)
      x += s[r] * device_wide(values[base + static_cast<size_t>(r) * dim + d]);
    out[head * dim + d] = x / sum;
  }
}

// Runs steps over the model's own caches; x() in, logits() out.
class NaiveDevice {
 public:
  explicit NaiveDevice(RandomModel& model) : m_(model) {
    const auto& s = model.shape;
    const auto floats = [&](size_t n) {
      return static_cast<float*>(model.allocate(n * sizeof(float)));
    };
    x_ = floats(s.hidden);
    normed_ = floats(s.hidden);
    qkv_ = floats((s.heads + 2 * s.kv_heads) * s.head_dim);
    attended_ = floats(s.heads * s.head_dim);
    score_ = floats(static_cast<size_t>(s.heads) * model.weights.capacity);
    both_ = floats(2 * s.ffn);
    inner_ = floats(s.ffn);
    logits_ = floats(model.weights.head_rows);
  }
  void step(const DecodeState& state) {
    const auto& s = m_.shape;
    for (const LayerWeights& w : m_.weights.layers) {
      start(naive_norm, 1, 32, x_, w.input_norm, s.hidden, s.norm_eps, normed_);
      start(naive_product, (s.heads + 2 * s.kv_heads) * s.head_dim, 32, w.qkv, normed_, w.qkv_bias,
            nullptr, s.hidden, qkv_);
      start(naive_rotate, s.heads + s.kv_heads, s.head_dim / 2, qkv_, m_.weights.rope_cos,
            m_.weights.rope_sin, state.position, s.heads, s.kv_heads, m_.weights.capacity, w.keys,
            w.values);
      start(naive_attend, s.heads, 32, qkv_, w.keys, w.values, state, s.heads / s.kv_heads,
            s.head_dim, m_.weights.capacity, score_, attended_);
      start(naive_product, s.hidden, 32, w.o, attended_, nullptr, x_, s.heads * s.head_dim, x_);
      start(naive_norm, 1, 32, x_, w.post_norm, s.hidden, s.norm_eps, normed_);
      start(naive_product, 2 * s.ffn, 32, w.gate_up, normed_, nullptr, nullptr, s.hidden, both_);
      start(naive_gate, (s.ffn + 255) / 256, 256, both_, s.ffn, inner_);
      start(naive_product, s.hidden, 32, w.down, inner_, nullptr, x_, s.ffn, x_);
    }
    start(naive_norm, 1, 32, x_, m_.weights.final_norm, s.hidden, s.norm_eps, normed_);
    start(naive_product, m_.weights.head_rows, 32, m_.weights.head, normed_, nullptr, nullptr,
          s.hidden, logits_);
  }
  float* x() { return x_; }
  float* logits() { return logits_; }

 private:
  RandomModel& m_;
  float *x_, *normed_, *qkv_, *attended_, *score_, *both_, *inner_, *logits_;
};

}  // namespace minicpmo::cuda::test
