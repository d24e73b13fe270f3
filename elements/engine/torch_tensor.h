// at::Tensor as a Tensor of a seam, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/result.h"
#include "common/tensor.h"

namespace minicpmo {

at::ScalarType to_scalar_type(DataType type);

// `tensor` must be contiguous, of a DataType's type, and never be written again. On a GPU: what the
// current stream has been given so far computes it; whoever reads it waits for that.
TensorPtr wrap_tensor(at::Tensor tensor);
// On `device` if wrap_tensor made it there, otherwise on the CPU; shares the storage of a tensor of
// ours that is there already, and copies otherwise. A tensor on a GPU is for use on the current
// stream, which waits for it; this call does not.
Result<at::Tensor> unwrap_tensor(const Tensor& tensor, at::Device device = at::kCPU);

}  // namespace minicpmo
