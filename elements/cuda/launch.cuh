// Launching the decode kernels.
#pragma once

#include <algorithm>

#include "cuda/gemv.cuh"

namespace minicpmo::cuda {

#define RETURN_IF_CUDA_ERROR(expression)                                  \
  do {                                                                    \
    if (const cudaError_t error_ = (expression); error_ != cudaSuccess) { \
      return error_;                                                      \
    }                                                                     \
  } while (false)

// `overlap`: the kernel may start while the one before it drains (see let_next_start()).
template <typename... Parameters, typename... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared,
                          cudaStream_t stream, bool overlap, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename Kernel>
inline cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 40 * 1024) return cudaSuccess;  // 48 KiB, less what the kernel has besides
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

template <Epilogue kEpilogue, int kRows, int kChunks, int kThreads, int kBlocks>
inline cudaError_t launch_gemv(const GemvArgs& args, int most_blocks, bool overlap,
                               cudaStream_t stream) {
  const auto kernel = gemv_kernel<kEpilogue, kRows, kChunks, kThreads, kBlocks>;
  const int per_block = kThreads / 32 * Gemv<kEpilogue, kRows, kChunks>::kOutputs;
  const int blocks = std::min(most_blocks, (args.rows + per_block - 1) / per_block);
  size_t shared = padded_groups(args.k, kChunks) * sizeof(float4);
  if (args.norm != nullptr) shared += args.k / 4 * sizeof(uint2);
  RETURN_IF_CUDA_ERROR(allow_shared(kernel, shared));
  return launch(kernel, dim3(blocks), kThreads, shared, stream, overlap, args);
}

}  // namespace minicpmo::cuda
