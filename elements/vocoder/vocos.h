// A mel spectrogram to a waveform: Vocos (Siuzdak 2023), mel-24khz architecture, padding "same".
// Always float32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "common/result.h"
#include "engine/checkpoint.h"
#include "engine/conv1d.h"
#include "vocoder/convnext.h"

namespace minicpmo {

class Vocos {
 public:
  // Sizes come from the shapes of the tensors, the number of blocks from their names; the hop,
  // which has no tensor, is a quarter of the window as in every Vocos with "same" padding.
  // mel_bins: of the spectrograms to come. Errors: kCorrupt naming the tensor.
  static Result<Vocos> load(const Checkpoint& checkpoint, int64_t mel_bins,
                            at::Device device = at::kCPU);

  // mel: natural-log (frames, mel_bins), time-major, any float type, frames >= 1. Returns float32
  // (frames * hop()). Throws c10::Error.
  at::Tensor decode(const at::Tensor& mel) const;

  // The inverse short-time Fourier transform of the head: log-magnitude and phase of n_fft() / 2 +
  // 1 bins each, float32 (frames, n_fft() + 2), to float32 (frames * hop()): magnitudes are limited
  // to 100, frames are windowed, added up, trimmed by (n_fft - hop) / 2 on both sides and divided
  // by the sum of the squared windows.
  at::Tensor inverse_stft(const at::Tensor& head) const;

  // The inverse DFT and the window as a matrix (n_fft() outputs, n_fft() inputs) on the weights'
  // device: the inputs are a frame's real parts, bins 0..n_fft() / 2, then the imaginary parts of
  // the bins between the first and the last. A runner's product with it costs less than an FFT's
  // launches.
  at::Tensor synthesis() const;

  // Vocos's part of the spec, without `synthesis`.
  void describe(cuda::VocoderRunnerSpec& spec) const;

  int64_t n_fft() const { return n_fft_; }
  int64_t hop() const { return n_fft_ / kOverlap; }
  int64_t blocks() const { return static_cast<int64_t>(blocks_.size()); }

 private:
  static constexpr int64_t kOverlap = 4;  // frames that overlap at any sample

  at::Tensor overlap_add(const at::Tensor& frames) const;
  Result<void> load_head(const Checkpoint& checkpoint, int64_t width, const StageDevice& device);

  int64_t n_fft_ = 0;
  Conv1d embed_;
  LayerNorm norm_, final_norm_;
  std::vector<ConvNextBlock> blocks_;
  at::Tensor out_, out_bias_;    // (n_fft + 2, width), (n_fft + 2)
  at::Tensor window_, squared_;  // (n_fft)
};

}  // namespace minicpmo
