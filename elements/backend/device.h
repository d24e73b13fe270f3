// Which device and number format the properties `device` and `precision` ask for.
#pragma once

#include <string>

#include "common/result.h"
#include "engine/stage_device.h"

namespace minicpmo {

struct DeviceChoice {
  std::string device;     // "cpu" or "cuda:N"
  std::string precision;  // "float32" or "bfloat16"
  std::string notes;      // why
  StageDevice stage;      // ready to load weights to
};

// device: auto (the first CUDA device that works, otherwise the CPU), cpu, cuda (cuda:0) or cuda:N;
// precision: auto (bfloat16 on CUDA, float32 on the CPU), float32 or bfloat16.
// Choosing a CUDA device loads libminicpmo-cuda.so and torch's CUDA part. The environment variable
// MINICPMO_CUDA, for tests and profilers, holds words separated by commas: no-graphs (the runners
// launch kernels one by one), no-kernels (torch's operators in place of the runners).
// kSettings: any other value. kNotFound: a CUDA device that is not there. kLibrary: a library that
// is missing or does not match. kBusy, kNoSpace: a device that does not work. The message says
// which.
Result<DeviceChoice> choose_device(const std::string& device, const std::string& precision);

}  // namespace minicpmo
