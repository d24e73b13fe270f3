// What the draws of codes (sampling.cuh) and of tokens (token_sampling.cuh) share.
#pragma once

#include "cuda/device.cuh"
#include "cuda/philox.cuh"

namespace minicpmo::cuda {

// The higher score, then the lower id, is the larger number. Not for NaN.
__device__ __forceinline__ uint64_t score_and_id(float score, int id) {
  const uint32_t bits = __float_as_uint(score + 0.0F);  // -0 is 0
  const uint32_t ordered = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ __forceinline__ float score_of(uint64_t both) {
  const auto ordered = static_cast<uint32_t>(both >> 32);
  return __uint_as_float(ordered >> 31 != 0 ? ordered & 0x7fffffffu : ~ordered);
}
__device__ __forceinline__ int id_of(uint64_t both) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(both));
}

// Bins of a histogram of distances from the best score, for 2^-8 to 2^8, 2^kBits bins an octave.
template <int kBits>
struct DistanceBins {
  static constexpr uint32_t kCount = 16u << kBits, kFirst = (127u - 8) << kBits;
  static constexpr int kShift = 23 - kBits;
  static __device__ __forceinline__ uint32_t of(float distance) {
    const uint32_t bits = __float_as_uint(distance) >> kShift;
    return bits < kFirst ? 0 : min(bits - kFirst, kCount - 1);
  }
  // The largest distance of a bin.
  static __device__ __forceinline__ float end(uint32_t bin) {
    return bin >= kCount - 1 ? INFINITY : __uint_as_float(((bin + 1 + kFirst) << kShift) - 1);
  }
};

// Probabilities are fixed-point numbers, so that their sums do not depend on the order: the best
// one's.
constexpr double kOne = 0x1p44;

// exp(-distance)
__device__ __forceinline__ uint64_t fixed_weight(float distance) {
  return static_cast<uint64_t>(expf(-distance) * static_cast<float>(kOne));
}

// What top-p drops has at most this much probability together, itself included; -1: all stay. (The
// best one stays anyway.)
__device__ __forceinline__ double top_p_limit(double top_p, uint64_t sum) {
  return top_p >= 1 ? -1.0 : (1.0 - top_p) * static_cast<double>(sum);
}

__device__ __forceinline__ uint64_t cdf_target(float uniform, uint64_t sum) {
  return static_cast<uint64_t>(static_cast<double>(uniform) * static_cast<double>(sum));
}

// Candidate `round` of this thread's set of `parts` neighbouring lanes, with kThreads threads.
template <int kThreads>
struct CandidateTurn {
  int i, part, parts;
  bool there;
  __device__ CandidateTurn(int thread, int round, int parts_, int count) : parts(parts_) {
    i = thread / parts + round * (kThreads / parts);
    part = thread % parts;
    there = i < count;
  }
  __device__ bool first() const { return there && part == 0; }
  // Over the set.
  template <typename T>
  __device__ T sum(T v) const {
    for (int d = parts / 2; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
    return v;
  }
};

}  // namespace minicpmo::cuda
