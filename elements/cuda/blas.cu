#include "cuda/blas.h"

namespace minicpmo::cuda {
namespace {

cudaError_t to_cuda(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return cudaSuccess;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return cudaErrorNotSupported;
    case CUBLAS_STATUS_INVALID_VALUE:
      return cudaErrorInvalidValue;
    default: {
      const cudaError_t last = cudaPeekAtLastError();
      return last == cudaSuccess ? cudaErrorUnknown : last;
    }
  }
}

cudaDataType_t data_type(Type type) {
  return type == Type::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
}

}  // namespace

Blas::~Blas() {
  if (handle_ == nullptr) return;
  const std::lock_guard lock(capture_mutex());
  cublasDestroy(handle_);
}

cudaError_t Blas::init(cudaStream_t stream) {
  std::unique_lock lock(capture_mutex());
  cublasStatus_t status = cublasCreate(&handle_);
  lock.unlock();
  if (status != CUBLAS_STATUS_SUCCESS) {
    handle_ = nullptr;
    return to_cuda(status);
  }
  const cudaError_t error = workspace_.allocate(kWorkspace);
  if (error != cudaSuccess) return error;
  status = cublasSetStream(handle_, stream);
  // After the stream: setting it resets the workspace.
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasSetWorkspace(handle_, workspace_.as<void>(), workspace_.size());
  if (status == CUBLAS_STATUS_SUCCESS) status = cublasSetMathMode(handle_, CUBLAS_DEFAULT_MATH);
  return to_cuda(status);
}

// cuBLAS is column-major: a row-major (m, n) result is its (n, m), so the operands change places.
cudaError_t Blas::run(cublasOperation_t w_operation, int m, int n, int k, const MatrixView& x,
                      const MatrixView& w, const MatrixView& y, bool accumulate, int count,
                      float alpha) {
  const float beta = accumulate ? 1 : 0;
  return to_cuda(cublasGemmStridedBatchedEx(
      handle_, w_operation, CUBLAS_OP_N, n, m, k, &alpha, w.data, data_type(w.type),
      static_cast<int>(w.stride), w.batch, x.data, data_type(x.type), static_cast<int>(x.stride),
      x.batch, &beta, y.data, data_type(y.type), static_cast<int>(y.stride), y.batch, count,
      CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

cudaError_t Blas::linear(int m, int n, int k, const MatrixView& x, const MatrixView& w,
                         const MatrixView& y, bool accumulate, int count, float alpha) {
  return run(CUBLAS_OP_T, m, n, k, x, w, y, accumulate, count, alpha);
}

cudaError_t Blas::product(int m, int n, int k, const MatrixView& x, const MatrixView& w,
                          const MatrixView& y, bool accumulate, int count, float alpha) {
  return run(CUBLAS_OP_N, m, n, k, x, w, y, accumulate, count, alpha);
}

}  // namespace minicpmo::cuda
