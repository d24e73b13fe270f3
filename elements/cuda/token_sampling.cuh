// The two kernels of a draw.
//
// score_tokens_kernel, over the whole device: the logits after the penalty, the maximum of every
// group of 32 of them, and the best token of every chunk.
//
// choose_token_kernel, one block: of the distances of the groups' maxima from the best score it
// makes a histogram, with bins as wide as 1/128 of the distance. The distance at which k groups are
// counted bounds that of the k-th best token; so the candidates, the tokens within that bound, hold
// all that top-k keeps. There are few more than k. They are ranked by counting, which needs no sort
// and few barriers. With top-k off the best few hundred are tried: if top-p drops one of them it
// drops all others too. If that fails (many equal scores; a flat distribution), the same rules are
// applied to all tokens by bisection: about a millisecond, and as exact.
//
// Probabilities are fixed-point numbers, 2^-44 of the best token's: sums do not depend on the order
// and can be taken by any thread.
#pragma once

#include "cuda/draw.cuh"
#include "cuda/token_sampling.h"

namespace minicpmo::cuda {

constexpr int kScoreThreads = 256, kChooseThreads = 1024, kChooseWarps = kChooseThreads / 32;
constexpr int kChunk = 4 * kScoreThreads;  // of a block
constexpr int kGroup = 32, kChunkGroups = kChunk / kGroup;
constexpr int kMaximaPerThread = TokenSampler::kMaxVocabulary / kGroup / kChooseThreads;
constexpr int kCandidates = 2 * kChooseThreads;
using TokenBins = DistanceBins<7>;
static_assert(TokenBins::kCount == 2 * kChooseThreads);
using TokenTurn = CandidateTurn<kChooseThreads>;
constexpr int kTried = 256;  // best tokens, with top-k off

struct TokenArgs {
  const float* logits;  // (vocabulary)
  TokenState* state;
  int32_t* penalised;  // (most_penalised)
  float* scores;       // (chunks kChunk): penalised logits; -inf: not a number, or not there
  float* maxima;       // (chunks kChunkGroups)
  uint64_t* best;      // (chunks): see score_and_id()
  int chunks, vocabulary, most_penalised;
};

// Marks, in a bit for each token of this block's chunk, the penalised ones.
__device__ inline void mark_penalised(const TokenArgs& args, uint32_t* marks) {
  const int count = min(__ldcg(&args.state->penalised), args.most_penalised);
  const uint32_t first = blockIdx.x * kChunk;
  for (int i = threadIdx.x; i < count; i += kScoreThreads) {
    const uint32_t at = static_cast<uint32_t>(__ldcg(args.penalised + i)) - first;
    if (at < kChunk) atomicOr(marks + at / 32, 1u << at % 32);
  }
}

__global__ void __launch_bounds__(kScoreThreads) score_tokens_kernel(const TokenArgs args) {
  __shared__ uint32_t marks[kChunk / 32];
  __shared__ uint64_t warp_best[kScoreThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int at = threadIdx.x * 4, first = blockIdx.x * kChunk + at;
  let_next_start();
  if (threadIdx.x < kChunk / 32) marks[threadIdx.x] = 0;
  wait_for_previous();
  float x[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  if (first + 4 <= args.vocabulary) {
    const float4 v = __ldcg(reinterpret_cast<const float4*>(args.logits + first));
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    for (int i = 0; i < 4; ++i) {
      if (first + i < args.vocabulary) x[i] = __ldcg(args.logits + first + i);
    }
  }
  const float penalty = __ldcg(&args.state->penalty);
  __syncthreads();
  if (penalty > 0 && penalty != 1) mark_penalised(args, marks);
  __syncthreads();
  const uint32_t mine = marks[at / 32] >> at % 32;
  uint64_t best = 0;
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (mine >> i & 1u) x[i] = x[i] < 0 ? x[i] * penalty : x[i] / penalty;
    if (x[i] != x[i]) x[i] = -INFINITY;
    most = fmaxf(most, x[i]);
    const uint64_t p = score_and_id(x[i], first + i);
    best = p > best ? p : best;
  }
  *reinterpret_cast<float4*>(args.scores + first) = make_float4(x[0], x[1], x[2], x[3]);
#pragma unroll
  for (int d = 1; d < kGroup / 4; d *= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, d));
  if (at % kGroup == 0) args.maxima[first / kGroup] = most;
  best = warp_max(best);
  if (lane == 0) warp_best[warp] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kScoreThreads / 32; ++i) best = warp_best[i] > best ? warp_best[i] : best;
  args.best[blockIdx.x] = best;
}

struct ChooseShared {
  float z[kCandidates];
  int32_t id[kCandidates];
  uint64_t weight[kCandidates];
  uint16_t groups[kCandidates];
  uint32_t bins[TokenBins::kCount];
  uint64_t words[kChooseWarps];
  uint32_t counts[kChooseWarps];
  uint32_t bin, group_count, count;
  float kth, uniform;
  int token;
  uint32_t dropped;  // not 0: top-p dropped a candidate
};

__device__ inline uint64_t block_sum(uint64_t v, ChooseShared& s) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.words[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_sum(s.words[threadIdx.x % 32]);
}

// How the scores become probabilities. z = (top - score) / temperature >= 0, infinite for what has
// none; the rules see -z.
struct Softmax {
  float top, temperature;
  // `distance`: top - score.
  __device__ float scaled(float distance) const {
    const float z = distance / temperature;
    return z < INFINITY ? z : INFINITY;
  }
  __device__ float distance(float score) const { return score == top ? 0 : top - score; }
  __device__ float z(float score) const { return scaled(distance(score)); }
};

// --- candidates

// Sets s.bin to the bin that holds the k-th of the counted values; two bins a thread.
__device__ inline void find_bin(uint32_t k, ChooseShared& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t low = s.bins[2 * threadIdx.x], high = s.bins[2 * threadIdx.x + 1];
  uint32_t upto = warp_prefix_sum(low + high);
  if (lane == 31) s.counts[warp] = upto;
  __syncthreads();
  for (int i = 0; i < warp; ++i) upto += s.counts[i];
  const uint32_t before = upto - low - high;
  if (before < k && k <= upto) s.bin = 2 * threadIdx.x + (before + low < k ? 1 : 0);
  __syncthreads();
}

// Lists the tokens within `bound` in s.z, s.id and s.weight; false: more than fit.
__device__ inline bool collect_candidates(const TokenArgs& args, const Softmax& softmax,
                                          const float (&maxima)[kMaximaPerThread],
                                          ChooseShared& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float end = TokenBins::end(s.bin), bound = softmax.scaled(end);
  // A larger distance can only round to the same z if z has lost its precision.
  const float reach = bound < 1e-30F ? INFINITY : end * 1.00001F;
#pragma unroll
  for (int j = 0; j < kMaximaPerThread; ++j) {
    if (maxima[j] == -INFINITY || softmax.distance(maxima[j]) > reach) continue;
    const uint32_t at = atomicAdd(&s.group_count, 1u);
    if (at < kCandidates) s.groups[at] = static_cast<uint16_t>(j * kChooseThreads + threadIdx.x);
  }
  __syncthreads();
  const int groups = static_cast<int>(s.group_count);
  if (groups > kCandidates) return false;
  constexpr int kUnroll = 8;
  for (int i = warp; i < groups; i += kChooseWarps * kUnroll) {
    float x[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int g = i + u * kChooseWarps;
      x[u] = g < groups ? __ldcg(args.scores + s.groups[g] * kGroup + lane) : -INFINITY;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const float z = softmax.z(x[u]);
      if (!(z < INFINITY && z <= bound)) continue;
      const uint32_t at = atomicAdd(&s.count, 1u);
      if (at >= kCandidates) continue;
      s.z[at] = z;
      s.id[at] = s.groups[i + u * kChooseWarps] * kGroup + lane;
      s.weight[at] = static_cast<uint64_t>(exp(-static_cast<double>(z)) * kOne + 0.5);
    }
  }
  __syncthreads();
  return s.count <= kCandidates;
}

// Top-k, top-p and the draw among the candidates; sets s.token. Among equal scores the larger id
// counts as better, as in a stable ascending sort. With top-k off (k <= 0) `total` is the weight of
// all tokens; false: tokens that are no candidates may matter.
__device__ inline bool choose_candidate(int k, double top_p, uint64_t total, ChooseShared& s) {
  constexpr int kRounds = kCandidates / kChooseThreads;
  const int count = static_cast<int>(s.count);
  int parts = 32;
  while (parts > 1 && parts * count > kChooseThreads) parts /= 2;
  int rank[kRounds];
  uint64_t above[kRounds], weight[kRounds];
  float z[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const TokenTurn turn(threadIdx.x, r, parts, count);
    z[r] = turn.there ? s.z[turn.i] : INFINITY;
    weight[r] = turn.first() ? s.weight[turn.i] : 0;
    const int id = turn.there ? s.id[turn.i] : 0;
    int better = 0;
    uint64_t sum = 0;
    if (r * (kChooseThreads / parts) < count) {
      for (int j = turn.part; j < count; j += parts) {
        const float other = s.z[j];
        if (other < z[r] || (other == z[r] && s.id[j] > id)) {
          ++better;
          sum += s.weight[j];
        }
      }
    }
    rank[r] = turn.sum(better);
    above[r] = turn.sum(sum);
    if (turn.first() && rank[r] == k - 1) s.kth = z[r];
  }
  __syncthreads();
  uint64_t all = 0;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (z[r] > s.kth) weight[r] = 0;
    all += weight[r];
  }
  all = k > 0 ? block_sum(all, s) : total;
  const double limit = top_p_limit(top_p, all);
  uint64_t kept = 0;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const TokenTurn turn(threadIdx.x, r, parts, count);
    if (turn.first() && rank[r] > 0 && !(static_cast<double>(all - above[r]) > limit)) {
      weight[r] = 0;
      atomicOr(&s.dropped, 1u);
    }
    kept += weight[r];
    if (turn.first()) s.weight[turn.i] = weight[r];  // nobody reads them since the barrier above
  }
  const uint64_t target = cdf_target(s.uniform, block_sum(kept, s));
  if (k <= 0 && s.dropped == 0) return false;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const TokenTurn turn(threadIdx.x, r, parts, count);
    if (r * (kChooseThreads / parts) >= count) break;
    const int id = turn.there ? s.id[turn.i] : 0;
    uint64_t before = 0;
    for (int j = turn.part; j < count; j += parts) before += s.id[j] < id ? s.weight[j] : 0;
    before = turn.sum(before);
    if (turn.first() && before <= target && target - before < weight[r]) s.token = id;
  }
  __syncthreads();
  return true;
}

// --- all tokens

// Replaces the scores by their z.
__device__ inline void scale_scores(const TokenArgs& args, const Softmax& softmax) {
  const int count = args.chunks * kChunk;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kChooseThreads)
    args.scores[i] = softmax.z(__ldcg(args.scores + i));
  __syncthreads();
}

// By the whole block: the sum over all tokens of value(z).
template <typename Value>
__device__ uint64_t sum_tokens(const TokenArgs& args, ChooseShared& s, Value value) {
  uint64_t sum = 0;
  const int count = args.chunks * kChunk;
#pragma unroll 8
  for (int i = threadIdx.x; i < count; i += kChooseThreads) sum += value(__ldcg(args.scores + i));
  return block_sum(sum, s);
}

// The largest z >= 0 for which holds(z), which is true up to some z and false from there on; 0 if
// there is none.
template <typename Holds>
__device__ float bisect(Holds holds) {
  uint32_t bits = 0;  // those of floats >= 0 are ordered as they are
  for (int b = 30; b >= 0; --b) {
    const uint32_t higher = bits | 1u << b;
    if (holds(__uint_as_float(higher))) bits = higher;
  }
  return __uint_as_float(bits);
}

// What is left of the tokens: all with z < cut, and of those with z == cut, which weigh `weight`
// each, all but the first `dropped`.
struct Kept {
  float cut;
  uint64_t weight, dropped;
};

__device__ inline Kept keep_tokens(const TokenArgs& args, int k, double top_p, ChooseShared& s) {
  float kth = INFINITY;
  if (k > 0) {
    kth = bisect([&](float v) {
      return sum_tokens(args, s, [&](float z) -> uint64_t { return z < v ? 1 : 0; }) <
             static_cast<uint64_t>(k);
    });
    kth = kth < INFINITY ? kth : INFINITY;
  }
  if (top_p >= 1) return {kth, fixed_weight(kth), 0};
  // of those kept by top-k
  const auto from = [&](float v) {
    return sum_tokens(args, s, [&](float z) { return z >= v && z <= kth ? fixed_weight(z) : 0; });
  };
  const uint64_t all = from(0);
  const auto limit = static_cast<uint64_t>(min(top_p_limit(top_p, all), static_cast<double>(all)));
  const float cut = bisect([&](float v) { return v < INFINITY && from(v) > limit; });
  const uint64_t beyond = from(__uint_as_float(__float_as_uint(cut) + 1));
  const uint64_t equal = sum_tokens(args, s, [&](float z) -> uint64_t { return z == cut ? 1 : 0; });
  const uint64_t weight = fixed_weight(cut);
  return {cut, weight, min((limit - beyond) / weight, equal - 1)};
}

// Each warp takes a range of ids. Sets s.token.
__device__ inline void choose_any(const TokenArgs& args, int k, double top_p, ChooseShared& s) {
  const Kept kept = keep_tokens(args, k, top_p, s);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int each = args.chunks * kChunk / kChooseWarps, begin = warp * each;
  uint64_t sum = 0, equal = 0;
  for (int i = begin + lane; i < begin + each; i += 32) {
    const float z = __ldcg(args.scores + i);
    if (z < kept.cut) sum += fixed_weight(z);
    equal += z == kept.cut && z < INFINITY ? 1 : 0;
  }
  sum = warp_sum(sum);
  equal = warp_sum(equal);
  __syncthreads();
  if (lane == 0) {
    s.words[warp] = sum;
    s.counts[warp] = static_cast<uint32_t>(equal);
  }
  __syncthreads();
  uint64_t before = 0, all = 0, mine = 0, equal_before = 0, equals = 0;
  for (int w = 0; w < kChooseWarps; ++w) {
    if (w == warp) before = all, equal_before = equals;
    const uint64_t end = equals + s.counts[w];
    const uint64_t left = end - min(end, max(equals, kept.dropped));
    if (w == warp) mine = s.words[w] + left * kept.weight;
    all += s.words[w] + left * kept.weight;
    equals = end;
  }
  const uint64_t target = cdf_target(s.uniform, all);
  if (before <= target && target - before < mine) {
    for (int i = begin + lane;; i += 32) {
      const float z = __ldcg(args.scores + i);
      const bool tie = z == kept.cut && z < INFINITY;
      const unsigned ties = __ballot_sync(kAllLanes, tie);
      const uint64_t order = equal_before + __popc(ties & ((1u << lane) - 1));
      const bool in = z < kept.cut || (tie && order >= kept.dropped);
      const uint64_t upto = before + warp_prefix_sum(in ? fixed_weight(z) : 0);
      const unsigned hits = __ballot_sync(kAllLanes, upto > target);
      if (hits != 0) {
        if (lane == __ffs(static_cast<int>(hits)) - 1) s.token = i;
        break;
      }
      before = __shfl_sync(kAllLanes, upto, 31);
      equal_before += __popc(ties);
    }
  }
  __syncthreads();
}

// By one thread.
__device__ inline void take_token(const TokenArgs& args, int token, bool random) {
  TokenState& state = *args.state;
  const float logit = __ldcg(args.logits + token);
  const int listed = __ldcg(&state.penalised), drawn = __ldcg(&state.drawn);
  const uint64_t counter = __ldcg(&state.counter);
  state.token = token;
  if (!(logit - logit == 0)) state.not_finite = 1;
  if (listed >= 0 && listed < args.most_penalised) {
    args.penalised[listed] = token;
    state.penalised = listed + 1;
  }
  if (drawn >= 0 && drawn < kMaxDrawnTokens) state.ids[drawn] = token;
  state.drawn = drawn + 1;
  if (random) state.counter = counter + 1;
}

__global__ void __launch_bounds__(kChooseThreads) choose_token_kernel(const TokenArgs args) {
  __shared__ ChooseShared s;
  let_next_start();
  s.bins[threadIdx.x] = s.bins[threadIdx.x + kChooseThreads] = 0;
  if (threadIdx.x == 0) {
    s.bin = TokenBins::kCount - 1;
    s.group_count = s.count = 0;
    s.kth = INFINITY;
    s.token = 0;
    s.dropped = 0;
  }
  wait_for_previous();
  uint64_t best = static_cast<int>(threadIdx.x) < args.chunks ? __ldcg(args.best + threadIdx.x) : 0;
  float maxima[kMaximaPerThread];
#pragma unroll
  for (int j = 0; j < kMaximaPerThread; ++j) {
    const int g = j * kChooseThreads + threadIdx.x;
    maxima[j] = g < args.chunks * kChunkGroups ? __ldcg(args.maxima + g) : -INFINITY;
  }
  const float temperature = __ldcg(&args.state->temperature);
  const int k = __ldcg(&args.state->top_k);
  const double top_p = __ldcg(&args.state->top_p);
  if (threadIdx.x == kChooseThreads - 1) {
    s.uniform = philox_uniform(__ldcg(&args.state->seed), __ldcg(&args.state->stream),
                               __ldcg(&args.state->counter));
  }
  best = warp_max(best);
  if (threadIdx.x % 32 == 0) s.words[threadIdx.x / 32] = best;
  __syncthreads();
  best = warp_max(s.words[threadIdx.x % 32]);
  const Softmax softmax{score_of(best), temperature};
  const bool random = temperature > 0;
  if (!random || softmax.top == -INFINITY) {  // the second: nothing to choose from
    if (threadIdx.x == 0) take_token(args, id_of(best), random);
    return;
  }
  const int keep = k < args.vocabulary ? max(k, 0) : 0;  // 0: all
  bool chosen = false;
  if (keep > 0 || top_p < 1) {
#pragma unroll
    for (int j = 0; j < kMaximaPerThread; ++j) {
      if (maxima[j] > -INFINITY) atomicAdd(&s.bins[TokenBins::of(softmax.distance(maxima[j]))], 1u);
    }
    __syncthreads();
    find_bin(static_cast<uint32_t>(keep > 0 ? keep : kTried), s);
    chosen = collect_candidates(args, softmax, maxima, s);
  }
  if (chosen && keep > 0) {
    choose_candidate(keep, top_p, 0, s);
  } else {
    scale_scores(args, softmax);
    if (chosen) chosen = choose_candidate(0, top_p, sum_tokens(args, s, fixed_weight), s);
    if (!chosen) choose_any(args, keep, top_p, s);
  }
  if (threadIdx.x == 0) take_token(args, s.token, true);
}

}  // namespace minicpmo::cuda
