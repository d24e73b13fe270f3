#include "cuda/decode.h"

#include <algorithm>

#include "cuda/attention.cuh"
#include "cuda/gemv.cuh"
#include "cuda/launch.cuh"
#include "cuda/memory.h"
#include "cuda/sampling.cuh"

namespace minicpmo::cuda {
namespace {

constexpr size_t kAlign = 256;

// A row of a short or middling input is one batch, a long one several. The shapes are the best ones
// of tests/cuda/gemv_tuning.cu on an H100 that leave room for the next kernel beside them.
constexpr int kShortChunks = 3, kMiddleChunks = 12;

template <Epilogue kEpilogue>
cudaError_t run_gemv(const GemvArgs& args, int processors, bool overlap, cudaStream_t stream) {
  constexpr bool kGate = kEpilogue == Epilogue::kGate;
  constexpr bool kAdd = kEpilogue == Epilogue::kAdd;
  if (args.k / 8 <= kShortChunks * 32) {
    if constexpr (kAdd) {
      return launch_gemv<kEpilogue, 2, kShortChunks, 256, 3>(args, 4 * processors, overlap, stream);
    } else {
      return launch_gemv<kEpilogue, 2, kShortChunks, 512, 2>(args, 2 * processors, overlap, stream);
    }
  }
  if constexpr (kAdd) {
    if (args.k / 8 <= kMiddleChunks * 32) {
      return launch_gemv<kEpilogue, 1, kMiddleChunks, 512, 1>(args, processors, overlap, stream);
    }
  }
  if constexpr (kGate) {
    return launch_gemv<kEpilogue, 2, 4, 512, 2>(args, processors, overlap, stream);
  } else if constexpr (kAdd) {
    return launch_gemv<kEpilogue, 1, 7, 512, 2>(args, processors, overlap, stream);
  } else {
    return launch_gemv<kEpilogue, 1, 14, 384, 2>(args, processors, overlap, stream);
  }
}

__global__ void __launch_bounds__(1024)
    embed_kernel(const uint16_t* embedding, const int32_t* token, int hidden, float* x) {
  let_next_start();
  wait_for_previous();
  const int64_t row = __ldcg(token);
  for (int i = threadIdx.x; i < hidden; i += blockDim.x)
    x[i] = widen(__ldg(embedding + row * hidden + i));
}

__global__ void advance_kernel(DecodeState* state) {
  let_next_start();
  wait_for_previous();
  state->position = __ldcg(&state->position) + 1;
}

template <int kHeadDim, int kGroup>
cudaError_t launch_attention(const AttentionArgs& args, int splits, bool overlap,
                             cudaStream_t stream) {
  return launch(attention_kernel<kHeadDim, kGroup>, dim3(splits, args.kv_heads),
                kAttentionWarps * 32, 0, stream, overlap, args);
}

using LaunchAttention = cudaError_t (*)(const AttentionArgs&, int, bool, cudaStream_t);

LaunchAttention find_attention(const DecoderShape& shape) {
  const int group = shape.kv_heads > 0 ? shape.heads / shape.kv_heads : 0;
  if (shape.head_dim == 64 && group == 1) return launch_attention<64, 1>;
  if (shape.head_dim == 64 && group == 2) return launch_attention<64, 2>;
  if (shape.head_dim == 128 && group == 4) return launch_attention<128, 4>;
  if (shape.head_dim == 128 && group == 7) return launch_attention<128, 7>;
  return nullptr;
}

}  // namespace

const char* DecodeStep::unsupported(const DecoderShape& shape) {
  if (shape.layers <= 0 || shape.heads <= 0 || shape.kv_heads <= 0 ||
      shape.heads % shape.kv_heads) {
    return "the query heads are not a multiple of the key heads";
  }
  if (find_attention(shape) == nullptr) {
    return "no kernel for this head size and number of query heads per key head";
  }
  if (shape.hidden <= 0 || shape.hidden % 8 || shape.ffn <= 0 || shape.ffn % 8) {
    return "the widths are not multiples of 8";
  }
  return nullptr;
}

DecodeStep::~DecodeStep() {
  if (memory_ == nullptr) return;
  const std::lock_guard lock(capture_mutex());
  cudaFree(memory_);
}

cudaError_t DecodeStep::init(const DecoderShape& shape, const DecoderWeights& weights,
                             bool overlap) {
  if (memory_ != nullptr || unsupported(shape) != nullptr || weights.capacity <= 0 ||
      weights.head_rows <= 0 || static_cast<int>(weights.layers.size()) != shape.layers) {
    return cudaErrorInvalidValue;
  }
  int device, major;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device));
  shape_ = shape;
  weights_ = weights;
  overlap_ = overlap && major >= 9;
  splits_ = std::clamp(processors_ / shape.kv_heads, 1, kMostSplits);
  const size_t group = shape.heads / shape.kv_heads, wide = shape.heads * shape.head_dim;
  const size_t floats[] = {static_cast<size_t>(shape.hidden),
                           wide + 2 * shape.kv_heads * shape.head_dim,
                           wide,
                           static_cast<size_t>(shape.ffn),
                           static_cast<size_t>(shape.hidden),
                           static_cast<size_t>(std::max(weights.head_rows, 1)),
                           shape.kv_heads * splits_ * group * (shape.head_dim + 2),
                           static_cast<size_t>(shape.kv_heads)};
  size_t offset = 0, offsets[8];
  for (int i = 0; i < 8; ++i) {
    offsets[i] = offset;
    offset += (floats[i] * sizeof(float) + kAlign - 1) / kAlign * kAlign;
  }
  RETURN_IF_CUDA_ERROR(cudaMalloc(&memory_, offset));
  float** const parts[] = {&x_, &qkv_, &attended_, &inner_, &hidden_, &logits_, &partial_};
  for (int i = 0; i < 7; ++i) {
    *parts[i] = reinterpret_cast<float*>(static_cast<char*>(memory_) + offsets[i]);
  }
  arrived_ = reinterpret_cast<uint32_t*>(static_cast<char*>(memory_) + offsets[7]);
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(memory_, 0, offset, cudaStreamPerThread));
  return cudaStreamSynchronize(cudaStreamPerThread);
}

cudaError_t DecodeStep::run_qkv(int layer, cudaStream_t stream) {
  const LayerWeights& w = weights_.layers[layer];
  const int rows = (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim;
  return run_gemv<Epilogue::kStore>(
      {reinterpret_cast<const uint4*>(w.qkv), w.qkv_bias, w.input_norm, x_, qkv_, nullptr, rows,
       shape_.hidden, shape_.norm_eps},
      processors_, overlap_, stream);
}

cudaError_t DecodeStep::run_attention(int layer, const DecodeState* state, cudaStream_t stream) {
  const LayerWeights& w = weights_.layers[layer];
  const AttentionArgs args{
      qkv_,      w.keys,   w.values, weights_.rope_cos, weights_.rope_sin, state,
      attended_, partial_, arrived_, weights_.capacity, shape_.kv_heads};
  return find_attention(shape_)(args, splits_, overlap_, stream);
}

cudaError_t DecodeStep::run_o(int layer, cudaStream_t stream) {
  return run_gemv<Epilogue::kAdd>(
      {reinterpret_cast<const uint4*>(weights_.layers[layer].o), nullptr, nullptr, attended_, x_,
       nullptr, shape_.hidden, shape_.heads * shape_.head_dim, 0},
      processors_, overlap_, stream);
}

cudaError_t DecodeStep::run_gate_up(int layer, cudaStream_t stream) {
  const LayerWeights& w = weights_.layers[layer];
  return run_gemv<Epilogue::kGate>(
      {reinterpret_cast<const uint4*>(w.gate_up), nullptr, w.post_norm, x_, inner_, nullptr,
       shape_.ffn, shape_.hidden, shape_.norm_eps},
      processors_, overlap_, stream);
}

cudaError_t DecodeStep::run_down(int layer, cudaStream_t stream) {
  return run_gemv<Epilogue::kAdd>(
      {reinterpret_cast<const uint4*>(weights_.layers[layer].down), nullptr, nullptr, inner_, x_,
       nullptr, shape_.hidden, shape_.ffn, 0},
      processors_, overlap_, stream);
}

cudaError_t DecodeStep::run_head(cudaStream_t stream) {
  return run_gemv<Epilogue::kStore>(
      {reinterpret_cast<const uint4*>(weights_.head), nullptr, weights_.final_norm, x_, logits_,
       hidden_, weights_.head_rows, shape_.hidden, shape_.norm_eps},
      processors_, overlap_, stream);
}

cudaError_t DecodeStep::step(const DecodeState* state, cudaStream_t stream) {
  for (int i = 0; i < shape_.layers; ++i) {
    RETURN_IF_CUDA_ERROR(run_qkv(i, stream));
    RETURN_IF_CUDA_ERROR(run_attention(i, state, stream));
    RETURN_IF_CUDA_ERROR(run_o(i, stream));
    RETURN_IF_CUDA_ERROR(run_gate_up(i, stream));
    RETURN_IF_CUDA_ERROR(run_down(i, stream));
  }
  return run_head(stream);
}

cudaError_t DecodeStep::token_step(const bfloat16_bits* embedding, const int32_t* token,
                                   DecodeState* state, cudaStream_t stream) {
  RETURN_IF_CUDA_ERROR(launch(embed_kernel, dim3(1), 1024, 0, stream, overlap_, embedding, token,
                              shape_.hidden, x_));
  RETURN_IF_CUDA_ERROR(step(state, stream));
  return launch(advance_kernel, dim3(1), 1, 0, stream, overlap_, state);
}

cudaError_t DecodeStep::speech_step(const SpeechCodes& codes, SpeechState* state,
                                    cudaStream_t stream) {
  RETURN_IF_CUDA_ERROR(step(&state->decode, stream));
  return draw_codes(codes, state, stream);
}

cudaError_t DecodeStep::draw_codes(const SpeechCodes& codes, SpeechState* state,
                                   cudaStream_t stream) {
  if (codes.tokens < 1 || codes.tokens > kMaxTokens ||
      codes.tokens * kSpeechBooks != weights_.head_rows) {
    return cudaErrorInvalidValue;
  }
  constexpr size_t kShared = sizeof(DrawShared);
  RETURN_IF_CUDA_ERROR(allow_shared(draw_codes_kernel, kShared));
  const DrawArgs args{logits_,       codes.embedding,  state, x_, codes.tokens,
                      shape_.hidden, weights_.capacity};
  return launch(draw_codes_kernel, dim3(1), kDrawThreads, kShared, stream, overlap_, args);
}

}  // namespace minicpmo::cuda
