// at::Tensor as a Tensor of a seam, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/result.h"
#include "common/tensor.h"

namespace minicpmo {

at::ScalarType to_scalar_type(DataType type);

// `tensor` must be contiguous, of a DataType's type, and never be written again.
TensorPtr wrap_tensor(at::Tensor tensor);
// Shares the storage if `tensor` was made by wrap_tensor, otherwise copies its bytes.
Result<at::Tensor> unwrap_tensor(const Tensor& tensor);

}  // namespace minicpmo
