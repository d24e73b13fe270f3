// Between the products of the audio encoder: gathering of the convolutions' frames, activations,
// layer norms, attention. Every kernel works on all rows of the longest chunk; those beyond the
// chunk at hand are computed from zeros and seen by no other row.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mma.cuh"

namespace minicpmo::cuda {

// Uploaded before each chunk.
struct EncoderChunk {
  int frames = 0;  // mel frames
  int cached = 0;  // positions before the chunk

  // The second convolution has a stride of 2.
  __host__ __device__ int positions() const { return (frames + 1) / 2; }
};

constexpr int kEncoderThreads = 256;

__device__ __forceinline__ float4 add_bias(const float4& x, const uint16_t* bias) {
  const uint2 b = __ldg(reinterpret_cast<const uint2*>(bias));
  return make_float4(x.x + low_half(b.x), x.y + high_half(b.x), x.z + low_half(b.y),
                     x.w + high_half(b.y));
}

__device__ __forceinline__ void store(uint16_t* to, const float4& x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
}

__device__ __forceinline__ float4 load_four(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

// Row t of `columns` (frames, 3 bins): frames t - 1, t, t + 1 of the mel, zeros outside the chunk.
// Grid: rows.
static __global__ void __launch_bounds__(kEncoderThreads)
    gather_mel_kernel(const EncoderChunk* chunk, const float* mel, uint16_t* columns, int bins) {
  const int frames = chunk->frames;
  for (int i = threadIdx.x; i < 3 * bins; i += blockDim.x) {
    const int frame = static_cast<int>(blockIdx.x) + i / bins - 1;
    const bool there = frame >= 0 && frame < frames;
    columns[blockIdx.x * 3 * bins + i] = narrow(there ? mel[frame * bins + i % bins] : 0.0F);
  }
}

// Row t of `columns` (positions, 3 hidden): GELU(y + bias) of frames 2t - 1, 2t, 2t + 1, zeros
// outside the chunk. Grid: (3, rows).
static __global__ void __launch_bounds__(kEncoderThreads)
    gelu_gather_kernel(const EncoderChunk* chunk, const float* y, const uint16_t* bias,
                       uint16_t* columns, int hidden) {
  const int frame = 2 * static_cast<int>(blockIdx.y) + static_cast<int>(blockIdx.x) - 1;
  const bool there = frame >= 0 && frame < chunk->frames;
  uint16_t* const to = columns + (blockIdx.y * 3 + blockIdx.x) * hidden;
  for (int c = threadIdx.x * 4; c < hidden; c += blockDim.x * 4) {
    float4 v = make_float4(0, 0, 0, 0);
    if (there) {
      v = add_bias(load_four(y + frame * hidden + c), bias + c);
      v = make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w));
    }
    store(to + c, v);
  }
}

// to = GELU(y + bias). Grid: (columns / 1024, rows).
static __global__ void __launch_bounds__(kEncoderThreads)
    bias_gelu_kernel(const float* y, const uint16_t* bias, uint16_t* to, int columns) {
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (c >= columns) return;
  const float4 v = add_bias(load_four(y + blockIdx.y * columns + c), bias + c);
  store(to + blockIdx.y * columns + c, make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w)));
}

// Row r of `to`: the mean of ReLU(y + bias) over rows r step .. r step + step - 1 of y. Grid:
// (columns / 1024, rows).
static __global__ void __launch_bounds__(kEncoderThreads)
    relu_pool_kernel(const float* y, const uint16_t* bias, uint16_t* to, int columns, int step) {
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (c >= columns) return;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int i = 0; i < step; ++i) {
    const float4 v = add_bias(load_four(y + (blockIdx.y * step + i) * columns + c), bias + c);
    sum.x += fmaxf(v.x, 0.0F);
    sum.y += fmaxf(v.y, 0.0F);
    sum.z += fmaxf(v.z, 0.0F);
    sum.w += fmaxf(v.w, 0.0F);
  }
  const float part = 1.0F / static_cast<float>(step);
  store(to + blockIdx.y * columns + c,
        make_float4(sum.x * part, sum.y * part, sum.z * part, sum.w * part));
}

// to = y + bias. Grid: (columns / 1024, rows).
static __global__ void __launch_bounds__(kEncoderThreads)
    bias_kernel(const float* y, const uint16_t* bias, uint16_t* to, int columns) {
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (c >= columns) return;
  store(to + blockIdx.y * columns + c, add_bias(load_four(y + blockIdx.y * columns + c), bias + c));
}

struct EncoderNormArgs {
  const float* y;        // (rows, hidden): the last product
  const uint16_t* bias;  // of that product
  float* x;              // (rows, hidden): the residual stream
  const uint16_t *weight, *norm_bias;
  uint16_t* to;  // (rows, hidden)
  int hidden;
  // First norm only.
  const EncoderChunk* chunk;
  const uint16_t* positions;  // (max_positions, hidden)
  int max_positions;
};

// x += y + bias (kFirst: x = GELU(y + bias) + the position's embedding), to = LayerNorm(x), epsilon
// 1e-5. Shared memory: a row in float32. Grid: rows.
template <bool kFirst>
__global__ void __launch_bounds__(kEncoderThreads) add_norm_kernel(const EncoderNormArgs args) {
  constexpr int kWarps = kEncoderThreads / 32;
  __shared__ float scratch[kWarps];
  float* const row = launched_shared<float>();
  const int hidden = args.hidden, from = blockIdx.x * hidden;
  int position = 0;
  if (kFirst) {
    position = min(args.chunk->cached + static_cast<int>(blockIdx.x), args.max_positions - 1);
  }
  float sum = 0;
  for (int c = threadIdx.x * 4; c < hidden; c += blockDim.x * 4) {
    float4 v = add_bias(load_four(args.y + from + c), args.bias + c);
    if (kFirst) {
      v = make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w));
      v = add_bias(v, args.positions + static_cast<int64_t>(position) * hidden + c);
    } else {
      const float4 x = load_four(args.x + from + c);
      v = make_float4(v.x + x.x, v.y + x.y, v.z + x.z, v.w + x.w);
    }
    *reinterpret_cast<float4*>(args.x + from + c) = v;
    *reinterpret_cast<float4*>(row + c) = v;
    sum += v.x + v.y + v.z + v.w;
  }
  const float mean = block_sum(sum, scratch, kWarps) / static_cast<float>(hidden);
  float squares = 0;
  for (int c = threadIdx.x * 4; c < hidden; c += blockDim.x * 4) {
    const float4 v = load_four(row + c);
    const float4 d = make_float4(v.x - mean, v.y - mean, v.z - mean, v.w - mean);
    squares += d.x * d.x + d.y * d.y + d.z * d.z + d.w * d.w;
  }
  const float scale =
      rsqrtf(block_sum(squares, scratch, kWarps) / static_cast<float>(hidden) + 1e-5F);
  for (int c = threadIdx.x * 4; c < hidden; c += blockDim.x * 4) {
    const float4 v = load_four(row + c);
    const uint2 w = __ldg(reinterpret_cast<const uint2*>(args.weight + c));
    store(args.to + from + c,
          add_bias(make_float4(
                       (v.x - mean) * scale * low_half(w.x), (v.y - mean) * scale * high_half(w.x),
                       (v.z - mean) * scale * low_half(w.y), (v.w - mean) * scale * high_half(w.y)),
                   args.norm_bias + c));
  }
}

// Attention of the chunk's rows, in both directions, over the cached positions and their own, whose
// keys and values it adds to the cache.
//
// Mapping: grid (splits, heads * query tiles). A block takes 64 queries, 16 to a warp, and one
// share of the keys, in tiles of 64 that it brings to shared memory one ahead. Online softmax
// (Milakov, Gimelshein 2018) with the scores' fragment as the second product's operand
// (FlashAttention-2, Dao 2023). How many splits take part follows from the number of keys; the next
// kernel adds them up.
struct EncoderAttentionArgs {
  const EncoderChunk* chunk;
  const float* qkv;         // (rows, 3 hidden), without the bias
  const uint16_t* bias;     // (3 hidden)
  uint16_t *keys, *values;  // (heads, max_positions, 64)
  uint16_t* output;         // (rows, hidden)
  float* partial;           // (heads * query tiles, splits, 64, 64 + 2): values, maximum, sum
  int rows, heads, max_positions;
};

struct EncoderAttention {
  static constexpr int kHeadDim = 64, kQueries = 64, kKeys = 64, kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kSplits = 8, kTilesUnsplit = 6;
  static constexpr int kStride = kHeadDim + 8;  // rows of a matrix in different banks
  static constexpr int kPartial = kHeadDim + 2;

  using Tile = uint16_t[kKeys][kStride];
  struct Shared {
    alignas(16) Tile q, keys[2], values[2];
  };
  // Who reads which tiles of keys.
  struct Share {
    int each, active;
    __device__ explicit Share(int total) {
      const int tiles = (total + kKeys - 1) / kKeys;
      // A few tiles one after another take less time than splits and adding them up.
      each = tiles <= kTilesUnsplit ? tiles : (tiles + kSplits - 1) / kSplits;
      active = (tiles + each - 1) / each;
    }
  };

  const EncoderAttentionArgs& args;
  const int cached, total;  // keys
  const int head, first_query;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t q[kHeadDim / 16][4];
  float o[kHeadDim / 8][4];
  float best[2], sum[2];  // of rows lane / 4 and lane / 4 + 8; the sums of this lane's keys only

  __device__ EncoderAttention(const EncoderAttentionArgs& a)
      : args(a),
        cached(a.chunk->cached),
        total(min(cached + a.chunk->positions(), a.max_positions)),
        head(static_cast<int>(blockIdx.y) % a.heads),
        first_query(static_cast<int>(blockIdx.y) / a.heads * kQueries) {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    best[0] = best[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  __device__ int hidden() const {
    return args.heads * kHeadDim;
  }

  // Eight values of the qkv product with their bias; which: 0 q, 1 k, 2 v.
  __device__ uint4 computed(int row, int which, int d) const {
    const int column = which * hidden() + head * kHeadDim + d;
    const float* const from = args.qkv + static_cast<int64_t>(row) * 3 * hidden() + column;
    const float4 a = add_bias(load_four(from), args.bias + column);
    const float4 b = add_bias(load_four(from + 4), args.bias + column + 4);
    return make_uint4(pack(a.x, a.y), pack(a.z, a.w), pack(b.x, b.y), pack(b.z, b.w));
  }

  __device__ void load_queries(Tile& tile) {
    for (int i = threadIdx.x; i < kQueries * kHeadDim / 8; i += kThreads) {
      const int row = i / (kHeadDim / 8), d = i % (kHeadDim / 8) * 8;
      const bool there = first_query + row < args.rows;
      *reinterpret_cast<uint4*>(&tile[row][d]) =
          there ? computed(first_query + row, 0, d) : make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      load_matrices(q[k], &tile[warp * 16 + lane % 16][k * 16 + lane / 16 * 8]);
    }
  }

  // Rows of the cache, of the chunk (which go into the cache too), or zeros.
  __device__ void load_keys(int tile, Tile& keys, Tile& values) const {
    for (int i = threadIdx.x; i < kKeys * kHeadDim / 8; i += kThreads) {
      const int row = i / (kHeadDim / 8), d = i % (kHeadDim / 8) * 8;
      const int position = tile * kKeys + row;
      const int64_t at =
          (static_cast<int64_t>(head) * args.max_positions + position) * kHeadDim + d;
      if (position < cached) {
        copy_to_shared(reinterpret_cast<float4*>(&keys[row][d]),
                       reinterpret_cast<const float4*>(args.keys + at));
        copy_to_shared(reinterpret_cast<float4*>(&values[row][d]),
                       reinterpret_cast<const float4*>(args.values + at));
        continue;
      }
      const bool there = position < total;
      const uint4 zero = make_uint4(0, 0, 0, 0);
      const uint4 k = there ? computed(position - cached, 1, d) : zero;
      const uint4 v = there ? computed(position - cached, 2, d) : zero;
      *reinterpret_cast<uint4*>(&keys[row][d]) = k;
      *reinterpret_cast<uint4*>(&values[row][d]) = v;
      if (!there || first_query != 0) continue;
      *reinterpret_cast<uint4*>(args.keys + at) = k;
      *reinterpret_cast<uint4*>(args.values + at) = v;
    }
  }

  __device__ void score(const Tile& keys, int tile, float (&s)[kKeys / 8][4]) const {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b[4];
        load_matrices(b, &keys[n * 8 + lane % 8][half * 32 + lane / 8 * 8]);
        multiply_add(s[n], q[2 * half], b[0], b[1]);
        multiply_add(s[n], q[2 * half + 1], b[2], b[3]);
      }
      const int key = tile * kKeys + n * 8 + lane % 4 * 2;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (key + e % 2 >= total) s[n][e] = -INFINITY;
      }
    }
  }

  // Scores become weights relative to the new maximum. A tile has at least one key.
  __device__ void weigh(float (&s)[kKeys / 8][4]) {
    const float scale = 1.44269504F * rsqrtf(static_cast<float>(kHeadDim));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = best[r];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float keep = exp2f((best[r] - top) * scale);
      best[r] = top;
      sum[r] *= keep;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        o[n][2 * r] *= keep;
        o[n][2 * r + 1] *= keep;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          s[n][e] = exp2f((s[n][e] - top) * scale);
          sum[r] += s[n][e];
        }
      }
    }
  }

  __device__ void add_values(const Tile& values, const float (&s)[kKeys / 8][4]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t weights[4] = {pack(s[2 * k][0], s[2 * k][1]), pack(s[2 * k][2], s[2 * k][3]),
                                   pack(s[2 * k + 1][0], s[2 * k + 1][1]),
                                   pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        uint32_t b[4];
        load_transposed(b, &values[k * 16 + lane % 16][n * 16 + lane / 16 * 8]);
        multiply_add(o[2 * n], weights, b[0], b[1]);
        multiply_add(o[2 * n + 1], weights, b[2], b[3]);
      }
    }
  }

  __device__ void scan(int begin, int end, Shared& shared) {
    load_keys(begin, shared.keys[0], shared.values[0]);
    load_queries(shared.q);
    for (int tile = begin; tile < end; ++tile) {
      const int now = (tile - begin) % 2;
      wait_for_copies();
      __syncthreads();  // this tile is there, and everyone is done with the one before
      if (tile + 1 < end) load_keys(tile + 1, shared.keys[1 - now], shared.values[1 - now]);
      float s[kKeys / 8][4];
      score(shared.keys[now], tile, s);
      weigh(s);
      add_values(shared.values[now], s);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    }
  }

  // Of this lane's row r (0, 1).
  __device__ int query(int r) const {
    return warp * 16 + lane / 4 + 8 * r;
  }

  __device__ void store_output() const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_query + query(r);
      if (row >= args.rows) continue;
      uint16_t* const to = args.output + static_cast<int64_t>(row) * hidden() + head * kHeadDim;
      const float part = 1 / sum[r];
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(to + n * 8 + lane % 4 * 2) =
            pack(o[n][2 * r] * part, o[n][2 * r + 1] * part);
      }
    }
  }

  __device__ float* part(int split, int query) const {
    return args.partial +
           ((static_cast<int64_t>(blockIdx.y) * kSplits + split) * kQueries + query) * kPartial;
  }

  __device__ void store_partial() const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float* const to = part(blockIdx.x, query(r));
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<uint2*>(to + n * 8 + lane % 4 * 2) =
            make_uint2(__float_as_uint(o[n][2 * r]), __float_as_uint(o[n][2 * r + 1]));
      }
      if (lane % 4 == 0) {
        *reinterpret_cast<uint2*>(to + kHeadDim) =
            make_uint2(__float_as_uint(best[r]), __float_as_uint(sum[r]));
      }
    }
  }
};

static __global__ void __launch_bounds__(EncoderAttention::kThreads)
    encoder_attention_kernel(const EncoderAttentionArgs args) {
  using A = EncoderAttention;
  __shared__ A::Shared tiles_of_keys;
  A attention(args);
  const A::Share share(attention.total);
  const int split = blockIdx.x, begin = split * share.each;
  if (split >= share.active) return;
  const int tiles = (attention.total + A::kKeys - 1) / A::kKeys;
  attention.scan(begin, min(tiles, begin + share.each), tiles_of_keys);
  if (share.active == 1) {
    attention.store_output();
    return;
  }
  attention.store_partial();
}

// Adds up the splits. Two values of a query to a thread; grid (query values / threads, heads *
// query tiles).
static __global__ void __launch_bounds__(kEncoderThreads)
    encoder_merge_kernel(const EncoderAttentionArgs args) {
  using A = EncoderAttention;
  const A attention(args);
  const A::Share share(attention.total);
  if (share.active == 1) return;
  const int i = static_cast<int>(blockIdx.x) * kEncoderThreads + static_cast<int>(threadIdx.x);
  const int query = i / (A::kHeadDim / 2), d = i % (A::kHeadDim / 2) * 2;
  const int row = attention.first_query + query;
  if (query >= A::kQueries || row >= args.rows) return;
  // All loads before the first use.
  float best[A::kSplits], sum[A::kSplits];
  uint2 values[A::kSplits];
#pragma unroll
  for (int split = 0; split < A::kSplits; ++split) {
    const float* const from = attention.part(min(split, share.active - 1), query);
    best[split] = split < share.active ? __ldcg(from + A::kHeadDim) : -INFINITY;
    sum[split] = __ldcg(from + A::kHeadDim + 1);
    values[split] = __ldcg(reinterpret_cast<const uint2*>(from + d));
  }
  const float scale = 1.44269504F * rsqrtf(static_cast<float>(A::kHeadDim));
  float top = best[0];
#pragma unroll
  for (int split = 1; split < A::kSplits; ++split) top = fmaxf(top, best[split]);
  float total = 0, first = 0, second = 0;
#pragma unroll
  for (int split = 0; split < A::kSplits; ++split) {
    const float keep = exp2f((best[split] - top) * scale);
    total = fmaf(sum[split], keep, total);
    first = fmaf(__uint_as_float(values[split].x), keep, first);
    second = fmaf(__uint_as_float(values[split].y), keep, second);
  }
  uint16_t* const to = args.output + static_cast<int64_t>(row) * args.heads * A::kHeadDim +
                       attention.head * A::kHeadDim + d;
  *reinterpret_cast<uint32_t*>(to) = pack(first / total, second / total);
}

}  // namespace minicpmo::cuda
