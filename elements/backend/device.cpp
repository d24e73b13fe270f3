#include "backend/device.h"

#include <charconv>
#include <cstdlib>
#include <sstream>
#include <utility>
#include <vector>

#include "backend/cuda_devices.h"
#include "backend/cuda_library.h"

namespace minicpmo {
namespace {

// N of "cuda:N", 0 for "cuda", -1 for anything else.
int cuda_number(const std::string& device) {
  if (device == "cuda") return 0;
  if (!device.starts_with("cuda:")) return -1;
  int number = -1;
  const char* end = device.data() + device.size();
  const auto [stop, error] = std::from_chars(device.data() + 5, end, number);
  return error == std::errc() && stop == end ? number : -1;
}

Result<void> apply_environment(StageDevice& stage) {
  const char* const words = std::getenv("MINICPMO_CUDA");
  if (!words) return {};
  std::istringstream in(words);
  for (std::string word; std::getline(in, word, ',');) {
    if (word == "no-graphs") {
      stage.graphs = false;
    } else if (word == "no-kernels") {
      stage.runners = nullptr;
    } else if (!word.empty()) {
      return Error{ErrorCode::kSettings,
                   "MINICPMO_CUDA holds \"" + word + "\"; its words are no-graphs and no-kernels"};
    }
  }
  return {};
}

// The device with everything that it needs loaded.
Result<StageDevice> open_cuda(const CudaDevice& device) {
  if (!device.supported()) {
    return Error{ErrorCode::kNotFound,
                 device.text() + ": compute capability 8.0 (Ampere) or later is needed"};
  }
  StageDevice stage(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device.index)),
                    at::kBFloat16);
  ASSIGN_OR_RETURN(stage.runners, load_cuda_library());
  RETURN_IF_ERROR(try_cuda_device(device.index));
  RETURN_IF_ERROR(apply_environment(stage));
  return stage;
}

struct Opened {
  CudaDevice device;
  StageDevice stage;
};

Result<Opened> open_number(int number) {
  ASSIGN_OR_RETURN(const std::vector<CudaDevice> devices, list_cuda_devices());
  if (number >= static_cast<int>(devices.size())) {
    std::string there;
    for (const CudaDevice& device : devices) there += device.text() + "\n";
    return Error{ErrorCode::kNotFound,
                 "there are " + std::to_string(devices.size()) + " CUDA devices", there};
  }
  ASSIGN_OR_RETURN(const StageDevice stage, open_cuda(devices[number]));
  return Opened{devices[number], stage};
}

// The first device that works; the reason of the first if none does.
Result<Opened> open_first() {
  ASSIGN_OR_RETURN(const std::vector<CudaDevice> devices, list_cuda_devices());
  Error reason{ErrorCode::kNotFound, "the NVIDIA driver shows no GPU", ""};
  for (const CudaDevice& device : devices) {
    const Result<StageDevice> stage = open_cuda(device);
    if (stage.ok()) return Opened{device, *stage};
    if (device.index == 0) reason = stage.error();
  }
  return reason;
}

DeviceChoice on_cpu(const std::string& why) {
  DeviceChoice choice;
  choice.device = "cpu";
  choice.notes = why;
  return choice;
}

DeviceChoice on_cuda(const Opened& opened, const std::string& why) {
  DeviceChoice choice;
  choice.device = "cuda:" + std::to_string(opened.device.index);
  choice.notes = why + " (" + opened.device.text() + ")";
  choice.stage = opened.stage;
  return choice;
}

Result<DeviceChoice> place(const std::string& device) {
  if (device == "cpu") return on_cpu("device=cpu as asked for");
  if (device == "auto") {
    const Result<Opened> opened = open_first();
    if (opened.ok()) return on_cuda(*opened, "device=auto is the first CUDA device that works");
    if (opened.error().code == ErrorCode::kSettings) return opened.error();
    return on_cpu("device=auto is the CPU: " + opened.error().message);
  }
  const int number = cuda_number(device);
  if (number < 0) {
    return Error{ErrorCode::kSettings,
                 "device \"" + device + "\" is unknown; it is one of auto, cpu, cuda:N"};
  }
  const Result<Opened> opened = open_number(number);
  if (opened.ok()) return on_cuda(*opened, "device=" + device + " as asked for");
  Error error = opened.error();
  error.message = "device \"" + device + "\": " + error.message +
                  "; set device=cpu or device=auto to do without";
  return error;
}

}  // namespace

Result<DeviceChoice> choose_device(const std::string& device, const std::string& precision) {
  if (precision != "auto" && precision != "float32" && precision != "bfloat16") {
    return Error{ErrorCode::kSettings, "precision \"" + precision +
                                           "\" is unknown; it is one of auto, float32, bfloat16"};
  }
  ASSIGN_OR_RETURN(DeviceChoice choice, place(device));
  const bool cuda = choice.stage.is_cuda();
  choice.precision = precision != "auto" ? precision : cuda ? "bfloat16" : "float32";
  choice.stage.type = choice.precision == "bfloat16" ? at::kBFloat16 : at::kFloat;
  choice.notes += precision == "auto" ? "; precision=auto is " + choice.precision +
                                            (cuda ? " on CUDA" : " on the CPU")
                                      : "; precision=" + precision + " as asked for";
  return choice;
}

}  // namespace minicpmo
