#include "engine/torch_tensor.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <utility>

namespace minicpmo {
namespace {

class TorchTensor final : public Tensor {
 public:
  TorchTensor(DataType type, at::Tensor tensor)
      : Tensor(type, tensor.sizes().vec()), tensor_(std::move(tensor)) {}
  Result<std::span<const std::byte>> host_bytes() const override {
    return std::span(static_cast<const std::byte*>(tensor_.const_data_ptr()), byte_size());
  }
  const at::Tensor& tensor() const { return tensor_; }

 private:
  at::Tensor tensor_;
};

DataType to_data_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DataType::kFloat32;
    case at::kBFloat16:
      return DataType::kBFloat16;
    case at::kUInt16:
      return DataType::kUInt16;
    case at::kInt:
      return DataType::kInt32;
    default:
      TORCH_CHECK(false, "no seam carries tensors of type ", type);
  }
}

}  // namespace

at::ScalarType to_scalar_type(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return at::kFloat;
    case DataType::kBFloat16:
      return at::kBFloat16;
    case DataType::kUInt16:
      return at::kUInt16;
    case DataType::kInt32:
      break;
  }
  return at::kInt;
}

TensorPtr wrap_tensor(at::Tensor tensor) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous(),
              "wrap_tensor: not a contiguous CPU tensor");
  const DataType type = to_data_type(tensor.scalar_type());
  return std::make_shared<TorchTensor>(type, std::move(tensor));
}

Result<at::Tensor> unwrap_tensor(const Tensor& tensor) {
  if (const auto* ours = dynamic_cast<const TorchTensor*>(&tensor)) return ours->tensor();
  ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, tensor.host_bytes());
  if (bytes.size() != tensor.byte_size()) {
    return Error{ErrorCode::kFormat, "a tensor holds " + std::to_string(bytes.size()) +
                                         " bytes where its shape needs " +
                                         std::to_string(tensor.byte_size())};
  }
  at::Tensor copy = at::empty(tensor.dims(), to_scalar_type(tensor.type()));
  if (!bytes.empty()) std::memcpy(copy.mutable_data_ptr(), bytes.data(), bytes.size());
  return copy;
}

}  // namespace minicpmo
