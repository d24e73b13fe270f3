// A convolution over time as one matrix product, for time-major signals (frames, channels).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>

#include <optional>
#include <string>

#include "common/result.h"
#include "engine/checkpoint.h"

namespace minicpmo {

// y[t] = bias + sum_k weight[:, :, k] x[stride * t + k - (kernel - 1) / 2], zeros outside: torch's
// Conv1d with padding (kernel - 1) / 2. Gathering the kernel's frames in memory turns it into a
// matrix product, which is faster than the convolution kernels for the few hundred frames of a
// chunk, and needs no transposed copies.
struct Conv1d {
  at::Tensor weight;  // (out, kernel * in)
  at::Tensor bias;    // (out), or undefined
  int64_t in = 0;
  int64_t kernel = 0;
  int64_t stride = 1;

  // Reads NAME.weight (out, in, kernel), kernel odd, and NAME.bias (out) if it is to have one. -1
  // accepts any number of channels.
  static Result<Conv1d> load(const Checkpoint& checkpoint, const std::string& name, int64_t out,
                             int64_t in, bool with_bias, const StageDevice& device,
                             int64_t stride = 1) {
    ASSIGN_OR_RETURN(at::Tensor weight, checkpoint.load(name + ".weight", {out, in, -1}, device));
    if (weight.numel() == 0 || weight.size(2) % 2 == 0) {
      return Error{ErrorCode::kCorrupt,
                   checkpoint.location() + ": " + name +
                       ".weight is empty or has an even kernel size; " +
                       "the file is damaged or of another model",
                   ""};
    }
    Conv1d conv;
    conv.in = weight.size(1);
    conv.kernel = weight.size(2);
    conv.stride = stride;
    conv.weight = weight.permute({0, 2, 1}).reshape({weight.size(0), -1}).contiguous();
    if (with_bias) {
      ASSIGN_OR_RETURN(conv.bias, checkpoint.load(name + ".bias", {weight.size(0)}, device));
    }
    return conv;
  }

  int64_t out() const { return weight.size(0); }

  // (frames, in) -> ((frames - 1) / stride + 1, out). Throws c10::Error.
  at::Tensor operator()(const at::Tensor& x) const {
    const auto b = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
    if (kernel == 1 && stride == 1) return at::linear(x, weight, b);
    const int64_t frames = x.size(0), padding = (kernel - 1) / 2;
    at::Tensor padded = x.new_zeros({frames + 2 * padding, in});
    padded.narrow(0, padding, frames).copy_(x);
    const at::Tensor columns =
        padded.as_strided({(frames - 1) / stride + 1, kernel * in}, {stride * in, 1});
    return at::linear(columns.contiguous(), weight, b);
  }
};

}  // namespace minicpmo
