// Small models for the unit tests of the stages: named float32 tensors with reproducible random
// values, written as a safetensors file and opened as a Checkpoint. The values stay at hand for an
// implementation to compare with.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/checkpoint.h"

namespace minicpmo {

class WeightsFile {
 public:
  struct Values {
    std::vector<int64_t> shape;
    std::vector<float> data;
    double operator[](int64_t i) const { return data[static_cast<size_t>(i)]; }
  };

  // Values spread evenly over offset -+ scale. The order of the calls does not matter.
  void add(const std::string& name, std::vector<int64_t> shape, double scale, double offset = 0) {
    Values values{std::move(shape), {}};
    size_t n = 1;
    for (int64_t d : values.shape) n *= static_cast<size_t>(d);
    uint64_t state = 1469598103934665603ull;  // FNV-1a of the name
    for (char c : name) state = (state ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    for (size_t i = 0; i < n; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const double unit = static_cast<double>(state >> 40) / (1 << 23) - 1;
      values.data.push_back(static_cast<float>(offset + scale * unit));
    }
    tensors_[name] = std::move(values);
  }
  // A matrix or convolution (out, in, ...) that keeps the size of its input, and its bias.
  void add_linear(const std::string& name, std::vector<int64_t> shape, bool bias = true) {
    double fan_in = 1;
    for (size_t i = 1; i < shape.size(); ++i) fan_in *= static_cast<double>(shape[i]);
    if (bias) add(name + ".bias", {shape[0]}, 0.2);
    add(name + ".weight", std::move(shape), std::sqrt(3 / fan_in));
  }
  void add_norm(const std::string& name, int64_t size) {
    add(name + ".weight", {size}, 0.3, 1);
    add(name + ".bias", {size}, 0.2);
  }

  void remove(const std::string& name) {
    if (tensors_.erase(name) != 1) throw std::runtime_error("no tensor " + name);
  }
  const Values& operator[](const std::string& name) const { return tensors_.at(name); }
  Values& operator[](const std::string& name) { return tensors_.at(name); }
  const std::map<std::string, Values>& tensors() const { return tensors_; }

  // The file is gone from the directory once it is open.
  std::shared_ptr<Checkpoint> open() const {
    static int number = 0;
    const std::string path = testing::TempDir() + "weights" + std::to_string(number++) + "-" +
                             std::to_string(getpid()) + ".safetensors";
    write(path);
    auto checkpoint = Checkpoint::open_file(path);
    std::remove(path.c_str());
    if (!checkpoint.ok()) throw std::runtime_error(checkpoint.error().message);
    return *checkpoint;
  }

  // Throws.
  void write(const std::string& path) const {
    std::string header = "{", comma;
    uint64_t offset = 0;
    for (const auto& [name, values] : tensors_) {
      const uint64_t end = offset + values.data.size() * sizeof(float);
      header += comma + "\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[";
      for (size_t i = 0; i < values.shape.size(); ++i) {
        header += (i > 0 ? "," : "") + std::to_string(values.shape[i]);
      }
      header += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) + "]}";
      comma = ",";
      offset = end;
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t size = header.size();
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (file == nullptr) throw std::runtime_error("cannot write " + path);
    std::fwrite(&size, sizeof size, 1, file);
    std::fwrite(header.data(), 1, header.size(), file);
    for (const auto& [name, values] : tensors_) {
      if (values.data.empty()) continue;
      std::fwrite(values.data.data(), sizeof(float), values.data.size(), file);
    }
    std::fclose(file);
  }

 private:
  std::map<std::string, Values> tensors_;
};

}  // namespace minicpmo
