// Memory in use on a GPU, as the driver counts it.
#pragma once

#include <cstdint>

namespace minicpmo {

// Bytes in use on GPU `index`, by all processes. -1 without NVIDIA's driver.
int64_t gpu_memory_used(unsigned index);

}  // namespace minicpmo
