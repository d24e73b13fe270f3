// The one exported symbol of libminicpmo-cuda.so.
#include "cuda/encoder_runner.h"
#include "cuda/error.h"
#include "cuda/language_runner.h"
#include "cuda/memory.h"
#include "cuda/runners.h"
#include "cuda/speech_runner.h"
#include "cuda/vocoder_runner.h"

namespace {

minicpmo::Result<minicpmo::cuda::Stream> new_stream(int device, bool high_priority) {
  using minicpmo::cuda::check;
  int before = 0, least = 0, greatest = 0;
  RETURN_IF_ERROR(check(cudaGetDevice(&before), "a stream"));
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
  if (error == cudaSuccess) {
    error = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                         high_priority ? greatest : least);
  }
  cudaSetDevice(before);
  RETURN_IF_ERROR(check(error, "a stream"));
  return minicpmo::cuda::Stream(stream);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const minicpmo::cuda::Library*
minicpmo_cuda_library() {
  using minicpmo::cuda::Library;
  static constexpr Library library = {
      Library::kVersion,
      minicpmo::cuda::new_language_runner,
      minicpmo::cuda::new_speech_runner,
      minicpmo::cuda::new_encoder_runner,
      minicpmo::cuda::new_vocoder_runner,
      minicpmo::cuda::capture_mutex,
      new_stream,
  };
  return &library;
}
