// Many rows through a decoder-only transformer at once: matrix products by cuBLAS, what lies
// between them by our own kernels. Reads and writes the same cache as DecodeStep. Whatever changes
// from call to call can be read from device memory, so that a call of fixed size can be captured
// into a graph.
//
// Weights, cache and the inputs of products are bfloat16; sums, the residual stream, rotation and
// softmax float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/blas.h"
#include "cuda/decoder_types.h"

namespace minicpmo::cuda {

// In device memory. Row i of the input is at position begin + i; rows from `rows` on are filling
// and leave the cache alone.
struct PrefillState {
  int32_t begin = 0;
  int32_t rows = 0;
};

// Not thread-safe; one per sequence. Causal attention.
class Prefill {
 public:
  Prefill() = default;
  Prefill(const Prefill&) = delete;
  Prefill& operator=(const Prefill&) = delete;

  // Why the shape cannot be run, or null.
  static const char* unsupported(const DecoderShape& shape);
  // Allocates. All work goes to the stream of `blas`, which must outlive this. At most `max_rows`
  // rows at once, and `max_keys` (<= weights.capacity) rows of the cache. Rows of the cache that
  // were never written must hold finite values (zeros): hidden keys have weight 0, and 0 x NaN is
  // not 0. `most_scores`: attention takes so many rows of queries at a time that there are no more
  // scores at once, if one row's fit.
  static constexpr size_t kMostScores = 16 << 20;  // 64 MiB, and half of it again
  cudaError_t init(const DecoderShape& shape, const DecoderWeights& weights, int max_rows,
                   int max_keys, Blas* blas, cudaStream_t stream, size_t most_scores = kMostScores);

  // Widens (rows, hidden) into x().
  cudaError_t load(const bfloat16_bits* x, int rows);
  // x() holds the input, (rows, hidden), before, and the states before the final norm after.
  cudaError_t run(int rows, int begin);
  // The same for a graph: `rows` and `keys` are fixed; every position must be below `keys`.
  cudaError_t run(const PrefillState* state, int rows, int keys);
  // The final norm of rows [first, first + rows) of x(), to (rows, hidden).
  cudaError_t final_norm(int first, int rows, float* to);

  float* x() const { return x_; }

 private:
  struct Position {  // of row 0: on the device if `state` is given
    const PrefillState* state;
    int begin;
    int rows, keys;
  };
  cudaError_t run_layers(const Position& at);
  cudaError_t attend(const LayerWeights& w, const Position& at);
  // RMSNorm of rows of x(), to normed_ or, if `wide` is given, there.
  cudaError_t norm(const bfloat16_bits* gains, int first, int rows, float* wide);
  int qkv_width() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim; }

  DecoderShape shape_;
  DecoderWeights weights_;
  int max_rows_ = 0, max_keys_ = 0;
  size_t score_count_ = 0;
  Blas* blas_ = nullptr;
  cudaStream_t stream_ = nullptr;
  DeviceMemory memory_;
  float *x_ = nullptr, *qkv_ = nullptr, *scores_ = nullptr;
  bfloat16_bits *normed_ = nullptr, *queries_ = nullptr, *weights_of_keys_ = nullptr,
                *grouped_ = nullptr, *attended_ = nullptr, *gate_up_ = nullptr, *inner_ = nullptr;
};

}  // namespace minicpmo::cuda
