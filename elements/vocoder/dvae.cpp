#include "vocoder/dvae.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>

#include <cmath>
#include <utility>

namespace minicpmo {
namespace {

constexpr int64_t kLevels = 5;  // of every dimension of the quantizer (vq_layer levels 5, 5, 5, 5)
constexpr int64_t kSteps = 2;   // books of a quantizer: coarse, then fine
constexpr int64_t kDilation = 2;  // of the blocks

Error corrupt(const Checkpoint& checkpoint, const std::string& what) {
  return {ErrorCode::kCorrupt, checkpoint.location() + ": " + what, ""};
}

}  // namespace

Result<Dvae> Dvae::load(const Checkpoint& checkpoint, const std::string& prefix, int64_t books,
                        int64_t codes, const StageDevice& device) {
  Dvae dvae;
  dvae.books_ = books;
  dvae.codes_ = codes;
  dvae.device_ = device;
  RETURN_IF_ERROR(dvae.load_quantizers(checkpoint, prefix + "vq_layer.quantizer.rvqs."));
  RETURN_IF_ERROR(dvae.load_decoder(checkpoint, prefix));
  return dvae;
}

Result<void> Dvae::load_quantizers(const Checkpoint& checkpoint, const std::string& prefix) {
  const int64_t groups = books_ / kSteps;
  if (groups < 1 || books_ % kSteps != 0 ||
      checkpoint.count(prefix, ".project_out.weight") > groups) {
    return corrupt(checkpoint, "the quantizers " + prefix + "N do not fit the " +
                                   std::to_string(books_) +
                                   " books of config.json (tts_config.num_vq), two to each");
  }
  int64_t width = -1;
  for (int64_t g = 0; g < groups; ++g) {
    const std::string name = prefix + std::to_string(g) + ".project_out";
    Quantizer q;
    ASSIGN_OR_RETURN(q.weight,
                     checkpoint.load(name + ".weight", {width, g == 0 ? -1 : dims_}, device_));
    width = q.weight.size(0);
    dims_ = q.weight.size(1);
    ASSIGN_OR_RETURN(q.bias, checkpoint.load(name + ".bias", {width}, device_));
    int64_t codes = 1;
    for (int64_t d = 0; d < dims_ && codes <= codes_; ++d) codes *= kLevels;
    if (width == 0 || codes != codes_) {
      return corrupt(checkpoint, name + ".weight does not fit codes of " + std::to_string(codes_) +
                                     " values, which are numbers of base-5 digits");
    }
    quantizers_.push_back(std::move(q));
  }
  return {};
}

Result<void> Dvae::load_decoder(const Checkpoint& checkpoint, const std::string& prefix) {
  const std::string decoder = prefix + "decoder.", block = decoder + "decoder_block.";
  const int64_t latent = quantizers_[0].weight.size(0);
  ASSIGN_OR_RETURN(conv_in_,
                   Conv1d::load(checkpoint, decoder + "conv_in.0", -1, latent, true, device_));
  ASSIGN_OR_RETURN(conv_in2_, Conv1d::load(checkpoint, decoder + "conv_in.2", -1, conv_in_.out(),
                                           true, device_));
  const int64_t width = conv_in2_.out();
  ASSIGN_OR_RETURN(const int64_t blocks, count_blocks(checkpoint, block));
  for (int64_t i = 0; i < blocks; ++i) {
    ASSIGN_OR_RETURN(auto loaded, ConvNextBlock::load(checkpoint, block + std::to_string(i) + ".",
                                                      "coef", width, kDilation, device_));
    blocks_.push_back(std::move(loaded));
  }
  ASSIGN_OR_RETURN(conv_out_,
                   Conv1d::load(checkpoint, decoder + "conv_out", -1, width, false, device_));
  ASSIGN_OR_RETURN(out_conv_, Conv1d::load(checkpoint, prefix + "out_conv", -1, conv_out_.out(),
                                           false, at::kFloat));
  ASSIGN_OR_RETURN(const at::Tensor coef,
                   checkpoint.load(prefix + "coef", {1, out_conv_.out(), 1}, at::kFloat));
  // The output scale is part of the last convolution's rows.
  out_conv_.weight = out_conv_.weight.mul(coef.view({-1, 1})).to(device_.device, device_.type);
  return {};
}

at::Tensor Dvae::dequantize(std::span<const int32_t> codes) const {
  const auto rows = static_cast<int64_t>(codes.size()) / books_;
  std::vector<at::Tensor> projected;
  for (int64_t g = 0; g < groups(); ++g) {
    at::Tensor latent = at::empty({rows, dims_}, at::kFloat);
    float* z = latent.mutable_data_ptr<float>();
    for (int64_t t = 0; t < rows; ++t, z += dims_) {
      for (int64_t d = 0; d < dims_; ++d) z[d] = 0;
      float scale = 0.5f;  // digits 0..4 stand for -1..1; the fine ones for a quarter of that
      for (int64_t r = 0; r < kSteps; ++r, scale /= kLevels - 1) {
        int64_t code = codes[static_cast<size_t>(t * books_ + g * kSteps + r)];
        for (int64_t d = 0; d < dims_; ++d, code /= kLevels) {
          z[d] += scale * static_cast<float>(code % kLevels - kLevels / 2);
        }
      }
    }
    projected.push_back(at::linear(latent.to(device_.device, device_.type), quantizers_[g].weight,
                                   quantizers_[g].bias));
  }
  return at::stack(projected, 1).view({rows * groups(), -1});  // the groups take turns in time
}

void Dvae::describe(cuda::VocoderRunnerSpec& spec) const {
  spec.dims = static_cast<int>(dims_);
  for (const Quantizer& q : quantizers_) {
    spec.quantizer.push_back(q.weight.const_data_ptr<float>());
    spec.quantizer_bias.push_back(q.bias.const_data_ptr<float>());
  }
  spec.latent = static_cast<int>(quantizers_[0].weight.size(0));
  spec.conv_in = runner_weights(conv_in_);
  spec.conv_in2 = runner_weights(conv_in2_);
  for (const ConvNextBlock& block : blocks_) spec.dvae.push_back(block.runner_weights());
  spec.conv_out = runner_weights(conv_out_);
  spec.out_conv = runner_weights(out_conv_);
}

at::Tensor Dvae::decode(std::span<const int32_t> codes) const {
  at::Tensor x = conv_in_(dequantize(codes));
  at::gelu_(x);
  x = conv_in2_(x);
  for (const ConvNextBlock& block : blocks_) block.apply(x);
  return out_conv_(conv_out_(x));
}

}  // namespace minicpmo
