// Strict reader of one safetensors file: every rule of the format is checked before a byte of data is used.
// Format: https://github.com/huggingface/safetensors (8-byte little-endian header size N, JSON header, data).
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
  // Maps the file read-only and checks it. Errors name the file, and the tensor if one is at fault.
  static Result<std::shared_ptr<SafetensorsFile>> open(const std::string& path);
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // A copy in our own memory (never a view: a mapping of a file that shrinks later would raise SIGBUS). Checks
  // that the file still has the size it had at open().
  Result<at::Tensor> read(const std::string& name) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  int fd_ = -1;
  const unsigned char* map_ = nullptr;
  uint64_t size_ = 0;
  uint64_t data_ = 0;  // offset of the data section
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace minicpmo
