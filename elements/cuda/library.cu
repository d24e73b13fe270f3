// The one exported symbol of libminicpmo-cuda.so.
#include "cuda/runners.h"

extern "C" __attribute__((visibility("default"))) const minicpmo::cuda::Library*
minicpmo_cuda_library() {
  using minicpmo::cuda::Library;
  static constexpr Library library = {Library::kVersion, nullptr, nullptr, nullptr, nullptr};
  return &library;
}
