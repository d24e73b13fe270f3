#include "vocoder/convnext.h"

#include <ATen/ops/addcmul.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

namespace minicpmo {

Result<LayerNorm> LayerNorm::load(const Checkpoint& checkpoint, const std::string& name,
                                  int64_t size, const StageDevice& device) {
  LayerNorm norm;
  ASSIGN_OR_RETURN(norm.weight, checkpoint.load(name + ".weight", {size}, device));
  ASSIGN_OR_RETURN(norm.bias, checkpoint.load(name + ".bias", {size}, device));
  return norm;
}

at::Tensor LayerNorm::operator()(const at::Tensor& x) const {
  return at::layer_norm(x, weight.sizes(), weight, bias, 1e-6);
}

Result<ConvNextBlock> ConvNextBlock::load(const Checkpoint& checkpoint, const std::string& prefix,
                                          const std::string& scale, int64_t width, int64_t dilation,
                                          const StageDevice& device) {
  const StageDevice float32 = device.with(at::kFloat);
  ConvNextBlock block;
  block.dilation_ = dilation;
  const std::string taps = prefix + "dwconv.weight";
  ASSIGN_OR_RETURN(const at::Tensor weight, checkpoint.load(taps, {width, 1, -1}, at::kFloat));
  if (weight.size(2) % 2 == 0) {
    return Error{ErrorCode::kCorrupt,
                 checkpoint.location() + ": " + taps +
                     " has an even kernel size; the file is damaged or of " + "another model",
                 ""};
  }
  block.taps_ = weight.squeeze(1).t().contiguous().to(device.device);
  ASSIGN_OR_RETURN(block.taps_bias_, checkpoint.load(prefix + "dwconv.bias", {width}, float32));
  ASSIGN_OR_RETURN(block.norm_, LayerNorm::load(checkpoint, prefix + "norm", width, float32));
  ASSIGN_OR_RETURN(block.up_, checkpoint.load(prefix + "pwconv1.weight", {-1, width}, device));
  const int64_t inner = block.up_.size(0);
  ASSIGN_OR_RETURN(block.up_bias_, checkpoint.load(prefix + "pwconv1.bias", {inner}, device));
  // Scaling the rows of the second product once, on the CPU, saves a pass over the signal at every
  // window.
  ASSIGN_OR_RETURN(const at::Tensor down,
                   checkpoint.load(prefix + "pwconv2.weight", {width, inner}, at::kFloat));
  ASSIGN_OR_RETURN(const at::Tensor bias,
                   checkpoint.load(prefix + "pwconv2.bias", {width}, at::kFloat));
  ASSIGN_OR_RETURN(const at::Tensor gain, checkpoint.load(prefix + scale, {width}, at::kFloat));
  block.down_ = down.mul(gain.unsqueeze(1)).to(device.device, device.type);
  block.down_bias_ = bias.mul(gain).to(device.device, device.type);
  return block;
}

void ConvNextBlock::apply(at::Tensor& x) const {
  const int64_t frames = x.size(0), kernel = taps_.size(0), padding = dilation_ * (kernel - 1) / 2;
  at::Tensor padded = at::zeros({frames + 2 * padding, x.size(1)}, taps_.options());
  padded.narrow(0, padding, frames).copy_(x);
  at::Tensor y = at::addcmul(taps_bias_, padded.narrow(0, 0, frames), taps_[0]);
  for (int64_t k = 1; k < kernel; ++k) {
    y.addcmul_(padded.narrow(0, k * dilation_, frames), taps_[k]);
  }
  at::Tensor h = at::linear(norm_(y).to(x.scalar_type()), up_, up_bias_);
  at::gelu_(h);
  x.add_(at::linear(h, down_, down_bias_));
}

cuda::ConvNextWeights ConvNextBlock::runner_weights() const {
  cuda::ConvNextWeights w;
  w.taps = taps_.const_data_ptr<float>();
  w.taps_bias = taps_bias_.const_data_ptr<float>();
  w.kernel = static_cast<int>(taps_.size(0));
  w.dilation = static_cast<int>(dilation_);
  w.norm = norm_.weight.const_data_ptr<float>();
  w.norm_bias = norm_.bias.const_data_ptr<float>();
  w.up = up_.const_data_ptr<float>();
  w.up_bias = up_bias_.const_data_ptr<float>();
  w.down = down_.const_data_ptr<float>();
  w.down_bias = down_bias_.const_data_ptr<float>();
  w.inner = static_cast<int>(up_.size(0));
  return w;
}

cuda::ConvWeights runner_weights(const Conv1d& conv) {
  cuda::ConvWeights w;
  w.weight = conv.weight.const_data_ptr<float>();
  if (conv.bias.defined()) w.bias = conv.bias.const_data_ptr<float>();
  w.in = static_cast<int>(conv.in);
  w.out = static_cast<int>(conv.out());
  w.kernel = static_cast<int>(conv.kernel);
  return w;
}

Result<int64_t> count_blocks(const Checkpoint& checkpoint, const std::string& prefix) {
  const auto damaged = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt, checkpoint.location() + ": " + what, ""};
  };
  const int64_t blocks = checkpoint.count(prefix, ".dwconv.weight");
  if (blocks == 0) return damaged("holds no tensor " + prefix + "0.dwconv.weight");
  for (const std::string& name : checkpoint.names()) {
    if (name.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string number =
        name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
    int64_t n = 0;
    while (n < blocks && number != std::to_string(n)) ++n;
    if (n == blocks) {
      return damaged("holds " + name + ", but no tensor " + prefix + std::to_string(blocks) +
                     ".dwconv.weight");
    }
  }
  return blocks;
}

}  // namespace minicpmo
