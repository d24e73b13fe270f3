// Times the matrix-vector kernel in several shapes (rows and vectors in flight, threads, blocks of
// a multiprocessor) on a decoder's matrices, to choose the ones in elements/cuda/decode.cu; and the
// speech model's layers as they follow each other, with one product's shape changed at a time.
// Usage: gemv_tuning [layers]: only the last. Exits with 77 without a GPU.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cuda/launch.cuh"
#include "random_model.cuh"
#include "timer.cuh"

namespace minicpmo::cuda::test {
namespace {

struct Matrix {
  const char* name;
  std::vector<const bfloat16_bits*> weights;
  const bfloat16_bits* norm;
  int rows, k;
};

int processors = 0;
Timer* timer = nullptr;
float *input, *output;
constexpr int kOutputs = 65536;

// Median us of what `enqueue` puts into a graph, in three launches after each other.
template <typename Enqueue>
double time_graph(Enqueue enqueue) {
  const auto clear = [] { CHECK(cudaMemset(output, 0, kOutputs * sizeof(float))); };
  return timer->median(11, 3, clear, captured(timer->stream, enqueue));
}

// A shape for a product: rows and vectors in flight, threads, blocks of a multiprocessor that the
// registers must allow.
template <int kRows, int kChunks, int kThreads, int kBlocks>
struct Shape {
  template <Epilogue kEpilogue>
  static void enqueue(const bfloat16_bits* weight, const bfloat16_bits* norm, int rows, int k,
                      int blocks = kBlocks, bool overlap = true) {
    const GemvArgs args{reinterpret_cast<const uint4*>(weight),
                        nullptr,
                        norm,
                        input,
                        output,
                        nullptr,
                        rows,
                        k,
                        1e-6F};
    CHECK((launch_gemv<kEpilogue, kRows, kChunks, kThreads, kBlocks>(args, blocks * processors,
                                                                     overlap, timer->stream)));
  }
};

// All matrices of a kind in one graph; median us of one product.
template <Epilogue kEpilogue, int kRows, int kChunks, int kThreads, int kBlocks>
void time_shape(const Matrix& m, int blocks, bool overlap) {
  const auto enqueue = [&] {
    for (const bfloat16_bits* weight : m.weights) {
      Shape<kRows, kChunks, kThreads, kBlocks>::template enqueue<kEpilogue>(weight, m.norm, m.rows,
                                                                            m.k, blocks, overlap);
    }
  };
  const double us = time_graph(enqueue) / m.weights.size(),
               bytes = 2.0 * m.rows * m.k * (kEpilogue == Epilogue::kGate ? 2 : 1);
  std::printf(
      "%-12s rows %d, vectors %2d, threads %3d, blocks/SM %d, overlap %d: %7.2f us, %5.0f GB/s\n",
      m.name, kRows, kChunks, kThreads, blocks, overlap, us, bytes / us / 1e3);
}

template <Epilogue kEpilogue>
void tune_large(const Matrix& m) {
  for (const bool overlap : {false, true}) {
    if constexpr (kEpilogue == Epilogue::kGate) {
      time_shape<kEpilogue, 2, 7, 384, 2>(m, 1, overlap);
      time_shape<kEpilogue, 2, 7, 384, 2>(m, 2, overlap);
      time_shape<kEpilogue, 2, 7, 256, 3>(m, 1, overlap);
      time_shape<kEpilogue, 2, 7, 256, 3>(m, 3, overlap);
      time_shape<kEpilogue, 2, 4, 512, 2>(m, 1, overlap);
      time_shape<kEpilogue, 4, 7, 256, 1>(m, 1, overlap);
    } else {
      time_shape<kEpilogue, 1, 14, 384, 2>(m, 1, overlap);
      time_shape<kEpilogue, 1, 14, 384, 2>(m, 2, overlap);
      time_shape<kEpilogue, 1, 14, 256, 3>(m, 1, overlap);
      time_shape<kEpilogue, 1, 7, 512, 2>(m, 1, overlap);
      time_shape<kEpilogue, 1, 7, 512, 2>(m, 2, overlap);
      time_shape<kEpilogue, 2, 7, 384, 2>(m, 1, overlap);
    }
  }
}

template <Epilogue kEpilogue>
void tune_small(const Matrix& m) {
  for (const bool overlap : {false, true}) {
    if constexpr (kEpilogue == Epilogue::kGate) {
      time_shape<kEpilogue, 4, 3, 256, 3>(m, 4, overlap);
      time_shape<kEpilogue, 2, 3, 256, 3>(m, 4, overlap);
      time_shape<kEpilogue, 2, 3, 512, 2>(m, 2, overlap);
    } else {
      time_shape<kEpilogue, 1, 3, 256, 3>(m, 4, overlap);
      time_shape<kEpilogue, 2, 3, 256, 3>(m, 4, overlap);
      time_shape<kEpilogue, 2, 3, 128, 3>(m, 8, overlap);
    }
  }
}

void tune(const DecoderShape& shape, bool large) {
  RandomModel model(shape, 8, 8, false, 1e4, 1);
  Matrix qkv{
      "norm + qkv", {}, nullptr, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.hidden};
  Matrix o{"o", {}, nullptr, shape.hidden, shape.heads * shape.head_dim};
  Matrix gate{"norm + gate", {}, nullptr, shape.ffn, shape.hidden},
      down{"down", {}, nullptr, shape.hidden, shape.ffn};
  for (const LayerWeights& w : model.weights.layers) {
    qkv.weights.push_back(w.qkv);
    o.weights.push_back(w.o);
    gate.weights.push_back(w.gate_up);
    down.weights.push_back(w.down);
    qkv.norm = gate.norm = w.input_norm;
  }
  std::printf(
      "hidden %d, %d layers (matrices that fit into L2 together are not read from memory)\n",
      shape.hidden, shape.layers);
  if (large) {
    tune_large<Epilogue::kStore>(qkv);
    tune_large<Epilogue::kAdd>(o);
    tune_large<Epilogue::kGate>(gate);
    tune_large<Epilogue::kAdd>(down);
    return;
  }
  tune_small<Epilogue::kStore>(qkv);
  tune_small<Epilogue::kAdd>(o);
  tune_small<Epilogue::kGate>(gate);
  for (const bool overlap : {false, true}) {
    time_shape<Epilogue::kAdd, 1, 12, 256, 2>(down, 2, overlap);
    time_shape<Epilogue::kAdd, 1, 12, 128, 4>(down, 4, overlap);
    time_shape<Epilogue::kAdd, 1, 6, 256, 2>(down, 2, overlap);
  }
}

// The layers of a step with these shapes, and the attention of `step`.
template <typename Qkv, typename O, typename Gate, typename Down>
void time_layers(const char* name, const RandomModel& model, DecodeStep& step,
                 const DecodeState* state) {
  const DecoderShape& shape = model.shape;
  const int wide = shape.heads * shape.head_dim;
  const int qkv_rows = wide + 2 * shape.kv_heads * shape.head_dim;
  const auto enqueue = [&] {
    for (int i = 0; i < shape.layers; ++i) {
      const LayerWeights& w = model.weights.layers[i];
      Qkv::template enqueue<Epilogue::kStore>(w.qkv, w.input_norm, qkv_rows, shape.hidden);
      CHECK(step.run_attention(i, state, timer->stream));
      O::template enqueue<Epilogue::kAdd>(w.o, nullptr, shape.hidden, wide);
      Gate::template enqueue<Epilogue::kGate>(w.gate_up, w.post_norm, shape.ffn, shape.hidden);
      Down::template enqueue<Epilogue::kAdd>(w.down, nullptr, shape.hidden, shape.ffn);
    }
  };
  std::printf("layers, %-32s %7.2f us\n", name, time_graph(enqueue));
}

void tune_layers() {
  RandomModel model(tts_shape(20), 8, 2048, false, 1e4, 1);
  DecodeStep step;
  CHECK(step.init(model.shape, model.weights, true));
  auto* const state = static_cast<DecodeState*>(model.allocate(sizeof(DecodeState)));
  using Qkv = Shape<2, 3, 512, 2>;  // as in decode.cu
  using O = Shape<2, 3, 256, 3>;
  using Gate = Shape<2, 3, 512, 2>;
  using Down = Shape<1, 12, 512, 1>;
#define TIME(qkv, o, gate, down) \
  time_layers<qkv, o, gate, down>(#qkv " " #o " " #gate " " #down, model, step, state)
  using Qkv288 = Shape<2, 3, 288, 3>;
  using Qkv384 = Shape<2, 3, 384, 2>;
  using Qkv256 = Shape<2, 3, 256, 3>;
  using O192 = Shape<2, 3, 192, 3>;
  using O384 = Shape<1, 3, 384, 2>;
  using O512 = Shape<1, 3, 512, 2>;
  using Gate384 = Shape<4, 3, 384, 2>;
  using Gate512 = Shape<4, 3, 512, 1>;
  using Gate768 = Shape<2, 3, 768, 1>;
  using Gate1024 = Shape<2, 3, 1024, 1>;
  using Down192 = Shape<1, 12, 192, 3>;
  using Down384 = Shape<1, 12, 384, 1>;
  using Down384Two = Shape<1, 12, 384, 2>;
  using Down256 = Shape<1, 12, 256, 2>;
  using DownHalves = Shape<1, 6, 384, 2>;
  for (const int context : {350, 1000}) {
    const int front = speech_visible_front(SpeechState{}, context);
    to_device(state, std::vector<DecodeState>{{context, front, 303}});
    std::printf("speech model, 20 layers, context %d\n", context);
    TIME(Qkv, O, Gate, Down);
    TIME(Qkv288, O, Gate, Down);
    TIME(Qkv384, O, Gate, Down);
    TIME(Qkv256, O, Gate, Down);
    TIME(Qkv, O192, Gate, Down);
    TIME(Qkv, O384, Gate, Down);
    TIME(Qkv, O512, Gate, Down);
    TIME(Qkv, O, Gate384, Down);
    TIME(Qkv, O, Gate512, Down);
    TIME(Qkv, O, Gate768, Down);
    TIME(Qkv, O, Gate1024, Down);
    TIME(Qkv, O, Gate, Down192);
    TIME(Qkv, O, Gate, Down384);
    TIME(Qkv, O, Gate, Down384Two);
    TIME(Qkv, O, Gate, Down256);
    TIME(Qkv, O, Gate, DownHalves);
    TIME(Qkv, O, Gate384, Down384Two);
    TIME(Qkv, O, Gate768, Down192);
    TIME(Qkv288, O, Gate384, Down);
    TIME(Qkv288, O, Gate384, Down384Two);
  }
#undef TIME
}

}  // namespace
}  // namespace minicpmo::cuda::test

int main(int argc, char** argv) {
  using namespace minicpmo::cuda::test;
  if (no_device()) return 77;
  Timer own;
  timer = &own;
  CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  CHECK(cudaMalloc(&input, 65536 * sizeof(float)));
  CHECK(cudaMalloc(&output, kOutputs * sizeof(float)));
  std::vector<float> values(65536);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  to_device(input, values);
  if (argc < 2 || std::strcmp(argv[1], "layers") != 0) {
    tune(tts_shape(20), false);
    tune(llm_shape(28), true);
  }
  tune_layers();
  return 0;
}
