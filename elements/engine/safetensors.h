// Strict reader of one safetensors file: every rule of the format is checked before a byte of data
// is used. Format: https://github.com/huggingface/safetensors (8-byte little-endian header size N,
// JSON header, data).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/result.h"

namespace minicpmo {

struct TensorEntry {
  at::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the data section
  uint64_t end = 0;
};

class SafetensorsFile {
 public:
  // Reads and checks the header. Errors name the file, and the tensor if one is at fault. Beyond
  // the format's own limit (a header of 100,000,000 bytes) ours are 100,000 tensors, 16 dimensions,
  // 1 MiB for one string and 16 MiB for all: time and memory stay bounded for any file.
  static Result<std::shared_ptr<SafetensorsFile>> open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // A copy in our own memory, read with pread: a mapping of a file that shrinks later would raise
  // SIGBUS. Checks that the file still has the size it had at open(). To a GPU by way of pinned
  // memory, by as many threads as a torch operation of the calling thread has; on its current
  // stream, and waits.
  Result<at::Tensor> read(const std::string& name, at::Device device = at::kCPU) const;

 private:
  SafetensorsFile() = default;
  Result<std::string> read_header();
  Result<void> check_layout() const;
  std::string read_to_device(const TensorEntry& entry, const at::Tensor& tensor) const;
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
  uint64_t data_ = 0;  // offset of the data section
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

// Whether all values of a contiguous floating-point tensor are finite (true for other types).
// Throws c10::Error on a GPU.
bool all_finite(const at::Tensor& tensor);

}  // namespace minicpmo
