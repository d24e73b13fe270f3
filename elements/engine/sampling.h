// Token sampling as transformers 4.44.2 does it (model-spec 3.4, 4.4), single-threaded, on float32
// logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace minicpmo {

// Counter-based random numbers, Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011): a value depends only on (seed, stream, counter), so a device can draw the
// same ones.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  // Uniform in [0, 1), 24 bits.
  float uniform();
  uint64_t seed() const { return seed_; }
  uint64_t stream() const { return stream_; }
  uint64_t counter() const { return counter_; }  // numbers drawn so far
  void set_counter(uint64_t counter) { counter_ = counter; }
  static void block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

 private:
  uint64_t seed_, stream_, counter_ = 0;
};

int32_t argmax(std::span<const float> logits);  // the first of equal ones

// score < 0 ? score * penalty : score / penalty, once per distinct id.
void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> ids,
                              double penalty);
// Sets all but the k best to -inf (ties with the k-th best stay).
void apply_top_k(std::span<float> logits, int64_t k, int64_t min_keep = 1);
// Sorted ascending, drops while the cumulative probability is <= 1 - top_p; always keeps the best
// min_keep.
void apply_top_p(std::span<float> logits, double top_p, int64_t min_keep = 1);
// Draws from softmax(logits) by inverse CDF with u in [0, 1).
int32_t sample(std::span<const float> logits, float u);

}  // namespace minicpmo
