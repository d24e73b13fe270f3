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
//
// All is latency here, so that what can be known before the query is there comes before the wait
// for the kernel that makes it: the state, the angles, the first keys and values. The state is read
// again after the wait, and what was loaded counts only if it is still the same: then every row
// before `position` had been written when they were read.
#pragma once

#include "cuda/decode.h"
#include "cuda/device.cuh"

namespace minicpmo::cuda {

constexpr int kAttentionWarps = 8;
constexpr int kMostSplits = 64;

struct AttentionArgs {
  const float* qkv;  // ((heads + 2 kv_heads) head_dim)
  uint16_t* keys;    // (kv_heads, capacity, head_dim)
  uint16_t* values;
  const float* rope_cos;  // (positions, head_dim / 2)
  const float* rope_sin;
  const DecodeState* state;
  float* output;      // (heads head_dim)
  float* partial;     // (kv_heads, splits, group, head_dim), and then (kv_heads, splits, group, 2):
                      // values; maximum and sum
  uint32_t* arrived;  // (kv_heads), zero between launches
  int capacity, kv_heads;
};

template <int kHeadDim, int kGroup>
struct Attention {
  static constexpr int kLanes = kHeadDim / 8;  // of a row
  static constexpr int kWarpRows = 32 / kLanes;
  static constexpr int kUnroll = kGroup > 2 ? 2 : 4;
  static constexpr int kStep = kAttentionWarps * kWarpRows;
  // A split has at least as many rows before another one joins.
  static constexpr int kRowsPerSplit = kStep * kUnroll * (kGroup > 2 ? 2 : 1);
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
    __device__ Range(const DecodeState& state, int capacity) {
      // Within bounds whatever is read there before the wait.
      position = max(0, min(state.position, capacity));
      const int f = max(0, state.visible_front), b = state.visible_from;
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
      const int wanted = (count + kRowsPerSplit - 1) / kRowsPerSplit;
      active = max(1, min(splits, wanted));
      each = (count + active - 1) / active;
    }
    __device__ int begin(int split) const { return min(count, split * each); }
    __device__ int end(int split) const { return min(count, (split + 1) * each); }
  };

  static __device__ DecodeState load_state(const DecodeState* state) {
    DecodeState s;
    s.position = __ldcg(&state->position);
    s.visible_front = __ldcg(&state->visible_front);
    s.visible_from = __ldcg(&state->visible_from);
    return s;
  }

  static constexpr int kHalf = kHeadDim / 2;
  static constexpr int kRotations = (kGroup + 1) * kHalf;  // of two numbers each
  static constexpr int kPairs = (kRotations + kThreads - 1) / kThreads;
  static_assert(kHeadDim <= kThreads);

  // The cosines and sines of this thread's rotations.
  struct Angles {
    float c[kPairs], n[kPairs];
  };
  static __device__ __forceinline__ Angles load_angles(const AttentionArgs& args, int position) {
    const int angle = min(position, args.capacity - 1) * kHalf;
    Angles a;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int d = (threadIdx.x + j * kThreads) % kHalf;
      a.c[j] = __ldg(args.rope_cos + angle + d);
      a.n[j] = __ldg(args.rope_sin + angle + d);
    }
    return a;
  }

  // What this thread rotates, and its number of the new value.
  struct Fresh {
    float a[kPairs], b[kPairs], value;
  };
  static __device__ __forceinline__ Fresh load_fresh(const AttentionArgs& args) {
    const int head = blockIdx.y, t = threadIdx.x;
    const float* const q = args.qkv + head * kGroup * kHeadDim;
    const float* const k = args.qkv + (args.kv_heads * kGroup + head) * kHeadDim;
    const float* const v = k + args.kv_heads * kHeadDim;
    Fresh x;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = min(t + j * kThreads, kRotations - 1), h = i / kHalf, d = i % kHalf;
      const float* const from = h < kGroup ? q + h * kHeadDim : k;
      x.a[j] = __ldcg(from + d);
      x.b[j] = __ldcg(from + d + kHalf);
    }
    x.value = __ldcg(v + t % kHeadDim);
    return x;
  }

  // Half-split rotation (Su et al. 2021, as in GPT-NeoX) of the group's queries and of the new key;
  // the row that goes into the cache is rounded before it is used here, so that it counts the same
  // now and later.
  static __device__ void rotate(const Fresh& x, const Angles& angles, Shared& s) {
    const float scale = 1.44269504F * rsqrtf(static_cast<float>(kHeadDim));
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = threadIdx.x + j * kThreads, h = i / kHalf, d = i % kHalf;
      const float first = x.a[j] * angles.c[j] - x.b[j] * angles.n[j];
      const float second = x.b[j] * angles.c[j] + x.a[j] * angles.n[j];
      if (h < kGroup) {
        s.q[h][d] = first * scale;
        s.q[h][d + kHalf] = second * scale;
      } else if (h == kGroup) {
        s.key[d] = widen(narrow(first));
        s.key[d + kHalf] = widen(narrow(second));
      }
    }
    if (threadIdx.x < kHeadDim) s.value[threadIdx.x] = widen(narrow(x.value));
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

  struct Rows {
    uint4 k[kUnroll], v[kUnroll];
  };

  // The kStep kUnroll rows from the first'th visible one on, as far as there are any before `end`.
  static __device__ __forceinline__ void load_rows(const AttentionArgs& args, const Range& range,
                                                   int first, int end, Rows& rows) {
    const int lane = threadIdx.x % 32, part = lane % kLanes;
    const int group = threadIdx.x / 32 * kWarpRows + lane / kLanes;
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.capacity;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = max(0, min(first + u * kStep + group, end - 1));
      const int row = min(range.row(at), args.capacity - 1);  // if there is none at all
      const int64_t offset = (base + row) * kHeadDim + part * 8;
      rows.k[u] = load_row(args.keys, offset);
      rows.v[u] = load_row(args.values, offset);
    }
  }

  // Rows [begin, end) of the visible ones; `rows` holds the first ones.
  static __device__ void scan(const AttentionArgs& args, const Range& range, int begin, int end,
                              const Shared& s, Rows& rows, Running& r) {
    const int lane = threadIdx.x % 32, part = lane % kLanes;
    const int group = threadIdx.x / 32 * kWarpRows + lane / kLanes;
    // The loop's bounds are the same for all lanes of a warp: they shuffle.
    for (int i = begin; i < end; i += kStep * kUnroll) {
      Rows next;
      if (i + kStep * kUnroll < end) load_rows(args, range, i + kStep * kUnroll, end, next);
      float score[kUnroll][kGroup];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const float4 a = *reinterpret_cast<const float4*>(&s.q[g][part * 8]);
        const float4 b = *reinterpret_cast<const float4*>(&s.q[g][part * 8 + 4]);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          float x = dot8(rows.k[u], a, b, 0);
#pragma unroll
          for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
          score[u][g] = i + u * kStep + group < end ? x : -INFINITY;
        }
      }
      add_rows(r, score, rows.v);
      rows = next;
    }
  }

  // Over the lane groups of a warp; then to shared memory.
  static __device__ void merge_warp(Running& r, Shared& s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % kLanes;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      float best = r.best[g];
#pragma unroll
      for (int d = kLanes; d < 32; d *= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, d));
      const float keep = r.best[g] == -INFINITY ? 0 : exp2f(r.best[g] - best);
      float sum = r.sum[g] * keep;
#pragma unroll
      for (int d = kLanes; d < 32; d *= 2) sum += __shfl_xor_sync(kAllLanes, sum, d);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        float x = r.values[g][e] * keep;
#pragma unroll
        for (int d = kLanes; d < 32; d *= 2) x += __shfl_xor_sync(kAllLanes, x, d);
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
      const int part = (blockIdx.y * gridDim.x + blockIdx.x) * kGroup + g;
      args.partial[part * kHeadDim + d] = value;
      if (d == 0) {
        float* const to = args.partial + gridDim.y * gridDim.x * kGroup * kHeadDim + part * 2;
        to[0] = best;
        to[1] = sum;
      }
    }
  }

  // Whether all `active` blocks of this head have come here, this one last.
  static __device__ bool is_last(const AttentionArgs& args, int active, Shared& s) {
    __syncthreads();
    if (threadIdx.x == 0) {
      fence_device();  // for the whole block: the barrier comes before it
      s.last = atomicAdd(args.arrived + blockIdx.y, 1u) == static_cast<uint32_t>(active - 1);
      if (s.last) args.arrived[blockIdx.y] = 0;
      fence_device();
    }
    __syncthreads();
    return s.last;
  }

  // The block of a head that arrives last merges the splits; a thread takes four numbers. A batch
  // of loads is under way at once.
  static __device__ void merge_splits(const AttentionArgs& args, int active, Shared& s) {
    if (!is_last(args, active, s)) return;
    constexpr int kBatch = 16, kQuads = kGroup * kHeadDim / 4;
    static_assert(kQuads <= kThreads);
    const int quad = min(static_cast<int>(threadIdx.x), kQuads - 1), g = quad / (kHeadDim / 4);
    const auto* const values = reinterpret_cast<const float4*>(args.partial) +
                               static_cast<int>(blockIdx.y * gridDim.x) * kQuads + quad;
    const auto* const stats =
        reinterpret_cast<const float2*>(args.partial + gridDim.y * gridDim.x * kGroup * kHeadDim) +
        blockIdx.y * gridDim.x * kGroup;
    float4 v[kBatch];
    const auto load = [&](int first) {
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        v[u] = first + u < active ? __ldcg(values + (first + u) * kQuads) : make_float4(0, 0, 0, 0);
      }
    };
    load(0);
    for (int e = threadIdx.x; e < active * kGroup; e += kThreads) {
      const float2 stat = __ldcg(stats + e);
      s.split_best[e / kGroup][e % kGroup] = stat.x;
      s.split_sum[e / kGroup][e % kGroup] = stat.y;
    }
    __syncthreads();
    float best = -INFINITY, sum = 0, out[4] = {};
    for (int i = 0; i < active; ++i) best = fmaxf(best, s.split_best[i][g]);
    for (int first = 0; first < active; first += kBatch) {
      if (first > 0) load(first);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (first + u >= active) break;
        const float one = s.split_best[first + u][g];
        const float keep = one == -INFINITY ? 0 : exp2f(one - best);
        sum = fmaf(s.split_sum[first + u][g], keep, sum);
        out[0] = fmaf(v[u].x, keep, out[0]);
        out[1] = fmaf(v[u].y, keep, out[1]);
        out[2] = fmaf(v[u].z, keep, out[2]);
        out[3] = fmaf(v[u].w, keep, out[3]);
      }
    }
    if (threadIdx.x >= kQuads) return;
    reinterpret_cast<float4*>(args.output)[blockIdx.y * kQuads + quad] = make_float4(
        quotient(out[0], sum), quotient(out[1], sum), quotient(out[2], sum), quotient(out[3], sum));
  }

  // Asks for this block's keys and values beyond the first batch: only brings cache lines closer.
  static __device__ void fetch_ahead(const AttentionArgs& args, const Range& range, int begin,
                                     int end) {
    constexpr int kLine = 128, kRowLines = kHeadDim * 2 / kLine;
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.capacity;
    begin += kStep * kUnroll;
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
  const int split = blockIdx.x;
  const DecodeState early = A::load_state(args.state);
  typename A::Range range(early, args.capacity);
  typename A::Share share(range.count, gridDim.x);
  typename A::Angles angles = A::load_angles(args, range.position);
  typename A::Rows rows;
  if (split < share.active) {
    A::load_rows(args, range, share.begin(split), share.end(split), rows);
    A::fetch_ahead(args, range, share.begin(split), share.end(split));
  }
  wait_for_previous();
  const DecodeState state = A::load_state(args.state);
  const typename A::Fresh fresh = A::load_fresh(args);
  if (state.position != early.position || state.visible_front != early.visible_front ||
      state.visible_from != early.visible_from) {
    range = typename A::Range(state, args.capacity);
    share = typename A::Share(range.count, gridDim.x);
    angles = A::load_angles(args, range.position);
    A::load_rows(args, range, share.begin(split), share.end(split), rows);
  }
  if (split >= share.active) return;
  A::rotate(fresh, angles, s);
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
  A::scan(args, range, share.begin(split), share.end(split), s, rows, r);
  A::add_self(split == 0 && range.self, s);
  A::merge_warp(r, s);
  __syncthreads();
  A::merge_block(args, share.active, s);
  if (share.active > 1) A::merge_splits(args, share.active, s);
}

}  // namespace minicpmo::cuda
