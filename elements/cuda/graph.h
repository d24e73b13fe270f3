// A CUDA graph: launches recorded once, replayed with one call. Only for our own kernels and cuBLAS
// with a workspace of its own: nothing in the recorded body may allocate or synchronise. Captured
// in relaxed mode, so that other threads may go on using CUDA meanwhile.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "cuda/error.h"

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

  bool captured() const { return exec_ != nullptr; }
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(exec_, stream); }

 private:
  void release() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
    exec_ = nullptr;
  }
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace minicpmo::cuda
