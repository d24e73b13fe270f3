#include "engine/json_file.h"

#include <sys/stat.h>

#include "engine/paths.h"
#include "test_files.h"

namespace minicpmo {
namespace {

using namespace minicpmo::testing;
using nlohmann::json;

TEST(ParseJson, BuildsTheSameTreeAsTheLibrary) {
  const std::string text =
      R"({"a":[1,-2,3.5,"x",null,true,{"b":[[],{}]}],"c":{"a":{"a":1}},"d":"\u00e9\ud83d\ude00"})";
  const auto ours = parse_json(text, "t");
  ASSERT_TRUE(ours.ok()) << ours.error().message;
  EXPECT_EQ(*ours, json::parse(text));
  EXPECT_EQ(*parse_json("12", "t"), json(12));
  EXPECT_EQ(*parse_json("[]", "t"), json::array());
}

TEST(ParseJson, RefusesDuplicateKeys) {
  EXPECT_TRUE(fails(parse_json(R"({"a":1,"a":2})", "file", {}), ErrorCode::kCorrupt,
                    {"file", "\"a\"", "twice"}));
  EXPECT_TRUE(fails(parse_json(R"([{"x":{"a":1,"b":[],"a":2}}])", "file", {}), ErrorCode::kCorrupt,
                    {"\"a\""}));
  EXPECT_TRUE(parse_json(R"({"a":{"a":1},"b":{"a":1}})", "file").ok());
}

TEST(ParseJson, NamesTheByteOfASyntaxError) {
  EXPECT_TRUE(fails(parse_json("{\"a\": }", "file"), ErrorCode::kCorrupt, {"file", "byte 7"}));
  for (const char* text :
       {"", "{", "[1,]", "{\"a\" 1}", "nul", "\"\xff\"", "1 2", "1e999", "{1:2}"}) {
    EXPECT_TRUE(fails(parse_json(text, "file"), ErrorCode::kCorrupt, {"file", "not valid JSON"}))
        << text;
  }
}

TEST(ParseJson, AZeroByteIsNoEnd) {
  EXPECT_TRUE(
      fails(parse_json(std::string_view("{}\0{}", 5), "file"), ErrorCode::kCorrupt, {"byte 3"}));
  EXPECT_TRUE(
      fails(parse_json(std::string_view("{}\0", 3), "file"), ErrorCode::kCorrupt, {"byte 3"}));
}

TEST(ParseJson, CapsDepthAndSize) {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_TRUE(parse_json(nested(64), "file").ok());
  EXPECT_TRUE(fails(parse_json(nested(65), "file"), ErrorCode::kCorrupt, {"deeper than 64"}));
  EXPECT_TRUE(
      fails(parse_json(nested(1'000'000), "file"), ErrorCode::kCorrupt, {"deeper than 64"}));
  EXPECT_TRUE(fails(parse_json("[1,2,3]", "file", {.max_bytes = 6}), ErrorCode::kCorrupt,
                    {"7 bytes", "6"}));
}

TEST(ReadFile, SaysWhatIsWrongWithThePath) {
  const TempDir dir;
  EXPECT_TRUE(fails(read_file(dir / "none", 10), ErrorCode::kNotFound, {dir / "none"}));
  EXPECT_TRUE(fails(read_file(dir.path(), 10), ErrorCode::kOpenRead, {"not a regular file"}));
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_TRUE(fails(read_file(dir / "pipe", 10), ErrorCode::kOpenRead, {"not a regular file"}));
  write_file(dir / "x", "0123456789");
  EXPECT_EQ(*read_file(dir / "x", 10), "0123456789");
  EXPECT_TRUE(fails(read_file(dir / "x", 9), ErrorCode::kCorrupt, {"10 bytes", "9"}));
}

TEST(ReadFile, RefusesAHugeSparseFileAtOnce) {
  const TempDir dir;
  write_file(dir / "tokenizer.json", "{");
  ASSERT_EQ(truncate((dir / "tokenizer.json").c_str(), 1ll << 40), 0);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(
      fails(read_json_file(dir / "tokenizer.json"), ErrorCode::kCorrupt, {"more than the limit"}));
  EXPECT_LT(seconds_since(start), 0.5 * kSlowness);
}

TEST(ResolveInside, AcceptsFilesBelowTheDirectory) {
  const TempDir dir;
  write_file(dir / "a/b.txt", "x");
  std::filesystem::create_symlink("a/b.txt", dir / "link");
  EXPECT_TRUE(resolve_inside(dir.path(), "a/b.txt").ok());
  EXPECT_TRUE(resolve_inside(dir.path(), "link").ok());
  EXPECT_TRUE(fails(resolve_inside(dir.path(), "c"), ErrorCode::kNotFound, {"c does not exist"}));
}

TEST(ResolveInside, RefusesEveryWayOut) {
  const TempDir dir, other;
  write_file(other / "secret", "x");
  std::filesystem::create_symlink(other / "secret", dir / "link");
  std::filesystem::create_directory_symlink(other.path(), dir / "sub");
  std::filesystem::create_symlink("loop", dir / "loop");
  for (const std::string& name :
       {std::string("../x"), std::string("/etc/passwd"), std::string("a/../../x"), std::string(""),
        std::string("a\0b", 3), std::string("link"), std::string("sub/secret"),
        std::string("..")}) {
    EXPECT_TRUE(fails(resolve_inside(dir.path(), name), ErrorCode::kCorrupt, {"model directory"}))
        << name;
  }
  EXPECT_FALSE(resolve_inside(dir.path(), "loop").ok());
}

TEST(ResolveInside, AcceptsTheLayoutOfHuggingFacesCache) {
  const TempDir cache;
  write_file(cache / "models--x/blobs/abc", "x");
  write_file(cache / "secret", "x");
  std::filesystem::create_directories(cache / "models--x/snapshots/r1");
  std::filesystem::create_symlink("../../blobs/abc", cache / "models--x/snapshots/r1/config.json");
  std::filesystem::create_symlink("../../../secret", cache / "models--x/snapshots/r1/bad.json");
  EXPECT_TRUE(resolve_inside(cache / "models--x/snapshots/r1", "config.json").ok());
  EXPECT_FALSE(resolve_inside(cache / "models--x/snapshots/r1", "bad.json").ok());
}

}  // namespace
}  // namespace minicpmo
