#include "engine/paths.h"

#include <filesystem>
#include <system_error>

namespace minicpmo {
namespace {

namespace fs = std::filesystem;

bool is_below(const fs::path& path, const fs::path& directory) {
  const fs::path relative = path.lexically_relative(directory);
  return !relative.empty() && *relative.begin() != ".." && relative != ".";
}

Result<std::string> resolve(const std::string& directory, const std::string& name) {
  const fs::path relative(name);
  const std::string where = directory + ": file name \"" + name.substr(0, 200) + "\"";
  if (name.empty() || name.find('\0') != std::string::npos || relative.is_absolute()) {
    return Error{ErrorCode::kCorrupt, where + " is not a name inside the model directory"};
  }
  for (const fs::path& part : relative) {
    if (part == "..") {
      return Error{ErrorCode::kCorrupt, where + " leads out of the model directory"};
    }
  }
  ASSIGN_OR_RETURN(const std::string root, resolve_directory(directory));
  const fs::path full = fs::path(root) / relative;
  std::error_code error;
  const fs::path real = fs::canonical(full, error);
  if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory) {
    return Error{ErrorCode::kNotFound,
                 full.string() + " does not exist; the model directory has to hold it",
                 error.message()};
  }
  if (error) {  // a symlink that points to itself, for example
    return Error{ErrorCode::kOpenRead, full.string() + " cannot be opened: " + error.message()};
  }
  const fs::path parent = fs::path(root).parent_path();
  const bool in_cache =
      parent.filename() == "snapshots" && is_below(real, parent.parent_path() / "blobs");
  if (!is_below(real, root) && !in_cache) {
    return Error{ErrorCode::kCorrupt,
                 full.string() + " is a link out of the model directory; copy the file there"};
  }
  return full.string();
}

}  // namespace

Result<std::string> resolve_directory(const std::string& directory) {
  std::error_code error;
  const fs::path real = fs::canonical(directory, error);
  if (error) {
    return Error{ErrorCode::kNotFound, "model directory \"" + directory + "\" does not exist",
                 error.message()};
  }
  if (!fs::is_directory(real, error)) {
    return Error{ErrorCode::kNotFound, "model \"" + directory +
                                           "\" is not a directory; name the directory that holds "
                                           "config.json and the safetensors files"};
  }
  return real.string();
}

Result<std::string> resolve_inside(const std::string& directory, const std::string& name) {
  try {
    return resolve(directory, name);
  } catch (const std::exception& e) {
    return Error{ErrorCode::kOpenRead, directory + ": cannot look up a file", e.what()};
  }
}

}  // namespace minicpmo
