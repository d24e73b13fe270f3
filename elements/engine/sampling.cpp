#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace minicpmo {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// NaN breaks every ordering; a logit that is not a number is never chosen.
void drop_nan(std::span<float> logits) {
  for (float& x : logits) {
    if (std::isnan(x)) x = kMinusInfinity;
  }
}

uint32_t multiply(uint32_t a, uint32_t b, uint32_t& high) {
  const uint64_t product = static_cast<uint64_t>(a) * b;
  high = static_cast<uint32_t>(product >> 32);
  return static_cast<uint32_t>(product);
}

}  // namespace

void Philox::block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  // Multipliers and Weyl increments of table 2 of the paper.
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    uint32_t high0, high1;
    const uint32_t low0 = multiply(0xD2511F53u, c0, high0);
    const uint32_t low1 = multiply(0xCD9E8D57u, c2, high1);
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

float Philox::uniform() {
  const uint64_t index = counter_ / 4;
  const uint32_t counter[4] = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                               static_cast<uint32_t>(stream_),
                               static_cast<uint32_t>(stream_ >> 32)};
  const uint32_t key[2] = {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)};
  uint32_t out[4];
  block(counter, key, out);
  return static_cast<float>(out[counter_++ % 4] >> 8) * 0x1p-24f;
}

int32_t argmax(std::span<const float> logits) {
  size_t best = 0;
  float value = kMinusInfinity;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > value) {  // false for NaN
      value = logits[i];
      best = i;
    }
  }
  return static_cast<int32_t>(best);
}

void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> ids,
                              double penalty) {
  if (penalty == 1.0) return;
  std::vector<int32_t> distinct(ids.begin(), ids.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto factor = static_cast<float>(penalty);
  for (int32_t id : distinct) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& x = logits[id];
    x = x < 0 ? x * factor : x / factor;
  }
}

void apply_top_k(std::span<float> logits, int64_t k, int64_t min_keep) {
  if (k <= 0) return;
  const auto keep = static_cast<size_t>(std::max(k, min_keep));
  if (keep >= logits.size()) return;
  drop_nan(logits);
  std::vector<float> sorted(logits.begin(), logits.end());
  std::nth_element(sorted.begin(), sorted.begin() + (keep - 1), sorted.end(), std::greater<>());
  const float threshold = sorted[keep - 1];
  for (float& x : logits) {
    if (x < threshold) x = kMinusInfinity;
  }
}

void apply_top_p(std::span<float> logits, double top_p, int64_t min_keep) {
  if (top_p >= 1.0 || logits.empty()) return;
  drop_nan(logits);
  std::vector<int32_t> order;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != kMinusInfinity) order.push_back(static_cast<int32_t>(i));
  }
  if (order.empty()) return;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] < logits[b]; });
  const double top = logits[order.back()];
  if (std::isinf(top)) return;  // +inf: sample() takes it whatever the others are
  std::vector<double> probability(order.size());
  double sum = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    sum += probability[i] = std::exp(static_cast<double>(logits[order[i]]) - top);
  }
  const size_t kept = std::max<int64_t>(min_keep, 1);
  const size_t droppable = order.size() > kept ? order.size() - kept : 0;
  double cumulative = 0;
  for (size_t i = 0; i < droppable; ++i) {
    cumulative += probability[i] / sum;
    if (cumulative > 1.0 - top_p) break;
    logits[order[i]] = kMinusInfinity;
  }
}

int32_t sample(std::span<const float> logits, float u) {
  const int32_t best = argmax(logits);
  if (logits.empty() || !std::isfinite(logits[best])) return best;
  const double top = logits[best];
  const auto weight = [&](float x) {
    return std::isnan(x) ? 0.0 : std::exp(static_cast<double>(x) - top);
  };
  double sum = 0;
  for (float x : logits) sum += weight(x);
  const double target = static_cast<double>(u) * sum;
  double cumulative = 0;
  int32_t last = best;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double w = weight(logits[i]);
    if (w <= 0) continue;
    cumulative += w;
    last = static_cast<int32_t>(i);
    if (cumulative > target) return last;
  }
  return last;
}

}  // namespace minicpmo
