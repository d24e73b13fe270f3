// Speech codes to a mel spectrogram: the decoder half of ChatTTS's DVAE ("tts.dvae." of the
// checkpoint).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "engine/checkpoint.h"
#include "engine/conv1d.h"
#include "vocoder/convnext.h"

namespace minicpmo {

class Dvae {
 public:
  // Sizes come from the shapes of the tensors, counts from their names. books: columns of a code
  // row; codes: values of one code (625, without the end-of-speech code). Errors: kCorrupt naming
  // the tensor.
  static Result<Dvae> load(const Checkpoint& checkpoint, const std::string& prefix, int64_t books,
                           int64_t codes, const StageDevice& device);

  // codes: row-major (rows, books), rows >= 1, each in [0, codes()). Returns the natural-log mel
  // spectrogram (groups() * rows, mel_bins()), time-major, in the type of the weights. Throws
  // c10::Error.
  at::Tensor decode(std::span<const int32_t> codes) const;

  // The decoder's input, before its first convolution: (groups * rows, width).
  at::Tensor dequantize(std::span<const int32_t> codes) const;

  // The DVAE's part of the spec; float32 only.
  void describe(cuda::VocoderRunnerSpec& spec) const;

  int64_t books() const { return books_; }
  int64_t codes() const { return codes_; }
  int64_t groups() const {
    return static_cast<int64_t>(quantizers_.size());
  }  // mel frames per code row
  int64_t mel_bins() const { return out_conv_.out(); }
  int64_t blocks() const { return static_cast<int64_t>(blocks_.size()); }

 private:
  struct Quantizer {
    at::Tensor weight, bias;  // (width, dims), (width)
  };
  Result<void> load_quantizers(const Checkpoint& checkpoint, const std::string& prefix);
  Result<void> load_decoder(const Checkpoint& checkpoint, const std::string& prefix);

  int64_t books_ = 0, codes_ = 0, dims_ = 0;
  StageDevice device_;
  std::vector<Quantizer> quantizers_;
  Conv1d conv_in_, conv_in2_, conv_out_, out_conv_;
  std::vector<ConvNextBlock> blocks_;
};

}  // namespace minicpmo
