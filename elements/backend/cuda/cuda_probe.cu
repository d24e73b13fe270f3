#include "backend/cuda/cuda_probe.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <string>

namespace {

int report(const std::string& message, int result, char* text, size_t size) {
  if (size > 0) std::snprintf(text, size, "%s", message.c_str());
  return result;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int minicpmo_cuda_probe(char* text, size_t size) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();  // the runtime remembers the error for the next caller otherwise
    return report(std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")", -1,
                  text, size);
  }
  std::string lines;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, i); error != cudaSuccess) {
      cudaGetLastError();
      lines += "cuda:" + std::to_string(i) + ": " + cudaGetErrorString(error) + "\n";
      continue;
    }
    char line[400];
    std::snprintf(line, sizeof line, "cuda:%d: %s, compute capability %d.%d, %.1f GiB\n", i,
                  properties.name, properties.major, properties.minor,
                  static_cast<double>(properties.totalGlobalMem) / (1u << 30));
    lines += line;
  }
  return report(lines, count, text, size);
}
