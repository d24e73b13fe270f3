// Draws the four codes of a step on the device and makes everything ready for the next one, so that
// steps can follow one another without the host. The rules are those of engine/sampling.h
// (temperature, top-p, top-k, end code barred, inverse CDF with Philox numbers), which the tests
// compare with.
//
// Mapping: one block, eight warps for each book. A histogram of the scores' distances from the best
// one bounds that of the k-th best; the scores within the bound, few more than k, are ranked by
// counting, which needs no sort and few barriers. exp in float32; probabilities are fixed-point
// numbers, so that their sums do not depend on the order.
#pragma once

#include "cuda/decode.h"
#include "cuda/device.cuh"
#include "cuda/draw.cuh"

namespace minicpmo::cuda {

constexpr int kMaxTokens = 1024;
constexpr int kBookThreads = 256, kBookWarps = kBookThreads / 32;
constexpr int kDrawThreads = kBookThreads * kSpeechBooks;
constexpr int kPerThread = kMaxTokens / kBookThreads;  // scores, and rounds over the candidates
using BookBins = DistanceBins<4>;
static_assert(BookBins::kCount == kBookThreads);
using BookTurn = CandidateTurn<kBookThreads>;

struct DrawArgs {
  const float* logits;        // (books, tokens)
  const uint16_t* embedding;  // (books, tokens, hidden)
  SpeechState* state;
  float* x;  // (hidden)
  int tokens, hidden, capacity;
};

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

// What the threads of a book share. Distances are from the book's best score, after the
// temperature.
struct Book {
  float distance[kMaxTokens];  // the candidates
  uint64_t weight[kMaxTokens];
  int16_t id[kMaxTokens];
  uint32_t bins[kBookThreads];
  uint64_t best[kBookWarps], sum[kBookWarps], kept[kBookWarps];
  uint32_t counts[kBookWarps];
  float least[kBookWarps];
  uint32_t bin;
  int count;
  float kth, uniform;
};

struct DrawShared {
  Book books[kSpeechBooks];
  SpeechState state;  // a copy, so that its fields come in one round trip
  int row[kSpeechBooks];
};

template <typename T>
__device__ __forceinline__ T sum_of_warps(const T (&parts)[kBookWarps]) {
  T sum = 0;
#pragma unroll
  for (int w = 0; w < kBookWarps; ++w) sum += parts[w];
  return sum;
}

// Draws every book's code into s.row, by the whole block.
__device__ inline void draw_rows(const float (&logits)[kPerThread], int tokens, DrawShared& s) {
  const int index = threadIdx.x / kBookThreads, thread = threadIdx.x % kBookThreads;
  const int lane = thread % 32, warp = thread / 32;
  Book& book = s.books[index];
  const SpeechState& state = s.state;
  const float temperature = state.temperature[index];
  const bool may_end = state.step >= state.min_steps;
  // top-p and top-k do not apply to the first row of codes
  const bool all = state.decode.position == state.front_rows + state.text_slots;
  const int k = !all && state.top_k > 0 ? max(state.top_k, state.min_keep) : 0;

  float x[kPerThread];
  uint64_t best = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int id = j * kBookThreads + thread;
    x[j] = logits[j] == logits[j] && id < tokens ? logits[j] : -INFINITY;
    if (temperature > 0) {
      x[j] /= temperature;
    } else if (!may_end && id == tokens - 1) {
      x[j] = -INFINITY;
    }
    const uint64_t both = id < tokens ? score_and_id(x[j], id) : 0;
    best = both > best ? both : best;
  }
  best = warp_max(best);
  if (lane == 0) book.best[warp] = best;
  if (thread == kBookThreads - 1)
    book.uniform = philox_uniform(state.seed, state.stream, state.counter + index);
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kBookWarps; ++w) best = book.best[w] > best ? book.best[w] : best;
  if (thread == 0) s.row[index] = id_of(best);  // unless another one is drawn
  const float top = score_of(best);
  const bool draws = temperature > 0 && top > -INFINITY && top < INFINITY;

  uint64_t weight[kPerThread], sum = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    x[j] = draws ? top - x[j] : INFINITY;  // from here on the distance
    weight[j] = fixed_weight(x[j]);
    sum += weight[j];
    if (x[j] < INFINITY) atomicAdd(&book.bins[BookBins::of(x[j])], 1u);
  }
  sum = warp_sum(sum);
  if (lane == 0) book.sum[warp] = sum;
  __syncthreads();
  sum = sum_of_warps(book.sum);
  const uint32_t here = book.bins[thread];
  uint32_t upto = warp_prefix_sum(here);
  if (lane == 31) book.counts[warp] = upto;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kBookWarps; ++w) upto += w < warp ? book.counts[w] : 0;
  const auto wanted = static_cast<uint32_t>(k);
  if (upto - here < wanted && wanted <= upto) book.bin = thread;
  __syncthreads();

  const float bound = BookBins::end(book.bin);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    if (!(x[j] < INFINITY && x[j] <= bound)) continue;
    const int at = atomicAdd(&book.count, 1);
    book.distance[at] = x[j];
    book.id[at] = static_cast<int16_t>(j * kBookThreads + thread);
    book.weight[at] = weight[j];
  }
  __syncthreads();

  // Top-p, then top-k. Among equal scores the one with the larger id counts as better, as in a
  // stable ascending sort.
  const int count = book.count, safe = max(state.min_keep, 1);
  const double limit = all ? -1.0 : top_p_limit(state.top_p, sum);
  int parts = 32;
  while (parts > 1 && parts * count > kBookThreads) parts /= 2;
  const int round_size = kBookThreads / parts;
  bool kept[kPerThread];
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
    kept[r] = false;
    if (r * round_size >= count) continue;
    const BookTurn turn(thread, r, parts, count);
    const float mine = turn.there ? book.distance[turn.i] : INFINITY;
    const int id = turn.there ? book.id[turn.i] : 0;
    int rank = 0;
    uint64_t above = 0;
#pragma unroll 4
    for (int i = turn.part; i < count; i += parts) {
      const float other = book.distance[i];
      const bool better = other < mine || (other == mine && book.id[i] > id);
      rank += better;
      above += better ? book.weight[i] : 0;
    }
    rank = turn.sum(rank);
    above = turn.sum(above);
    kept[r] = turn.first() && (rank < safe || static_cast<double>(sum - above) > limit);
    if (kept[r] && rank == k - 1) book.kth = mine;
  }
  __syncthreads();

  // The end code may still be barred: the weights now count from the best of what is left.
  float least = INFINITY, distance[kPerThread];
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
    distance[r] = INFINITY;
    if (!kept[r]) continue;
    const BookTurn turn(thread, r, parts, count);
    const bool barred = !may_end && book.id[turn.i] == tokens - 1;
    if (book.distance[turn.i] <= book.kth && !barred) distance[r] = book.distance[turn.i];
    least = fminf(least, distance[r]);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) least = fminf(least, __shfl_xor_sync(kAllLanes, least, d));
  if (lane == 0) book.least[warp] = least;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kBookWarps; ++w) least = fminf(least, book.least[w]);
  sum = 0;
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
    const BookTurn turn(thread, r, parts, count);
    weight[r] = distance[r] < INFINITY ? fixed_weight(distance[r] - least) : 0;
    sum += weight[r];
    if (turn.first()) book.weight[turn.i] = weight[r];
  }
  sum = warp_sum(sum);
  if (lane == 0) book.kept[warp] = sum;
  __syncthreads();

  // Inverse CDF in the order of the ids.
  sum = sum_of_warps(book.kept);
  const uint64_t target = cdf_target(book.uniform, sum);
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
    if (r * round_size >= count) continue;
    const BookTurn turn(thread, r, parts, count);
    const int id = turn.there ? book.id[turn.i] : 0;
    uint64_t before = 0;
#pragma unroll 4
    for (int i = turn.part; i < count; i += parts) before += book.id[i] < id ? book.weight[i] : 0;
    before = turn.sum(before);
    if (turn.first() && before <= target && target - before < weight[r]) s.row[index] = id;
  }
}

__global__ void __launch_bounds__(kDrawThreads) draw_codes_kernel(const DrawArgs args) {
  DrawShared& s = *launched_shared<DrawShared>();
  const int index = threadIdx.x / kBookThreads, thread = threadIdx.x % kBookThreads;
  let_next_start();
  Book& book = s.books[index];
  book.bins[thread] = 0;
  if (thread == 0) {
    book.bin = kBookThreads - 1;
    book.count = 0;
    book.kth = INFINITY;
  }
  wait_for_previous();
  float logits[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int id = min(j * kBookThreads + thread, args.tokens - 1);
    logits[j] = __ldcg(args.logits + index * args.tokens + id);
  }
  copy_state<true>(*args.state, s.state);
  __syncthreads();
  const bool idle =
      s.state.ended != 0 || s.state.step >= s.state.limit || s.state.count >= kMaxCallCodes;
  if (idle) {
    if (threadIdx.x < kSpeechBooks) s.row[threadIdx.x] = s.state.last[threadIdx.x];
  } else {
    draw_rows(logits, args.tokens, s);
  }
  __syncthreads();
  // The end code has an embedding too; after it nothing reads x.
  for (int d = threadIdx.x * 8; d < args.hidden; d += kDrawThreads * 8)
    add_embeddings(args, s.row, d);
  if (idle) return;
  if (threadIdx.x == kDrawThreads - 1)
    move_on(s.state, s.row, s.state.temperature[0] > 0, args.tokens, args.capacity);
  __syncthreads();
  copy_state<false>(s.state, *args.state);
}

}  // namespace minicpmo::cuda
