// DVAE decoder and Vocos on a GPU: a window of codes to PCM as one graph for each length. Always
// float32, by kernels of our own (vocoder_kernels.cuh): a window has so few frames that a product
// is over before a library's kernel has filled the device, and with bias, GELU and the sums of
// splits in the same kernels a block of the network is three launches.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/runners.h"

namespace minicpmo::cuda {

// Matrices are row-major (outputs, inputs), aligned to 16 bytes. Names as in vocoder/convnext.h.
struct ConvNextWeights {
  const float *taps = nullptr, *taps_bias = nullptr;  // (kernel, width), (width)
  int kernel = 7, dilation = 1;
  const float *norm = nullptr, *norm_bias = nullptr;
  const float *up = nullptr, *up_bias = nullptr, *down = nullptr, *down_bias = nullptr;
  int inner = 0;
};

// A Conv1d as one product over overlapping frames (engine/conv1d.h): (out, kernel * in).
struct ConvWeights {
  const float *weight = nullptr, *bias = nullptr;  // bias may be null
  int in = 0, out = 0, kernel = 1;
};

struct VocoderRunnerSpec {
  RunnerOptions options;
  int dims = 4;                                         // digits of a code, base 5
  std::vector<const float*> quantizer, quantizer_bias;  // of each group: (latent, dims), (latent)
  int latent = 0;
  ConvWeights conv_in, conv_in2, conv_out, out_conv;  // a GELU between conv_in and conv_in2
  std::vector<ConvNextWeights> dvae;                  // width: conv_in2.out
  ConvWeights embed;
  const float *norm = nullptr, *norm_bias = nullptr, *final_norm = nullptr,
              *final_norm_bias = nullptr;
  std::vector<ConvNextWeights> vocos;               // width: embed.out
  const float *out = nullptr, *out_bias = nullptr;  // (n_fft + 2, width)
  const float* window = nullptr;                    // (n_fft)
  const float* synthesis = nullptr;                 // (n_fft, n_fft): Vocos::synthesis()
  int n_fft = 1024, hop = 256;
  int max_rows = 29;  // code rows of a window, at most
};

class VocoderRunner {
 public:
  virtual ~VocoderRunner() = default;
  // codes: host, row-major (rows, 2 * groups), 1..max_rows rows, each code valid. pcm: host, rows *
  // groups * hop values. Waits.
  virtual Result<void> decode(std::span<const int32_t> codes, std::span<float> pcm) = 0;
};

Result<std::unique_ptr<VocoderRunner>> new_vocoder_runner(const VocoderRunnerSpec& spec);

}  // namespace minicpmo::cuda
