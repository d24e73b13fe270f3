// Tensor cores: products of 16 x 16 by 16 x 8 matrices of bfloat16 with sums in float32 by one warp
// (mma.sync.m16n8k16, compute capability 8.0), and the loads that bring shared memory into its
// layout (PTX ISA, "Warp Level Matrix Instructions").
//
// In a fragment a word holds two neighbours, the first in the lower half. With g = lane / 4 and
// p = lane % 4, a lane holds of A (16 x 16) the words at rows g, g + 8, g, g + 8 and columns 2p,
// 2p, 2p + 8, 2p + 8; of B (16 x 8) rows 2p and 2p + 8 of column g (neighbours below one another);
// of the sums rows g, g, g + 8, g + 8 and columns 2p, 2p + 1, 2p, 2p + 1.
#pragma once

#include "cuda/device.cuh"

namespace minicpmo::cuda {

// Four 8 x 8 matrices: lane i gives the address (16 bytes) of row i % 8 of matrix i / 8. Word i of
// a lane is then (g, 2p) and (g, 2p + 1) of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const uint16_t* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#else  // tests/cuda/emulation
  const uint64_t* const rows = emulation::exchange(reinterpret_cast<uint64_t>(row));
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const auto* const r = reinterpret_cast<const uint16_t*>(rows[i * 8 + lane / 4]);
    words[i] = r[2 * (lane % 4)] | static_cast<uint32_t>(r[2 * (lane % 4) + 1]) << 16;
  }
#endif
}

// The same of the transposed matrices: (2p, g) and (2p + 1, g).
__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const uint16_t* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#else  // tests/cuda/emulation
  const uint64_t* const rows = emulation::exchange(reinterpret_cast<uint64_t>(row));
  const int lane = threadIdx.x % 32, column = lane / 4;
  for (int i = 0; i < 4; ++i) {
    const uint64_t* const pair = rows + i * 8 + 2 * (lane % 4);
    words[i] = reinterpret_cast<const uint16_t*>(pair[0])[column] |
               static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(pair[1])[column]) << 16;
  }
#endif
}

// sums += a b.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // tests/cuda/emulation
  uint64_t words[3][32];
  const uint64_t mine[3] = {a[0] | uint64_t{a[1]} << 32, a[2] | uint64_t{a[3]} << 32,
                            b0 | uint64_t{b1} << 32};
  for (int i = 0; i < 3; ++i) {
    std::memcpy(words[i], emulation::exchange(mine[i]), sizeof words[i]);
  }
  const auto element = [&](const uint64_t* from, int lane, int upper, int k) {
    return widen(static_cast<uint16_t>(from[lane] >> (32 * upper + 16 * (k % 2))));
  };
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      sums[i] += element(words[k / 8], row % 8 * 4 + k % 8 / 2, row / 8, k) *
                 element(words[2], column * 4 + k % 8 / 2, k / 8, k);
    }
  }
#endif
}

}  // namespace minicpmo::cuda
