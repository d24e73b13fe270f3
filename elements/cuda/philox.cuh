// The random numbers of class Philox (engine/sampling.h) on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace minicpmo::cuda {

// Philox 4x32-10 (Salmon et al., SC 2011), number `index` of a stream: uniform in [0, 1), 24 bits.
__device__ inline float philox_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index / 4), c1 = static_cast<uint32_t>(index / 4 >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint32_t word = index % 4 == 0 ? c0 : index % 4 == 1 ? c1 : index % 4 == 2 ? c2 : c3;
  return static_cast<float>(word >> 8) * 0x1p-24F;
}

}  // namespace minicpmo::cuda
