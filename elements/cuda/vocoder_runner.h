// DVAE decoder and Vocos on a GPU: a window of codes to PCM as one graph for each length.
#pragma once

#include <span>
#include <vector>

#include "cuda/runners.h"

namespace minicpmo::cuda {

// float32, as the CPU's vocoder; row-major (outputs, inputs). Names as in vocoder/convnext.h.
struct ConvNextWeights {
  const float *taps = nullptr, *taps_bias = nullptr;  // (kernel, width), (width)
  int kernel = 7, dilation = 1;
  const float *norm = nullptr, *norm_bias = nullptr;
  const float *up = nullptr, *up_bias = nullptr, *down = nullptr, *down_bias = nullptr;
  int inner = 0;
};

// A Conv1d as one product over gathered frames (engine/conv1d.h): (out, kernel * in).
struct ConvWeights {
  const float *weight = nullptr, *bias = nullptr;  // bias may be null
  int in = 0, out = 0, kernel = 1;
};

struct VocoderRunnerSpec {
  RunnerOptions options;
  int books = 4, codes = 625, groups = 2, dims = 4;     // dims: digits of a code, base 5
  std::vector<const float*> quantizer, quantizer_bias;  // of each group: (latent, dims), (latent)
  int latent = 0;
  ConvWeights conv_in, conv_in2, conv_out, out_conv;  // a GELU between conv_in and conv_in2
  std::vector<ConvNextWeights> dvae;
  ConvWeights embed;
  const float *norm = nullptr, *norm_bias = nullptr, *final_norm = nullptr,
              *final_norm_bias = nullptr;
  std::vector<ConvNextWeights> vocos;
  const float *out = nullptr, *out_bias = nullptr;  // (n_fft + 2, width)
  const float* window = nullptr;                    // (n_fft)
  int n_fft = 1024, hop = 256;
  int max_rows = 29;  // code rows of a window, at most
};

class VocoderRunner {
 public:
  virtual ~VocoderRunner() = default;
  // codes: host, (rows, books), each in [0, codes). pcm: host, rows * groups * hop values. Waits.
  virtual Result<void> decode(std::span<const int32_t> codes, std::span<float> pcm) = 0;
};

}  // namespace minicpmo::cuda
