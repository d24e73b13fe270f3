// Kernels of the vocoder's runner, all in float32. Signals are time-major (frames, channels).
#pragma once

#include "cuda/device.cuh"

namespace minicpmo::cuda {

// 16 bytes from global to shared memory, or zeros; `from` has to be readable either way.
__device__ __forceinline__ void copy_or_clear(float4* to, const float4* from, bool copy) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from),
                 "r"(copy ? 16 : 0)
               : "memory");
#else
  *to = copy ? *from : float4{0, 0, 0, 0};
#endif
}

// Ends a group of copies ...
__device__ __forceinline__ void end_of_group() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// ... all but the last kLeft of which have come after this, for this thread.
template <int kLeft>
__device__ __forceinline__ void wait_for_groups() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
#endif
}

__device__ __forceinline__ float dot4(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ void add4(float4& sum, const float4& v) {
  sum.x += v.x;
  sum.y += v.y;
  sum.z += v.z;
  sum.w += v.w;
}

// --- Codes to the decoder's input

struct DequantizeArgs {
  static constexpr int kGroups = 4, kDigits = 4, kSteps = 2, kLevels = 5;
  const int32_t* codes;           // (rows, kSteps * groups), in pinned host memory
  const float4* weight[kGroups];  // (latent, kDigits)
  const float* bias[kGroups];     // (latent)
  int groups, latent;
  float* y;  // (rows * groups, latent): the groups take turns in time
};

// One block for each frame. Formulas: Dvae::dequantize.
__global__ void __launch_bounds__(128) dequantize_kernel(DequantizeArgs args) {
  let_next_start();
  const int frame = blockIdx.x, group = frame % args.groups;
  const int32_t* const codes = args.codes + frame * DequantizeArgs::kSteps;
  float z[DequantizeArgs::kDigits] = {0, 0, 0, 0};
  float scale = 0.5f;
  for (int step = 0; step < DequantizeArgs::kSteps; ++step, scale /= DequantizeArgs::kLevels - 1) {
    int code = codes[step];
    for (float& digit : z) {
      digit +=
          scale * static_cast<float>(code % DequantizeArgs::kLevels - DequantizeArgs::kLevels / 2);
      code /= DequantizeArgs::kLevels;
    }
  }
  wait_for_previous();
  const float4 digits = make_float4(z[0], z[1], z[2], z[3]);
  for (int i = threadIdx.x; i < args.latent; i += blockDim.x) {
    args.y[frame * args.latent + i] = dot4(args.weight[group][i], digits, args.bias[group][i]);
  }
}

// --- Products

// y[r][n] = sum over k < inputs of x[(r - padding) * stride + k] weight[n][k]. With stride = inputs
// and no padding this is a matrix product; with inputs = kernel * stride it is a convolution over
// time, whose windows overlap in memory. x is zero outside [0, x_size).
struct LinearArgs {
  const float* x;
  int stride, padding, x_size;
  const float* weight;  // (outputs, inputs)
  const float* bias;    // (outputs) or null; not with several splits
  bool gelu;            // of the result; not with several splits
  float* y;             // (splits, rows, outputs): each the sum over its part of the inputs
  int rows, outputs, inputs;
};

// A block computes a tile of y and each of its warps all of the tile, from every eighth piece of
// the inputs: warps need not wait for each other until they add up their sums, and a window's few
// tiles occupy whole multiprocessors. A lane holds kRows x kColumns sums.
template <int kLaneRows, int kLaneColumns>
struct LinearTile {
  static constexpr int kWarps = 8, kRows = 4 * kLaneRows, kColumns = 8 * kLaneColumns;
  static constexpr int kDepth = 8;   // inputs of a piece: 2 vectors of 4, a sector of each row
  static constexpr int kStages = 4;  // pieces of a warp in shared memory: one in use, others on
                                     // their way
  static constexpr int kStageVectors = (kRows + kColumns) * kDepth / 4;
  static constexpr int kSumStride = kColumns + 8;  // 4 rows of 8 columns are in different banks
  static constexpr size_t kRing = kWarps * kStages * kStageVectors * sizeof(float4);
  static constexpr size_t kSums = kWarps * kRows * kSumStride * sizeof(float);
  static constexpr size_t kShared = kRing > kSums ? kRing : kSums;

  // Where vector `half` of a row lies in a piece: 8 rows' vectors are in different banks.
  static __device__ __forceinline__ int place(int row, int half) {
    return 2 * row + (half ^ ((row >> 2) & 1));
  }

  static __device__ __forceinline__ void fetch_x(const LinearArgs& args, int row0, int k,
                                                 float4* piece) {
    const int lane = threadIdx.x % 32, half = lane % 2;
#pragma unroll
    for (int r = lane / 2; r < kRows; r += 16) {
      const int column = k + 4 * half;
      const int at = (row0 + r - args.padding) * args.stride + column;
      const bool inside = column < args.inputs && at >= 0 && at < args.x_size;
      copy_or_clear(piece + place(r, half),
                    reinterpret_cast<const float4*>(args.x + (inside ? at : 0)), inside);
    }
  }

  static __device__ __forceinline__ void fetch_weight(const LinearArgs& args, int column0, int k,
                                                      float4* piece) {
    const int lane = threadIdx.x % 32, half = lane % 2;
#pragma unroll
    for (int n = lane / 2; n < kColumns; n += 16) {
      const int column = k + 4 * half;
      const bool inside = column < args.inputs && column0 + n < args.outputs;
      const int64_t at = inside ? int64_t{column0 + n} * args.inputs + column : 0;
      copy_or_clear(piece + place(kRows + n, half),
                    reinterpret_cast<const float4*>(args.weight + at), inside);
    }
  }

  static __device__ __forceinline__ void multiply(const float4* piece,
                                                  float (&sums)[kLaneRows][kLaneColumns]) {
    const int lane = threadIdx.x % 32, row = lane / 8, column = lane % 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 x[kLaneRows], w[kLaneColumns];
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) x[i] = piece[place(row + 4 * i, half)];
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) w[j] = piece[place(kRows + column + 8 * j, half)];
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) sums[i][j] = dot4(x[i], w[j], sums[i][j]);
      }
    }
  }
};

// grid: (tiles of columns, tiles of rows * splits).
template <int kLaneRows, int kLaneColumns>
__global__ void __launch_bounds__(256, 2) linear_kernel(LinearArgs args) {
  using Tile = LinearTile<kLaneRows, kLaneColumns>;
  let_next_start();
  const int row_tiles = (args.rows + Tile::kRows - 1) / Tile::kRows;
  const int splits = gridDim.y / row_tiles, split = blockIdx.y / row_tiles;
  const int row0 = blockIdx.y % row_tiles * Tile::kRows, column0 = blockIdx.x * Tile::kColumns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pieces = (args.inputs + Tile::kDepth - 1) / Tile::kDepth;
  const int first = pieces * split / splits + warp, end = pieces * (split + 1) / splits;
  float4* const ring = launched_shared<float4>() + warp * Tile::kStages * Tile::kStageVectors;
  const auto stage = [&](int i) { return ring + i % Tile::kStages * Tile::kStageVectors; };
  const auto begin = [&](int i) { return (first + i * Tile::kWarps) * Tile::kDepth; };
  const int count = max(0, (end - first + Tile::kWarps - 1) / Tile::kWarps);

#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < count) Tile::fetch_weight(args, column0, begin(i), stage(i));
  }
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < count) Tile::fetch_x(args, row0, begin(i), stage(i));
    end_of_group();
  }
  float sums[kLaneRows][kLaneColumns] = {};
  for (int i = 0; i < count; ++i) {
    wait_for_groups<Tile::kStages - 2>();
    __syncwarp();  // the piece has come for all lanes, and all are done with the one before
    const int next = i + Tile::kStages - 1;
    if (next < count) {
      Tile::fetch_weight(args, column0, begin(next), stage(next));
      Tile::fetch_x(args, row0, begin(next), stage(next));
    }
    end_of_group();
    Tile::multiply(stage(i), sums);
  }

  __syncthreads();  // the warps' sums take the place of the pieces
  float* const shared = launched_shared<float>();
#pragma unroll
  for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) {
      const int row = warp * Tile::kRows + lane / 8 + 4 * i;
      shared[row * Tile::kSumStride + lane % 8 + 8 * j] = sums[i][j];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::kRows * Tile::kColumns; i += Tile::kWarps * 32) {
    const int r = i / Tile::kColumns, c = i % Tile::kColumns;
    const int row = row0 + r, column = column0 + c;
    if (row >= args.rows || column >= args.outputs) continue;
    float sum = args.bias != nullptr ? args.bias[column] : 0;
#pragma unroll
    for (int w = 0; w < Tile::kWarps; ++w)
      sum += shared[(w * Tile::kRows + r) * Tile::kSumStride + c];
    if (args.gelu) sum = gelu(sum);
    args.y[(int64_t{split} * args.rows + row) * args.outputs + column] = sum;
  }
}

// --- Sums, depthwise convolution, layer normalisation

// A signal that is not yet added up: x (or nothing) + bias (or nothing) + the splits of a product.
struct SumArgs {
  const float* x;      // (frames, width) or null
  const float* parts;  // (splits, frames, width)
  int splits;
  const float* bias;  // (width) or null
};

struct MixArgs {
  static constexpr int kTaps = 7, kMaxWidth = 512;
  SumArgs from;
  float* sum;  // (frames, width), where the sum is kept; null: nowhere. Not one of `from`
  const float *taps, *taps_bias;  // (kTaps, width), (width); null: no convolution
  int dilation;
  const float *norm, *norm_bias;  // (width); null: no normalisation
  float* y;                       // (frames, width) or null
  int frames, width;
};

__device__ __forceinline__ float4 load4(const float* p, int channel) {
  return *reinterpret_cast<const float4*>(p + channel);
}

// The sum at a frame; zero outside the signal.
__device__ __forceinline__ float4 load_sum(const SumArgs& from, int frame, int frames, int width,
                                           int channel) {
  if (frame < 0 || frame >= frames) return make_float4(0, 0, 0, 0);
  const int at = frame * width + channel;
  float4 sum = from.bias != nullptr ? load4(from.bias, channel) : make_float4(0, 0, 0, 0);
  if (from.x != nullptr) add4(sum, __ldcg(reinterpret_cast<const float4*>(from.x + at)));
#pragma unroll 4
  for (int s = 0; s < from.splits; ++s) {
    const float* const part = from.parts + int64_t{s} * frames * width;
    add4(sum, __ldcg(reinterpret_cast<const float4*>(part + at)));
  }
  return sum;
}

// Threads that hold no channels (`idle`) take part in the barriers only.
__device__ __forceinline__ float4 normalise(const MixArgs& args, int channel, bool idle, float4 v) {
  __shared__ float scratch[32];
  const int warps = blockDim.x / 32;
  const float4 gain = load4(args.norm, channel), bias = load4(args.norm_bias, channel);
  const float width = static_cast<float>(args.width);
  const float mean = block_sum(idle ? 0 : v.x + v.y + v.z + v.w, scratch, warps) / width;
  v = make_float4(v.x - mean, v.y - mean, v.z - mean, v.w - mean);
  const float variance = block_sum(idle ? 0 : dot4(v, v, 0), scratch, warps) / width;
  const float scale = 1 / sqrtf(variance + 1e-6f);
  return make_float4(fmaf(v.x * scale, gain.x, bias.x), fmaf(v.y * scale, gain.y, bias.y),
                     fmaf(v.z * scale, gain.z, bias.z), fmaf(v.w * scale, gain.w, bias.w));
}

// One block for each frame; one thread for 4 channels of a tap (or of the frame, without taps). The
// splits of a frame are added up again by each block whose taps reach it, which costs less than a
// kernel of its own for it.
__global__ void __launch_bounds__(MixArgs::kTaps* MixArgs::kMaxWidth / 4) mix_kernel(MixArgs args) {
  __shared__ float4 products[MixArgs::kTaps * MixArgs::kMaxWidth / 4];
  let_next_start();
  const int vectors = args.width / 4, tap = threadIdx.x / vectors;
  const int channel = 4 * (threadIdx.x % vectors);
  const bool convolve = args.taps != nullptr, idle = tap > 0;
  const int shift = convolve ? tap - MixArgs::kTaps / 2 : 0;
  const float4 factor = convolve ? load4(args.taps + tap * args.width, channel) : float4();
  wait_for_previous();
  float4 v =
      load_sum(args.from, blockIdx.x + shift * args.dilation, args.frames, args.width, channel);
  const int at = blockIdx.x * args.width + channel;
  if (args.sum != nullptr && shift == 0) *reinterpret_cast<float4*>(args.sum + at) = v;
  if (convolve) {
    products[threadIdx.x] =
        make_float4(v.x * factor.x, v.y * factor.y, v.z * factor.z, v.w * factor.w);
    __syncthreads();
    v = load4(args.taps_bias, channel);
    for (int k = 0; k < MixArgs::kTaps && !idle; ++k) add4(v, products[k * vectors + channel / 4]);
  }
  if (args.norm != nullptr) v = normalise(args, channel, idle, v);
  if (args.y != nullptr && !idle) *reinterpret_cast<float4*>(args.y + at) = v;
}

// --- Inverse short-time Fourier transform

__device__ __forceinline__ float sum_of_splits(const float* parts, int splits, int size, int at) {
  float sum = 0;
  for (int s = 0; s < splits; ++s) sum += __ldcg(parts + int64_t{s} * size + at);
  return sum;
}

struct SpectrumArgs {
  const float* head;  // (splits, frames, n_fft + 2): log-magnitudes, then phases
  int splits;
  const float* bias;  // (n_fft + 2)
  float* y;           // (frames, n_fft): real parts, then the imaginary parts that matter
  int frames, n_fft;
};

// One block for each frame.
__global__ void __launch_bounds__(256) spectrum_kernel(SpectrumArgs args) {
  constexpr float kMaxMagnitude = 100;
  let_next_start();
  const int bins = args.n_fft / 2 + 1, frame = blockIdx.x, width = args.n_fft + 2;
  float* const y = args.y + frame * args.n_fft;
  wait_for_previous();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) {
    const auto head = [&](int i) {
      return args.bias[i] +
             sum_of_splits(args.head, args.splits, args.frames * width, frame * width + i);
    };
    const float magnitude = fminf(expf(head(b)), kMaxMagnitude), phase = head(bins + b);
    y[b] = magnitude * cosf(phase);
    if (b > 0 && b < bins - 1) y[bins + b - 1] = magnitude * sinf(phase);
  }
}

struct OverlapAddArgs {
  const float* windowed;  // (splits, frames, n_fft)
  int splits;
  const float* window;  // (n_fft)
  float* pcm;           // (frames * hop), in pinned host memory
  int frames, n_fft, hop;
};

__global__ void __launch_bounds__(256) overlap_add_kernel(OverlapAddArgs args) {
  wait_for_previous();
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= args.frames * args.hop) return;
  const int at = sample + (args.n_fft - args.hop) / 2;  // before the ends are trimmed
  const int first = max(0, (at - args.n_fft) / args.hop + (at >= args.n_fft ? 1 : 0));
  const int last = min(args.frames - 1, at / args.hop);
  float sum = 0, envelope = 0;
  for (int frame = first; frame <= last; ++frame) {
    const int i = at - frame * args.hop;
    const float w = args.window[i];
    sum +=
        sum_of_splits(args.windowed, args.splits, args.frames * args.n_fft, frame * args.n_fft + i);
    envelope = fmaf(w, w, envelope);
  }
  args.pcm[sample] = sum / fmaxf(envelope, 1e-11f);
}

}  // namespace minicpmo::cuda
