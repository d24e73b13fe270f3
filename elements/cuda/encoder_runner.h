// The audio encoder on a GPU: a chunk of mel frames to embeddings, as one graph whatever the
// chunk's length and the cache's. The steps of AudioEncoderModel (audioenc/audio_encoder.h), with
// products of bfloat16 and everything between them, the residual stream too, in float32.
#pragma once

#include <span>
#include <vector>

#include "cuda/runners.h"

namespace minicpmo::cuda {

// Row-major (outputs, inputs); biases and norms (outputs).
struct EncoderLayerWeights {
  const bfloat16_bits *attention_norm = nullptr, *attention_norm_bias = nullptr;
  const bfloat16_bits *qkv = nullptr, *qkv_bias = nullptr;  // q, k, v below one another
  const bfloat16_bits *out = nullptr, *out_bias = nullptr;
  const bfloat16_bits *mlp_norm = nullptr, *mlp_norm_bias = nullptr;
  const bfloat16_bits *fc1 = nullptr, *fc1_bias = nullptr, *fc2 = nullptr, *fc2_bias = nullptr;
  bfloat16_bits *keys = nullptr, *values = nullptr;  // the cache: (heads, max_positions, head size)
};

struct EncoderRunnerSpec {
  RunnerOptions options;
  int mel_bins = 80, hidden = 0, heads = 0, ffn = 0, max_positions = 0, pool_step = 2;
  int projected = 0;   // columns between the two products of the projector
  int language = 0;    // columns of an embedding
  int max_frames = 0;  // mel frames of the longest chunk that the graph has to take (100 for 1 s)
  const bfloat16_bits *conv1 = nullptr,
                      *conv1_bias = nullptr;  // (hidden, 3 * mel_bins), time-major
  const bfloat16_bits *conv2 = nullptr, *conv2_bias = nullptr;  // (hidden, 3 * hidden), stride 2
  const bfloat16_bits* positions = nullptr;                     // (max_positions, hidden)
  std::vector<EncoderLayerWeights> layers;
  const bfloat16_bits *norm = nullptr, *norm_bias = nullptr;
  const bfloat16_bits *projector1 = nullptr, *projector1_bias = nullptr;
  const bfloat16_bits *projector2 = nullptr, *projector2_bias = nullptr;
};

class EncoderRunner {
 public:
  virtual ~EncoderRunner() = default;
  // mel: host, (frames, mel_bins) float32, 1 <= frames <= max_frames. The chunk's (frames + 1) / 2
  // positions follow the `cached` ones, which leave room for them. Writes the cache and (rows,
  // language) bfloat16 to `embeddings`, rows = (frames + 1) / 2 / pool_step. Other sizes: kFailed.
  virtual Result<void> step(std::span<const float> mel, int cached, bfloat16_bits* embeddings) = 0;
};

// What Library offers. Heads of 64 columns only. Waits, and writes nonsense to the cache, which has
// to be empty.
Result<std::unique_ptr<EncoderRunner>> new_encoder_runner(const EncoderRunnerSpec& spec);

}  // namespace minicpmo::cuda
