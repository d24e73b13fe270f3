// The products that our code asks cuBLAS for, on the CPU; beside cuda_runtime.h of this folder.
#pragma once

#include "cuda_runtime.h"

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS,
  CUBLAS_STATUS_ALLOC_FAILED,
  CUBLAS_STATUS_NOT_SUPPORTED,
  CUBLAS_STATUS_INVALID_VALUE
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16BF };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT };
enum cublasMath_t { CUBLAS_DEFAULT_MATH };
struct EmulatedBlas {
  cudaStream_t stream = nullptr;
};
using cublasHandle_t = EmulatedBlas*;

inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  return *handle = new EmulatedBlas, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  return delete handle, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  return handle->stream = stream, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
  return CUBLAS_STATUS_SUCCESS;
}

namespace emulation {

inline float load(const void* from, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_32F) return static_cast<const float*>(from)[i];
  return __uint_as_float(static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << 16);
}

inline void store(void* to, cudaDataType_t type, int64_t i, float v) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(to)[i] = v;
    return;
  }
  const uint32_t u = __float_as_uint(v);
  static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace emulation

// Column-major, as cuBLAS: C (m, n) = alpha op(A) (m, k) op(B) (k, n) + beta C.
inline cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a,
                                                 cublasOperation_t op_b, int m, int n, int k,
                                                 const void* alpha, const void* a,
                                                 cudaDataType_t type_a, int lda, long long stride_a,
                                                 const void* b, cudaDataType_t type_b, int ldb,
                                                 long long stride_b, const void* beta, void* c,
                                                 cudaDataType_t type_c, int ldc, long long stride_c,
                                                 int count, cublasComputeType_t, cublasGemmAlgo_t) {
  const auto fits = [](int rows, int columns, cublasOperation_t op, int stride) {
    return stride >= (op == CUBLAS_OP_N ? rows : columns);
  };
  if (m < 0 || n < 0 || k < 0 || !fits(m, k, op_a, lda) || !fits(k, n, op_b, ldb) || ldc < m) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const float factor = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  const auto multiply = [=] {
    std::vector<float> x(static_cast<size_t>(m) * k), y(static_cast<size_t>(n) * k);  // along k
    for (int64_t item = 0; item < count; ++item) {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t l = 0; l < k; ++l) {
          x[i * k + l] = emulation::load(
              a, type_a, item * stride_a + (op_a == CUBLAS_OP_N ? l * lda + i : i * lda + l));
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t l = 0; l < k; ++l) {
          y[j * k + l] = emulation::load(
              b, type_b, item * stride_b + (op_b == CUBLAS_OP_N ? j * ldb + l : l * ldb + j));
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < m; ++i) {
          float sum = 0;
          for (int64_t l = 0; l < k; ++l) sum += x[i * k + l] * y[j * k + l];
          const int64_t at = item * stride_c + j * ldc + i;
          const float before = keep == 0 ? 0 : keep * emulation::load(c, type_c, at);
          emulation::store(c, type_c, at, factor * sum + before);
        }
      }
    }
  };
  if (handle->stream != nullptr && handle->stream->capture != nullptr) {
    handle->stream->capture->push_back(multiply);
  } else {
    multiply();
  }
  return CUBLAS_STATUS_SUCCESS;
}
