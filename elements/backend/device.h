// Which device and number format the properties `device` and `precision` ask for.
#pragma once

#include <string>

#include "common/result.h"

namespace minicpmo {

struct DeviceChoice {
  std::string device;     // "cpu"
  std::string precision;  // "float32" or "bfloat16"
  std::string notes;      // why
};

// device: auto, cpu, cuda or cuda:N; precision: auto, float32 or bfloat16.
// kSettings: any other value, or a device this version cannot run the stages on. kNotFound: a CUDA
// device that is not there (no library of ours, no driver, no such number); the message says which.
Result<DeviceChoice> choose_device(const std::string& device, const std::string& precision);

}  // namespace minicpmo
