#include "common/gstminicpmomodel.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "common/gst_ptr.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLibrary = "libminicpmo-torch.so";

// A directory that MINICPMO_BACKEND_DIR names as long as this lives.
class BackendDirectory {
 public:
  BackendDirectory() {
    gchar* made = g_dir_make_tmp("minicpmo-backend-XXXXXX", nullptr);
    path_ = made;
    g_free(made);
    g_setenv("MINICPMO_BACKEND_DIR", path_.c_str(), TRUE);
  }
  ~BackendDirectory() {
    g_unsetenv("MINICPMO_BACKEND_DIR");
    fs::remove_all(path_);
  }
  fs::path library() const { return path_ / kLibrary; }
  std::string name() const { return path_.string(); }

 private:
  fs::path path_;
};

std::string read_all(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_all(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(BackendLibrary, MissingOneIsNamedWithWhatToDo) {
  BackendDirectory directory;
  auto backend = gst_minicpmo_backend_get();
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.error().code, ErrorCode::kLibrary);
  EXPECT_TRUE(contains(backend.error().message, kLibrary)) << backend.error().message;
  EXPECT_TRUE(contains(backend.error().message, directory.name())) << backend.error().message;
  EXPECT_TRUE(contains(backend.error().message, "tools/setup")) << backend.error().message;
}

TEST(BackendLibrary, BrokenFileIsNamed) {
  BackendDirectory directory;
  write_all(directory.library(), "this is no shared object");
  auto backend = gst_minicpmo_backend_get();
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.error().code, ErrorCode::kLibrary);
  EXPECT_TRUE(contains(backend.error().message, directory.library().string()))
      << backend.error().message;
}

// As when libtorch is not installed: the backend is there and a library it needs is not.
TEST(BackendLibrary, MissingDependencyIsNamed) {
  BackendDirectory directory;
  std::string bytes = read_all(fs::path(GST_PLUGINS_DIR) / "libgstapp.so");
  const std::string needed = "libgstapp-1.0.so.0";
  const size_t at = bytes.find(needed);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, needed.size(), "libgone42-1.0.so.0");
  write_all(directory.library(), bytes);
  auto backend = gst_minicpmo_backend_get();
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.error().code, ErrorCode::kLibrary);
  EXPECT_TRUE(contains(backend.error().message, "libgone42-1.0.so.0")) << backend.error().message;
}

TEST(BackendLibrary, AnotherLibraryIsRefused) {
  BackendDirectory directory;
  fs::create_symlink(fs::path(GST_PLUGINS_DIR) / "libgstapp.so", directory.library());
  auto backend = gst_minicpmo_backend_get();
  ASSERT_FALSE(backend.ok());
  EXPECT_TRUE(contains(backend.error().message, kBackendSymbol)) << backend.error().message;
}

TEST(BackendLibrary, StaleOneIsRefused) {
  BackendDirectory directory;
  fs::create_symlink(STALE_BACKEND, directory.library());
  auto backend = gst_minicpmo_backend_get();
  ASSERT_FALSE(backend.ok());
  EXPECT_TRUE(contains(backend.error().message, "version 4711")) << backend.error().message;
}

TEST(DefaultModel, EnvironmentComesFirst) {
  g_setenv("MINICPMO_MODEL", "/elsewhere", TRUE);
  EXPECT_STREQ(gst_minicpmo_default_model(), "/elsewhere");
  g_unsetenv("MINICPMO_MODEL");
  EXPECT_TRUE(fs::exists(fs::path(gst_minicpmo_default_model()) / "config.json"));
}

class ContextTest : public ::testing::Test {
 protected:
  ContextTest() {
    options_.model_dir = "/m";
    engine_ = gst_minicpmo_backend_get().value()->open_engine(options_).value();
    context_.reset(gst_minicpmo_context_new(engine_, options_));
  }
  FakeBackend backend_;
  EngineOptions options_;
  std::shared_ptr<Engine> engine_;
  ContextPtr context_;
};

TEST_F(ContextTest, HoldsItsEngine) {
  EXPECT_EQ(gst_minicpmo_context_get_engine(context_.get(), options_), engine_);
  options_.device = "cpu";  // what auto was resolved to
  options_.precision = "float32";
  EXPECT_EQ(gst_minicpmo_context_get_engine(context_.get(), options_), engine_);
}

TEST_F(ContextTest, OthersGetNothing) {
  for (auto change : {+[](EngineOptions& o) { o.model_dir = "/n"; },
                      +[](EngineOptions& o) { o.device = "cuda:0"; },
                      +[](EngineOptions& o) { o.precision = "bfloat16"; }}) {
    EngineOptions other = options_;
    change(other);
    EXPECT_EQ(gst_minicpmo_context_get_engine(context_.get(), other), nullptr);
  }
  ContextPtr foreign(gst_context_new("some.other.Context", TRUE));
  EXPECT_EQ(gst_minicpmo_context_get_engine(foreign.get(), options_), nullptr);
  ContextPtr empty(gst_context_new(GST_MINICPMO_CONTEXT_TYPE, TRUE));
  EXPECT_EQ(gst_minicpmo_context_get_engine(empty.get(), options_), nullptr);
}

}  // namespace
}  // namespace minicpmo::testing
