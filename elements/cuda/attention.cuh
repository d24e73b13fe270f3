// Rotary embedding, write of the new key and value, and attention of one query row over a static
// cache.
//
// Mapping: grid (splits, kv_heads). A block takes one share of the visible rows of one key/value
// head for all the query heads of its group, so that every key and value is read once. kHeadDim / 8
// lanes share a row (16 bytes each); every such group of lanes keeps its own running maximum, sum
// and weighted values (online softmax: Milakov, Gimelshein 2018), merged at the end over the warp,
// the block, and, by the block that arrives last, over the splits (in a fixed order: results do not
// depend on timing). How many splits take part follows from the number of visible rows, read from
// device memory; the others leave at once.
#pragma once

#include "cuda/decode.h"
#include "cuda/device.cuh"

namespace minicpmo::cuda {

constexpr int kAttentionWarps = 8;
constexpr int kRowsPerSplit = 64;  // a split has at least as many before another one joins
constexpr int kMostSplits = 64;

struct AttentionArgs {
  const float* qkv;  // ((heads + 2 kv_heads) head_dim)
  uint16_t* keys;    // (kv_heads, capacity, head_dim)
  uint16_t* values;
  const float* rope_cos;  // (positions, head_dim / 2)
  const float* rope_sin;
  const DecodeState* state;
  float* output;      // (heads head_dim)
  float* partial;     // (kv_heads, splits, group, head_dim + 2): values, maximum, sum
  uint32_t* arrived;  // (kv_heads), zero between launches
  int capacity, kv_heads;
};

template <int kHeadDim, int kGroup>
struct Attention {
  static constexpr int kLanes = kHeadDim / 8;  // of a row
  static constexpr int kWarpRows = 32 / kLanes;
  static constexpr int kUnroll = kGroup > 2 ? 2 : 4;
  static constexpr int kSlots = kAttentionWarps + 1;  // the last one: the new row
  static constexpr int kThreads = kAttentionWarps * 32;

  struct Shared {
    float q[kGroup][kHeadDim];  // rotated, times log2(e) / sqrt(head_dim)
    float key[kHeadDim], value[kHeadDim];
    float best[kSlots][kGroup], sum[kSlots][kGroup];
    float values[kSlots][kGroup][kHeadDim];
    float split_best[kMostSplits][kGroup], split_sum[kMostSplits][kGroup];
    bool last;
  };

  struct Running {
    float best[kGroup], sum[kGroup], values[kGroup][8];
  };

  // The visible rows before `position`, counted through: [0, front) and then [from, position).
  struct Range {
    int position, front, from, count;
    bool self;  // the new row is visible
    __device__ Range(const DecodeState* state, int capacity) {
      position = min(__ldcg(&state->position), capacity);
      const int f = __ldcg(&state->visible_front), b = __ldcg(&state->visible_from);
      front = min(f, position);
      from = max(b, front);
      count = front + max(0, position - from);
      self = position < f || position >= b;
    }
    __device__ int row(int i) const { return i < front ? i : i - front + from; }
  };

  // Who reads which of the visible rows.
  struct Share {
    int count, active, each;
    __device__ Share(int count_, int splits) : count(count_) {
      active = max(1, min(splits, (count + kRowsPerSplit - 1) / kRowsPerSplit));
      each = (count + active - 1) / active;
    }
    __device__ int begin(int split) const { return min(count, split * each); }
    __device__ int end(int split) const { return min(count, (split + 1) * each); }
  };

  // Half-split rotation (Su et al. 2021, as in GPT-NeoX) of the group's queries and of the new key;
  // the row that goes into the cache is rounded before it is used here, so that it counts the same
  // now and later.
  static __device__ void rotate(const AttentionArgs& args, int position, Shared& s) {
    constexpr int kHalf = kHeadDim / 2;
    const int head = blockIdx.y, angle = min(position, args.capacity - 1) * kHalf;
    const float* const q = args.qkv + head * kGroup * kHeadDim;
    const float* const k = args.qkv + (args.kv_heads * kGroup + head) * kHeadDim;
    const float* const v = k + args.kv_heads * kHeadDim;
    const float scale = 1.44269504F * rsqrtf(static_cast<float>(kHeadDim));
    for (int i = threadIdx.x; i < (kGroup + 1) * kHalf; i += kThreads) {
      const int h = i / kHalf, d = i % kHalf;
      const float* const from = h < kGroup ? q + h * kHeadDim : k;
      const float a = __ldcg(from + d), b = __ldcg(from + d + kHalf);
      const float c = __ldg(args.rope_cos + angle + d);
      const float n = __ldg(args.rope_sin + angle + d);
      const float first = a * c - b * n, second = b * c + a * n;
      if (h < kGroup) {
        s.q[h][d] = first * scale;
        s.q[h][d + kHalf] = second * scale;
      } else {
        s.key[d] = widen(narrow(first));
        s.key[d + kHalf] = widen(narrow(second));
      }
    }
    for (int d = threadIdx.x; d < kHeadDim; d += kThreads)
      s.value[d] = widen(narrow(__ldcg(v + d)));
  }

  static __device__ void store_row(const AttentionArgs& args, int position, const Shared& s) {
    if (position >= args.capacity)
      return;  // a step past the end of a full cache: its result is not used
    const int64_t at = (static_cast<int64_t>(blockIdx.y) * args.capacity + position) * kHeadDim;
    for (int d = threadIdx.x; d < kHeadDim; d += kThreads) {
      args.keys[at + d] = narrow(s.key[d]);
      args.values[at + d] = narrow(s.value[d]);
    }
  }

  static __device__ __forceinline__ uint4 load_row(const uint16_t* cache, int64_t at) {
    return __ldcg(reinterpret_cast<const uint4*>(cache + at));
  }

  // Adds kUnroll rows with scores `score` (-inf: not there) and values `v`.
  static __device__ __forceinline__ void add_rows(Running& r, const float (&score)[kUnroll][kGroup],
                                                  const uint4 (&v)[kUnroll]) {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      float best = r.best[g];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) best = fmaxf(best, score[u][g]);
      if (best == -INFINITY) continue;
      const float keep = exp2f(r.best[g] - best);
      r.best[g] = best;
      r.sum[g] *= keep;
#pragma unroll
      for (int d = 0; d < 8; ++d) r.values[g][d] *= keep;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const float p = exp2f(score[u][g] - best);
        r.sum[g] += p;
        const uint32_t words[4] = {v[u].x, v[u].y, v[u].z, v[u].w};
#pragma unroll
        for (int d = 0; d < 4; ++d) {
          r.values[g][2 * d] = fmaf(p, low_half(words[d]), r.values[g][2 * d]);
          r.values[g][2 * d + 1] = fmaf(p, high_half(words[d]), r.values[g][2 * d + 1]);
        }
      }
    }
  }

  // Rows [begin, end) of the visible ones.
  static __device__ void scan(const AttentionArgs& args, const Range& range, int begin, int end,
                              const Shared& s, Running& r) {
    const int lane = threadIdx.x % 32, part = lane % kLanes;
    const int group = threadIdx.x / 32 * kWarpRows + lane / kLanes;
    constexpr int kStep = kAttentionWarps * kWarpRows;
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.capacity;
    // The loop's bounds are the same for all lanes of a warp: they shuffle.
    for (int i = begin; i < end; i += kStep * kUnroll) {
      uint4 k[kUnroll], v[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int at = min(i + u * kStep + group, end - 1);
        const int64_t offset = (base + range.row(at)) * kHeadDim + part * 8;
        k[u] = load_row(args.keys, offset);
        v[u] = load_row(args.values, offset);
      }
      float score[kUnroll][kGroup];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const float4 a = *reinterpret_cast<const float4*>(&s.q[g][part * 8]);
        const float4 b = *reinterpret_cast<const float4*>(&s.q[g][part * 8 + 4]);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          float x = dot8(k[u], a, b, 0);
#pragma unroll
          for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
          score[u][g] = i + u * kStep + group < end ? x : -INFINITY;
        }
      }
      add_rows(r, score, v);
    }
  }

  // Over the lane groups of a warp; then to shared memory.
  static __device__ void merge_warp(Running& r, Shared& s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % kLanes;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      float best = r.best[g];
#pragma unroll
      for (int d = kLanes; d < 32; d *= 2)
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, d));
      const float keep = r.best[g] == -INFINITY ? 0 : exp2f(r.best[g] - best);
      float sum = r.sum[g] * keep;
#pragma unroll
      for (int d = kLanes; d < 32; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        float x = r.values[g][e] * keep;
#pragma unroll
        for (int d = kLanes; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
        if (lane < kLanes) s.values[warp][g][part * 8 + e] = x;
      }
      if (lane == 0) {
        s.best[warp][g] = best;
        s.sum[warp][g] = sum;
      }
    }
  }

  // The new row as one more slot; `there`: it is visible and this block's to count.
  static __device__ void add_self(bool there, Shared& s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int g = warp; g < kGroup; g += kAttentionWarps) {
      float x = 0;
      for (int d = lane; d < kHeadDim; d += 32) {
        x = fmaf(s.q[g][d], s.key[d], x);
        s.values[kAttentionWarps][g][d] = there ? s.value[d] : 0;
      }
      x = warp_sum(x);
      if (lane == 0) {
        s.best[kAttentionWarps][g] = there ? x : -INFINITY;
        s.sum[kAttentionWarps][g] = there ? 1 : 0;
      }
    }
  }

  // Merges `count` parts, of which part i's maximum, sum and value are given by the three
  // functions.
  template <typename Best, typename Sum, typename Value>
  static __device__ __forceinline__ void merge(int count, Best best_of, Sum sum_of, Value value_of,
                                               float& best, float& sum, float& value) {
    best = -INFINITY;
    for (int i = 0; i < count; ++i) best = fmaxf(best, best_of(i));
    sum = value = 0;
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float one = best_of(i);
      const float keep = one == -INFINITY ? 0 : exp2f(one - best);
      sum = fmaf(sum_of(i), keep, sum);
      value = fmaf(value_of(i), keep, value);
    }
  }

  // Nothing visible at all gives 0 (upstream's additive mask would give a mean over hidden rows; it
  // does not occur).
  static __device__ float quotient(float value, float sum) {
    return sum > 0 ? value / sum : 0;
  }

  static __device__ void merge_block(const AttentionArgs& args, int active, const Shared& s) {
    for (int e = threadIdx.x; e < kGroup * kHeadDim; e += kThreads) {
      const int g = e / kHeadDim, d = e % kHeadDim;
      float best, sum, value;
      merge(
          kSlots, [&](int i) { return s.best[i][g]; }, [&](int i) { return s.sum[i][g]; },
          [&](int i) { return s.values[i][g][d]; }, best, sum, value);
      if (active == 1) {
        args.output[blockIdx.y * kGroup * kHeadDim + e] = quotient(value, sum);
        continue;
      }
      float* const to =
          args.partial + ((blockIdx.y * gridDim.x + blockIdx.x) * kGroup + g) * (kHeadDim + 2);
      to[d] = value;
      if (d == 0) {
        to[kHeadDim] = best;
        to[kHeadDim + 1] = sum;
      }
    }
  }

  // The block of a head that arrives last merges the splits.
  static __device__ void merge_splits(const AttentionArgs& args, int active, Shared& s) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      s.last = atomicAdd(args.arrived + blockIdx.y, 1u) == static_cast<uint32_t>(active - 1);
      if (s.last) args.arrived[blockIdx.y] = 0;
      __threadfence();
    }
    __syncthreads();
    if (!s.last) return;
    constexpr int kPart = kGroup * (kHeadDim + 2);
    const float* const parts = args.partial + blockIdx.y * gridDim.x * kPart;
    for (int e = threadIdx.x; e < active * kGroup; e += kThreads) {
      const int i = e / kGroup, g = e % kGroup;
      const float* const from = parts + i * kPart + g * (kHeadDim + 2) + kHeadDim;
      s.split_best[i][g] = __ldcg(from);
      s.split_sum[i][g] = __ldcg(from + 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < kGroup * kHeadDim; e += kThreads) {
      const int g = e / kHeadDim, d = e % kHeadDim;
      float best, sum, value;
      merge(
          active, [&](int i) { return s.split_best[i][g]; },
          [&](int i) { return s.split_sum[i][g]; },
          [&](int i) { return __ldcg(parts + i * kPart + g * (kHeadDim + 2) + d); }, best, sum,
          value);
      args.output[blockIdx.y * kGroup * kHeadDim + e] = quotient(value, sum);
    }
  }

  // Asks for this block's keys and values before the wait. The position may still move on meanwhile
  // (by one, at a step's first layer): this only brings cache lines closer.
  static __device__ void fetch_ahead(const AttentionArgs& args) {
    const Range range(args.state, args.capacity);
    const Share share(range.count, gridDim.x);
    if (static_cast<int>(blockIdx.x) >= share.active) return;
    constexpr int kLine = 128, kRowLines = kHeadDim * 2 / kLine;
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.capacity;
    const int begin = share.begin(blockIdx.x), end = share.end(blockIdx.x);
    for (int i = threadIdx.x; i < (end - begin) * kRowLines; i += kThreads) {
      const int64_t at =
          (base + range.row(begin + i / kRowLines)) * kHeadDim + i % kRowLines * (kLine / 2);
      fetch_into_l2(args.keys + at);
      fetch_into_l2(args.values + at);
    }
  }
};

template <int kHeadDim, int kGroup>
__global__ void __launch_bounds__(kAttentionWarps * 32, 2)
    attention_kernel(const AttentionArgs args) {
  using A = Attention<kHeadDim, kGroup>;
  __shared__ typename A::Shared s;
  let_next_start();
  A::fetch_ahead(args);
  wait_for_previous();
  const typename A::Range range(args.state, args.capacity);
  const typename A::Share share(range.count, gridDim.x);
  const int split = blockIdx.x;
  if (split >= share.active) return;
  A::rotate(args, range.position, s);
  __syncthreads();
  if (split == 0) A::store_row(args, range.position, s);
  typename A::Running r;
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    r.best[g] = -INFINITY;
    r.sum[g] = 0;
#pragma unroll
    for (int d = 0; d < 8; ++d) r.values[g][d] = 0;
  }
  A::scan(args, range, share.begin(split), share.end(split), s, r);
  A::add_self(split == 0 && range.self, s);
  A::merge_warp(r, s);
  __syncthreads();
  A::merge_block(args, share.active, s);
  if (share.active > 1) A::merge_splits(args, share.active, s);
}

}  // namespace minicpmo::cuda
