// Where a stage's weights are and how it computes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>

#include <memory>
#include <optional>

#include "cuda/runners.h"

namespace minicpmo {

struct StageDevice {
  StageDevice(at::ScalarType type = at::kFloat) : type(type) {}  // NOLINT: a CPU, on purpose
  StageDevice(at::Device device, at::ScalarType type) : device(device), type(type) {}

  at::Device device = at::kCPU;
  at::ScalarType type = at::kFloat;        // of weights and caches
  const cuda::Library* runners = nullptr;  // null: ATen only
  bool graphs = true;                      // runners replay graphs

  bool is_cuda() const { return device.is_cuda(); }
  StageDevice with(at::ScalarType other) const {
    StageDevice device = *this;
    device.type = other;
    return device;
  }
  at::TensorOptions options() const { return at::TensorOptions(type).device(device); }
};

// The data of a contiguous bfloat16 tensor as the runners take it. Throws c10::Error.
cuda::bfloat16_bits* bfloat16_data(const at::Tensor& tensor);

// A session's stream, which no other session has as long as a copy of this is there; nothing on a
// CPU. Later sessions get it again.
class StageStream {
 public:
  StageStream() = default;  // a CPU
  // Throws c10::Error.
  StageStream(const StageDevice& device, bool high_priority);

  bool is_cuda() const { return stream_.has_value(); }
  const std::optional<c10::Stream>& stream() const { return stream_; }
  void* handle() const { return stream_ ? stream_->native_handle() : nullptr; }  // cudaStream_t
  cuda::RunnerOptions runner_options(const StageDevice& device) const;

 private:
  std::optional<c10::Stream> stream_;
  std::shared_ptr<void> lease_;  // the last copy gives the stream back
};

// Makes the stream (and its device) the thread's current one.
class StreamScope {
 public:
  explicit StreamScope(const StageStream& stream) {
    if (stream.is_cuda()) guard_.emplace(*stream.stream());
  }

 private:
  std::optional<c10::StreamGuard> guard_;
};

}  // namespace minicpmo
