#include "vocoder/vocos.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/fft_irfft.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <utility>

namespace minicpmo {
namespace {

constexpr double kMaxMagnitude = 100;

Error corrupt(const Checkpoint& checkpoint, const std::string& what) {
  return {ErrorCode::kCorrupt, checkpoint.location() + ": " + what, ""};
}

}  // namespace

Result<Vocos> Vocos::load(const Checkpoint& checkpoint, int64_t mel_bins, at::Device device) {
  const StageDevice float32(device, at::kFloat);
  Vocos vocos;
  ASSIGN_OR_RETURN(vocos.embed_,
                   Conv1d::load(checkpoint, "backbone.embed", -1, mel_bins, true, float32));
  const int64_t width = vocos.embed_.out();
  ASSIGN_OR_RETURN(vocos.norm_, LayerNorm::load(checkpoint, "backbone.norm", width, float32));
  const std::string block = "backbone.convnext.";
  ASSIGN_OR_RETURN(const int64_t blocks, count_blocks(checkpoint, block));
  for (int64_t i = 0; i < blocks; ++i) {
    ASSIGN_OR_RETURN(auto loaded, ConvNextBlock::load(checkpoint, block + std::to_string(i) + ".",
                                                      "gamma", width, 1, float32));
    vocos.blocks_.push_back(std::move(loaded));
  }
  ASSIGN_OR_RETURN(vocos.final_norm_,
                   LayerNorm::load(checkpoint, "backbone.final_layer_norm", width, float32));
  RETURN_IF_ERROR(vocos.load_head(checkpoint, width, float32));
  return vocos;
}

Result<void> Vocos::load_head(const Checkpoint& checkpoint, int64_t width,
                              const StageDevice& device) {
  ASSIGN_OR_RETURN(out_, checkpoint.load("head.out.weight", {-1, width}, device));
  n_fft_ = out_.size(0) - 2;
  if (n_fft_ < 2 * kOverlap || n_fft_ % (2 * kOverlap) != 0) {
    return corrupt(checkpoint, "head.out.weight has " + std::to_string(out_.size(0)) +
                                   " rows, which is not a window length (a multiple of 8) and two");
  }
  ASSIGN_OR_RETURN(out_bias_, checkpoint.load("head.out.bias", {n_fft_ + 2}, device));
  ASSIGN_OR_RETURN(window_, checkpoint.load("head.istft.window", {n_fft_}, device));
  squared_ = window_.square();
  return {};
}

at::Tensor Vocos::decode(const at::Tensor& mel) const {
  at::Tensor x = norm_(embed_(mel.to(at::kFloat)));
  for (const ConvNextBlock& block : blocks_) block.apply(x);
  return inverse_stft(at::linear(final_norm_(x), out_, out_bias_));
}

at::Tensor Vocos::inverse_stft(const at::Tensor& head) const {
  const int64_t bins = n_fft_ / 2 + 1, frames = head.size(0);
  const at::Tensor magnitude = head.narrow(1, 0, bins).exp().clamp_max_(kMaxMagnitude);
  const at::Tensor phase = head.narrow(1, bins, bins);
  const at::Tensor spectrum = at::complex(phase.cos().mul_(magnitude), phase.sin().mul_(magnitude));
  const at::Tensor wave = overlap_add(at::fft_irfft(spectrum, n_fft_, 1).mul_(window_));
  const at::Tensor envelope = overlap_add(squared_.expand({frames, n_fft_}));
  return wave.div_(envelope.clamp_min(1e-11));
}

at::Tensor Vocos::synthesis() const {
  const int64_t bins = n_fft_ / 2 + 1;
  const at::Tensor unit = at::eye(bins, at::kDouble), zero = at::zeros_like(unit);
  const at::Tensor spectra =
      at::cat({at::complex(unit, zero), at::complex(zero, unit).narrow(0, 1, bins - 2)});
  const at::Tensor waves =
      at::fft_irfft(spectra, n_fft_, 1).mul_(window_.to(at::kCPU, at::kDouble));
  return waves.t().to(at::kFloat).contiguous().to(window_.device());
}

void Vocos::describe(cuda::VocoderRunnerSpec& spec) const {
  spec.embed = runner_weights(embed_);
  spec.norm = norm_.weight.const_data_ptr<float>();
  spec.norm_bias = norm_.bias.const_data_ptr<float>();
  for (const ConvNextBlock& block : blocks_) spec.vocos.push_back(block.runner_weights());
  spec.final_norm = final_norm_.weight.const_data_ptr<float>();
  spec.final_norm_bias = final_norm_.bias.const_data_ptr<float>();
  spec.out = out_.const_data_ptr<float>();
  spec.out_bias = out_bias_.const_data_ptr<float>();
  spec.window = window_.const_data_ptr<float>();
  spec.n_fft = static_cast<int>(n_fft_);
  spec.hop = static_cast<int>(hop());
}

// (frames, n_fft) at steps of hop() -> (frames * hop()), the ends trimmed.
at::Tensor Vocos::overlap_add(const at::Tensor& frames) const {
  const int64_t n = frames.size(0);
  at::Tensor sum = at::zeros({n + kOverlap - 1, hop()}, frames.options());
  for (int64_t k = kOverlap - 1; k >= 0;
       --k) {  // earlier frames first, as a sum over frames in their order
    sum.narrow(0, k, n).add_(frames.narrow(1, k * hop(), hop()));
  }
  return sum.view(-1).narrow(0, (n_fft_ - hop()) / 2, n * hop());
}

}  // namespace minicpmo
