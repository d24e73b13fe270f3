// The log-mel spectrogram of Whisper's feature extractor, for one chunk of a stream.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace minicpmo {

// As transformers 4.44.2, WhisperFeatureExtractor (torch path), pads the audio with zeros to 30 s
// and keeps the first ceil(samples / 160) frames, but without computing the 30 s: only frames that
// touch the chunk can differ from silence. The extractor's numbers are constants of the model
// family, not of a checkpoint.
class LogMel {
 public:
  static constexpr int64_t kSampleRate = 16000;
  static constexpr int64_t kFftSize = 400;  // samples of a frame, periodic Hann window
  static constexpr int64_t kHop = 160;      // samples from frame to frame
  static constexpr int64_t kMaxSamples = 30 * kSampleRate;

  // Samples beyond this, which is far beyond any audio, are limited to it, so that no power
  // overflows.
  static constexpr float kMaxAmplitude = 1e6f;

  // mel_bins: 80 for this model; 1..kFftSize / 2.
  explicit LogMel(int64_t mel_bins);

  // Frames of the result for that many samples.
  static constexpr int64_t frames(int64_t samples) { return (samples + kHop - 1) / kHop; }

  // pcm: 1..kMaxSamples samples, 16 kHz mono, nominally in [-1, 1]; those that are not finite count
  // as 0. Returns float32 (frames(pcm.size()), mel_bins): (L + 4) / 4, where L = log10(mel power)
  // is at least the largest L of the chunk less 8. Frame t is centred on sample 160 t; left of the
  // chunk its reflection is seen, right of it zeros. Frames that are cut off because they are
  // centred beyond the chunk count for the largest L. Silence gives -1.5. Throws c10::Error.
  at::Tensor operator()(std::span<const float> pcm) const;

 private:
  at::Tensor window_;   // (kFftSize)
  at::Tensor filters_;  // (kFftSize / 2 + 1, mel_bins)
};

// The triangular mel filters of librosa's defaults (M. Slaney, Auditory Toolbox, 1998: linear below
// 1 kHz, then logarithmic; each filter of area 1). Returns float32 (bins, mel_bins), bins equally
// spaced in [0, max_hz].
at::Tensor slaney_filters(int64_t bins, int64_t mel_bins, double max_hz);

}  // namespace minicpmo
