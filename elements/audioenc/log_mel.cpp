#include "audioenc/log_mel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/fft_rfft.h>
#include <ATen/ops/hann_window.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace minicpmo {
namespace {

constexpr double kLinearHz = 200.0 / 3;  // Hz per mel below the break
constexpr double kBreakHz = 1000;
constexpr double kBreakMel = kBreakHz / kLinearHz;
const double kLogStep = std::log(6.4) / 27;  // above it, log of the frequency ratio per mel

double hz_to_mel(double hz) {
  return hz < kBreakHz ? hz / kLinearHz : kBreakMel + std::log(hz / kBreakHz) / kLogStep;
}

double mel_to_hz(double mel) {
  return mel < kBreakMel ? mel * kLinearHz : kBreakHz * std::exp(kLogStep * (mel - kBreakMel));
}

float clean(float x) {
  if (!std::isfinite(x)) return 0;
  return std::clamp(x, -LogMel::kMaxAmplitude, LogMel::kMaxAmplitude);
}

}  // namespace

at::Tensor slaney_filters(int64_t bins, int64_t mel_bins, double max_hz) {
  std::vector<double> edges(static_cast<size_t>(mel_bins + 2));
  for (int64_t i = 0; i < mel_bins + 2; ++i) {
    edges[i] = mel_to_hz(hz_to_mel(max_hz) * static_cast<double>(i) / (mel_bins + 1));
  }
  at::Tensor filters = at::empty({bins, mel_bins}, at::kFloat);
  float* out = filters.mutable_data_ptr<float>();
  for (int64_t bin = 0; bin < bins; ++bin) {
    const double hz = max_hz * static_cast<double>(bin) / (bins - 1);
    for (int64_t m = 0; m < mel_bins; ++m) {
      const double rise = (hz - edges[m]) / (edges[m + 1] - edges[m]);
      const double fall = (edges[m + 2] - hz) / (edges[m + 2] - edges[m + 1]);
      const double height = std::max(0.0, std::min(rise, fall));
      *out++ = static_cast<float>(height * 2 / (edges[m + 2] - edges[m]));
    }
  }
  return filters;
}

LogMel::LogMel(int64_t mel_bins)
    : window_(at::hann_window(kFftSize, /*periodic=*/true)),
      filters_(slaney_filters(kFftSize / 2 + 1, mel_bins, kSampleRate / 2.0)) {}

at::Tensor LogMel::operator()(std::span<const float> pcm) const {
  const auto samples = static_cast<int64_t>(pcm.size());
  constexpr int64_t kHalf = kFftSize / 2;
  // Frames later than these see nothing but zeros; the extractor has no frame centred on the end of
  // its 30 s.
  const int64_t computed = std::min(frames(samples + kHalf), frames(kMaxSamples));
  at::Tensor padded = at::zeros({(computed - 1) * kHop + kFftSize}, at::kFloat);
  float* x = padded.mutable_data_ptr<float>();
  std::transform(pcm.begin(), pcm.end(), x + kHalf, clean);
  // Reflections about the first sample and, for audio that fills the 30 s, about their last one.
  for (int64_t i = 1; i <= std::min(kHalf, samples - 1); ++i) x[kHalf - i] = x[kHalf + i];
  const int64_t last = kHalf + kMaxSamples - 1;
  for (int64_t i = last + 1; i < padded.size(0); ++i) x[i] = x[2 * last - i];

  const at::Tensor framed = padded.unfold(0, kFftSize, kHop).mul(window_);
  const at::Tensor spectrum = at::view_as_real(at::fft_rfft(framed));
  const at::Tensor power = spectrum.square().sum(-1);
  at::Tensor mel = power.mm(filters_).clamp_min_(1e-10).log10_();
  mel = at::maximum(mel, mel.max().sub_(8.0));
  return mel.narrow(0, 0, frames(samples)).add_(4.0).div_(4.0);
}

}  // namespace minicpmo
