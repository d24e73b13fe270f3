// Files that the engine's tests write: temporary directories, safetensors files with any header.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "common/result.h"

namespace minicpmo::testing {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "minicpmo-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(out.good()) << path;
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

inline std::string size_field(uint64_t n) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(n >> (8 * i));
  return bytes;
}

// A file with this header, true size field, and data.
inline std::string safetensors(const std::string& header, const std::string& data = "") {
  return size_field(header.size()) + header + data;
}

// The header's entry of one tensor.
inline std::string entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

// Writes float32 tensors one after the other.
class Float32File {
 public:
  void add(const std::string& name, const std::vector<int64_t>& shape,
           const std::vector<float>& values) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
    const size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    header_ += (header_.empty() ? "" : ",") +
               entry(name, "F32", text + "]",
                     "[" + std::to_string(begin) + "," + std::to_string(data_.size()) + "]");
  }
  std::string bytes() const { return safetensors("{" + header_ + "}", data_); }

 private:
  std::string header_, data_;
};

template <class T>
::testing::AssertionResult fails(const Result<T>& result, ErrorCode code,
                                 const std::vector<std::string>& words) {
  if (result.ok()) return ::testing::AssertionFailure() << "it succeeded";
  const Error& error = result.error();
  if (error.code != code) {
    return ::testing::AssertionFailure()
           << "code " << static_cast<int>(error.code) << ": " << error.message;
  }
  for (const std::string& word : words) {
    if (error.message.find(word) == std::string::npos) {
      return ::testing::AssertionFailure() << "no \"" << word << "\" in: " << error.message;
    }
  }
  return ::testing::AssertionSuccess();
}

// How much longer anything may take than in an ordinary build.
#ifdef __SANITIZE_ADDRESS__
constexpr double kSlowness = 20;
#else
constexpr double kSlowness = 1;
#endif

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The most memory this process has ever held, in MiB.
inline double peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

}  // namespace minicpmo::testing
