// Speech codes to 24 kHz PCM in a stream: DVAE and Vocos on overlapping windows, cross-faded.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>

#include "common/result.h"
#include "common/stage.h"
#include "cuda/vocoder_runner.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "vocoder/dvae.h"
#include "vocoder/vocos.h"

namespace minicpmo {

// The weights. Immutable once loaded, shared by all sessions.
class VocoderModel {
 public:
  static constexpr int64_t kContextRows = 4;  // code rows that a window repeats of the one before
  static constexpr int64_t kMaxRows = 25;     // new code rows of a step

  VocoderModel(const StageDevice& device, Dvae dvae, Vocos vocos);

  struct Window {
    at::Tensor mel;  // (mel frames, mel bins), in the type of the DVAE's weights
    at::Tensor wav;  // float32 (rows * samples_per_row()), on the CPU, contiguous
  };
  // Decodes one window by itself, on the thread's current stream. codes: row-major (rows, books),
  // valid. Throws c10::Error.
  Window decode(std::span<const int32_t> codes) const;

  // What a runner for this model and the longest window takes; only if device().runners. The model
  // has to outlive the runner.
  cuda::VocoderRunnerSpec runner_spec(const cuda::RunnerOptions& options) const;

  int64_t samples_per_row() const { return dvae_.groups() * vocos_.hop(); }  // 512
  const StageDevice& device() const { return device_; }
  const Dvae& dvae() const { return dvae_; }
  const Vocos& vocos() const { return vocos_; }

 private:
  StageDevice device_;
  Dvae dvae_;
  Vocos vocos_;
  at::Tensor synthesis_;  // Vocos::synthesis(), for runners
};

// checkpoint holds "tts.dvae.", vocos is assets/Vocos.safetensors. device.type is that of the
// DVAE; Vocos is float32, and with runners the DVAE is too: their time goes into launches, not into
// the width of the numbers, and the sound is the better for it. Errors: kCorrupt naming the tensor,
// kCancelled, kNoSpace. progress may be empty.
Result<std::shared_ptr<const VocoderModel>> load_vocoder(
    const Checkpoint& checkpoint, const Checkpoint& vocos, const ModelConfig& config,
    const StageDevice& device, const Progress& progress, const CancelFlag& cancel);

// A session. A window is the last 4 code rows and the new ones, decoded by itself as upstream does
// (modeling_minicpmo.py, _generate_mel_spec_from_tokens; the windows are far shorter than the
// receptive field, so other windows sound different). Its first 2048 samples are cross-faded with
// the tail held back from the window before: sample i of n is (old * (n - i) + new * (i + 1)) / (n
// + 1). Everything but the new tail is final and returned at once; upstream returns the same
// samples one window later.
//
// segment_start, compatibility none: a window like any other. Upstream: the held tail is returned
// as it is, then the whole window without a cross-fade, so that the 4 repeated rows are heard
// twice. A step of 0 rows returns 0 samples; its segment_start counts for the next rows.
//
// Errors: kNoSpace or kFailed if a runner cannot be made; throws c10::Error.
Result<std::unique_ptr<Vocoder>> new_vocoder(std::shared_ptr<const VocoderModel> model,
                                             const VocoderOptions& options);

}  // namespace minicpmo
