// What the tests and benchmarks of the kernels share: calls that must succeed, copies, streams and
// graphs, and the counting of checks.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/graph.h"

namespace minicpmo::cuda::test {

inline void check(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(expression) ::minicpmo::cuda::test::check((expression), #expression, __LINE__)

// True, with a line that says so, where there is no CUDA device: the program then ends with 77.
inline bool no_device() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // how far it came, even if it is killed
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return false;
  std::printf("no CUDA device: skipped\n");
  return true;
}

template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), int blocks, int threads, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

template <typename T>
std::vector<T> to_host(const T* device, size_t count) {
  std::vector<T> host(count);
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

template <typename T>
void to_device(T* device, const std::vector<T>& host) {
  CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  // It returns before the copy has arrived, and streams of one's own do not wait for it.
  CHECK(cudaDeviceSynchronize());
}

struct OwnStream {
  OwnStream() { CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~OwnStream() { CHECK(cudaStreamDestroy(stream)); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  void wait() const { CHECK(cudaStreamSynchronize(stream)); }
  cudaStream_t stream = nullptr;
};

// What body() enqueues on the stream.
template <typename Body>
Graph captured(cudaStream_t stream, Body body) {
  Graph graph;
  CHECK(graph.capture(stream, [&] {
    body();
    return cudaSuccess;
  }));
  return graph;
}

inline std::vector<float> random_floats(size_t count, unsigned seed, float deviation = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(count);
  for (float& v : x) v = normal(generator);
  return x;
}

inline double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

// --- checks

inline int failures = 0, checks = 0;

inline void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// |a - b| / |b|
template <typename A, typename B>
double distance(const A& a, const B& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    size += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / size);
}

// The program's exit status.
inline int report() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace minicpmo::cuda::test
