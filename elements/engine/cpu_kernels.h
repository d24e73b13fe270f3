// The small steps of a decoder layer on float32 in ordinary memory, each in one pass: on one row,
// which is what decoding is, the calls of the operators they replace take longer than the
// arithmetic.
#pragma once

#include <cstdint>

namespace minicpmo::cpu {

// y = x / sqrt(mean(x^2) + eps) * weight for each row. x, y: (rows, width).
void rms_norm(const float* x, const float* weight, float* y, int64_t rows, int64_t width,
              float eps);

// x += y, n values.
void add(float* x, const float* y, int64_t n);

// The heads of one row and where its keys and values go.
struct HeadLayout {
  int64_t heads, kv_heads, head_dim, capacity;  // capacity: rows of the cache
};

// Turns the queries of one row in place by the row's angles (half-split rotary embedding; cos, sin:
// head_dim / 2) and writes its turned keys and its values to row `position` of the cache. qkv:
// (heads + 2 kv_heads, head_dim); keys, values: (kv_heads, capacity, head_dim).
void rotate_and_store(float* qkv, const float* cos, const float* sin, const HeadLayout& layout,
                      int64_t position, float* keys, float* values);

// Attention of one row of queries (heads, head_dim) to rows [0, n) of the cache. mask: n addends,
// or null. scores: room for heads * n values. out: (heads, head_dim). The heads of kv_heads [first,
// last) only.
void attend(const float* q, const float* keys, const float* values, const float* mask,
            const HeadLayout& layout, int64_t n, int64_t first, int64_t last, float* scores,
            float* out);

// y = silu(gate) * up. gate_up: (rows, 2 width), y: (rows, width).
void silu_times(const float* gate_up, float* y, int64_t rows, int64_t width);

// y[r] = weight x[r] + bias for each of `rows` rows. x[r] starts at x + r * step; overlapping rows
// make a convolution over time. weight: (out, in); bias: (out); y: (rows, out). In the calling
// thread alone: for networks so small that waiting for other threads takes longer.
void linear(const float* x, int64_t rows, int64_t step, const float* weight, const float* bias,
            int64_t out, int64_t in, float* y);

}  // namespace minicpmo::cpu
