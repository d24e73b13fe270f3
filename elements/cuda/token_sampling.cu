#include "cuda/token_sampling.cuh"

#include "cuda/launch.cuh"
#include "cuda/memory.h"

namespace minicpmo::cuda {

TokenSampler::~TokenSampler() {
  if (memory_ == nullptr) return;
  const std::lock_guard lock(capture_mutex());
  cudaFree(memory_);
}

cudaError_t TokenSampler::init(int vocabulary, int most_penalised, bool overlap) {
  if (memory_ != nullptr || vocabulary < 1 || vocabulary > kMaxVocabulary || most_penalised < 0)
    return cudaErrorInvalidValue;
  int device, major;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  vocabulary_ = vocabulary;
  most_penalised_ = most_penalised;
  overlap_ = overlap && major >= 9;
  const size_t chunks = (vocabulary + kChunk - 1) / kChunk;
  const size_t best = chunks * sizeof(uint64_t), scores = chunks * kChunk * sizeof(float);
  const size_t maxima = chunks * kChunkGroups * sizeof(float);
  const size_t list = static_cast<size_t>(most_penalised) * sizeof(int32_t);
  RETURN_IF_CUDA_ERROR(cudaMalloc(&memory_, scores + maxima + best + list));
  char* const begin = static_cast<char*>(memory_);
  scores_ = reinterpret_cast<float*>(begin);
  maxima_ = reinterpret_cast<float*>(begin + scores);
  best_ = reinterpret_cast<uint64_t*>(begin + scores + maxima);
  penalised_ = reinterpret_cast<int32_t*>(begin + scores + maxima + best);
  return cudaSuccess;
}

cudaError_t TokenSampler::draw(const float* logits, TokenState* state, cudaStream_t stream) {
  if (memory_ == nullptr) return cudaErrorInvalidValue;
  const int chunks = (vocabulary_ + kChunk - 1) / kChunk;
  const TokenArgs args{logits, state,  penalised_,  scores_,        maxima_,
                       best_,  chunks, vocabulary_, most_penalised_};
  RETURN_IF_CUDA_ERROR(
      launch(score_tokens_kernel, dim3(chunks), kScoreThreads, 0, stream, overlap_, args));
  return launch(choose_token_kernel, dim3(1), kChooseThreads, 0, stream, overlap_, args);
}

}  // namespace minicpmo::cuda
