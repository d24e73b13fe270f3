#include "cuda/encoder_runner.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "cuda/blas.h"
#include "cuda/encoder_kernels.cuh"
#include "cuda/error.h"
#include "cuda/event.h"
#include "cuda/graph.h"
#include "cuda/launch.cuh"
#include "cuda/memory.h"

namespace minicpmo::cuda {
namespace {

constexpr const char* kWhat = "the audio encoder";

// Sizes of one allocation, handed out after it is made.
class Arena {
 public:
  template <class T>
  size_t add(size_t count) {
    const size_t at = bytes_;
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

class Runner final : public EncoderRunner {
 public:
  explicit Runner(const EncoderRunnerSpec& spec)
      : spec_(spec),
        stream_(static_cast<cudaStream_t>(spec.options.stream)),
        rows_((spec.max_frames + 1) / 2) {}

  Result<void> prepare() {
    RETURN_IF_ERROR(check(allocate(), kWhat));
    const std::vector<float> silence(static_cast<size_t>(spec_.max_frames * spec_.mel_bins));
    RETURN_IF_ERROR(check(upload(silence, 0), kWhat));
    RETURN_IF_ERROR(check(enqueue(), kWhat));
    if (spec_.options.graphs) {
      RETURN_IF_ERROR(check(graph_.capture(stream_, [this] { return enqueue(); }), kWhat));
    }
    return check(cudaStreamSynchronize(stream_), kWhat);
  }

  Result<void> step(std::span<const float> mel, int cached, bfloat16_bits* embeddings) override {
    const auto frames = static_cast<int>(mel.size()) / spec_.mel_bins;
    if (frames < 1 || frames > spec_.max_frames || cached < 0 ||
        cached + (frames + 1) / 2 > spec_.max_positions) {
      return Error{ErrorCode::kFailed,
                   std::string(kWhat) + ": " + std::to_string(frames) + " mel frames after " +
                       std::to_string(cached) + " positions do not fit",
                   ""};
    }
    RETURN_IF_ERROR(
        check(upload(mel.first(static_cast<size_t>(frames * spec_.mel_bins)), cached), kWhat));
    RETURN_IF_ERROR(check(graph_.captured() ? graph_.launch(stream_) : enqueue(), kWhat));
    return check(finish((frames + 1) / 2 / spec_.pool_step, embeddings), kWhat);
  }

 private:
  static constexpr size_t kHeader = 16;  // EncoderChunk, before the mel

  cudaError_t allocate() {
    const auto rows = static_cast<size_t>(rows_), hidden = static_cast<size_t>(spec_.hidden);
    const auto frames = static_cast<size_t>(spec_.max_frames);
    const auto bins = static_cast<size_t>(spec_.mel_bins);
    const auto projected = static_cast<size_t>(spec_.projected);
    const auto language = static_cast<size_t>(spec_.language);
    const auto ffn = static_cast<size_t>(spec_.ffn);
    const size_t tiles = blocks(spec_.heads);
    const size_t uploaded = kHeader + frames * bins * sizeof(float);
    Arena arena;
    const size_t chunk = arena.add<char>(uploaded);
    const size_t columns1 = arena.add<uint16_t>(frames * 3 * bins);
    const size_t columns2 = arena.add<uint16_t>(rows * 3 * hidden);
    const size_t y = arena.add<float>(
        std::max({frames * hidden, rows * std::max({3 * hidden, ffn, projected, language})}));
    const size_t x = arena.add<float>(rows * hidden);
    const size_t h = arena.add<uint16_t>(rows * hidden);
    const size_t wide = arena.add<uint16_t>(rows * std::max(ffn, projected));
    const size_t partial =
        arena.add<float>(tiles * EncoderAttention::kSplits * EncoderAttention::kQueries *
                         EncoderAttention::kPartial);
    RETURN_IF_CUDA_ERROR(memory_.allocate(arena.bytes()));
    RETURN_IF_CUDA_ERROR(pinned_.allocate(uploaded));
    chunk_ = memory_.as<EncoderChunk>(chunk);
    mel_ = memory_.as<float>(chunk + kHeader);
    columns1_ = memory_.as<uint16_t>(columns1);
    columns2_ = memory_.as<uint16_t>(columns2);
    y_ = memory_.as<float>(y);
    x_ = memory_.as<float>(x);
    h_ = memory_.as<uint16_t>(h);
    wide_ = memory_.as<uint16_t>(wide);
    partial_ = memory_.as<float>(partial);
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(memory_.as<void>(), 0, arena.bytes(), stream_));
    RETURN_IF_CUDA_ERROR(uploaded_.create());
    return blas_.init(stream_);
  }

  // Of the attention, but for the splits.
  size_t blocks(int heads) const {
    return static_cast<size_t>(heads) *
           static_cast<size_t>((rows_ + EncoderAttention::kQueries - 1) /
                               EncoderAttention::kQueries);
  }

  // The one copy, from memory that the copy before may still be reading.
  cudaError_t upload(std::span<const float> mel, int cached) {
    RETURN_IF_CUDA_ERROR(uploaded_.wait());
    EncoderChunk chunk;
    chunk.frames = static_cast<int>(mel.size()) / spec_.mel_bins;
    chunk.cached = cached;
    std::memcpy(pinned_.as<void>(), &chunk, sizeof chunk);
    std::memcpy(pinned_.as<void>(kHeader), mel.data(), mel.size_bytes());
    RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(chunk_, pinned_.as<void>(), kHeader + mel.size_bytes(),
                                         cudaMemcpyHostToDevice, stream_));
    return uploaded_.record(stream_);
  }

  template <typename... Parameters, typename... Arguments>
  cudaError_t run(void (*kernel)(Parameters...), dim3 grid, const Arguments&... arguments) const {
    return launch(kernel, grid, kEncoderThreads, 0, stream_, false, arguments...);
  }

  // Four columns to a thread.
  static dim3 grid(int columns, int rows) {
    constexpr int kColumns = 4 * kEncoderThreads;
    return dim3(static_cast<unsigned>((columns + kColumns - 1) / kColumns),
                static_cast<unsigned>(rows));
  }

  // y (rows, outputs) = input (rows, inputs) weight^T
  cudaError_t multiply(int rows, int outputs, int inputs, uint16_t* input,
                       const bfloat16_bits* weight) {
    const MatrixView x{input, Type::kBFloat16, inputs, 0};
    const MatrixView w{const_cast<bfloat16_bits*>(weight), Type::kBFloat16, inputs, 0};
    return blas_.linear(rows, outputs, inputs, x, w, {y_, Type::kFloat32, outputs, 0});
  }

  template <bool kFirst>
  cudaError_t add_norm(const bfloat16_bits* bias, const bfloat16_bits* weight,
                       const bfloat16_bits* norm_bias) const {
    const EncoderNormArgs args = {y_, bias,         x_,     weight,          norm_bias,
                                  h_, spec_.hidden, chunk_, spec_.positions, spec_.max_positions};
    return launch(add_norm_kernel<kFirst>, dim3(rows_), kEncoderThreads,
                  static_cast<size_t>(spec_.hidden) * sizeof(float), stream_, false, args);
  }

  cudaError_t attention(const EncoderLayerWeights& layer) const {
    const EncoderAttentionArgs args = {
        chunk_, y_,       layer.qkv_bias, layer.keys,  layer.values,
        h_,     partial_, rows_,          spec_.heads, spec_.max_positions};
    const auto tiles = static_cast<unsigned>(blocks(spec_.heads));
    RETURN_IF_CUDA_ERROR(launch(encoder_attention_kernel, dim3(EncoderAttention::kSplits, tiles),
                                EncoderAttention::kThreads, 0, stream_, false, args));
    constexpr int kPairs = EncoderAttention::kQueries * EncoderAttention::kHeadDim / 2;
    return run(encoder_merge_kernel, dim3(kPairs / kEncoderThreads, tiles), args);
  }

  // Mel to x_, and its first norm to h_.
  cudaError_t convolutions() {
    const int hidden = spec_.hidden, bins = spec_.mel_bins, frames = spec_.max_frames;
    RETURN_IF_CUDA_ERROR(run(gather_mel_kernel, dim3(frames), chunk_, mel_, columns1_, bins));
    RETURN_IF_CUDA_ERROR(multiply(frames, hidden, 3 * bins, columns1_, spec_.conv1));
    RETURN_IF_CUDA_ERROR(
        run(gelu_gather_kernel, dim3(3, rows_), chunk_, y_, spec_.conv1_bias, columns2_, hidden));
    RETURN_IF_CUDA_ERROR(multiply(rows_, hidden, 3 * hidden, columns2_, spec_.conv2));
    const EncoderLayerWeights& first = spec_.layers.front();
    return add_norm<true>(spec_.conv2_bias, first.attention_norm, first.attention_norm_bias);
  }

  cudaError_t layer(size_t i) {
    const EncoderLayerWeights& w = spec_.layers[i];
    const int hidden = spec_.hidden, ffn = spec_.ffn;
    RETURN_IF_CUDA_ERROR(multiply(rows_, 3 * hidden, hidden, h_, w.qkv));
    RETURN_IF_CUDA_ERROR(attention(w));
    RETURN_IF_CUDA_ERROR(multiply(rows_, hidden, hidden, h_, w.out));
    RETURN_IF_CUDA_ERROR(add_norm<false>(w.out_bias, w.mlp_norm, w.mlp_norm_bias));
    RETURN_IF_CUDA_ERROR(multiply(rows_, ffn, hidden, h_, w.fc1));
    RETURN_IF_CUDA_ERROR(run(bias_gelu_kernel, grid(ffn, rows_), y_, w.fc1_bias, wide_, ffn));
    RETURN_IF_CUDA_ERROR(multiply(rows_, hidden, ffn, wide_, w.fc2));
    if (i + 1 == spec_.layers.size())
      return add_norm<false>(w.fc2_bias, spec_.norm, spec_.norm_bias);
    const EncoderLayerWeights& next = spec_.layers[i + 1];
    return add_norm<false>(w.fc2_bias, next.attention_norm, next.attention_norm_bias);
  }

  // Averages before the second product, which is linear: half of the work.
  cudaError_t project() {
    const int pooled = rows_ / spec_.pool_step;
    RETURN_IF_CUDA_ERROR(multiply(rows_, spec_.projected, spec_.hidden, h_, spec_.projector1));
    RETURN_IF_CUDA_ERROR(run(relu_pool_kernel, grid(spec_.projected, pooled), y_,
                             spec_.projector1_bias, wide_, spec_.projected, spec_.pool_step));
    return multiply(pooled, spec_.language, spec_.projected, wide_, spec_.projector2);
  }

  cudaError_t enqueue() {
    RETURN_IF_CUDA_ERROR(convolutions());
    for (size_t i = 0; i < spec_.layers.size(); ++i) RETURN_IF_CUDA_ERROR(layer(i));
    return project();
  }

  // Not in the graph: each chunk's result is elsewhere.
  cudaError_t finish(int rows, bfloat16_bits* embeddings) const {
    if (rows < 1) return cudaSuccess;
    return run(bias_kernel, grid(spec_.language, rows), y_, spec_.projector2_bias, embeddings,
               spec_.language);
  }

  const EncoderRunnerSpec spec_;
  const cudaStream_t stream_;
  const int rows_;  // positions of the longest chunk
  DeviceMemory memory_;
  PinnedMemory pinned_;
  Event uploaded_;
  Blas blas_;
  Graph graph_;
  EncoderChunk* chunk_ = nullptr;
  float* mel_ = nullptr;                                // (frames, bins)
  uint16_t *columns1_ = nullptr, *columns2_ = nullptr;  // gathered for the convolutions
  float* y_ = nullptr;                                  // the last product
  float* x_ = nullptr;                                  // the residual stream
  uint16_t* h_ = nullptr;                               // (rows, hidden), input of a product
  uint16_t* wide_ = nullptr;                            // the same, more columns
  float* partial_ = nullptr;
};

// Loads of 16 bytes, and what cuBLAS's tensor-core products take.
bool shapes_fit(const EncoderRunnerSpec& s) {
  const auto eighths = [](int columns) { return columns > 0 && columns % 8 == 0; };
  return s.heads > 0 && s.hidden == s.heads * EncoderAttention::kHeadDim && eighths(s.mel_bins) &&
         eighths(s.ffn) && eighths(s.projected) && eighths(s.language) && s.hidden <= 8192 &&
         !s.layers.empty() && s.pool_step > 0 && (s.max_frames + 1) / 2 >= s.pool_step &&
         (s.max_frames + 1) / 2 <= s.max_positions;
}

}  // namespace

Result<std::unique_ptr<EncoderRunner>> new_encoder_runner(const EncoderRunnerSpec& spec) {
  int major = 0;
  RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, spec.options.device),
            kWhat));
  if (major < 8 || !shapes_fit(spec)) {
    return Error{ErrorCode::kSettings,
                 std::string(kWhat) +
                     ": its kernels need heads of 64 columns and a GPU of compute "
                     "capability 8.0 or later",
                 ""};
  }
  auto runner = std::make_unique<Runner>(spec);
  RETURN_IF_ERROR(runner->prepare());
  return std::unique_ptr<EncoderRunner>(std::move(runner));
}

}  // namespace minicpmo::cuda
