// Reads a JSON file that may be hostile: size and depth are capped, duplicate keys refused, nothing
// thrown.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/result.h"

namespace minicpmo {

struct JsonLimits {
  size_t max_bytes = 64u << 20;
  size_t max_depth = 64;
};

// Errors: kNotFound, kOpenRead, kCorrupt; the message names the file and, for bad JSON, the byte.
Result<nlohmann::json> read_json_file(const std::string& path, const JsonLimits& limits = {});
// `name` stands for the text in error messages.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& name,
                                  const JsonLimits& limits = {});
Result<std::string> read_file(const std::string& path, size_t max_bytes);

}  // namespace minicpmo
