// libFuzzer target: any bytes as a safetensors file. Build with clang:
//   CXX=clang++ meson setup build-fuzz && ninja -C build-fuzz tests/fuzz/safetensors_fuzz
//   build-fuzz/tests/fuzz/safetensors_fuzz -max_total_time=600 -max_len=65536 CORPUS
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("safetensors", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != static_cast<ssize_t>(size)) return -1;
  const auto file = minicpmo::SafetensorsFile::open(path);
  if (!file.ok()) {
    if (file.error().message.empty()) std::abort();
    return 0;
  }
  // What is accepted must be readable, whole and no larger than the file.
  for (const auto& [name, entry] : (*file)->entries()) {
    const auto tensor = (*file)->read(name);
    if (!tensor.ok() || tensor->nbytes() != entry.end - entry.begin || entry.end > size)
      std::abort();
    minicpmo::all_finite(*tensor);
  }
  return 0;
}
