// The formulas of the networks in plain loops and double precision, for the unit tests to compare
// with.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "weights_file.h"

namespace minicpmo::naive {

using Row = std::vector<double>;
using Matrix = std::vector<Row>;  // [time][channel]

inline double gelu(double x) {
  return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
}

template <class Function>
Matrix map(Matrix x, Function f) {
  for (Row& row : x) std::transform(row.begin(), row.end(), row.begin(), f);
  return x;
}

inline Matrix add(Matrix a, const Matrix& b) {
  for (size_t t = 0; t < a.size(); ++t) {
    for (size_t c = 0; c < a[t].size(); ++c) a[t][c] += b[t][c];
  }
  return a;
}

// NAME.weight (out, in) or (out, in, 1), NAME.bias if there is one.
inline Matrix linear(const WeightsFile& w, const std::string& name, const Matrix& x) {
  const auto& weight = w[name + ".weight"];
  const bool bias = w.tensors().count(name + ".bias") != 0;
  const int64_t out = weight.shape[0], in = weight.shape[1];
  Matrix y(x.size(), Row(out));
  for (size_t t = 0; t < x.size(); ++t) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias ? w[name + ".bias"][o] : 0;
      for (int64_t i = 0; i < in; ++i) sum += weight[o * in + i] * x[t][i];
      y[t][o] = sum;
    }
  }
  return y;
}

// NAME.weight (out, in / groups, kernel); groups is 1 or the number of channels.
inline Matrix conv(const WeightsFile& w, const std::string& name, const Matrix& x,
                   int64_t stride = 1, int64_t dilation = 1, bool depthwise = false) {
  const auto& weight = w[name + ".weight"];
  const bool bias = w.tensors().count(name + ".bias") != 0;
  const int64_t out = weight.shape[0], in = weight.shape[1], kernel = weight.shape[2];
  const int64_t frames = static_cast<int64_t>(x.size());
  Matrix y;
  for (int64_t t = 0; t < frames; t += stride) {
    Row row(out);
    for (int64_t o = 0; o < out; ++o) {
      row[o] = bias ? w[name + ".bias"][o] : 0;
      for (int64_t k = 0; k < kernel; ++k) {
        const int64_t at = t + dilation * (k - kernel / 2);
        if (at < 0 || at >= frames) continue;
        for (int64_t i = 0; i < in; ++i)
          row[o] += weight[(o * in + i) * kernel + k] * x[at][depthwise ? o : i];
      }
    }
    y.push_back(row);
  }
  return y;
}

inline Matrix layer_norm(const WeightsFile& w, const std::string& name, Matrix x, double eps) {
  for (Row& row : x) {
    double mean = 0, variance = 0;
    for (double v : row) mean += v / static_cast<double>(row.size());
    for (double v : row) variance += (v - mean) * (v - mean) / static_cast<double>(row.size());
    for (size_t c = 0; c < row.size(); ++c) {
      row[c] = (row[c] - mean) / std::sqrt(variance + eps) * w[name + ".weight"][c] +
               w[name + ".bias"][c];
    }
  }
  return x;
}

inline Matrix convnext(const WeightsFile& w, const std::string& prefix, const std::string& scale,
                       int64_t dilation, const Matrix& x) {
  Matrix y = layer_norm(w, prefix + "norm", conv(w, prefix + "dwconv", x, 1, dilation, true), 1e-6);
  y = linear(w, prefix + "pwconv2", map(linear(w, prefix + "pwconv1", y), gelu));
  for (Row& row : y) {
    for (size_t c = 0; c < row.size(); ++c) row[c] *= w[prefix + scale][c];
  }
  return add(x, y);
}

// max|actual - expected| / max|expected|; infinite if the shapes differ.
inline double relative_error(const at::Tensor& actual, const Matrix& expected) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor a = actual.to(at::kDouble).contiguous();
  if (expected.empty() || a.dim() != 2 || a.size(0) != static_cast<int64_t>(expected.size()) ||
      a.size(1) != static_cast<int64_t>(expected[0].size())) {
    return kInfinity;
  }
  const double* value = a.const_data_ptr<double>();
  double worst = 0, scale = 0;
  for (const Row& row : expected) {
    for (double e : row) {
      const double d = std::abs(*value++ - e);
      if (!(d < kInfinity)) return kInfinity;
      worst = std::max(worst, d);
      scale = std::max(scale, std::abs(e));
    }
  }
  return worst / scale;
}

}  // namespace minicpmo::naive
