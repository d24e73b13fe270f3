// A CUDA graph: launches recorded once, replayed with one call. Only for our own kernels and cuBLAS
// with a workspace of its own: nothing in the recorded body may allocate or synchronise. Captured
// in relaxed mode, so that other threads may go on using CUDA meanwhile.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "cuda/error.h"
#include "cuda/memory.h"

namespace minicpmo::cuda {

class Graph {
 public:
  Graph() = default;
  ~Graph() { release(); }
  Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }

  // body: () -> cudaError_t, enqueues on `stream`. Run it once before, uncaptured: libraries set
  // themselves up at their first call. Replaces what was recorded before.
  template <class Body>
  cudaError_t capture(cudaStream_t stream, Body&& body) {
    release();
    cudaError_t error = cudaSuccess;
    // Another thread's first use of a kernel or library may wait for the whole device, which
    // invalidates the capture; that passes.
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      error = capture_once(stream, body);
      if (error != cudaErrorStreamCaptureInvalidated && error != cudaErrorStreamCaptureUnsupported)
        break;
      cudaGetLastError();
      std::this_thread::sleep_for(std::chrono::milliseconds(1 + attempt));
    }
    return error;
  }

  bool captured() const { return exec_ != nullptr; }
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(exec_, stream); }

 private:
  static constexpr int kAttempts = 30;

  template <class Body>
  cudaError_t capture_once(cudaStream_t stream, Body& body) {
    const std::lock_guard lock(capture_mutex());
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    if (error != cudaSuccess) return error;
    const cudaError_t recorded = body();
    cudaGraph_t graph = nullptr;
    error = cudaStreamEndCapture(stream, &graph);  // always: the stream is unusable otherwise
    if (recorded != cudaSuccess) error = recorded;
    if (error == cudaSuccess) error = cudaGraphInstantiate(&exec_, graph, 0);
    if (error == cudaSuccess) error = cudaGraphUpload(exec_, stream);
    if (graph != nullptr) cudaGraphDestroy(graph);
    return error;
  }

  void release() {
    if (exec_ == nullptr) return;
    const std::lock_guard lock(capture_mutex());
    cudaGraphExecDestroy(exec_);
    exec_ = nullptr;
  }
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace minicpmo::cuda
