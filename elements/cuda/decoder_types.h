// The shape, weights and cache of a decoder-only transformer, as pointers to device memory. No CUDA
// headers: the stages fill these in.
#pragma once

#include <cstdint>
#include <vector>

namespace minicpmo::cuda {

using bfloat16_bits =
    uint16_t;  // the upper half of a float32; pointers to it are device memory, aligned to 16 bytes

struct DecoderShape {
  int hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  float norm_eps = 1e-6F;
};

// Row-major (outputs, inputs), as in the checkpoint; q, k and v below one another, and gate above
// up.
struct LayerWeights {
  const bfloat16_bits* input_norm = nullptr;  // (hidden)
  const bfloat16_bits* qkv = nullptr;         // ((heads + 2 kv_heads) head_dim, hidden)
  const bfloat16_bits* qkv_bias = nullptr;    // may be null
  const bfloat16_bits* o = nullptr;           // (hidden, heads head_dim)
  const bfloat16_bits* post_norm = nullptr;   // (hidden)
  const bfloat16_bits* gate_up = nullptr;     // (2 ffn, hidden)
  const bfloat16_bits* down = nullptr;        // (hidden, ffn)
  bfloat16_bits* keys = nullptr;              // the cache: (kv_heads, capacity, head_dim)
  bfloat16_bits* values = nullptr;
};

struct DecoderWeights {
  std::vector<LayerWeights> layers;
  const bfloat16_bits* final_norm = nullptr;  // (hidden)
  const bfloat16_bits* head =
      nullptr;  // (head_rows, hidden); the speech model's four below one another
  int head_rows = 0;
  const float* rope_cos = nullptr;  // (at least `capacity`, head_dim / 2)
  const float* rope_sin = nullptr;
  int capacity = 0;  // rows of the cache of each head
};

}  // namespace minicpmo::cuda
