// The C interface of libminicpmo-cuda.so, which links the CUDA runtime so that nothing else has to.
#pragma once

#include <cstddef>

extern "C" {

// Number of CUDA devices, or -1 if CUDA cannot be used. Writes one line for each device ("cuda:0:
// NVIDIA H100, compute capability 9.0, 79.1 GiB"), or the reason, to `text` (cut to `size` bytes,
// always ended with 0).
using MinicpmoCudaProbe = int (*)(char* text, size_t size);
int minicpmo_cuda_probe(char* text, size_t size);
}

constexpr const char* kCudaProbeSymbol = "minicpmo_cuda_probe";
constexpr const char* kCudaLibrary = "libminicpmo-cuda.so";
