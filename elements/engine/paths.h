// Files of a model directory, without following a hostile name out of it.
#pragma once

#include <string>

#include "common/result.h"

namespace minicpmo {

// Absolute path of `directory` without symlinks; kNotFound if there is none.
Result<std::string> resolve_directory(const std::string& directory);

// directory/name, where `name` is one that the model's own files may have chosen. Refused
// (kCorrupt): absolute names,
// "..", and symlinks whose target lies outside, except Hugging Face's cache layout
// (snapshots/REVISION/x ->
// ../../blobs/y). kNotFound if the file does not exist.
Result<std::string> resolve_inside(const std::string& directory, const std::string& name);

}  // namespace minicpmo
