// Matrix products by cuBLAS on row-major matrices, on one stream, with a workspace of its own, so
// that they can be captured into a graph. Not thread-safe; one per session.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/memory.h"

namespace minicpmo::cuda {

enum class Type { kFloat32, kBFloat16 };

// A matrix in device memory: rows of `stride` elements; `batch` elements from one matrix of a batch
// to the next.
struct MatrixView {
  void* data = nullptr;
  Type type = Type::kFloat32;
  int64_t stride = 0;
  int64_t batch = 0;
};

class Blas {
 public:
  Blas() = default;
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // On the current device. kWorkspace bytes of device memory.
  cudaError_t init(cudaStream_t stream);
  static constexpr size_t kWorkspace = 32 << 20;  // what cuBLAS asks for on compute capability 9.0

  // y (m, n) = alpha x (m, k) w^T, w (n, k), plus y if `accumulate`. Sums in float32 (never TF32).
  // x and w of one type; y of that type or float32. `count` products if batched.
  cudaError_t linear(int m, int n, int k, const MatrixView& x, const MatrixView& w,
                     const MatrixView& y, bool accumulate = false, int count = 1, float alpha = 1);
  // y (m, n) = alpha x (m, k) w, w (k, n): as above, w not transposed.
  cudaError_t product(int m, int n, int k, const MatrixView& x, const MatrixView& w,
                      const MatrixView& y, bool accumulate = false, int count = 1, float alpha = 1);

 private:
  cudaError_t run(cublasOperation_t w_operation, int m, int n, int k, const MatrixView& x,
                  const MatrixView& w, const MatrixView& y, bool accumulate, int count,
                  float alpha);
  cublasHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
};

}  // namespace minicpmo::cuda
