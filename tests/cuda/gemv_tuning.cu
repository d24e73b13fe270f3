// Times the matrix-vector kernel in several shapes (rows and vectors in flight, threads, blocks of
// a multiprocessor) on a decoder's matrices, to choose the ones in elements/cuda/decode.cu. Usage:
// gemv_tuning. Exits with 77 without a GPU.
#include <algorithm>
#include <cstdio>

#include "cuda/launch.cuh"
#include "random_model.cuh"

namespace minicpmo::cuda::test {
namespace {

struct Matrix {
  const char* name;
  std::vector<const bfloat16_bits*> weights;
  const bfloat16_bits* norm;
  int rows, k;
};

int processors = 0;
cudaStream_t stream;
cudaEvent_t begin_event, end_event;
float *input, *output;

// All matrices of a kind in one graph; median us of one product.
template <Epilogue kEpilogue, int kRows, int kChunks, int kThreads, int kBlocks>
void time_shape(const Matrix& m, int blocks, bool overlap) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (const bfloat16_bits* weight : m.weights) {
    const GemvArgs args{reinterpret_cast<const uint4*>(weight),
                        nullptr,
                        m.norm,
                        input,
                        output,
                        nullptr,
                        m.rows,
                        m.k,
                        1e-6F};
    CHECK((launch_gemv<kEpilogue, kRows, kChunks, kThreads, kBlocks>(args, blocks * processors,
                                                                     overlap, stream)));
  }
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<float> times;
  for (int i = 0; i < 14; ++i) {
    CHECK(cudaMemset(output, 0, m.rows * sizeof(float)));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventRecord(begin_event, stream));
    for (int n = 0; n < 3; ++n) CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(end_event, stream));
    CHECK(cudaEventSynchronize(end_event));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin_event, end_event));
    if (i >= 3) times.push_back(ms * 1000 / 3 / m.weights.size());
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  const double us = times[times.size() / 2],
               bytes = 2.0 * m.rows * m.k * (kEpilogue == Epilogue::kGate ? 2 : 1);
  std::printf(
      "%-12s rows %d, vectors %2d, threads %3d, blocks/SM %d, overlap %d: %7.2f us, %5.0f GB/s\n",
      m.name, kRows, kChunks, kThreads, blocks, overlap, us, bytes / us / 1e3);
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
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

}  // namespace
}  // namespace minicpmo::cuda::test

int main() {
  using namespace minicpmo::cuda::test;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: skipped\n");
    return 77;
  }
  CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&begin_event));
  CHECK(cudaEventCreate(&end_event));
  CHECK(cudaMalloc(&input, 65536 * sizeof(float)));
  CHECK(cudaMalloc(&output, 65536 * sizeof(float)));
  std::vector<float> values(65536);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  to_device(input, values);
  tune(tts_shape(20), false);
  tune(llm_shape(28), true);
  return 0;
}
