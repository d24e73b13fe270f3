// The JSON header of a safetensors file, parsed as a stream: memory grows with what is kept, not
// with what is sent.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "common/result.h"
#include "engine/safetensors.h"

namespace minicpmo {

struct SafetensorsHeader {
  std::map<std::string, TensorEntry> entries;
  std::map<std::string, std::string> metadata;
};

// Checks form, types, limits, and each tensor's size against its shape; not the layout of the data
// section. `file` is what errors name.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, const std::string& file);

// A name from a file as it may stand in a message: short, printable.
std::string printable(std::string_view name);

}  // namespace minicpmo
