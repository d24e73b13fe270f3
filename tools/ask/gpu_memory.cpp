#include "gpu_memory.h"

#include <dlfcn.h>

namespace minicpmo {
namespace {

// NVML's stable C interface (nvml.h), found at run time: the program needs no driver to start.
struct NvmlMemory {
  unsigned long long total, free, used;
};
using Init = int (*)();
using GetDevice = int (*)(unsigned, void**);
using GetMemory = int (*)(void*, NvmlMemory*);

}  // namespace

int64_t gpu_memory_used(unsigned index) {
  static void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
  if (library == nullptr) return -1;
  const auto init = reinterpret_cast<Init>(dlsym(library, "nvmlInit_v2"));
  const auto device = reinterpret_cast<GetDevice>(dlsym(library, "nvmlDeviceGetHandleByIndex_v2"));
  const auto memory = reinterpret_cast<GetMemory>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
  if (init == nullptr || device == nullptr || memory == nullptr) return -1;
  void* gpu = nullptr;
  NvmlMemory found{};
  if (init() != 0 || device(index, &gpu) != 0 || memory(gpu, &found) != 0) return -1;
  return static_cast<int64_t>(found.used);
}

}  // namespace minicpmo
