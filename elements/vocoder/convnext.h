// The residual block that the DVAE decoder and Vocos are made of (ConvNeXt, Liu et al. 2022, in one
// dimension).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "common/result.h"
#include "cuda/vocoder_runner.h"
#include "engine/checkpoint.h"
#include "engine/conv1d.h"

namespace minicpmo {

struct LayerNorm {
  at::Tensor weight, bias;
  // NAME.weight, NAME.bias of `size` values.
  static Result<LayerNorm> load(const Checkpoint& checkpoint, const std::string& name, int64_t size,
                                const StageDevice& device);
  at::Tensor operator()(const at::Tensor& x) const;  // over the last dimension, eps 1e-6
};

// x + scale * pwconv2(GELU(pwconv1(norm(dwconv(x))))), on time-major x (frames, width). dwconv is
// depthwise over time and keeps the length (zeros outside).
class ConvNextBlock {
 public:
  // Reads PREFIX{dwconv,norm,pwconv1,pwconv2}.* and PREFIX + scale ("coef" or "gamma").
  static Result<ConvNextBlock> load(const Checkpoint& checkpoint, const std::string& prefix,
                                    const std::string& scale, int64_t width, int64_t dilation,
                                    const StageDevice& device);
  // Adds the block's branch to x in place. Throws c10::Error.
  void apply(at::Tensor& x) const;
  // As a runner takes them; float32 only.
  cuda::ConvNextWeights runner_weights() const;

 private:
  int64_t dilation_ = 1;
  at::Tensor taps_;       // (kernel, width) float32
  at::Tensor taps_bias_;  // (width) float32
  LayerNorm norm_;        // float32: taps and norm are computed in float32, whatever the type
  at::Tensor up_, up_bias_, down_, down_bias_;  // the scale is part of down_
};

cuda::ConvWeights runner_weights(const Conv1d& conv);

// Number of blocks PREFIX + n + ".dwconv.weight"; kCorrupt if there are none or if a number is
// missing.
Result<int64_t> count_blocks(const Checkpoint& checkpoint, const std::string& prefix);

}  // namespace minicpmo
