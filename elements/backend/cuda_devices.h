// The GPUs of this machine, asked of the driver alone: no CUDA runtime and no torch is loaded for
// it, and a machine without a driver pays for one failed dlopen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace minicpmo {

struct CudaDevice {
  int index = 0;  // N of "cuda:N"
  std::string name;
  int major = 0, minor = 0;  // compute capability
  uint64_t memory = 0;       // bytes

  // 8.0 (Ampere) on: what the kernels are built for.
  bool supported() const { return major >= 8; }
  // "cuda:0: NVIDIA H100, compute capability 9.0, 79.1 GiB"
  std::string text() const;
};

// All devices, in the order that CUDA_VISIBLE_DEVICES gives them. Empty if the driver shows none;
// kNotFound if there is no driver, kLibrary if it is too old, kBusy if it does not start.
Result<std::vector<CudaDevice>> list_cuda_devices();

}  // namespace minicpmo
