// A decoder with random weights on the device, and copies of its parts for the references.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/decode.h"
#include "harness.cuh"

namespace minicpmo::cuda::test {

inline float wide(uint16_t v) {
  const uint32_t u = static_cast<uint32_t>(v) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
__host__ __device__ inline uint16_t rounded_bits(uint32_t u) {
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline uint16_t rounded(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return rounded_bits(u);
}

// Uniform in (middle - spread, middle + spread), a function of seed and index (finaliser of
// MurmurHash3).
static __global__ void fill_random(uint16_t* out, size_t count, uint64_t seed, float middle,
                                   float spread) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint64_t h = i + seed * 0x9E3779B97F4A7C15ull;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdull;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ull;
    h ^= h >> 33;
    const float x = middle + spread * (static_cast<float>(h >> 40) * 0x1p-23F - 1.0F);
    out[i] = rounded_bits(__float_as_uint(x));
  }
}

class RandomModel {
 public:
  RandomModel(const DecoderShape& shape, int head_rows, int capacity, bool bias, double theta,
              uint64_t seed)
      : shape(shape), seed_(seed * 1000003) {
    const size_t hidden = shape.hidden, wide_q = shape.heads * shape.head_dim;
    const size_t qkv = wide_q + 2 * shape.kv_heads * shape.head_dim;
    weights.capacity = capacity;
    weights.head_rows = head_rows;
    for (int i = 0; i < shape.layers; ++i) {
      LayerWeights w;
      w.input_norm = random(hidden, 1, 0.3F);
      w.qkv = matrix(qkv, hidden, 1);
      if (bias) w.qkv_bias = random(qkv, 0, 0.5F);
      w.o = matrix(hidden, wide_q, 1);
      w.post_norm = random(hidden, 1, 0.3F);
      w.gate_up = matrix(2 * shape.ffn, hidden, 1);
      w.down = matrix(hidden, shape.ffn, 1);
      w.keys = random(cache_size(), 0, 1.7F);
      w.values = random(cache_size(), 0, 1.7F);
      weights.layers.push_back(w);
    }
    weights.final_norm = random(hidden, 1, 0.3F);
    weights.head = matrix(head_rows, hidden, 3);
    const int half = shape.head_dim / 2;
    cos.resize(static_cast<size_t>(capacity) * half);
    sin.resize(cos.size());
    for (int p = 0; p < capacity; ++p) {
      for (int d = 0; d < half; ++d) {
        const double angle = p * std::pow(theta, -2.0 * d / shape.head_dim);
        cos[static_cast<size_t>(p) * half + d] = static_cast<float>(std::cos(angle));
        sin[static_cast<size_t>(p) * half + d] = static_cast<float>(std::sin(angle));
      }
    }
    float* tables[2];
    for (auto& t : tables) t = static_cast<float*>(allocate(cos.size() * sizeof(float)));
    to_device(tables[0], cos);
    to_device(tables[1], sin);
    weights.rope_cos = tables[0];
    weights.rope_sin = tables[1];
  }
  ~RandomModel() {
    for (void* p : memory_) cudaFree(p);
  }
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  uint16_t* random(size_t count, float middle, float spread) {
    auto* const out = static_cast<uint16_t*>(allocate(count * 2));
    start(fill_random, 1024, 256, out, count, ++seed_, middle, spread);
    CHECK(cudaDeviceSynchronize());  // streams of one's own do not wait for it
    return out;
  }
  // Outputs have about the variance of the inputs, times gain squared.
  uint16_t* matrix(size_t rows, size_t columns, float gain) {
    return random(rows * columns, 0, gain * std::sqrt(3.0F / static_cast<float>(columns)));
  }
  void* allocate(size_t bytes) {
    void* p = nullptr;
    CHECK(cudaMalloc(&p, bytes));
    memory_.push_back(p);
    return p;
  }
  size_t cache_size() const {
    return static_cast<size_t>(shape.kv_heads) * weights.capacity * shape.head_dim;
  }
  // Bytes of weights one step reads, embeddings apart.
  double step_bytes() const {
    const double hidden = shape.hidden, q = shape.heads * shape.head_dim;
    const double qkv = q + 2.0 * shape.kv_heads * shape.head_dim;
    return 2 * (shape.layers * (qkv * hidden + q * hidden + 3.0 * hidden * shape.ffn) +
                static_cast<double>(weights.head_rows) * hidden);
  }
  double row_bytes() const { return 4.0 * shape.layers * shape.kv_heads * shape.head_dim; }

  DecoderShape shape;
  DecoderWeights weights;
  std::vector<float> cos, sin;

 private:
  uint64_t seed_;
  std::vector<void*> memory_;
};

inline DecoderShape make_shape(int hidden, int layers, int heads, int kv_heads, int head_dim,
                               int ffn) {
  DecoderShape s;
  s.hidden = hidden;
  s.layers = layers;
  s.heads = heads;
  s.kv_heads = kv_heads;
  s.head_dim = head_dim;
  s.ffn = ffn;
  return s;
}
// The published sizes of the two decoders.
inline DecoderShape llm_shape(int layers) {
  return make_shape(3584, layers, 28, 4, 128, 18944);
}
inline DecoderShape tts_shape(int layers) {
  return make_shape(768, layers, 12, 12, 64, 3072);
}

}  // namespace minicpmo::cuda::test
