#include "engine/checkpoint.h"

#include <c10/core/ScalarType.h>

#include <set>
#include <sstream>

#include "engine/json_file.h"
#include "engine/paths.h"
#include "engine/safetensors_header.h"
#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";

thread_local int64_t g_bytes_read = 0;

std::string text_of(const std::vector<int64_t>& shape) {
  std::ostringstream out;
  out << "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out << ", ";
    if (shape[i] < 0)
      out << "any";
    else
      out << shape[i];
  }
  out << ")";
  return out.str();
}

bool matches(const std::vector<int64_t>& shape, const std::vector<int64_t>& wanted) {
  if (shape.size() != wanted.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (wanted[i] >= 0 && shape[i] != wanted[i]) return false;
  }
  return true;
}

// The file names of the index: tensor -> shard.
Result<std::map<std::string, std::string>> read_index(const std::string& path) {
  ASSIGN_OR_RETURN(const nlohmann::json index, read_json_file(path));
  const auto bad = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt, path + ": " + what};
  };
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return bad("has no object \"weight_map\"");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string())
      return bad("weight_map \"" + printable(tensor) + "\" is not a file name");
    const auto& name = shard.get_ref<const std::string&>();
    if (name.find('/') != std::string::npos || name.find('\\') != std::string::npos) {
      return bad("file name \"" + printable(name) + "\" leads out of the model directory");
    }
    shards.emplace(tensor, name);
  }
  if (shards.empty()) return bad("weight_map is empty");
  return shards;
}

bool exists(const std::string& directory, const char* name) {
  const auto path = resolve_inside(directory, name);
  return path.ok() || path.error().code != ErrorCode::kNotFound;
}

Error no_weights(const std::string& directory) {
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt",
                           "pytorch_model.pt", "model.bin"}) {
    if (exists(directory, name)) {
      return Error{ErrorCode::kCorrupt, directory + "/" + name +
                                            ": a pickle (.pt, .bin), which can run code when it is "
                                            "read; convert it to safetensors first"};
    }
  }
  return Error{ErrorCode::kNotFound,
               directory + " holds neither " + kIndex + " nor " + kSingle +
                   "; name a directory in the layout of openbmb/MiniCPM-o-2_6"};
}

}  // namespace

Result<std::shared_ptr<Checkpoint>> Checkpoint::open(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string root, resolve_directory(directory));
  if (!exists(root, kIndex)) {
    if (!exists(root, kSingle)) return no_weights(root);
    ASSIGN_OR_RETURN(const std::string path, resolve_inside(root, kSingle));
    ASSIGN_OR_RETURN(auto checkpoint, open_file(path));
    checkpoint->location_ = root;
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const std::string index_path, resolve_inside(root, kIndex));
  ASSIGN_OR_RETURN(const auto index, read_index(index_path));
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->location_ = root;
  std::map<std::string, std::shared_ptr<SafetensorsFile>> files;
  for (const auto& [tensor, shard] : index) {
    auto& file = files[shard];
    if (file) continue;
    ASSIGN_OR_RETURN(const std::string path, resolve_inside(root, shard));
    ASSIGN_OR_RETURN(file, SafetensorsFile::open(path));
  }
  for (const auto& [tensor, shard] : index) {
    const auto& file = files[shard];
    if (file->entries().count(tensor) == 0) {
      return Error{ErrorCode::kCorrupt, index_path + " says that tensor \"" + printable(tensor) +
                                            "\" is in " + printable(shard) +
                                            ", which does not hold it"};
    }
    checkpoint->where_.emplace(tensor, file);
  }
  for (const auto& [shard, file] : files) {
    for (const auto& [tensor, entry] : file->entries()) {
      const auto found = index.find(tensor);
      if (found == index.end() || found->second != shard) {
        return Error{
            ErrorCode::kCorrupt,
            file->path() + " holds tensor \"" + printable(tensor) + "\", which the index " +
                (found == index.end() ? "does not name" : "places in " + printable(found->second))};
      }
    }
  }
  return checkpoint;
}

Result<std::shared_ptr<Checkpoint>> Checkpoint::open_file(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, SafetensorsFile::open(path));
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->location_ = path;
  for (const auto& [name, entry] : file->entries()) checkpoint->where_.emplace(name, file);
  return checkpoint;
}

Result<std::vector<int64_t>> Checkpoint::shape(const std::string& name) const {
  const auto found = where_.find(name);
  if (found == where_.end()) {
    return Error{ErrorCode::kCorrupt, location_ + " holds no tensor \"" + printable(name) + "\""};
  }
  return found->second->entries().at(name).shape;
}

int64_t Checkpoint::count(const std::string& prefix, const std::string& suffix) const {
  int64_t n = 0;
  while (has(prefix + std::to_string(n) + suffix)) ++n;
  return n;
}

Result<at::Tensor> Checkpoint::load(const std::string& name, const std::vector<int64_t>& shape,
                                    const StageDevice& to) const {
  const auto found = where_.find(name);
  if (found == where_.end()) {
    return Error{ErrorCode::kCorrupt, location_ + " holds no tensor \"" + printable(name) + "\""};
  }
  const SafetensorsFile& file = *found->second;
  const TensorEntry& entry = file.entries().at(name);
  const std::string tensor = file.path() + ": tensor \"" + printable(name) + "\"";
  if (!c10::isFloatingType(entry.type)) {
    return Error{ErrorCode::kCorrupt,
                 tensor + " has dtype " + c10::toString(entry.type) + ", not a floating-point one"};
  }
  if (!matches(entry.shape, shape)) {
    return Error{ErrorCode::kCorrupt,
                 tensor + " has shape " + text_of(entry.shape) + ", expected " + text_of(shape)};
  }
  ASSIGN_OR_RETURN(at::Tensor value, file.read(name, to.device));
  g_bytes_read += static_cast<int64_t>(entry.end - entry.begin);
  try {
    if (!all_finite(value)) {
      return Error{ErrorCode::kCorrupt, tensor + " holds values that are not finite"};
    }
    return value.to(to.type);
  } catch (const c10::Error& e) {
    return torch_error(tensor.c_str(), e);
  } catch (const std::exception& e) {
    return Error{ErrorCode::kNoSpace, "not enough memory for " + tensor, e.what()};
  }
}

int64_t Checkpoint::bytes_read() {
  return g_bytes_read;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : where_) names.push_back(name);
  return names;
}

int64_t Checkpoint::byte_size() const {
  int64_t bytes = 0;
  for (const auto& [name, file] : where_) {
    const TensorEntry& entry = file->entries().at(name);
    bytes += static_cast<int64_t>(entry.end - entry.begin);
  }
  return bytes;
}

}  // namespace minicpmo
