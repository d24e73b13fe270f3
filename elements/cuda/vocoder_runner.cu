#include "cuda/vocoder_runner.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/error.h"
#include "cuda/graph.h"
#include "cuda/launch.cuh"
#include "cuda/memory.h"
#include "cuda/vocoder_kernels.cuh"

namespace minicpmo::cuda {
namespace {

constexpr int kMaxSplits = 4;
using Tile = LinearTile<8, 4>;       // 32 x 32
using SmallTile = LinearTile<4, 2>;  // 16 x 16

int divide_up(int a, int b) {
  return (a + b - 1) / b;
}

// Why the kernels cannot run these shapes, or null.
const char* unsupported_blocks(const std::vector<ConvNextWeights>& blocks, int width) {
  if (width <= 0 || width % 128 != 0 || width > MixArgs::kMaxWidth)
    return "a width is not a multiple of 128 up to 512";
  for (const ConvNextWeights& block : blocks) {
    if (block.kernel != MixArgs::kTaps) return "the depthwise kernels have not 7 taps";
    if (block.inner <= 0 || block.inner % 4 != 0) return "an inner width is not a multiple of 4";
  }
  return nullptr;
}

const char* unsupported(const VocoderRunnerSpec& spec) {
  const auto groups = static_cast<int>(spec.quantizer.size());
  if (groups < 1 || groups > DequantizeArgs::kGroups || spec.dims != DequantizeArgs::kDigits)
    return "the quantizers have not 1..4 groups of 4 digits";
  for (const ConvWeights* conv :
       {&spec.conv_in, &spec.conv_in2, &spec.conv_out, &spec.out_conv, &spec.embed}) {
    if (conv->in <= 0 || conv->in % 4 != 0)
      return "a convolution's channels are not a multiple of 4";
  }
  if (spec.n_fft % 4 != 0 || spec.hop < 1 || spec.max_rows < 1)
    return "the window length is not a multiple of 4";
  const char* const dvae = unsupported_blocks(spec.dvae, spec.conv_in2.out);
  return dvae != nullptr ? dvae : unsupported_blocks(spec.vocos, spec.embed.out);
}

class Runner final : public VocoderRunner {
 public:
  explicit Runner(const VocoderRunnerSpec& spec)
      : spec_(spec), stream_(static_cast<cudaStream_t>(spec.options.stream)) {}
  cudaError_t init();
  Result<void> decode(std::span<const int32_t> codes, std::span<float> pcm) override;

 private:
  // A signal (frames, channels) whose last product is not yet added up.
  struct Signal {
    float* x;
    int splits;
    const float* bias;
  };

  int groups() const { return static_cast<int>(spec_.quantizer.size()); }
  cudaError_t allocate();
  cudaError_t enqueue(int rows);
  cudaError_t dequantize(int frames);
  cudaError_t dvae(int frames);
  cudaError_t vocos(int frames);
  cudaError_t blocks(const std::vector<ConvNextWeights>& blocks, int frames, int width,
                     Signal& signal);
  cudaError_t mix(MixArgs args, const Signal& from);
  cudaError_t conv(const ConvWeights& weights, int frames, const float* x, bool gelu, float* y);
  cudaError_t linear(const LinearArgs& args);
  cudaError_t linear_in_splits(LinearArgs args, int& splits);
  template <class AnyTile, class Kernel>
  cudaError_t launch_linear(Kernel kernel, const LinearArgs& args, int splits);
  template <class Kernel, class Args>
  cudaError_t launch_plain(Kernel kernel, int blocks, int threads, const Args& args) {
    return launch(kernel, dim3(blocks), threads, 0, stream_, overlap_, args);
  }

  const VocoderRunnerSpec spec_;
  const cudaStream_t stream_;
  int processors_ = 0;
  bool overlap_ = false;
  DeviceMemory memory_;
  // In memory_. x and other_: residual signal, in turns; parts: products in splits.
  float *x_ = nullptr, *other_ = nullptr, *normed_ = nullptr, *inner_ = nullptr, *parts_ = nullptr;
  PinnedMemory codes_, pcm_;
  std::vector<Graph> graphs_;  // by rows - 1; empty: kernels are launched one by one
};

LinearArgs product(const float* x, int rows, const float* weight, const float* bias, int outputs,
                   int inputs, float* y) {
  return {x, inputs, 0, rows * inputs, weight, bias, false, y, rows, outputs, inputs};
}

cudaError_t Runner::init() {
  int major = 0;
  const int device = spec_.options.device;
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device));
  overlap_ = major >= 9;
  RETURN_IF_CUDA_ERROR(allow_shared(linear_kernel<8, 4>, Tile::kShared));
  RETURN_IF_CUDA_ERROR(allow_shared(linear_kernel<4, 2>, SmallTile::kShared));
  RETURN_IF_CUDA_ERROR(allocate());
  RETURN_IF_CUDA_ERROR(enqueue(spec_.max_rows));  // loads the kernels, which a capture must not
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  if (!spec_.options.graphs) return cudaSuccess;
  for (int rows = 1; rows <= spec_.max_rows; ++rows) {
    Graph graph;
    RETURN_IF_CUDA_ERROR(graph.capture(stream_, [&] { return enqueue(rows); }));
    graphs_.push_back(std::move(graph));
  }
  return cudaStreamSynchronize(stream_);
}

cudaError_t Runner::allocate() {
  int inner = 0;
  for (const auto* blocks : {&spec_.dvae, &spec_.vocos}) {
    for (const ConvNextWeights& block : *blocks) inner = std::max(inner, block.inner);
  }
  const int widest =
      std::max({spec_.latent, spec_.conv_in.out, spec_.conv_in2.out, spec_.conv_out.out,
                spec_.out_conv.out, spec_.embed.out, spec_.n_fft});
  const auto frames = static_cast<size_t>(spec_.max_rows) * groups();
  const std::pair<float**, int> buffers[] = {{&x_, widest},
                                             {&other_, widest},
                                             {&normed_, widest},
                                             {&inner_, std::max(inner, widest)},
                                             {&parts_, kMaxSplits * (widest + 2)}};
  constexpr size_t kAlign = 64;  // floats
  const auto size = [&](int width) { return (frames * width + kAlign - 1) / kAlign * kAlign; };
  size_t floats = 0;
  for (const auto& [pointer, width] : buffers) floats += size(width);
  RETURN_IF_CUDA_ERROR(memory_.allocate(floats * sizeof(float)));
  float* at = memory_.as<float>();
  for (const auto& [pointer, width] : buffers) {
    *pointer = at;
    at += size(width);
  }
  RETURN_IF_CUDA_ERROR(codes_.allocate(frames * DequantizeArgs::kSteps * sizeof(int32_t)));
  std::memset(codes_.as<void>(), 0, codes_.size());
  return pcm_.allocate(frames * spec_.hop * sizeof(float));
}

template <class AnyTile, class Kernel>
cudaError_t Runner::launch_linear(Kernel kernel, const LinearArgs& args, int splits) {
  const dim3 grid(divide_up(args.outputs, AnyTile::kColumns),
                  divide_up(args.rows, AnyTile::kRows) * splits);
  return launch(kernel, grid, AnyTile::kWarps * 32, AnyTile::kShared, stream_, overlap_, args);
}

int tiles(const LinearArgs& args) {
  return divide_up(args.outputs, Tile::kColumns) * divide_up(args.rows, Tile::kRows);
}

// A result that is complete. Large tiles read the least, but a few of them leave the device idle.
cudaError_t Runner::linear(const LinearArgs& args) {
  if (4 * tiles(args) < processors_) return launch_linear<SmallTile>(linear_kernel<4, 2>, args, 1);
  return launch_linear<Tile>(linear_kernel<8, 4>, args, 1);
}

// A result in parts_, as many as fill the device, whose reader adds them up.
cudaError_t Runner::linear_in_splits(LinearArgs args, int& splits) {
  splits = std::clamp(processors_ / tiles(args), 1, kMaxSplits);
  args.bias = nullptr;
  args.y = parts_;
  return launch_linear<Tile>(linear_kernel<8, 4>, args, splits);
}

cudaError_t Runner::conv(const ConvWeights& w, int frames, const float* x, bool gelu, float* y) {
  return linear({x, w.in, (w.kernel - 1) / 2, frames * w.in, w.weight, w.bias, gelu, y, frames,
                 w.out, w.kernel * w.in});
}

// from plus its product, then what else args asks for.
cudaError_t Runner::mix(MixArgs args, const Signal& from) {
  args.from = {from.x, parts_, from.splits, from.bias};
  const int taps = args.taps != nullptr ? MixArgs::kTaps : 1;
  return launch_plain(mix_kernel, args.frames, taps * args.width / 4, args);
}

cudaError_t Runner::dequantize(int frames) {
  DequantizeArgs args = {};
  args.codes = codes_.as<int32_t>();
  args.groups = groups();
  args.latent = spec_.latent;
  args.y = x_;
  for (int g = 0; g < groups(); ++g) {
    args.weight[g] = reinterpret_cast<const float4*>(spec_.quantizer[g]);
    args.bias[g] = spec_.quantizer_bias[g];
  }
  return launch_plain(dequantize_kernel, frames, 128, args);
}

// x + scale * down(GELU(up(norm(taps(x))))) for each block; the last one's product stays in splits.
cudaError_t Runner::blocks(const std::vector<ConvNextWeights>& blocks, int frames, int width,
                           Signal& signal) {
  for (const ConvNextWeights& w : blocks) {
    MixArgs args = {};
    args.taps = w.taps;
    args.taps_bias = w.taps_bias;
    args.dilation = w.dilation;
    args.norm = w.norm;
    args.norm_bias = w.norm_bias;
    args.frames = frames;
    args.width = width;
    args.y = normed_;
    if (signal.splits > 0) args.sum = signal.x == x_ ? other_ : x_;
    RETURN_IF_CUDA_ERROR(mix(args, signal));
    if (args.sum != nullptr) signal.x = args.sum;
    LinearArgs up = product(normed_, frames, w.up, w.up_bias, w.inner, width, inner_);
    up.gelu = true;
    RETURN_IF_CUDA_ERROR(linear(up));
    RETURN_IF_CUDA_ERROR(linear_in_splits(
        product(inner_, frames, w.down, nullptr, width, w.inner, nullptr), signal.splits));
    signal.bias = w.down_bias;
  }
  return cudaSuccess;
}

// Codes to the mel spectrogram, in other_.
cudaError_t Runner::dvae(int frames) {
  RETURN_IF_CUDA_ERROR(dequantize(frames));
  RETURN_IF_CUDA_ERROR(conv(spec_.conv_in, frames, x_, true, inner_));
  RETURN_IF_CUDA_ERROR(conv(spec_.conv_in2, frames, inner_, false, x_));
  const int width = spec_.conv_in2.out;
  Signal signal = {x_, 0, nullptr};
  RETURN_IF_CUDA_ERROR(blocks(spec_.dvae, frames, width, signal));
  MixArgs last = {};
  last.frames = frames;
  last.width = width;
  last.y = normed_;
  RETURN_IF_CUDA_ERROR(mix(last, signal));
  RETURN_IF_CUDA_ERROR(conv(spec_.conv_out, frames, normed_, false, inner_));
  return conv(spec_.out_conv, frames, inner_, false, other_);
}

// The mel spectrogram in other_ to PCM.
cudaError_t Runner::vocos(int frames) {
  const ConvWeights& embed = spec_.embed;
  const int width = embed.out, n_fft = spec_.n_fft;
  Signal signal = {nullptr, 0, embed.bias};
  const LinearArgs args = {other_,
                           embed.in,
                           (embed.kernel - 1) / 2,
                           frames * embed.in,
                           embed.weight,
                           nullptr,
                           false,
                           nullptr,
                           frames,
                           width,
                           embed.kernel * embed.in};
  RETURN_IF_CUDA_ERROR(linear_in_splits(args, signal.splits));
  MixArgs norm = {};
  norm.norm = spec_.norm;
  norm.norm_bias = spec_.norm_bias;
  norm.frames = frames;
  norm.width = width;
  norm.y = x_;
  RETURN_IF_CUDA_ERROR(mix(norm, signal));
  signal = {x_, 0, nullptr};
  RETURN_IF_CUDA_ERROR(blocks(spec_.vocos, frames, width, signal));
  norm.norm = spec_.final_norm;
  norm.norm_bias = spec_.final_norm_bias;
  norm.y = normed_;
  RETURN_IF_CUDA_ERROR(mix(norm, signal));

  int splits = 0;
  RETURN_IF_CUDA_ERROR(linear_in_splits(
      product(normed_, frames, spec_.out, nullptr, n_fft + 2, width, nullptr), splits));
  RETURN_IF_CUDA_ERROR(
      launch_plain(spectrum_kernel, frames, 256,
                   SpectrumArgs{parts_, splits, spec_.out_bias, x_, frames, n_fft}));
  RETURN_IF_CUDA_ERROR(linear_in_splits(
      product(x_, frames, spec_.synthesis, nullptr, n_fft, n_fft, nullptr), splits));
  return launch_plain(
      overlap_add_kernel, divide_up(frames * spec_.hop, 256), 256,
      OverlapAddArgs{parts_, splits, spec_.window, pcm_.as<float>(), frames, n_fft, spec_.hop});
}

cudaError_t Runner::enqueue(int rows) {
  const int frames = rows * groups();
  RETURN_IF_CUDA_ERROR(dvae(frames));
  return vocos(frames);
}

Result<void> Runner::decode(std::span<const int32_t> codes, std::span<float> pcm) {
  const size_t books = static_cast<size_t>(groups()) * DequantizeArgs::kSteps;
  const size_t rows = codes.size() / books;
  const size_t samples = rows * static_cast<size_t>(groups() * spec_.hop);
  if (rows < 1 || codes.size() % books != 0 || codes.size_bytes() > codes_.size() ||
      pcm.size() != samples) {
    return Error{
        ErrorCode::kFailed, "the vocoder was given a window of another size",
        std::to_string(codes.size()) + " codes, " + std::to_string(pcm.size()) + " samples"};
  }
  std::memcpy(codes_.as<void>(), codes.data(), codes.size_bytes());
  cudaError_t error =
      graphs_.empty() ? enqueue(static_cast<int>(rows)) : graphs_[rows - 1].launch(stream_);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
  if (error != cudaSuccess) return cuda_error(error, "the vocoder");
  std::memcpy(pcm.data(), pcm_.as<float>(), pcm.size_bytes());
  return {};
}

}  // namespace

Result<std::unique_ptr<VocoderRunner>> new_vocoder_runner(const VocoderRunnerSpec& spec) {
  if (const char* const reason = unsupported(spec))
    return Error{ErrorCode::kSettings, "the vocoder's kernels do not fit this model", reason};
  auto runner = std::make_unique<Runner>(spec);
  RETURN_IF_ERROR(check(runner->init(), "preparing the vocoder"));
  return std::unique_ptr<VocoderRunner>(std::move(runner));
}

}  // namespace minicpmo::cuda
