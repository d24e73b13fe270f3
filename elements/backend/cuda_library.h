// libminicpmo-cuda.so, and with it torch's CUDA operators: loaded when a CUDA device is chosen, and
// never unloaded.
#pragma once

#include "common/result.h"
#include "cuda/runners.h"

namespace minicpmo {

// Loads the library once in a process: from the path in the environment variable
// MINICPMO_CUDA_LIBRARY if there is such a file, otherwise from beside the library or program that
// this code is in, otherwise from where the dynamic linker looks. kNotFound if it is not there,
// kLibrary if it does not match or a library that it needs is missing; the message names that.
Result<const cuda::Library*> load_cuda_library();

// Computes something on cuda:index through torch. kBusy or kNoSpace with the reason if that fails.
// load_cuda_library has to come first.
Result<void> try_cuda_device(int index);

}  // namespace minicpmo
