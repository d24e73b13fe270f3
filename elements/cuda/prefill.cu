#include "cuda/prefill.h"

#include <algorithm>
#include <cmath>

#include "cuda/launch.cuh"

namespace minicpmo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNormThreads = 512, kNormVectors = 4;  // rows of up to 8192 values
constexpr int kSoftmaxThreads = 128;
constexpr size_t kAlign = 256;

int64_t padded(int64_t n) {
  return (n + 7) / 8 * 8;
}

int blocks_of(int64_t n, int threads) {
  return static_cast<int>((n + threads - 1) / threads);
}

// --- kernels

// Four values a thread.
__global__ void __launch_bounds__(kThreads)
    widen_kernel(const uint2* from, float4* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint2 v = __ldg(from + i);
  to[i] = make_float4(low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y));
}

// RMSNorm (Zhang, Sennrich 2019), a block for each row; to bfloat16 or, if `wide` is given,
// float32.
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const float4* x, const uint2* gains, uint2* rounded, float4* wide, int vectors,
                float eps) {
  constexpr int kWarps = kNormThreads / 32;
  __shared__ float partial[kWarps];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * vectors;
  float4 v[kNormVectors];
  uint2 gain[kNormVectors];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kNormVectors; ++j) {
    const int i = j * kNormThreads + threadIdx.x;
    v[j] = i < vectors ? x[row + i] : make_float4(0, 0, 0, 0);
    gain[j] = i < vectors ? __ldg(gains + i) : make_uint2(0, 0);
    squares += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
  }
  const float scale = rsqrtf(block_sum(squares, partial, kWarps) / (4.0F * vectors) + eps);
#pragma unroll
  for (int j = 0; j < kNormVectors; ++j) {
    const int i = j * kNormThreads + threadIdx.x;
    if (i >= vectors) continue;
    const float4 y =
        make_float4(v[j].x * low_half(gain[j].x) * scale, v[j].y * high_half(gain[j].x) * scale,
                    v[j].z * low_half(gain[j].y) * scale, v[j].w * high_half(gain[j].y) * scale);
    if (wide != nullptr) {
      wide[row + i] = y;
    } else {
      rounded[row + i] = make_uint2(pack(y.x, y.y), pack(y.z, y.w));
    }
  }
}

// Where row 0 stands, and how many rows are to be kept.
struct Place {
  const PrefillState* state;
  int begin, rows;
  __device__ int first() const { return state != nullptr ? __ldcg(&state->begin) : begin; }
  __device__ int count() const { return state != nullptr ? min(rows, __ldcg(&state->rows)) : rows; }
};

struct RotateArgs {
  const float* qkv;      // (rows, (heads + 2 kv_heads) head_dim)
  const uint16_t* bias;  // or null
  const float* rope_cos;
  const float* rope_sin;
  uint16_t* queries;  // (kv_heads, rows, group, head_dim)
  uint16_t* keys;     // (kv_heads, capacity, head_dim)
  uint16_t* values;
  int heads, kv_heads, head_dim, capacity;
};

// Bias, half-split rotation (Su et al. 2021, as in GPT-NeoX), and the new rows of the cache. A
// thread for each pair of values; grid (pairs, rows).
__global__ void __launch_bounds__(kThreads) rotate_kernel(const RotateArgs args, const Place at) {
  const int half = args.head_dim / 2, all = args.heads + 2 * args.kv_heads;
  const int i = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  if (i >= all * half) return;
  const int head = i / half, d = i % half, column = head * args.head_dim + d;
  const int position = at.first() + row;
  const float* const from = args.qkv + static_cast<int64_t>(row) * all * args.head_dim + column;
  float a = from[0], b = from[half];
  if (args.bias != nullptr) {
    a += widen(args.bias[column]);
    b += widen(args.bias[column + half]);
  }
  if (head < args.heads + args.kv_heads) {
    const int angle = min(position, args.capacity - 1) * half + d;
    const float c = __ldg(args.rope_cos + angle), s = __ldg(args.rope_sin + angle);
    const float first = a * c - b * s, second = b * c + a * s;
    a = first;
    b = second;
  }
  uint16_t* to;
  if (head < args.heads) {
    const int group = args.heads / args.kv_heads;
    const int64_t line =
        (static_cast<int64_t>(head / group) * gridDim.y + row) * group + head % group;
    to = args.queries + line * args.head_dim;
  } else {
    if (row >= at.count() || position >= args.capacity) return;
    const int kv = (head - args.heads) % args.kv_heads;
    uint16_t* const side = head < args.heads + args.kv_heads ? args.keys : args.values;
    to = side + (static_cast<int64_t>(kv) * args.capacity + position) * args.head_dim;
  }
  to[d] = narrow(a);
  to[d + half] = narrow(b);
}

// Running maximum and sum of exp2 (Milakov, Gimelshein 2018).
struct Exponentials {
  float best, sum;
  __device__ void add(float other_best, float other_sum) {
    const float most = fmaxf(best, other_best);
    if (most == -INFINITY) return;
    sum = sum * exp2f(best - most) + other_sum * exp2f(other_best - most);
    best = most;
  }
};

__device__ __forceinline__ Exponentials over_block(Exponentials e, Exponentials* partial) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const float best = __shfl_xor_sync(kAllLanes, e.best, d);
    const float sum = __shfl_xor_sync(kAllLanes, e.sum, d);
    e.add(best, sum);
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = e;
  __syncthreads();
  Exponentials all{-INFINITY, 0};
  for (int w = 0; w < kSoftmaxThreads / 32; ++w) all.add(partial[w].best, partial[w].sum);
  return all;
}

// Softmax of scores (base 2) over the keys that a row may see; 0 for the others. Grid (rows group,
// kv_heads); `width` is a multiple of 8.
__global__ void __launch_bounds__(kSoftmaxThreads)
    softmax_kernel(const float* scores, uint16_t* weights, int width, int keys, int group,
                   int first_row, const Place at) {
  __shared__ Exponentials partial[kSoftmaxThreads / 32];
  const int64_t line = (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * width;
  const auto* const from = reinterpret_cast<const float4*>(scores + line);
  auto* const to = reinterpret_cast<uint2*>(weights + line);
  const int row = first_row + blockIdx.x / group;
  const int visible = min(at.first() + row + 1, keys);
  Exponentials mine{-INFINITY, 0};
  for (int i = threadIdx.x; 4 * i < visible; i += kSoftmaxThreads) {
    const float4 v = from[i];
    const float x[4] = {v.x, v.y, v.z, v.w};
    float best = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) best = fmaxf(best, 4 * i + j < visible ? x[j] : -INFINITY);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += 4 * i + j < visible ? exp2f(x[j] - best) : 0;
    mine.add(best, sum);
  }
  const Exponentials all = over_block(mine, partial);
  const float scale = 1 / all.sum;
  for (int i = threadIdx.x; 4 * i < width; i += kSoftmaxThreads) {
    float y[4] = {};
    if (4 * i < visible) {
      const float4 v = from[i];
      const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j] = 4 * i + j < visible ? exp2f(x[j] - all.best) * scale : 0;
    }
    to[i] = make_uint2(pack(y[0], y[1]), pack(y[2], y[3]));
  }
}

// (kv_heads, rows, group, head_dim) to (rows, kv_heads, group, head_dim), eight values a thread;
// `vectors` of them lie together. Grid (kv_heads vectors, rows).
__global__ void __launch_bounds__(kThreads)
    ungroup_kernel(const uint4* from, uint4* to, int vectors, int kv_heads) {
  const int i = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  if (i >= kv_heads * vectors) return;
  const int64_t line = static_cast<int64_t>(i / vectors) * gridDim.y + row;
  to[static_cast<int64_t>(row) * kv_heads * vectors + i] = from[line * vectors + i % vectors];
}

__device__ __forceinline__ float gated(float gate, float up) {
  return gate / (1.0F + expf(-gate)) * up;
}

// SiLU(gate) up, eight values a thread; gate_up is (rows, 2, vectors). Grid (vectors, rows).
__global__ void __launch_bounds__(kThreads)
    gate_kernel(const uint4* gate_up, uint4* inner, int vectors) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int64_t row = blockIdx.y;
  if (i >= vectors) return;
  const uint4 g = gate_up[2 * row * vectors + i], u = gate_up[(2 * row + 1) * vectors + i];
  const uint32_t gates[4] = {g.x, g.y, g.z, g.w}, ups[4] = {u.x, u.y, u.z, u.w};
  uint32_t y[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    y[j] = pack(gated(low_half(gates[j]), low_half(ups[j])),
                gated(high_half(gates[j]), high_half(ups[j])));
  }
  inner[row * vectors + i] = make_uint4(y[0], y[1], y[2], y[3]);
}

// --- views

MatrixView view(const float* data, int64_t stride, int64_t batch = 0) {
  return {const_cast<float*>(data), Type::kFloat32, stride, batch};
}
MatrixView view(const bfloat16_bits* data, int64_t stride, int64_t batch = 0) {
  return {const_cast<bfloat16_bits*>(data), Type::kBFloat16, stride, batch};
}

}  // namespace

const char* Prefill::unsupported(const DecoderShape& shape) {
  if (shape.layers <= 0 || shape.heads <= 0 || shape.kv_heads <= 0 ||
      shape.heads % shape.kv_heads) {
    return "the query heads are not a multiple of the key heads";
  }
  if (shape.hidden <= 0 || shape.hidden % 8 || shape.ffn <= 0 || shape.ffn % 8 ||
      shape.head_dim <= 0 || shape.head_dim % 8) {
    return "the widths are not multiples of 8";
  }
  if (shape.hidden > 4 * kNormThreads * kNormVectors) return "the hidden size is above 8192";
  return nullptr;
}

cudaError_t Prefill::init(const DecoderShape& shape, const DecoderWeights& weights, int max_rows,
                          int max_keys, Blas* blas, cudaStream_t stream, size_t most_scores) {
  if (unsupported(shape) != nullptr || max_rows <= 0 || max_keys <= 0 ||
      max_keys > weights.capacity || static_cast<int>(weights.layers.size()) != shape.layers) {
    return cudaErrorInvalidValue;
  }
  shape_ = shape;
  weights_ = weights;
  max_rows_ = max_rows;
  max_keys_ = max_keys;
  blas_ = blas;
  stream_ = stream;
  const size_t rows = max_rows, wide = static_cast<size_t>(shape.heads) * shape.head_dim;
  const size_t per_row = static_cast<size_t>(shape.heads) * padded(max_keys);
  score_count_ = std::max(per_row, std::min(rows * per_row, most_scores));
  struct Part {
    void** where;
    size_t bytes;
  };
  const auto part = [](auto& pointer, size_t count) {
    return Part{reinterpret_cast<void**>(&pointer), count * sizeof(*pointer)};
  };
  const Part parts[] = {part(x_, rows * shape.hidden),        part(qkv_, rows * qkv_width()),
                        part(scores_, score_count_),          part(normed_, rows * shape.hidden),
                        part(queries_, rows * wide),          part(weights_of_keys_, score_count_),
                        part(grouped_, rows * wide),          part(attended_, rows * wide),
                        part(gate_up_, rows * 2 * shape.ffn), part(inner_, rows * shape.ffn)};
  size_t bytes = 0;
  for (const Part& p : parts) bytes += (p.bytes + kAlign - 1) / kAlign * kAlign;
  RETURN_IF_CUDA_ERROR(memory_.allocate(bytes));
  size_t offset = 0;
  for (const Part& p : parts) {
    *p.where = memory_.as<char>(offset);
    offset += (p.bytes + kAlign - 1) / kAlign * kAlign;
  }
  return cudaSuccess;
}

cudaError_t Prefill::load(const bfloat16_bits* x, int rows) {
  if (rows <= 0 || rows > max_rows_) return cudaErrorInvalidValue;
  const int64_t count = static_cast<int64_t>(rows) * shape_.hidden / 4;
  return launch(widen_kernel, dim3(blocks_of(count, kThreads)), kThreads, 0, stream_, false,
                reinterpret_cast<const uint2*>(x), reinterpret_cast<float4*>(x_), count);
}

cudaError_t Prefill::run(int rows, int begin) {
  if (begin < 0 || begin + rows > max_keys_) return cudaErrorInvalidValue;
  return run_layers({nullptr, begin, rows, begin + rows});
}

cudaError_t Prefill::run(const PrefillState* state, int rows, int keys) {
  if (state == nullptr || keys <= 0 || keys > max_keys_) return cudaErrorInvalidValue;
  return run_layers({state, 0, rows, keys});
}

cudaError_t Prefill::norm(const bfloat16_bits* gains, int first, int rows, float* wide) {
  return launch(norm_kernel, dim3(rows), kNormThreads, 0, stream_, false,
                reinterpret_cast<const float4*>(x_ + static_cast<int64_t>(first) * shape_.hidden),
                reinterpret_cast<const uint2*>(gains), reinterpret_cast<uint2*>(normed_),
                reinterpret_cast<float4*>(wide), shape_.hidden / 4, shape_.norm_eps);
}

cudaError_t Prefill::final_norm(int first, int rows, float* to) {
  if (first < 0 || rows <= 0 || first + rows > max_rows_) return cudaErrorInvalidValue;
  return norm(weights_.final_norm, first, rows, to);
}

cudaError_t Prefill::run_layers(const Position& at) {
  if (at.rows <= 0 || at.rows > max_rows_) return cudaErrorInvalidValue;
  const int hidden = shape_.hidden, ffn = shape_.ffn, wide = shape_.heads * shape_.head_dim;
  for (const LayerWeights& w : weights_.layers) {
    RETURN_IF_CUDA_ERROR(norm(w.input_norm, 0, at.rows, nullptr));
    RETURN_IF_CUDA_ERROR(blas_->linear(at.rows, qkv_width(), hidden, view(normed_, hidden),
                                       view(w.qkv, hidden), view(qkv_, qkv_width())));
    RETURN_IF_CUDA_ERROR(attend(w, at));
    RETURN_IF_CUDA_ERROR(blas_->linear(at.rows, hidden, wide, view(attended_, wide),
                                       view(w.o, wide), view(x_, hidden), true));
    RETURN_IF_CUDA_ERROR(norm(w.post_norm, 0, at.rows, nullptr));
    RETURN_IF_CUDA_ERROR(blas_->linear(at.rows, 2 * ffn, hidden, view(normed_, hidden),
                                       view(w.gate_up, hidden), view(gate_up_, 2 * ffn)));
    RETURN_IF_CUDA_ERROR(launch(gate_kernel, dim3(blocks_of(ffn / 8, kThreads), at.rows), kThreads,
                                0, stream_, false, reinterpret_cast<const uint4*>(gate_up_),
                                reinterpret_cast<uint4*>(inner_), ffn / 8));
    RETURN_IF_CUDA_ERROR(blas_->linear(at.rows, hidden, ffn, view(inner_, ffn), view(w.down, ffn),
                                       view(x_, hidden), true));
  }
  return cudaSuccess;
}

// Queries of a group lie side by side, so that all of a key head's are one matrix. In blocks of
// rows, which bounds the scores.
cudaError_t Prefill::attend(const LayerWeights& w, const Position& at) {
  const int d = shape_.head_dim, heads = shape_.heads, kv_heads = shape_.kv_heads;
  const int group = heads / kv_heads, all = heads + 2 * kv_heads;
  const Place place{at.state, at.begin, at.rows};
  RETURN_IF_CUDA_ERROR(launch(
      rotate_kernel, dim3(blocks_of(all * d / 2, kThreads), at.rows), kThreads, 0, stream_, false,
      RotateArgs{qkv_, w.qkv_bias, weights_.rope_cos, weights_.rope_sin, queries_, w.keys, w.values,
                 heads, kv_heads, d, weights_.capacity},
      place));
  const float scale = 1.44269504F / std::sqrt(static_cast<float>(d));  // base 2
  const int64_t cache = static_cast<int64_t>(weights_.capacity) * d;
  const int64_t lines = static_cast<int64_t>(at.rows) * group * d;
  const int most =
      static_cast<int>(std::min<int64_t>(at.rows, score_count_ / (heads * padded(at.keys))));
  for (int first = 0; first < at.rows; first += most) {
    const int rows = std::min(most, at.rows - first), m = rows * group;
    // A multiple of 8 suits cuBLAS; the keys behind the last one are hidden.
    const int seen = at.state != nullptr ? at.keys : at.begin + first + rows;
    const int width = static_cast<int>(padded(seen)), keys = std::min(width, weights_.capacity);
    const int64_t offset = static_cast<int64_t>(first) * group * d;
    RETURN_IF_CUDA_ERROR(blas_->linear(
        m, keys, d, view(queries_ + offset, d, lines), view(w.keys, d, cache),
        view(scores_, width, static_cast<int64_t>(m) * width), false, kv_heads, scale));
    RETURN_IF_CUDA_ERROR(launch(softmax_kernel, dim3(m, kv_heads), kSoftmaxThreads, 0, stream_,
                                false, static_cast<const float*>(scores_), weights_of_keys_, width,
                                keys, group, first, place));
    const MatrixView to = group == 1 ? view(attended_ + offset * heads, heads * d, d)
                                     : view(grouped_ + offset, d, lines);
    RETURN_IF_CUDA_ERROR(
        blas_->product(m, d, keys, view(weights_of_keys_, width, static_cast<int64_t>(m) * width),
                       view(w.values, d, cache), to, false, kv_heads));
  }
  if (group == 1) return cudaSuccess;
  const int vectors = group * d / 8;
  return launch(ungroup_kernel, dim3(blocks_of(kv_heads * vectors, kThreads), at.rows), kThreads, 0,
                stream_, false, reinterpret_cast<const uint4*>(grouped_),
                reinterpret_cast<uint4*>(attended_), vectors, kv_heads);
}

}  // namespace minicpmo::cuda
