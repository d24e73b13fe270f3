// Golden values (tests/fixtures/golden/NAME.safetensors, made by tools/tiny/reference) and how
// parity is measured.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/safetensors.h"

namespace minicpmo {

// One file of golden tensors. Anything missing throws, which GoogleTest reports as the failure of
// the test.
class Golden {
 public:
  // name: "q01_cap"; FIXTURES is defined by tests/meson.build.
  explicit Golden(const std::string& name)
      : Golden(std::string(FIXTURES "/golden/") + name + ".safetensors", Path{}) {}
  static Golden at(const std::string& path) { return Golden(path, Path{}); }

  bool has(const std::string& name) const { return file_->entries().count(name) != 0; }

  // As stored: float32, or int64 for ids, codes and ranges. Contiguous, on the CPU.
  at::Tensor operator[](const std::string& name) const {
    auto tensor = file_->read(name);
    if (!tensor.ok()) throw std::runtime_error(tensor.error().message);
    return (*tensor).contiguous();
  }

  // The number of n = 0, 1, ... for which prefix + n + suffix exists, e.g. ("chunk.", ".mel").
  int count(const std::string& prefix, const std::string& suffix) const {
    int n = 0;
    while (has(prefix + std::to_string(n) + suffix)) ++n;
    return n;
  }

  // An int64 tensor of any shape, flattened.
  std::vector<int64_t> integers(const std::string& name) const {
    const at::Tensor tensor = (*this)[name];
    const int64_t* data = tensor.const_data_ptr<int64_t>();
    return {data, data + tensor.numel()};
  }

  // A floating-point tensor of any shape, as float32 and flattened.
  std::vector<float> floats(const std::string& name) const {
    const at::Tensor tensor = (*this)[name].to(at::kFloat);
    const float* data = tensor.const_data_ptr<float>();
    return {data, data + tensor.numel()};
  }

  std::string metadata(const std::string& key) const {
    const auto it = file_->metadata().find(key);
    if (it == file_->metadata().end()) throw std::runtime_error(file_->path() + " has no " + key);
    return it->second;
  }

 private:
  struct Path {};
  Golden(const std::string& path, Path) {
    auto file = SafetensorsFile::open(path);
    if (!file.ok()) throw std::runtime_error(file.error().message);
    file_ = *file;
  }
  std::shared_ptr<SafetensorsFile> file_;
};

// max|a - b|; infinite if the sizes differ or a value is not finite, so that no comparison passes
// by accident.
inline double max_difference(std::span<const float> a, std::span<const float> b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.size() != b.size()) return kInfinity;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    if (!(d < kInfinity && d > -kInfinity)) return kInfinity;
    worst = d > worst ? d : -d > worst ? -d : worst;
  }
  return worst;
}

// max|actual - expected| / max|expected|, the measure of every parity bound in these tests.
inline double relative_error(std::span<const float> actual, std::span<const float> expected) {
  double scale = 0;
  for (float x : expected) scale = x > scale ? x : -x > scale ? -x : scale;
  const double difference = max_difference(actual, expected);
  return difference == 0 ? 0 : difference / scale;
}

// Any float type and device; the shapes must be equal.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) return std::numeric_limits<double>::infinity();
  const at::Tensor a = actual.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor b = expected.to(at::kCPU, at::kFloat).contiguous();
  const auto n = static_cast<size_t>(a.numel());
  return relative_error(std::span(a.const_data_ptr<float>(), n),
                        std::span(b.const_data_ptr<float>(), n));
}

}  // namespace minicpmo
