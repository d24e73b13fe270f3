// A directory of safetensors files behind one set of names.
#include "engine/checkpoint.h"

#include "test_files.h"

namespace minicpmo {
namespace {

using namespace minicpmo::testing;

class CheckpointTest : public ::testing::Test {
 protected:
  // Two shards: a, layers.0.w, layers.1.w | b.
  void write_shards() {
    Float32File first, second;
    first.add("a", {2, 2}, {1, 2, 3, 4});
    first.add("layers.0.w", {1}, {5});
    first.add("layers.1.w", {1}, {6});
    second.add("b", {3}, {7, 8, 9});
    write_file(dir_ / "one.safetensors", first.bytes());
    write_file(dir_ / "two.safetensors", second.bytes());
  }
  void write_index(const std::string& extra = "") {
    write_file(
        dir_ / "model.safetensors.index.json",
        R"({"metadata":{},"weight_map":{"a":"one.safetensors","layers.0.w":"one.safetensors",)"
        R"("layers.1.w":"one.safetensors","b":"two.safetensors")" +
            extra + "}}");
  }
  void write_map(const std::string& map) {
    write_file(dir_ / "model.safetensors.index.json", "{\"weight_map\":" + map + "}");
  }

  TempDir dir_;
};

TEST_F(CheckpointTest, JoinsShards) {
  write_shards();
  write_index();
  const auto checkpoint = Checkpoint::open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->names().size(), 4u);
  EXPECT_EQ((*checkpoint)->byte_size(), 9 * 4);
  EXPECT_EQ((*checkpoint)->count("layers.", ".w"), 2);
  EXPECT_EQ((*checkpoint)->count("layers.", ".v"), 0);
  EXPECT_EQ(*(*checkpoint)->shape("a"), (std::vector<int64_t>{2, 2}));
  const auto b = (*checkpoint)->load("b", {3}, at::kFloat);
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(b->data_ptr<float>()[2], 9.0f);
}

TEST_F(CheckpointTest, OpensASingleFile) {
  Float32File file;
  file.add("x", {1}, {3});
  write_file(dir_ / "model.safetensors", file.bytes());
  const auto checkpoint = Checkpoint::open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->has("x"));
  EXPECT_FALSE((*checkpoint)->has("y"));
  EXPECT_TRUE(Checkpoint::open_file(dir_ / "model.safetensors").ok());
}

TEST_F(CheckpointTest, OpensTheSmallCheckpoint) {
  const auto checkpoint = Checkpoint::open(MODEL_DIR);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_GT((*checkpoint)->names().size(), 200u);
  EXPECT_EQ((*checkpoint)->count("llm.model.layers.", ".input_layernorm.weight"), 4);
}

TEST_F(CheckpointTest, LoadChecksShapeAndType) {
  write_shards();
  write_index();
  const auto checkpoint = *Checkpoint::open(dir_.path());
  EXPECT_TRUE(checkpoint->load("a", {2, -1}, at::kFloat).ok());
  EXPECT_TRUE(fails(checkpoint->load("a", {2, 3}, at::kFloat), ErrorCode::kCorrupt,
                    {"one.safetensors", "\"a\"", "(2, 2)", "(2, 3)"}));
  EXPECT_TRUE(fails(checkpoint->load("a", {4}, at::kFloat), ErrorCode::kCorrupt, {"(4)"}));
  EXPECT_TRUE(
      fails(checkpoint->load("c", {4}, at::kFloat), ErrorCode::kCorrupt, {dir_.path(), "\"c\""}));
  EXPECT_TRUE(fails(checkpoint->shape("c"), ErrorCode::kCorrupt, {"\"c\""}));
}

TEST_F(CheckpointTest, ConvertsToTheTypeAskedFor) {
  // 1.00390625 is one and half a unit of bfloat16's last place: it rounds to even.
  Float32File file;
  file.add("x", {3}, {1.00390625f, 1.01171875f, -2.5f});
  write_file(dir_ / "model.safetensors", file.bytes());
  const auto checkpoint = *Checkpoint::open(dir_.path());
  const auto x = checkpoint->load("x", {3}, at::kBFloat16);
  ASSERT_TRUE(x.ok());
  EXPECT_EQ(x->scalar_type(), at::kBFloat16);
  const at::Tensor wide = x->to(at::kFloat);
  EXPECT_EQ(wide.data_ptr<float>()[0], 1.0f);
  EXPECT_EQ(wide.data_ptr<float>()[1], 1.015625f);
  EXPECT_EQ(wide.data_ptr<float>()[2], -2.5f);
}

TEST_F(CheckpointTest, RefusesWeightsThatAreNotFiniteOrNotFloat) {
  Float32File file;
  file.add("nan", {2}, {1, std::numeric_limits<float>::quiet_NaN()});
  write_file(dir_ / "model.safetensors", file.bytes());
  EXPECT_TRUE(fails((*Checkpoint::open(dir_.path()))->load("nan", {2}, at::kFloat),
                    ErrorCode::kCorrupt, {"\"nan\"", "not finite"}));
  write_file(dir_ / "model.safetensors",
             safetensors("{" + entry("i", "I32", "[1]", "[0,4]") + "}", "abcd"));
  EXPECT_TRUE(fails((*Checkpoint::open(dir_.path()))->load("i", {1}, at::kFloat),
                    ErrorCode::kCorrupt, {"\"i\"", "floating-point"}));
}

TEST_F(CheckpointTest, SaysWhatIsMissing) {
  EXPECT_TRUE(
      fails(Checkpoint::open(dir_ / "none"), ErrorCode::kNotFound, {"none", "does not exist"}));
  EXPECT_TRUE(fails(Checkpoint::open(dir_.path()), ErrorCode::kNotFound, {"model.safetensors"}));
  write_file(dir_ / "file", "x");
  EXPECT_TRUE(fails(Checkpoint::open(dir_ / "file"), ErrorCode::kNotFound, {"not a directory"}));
  write_shards();
  write_index(R"(,"z":"three.safetensors")");
  EXPECT_TRUE(fails(Checkpoint::open(dir_.path()), ErrorCode::kNotFound, {"three.safetensors"}));
}

TEST_F(CheckpointTest, PointsPicklesToTheConverter) {
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"}) {
    const TempDir dir;
    write_file(dir / name, "\x80\x02}");
    EXPECT_TRUE(fails(Checkpoint::open(dir.path()), ErrorCode::kCorrupt,
                      {name, "convert it to safetensors"}));
  }
  write_map(R"({"a":"pytorch_model.bin"})");
  write_file(dir_ / "pytorch_model.bin", "PK\x03\x04 data");
  EXPECT_TRUE(
      fails(Checkpoint::open(dir_.path()), ErrorCode::kCorrupt, {"convert it to safetensors"}));
}

TEST_F(CheckpointTest, RefusesShardsOutsideTheDirectory) {
  const TempDir other;
  Float32File file;
  file.add("a", {1}, {1});
  write_file(other / "x.safetensors", file.bytes());
  std::filesystem::create_symlink(other / "x.safetensors", dir_ / "link.safetensors");
  for (const std::string& name :
       {std::string("../../etc/passwd"), std::string("/etc/passwd"), other / "x.safetensors",
        std::string(".."), std::string(""), std::string("link.safetensors"),
        std::string("sub/x.safetensors"), std::string("..\\\\x"), std::string("a\\u0000b")}) {
    write_map("{\"a\":\"" + name + "\"}");
    EXPECT_TRUE(fails(Checkpoint::open(dir_.path()), ErrorCode::kCorrupt, {"model directory"}))
        << name;
  }
}

TEST_F(CheckpointTest, SurvivesSymlinkLoops) {
  std::filesystem::create_symlink("b.safetensors", dir_ / "a.safetensors");
  std::filesystem::create_symlink("a.safetensors", dir_ / "b.safetensors");
  write_map(R"({"a":"a.safetensors"})");
  EXPECT_FALSE(Checkpoint::open(dir_.path()).ok());
  std::filesystem::remove(dir_ / "model.safetensors.index.json");
  std::filesystem::create_symlink("model.safetensors", dir_ / "model.safetensors");
  EXPECT_FALSE(Checkpoint::open(dir_.path()).ok());
}

TEST_F(CheckpointTest, RefusesAnIndexThatIsNoIndex) {
  for (const char* text :
       {"", "[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":\"x\",\"a\":\"x\"}}"}) {
    write_file(dir_ / "model.safetensors.index.json", text);
    EXPECT_TRUE(fails(Checkpoint::open(dir_.path()), ErrorCode::kCorrupt, {"index.json"})) << text;
  }
}

TEST_F(CheckpointTest, RefusesAnIndexThatDisagreesWithItsShards) {
  write_shards();
  write_index(R"(,"z":"one.safetensors")");
  EXPECT_TRUE(
      fails(Checkpoint::open(dir_.path()), ErrorCode::kCorrupt, {"\"z\"", "one.safetensors"}));
  write_map(R"({"a":"one.safetensors","b":"two.safetensors"})");
  EXPECT_TRUE(
      fails(Checkpoint::open(dir_.path()), ErrorCode::kCorrupt, {"layers.0.w", "does not name"}));
}

TEST_F(CheckpointTest, RefusesATensorInTwoShards) {
  write_shards();
  Float32File second;
  second.add("b", {3}, {7, 8, 9});
  second.add("a", {1}, {0});
  write_file(dir_ / "two.safetensors", second.bytes());
  write_index();
  EXPECT_TRUE(fails(Checkpoint::open(dir_.path()), ErrorCode::kCorrupt,
                    {"two.safetensors", "\"a\"", "places"}));
}

}  // namespace
}  // namespace minicpmo
