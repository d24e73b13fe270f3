// A checkpoint directory in the published layout: one or several safetensors files behind one set
// of names.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/result.h"
#include "engine/safetensors.h"
#include "engine/stage_device.h"

namespace minicpmo {

class Checkpoint {
 public:
  // Opens model.safetensors.index.json and its shards, or model.safetensors. Shards that are named
  // by a path leading out of the directory are refused, and so is an index that does not agree with
  // its shards. Reads headers only.
  static Result<std::shared_ptr<Checkpoint>> open(const std::string& directory);
  // A single file with the same interface (assets/Vocos.safetensors).
  static Result<std::shared_ptr<Checkpoint>> open_file(const std::string& path);

  bool has(const std::string& name) const { return where_.count(name) != 0; }
  // The tensor's shape; kCorrupt naming file and tensor if it is missing.
  Result<std::vector<int64_t>> shape(const std::string& name) const;
  // Number of consecutive n = 0, 1, ... for which prefix + n + suffix exists: layers are counted,
  // not configured.
  int64_t count(const std::string& prefix, const std::string& suffix) const;
  // Loads a floating-point tensor to to.device, converted to to.type; kCorrupt if it is missing,
  // not floating-point, of another shape, or holds NaN or infinity. In `shape`, -1 accepts any
  // size.
  Result<at::Tensor> load(const std::string& name, const std::vector<int64_t>& shape,
                          const StageDevice& to) const;
  // Bytes of tensors that the calling thread has loaded, of all checkpoints.
  static int64_t bytes_read();
  std::vector<std::string> names() const;
  int64_t byte_size() const;  // of all tensors, as stored
  const std::string& location() const { return location_; }

 private:
  std::string location_;  // what error messages name
  std::map<std::string, std::shared_ptr<SafetensorsFile>> where_;
};

}  // namespace minicpmo
