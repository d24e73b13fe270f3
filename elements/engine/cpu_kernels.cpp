#include "engine/cpu_kernels.h"

#include <algorithm>
#include <bit>
#include <limits>

// Sums may be taken in any order here, which is what lets the compiler use vector registers.
#ifdef __clang__
#define MINICPMO_VECTOR
#else
#pragma GCC optimize("O3,associative-math,no-signed-zeros,no-trapping-math,fp-contract=fast")
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define MINICPMO_VECTOR \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define MINICPMO_VECTOR
#endif
#endif

namespace minicpmo::cpu {
namespace {

// exp(x) for x up to 88, 0 below -87.6, with a relative error under 1e-6 near 0 and 1e-5 at the
// ends: x = n ln 2 + r, 2^n times the Taylor sum of exp(r), |r| <= ln 2 / 2. No branch, so that
// loops over it become vector code; std::min and std::max were compiled with other options and
// would be calls.
inline float fast_exp(float x) {
  const float raised = x > -88.0f ? x : -88.0f, bounded = raised < 88.0f ? raised : 88.0f;
  const int32_t biased = static_cast<int32_t>(bounded * 1.44269504f + 127.5f);  // n + 127
  const float r = bounded - static_cast<float>(biased - 127) * 0.69314718f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(biased << 23);  // biased is 0 below: so is the product
}

}  // namespace

MINICPMO_VECTOR void rms_norm(const float* __restrict x, const float* __restrict weight,
                              float* __restrict y, int64_t rows, int64_t width, float eps) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    float squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += x[i] * x[i];
    const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * scale * weight[i];
  }
}

MINICPMO_VECTOR void add(float* __restrict x, const float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

MINICPMO_VECTOR void rotate_and_store(float* __restrict qkv, const float* __restrict cos,
                                      const float* __restrict sin, const HeadLayout& layout,
                                      int64_t position, float* __restrict keys,
                                      float* __restrict values) {
  const int64_t d = layout.head_dim, half = d / 2;
  for (int64_t h = 0; h < layout.heads + layout.kv_heads; ++h) {
    float* const a = qkv + h * d;
    float* const b = a + half;
    float* const key =
        h < layout.heads ? a : keys + ((h - layout.heads) * layout.capacity + position) * d;
    for (int64_t i = 0; i < half; ++i) {
      const float low = a[i] * cos[i] - b[i] * sin[i], high = b[i] * cos[i] + a[i] * sin[i];
      key[i] = low;
      key[half + i] = high;
    }
  }
  const float* const v = qkv + (layout.heads + layout.kv_heads) * d;
  for (int64_t h = 0; h < layout.kv_heads; ++h) {
    std::copy_n(v + h * d, d, values + (h * layout.capacity + position) * d);
  }
}

MINICPMO_VECTOR void attend(const float* __restrict q, const float* __restrict keys,
                            const float* __restrict values, const float* __restrict mask,
                            const HeadLayout& layout, int64_t n, int64_t first, int64_t last,
                            float* __restrict scores, float* __restrict out) {
  const int64_t d = layout.head_dim, group = layout.heads / layout.kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  for (int64_t h = first * group; h < last * group; ++h) {
    const float* const query = q + h * d;
    const float* const head_keys = keys + h / group * layout.capacity * d;
    const float* const head_values = values + h / group * layout.capacity * d;
    float* const weight = scores + h * n;
    for (int64_t j = 0; j < n; ++j) {
      const float* const key = head_keys + j * d;
      float sum = 0;
      for (int64_t i = 0; i < d; ++i) sum += query[i] * key[i];
      weight[j] = sum * scale;
    }
    if (mask) {
      for (int64_t j = 0; j < n; ++j) weight[j] += mask[j];
    }
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < n; ++j) top = weight[j] > top ? weight[j] : top;
    float total = 0;
    for (int64_t j = 0; j < n; ++j) {
      weight[j] = fast_exp(weight[j] - top);
      total += weight[j];
    }
    float* const result = out + h * d;
    std::fill_n(result, d, 0.0f);
    for (int64_t j = 0; j < n; ++j) {
      const float w = weight[j] / total;
      const float* const value = head_values + j * d;
      for (int64_t i = 0; i < d; ++i) result[i] += w * value[i];
    }
  }
}

MINICPMO_VECTOR void silu_times(const float* __restrict gate_up, float* __restrict y, int64_t rows,
                                int64_t width) {
  for (int64_t r = 0; r < rows; ++r, gate_up += 2 * width, y += width) {
    for (int64_t i = 0; i < width; ++i) {
      const float gate = gate_up[i];
      y[i] = gate / (1.0f + fast_exp(-gate)) * gate_up[width + i];
    }
  }
}

// Four outputs at a time, whose sums do not wait for each other.
MINICPMO_VECTOR void linear(const float* __restrict x, int64_t rows, int64_t step,
                            const float* __restrict weight, const float* __restrict bias,
                            int64_t out, int64_t in, float* __restrict y) {
  for (int64_t o = 0; o < out; o += 4) {
    const int64_t left = out - o;
    const float* const w0 = weight + o * in;
    const float* const w1 = left > 1 ? w0 + in : w0;
    const float* const w2 = left > 2 ? w1 + in : w0;
    const float* const w3 = left > 3 ? w2 + in : w0;
    for (int64_t r = 0; r < rows; ++r) {
      const float* const row = x + r * step;
      float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (int64_t i = 0; i < in; ++i) {
        s0 += w0[i] * row[i];
        s1 += w1[i] * row[i];
        s2 += w2[i] * row[i];
        s3 += w3[i] * row[i];
      }
      const float sums[4] = {s0, s1, s2, s3};
      float* const result = y + r * out + o;
      for (int64_t k = 0; k < 4 && k < left; ++k) result[k] = sums[k] + bias[o + k];
    }
  }
}

}  // namespace minicpmo::cpu
