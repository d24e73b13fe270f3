// Speech to embeddings for the language model: log-mel, Whisper's encoder with a KV cache,
// projector, pooling.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "audioenc/log_mel.h"
#include "common/result.h"
#include "common/stage.h"
#include "cuda/encoder_runner.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/conv1d.h"
#include "engine/stage_device.h"

namespace minicpmo {

// Keys and values of the encoder's layers, preallocated for every position: (heads, max_positions,
// head size).
struct AudioCache {
  std::vector<at::Tensor> keys, values;
  int64_t length = 0;  // frames in use
};

// The weights ("apm.", "audio_projection_layer."). Immutable once loaded, shared by all sessions.
//
// Streaming as MiniCPM-o 2.6 does it (modeling_minicpmo.py, get_audio_embedding_streaming): each
// chunk passes the mel and both convolutions alone, its frames take the positions after the cached
// ones and attend, in both directions, to each other and to all cached frames.
class AudioEncoderModel {
 public:
  static Result<std::shared_ptr<const AudioEncoderModel>> load(const Checkpoint& checkpoint,
                                                               const ModelConfig& config,
                                                               const StageDevice& device,
                                                               const Progress& progress,
                                                               const CancelFlag& cancel);

  // Frames at 50 Hz after the second convolution, which are the positions of the encoder.
  static int64_t positions(int64_t samples) { return (LogMel::frames(samples) + 1) / 2; }
  int64_t rows(int64_t samples) const { return positions(samples) / config_.pool_step; }
  int64_t language_size() const { return projector2_.weight.size(0); }  // columns of a row
  // Longest chunk: 30 s, or all positions.
  static int64_t max_samples(const AudioConfig& config) {
    return std::min(LogMel::kMaxSamples, 2 * LogMel::kHop * config.max_positions);
  }
  int64_t max_samples() const { return max_samples(config_); }

  // The steps, for tests and the session. All throw c10::Error. All results but the mel, which is
  // made on the CPU, are where the weights are and of their type.
  at::Tensor mel(std::span<const float> pcm) const {
    return log_mel_(pcm);
  }  // float32 (frames, mel_bins)
  // Makes the cache ready for so many positions more: takes its memory at first, and starts it anew
  // if they would reach max_positions.
  void prepare(AudioCache& cache, int64_t positions) const;
  // Encodes a chunk's mel: prepares the cache and appends to it. Returns (positions, hidden) after
  // the final norm; an undefined tensor if cancelled (the cache is unchanged).
  at::Tensor encode(const at::Tensor& mel, AudioCache& cache, const CancelFlag& cancel) const;
  // (positions, hidden) -> (positions / pool_step, hidden of the language model).
  at::Tensor project(const at::Tensor& states) const;

  // The same steps by kernels on a GPU, in bfloat16, for chunks of at most max_frames mel frames
  // and this cache, which has to be prepared and empty. Waits. kSettings: not for this model.
  Result<std::unique_ptr<cuda::EncoderRunner>> new_runner(const cuda::RunnerOptions& options,
                                                          int64_t max_frames,
                                                          const AudioCache& cache) const;

  const AudioConfig& config() const { return config_; }
  const StageDevice& device() const { return device_; }

 private:
  struct Norm {
    at::Tensor weight, bias;
    at::Tensor operator()(const at::Tensor& x) const;
  };
  struct Linear {
    at::Tensor weight, bias;
    at::Tensor operator()(const at::Tensor& x) const;
  };
  struct Layer {
    Norm attention_norm, mlp_norm;
    Linear qkv, out, fc1, fc2;
    cuda::EncoderLayerWeights for_runner(const at::Tensor& keys, const at::Tensor& values) const;
  };
  struct Loader;

  explicit AudioEncoderModel(const AudioConfig& config, const StageDevice& device);
  Result<void> load_front(const Loader& loader, int64_t language_size);
  at::Tensor attention(const Layer& layer, const at::Tensor& x, at::Tensor keys, at::Tensor values,
                       int64_t begin) const;

  AudioConfig config_;
  StageDevice device_;
  LogMel log_mel_;
  Conv1d conv1_, conv2_;
  at::Tensor embed_positions_;  // (max_positions, hidden)
  std::vector<Layer> layers_;
  Norm norm_;
  Linear projector1_, projector2_;
};

// Errors: kCorrupt naming the tensor, kCancelled, kNoSpace. progress may be empty.
Result<std::shared_ptr<const AudioEncoderModel>> load_audio_encoder(const Checkpoint& checkpoint,
                                                                    const ModelConfig& config,
                                                                    const StageDevice& device,
                                                                    const Progress& progress,
                                                                    const CancelFlag& cancel);

// A session. Takes chunks of any length up to model->max_samples(), not only of one second: a
// reference voice is one long chunk. With a runner (those of one chunk_seconds at most go through
// it) the memory of the KV cache is taken here, otherwise at the first step. kNoSpace, or a GPU
// that fails.
Result<std::unique_ptr<AudioEncoder>> new_audio_encoder(
    std::shared_ptr<const AudioEncoderModel> model);

}  // namespace minicpmo
