// Device and pinned host memory that frees itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <utility>

namespace minicpmo::cuda {

// Held while a graph is captured. Freeing memory waits for the whole device, which invalidates
// every capture that is under way, whatever its thread and mode: hold this for it.
inline std::mutex& capture_mutex() {
  static std::mutex mutex;
  return mutex;
}

template <bool kHost>
class Memory {
 public:
  Memory() = default;
  ~Memory() { release(); }
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  // Uninitialised; drops what was there.
  cudaError_t allocate(size_t bytes) {
    release();
    const std::lock_guard lock(capture_mutex());
    const cudaError_t error =
        kHost ? cudaHostAlloc(&data_, bytes, cudaHostAllocDefault) : cudaMalloc(&data_, bytes);
    if (error == cudaSuccess)
      size_ = bytes;
    else
      data_ = nullptr;
    return error;
  }
  template <class T>
  T* as(size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }
  size_t size() const { return size_; }

 private:
  void release() {
    if (data_ == nullptr) return;
    const std::lock_guard lock(capture_mutex());
    if (kHost)
      cudaFreeHost(data_);
    else
      cudaFree(data_);
    data_ = nullptr;
    size_ = 0;
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

using DeviceMemory = Memory<false>;
using PinnedMemory = Memory<true>;

}  // namespace minicpmo::cuda
