// The one exported symbol of libminicpmo-cuda.so.
#include "cuda/language_runner.h"
#include "cuda/runners.h"

extern "C" __attribute__((visibility("default"))) const minicpmo::cuda::Library*
minicpmo_cuda_library() {
  using minicpmo::cuda::Library;
  static constexpr Library library = {Library::kVersion, minicpmo::cuda::new_language_runner,
                                      nullptr, nullptr, nullptr};
  return &library;
}
