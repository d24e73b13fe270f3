// A CUDA event, for one stream's work to be waited for.
#pragma once

#include <cuda_runtime_api.h>

namespace minicpmo::cuda {

class Event {
 public:
  Event() = default;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // With cudaEventBlockingSync a waiting thread sleeps; otherwise it may spin.
  cudaError_t create(unsigned flags = 0) {
    return cudaEventCreateWithFlags(&event_, flags | cudaEventDisableTiming);
  }
  cudaError_t record(cudaStream_t stream) const { return cudaEventRecord(event_, stream); }
  // For what was recorded last, if anything was.
  cudaError_t wait() const { return cudaEventSynchronize(event_); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace minicpmo::cuda
