// Times of the fused decode kernels, beside the bandwidth of a copy and of a plain read in the same
// run. Usage: decode_kernels_bench [llm|tts]. Exits with 77 where there is no CUDA device.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>

#include "cuda/token_sampling.h"
#include "random_model.cuh"
#include "timer.cuh"

namespace minicpmo::cuda::test {
namespace {

double read_bandwidth = 1, copy_bandwidth = 1;  // bytes / us

__global__ void read_all(const uint4* data, size_t count, uint32_t* out) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) {
      v[u] = i + u * stride < count ? __ldcs(data + i + u * stride) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < 8; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678u) *out = sum;  // never, and the compiler does not know
}

void measure_bandwidth(Timer& timer) {
  constexpr size_t kBytes = size_t{2} << 30;
  RandomModel tiny(make_shape(256, 1, 4, 4, 64, 256), 8, 8, false, 1e4, 1);
  auto* const a = tiny.random(kBytes / 2, 0, 1);
  auto* const b = static_cast<uint16_t*>(tiny.allocate(kBytes));
  const double copy = timer.median(
      9, 1, [] {},
      [&] { CHECK(cudaMemcpyAsync(b, a, kBytes, cudaMemcpyDeviceToDevice, timer.stream)); });
  const double read = timer.median(
      9, 1, [] {},
      [&] {
        read_all<<<1056, 512, 0, timer.stream>>>(reinterpret_cast<const uint4*>(a), kBytes / 16,
                                                 reinterpret_cast<uint32_t*>(b));
      });
  copy_bandwidth = 2.0 * kBytes / copy;
  read_bandwidth = kBytes / read;
  std::printf("copy %.0f GB/s (read + written), read %.0f GB/s\n", copy_bandwidth / 1e3,
              read_bandwidth / 1e3);
}

void report(const std::string& what, double us, double bytes) {
  std::printf("%-52s %9.1f us  %6.0f GB/s  %3.0f %% of the copy, %3.0f %% of the read\n",
              what.c_str(), us, bytes / us / 1e3, 100 * bytes / us / copy_bandwidth,
              100 * bytes / us / read_bandwidth);
}

// Each kernel over all layers, one after another. What fits into L2 together is not read from
// memory here (the speech model's q, k, v and o).
void bench_parts(Timer& timer, RandomModel& model, DecodeStep& fused, const DecodeState* state,
                 int position) {
  const auto& s = model.shape;
  const double hidden = s.hidden, q = s.heads * s.head_dim, kv = 2.0 * s.kv_heads * s.head_dim;
  const auto each = [&](const char* name, double bytes, int count,
                        const std::function<void(int)>& body) {
    const Graph graph = captured(timer.stream, [&] {
      for (int i = 0; i < count; ++i) body(i);
    });
    report(std::string("  ") + name + ", one",
           timer.median(
               15, 5, [] {}, graph) /
               count,
           bytes);
  };
  each("norm + qkv", 2 * (q + kv) * hidden, s.layers,
       [&](int i) { CHECK(fused.run_qkv(i, timer.stream)); });
  each("attention", 2 * kv * position, s.layers,
       [&](int i) { CHECK(fused.run_attention(i, state, timer.stream)); });
  each("o + residual", 2 * q * hidden, s.layers,
       [&](int i) { CHECK(fused.run_o(i, timer.stream)); });
  each("norm + gate/up", 4 * hidden * s.ffn, s.layers,
       [&](int i) { CHECK(fused.run_gate_up(i, timer.stream)); });
  each("down + residual", 2 * hidden * s.ffn, s.layers,
       [&](int i) { CHECK(fused.run_down(i, timer.stream)); });
  each("norm + head", 2 * hidden * model.weights.head_rows, 1,
       [&](int) { CHECK(fused.run_head(timer.stream)); });
}

void bench_tokens(Timer& timer) {
  constexpr int kVocabulary = 151700, kPenalised = 400, kDraws = 20;
  RandomModel memory(make_shape(256, 1, 4, 4, 64, 256), 8, 8, false, 1e4, 1);
  TokenSampler sampler;
  CHECK(sampler.init(kVocabulary, 4096, true));
  auto* const logits = static_cast<float*>(memory.allocate(kVocabulary * sizeof(float)));
  auto* const state = static_cast<TokenState*>(memory.allocate(sizeof(TokenState)));
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0, 2.5F);
  std::vector<float> values(kVocabulary);
  for (float& v : values) v = normal(generator);
  to_device(logits, values);
  std::vector<int32_t> ids(kPenalised);
  for (int32_t& id : ids) id = static_cast<int32_t>(generator() % kVocabulary);
  to_device(sampler.penalised(), ids);
  const Graph graph = captured(timer.stream, [&] {
    for (int i = 0; i < kDraws; ++i) CHECK(sampler.draw(logits, state, timer.stream));
  });
  TokenState s;
  s.penalised = kPenalised;
  s.penalty = 1.05F;
  const auto measure = [&](const char* what) {
    const auto reset = [&] { to_device(state, std::vector{s}); };
    std::printf("token from %d logits, %-28s %7.1f us\n", kVocabulary, what,
                timer.median(15, 1, reset, graph) / kDraws);
  };
  measure("the best one:");
  s.temperature = 0.7F;
  s.top_p = 0.8;
  s.top_k = 100;
  measure("top-k 100, top-p 0.8:");
  s.top_k = 1024;
  measure("top-k 1024, top-p 0.8:");
  s.top_k = 0;
  measure("top-p 0.8 of all, flat:");
  s.temperature = 0.3F;
  measure("top-p 0.8 of all, peaked:");
}

void bench_llm(Timer& timer) {
  constexpr int kVocabulary = 151700;
  RandomModel model(llm_shape(28), kVocabulary, 8192, true, 1e6, 1);
  auto* const embedding = model.random(size_t{kVocabulary} * model.shape.hidden, 0, 1);
  auto* const token = static_cast<int32_t*>(model.allocate(4));
  to_device(token, std::vector<int32_t>{1234});
  auto* const state = static_cast<DecodeState*>(model.allocate(sizeof(DecodeState)));
  for (const bool overlap : {false, true}) {
    DecodeStep fused;
    CHECK(fused.init(model.shape, model.weights, overlap));
    const Graph graph = captured(
        timer.stream, [&] { CHECK(fused.token_step(embedding, token, state, timer.stream)); });
    for (const int context : {128, 1024, 4096}) {
      const auto prepare = [&] { to_device(state, std::vector<DecodeState>{{context, 0, 0}}); };
      const double us = timer.median(21, 4, prepare, graph);
      report("LLM step, context " + std::to_string(context) + (overlap ? "" : ", no overlap"), us,
             model.step_bytes() + context * model.row_bytes());
    }
    to_device(state, std::vector<DecodeState>{{1024, 0, 0}});
    bench_parts(timer, model, fused, state, 1024);
  }
}

void bench_tts(Timer& timer) {
  constexpr int kTokens = 626;
  RandomModel model(tts_shape(20), kSpeechBooks * kTokens, 2400, false, 1e4, 1);
  SpeechCodes codes{model.random(size_t{kSpeechBooks} * kTokens * model.shape.hidden, 0, 0.8F),
                    kTokens};
  auto* const state = static_cast<SpeechState*>(model.allocate(sizeof(SpeechState)));
  for (const bool overlap : {false, true}) {
    const std::string suffix = overlap ? "" : ", no overlap";
    DecodeStep fused;
    CHECK(fused.init(model.shape, model.weights, overlap));
    const Graph one =
        captured(timer.stream, [&] { CHECK(fused.speech_step(codes, state, timer.stream)); });
    const Graph chain = captured(timer.stream, [&] {
      for (int i = 0; i < 25; ++i) CHECK(fused.speech_step(codes, state, timer.stream));
    });
    for (const int context : {350, 1000}) {
      const auto prepare = [&] {
        SpeechState s;
        for (int b = 0; b < kSpeechBooks; ++b) s.temperature[b] = b % 2 == 0 ? 0.1F : 0.3F;
        s.text_end = 302;
        s.limit = s.min_steps = kMaxCallCodes;
        s.decode = {context, speech_visible_front(s, context), 303};
        to_device(state, std::vector{s});
        to_device(fused.x(), std::vector<float>(model.shape.hidden, 0.5F));
      };
      const double bytes = model.step_bytes() + (context - 200) * model.row_bytes();
      const std::string at = ", context " + std::to_string(context) + suffix;
      report("TTS step" + at, timer.median(41, 20, prepare, one), bytes);
      report("TTS chain of 25 steps" + at, timer.median(21, 2, prepare, chain), 25 * bytes);
    }
    bench_parts(timer, model, fused, &state->decode, 1000);
    const Graph draw = captured(timer.stream, [&] {
      for (int i = 0; i < 20; ++i) CHECK(fused.draw_codes(codes, state, timer.stream));
    });
    const auto reset = [&] {
      SpeechState s;
      for (float& t : s.temperature) t = 0.2F;
      s.limit = s.min_steps = kMaxCallCodes;
      s.decode = {1000, 12, 303};
      to_device(state, std::vector{s});
    };
    std::printf("    draw of the codes: %.1f us\n", timer.median(15, 1, reset, draw) / 20);
  }
}

}  // namespace
}  // namespace minicpmo::cuda::test

int main(int argc, char** argv) {
  using namespace minicpmo::cuda::test;
  if (no_device()) return 77;
  const std::string only = argc > 1 ? argv[1] : "";
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  Timer timer;
  measure_bandwidth(timer);
  bench_tokens(timer);
  if (only != "llm") bench_tts(timer);
  if (only != "tts") bench_llm(timer);
  return 0;
}
