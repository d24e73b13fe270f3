#include "backend/cuda_devices.h"

#include <dlfcn.h>

#include <cstdio>

namespace minicpmo {
namespace {

constexpr const char* kDriver = "libcuda.so.1";
constexpr int kVersion = 13000;  // of the driver's CUDA, at least
// CUdevice_attribute of cuda.h; the header is not needed to build without CUDA.
constexpr int kMajor = 75, kMinor = 76;

// The driver's functions, by their names in the library (CUDA Driver API, "Initialization", "Device
// Management").
struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*version)(int*) = nullptr;
  int (*count)(int*) = nullptr;
  int (*device)(int*, int) = nullptr;
  int (*name)(char*, int, int) = nullptr;
  int (*attribute)(int*, int, int) = nullptr;
  int (*memory)(size_t*, int) = nullptr;
  int (*error_name)(int, const char**) = nullptr;
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// Stays loaded: torch uses it from then on, too.
Result<Driver> load_driver() {
  void* library = dlopen(kDriver, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    return Error{ErrorCode::kNotFound, std::string("there is no NVIDIA driver (") + kDriver + ")",
                 dlerror()};
  }
  Driver driver;
  if (!find(library, "cuInit", driver.init) ||
      !find(library, "cuDriverGetVersion", driver.version) ||
      !find(library, "cuDeviceGetCount", driver.count) ||
      !find(library, "cuDeviceGet", driver.device) ||
      !find(library, "cuDeviceGetName", driver.name) ||
      !find(library, "cuDeviceGetAttribute", driver.attribute) ||
      !find(library, "cuDeviceTotalMem_v2", driver.memory) ||
      !find(library, "cuGetErrorName", driver.error_name)) {
    return Error{ErrorCode::kLibrary,
                 std::string(kDriver) + " is not the NVIDIA driver's; install the driver again",
                 dlerror()};
  }
  return driver;
}

Result<void> check(const Driver& driver, int code, const char* what) {
  if (code == 0) return {};
  const char* name = nullptr;
  driver.error_name(code, &name);
  constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE
  const std::string words = std::string(what) + ": " + (name ? name : std::to_string(code));
  if (code == kNoDevice) {
    return Error{ErrorCode::kNotFound, "the NVIDIA driver shows no GPU", words};
  }
  return Error{ErrorCode::kBusy, "the NVIDIA driver does not start (" + words + ")"};
}

Result<CudaDevice> describe(const Driver& driver, int index) {
  CudaDevice device;
  device.index = index;
  int handle = 0;
  RETURN_IF_ERROR(check(driver, driver.device(&handle, index), "cuDeviceGet"));
  char name[256] = "";
  RETURN_IF_ERROR(check(driver, driver.name(name, sizeof name, handle), "cuDeviceGetName"));
  device.name = name;
  for (const auto& [attribute, value] :
       {std::pair(kMajor, &device.major), std::pair(kMinor, &device.minor)}) {
    RETURN_IF_ERROR(
        check(driver, driver.attribute(value, attribute, handle), "cuDeviceGetAttribute"));
  }
  size_t memory = 0;
  RETURN_IF_ERROR(check(driver, driver.memory(&memory, handle), "cuDeviceTotalMem"));
  device.memory = memory;
  return device;
}

}  // namespace

std::string CudaDevice::text() const {
  char numbers[64];
  std::snprintf(numbers, sizeof numbers, ", compute capability %d.%d, %.1f GiB", major, minor,
                static_cast<double>(memory) / (1u << 30));
  return "cuda:" + std::to_string(index) + ": " + name + numbers;
}

Result<std::vector<CudaDevice>> list_cuda_devices() {
  ASSIGN_OR_RETURN(const Driver driver, load_driver());
  RETURN_IF_ERROR(check(driver, driver.init(0), "cuInit"));
  int version = 0;
  RETURN_IF_ERROR(check(driver, driver.version(&version), "cuDriverGetVersion"));
  if (version < kVersion) {
    return Error{ErrorCode::kLibrary, "the NVIDIA driver is for CUDA " +
                                          std::to_string(version / 1000) + "." +
                                          std::to_string(version % 1000 / 10) +
                                          "; install one for CUDA 13 (driver 580 or later)"};
  }
  int count = 0;
  RETURN_IF_ERROR(check(driver, driver.count(&count), "cuDeviceGetCount"));
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(CudaDevice device, describe(driver, i));
    devices.push_back(std::move(device));
  }
  return devices;
}

}  // namespace minicpmo
