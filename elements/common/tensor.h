// The tensors that cross the seams between elements. Knows neither GStreamer nor torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"

namespace minicpmo {

enum class DataType { kFloat32, kBFloat16, kUInt16, kInt32 };

constexpr size_t size_of(DataType type) {
  return type == DataType::kFloat32 || type == DataType::kInt32 ? 4 : 2;
}

// A dense row-major tensor. A backend derives from it to keep data where it was computed; whoever
// needs bytes asks for host_bytes(), which waits for the device and copies if it has to. Immutable
// once handed out, so it may be read from several threads.
class Tensor {
 public:
  Tensor(DataType type, std::vector<int64_t> dims) : type_(type), dims_(std::move(dims)) {}
  virtual ~Tensor() = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  DataType type() const { return type_; }
  const std::vector<int64_t>& dims() const { return dims_; }
  int64_t rows() const { return dims_.empty() ? 0 : dims_[0]; }
  size_t byte_size() const {
    size_t n = size_of(type_);
    for (int64_t d : dims_) n *= static_cast<size_t>(d);
    return n;
  }
  // Valid as long as the tensor lives. byte_size() bytes, little-endian.
  virtual Result<std::span<const std::byte>> host_bytes() const = 0;

 private:
  DataType type_;
  std::vector<int64_t> dims_;
};

using TensorPtr = std::shared_ptr<const Tensor>;

// A tensor in ordinary memory; takes the bytes over. bytes.size() must be the product of dims and
// the type's size.
class HostTensor final : public Tensor {
 public:
  HostTensor(DataType type, std::vector<int64_t> dims, std::vector<std::byte> bytes)
      : Tensor(type, std::move(dims)), bytes_(std::move(bytes)) {
    assert(bytes_.size() == byte_size());
  }
  Result<std::span<const std::byte>> host_bytes() const override {
    return std::span<const std::byte>(bytes_);
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace minicpmo
