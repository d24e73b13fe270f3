#include "form.h"

#include <gtest/gtest.h>

namespace minicpmo::call_server {
namespace {

using Fields = std::map<std::string, std::string>;

const std::string kSdpPart =
    "--xyz\r\nContent-Disposition: form-data; name=\"sdp\"\r\n\r\nv=0\r\no=-\r\n\r\n";

TEST(Form, Fields) {
  EXPECT_EQ(
      read_form(kSdpPart + "--xyz\r\nContent-Type: application/json\r\ncontent-disposition: "
                           "form-data; filename=\"name=no\"; name=session\r\n\r\n{}\r\n--xyz--"
                           "\r\n",
                "xyz"),
      (Fields{{"sdp", "v=0\r\no=-\r\n"}, {"session", "{}"}}));
  EXPECT_EQ(read_form("before\r\n" + kSdpPart + "--xyz--after", "xyz").size(), 1u);
  EXPECT_EQ(
      read_form("--xyz\r\nContent-Disposition: form-data; name=sdp\r\n\r\n\r\n--xyz--", "xyz"),
      (Fields{{"sdp", ""}}));
}

TEST(Form, NotAForm) {
  const struct {
    std::string body, boundary;
  } cases[] = {
      {"", "xyz"},
      {"hello", "xyz"},
      {"--xyz", "xyz"},
      {"--xyz--", "xyz"},
      {kSdpPart, "xyz"},  // not whole
      {kSdpPart + "--xyz--", ""},
      {kSdpPart + "--xyz--", "other"},
      {kSdpPart + "--xyz--", "xy"},  // only the beginning of the boundary
      {"x" + kSdpPart + "--xyz--", "xyz"},
      {"--xyz\r\n\r\nno header\r\n--xyz--", "xyz"},
      {"--xyz\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--xyz--", "xyz"},
      // The head goes on into the next delimiter.
      {"--xyz\r\nContent-Disposition: form-data; name=sdp\r\n--xyz\r\n\r\n--xyz--", "xyz"}};
  for (const auto& given : cases)
    EXPECT_EQ(read_form(given.body, given.boundary), Fields{}) << given.body;
}

}  // namespace
}  // namespace minicpmo::call_server
