// The one exported symbol of libminicpmo-cuda.so.
#include "cuda/encoder_runner.h"
#include "cuda/language_runner.h"
#include "cuda/memory.h"
#include "cuda/runners.h"
#include "cuda/speech_runner.h"
#include "cuda/vocoder_runner.h"

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
  };
  return &library;
}
