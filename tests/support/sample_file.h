// Files as bytes, and the sample questions as float32.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace minicpmo::testing {

inline std::string file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::string bytes_of(const std::vector<float>& samples) {
  return {reinterpret_cast<const char*>(samples.data()), samples.size() * sizeof(float)};
}

// Of a 16-bit mono WAV file with the plain header of 44 bytes.
inline std::vector<float> wav_samples(const std::string& path) {
  const std::string bytes = file_bytes(path);
  EXPECT_GT(bytes.size(), 44u) << path;
  const size_t data = bytes.find("data") + 8;
  std::vector<float> values((bytes.size() - data) / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    int16_t sample;
    std::memcpy(&sample, bytes.data() + data + 2 * i, 2);
    values[i] = static_cast<float>(sample) / 32768.0f;
  }
  return values;
}

}  // namespace minicpmo::testing
