#include "engine/torch_tensor.h"

#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

class TorchTensor final : public Tensor {
 public:
  TorchTensor(DataType type, at::Tensor tensor)
      : Tensor(type, tensor.sizes().vec()), tensor_(std::move(tensor)) {
    if (device().is_cpu()) return;
    ready_.emplace(device().type());
    ready_->record(current_stream(device()));
  }

  Result<std::span<const std::byte>> host_bytes() const override {
    const at::Tensor* from = &tensor_;
    if (!device().is_cpu()) {
      const std::lock_guard lock(mutex_);
      if (!host_.defined()) {
        RETURN_IF_ERROR(run_stage("copying a tensor from the GPU", [&]() -> Result<void> {
          copy_to_host();
          return {};
        }));
      }
      from = &host_;
    }
    return std::span(static_cast<const std::byte*>(from->const_data_ptr()), byte_size());
  }

  at::Device device() const { return tensor_.device(); }

  // For use on the current stream, which is told to wait and whose work keeps the memory.
  at::Tensor on_current_stream() const {
    if (device().is_cpu()) return tensor_;
    const c10::Stream stream = current_stream(device());
    ready_->block(stream);
    c10::impl::VirtualGuardImpl(device().type())
        .recordDataPtrOnStream(tensor_.storage().data_ptr(), stream);
    return tensor_;
  }

 private:
  // On a stream of its own: the caller's thread may have none, and the default stream has other
  // work.
  void copy_to_host() const {
    const c10::impl::VirtualGuardImpl guard(device().type());
    const c10::Stream stream = guard.getStreamFromGlobalPool(device());
    ready_->block(stream);
    const c10::StreamGuard scope(stream);
    host_ = tensor_.to(at::kCPU);  // waits
  }

  at::Tensor tensor_;
  std::optional<c10::Event> ready_;  // on a GPU
  mutable std::mutex mutex_;
  mutable at::Tensor host_;
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
  TORCH_CHECK(tensor.is_contiguous(), "wrap_tensor: not a contiguous tensor");
  const DataType type = to_data_type(tensor.scalar_type());
  return std::make_shared<TorchTensor>(type, std::move(tensor));
}

Result<at::Tensor> unwrap_tensor(const Tensor& tensor, at::Device device) {
  const auto* ours = dynamic_cast<const TorchTensor*>(&tensor);
  if (ours && (ours->device() == device || ours->device().is_cpu())) {
    return ours->on_current_stream();
  }
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
