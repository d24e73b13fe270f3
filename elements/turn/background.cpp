#include "turn/background.h"

#include <algorithm>
#include <cmath>

namespace minicpmo {
namespace {

// Mean square about the mean.
double power(std::span<const float> pcm) {
  if (pcm.empty()) return 0;
  double sum = 0, squares = 0;
  for (const double x : pcm) {
    sum += x;
    squares += x * x;
  }
  const auto n = static_cast<double>(pcm.size());
  return std::max(0.0, squares / n - sum / n * (sum / n));
}

}  // namespace

bool Background::stands_out(std::span<const float> pcm, float margin_db) {
  const double heard = power(pcm);
  powers_[next_] = heard;
  next_ = (next_ + 1) % kWindows;
  std::array<double, kWindows> sorted = powers_;
  const auto quiet = sorted.begin() + kWindows / 5, loud = sorted.end() - kWindows / 20;
  std::nth_element(sorted.begin(), quiet, sorted.end());
  std::nth_element(quiet + 1, loud, sorted.end());
  const double half_way = std::sqrt(*quiet * *loud);
  return heard >= std::min(half_way, *quiet * std::pow(10.0, margin_db / 10.0));
}

}  // namespace minicpmo
