// The reader of one safetensors file against damaged, lying and hostile files.
#include "engine/safetensors.h"

#include <ATen/ops/from_blob.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "test_files.h"

namespace minicpmo {
namespace {

using namespace minicpmo::testing;

class SafetensorsTest : public ::testing::Test {
 protected:
  Result<std::shared_ptr<SafetensorsFile>> open(const std::string& bytes,
                                                const std::string& name = "model.safetensors") {
    write_file(dir_ / name, bytes);
    return SafetensorsFile::open(dir_ / name);
  }
  // Refused as kCorrupt; the message names the file and these words.
  ::testing::AssertionResult refused(const std::string& bytes,
                                     std::vector<std::string> words = {}) {
    words.push_back(dir_ / "model.safetensors");
    return fails(open(bytes), ErrorCode::kCorrupt, words);
  }
  ::testing::AssertionResult header_refused(const std::string& header,
                                            const std::vector<std::string>& words,
                                            const std::string& data = "") {
    return refused(safetensors(header, data), words);
  }

  TempDir dir_;
};

TEST_F(SafetensorsTest, ReadsTensorsAndMetadata) {
  const float a[] = {1, -2, 3.5f};
  const uint16_t b[] = {0x3f80, 0xc000};  // 1, -2 as bfloat16
  std::string data(reinterpret_cast<const char*>(a), sizeof a);
  data.append(reinterpret_cast<const char*>(b), sizeof b);
  const auto file = open(safetensors("{\"__metadata__\":{\"format\":\"pt\"}," +
                                         entry("b", "BF16", "[2,1]", "[12,16]") + "," +
                                         entry("a", "F32", "[3]", "[0,12]") + "}",
                                     data));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  ASSERT_EQ((*file)->entries().size(), 2u);
  EXPECT_EQ((*file)->entries().at("b").shape, (std::vector<int64_t>{2, 1}));
  const auto x = (*file)->read("a");
  ASSERT_TRUE(x.ok());
  EXPECT_EQ(std::memcmp(x->const_data_ptr(), a, sizeof a), 0);
  const auto y = (*file)->read("b");
  ASSERT_TRUE(y.ok());
  EXPECT_EQ(y->scalar_type(), at::kBFloat16);
  EXPECT_EQ(y->to(at::kFloat).data_ptr<float>()[1], -2.0f);
}

TEST_F(SafetensorsTest, ReadsEveryDtypeAndEmptyTensors) {
  const std::pair<const char*, size_t> types[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"I16", 2}, {"U16", 2}, {"F16", 2}, {"BF16", 2},
      {"I32", 4},  {"U32", 4}, {"F32", 4}, {"I64", 8}, {"U64", 8}, {"F64", 8}};
  for (const auto& [type, size] : types) {
    const auto end = std::to_string(3 * size);
    const auto file = open(safetensors("{" + entry("x", type, "[3]", "[0," + end + "]") + "," +
                                           entry("none", type, "[3,0]", "[0,0]") + "}",
                                       std::string(3 * size, '\1')));
    ASSERT_TRUE(file.ok()) << type << ": " << file.error().message;
    const auto x = (*file)->read("x");
    ASSERT_TRUE(x.ok()) << type;
    EXPECT_EQ(x->nbytes(), 3 * size);
    EXPECT_EQ((*file)->read("none")->numel(), 0);
  }
}

TEST_F(SafetensorsTest, RefusesFilesTooShortForASizeField) {
  for (size_t n = 0; n < 8; ++n) {
    EXPECT_TRUE(refused(std::string(n, '\0'), {std::to_string(n) + " bytes, too short"}));
  }
}

TEST_F(SafetensorsTest, RefusesLyingHeaderSizes) {
  EXPECT_TRUE(refused(size_field(0), {"does not start with"}));
  EXPECT_TRUE(refused(size_field(~0ull) + "{}", {"more than 100,000,000"}));
  EXPECT_TRUE(refused(size_field(100'000'001) + "{}", {"more than 100,000,000"}));
  EXPECT_TRUE(refused(size_field(100'000'000) + "{}", {"more than the file holds"}));
  EXPECT_TRUE(refused(size_field(10) + "{}", {"more than the file holds (10 bytes)"}));
  EXPECT_TRUE(refused(size_field(3) + "{}", {"more than the file holds"}));
  EXPECT_TRUE(refused(size_field(~0ull - 7), {"more than 100,000,000"}));
}

TEST_F(SafetensorsTest, AcceptsAnEmptyHeaderObjectOnly) {
  EXPECT_TRUE(open(safetensors("{}")).ok());
  EXPECT_TRUE(open(safetensors("{}   ")).ok());  // padded, as writers do for alignment
  EXPECT_TRUE(header_refused("[", {"does not start with"}));
  EXPECT_TRUE(header_refused(" {}", {"does not start with"}));
  EXPECT_TRUE(header_refused("\xef\xbb\xbf{}", {"does not start with"}));
  EXPECT_TRUE(header_refused("{", {"not valid JSON"}));
  EXPECT_TRUE(header_refused("{}{}", {"not valid JSON"}));
  EXPECT_TRUE(header_refused(std::string("{}\0", 3), {"not valid JSON"}));
  EXPECT_TRUE(header_refused("{}x", {"not valid JSON"}));
  EXPECT_TRUE(header_refused("{\"a\":NaN}", {"not valid JSON"}));
}

TEST_F(SafetensorsTest, RefusesInvalidUtf8) {
  EXPECT_TRUE(header_refused("{\"\xff\":1}", {"not valid JSON"}));
  EXPECT_TRUE(header_refused("{\"__metadata__\":{\"a\":\"\xc3\x28\"}}", {"not valid JSON"}));
  EXPECT_TRUE(header_refused("{\"\\ud800\":1}", {"not valid JSON"}));
}

TEST_F(SafetensorsTest, RefusesDeepNesting) {
  const std::string deep(10'000, '[');
  EXPECT_TRUE(header_refused("{\"a\":" + deep + std::string(10'000, ']') + "}", {"\"a\""}));
  std::string objects = "{";
  for (int i = 0; i < 10'000; ++i) objects += "\"a\":{";
  EXPECT_TRUE(header_refused(objects, {}));
}

TEST_F(SafetensorsTest, RefusesDuplicateKeysAtEveryLevel) {
  const std::string x = entry("x", "U8", "[1]", "[0,1]");
  EXPECT_TRUE(header_refused("{" + x + "," + x + "}", {"\"x\" appears twice"}, "a"));
  EXPECT_TRUE(
      header_refused("{\"__metadata__\":{},\"__metadata__\":{}}", {"__metadata__", "twice"}));
  EXPECT_TRUE(
      header_refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", {"\"k\" appears twice"}));
  EXPECT_TRUE(
      header_refused(R"({"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                     {"\"x\"", "\"dtype\" appears twice"}, "a"));
}

TEST_F(SafetensorsTest, RefusesMetadataThatIsNotText) {
  EXPECT_TRUE(header_refused(R"({"__metadata__":1})", {"__metadata__"}));
  EXPECT_TRUE(header_refused(R"({"__metadata__":[]})", {"__metadata__"}));
  EXPECT_TRUE(header_refused(R"({"__metadata__":{"a":1}})", {"\"a\"", "not a string"}));
  EXPECT_TRUE(header_refused(R"({"__metadata__":{"a":{"b":"c"}}})", {"\"a\"", "not a string"}));
  EXPECT_TRUE(header_refused(R"({"__metadata__":{"a":null}})", {"\"a\"", "not a string"}));
}

TEST_F(SafetensorsTest, RefusesEntriesOfTheWrongForm) {
  EXPECT_TRUE(header_refused(R"({"x":1})", {"\"x\"", "not an object"}));
  EXPECT_TRUE(header_refused(R"({"x":"y"})", {"\"x\"", "not an object"}));
  EXPECT_TRUE(header_refused(R"({"x":[]})", {"\"x\"", "not an object"}));
  EXPECT_TRUE(header_refused(R"({"x":{}})", {"\"x\"", "lacks dtype"}));
  EXPECT_TRUE(
      header_refused(R"({"x":{"dtype":"U8","shape":[]}})", {"\"x\"", "lacks data_offsets"}));
  EXPECT_TRUE(header_refused(R"({"x":{"dtype":"U8","data_offsets":[0,1]}})", {"lacks shape"}, "a"));
  EXPECT_TRUE(
      header_refused(R"({"x":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", {"dtype"}, "a"));
  EXPECT_TRUE(
      header_refused(R"({"x":{"dtype":"U8","shape":"1","data_offsets":[0,1]}})", {"shape"}, "a"));
  EXPECT_TRUE(
      header_refused(R"({"x":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", {"shape"}, "a"));
  EXPECT_TRUE(header_refused(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"y":1}})",
                             {"unknown key \"y\""}, "a"));
}

TEST_F(SafetensorsTest, RefusesUnknownDtypes) {
  for (const char* type : {"F8_E4M3", "F8_E5M2", "F4", "C64", "f32", "", "float32"}) {
    EXPECT_TRUE(header_refused("{" + entry("w", type, "[4]", "[0,4]") + "}",
                               {"\"w\"", "dtype", "not supported"}, "abcd"));
  }
}

TEST_F(SafetensorsTest, RefusesOffsetsThatAreNotWholeNumbers) {
  for (const char* offsets :
       {"[-1,3]", "[0,4.0]", "[\"0\",4]", "[0]", "[0,2,4]", "[]", "4", "null", "[0,true]",
        "[0,null]", "[0,18446744073709551616]", "[0,[4]]", "[0,1e1]"}) {
    EXPECT_TRUE(header_refused("{" + entry("w", "U8", "[4]", offsets) + "}", {"\"w\""}, "abcd"))
        << offsets;
  }
}

TEST_F(SafetensorsTest, RefusesHolesOverlapsAndDataBeyondTheFile) {
  const auto two = [&](const std::string& a, const std::string& b) {
    return "{" + entry("a", "U8", "[4]", a) + "," + entry("b", "U8", "[4]", b) + "}";
  };
  EXPECT_TRUE(open(safetensors(two("[4,8]", "[0,4]"), "01234567")).ok());
  EXPECT_TRUE(header_refused(two("[0,4]", "[5,9]"), {"\"b\"", "after a hole"}, "012345678"));
  EXPECT_TRUE(header_refused(two("[1,5]", "[5,9]"), {"\"a\"", "after a hole"}, "012345678"));
  EXPECT_TRUE(header_refused(two("[0,4]", "[3,7]"), {"\"b\"", "inside another"}, "0123456"));
  EXPECT_TRUE(header_refused(two("[0,4]", "[0,4]"), {"inside another"}, "0123"));
  EXPECT_TRUE(header_refused(two("[0,4]", "[8,4]"), {"\"b\"", "reversed"}, "01234567"));
  EXPECT_TRUE(header_refused(two("[0,4]", "[4,8]"), {"\"b\"", "holds 7"}, "0123456"));
  EXPECT_TRUE(header_refused(two("[0,4]", "[4,8]"), {"1 bytes follow"}, "012345678"));
  EXPECT_TRUE(header_refused("{}", {"1 bytes follow"}, "0"));
}

TEST_F(SafetensorsTest, RefusesShapesThatDoNotMatchTheirBytes) {
  EXPECT_TRUE(header_refused("{" + entry("w", "F32", "[2]", "[0,4]") + "}",
                             {"\"w\"", "need 8 bytes"}, "0123"));
  EXPECT_TRUE(header_refused("{" + entry("w", "F32", "[0]", "[0,4]") + "}",
                             {"\"w\"", "need 0 bytes"}, "0123"));
  EXPECT_TRUE(open(safetensors("{" + entry("w", "F32", "[]", "[0,4]") + "}", "0123")).ok());
}

TEST_F(SafetensorsTest, RefusesShapesThatOverflow) {
  for (const char* shape :
       {"[8589934592,8589934592]", "[4611686018427387904,4]", "[9223372036854775807]",
        "[9223372036854775808]", "[18446744073709551615]", "[4294967296,4294967296,0]"}) {
    EXPECT_TRUE(header_refused("{" + entry("w", "F32", shape, "[0,0]") + "}", {"\"w\"", "shape"}))
        << shape;
  }
  EXPECT_TRUE(
      header_refused("{" + entry("w", "F32", "[-1]", "[0,0]") + "}", {"\"w\"", "negative"}));
  EXPECT_TRUE(header_refused("{" + entry("w", "F32", "[1.5]", "[0,4]") + "}", {"\"w\"", "fraction"},
                             "0123"));
  std::string rank = "[1";
  for (int i = 1; i < 64; ++i) rank += ",1";
  EXPECT_TRUE(header_refused("{" + entry("w", "U8", rank + "]", "[0,1]") + "}",
                             {"\"w\"", "dimensions"}, "0"));
}

TEST_F(SafetensorsTest, MessagesStayShortAndPrintable) {
  const std::string name = "\x1b[31m" + std::string(5000, 'n');
  std::string escaped = "\\u001b[31m" + std::string(5000, 'n');
  const auto result = open(safetensors("{" + entry(escaped, "F9", "[4]", "[0,4]") + "}", "0123"));
  ASSERT_FALSE(result.ok());
  EXPECT_LT(result.error().message.size(), 400u);
  EXPECT_EQ(result.error().message.find('\x1b'), std::string::npos);
}

TEST_F(SafetensorsTest, BoundsTimeAndMemoryOnAMillionTensors) {
  std::string header = "{";
  for (int i = 0; i < 1'000'000; ++i) {
    header += (i ? "," : "") + entry("t" + std::to_string(i), "U8", "[0]", "[0,0]");
  }
  write_file(dir_ / "model.safetensors", safetensors(header + "}"));
  const double before = peak_mib();
  const auto start = std::chrono::steady_clock::now();
  const auto result = SafetensorsFile::open(dir_ / "model.safetensors");
  EXPECT_LT(seconds_since(start), 1.0 * kSlowness);
  EXPECT_TRUE(fails(result, ErrorCode::kCorrupt, {"more than 100000 tensors"}));
  EXPECT_LT(peak_mib() - before, 200);
}

TEST_F(SafetensorsTest, BoundsMemoryOnHugeStrings) {
  EXPECT_TRUE(header_refused("{\"" + std::string(2u << 20, 'x') + "\":1}", {"more than 1 MiB"}));
  EXPECT_TRUE(header_refused("{\"" + std::string(2u << 20, 'x'), {"more than 1 MiB"}));
  std::string metadata = "{\"__metadata__\":{";
  for (int i = 0; i < 20; ++i) {
    metadata +=
        (i ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::string(1'000'000, 'y') + "\"";
  }
  EXPECT_TRUE(header_refused(metadata + "}}", {"more than 16 MiB"}));
}

// A valid file of three tensors for the two tests that damage it.
std::string small_file() {
  Float32File file;
  file.add("first.weight", {2, 3}, {1, 2, 3, 4, 5, 6});
  file.add("second.bias", {4}, {7, 8, 9, 10});
  file.add("third", {}, {11});
  return file.bytes();
}

TEST_F(SafetensorsTest, RefusesAFileCutAnywhere) {
  const std::string whole = read_bytes(std::string(MODEL_DIR) + "/assets/Vocos.safetensors");
  ASSERT_GT(whole.size(), 1000u);
  ASSERT_TRUE(open(whole).ok());
  std::mt19937 random(1);
  const auto start = std::chrono::steady_clock::now();
  const std::string path = dir_ / "model.safetensors";
  for (int i = 0; i < 200; ++i) {
    // Half of the cuts in the header, where a lazy reader would not look.
    const size_t limit = i % 2 ? whole.size() : 5000;
    const size_t cut = std::uniform_int_distribution<size_t>(0, limit - 1)(random);
    write_file(path, whole);
    ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(cut)), 0);
    EXPECT_TRUE(fails(SafetensorsFile::open(path), ErrorCode::kCorrupt, {path}))
        << "cut at " << cut;
  }
  EXPECT_LT(seconds_since(start), 60.0);
}

TEST_F(SafetensorsTest, SurvivesEveryFlippedHeaderByte) {
  const std::string whole = small_file();
  const size_t header = whole.size() - 11 * sizeof(float);
  int refused_count = 0;
  for (size_t at = 0; at < header; ++at) {
    for (const unsigned char flip : {0xff, 0x01, 0x20, 0x80}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ flip);
      const auto result = open(damaged);
      if (!result.ok()) {
        ++refused_count;
        EXPECT_NE(result.error().message.find("model.safetensors"), std::string::npos);
        continue;
      }
      // What is still accepted must be consistent: every tensor can be read and lies in the file.
      for (const auto& [name, tensor] : (*result)->entries()) {
        const auto value = (*result)->read(name);
        ASSERT_TRUE(value.ok()) << name;
        EXPECT_EQ(value->nbytes(), tensor.end - tensor.begin);
      }
    }
  }
  // Only letters of names, and dtypes or brackets that happen to stay valid, may pass.
  EXPECT_GT(refused_count, static_cast<int>(header) * 2);
}

TEST_F(SafetensorsTest, SaysWhatIsWrongWithThePath) {
  EXPECT_TRUE(
      fails(SafetensorsFile::open(dir_ / "none"), ErrorCode::kNotFound, {"does not exist"}));
  EXPECT_TRUE(
      fails(SafetensorsFile::open(dir_.path()), ErrorCode::kOpenRead, {"not a regular file"}));
  ASSERT_EQ(mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  EXPECT_TRUE(
      fails(SafetensorsFile::open(dir_ / "pipe"), ErrorCode::kOpenRead, {"not a regular file"}));
}

TEST_F(SafetensorsTest, RefusesPickles) {
  EXPECT_TRUE(fails(open("PK\x03\x04 archive/data.pkl"), ErrorCode::kCorrupt,
                    {"pickle", "convert it to safetensors"}));
  EXPECT_TRUE(fails(open("\x80\x02}q\x01 a dictionary"), ErrorCode::kCorrupt, {"pickle"}));
  EXPECT_TRUE(fails(open(safetensors("{}"), "model.pt"), ErrorCode::kCorrupt, {"pickle"}));
  EXPECT_TRUE(fails(open(safetensors("{}"), "pytorch_model.bin"), ErrorCode::kCorrupt, {"pickle"}));
}

TEST_F(SafetensorsTest, AHeaderOf640BytesIsNoPickle) {
  std::string header = "{}";
  header.resize(0x0280, ' ');  // the size field begins 80 02, as a pickle does
  EXPECT_TRUE(open(safetensors(header)).ok());
}

TEST_F(SafetensorsTest, NoticesThatTheFileShrankOrGrew) {
  const auto file = open(small_file());
  ASSERT_TRUE(file.ok());
  const std::string path = dir_ / "model.safetensors";
  ASSERT_EQ(truncate(path.c_str(), 100), 0);
  EXPECT_TRUE(fails((*file)->read("third"), ErrorCode::kCorrupt, {path, "changed its size"}));
  ASSERT_EQ(truncate(path.c_str(), 100'000), 0);
  EXPECT_TRUE(fails((*file)->read("third"), ErrorCode::kCorrupt, {"changed its size"}));
}

TEST_F(SafetensorsTest, ReadingAnUnknownTensorIsAnError) {
  const auto file = open(small_file());
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(fails((*file)->read("fourth"), ErrorCode::kCorrupt, {"fourth"}));
}

TEST(AllFinite, FindsNanAndInfinityInEveryFloatType) {
  const float bad[] = {0, 1, -3e38f, std::numeric_limits<float>::infinity()};
  at::Tensor x = at::from_blob(const_cast<float*>(bad), {4}, at::kFloat).clone();
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    for (const float value :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      x.data_ptr<float>()[2] = 100;
      x.data_ptr<float>()[3] = value;
      EXPECT_FALSE(all_finite(x.to(type)));
      x.data_ptr<float>()[3] = 60000;
      EXPECT_TRUE(all_finite(x.to(type)));
    }
  }
}

}  // namespace
}  // namespace minicpmo
