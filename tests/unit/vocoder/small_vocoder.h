// A small DVAE and Vocos with random weights, and their formulas in double precision.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "naive.h"
#include "vocoder/vocoder.h"
#include "vocoder/vocoder_weights.h"

namespace minicpmo {

inline std::shared_ptr<const VocoderModel> small_vocoder() {
  auto model = load_vocoder(*dvae_weights().open(), *vocos_weights().open(), vocoder_config(),
                            at::kFloat, {}, CancelFlag());
  if (!model.ok()) throw std::runtime_error(model.error().message);
  return *model;
}

namespace naive {

// The digits of a code in base 5, lowest first, as -1, -1/2, 0, 1/2, 1.
inline Row digits(int64_t code) {
  return {static_cast<double>(code % 5) / 2 - 1, static_cast<double>(code / 5 % 5) / 2 - 1,
          static_cast<double>(code / 25 % 5) / 2 - 1, static_cast<double>(code / 125) / 2 - 1};
}

// (2 * rows, latent): books 0 and 1 make the even frames, 2 and 3 the odd ones.
inline Matrix dequantize(const WeightsFile& w, const std::vector<int32_t>& codes) {
  Matrix out;
  for (size_t row = 0; row + 4 <= codes.size(); row += 4) {
    for (size_t g = 0; g < 2; ++g) {
      Row z = digits(codes[row + 2 * g]);
      const Row fine = digits(codes[row + 2 * g + 1]);
      for (size_t d = 0; d < 4; ++d) z[d] += fine[d] / 4;
      out.push_back(linear(
          w, "tts.dvae.vq_layer.quantizer.rvqs." + std::to_string(g) + ".project_out", {z})[0]);
    }
  }
  return out;
}

inline Matrix dvae(const WeightsFile& w, const std::vector<int32_t>& codes) {
  const std::string d = "tts.dvae.decoder.";
  Matrix x = map(conv(w, d + "conv_in.0", dequantize(w, codes)), gelu);
  x = conv(w, d + "conv_in.2", x);
  for (int64_t i = 0; i < kBlocks; ++i)
    x = convnext(w, d + "decoder_block." + std::to_string(i) + ".", "coef", 2, x);
  x = conv(w, "tts.dvae.out_conv", conv(w, d + "conv_out", x));
  for (Row& row : x) {
    for (size_t c = 0; c < row.size(); ++c) row[c] *= w["tts.dvae.coef"][c];
  }
  return x;
}

// Frames of log-magnitudes and phases to samples, each frame by the sum of its cosines.
inline Row inverse_stft(const Row& window, const Matrix& head) {
  const size_t n = window.size(), hop = n / 4, bins = n / 2 + 1, frames = head.size();
  Row sum((frames - 1) * hop + n, 0), weight(sum.size(), 0), cosine(n);
  for (size_t i = 0; i < n; ++i)
    cosine[i] = std::cos(2 * 3.14159265358979323846 * static_cast<double>(i) / n);
  for (size_t t = 0; t < frames; ++t) {
    for (size_t i = 0; i < n; ++i) {
      double x = 0;
      for (size_t b = 0; b < bins; ++b) {
        const double magnitude = std::min(std::exp(head[t][b]), 100.0), phase = head[t][bins + b];
        const double twice =
            b == 0 || b == n / 2 ? 1 : 2;  // the other half of the spectrum is its mirror
        // Re(S e^(2 pi i b k / n)); the imaginary parts of the outermost bins do not count.
        x += twice * magnitude * std::cos(phase) * cosine[b * i % n];
        if (twice == 2) x -= 2 * magnitude * std::sin(phase) * cosine[(b * i + 3 * n / 4) % n];
      }
      sum[t * hop + i] += x / static_cast<double>(n) * window[i];
      weight[t * hop + i] += window[i] * window[i];
    }
  }
  Row wave;
  const size_t trim = (n - hop) / 2;
  for (size_t i = trim; i + trim < sum.size(); ++i) wave.push_back(sum[i] / weight[i]);
  return wave;
}

inline Row vocos(const WeightsFile& w, const Matrix& mel) {
  Matrix x = layer_norm(w, "backbone.norm", conv(w, "backbone.embed", mel), 1e-6);
  for (int64_t i = 0; i < kBlocks; ++i)
    x = convnext(w, "backbone.convnext." + std::to_string(i) + ".", "gamma", 1, x);
  const Matrix head = linear(w, "head.out", layer_norm(w, "backbone.final_layer_norm", x, 1e-6));
  const auto& window = w["head.istft.window"].data;
  return inverse_stft(Row(window.begin(), window.end()), head);
}

}  // namespace naive
}  // namespace minicpmo
