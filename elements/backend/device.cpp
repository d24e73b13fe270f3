#include "backend/device.h"

#include <dlfcn.h>

#include <charconv>
#include <filesystem>
#include <system_error>

#include "backend/cuda/cuda_probe.h"

namespace minicpmo {
namespace {

// The directory of the library (or program) this code is in.
std::string own_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&choose_device), &info) == 0 || !info.dli_fname)
    return ".";
  std::error_code error;
  const auto path = std::filesystem::canonical(info.dli_fname, error);
  return error ? "." : path.parent_path().string();
}

struct Probe {
  int count = -1;
  std::string text;  // the devices, or why there are none
};

// The library stays loaded: the CUDA runtime does not survive being unloaded.
Probe probe_cuda() {
  const std::string path = own_directory() + "/" + kCudaLibrary;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return {-1, path + " does not exist: this build has no CUDA backend (it needs nvcc)"};
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return {-1, std::string("CUDA backend cannot be loaded: ") + dlerror()};
  const auto probe = reinterpret_cast<MinicpmoCudaProbe>(dlsym(library, kCudaProbeSymbol));
  if (!probe) return {-1, path + " has no function " + kCudaProbeSymbol + "; build it again"};
  char text[4096] = "";
  const int count = probe(text, sizeof text);
  return {count, text};
}

Error refuse_cuda(const std::string& device, int number) {
  const Probe probe = probe_cuda();
  if (probe.count < 0) {
    return Error{ErrorCode::kNotFound, "device \"" + device + "\": no CUDA device can be used: " +
                                           probe.text + "; set device=cpu or device=auto"};
  }
  if (number >= probe.count) {
    return Error{ErrorCode::kNotFound,
                 "device \"" + device + "\" does not exist: there are " +
                     std::to_string(probe.count) + " CUDA devices; set device=cpu or device=auto",
                 probe.text};
  }
  return Error{ErrorCode::kSettings,
               "device \"" + device +
                   "\" is there, but this version runs its stages on the CPU only; set device=cpu "
                   "or device=auto",
               probe.text};
}

// N of "cuda:N", 0 for "cuda", -1 for anything else.
int cuda_number(const std::string& device) {
  if (device == "cuda") return 0;
  if (!device.starts_with("cuda:")) return -1;
  int number = -1;
  const char* end = device.data() + device.size();
  const auto [stop, error] = std::from_chars(device.data() + 5, end, number);
  return error == std::errc() && stop == end ? number : -1;
}

}  // namespace

Result<DeviceChoice> choose_device(const std::string& device, const std::string& precision) {
  if (precision != "auto" && precision != "float32" && precision != "bfloat16") {
    return Error{ErrorCode::kSettings, "precision \"" + precision +
                                           "\" is unknown; it is one of auto, float32, bfloat16"};
  }
  DeviceChoice choice;
  if (const int number = cuda_number(device); number >= 0) return refuse_cuda(device, number);
  if (device == "auto") {
    choice.notes = "device=auto is the CPU, the only device this version runs its stages on";
  } else if (device == "cpu") {
    choice.notes = "device=cpu as asked for";
  } else {
    return Error{ErrorCode::kSettings,
                 "device \"" + device + "\" is unknown; it is one of auto, cpu, cuda:N"};
  }
  choice.device = "cpu";
  choice.precision = precision == "auto" ? "float32" : precision;
  choice.notes += precision == "auto" ? "; precision=auto is float32 on the CPU"
                                      : "; precision=" + precision + " as asked for";
  return choice;
}

}  // namespace minicpmo
