// Random weights of a DVAE and a Vocos, small unless said, and codes.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "engine/config.h"
#include "weights_file.h"

namespace minicpmo {

constexpr int64_t kBlocks = 2, kMels = 7;

struct VocoderSizes {
  int64_t latent = 6, first = 4;  // columns of the codes' embedding, of the first convolution
  int64_t width = 8, inner = 16, blocks = kBlocks, mels = kMels;
  int64_t vocos_width = 8, vocos_inner = 12, vocos_blocks = kBlocks;
  double scale = 0.5, scale_spread = 0.4;  // of the blocks' last factors
};

inline void add_convnext(WeightsFile& w, const std::string& prefix, const std::string& scale,
                         int64_t width, int64_t inner, const VocoderSizes& sizes = {}) {
  w.add_linear(prefix + "dwconv", {width, 1, 7});
  w.add_norm(prefix + "norm", width);
  w.add_linear(prefix + "pwconv1", {inner, width});
  w.add_linear(prefix + "pwconv2", {width, inner});
  w.add(prefix + scale, {width}, sizes.scale_spread, sizes.scale);
}

inline WeightsFile dvae_weights(const VocoderSizes& s = {}) {
  WeightsFile w;
  for (const char* g : {"0", "1"}) {
    w.add_linear(std::string("tts.dvae.vq_layer.quantizer.rvqs.") + g + ".project_out",
                 {s.latent, 4});
  }
  w.add_linear("tts.dvae.decoder.conv_in.0", {s.first, s.latent, 3});
  w.add_linear("tts.dvae.decoder.conv_in.2", {s.width, s.first, 3});
  for (int64_t i = 0; i < s.blocks; ++i) {
    add_convnext(w, "tts.dvae.decoder.decoder_block." + std::to_string(i) + ".", "coef", s.width,
                 s.inner, s);
  }
  w.add_linear("tts.dvae.decoder.conv_out", {s.latent, s.width, 1}, false);
  w.add_linear("tts.dvae.out_conv", {s.mels, s.latent, 3}, false);
  w.add("tts.dvae.coef", {1, s.mels, 1}, 0.5, 1);
  return w;
}

inline WeightsFile vocos_weights(int64_t n_fft = 1024, const VocoderSizes& s = {}) {
  WeightsFile w;
  w.add_linear("backbone.embed", {s.vocos_width, s.mels, 7});
  w.add_norm("backbone.norm", s.vocos_width);
  for (int64_t i = 0; i < s.vocos_blocks; ++i) {
    add_convnext(w, "backbone.convnext." + std::to_string(i) + ".", "gamma", s.vocos_width,
                 s.vocos_inner, s);
  }
  w.add_norm("backbone.final_layer_norm", s.vocos_width);
  w.add_linear("head.out", {n_fft + 2, s.vocos_width});
  w.add("head.istft.window", {n_fft}, 0);
  for (int64_t i = 0; i < n_fft; ++i) {
    w["head.istft.window"].data[i] = static_cast<float>(
        0.5 - 0.5 * std::cos(2 * 3.14159265358979323846 * static_cast<double>(i) / n_fft));
  }
  return w;
}

inline ModelConfig vocoder_config() {
  ModelConfig config;
  config.speech.books = 4;
  config.speech.audio_tokens = 626;
  return config;
}

// Reproducible codes 0..624, 4 a row.
inline std::vector<int32_t> some_codes(int64_t rows, uint64_t seed = 1) {
  std::vector<int32_t> codes;
  uint64_t state = seed;
  for (int64_t i = 0; i < 4 * rows; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    codes.push_back(static_cast<int32_t>((state >> 33) % 625));
  }
  return codes;
}

}  // namespace minicpmo
