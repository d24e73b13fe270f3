// Draws the four codes of a step on the device and makes everything ready for the next one, so that
// steps can follow one another without the host. The rules are those of engine/sampling.h
// (temperature, top-p, top-k, end code barred, inverse CDF with Philox numbers), which the tests
// compare with.
//
// Mapping: one block, a warp for each book. Of the (at most 1024) scores only those can survive
// top-k that reach the k-th best of the 32 lanes' own maxima; these few are ranked by counting,
// which needs no sort and no barrier. exp in float32, sums of probabilities in float64.
#pragma once

#include "cuda/decode.h"
#include "cuda/device.cuh"
#include "cuda/philox.cuh"

namespace minicpmo::cuda {

constexpr int kMaxTokens = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

// One warp's candidates, in the order of their ids.
struct Candidates {
  float score[kMaxTokens];
  double weight[kMaxTokens];
  int16_t id[kMaxTokens];
  int16_t rank[kMaxTokens];
};

struct Draw {
  int top_k, min_keep;
  double top_p;
  bool warp_scores, may_end;  // top-p and top-k apply; the end code may be drawn
  float uniform;
};

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  return v;
}

__device__ __forceinline__ double warp_sum_double(double v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}

// The best score's id, the first of equal ones; 0 if all are -inf.
template <int kPerLane>
__device__ int best_id(const float (&x)[kPerLane]) {
  const int lane = threadIdx.x % 32;
  float best = -INFINITY;
  int id = kMaxTokens;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (x[j] > best) {
      best = x[j];
      id = j * 32 + lane;
    }
  }
  const float top = warp_max(best);
  id = best == top ? id : kMaxTokens;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) id = min(id, __shfl_xor_sync(kAllLanes, id, d));
  return id == kMaxTokens ? 0 : id;
}

// At least k scores are >= the result (k <= 32): the k-th best of the lanes' maxima.
template <int kPerLane>
__device__ float lower_bound_of_top(const float (&x)[kPerLane], int k) {
  float mine = -INFINITY;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) mine = fmaxf(mine, x[j]);
  int better = 0;
#pragma unroll
  for (int l = 0; l < 32; ++l) {
    const float other = __shfl_sync(kAllLanes, mine, l);
    better += other > mine || (other == mine && l < static_cast<int>(threadIdx.x % 32));
  }
  return warp_max(better >= k - 1 ? mine : -INFINITY);
}

// Collects the scores >= bound (and > -inf) in the order of their ids; returns how many.
template <int kPerLane>
__device__ int collect(const float (&x)[kPerLane], float bound, Candidates& c) {
  const int lane = threadIdx.x % 32;
  int count = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const bool in = x[j] >= bound && x[j] > -INFINITY;
    const unsigned votes = __ballot_sync(kAllLanes, in);
    if (in) {
      const int at = count + __popc(votes & ((1u << lane) - 1));
      c.score[at] = x[j];
      c.id[at] = static_cast<int16_t>(j * 32 + lane);
    }
    count += __popc(votes);
  }
  __syncwarp();
  return count;
}

// Sets to -inf the candidates that top-p and then top-k drop. `sum`: of exp(score - top) over all
// scores. Among equal scores the one with the larger id counts as better, as in a stable ascending
// sort.
__device__ inline void drop(const Draw& draw, int tokens, float top, double sum, int count,
                            Candidates& c) {
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < count; i += 32) c.weight[i] = expf(c.score[i] - top);
  __syncwarp();
  const int k = draw.top_k > 0 ? max(draw.top_k, draw.min_keep) : tokens;
  const double limit = draw.top_p >= 1 ? -1.0 : 1.0 - draw.top_p;
  const int safe = max(draw.min_keep, 1);
  float kth = -INFINITY;  // the k-th best score that top-p keeps
  for (int i = lane; i < count; i += 32) {
    const float mine = c.score[i];
    int rank = 0;
    double above = 0;
    for (int other = 0; other < count; ++other) {
      const float score = c.score[other];
      if (score > mine || (score == mine && other > i)) {
        ++rank;
        above += c.weight[other];
      }
    }
    const bool kept = rank < safe || (sum - above) / sum > limit;
    c.rank[i] = static_cast<int16_t>(kept ? rank : -1);
    if (kept && rank == k - 1) kth = mine;
  }
  kth = warp_max(kth);
  __syncwarp();  // all have read the scores that change now
  for (int i = lane; i < count; i += 32) {
    if (c.rank[i] < 0 || c.score[i] < kth) c.score[i] = -INFINITY;
  }
  __syncwarp();
}

// Inverse CDF over the candidates in the order of their ids; -1 if none is left.
__device__ inline int pick(float uniform, int count, Candidates& c) {
  const int lane = threadIdx.x % 32;
  float top = -INFINITY;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, c.score[i]);
  top = warp_max(top);
  if (top == -INFINITY) return -1;
  double sum = 0;
  for (int i = lane; i < count; i += 32) {
    const double w = c.score[i] == -INFINITY ? 0.0 : static_cast<double>(expf(c.score[i] - top));
    c.weight[i] = w;
    sum += w;
  }
  const double target = static_cast<double>(uniform) * warp_sum_double(sum);
  __syncwarp();
  double before = 0;
  int last = -1;
  for (int first = 0; first < count; first += 32) {
    const int i = first + lane;
    const double w = i < count ? c.weight[i] : 0.0;
    double cumulative = w;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const double lower = __shfl_up_sync(kAllLanes, cumulative, d);
      if (lane >= d) cumulative += lower;
    }
    cumulative += before;
    const unsigned hits = __ballot_sync(kAllLanes, w > 0 && cumulative > target);
    if (hits != 0) return c.id[first + __ffs(static_cast<int>(hits)) - 1];
    const unsigned any = __ballot_sync(kAllLanes, w > 0);
    if (any != 0) last = c.id[first + 31 - __clz(static_cast<int>(any))];
    before = __shfl_sync(kAllLanes, cumulative, 31);
  }
  return last;
}

// x: this lane's scores, divided by the temperature, NaN as -inf; id = 32 j + lane.
template <int kPerLane>
__device__ int draw_code(const Draw& draw, int tokens, float (&x)[kPerLane], Candidates& c) {
  float mine = -INFINITY;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) mine = fmaxf(mine, x[j]);
  const float top = warp_max(mine);
  const bool few = draw.warp_scores && draw.top_k > 0 && max(draw.top_k, draw.min_keep) <= 32;
  const float bound = few ? lower_bound_of_top(x, max(draw.top_k, draw.min_keep)) : -INFINITY;
  const int count = collect(x, bound, c);
  if (count == 0 || top == INFINITY) return best_id(x);
  if (draw.warp_scores) {
    double sum = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum += x[j] == -INFINITY ? 0.0F : expf(x[j] - top);
    drop(draw, tokens, top, warp_sum_double(sum), count, c);
  }
  if (!draw.may_end) {
    for (int i = threadIdx.x % 32; i < count; i += 32) {
      if (c.id[i] == tokens - 1) c.score[i] = -INFINITY;
    }
    __syncwarp();
  }
  const int id = pick(draw.uniform, count, c);
  return id < 0 ? best_id(x) : id;
}

struct DrawArgs {
  const float* logits;        // (books, tokens)
  const uint16_t* embedding;  // (books, tokens, hidden)
  SpeechState* state;
  float* x;  // (hidden)
  int tokens, hidden, capacity;
};

constexpr int kDrawThreads = 32 * kSpeechBooks;

static_assert(sizeof(SpeechState) % 4 == 0);

// By the whole block. Past L1, which may hold what an earlier kernel read.
template <bool kFromGlobal>
__device__ void copy_state(const SpeechState& from, SpeechState& to) {
  const auto* const source = reinterpret_cast<const uint32_t*>(&from);
  auto* const target = reinterpret_cast<uint32_t*>(&to);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(SpeechState) / 4); i += kDrawThreads) {
    target[i] = kFromGlobal ? __ldcg(source + i) : source[i];
  }
}

// What one thread does with the four codes once they are known.
__device__ inline void move_on(SpeechState& s, const int* row, bool drawn, int tokens,
                               int capacity) {
  bool ended = false;
  for (int b = 0; b < kSpeechBooks; ++b) ended = ended || row[b] == tokens - 1;
  if (drawn) s.counter += kSpeechBooks;
  s.ended = ended;
  ++s.step;
  if (!ended) {
    for (int b = 0; b < kSpeechBooks; ++b) s.codes[s.count][b] = s.last[b] = row[b];
    ++s.count;
  }
  ++s.decode.position;
  s.decode.visible_front = speech_visible_front(s, s.decode.position);
  if (s.decode.position >= capacity) s.limit = s.step;  // no row left for another step
}

// Eight values of the next input, from eight of each book.
__device__ inline void add_embeddings(const DrawArgs& args, const int* row, int d) {
  float sum[8] = {};
  uint4 v[kSpeechBooks];
#pragma unroll
  for (int b = 0; b < kSpeechBooks; ++b) {
    const int64_t at = (static_cast<int64_t>(b) * args.tokens + row[b]) * args.hidden + d;
    v[b] = __ldg(reinterpret_cast<const uint4*>(args.embedding + at));
  }
#pragma unroll
  for (int b = 0; b < kSpeechBooks; ++b) {
    const uint32_t words[4] = {v[b].x, v[b].y, v[b].z, v[b].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += low_half(words[i]);
      sum[2 * i + 1] += high_half(words[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) args.x[d + i] = sum[i];
}

__global__ void __launch_bounds__(kDrawThreads) draw_codes_kernel(const DrawArgs args) {
  constexpr int kPerLane = kMaxTokens / 32;
  __shared__ int row[kSpeechBooks];
  __shared__ SpeechState s;  // a copy, so that its fields come in one round trip
  let_next_start();
  wait_for_previous();
  copy_state<true>(*args.state, s);
  __syncthreads();
  const int book = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool idle = s.ended != 0 || s.step >= s.limit || s.count >= kMaxCallCodes;
  if (idle) {
    if (lane == 0) row[book] = s.last[book];
  } else {
    const float temperature = s.temperature[book];
    float x[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int id = j * 32 + lane;
      float score = id < args.tokens ? __ldcg(args.logits + book * args.tokens + id) : -INFINITY;
      if (score != score) score = -INFINITY;
      x[j] = temperature > 0 ? score / temperature : score;
    }
    const bool may_end = s.step >= s.min_steps;
    const bool first = s.decode.position == s.front_rows + s.text_slots;
    int id;
    if (temperature > 0) {
      const Draw draw{s.top_k, s.min_keep, s.top_p,
                      !first,  may_end,    philox_uniform(s.seed, s.stream, s.counter + book)};
      id = draw_code(draw, args.tokens, x, launched_shared<Candidates>()[book]);
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        if (!may_end && j * 32 + lane == args.tokens - 1) x[j] = -INFINITY;
      }
      id = best_id(x);
    }
    if (lane == 0) row[book] = id;
  }
  __syncthreads();
  // The end code has an embedding too; after it nothing reads x.
  for (int d = threadIdx.x * 8; d < args.hidden; d += kDrawThreads * 8)
    add_embeddings(args, row, d);
  if (idle) return;
  if (threadIdx.x == 0) move_on(s, row, s.temperature[0] > 0, args.tokens, args.capacity);
  __syncthreads();
  copy_state<false>(s, *args.state);
}

}  // namespace minicpmo::cuda
