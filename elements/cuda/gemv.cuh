// Matrix times vector at batch 1, with the step before it (RMSNorm) and after it (bias, residual,
// SiLU gate) in the same kernel.
//
// Mapping: a warp owns kRows rows at a time; its lanes read kChunks x 512 consecutive bytes of each
// row with 16-byte loads, all in flight at once, before any is used. That is what a memory-bound
// kernel needs: 8 to 12 warps x 7 KB per multiprocessor, several times latency x bandwidth. The
// first batch is requested before the wait for the previous kernel, so that the memory stays busy
// across the border between two kernels. The input lies in shared memory as float32, even and odd
// groups of four apart, so that the lanes' 16-byte reads meet no bank twice.
#pragma once

#include "cuda/device.cuh"

namespace minicpmo::cuda {

enum class Epilogue { kStore, kAdd, kGate };

struct GemvArgs {
  const uint4* weight;   // (rows, k); kGate: (2 rows, k), gate above up
  const uint16_t* bias;  // kStore: (rows) or null
  const uint16_t* norm;  // (k): RMSNorm of the input first; or null
  const float* input;    // (k)
  float* output;         // (rows); kAdd adds to it
  float* normed;         // (k) or null: where block 0 leaves the normed input
  int rows, k;
  float eps;
};

template <Epilogue kEpilogue, int kRows, int kChunks>
struct Gemv {
  static constexpr bool kGate = kEpilogue == Epilogue::kGate;
  static constexpr int kOutputs = kGate ? kRows / 2 : kRows;  // of a set of rows

  // Row j of a set; kGate: first the gate's rows, then the same of up.
  static __device__ __forceinline__ int output_row(int set, int j) {
    return set * kOutputs + j % kOutputs;
  }

  static __device__ __forceinline__ void load(const GemvArgs& args, int set, int batch,
                                              uint4 (&w)[kRows][kChunks]) {
    const int width = args.k / 8, first = batch * kChunks * 32 + threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int row = output_row(set, j);
      const int left = row < args.rows ? width - first : 0;
      const int64_t stored = kGate && j >= kOutputs ? row + args.rows : row;
      const uint4* const begin = args.weight + stored * width + first;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        w[j][c] = c * 32 < left ? load_weights(begin + c * 32) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  static __device__ __forceinline__ void multiply(const float4* low, const float4* high, int batch,
                                                  const uint4 (&w)[kRows][kChunks],
                                                  float (&sum)[kRows]) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int v = (batch * kChunks + c) * 32 + threadIdx.x % 32;
      const float4 a = low[v], b = high[v];
#pragma unroll
      for (int j = 0; j < kRows; ++j) sum[j] = dot8(w[j][c], a, b, sum[j]);
    }
  }

  static __device__ __forceinline__ void finish(const GemvArgs& args, int set, float scale,
                                                float (&sum)[kRows],
                                                const float (&extra)[kOutputs]) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) sum[j] = warp_sum(sum[j]);
    if (threadIdx.x % 32 != 0) return;
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const int row = output_row(set, j);
      if (row >= args.rows) return;
      const float y = sum[j] * scale;
      if constexpr (kGate) {
        args.output[row] = y / (1.0F + expf(-y)) * (sum[j + kOutputs] * scale);
      } else {
        args.output[row] = y + extra[j];
      }
    }
  }

  // What is added to the outputs: asked for before the products, so that it has come when they are
  // done.
  static __device__ __forceinline__ void load_extra(const GemvArgs& args, int set,
                                                    float (&extra)[kOutputs]) {
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const int row = output_row(set, j);
      extra[j] = 0;
      if (row >= args.rows) continue;
      if constexpr (kEpilogue == Epilogue::kAdd) extra[j] = __ldcg(args.output + row);
      if constexpr (kEpilogue == Epilogue::kStore) {
        if (args.bias != nullptr) extra[j] = widen(args.bias[row]);
      }
    }
  }
};

// Float4 groups that the shared copy of the input is padded to: whole batches.
__host__ __device__ inline int padded_groups(int k, int chunks) {
  const int batch = chunks * 32, width = k / 8;
  return (width + batch - 1) / batch * batch * 2;
}

// Group i of four values: even and odd ones apart.
__device__ __forceinline__ float4* group_of(float4* input, int groups, int i) {
  return input + i % 2 * (groups / 2) + i / 2;
}

// The norm's weights go into shared memory before the wait: they are constant, and come from device
// memory every time.
__device__ __forceinline__ void stage_norm(const GemvArgs& args, uint2* gains) {
  const auto* const norm = reinterpret_cast<const uint2*>(args.norm);
  for (int i = threadIdx.x; i < args.k / 4; i += blockDim.x) gains[i] = __ldg(norm + i);
}

// Brings in the input, all of it in flight at once, times the norm's weights; returns this thread's
// sum of squares.
__device__ __forceinline__ float stage_input(const GemvArgs& args, float4* input, int groups,
                                             const uint2* gains) {
  const auto* const from = reinterpret_cast<const float4*>(args.input);
  for (int i = threadIdx.x; i < groups; i += blockDim.x) {
    if (4 * i < args.k) {
      copy_to_shared(group_of(input, groups, i), from + i);
    } else {
      *group_of(input, groups, i) = make_float4(0, 0, 0, 0);
    }
  }
  wait_for_copies();
  float squares = 0;
  if (args.norm == nullptr) return squares;
  for (int i = threadIdx.x; i < args.k / 4; i += blockDim.x) {
    float4& x = *group_of(input, groups, i);
    const uint2 g = gains[i];
    squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    x = make_float4(x.x * low_half(g.x), x.y * high_half(g.x), x.z * low_half(g.y),
                    x.w * high_half(g.y));
  }
  return squares;
}

template <Epilogue kEpilogue, int kRows, int kChunks, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) gemv_kernel(const GemvArgs args) {
  using Rows = Gemv<kEpilogue, kRows, kChunks>;
  __shared__ float partial[kThreads];
  const int groups = padded_groups(args.k, kChunks);
  float4* const input = launched_shared<float4>();
  const float4 *const low = input, *const high = input + groups / 2;
  auto* const gains = reinterpret_cast<uint2*>(input + groups);  // only with a norm
  const int warps = kThreads / 32, stride = warps * gridDim.x;
  const int sets = (args.rows + Rows::kOutputs - 1) / Rows::kOutputs;
  // Neighbouring warps' sets lie a grid apart: the last, partial round is spread over all
  // multiprocessors.
  int set = threadIdx.x / 32 * gridDim.x + blockIdx.x;
  uint4 w[kRows][kChunks];
  let_next_start();
  Rows::load(args, set, 0, w);
  if (args.norm != nullptr) stage_norm(args, gains);
  wait_for_previous();
  const float squares = stage_input(args, input, groups, gains);
  if (args.norm != nullptr) partial[threadIdx.x] = squares;
  __syncthreads();
  float scale = 1;
  if (args.norm != nullptr) {
    float all = 0;
#pragma unroll
    for (int i = 0; i < warps; ++i) all += partial[threadIdx.x % 32 + 32 * i];
    scale = rsqrtf(warp_sum(all) / args.k + args.eps);
  }
  if (args.normed != nullptr && blockIdx.x == 0) {
    for (int i = threadIdx.x; i < args.k; i += kThreads) {
      const float* const half = reinterpret_cast<const float*>(i / 4 % 2 == 0 ? low : high);
      args.normed[i] = half[i / 8 * 4 + i % 4] * scale;
    }
  }
  const int batches = groups / (64 * kChunks);
  for (; set < sets; set += stride) {
    float sum[kRows] = {}, extra[Rows::kOutputs];
    Rows::load_extra(args, set, extra);
    for (int batch = 0; batch < batches; ++batch) {
      Rows::multiply(low, high, batch, w, sum);
      const bool more = batch + 1 < batches;
      if (more || set + stride < sets)
        Rows::load(args, more ? set : set + stride, more ? batch + 1 : 0, w);
    }
    Rows::finish(args, set, scale, sum, extra);
  }
}

}  // namespace minicpmo::cuda
