// Times by CUDA events, for the benchmarks of the kernels.
#pragma once

#include <functional>
#include <vector>

#include "harness.cuh"

namespace minicpmo::cuda::test {

struct Timer {
  OwnStream own;
  cudaStream_t stream = own.stream;
  cudaEvent_t begin, end;
  Timer() {
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
  }
  ~Timer() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  // Median us of one body() call, timed `count` at a time.
  double median(int samples, int count, const std::function<void()>& prepare,
                const std::function<void()>& body) {
    std::vector<double> times;
    for (int i = 0; i < samples + 3; ++i) {
      prepare();
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaEventRecord(begin, stream));
      for (int n = 0; n < count; ++n) body();
      CHECK(cudaEventRecord(end, stream));
      CHECK(cudaEventSynchronize(end));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 3) times.push_back(1000.0 * ms / count);
    }
    return test::median(times);
  }
  double median(int samples, int count, const std::function<void()>& prepare, const Graph& graph) {
    return median(samples, count, prepare, [&] { CHECK(graph.launch(stream)); });
  }
};

}  // namespace minicpmo::cuda::test
