// Fields of a form that a client posted.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace minicpmo::call_server {

// The fields of a multipart/form-data body (RFC 7578) by name; `boundary` is a parameter of the
// Content-Type. Empty if the body is none, or not whole. Not libsoup's: that of 3.2.3 reads beyond
// the body.
std::map<std::string, std::string> read_form(std::string_view body, std::string_view boundary);

}  // namespace minicpmo::call_server
