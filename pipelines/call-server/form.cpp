#include "form.h"

#include <libsoup/soup.h>

#include <algorithm>

namespace minicpmo::call_server {
namespace {

constexpr std::string_view kLineEnd = "\r\n";

// The name of a part, of its header lines; empty if it has none.
std::string name_of(std::string_view head) {
  constexpr std::string_view kDisposition = "content-disposition:";
  std::string name;
  while (!head.empty() && name.empty()) {
    const std::string line(head.substr(0, head.find(kLineEnd)));
    head.remove_prefix(std::min(head.size(), line.size() + kLineEnd.size()));
    if (g_ascii_strncasecmp(line.c_str(), kDisposition.data(), kDisposition.size()) != 0) continue;
    GHashTable* const parameters =
        soup_header_parse_semi_param_list(line.c_str() + kDisposition.size());
    const auto* const value = static_cast<const char*>(g_hash_table_lookup(parameters, "name"));
    if (value != nullptr) name = value;
    soup_header_free_param_list(parameters);
  }
  return name;
}

}  // namespace

std::map<std::string, std::string> read_form(std::string_view body, std::string_view boundary) {
  constexpr std::string_view kHeadEnd = "\r\n\r\n";
  std::map<std::string, std::string> fields;
  if (boundary.empty()) return fields;
  const std::string delimiter = "\r\n--" + std::string(boundary);
  // The first delimiter may stand at the very beginning.
  const std::string text = std::string(kLineEnd).append(body);
  std::string_view rest = text;
  if (rest.find(delimiter) == rest.npos) return fields;
  rest.remove_prefix(rest.find(delimiter) + delimiter.size());
  while (!rest.starts_with("--")) {
    const size_t end = rest.find(delimiter);
    if (end == rest.npos || !rest.starts_with(kLineEnd)) return {};
    const std::string_view part = rest.substr(0, end);
    const size_t head = part.find(kHeadEnd);
    if (head == part.npos) return {};
    const std::string name = name_of(part.substr(0, head));
    if (!name.empty()) fields[name] = part.substr(head + kHeadEnd.size());
    rest.remove_prefix(end + delimiter.size());
  }
  return fields;
}

}  // namespace minicpmo::call_server
