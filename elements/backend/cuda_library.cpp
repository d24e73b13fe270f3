#include "backend/cuda_library.h"

#include <ATen/Context.h>
#include <ATen/ops/ones.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <torch/headeronly/version.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string>
#include <system_error>

#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

constexpr const char* kLibrary = "libminicpmo-cuda.so";

// As the environment says, or beside this code; otherwise the bare name, which dlopen looks up
// itself (LD_LIBRARY_PATH).
std::string library_path() {
  std::error_code error;
  const char* const set = std::getenv("MINICPMO_CUDA_LIBRARY");
  if (set && std::filesystem::exists(set, error)) return set;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&load_cuda_library), &info) == 0 || !info.dli_fname)
    return kLibrary;
  const auto own = std::filesystem::canonical(info.dli_fname, error);
  const auto beside = own.parent_path() / kLibrary;
  return std::filesystem::exists(beside, error) ? beside.string() : kLibrary;
}

// What dlopen says of a missing library: "libcublas.so.13: cannot open shared object file: ...".
Error missing(const std::string& path, const std::string& words) {
  const std::string needed = words.substr(0, words.find(':'));
  if (needed == kLibrary) {
    return Error{ErrorCode::kNotFound,
                 needed + " does not exist: this build has no CUDA backend (it needs nvcc)", words};
  }
  return Error{ErrorCode::kLibrary,
               path + " cannot be loaded: " + needed +
                   (words.find("cannot open shared object") != std::string::npos
                        ? " is missing; install PyTorch " TORCH_VERSION
                          " with its CUDA libraries (pip install torch==" TORCH_VERSION ")"
                        : " does not fit; build it again, with the PyTorch that is installed"),
               words};
}

Result<const cuda::Library*> open_library() {
  const std::string path = library_path();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return missing(path, dlerror());
  const auto function =
      reinterpret_cast<cuda::LibraryFunction>(dlsym(library, cuda::kLibrarySymbol));
  const cuda::Library* const table = function ? function() : nullptr;
  if (!table || table->version != cuda::Library::kVersion) {
    return Error{ErrorCode::kLibrary, path + " is of another version; build it again"};
  }
  // torch_cuda registers itself as it is loaded; nothing of ours links it.
  if (!c10::impl::hasDeviceGuardImpl(at::kCUDA)) {
    return Error{ErrorCode::kLibrary,
                 path + " did not bring torch's CUDA operators along; build it again"};
  }
  return table;
}

}  // namespace

Result<const cuda::Library*> load_cuda_library() {
  static std::mutex mutex;
  static const cuda::Library* loaded = nullptr;
  std::lock_guard lock(mutex);
  if (!loaded) {
    ASSIGN_OR_RETURN(loaded, open_library());
  }
  return loaded;
}

Result<void> try_cuda_device(int index) {
  const std::string name = "cuda:" + std::to_string(index);
  auto result = run_stage(name.c_str(), [&]() -> Result<void> {
    at::Context& context = at::globalContext();
    context.lazyInitDevice(at::kCUDA);
    // float32 means float32: what runs there has to equal the CPU.
    context.setAllowTF32CuBLAS(false);
    context.setAllowTF32CuDNN(false);
    const at::Tensor one = at::ones({1}, at::TensorOptions(at::Device(at::kCUDA, index)));
    TORCH_CHECK(one.add(1).item<float>() == 2, "1 + 1 is not 2 there");
    return {};
  });
  if (result.ok() || result.error().code == ErrorCode::kNoSpace) return result;
  const std::string& words = result.error().detail;  // CUDA's go on with hints for programmers
  return Error{ErrorCode::kBusy, name + " cannot be used: " + words.substr(0, words.find('\n')),
               words};
}

}  // namespace minicpmo
