// CUDA's errors as ours.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "common/result.h"

namespace minicpmo::cuda {

// kNoSpace if device memory is exhausted, otherwise kFailed; `what` names the stage or step.
inline Error cuda_error(cudaError_t error, const std::string& what) {
  const std::string words = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  cudaGetLastError();  // otherwise the runtime reports it again to the next caller
  if (error == cudaErrorMemoryAllocation) {
    int device = 0;
    size_t free = 0, total = 0;
    const bool known =
        cudaGetDevice(&device) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess;
    return Error{ErrorCode::kNoSpace,
                 what + ": " + (known ? "cuda:" + std::to_string(device) : "the GPU") +
                     " is out of memory" +
                     (known ? ", " + std::to_string(free >> 20) + " MiB free" : "") +
                     "; run fewer pipelines at once or set a smaller context-length",
                 words};
  }
  return Error{ErrorCode::kFailed, what + " failed on the GPU", words};
}

inline Result<void> check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return {};
  return cuda_error(error, what);
}

}  // namespace minicpmo::cuda
