// What the kernels share: loads, conversions, sums over a warp, the dependency between kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace minicpmo::cuda {

// Programmatic dependent launch: after let_next_start() the next kernel of the stream may be placed
// on the device; it must call wait_for_previous() before it touches anything an earlier kernel
// writes. What is read before the wait must be constant for the life of the graph (weights). Every
// kernel waits, so a kernel that has finished implies that all earlier ones have.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Weights: read once per step, so they should not push anything out of L1. Volatile keeps the load
// before the wait.
__device__ __forceinline__ uint4 load_weights(const uint4* p) {
#ifdef __CUDA_ARCH__
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#else
  return *p;
#endif
}

// Global to shared memory, 16 bytes, past L1 and without a register; all of a thread's copies have
// come after wait_for_copies(), for that thread.
__device__ __forceinline__ void copy_to_shared(float4* to, const float4* from) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
#else
  *to = *from;
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

__device__ __forceinline__ void fetch_into_l2(const void* p) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" : : "l"(p));
#else
  static_cast<void>(p);
#endif
}

// Before an atomic operation it releases what the block wrote before its last barrier, after one it
// acquires what others released. Lighter than __threadfence(), which is sequentially consistent.
__device__ __forceinline__ void fence_device() {
#ifdef __CUDA_ARCH__
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// The shared memory whose size the launch gives.
template <typename T>
__device__ __forceinline__ T* launched_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char launched_bytes[];
  return reinterpret_cast<T*>(launched_bytes);
#else  // tests/cuda/emulation
  return static_cast<T*>(emulation::dynamic_shared);
#endif
}

// Two bfloat16 in a word, the first one in the lower half.
__device__ __forceinline__ float low_half(uint32_t v) {
  return __uint_as_float(v << 16);
}
__device__ __forceinline__ float high_half(uint32_t v) {
  return __uint_as_float(v & 0xffff0000u);
}
__device__ __forceinline__ float widen(uint16_t v) {
  return __uint_as_float(static_cast<uint32_t>(v) << 16);
}
// To nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ uint16_t narrow(float x) {
  const uint32_t u = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// The same of two, the first one in the lower half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
#ifdef __CUDACC__
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else  // tests/cuda/emulation
  return narrow(low) | static_cast<uint32_t>(narrow(high)) << 16;
#endif
}

// Exact, as torch's default.
__device__ __forceinline__ float gelu(float x) {
  return 0.5F * x * (1 + erff(x * 0.70710678F));
}

__device__ __forceinline__ float dot8(const uint4& w, const float4& a, const float4& b, float sum) {
  sum = fmaf(low_half(w.x), a.x, sum);
  sum = fmaf(high_half(w.x), a.y, sum);
  sum = fmaf(low_half(w.y), a.z, sum);
  sum = fmaf(high_half(w.y), a.w, sum);
  sum = fmaf(low_half(w.z), b.x, sum);
  sum = fmaf(high_half(w.z), b.y, sum);
  sum = fmaf(low_half(w.w), b.z, sum);
  return fmaf(high_half(w.w), b.w, sum);
}

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}

template <typename T>
__device__ __forceinline__ T warp_max(T v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, v, d);
    v = other > v ? other : v;
  }
  return v;
}

// The sum over this lane and those before it.
template <typename T>
__device__ __forceinline__ T warp_prefix_sum(T v) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const T lower = __shfl_up_sync(kAllLanes, v, d);
    if (lane >= d) v += lower;
  }
  return v;
}

// By the whole block, of `warps` warps; `scratch` holds as many numbers.
__device__ __forceinline__ float block_sum(float v, float* scratch, int warps) {
  v = warp_sum(v);
  __syncthreads();  // scratch may still be read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += scratch[i];
  return sum;
}

}  // namespace minicpmo::cuda
