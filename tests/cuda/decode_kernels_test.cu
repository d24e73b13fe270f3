// Checks the fused decode kernels against a float64 reference on the host and a plain one on the
// device. Exits with 77 (skipped) where there is no CUDA device.
#include <array>
#include <cstdio>
#include <limits>
#include <random>
#include <set>
#include <span>

#include "engine/sampling.h"
#include "reference.cuh"

namespace minicpmo::cuda::test {
namespace {

double worst = 0;  // of the distances since it was last cleared

template <typename A, typename B>
void expect_close(const A& a, const B& b, double tolerance, const std::string& what) {
  const double d = a.size() == b.size() ? distance(a, b) : std::numeric_limits<double>::quiet_NaN();
  if (!(d <= worst)) worst = d;
  expect(d <= tolerance, what + ": relative distance " + std::to_string(d));
}

Doubles doubles(const float* device, size_t count) {
  const auto host = to_host(device, count);
  return Doubles(host.begin(), host.end());
}

DecodeState* new_state(RandomModel& model, const DecodeState& state) {
  auto* const s = static_cast<DecodeState*>(model.allocate(sizeof state));
  to_device(s, std::vector{state});
  return s;
}

void poison(float* device, size_t count) {
  CHECK(cudaMemset(device, 0xff, count * sizeof(float)));
}

// Every kernel of a layer, each on what the device itself made before.
void test_kernels(const std::string& name, RandomModel& model,
                  const std::vector<DecodeState>& states, bool overlap) {
  const auto& shape = model.shape;
  const size_t hidden = shape.hidden, wide_q = shape.heads * shape.head_dim;
  const size_t qkv_size = wide_q + 2 * shape.kv_heads * shape.head_dim;
  constexpr double kTight = 2e-6;
  HostReference reference{model};
  DecodeStep fused;
  CHECK(fused.init(shape, model.weights, overlap));
  DecodeState* const state = new_state(model, {});
  worst = 0;
  int seed = 1;
  for (const DecodeState& s : states) {
    const int layer = seed % shape.layers;
    const auto& w = model.weights.layers[layer];
    const std::string where = name + ", position " + std::to_string(s.position) + ", visible " +
                              std::to_string(s.visible_front) + "/" +
                              std::to_string(s.visible_from) + ": ";
    to_device(state, std::vector{s});
    const auto x = random_floats(hidden, ++seed);
    to_device(fused.x(), x);
    poison(fused.qkv(), qkv_size);
    CHECK(fused.run_qkv(layer, cudaStreamPerThread));
    expect_close(doubles(fused.qkv(), qkv_size), reference.qkv(layer, Doubles(x.begin(), x.end())),
                 kTight, where + "norm + qkv");
    auto keys = to_host(w.keys, model.cache_size()), values = to_host(w.values, model.cache_size());
    poison(fused.attended(), wide_q);
    const Doubles qkv = doubles(fused.qkv(), qkv_size);
    CHECK(fused.run_attention(layer, state, cudaStreamPerThread));
    expect_close(doubles(fused.attended(), wide_q), reference.attend(qkv, s, keys, values), 3e-4,
                 where + "attention");
    const auto new_keys = to_host(w.keys, model.cache_size());
    const auto new_values = to_host(w.values, model.cache_size());
    size_t differ = 0;  // a key may be rounded the other way; nothing else may have been touched
    for (size_t i = 0; i < keys.size(); ++i) differ += keys[i] != new_keys[i];
    expect(differ <= 4 && values == new_values,
           where + "cache, " + std::to_string(differ) + " keys");
    Doubles before = doubles(fused.x(), hidden);
    CHECK(fused.run_o(layer, cudaStreamPerThread));
    expect_close(doubles(fused.x(), hidden),
                 reference.o(layer, before, doubles(fused.attended(), wide_q)), kTight,
                 where + "o + residual");
    before = doubles(fused.x(), hidden);
    poison(fused.inner(), shape.ffn);
    CHECK(fused.run_gate_up(layer, cudaStreamPerThread));
    const Doubles inner = doubles(fused.inner(), shape.ffn);
    expect_close(inner, reference.gate_up(layer, before), kTight, where + "norm + gate/up");
    CHECK(fused.run_down(layer, cudaStreamPerThread));
    expect_close(doubles(fused.x(), hidden), reference.down(layer, before, inner), kTight,
                 where + "down + residual");
    before = doubles(fused.x(), hidden);
    poison(fused.logits(), model.weights.head_rows);
    poison(fused.hidden(), hidden);
    CHECK(fused.run_head(cudaStreamPerThread));
    expect_close(doubles(fused.hidden(), hidden), reference.hidden(before), kTight,
                 where + "final norm");
    expect_close(doubles(fused.logits(), model.weights.head_rows), reference.head(before), kTight,
                 where + "head");
  }
  std::printf("%-28s kernels, overlap %d: worst relative distance %.1e\n", name.c_str(), overlap,
              worst);
}

// A whole step against the host in float64.
void test_step(const std::string& name, RandomModel& model,
               const std::vector<DecodeState>& states) {
  const auto& shape = model.shape;
  HostReference reference{model};
  DecodeStep fused;
  CHECK(fused.init(shape, model.weights, true));
  DecodeState* const state = new_state(model, {});
  worst = 0;
  for (const DecodeState& s : states) {
    to_device(state, std::vector{s});
    const auto start = random_floats(shape.hidden, 77 + s.position);
    Doubles x(start.begin(), start.end());
    for (int i = 0; i < shape.layers; ++i) {
      const auto& w = model.weights.layers[i];
      auto keys = to_host(w.keys, model.cache_size()),
           values = to_host(w.values, model.cache_size());
      x = reference.o(i, x, reference.attend(reference.qkv(i, x), s, keys, values));
      x = reference.down(i, x, reference.gate_up(i, x));
    }
    to_device(fused.x(), start);
    CHECK(fused.step(state, cudaStreamPerThread));
    expect_close(doubles(fused.logits(), model.weights.head_rows), reference.head(x), 2e-3,
                 name + ", step at position " + std::to_string(s.position));
  }
  std::printf("%-28s steps against float64: worst relative distance %.1e\n", name.c_str(), worst);
}

// All layers against the plain kernels, and: eager, graph, with and without overlap give the same
// bits.
void test_equal(const std::string& name, RandomModel& model, const DecodeState& s) {
  const auto& shape = model.shape;
  NaiveDevice naive(model);
  const auto start = random_floats(shape.hidden, 5);
  to_device(naive.x(), start);
  naive.step(s);
  const auto expected = to_host(naive.logits(), model.weights.head_rows);
  DecodeState* const state = new_state(model, s);
  const OwnStream own;
  std::vector<float> results[2];
  for (int overlap = 0; overlap < 2; ++overlap) {
    DecodeStep fused;
    CHECK(fused.init(shape, model.weights, overlap == 1));
    to_device(fused.x(), start);
    CHECK(cudaDeviceSynchronize());
    CHECK(fused.step(state, own.stream));
    results[overlap] = to_host(fused.logits(), model.weights.head_rows);
    const Graph graph = captured(own.stream, [&] { CHECK(fused.step(state, own.stream)); });
    for (int i = 0; i < 5; ++i) {
      to_device(fused.x(), start);
      poison(fused.logits(), model.weights.head_rows);
      CHECK(cudaDeviceSynchronize());
      CHECK(graph.launch(own.stream));
      expect(to_host(fused.logits(), model.weights.head_rows) == results[overlap],
             name + ": graph is not eager");
    }
  }
  expect(results[0] == results[1], name + ": overlap changes the result");
  worst = 0;
  expect_close(results[0], expected, 2e-3, name + ": all layers against the plain kernels");
  std::printf(
      "%-28s %d layers against plain kernels: %.1e; graph and eager, overlap or not: same bits\n",
      name.c_str(), shape.layers, worst);
}

// --- sampling

using Row = std::array<int32_t, kSpeechBooks>;

// The rules, by the host's own functions (engine/sampling.h).
Row host_draw(std::vector<float> logits, int tokens, const SpeechState& s, Philox& random) {
  Row row;
  const bool first = s.decode.position == s.front_rows + s.text_slots;
  for (int b = 0; b < kSpeechBooks; ++b) {
    const std::span<float> scores =
        std::span(logits).subspan(static_cast<size_t>(b) * tokens, tokens);
    if (s.temperature[b] > 0) {
      for (float& x : scores) x /= s.temperature[b];
      if (!first) {
        apply_top_p(scores, s.top_p, s.min_keep);
        apply_top_k(scores, s.top_k, s.min_keep);
      }
    }
    if (s.step < s.min_steps) scores.back() = -std::numeric_limits<float>::infinity();
    row[b] = s.temperature[b] > 0 ? sample(scores, random.uniform()) : argmax(scores);
  }
  return row;
}

struct SpeechFixture {
  explicit SpeechFixture(const DecoderShape& shape, int tokens, uint64_t seed)
      : model(shape, kSpeechBooks * tokens, 2048, false, 10000, seed) {
    codes.tokens = tokens;
    codes.embedding = embedding =
        model.random(static_cast<size_t>(kSpeechBooks) * tokens * shape.hidden, 0, 0.8F);
    state = static_cast<SpeechState*>(model.allocate(sizeof(SpeechState)));
    CHECK(fused.init(shape, model.weights, true));
  }
  void set(const SpeechState& s) { to_device(state, std::vector{s}); }
  SpeechState get() { return to_host(state, 1)[0]; }
  RandomModel model;
  SpeechCodes codes;
  uint16_t* embedding;
  SpeechState* state;
  DecodeStep fused;
};

SpeechState speech_state(int position, float temperature) {
  SpeechState s;
  for (int b = 0; b < kSpeechBooks; ++b)
    s.temperature[b] = temperature * (b % 2 == 0 ? 0.1F : 0.3F);
  s.text_end = 2 + 120;
  s.decode = {position, speech_visible_front(s, position), 303};
  return s;
}

void test_sampling(int cases) {
  constexpr int kTokens = 626;
  SpeechFixture f(make_shape(256, 1, 4, 4, 64, 512), kTokens, 3);
  const auto embedding =
      to_host(f.embedding, static_cast<size_t>(kSpeechBooks) * kTokens * f.model.shape.hidden);
  std::mt19937 generator(9);
  std::set<int> seen;
  const int top_ks[] = {20, 0, 1, 5, 32, 40, 700};
  const double top_ps[] = {0.7, 1.0, 0.05, 0.95};
  for (int i = 0; i < cases; ++i) {
    SpeechState s = speech_state(i % 5 == 0 ? 302 : 310 + i % 40, i % 7 == 0   ? 0
                                                                  : i % 3 == 0 ? 4
                                                                               : 1);
    s.seed = generator() * 4294967296ull + generator();
    s.stream = i % 3 == 0 ? 0 : generator();
    s.counter = i % 4 == 0 ? generator() : 4 * (i % 30);
    s.top_k = top_ks[i % 7];
    s.top_p = top_ps[i % 4];
    s.min_steps = i % 2 == 0 ? 10 : 0;
    s.count = s.step = i % 12;
    auto logits = random_floats(kSpeechBooks * kTokens, 1000 + i, i % 11 == 0 ? 0.02F : 1);
    if (i % 6 == 0) {  // equal scores
      for (float& x : logits) x = std::round(x * 4) / 4;
    }
    if (i % 10 == 0) logits[kTokens - 1] = 30;  // the end code is the best
    if (i % 13 == 0) logits[5] = std::numeric_limits<float>::quiet_NaN();
    if (i % 17 == 0) logits[kTokens + 40] = -std::numeric_limits<float>::infinity();
    to_device(f.fused.logits(), logits);
    f.set(s);
    CHECK(f.fused.draw_codes(f.codes, f.state, cudaStreamPerThread));
    const SpeechState after = f.get();
    Philox random(s.seed, s.stream);
    for (uint64_t n = 0; s.temperature[0] > 0 && s.counter < 1000 && n < s.counter; ++n)
      random.uniform();
    if (s.counter >= 1000) continue;  // far counters: only that nothing breaks
    const Row row = host_draw(logits, kTokens, s, random);
    const bool ended = std::find(row.begin(), row.end(), kTokens - 1) != row.end();
    const std::string where = "sampling case " + std::to_string(i);
    expect(after.ended == ended && after.step == s.step + 1 && after.count == s.count + !ended,
           where + ": progress");
    expect(after.decode.position == s.decode.position + 1, where + ": position");
    expect(after.counter == s.counter + (s.temperature[0] > 0 ? 4 : 0), where + ": counter");
    if (ended) continue;
    const auto* const drawn = after.codes[s.count];
    expect(std::equal(row.begin(), row.end(), drawn),
           where + ": codes " + std::to_string(drawn[0]) + " for " + std::to_string(row[0]));
    seen.insert(drawn, drawn + kSpeechBooks);
    Doubles x(f.model.shape.hidden);
    for (int b = 0; b < kSpeechBooks; ++b) {
      for (size_t d = 0; d < x.size(); ++d) {
        x[d] += wide(embedding[(static_cast<size_t>(b) * kTokens + row[b]) * x.size() + d]);
      }
    }
    expect_close(doubles(f.fused.x(), x.size()), x, 1e-6, where + ": next embedding");
  }
  expect(static_cast<int>(seen.size()) > cases / 5, "sampling: too few different codes");
  std::printf("sampling: %d cases, %zu different codes\n", cases, seen.size());
}

// After the end of a call, further steps of the chain change nothing.
void test_idle() {
  SpeechFixture f(make_shape(256, 2, 4, 4, 64, 512), 626, 4);
  SpeechState s = speech_state(400, 1);
  s.limit = 3;
  f.set(s);
  to_device(f.fused.x(), random_floats(256, 1));
  for (int i = 0; i < 3; ++i) CHECK(f.fused.speech_step(f.codes, f.state, cudaStreamPerThread));
  const SpeechState a = f.get();
  const auto x = to_host(f.fused.x(), 256);
  for (int i = 0; i < 4; ++i) CHECK(f.fused.speech_step(f.codes, f.state, cudaStreamPerThread));
  const SpeechState b = f.get();
  expect(a.count == 3 && a.step == 3 && std::memcmp(&a, &b, sizeof a) == 0,
         "steps past the limit changed the state");
  expect(x == to_host(f.fused.x(), 256), "steps past the limit changed the next input");
  s = speech_state(2045, 1);  // the cache holds 2048
  s.limit = 25;
  f.set(s);
  for (int i = 0; i < 8; ++i) CHECK(f.fused.speech_step(f.codes, f.state, cudaStreamPerThread));
  const SpeechState full = f.get();
  expect(full.decode.position == 2048 && full.step == 3, "a full cache must end the call");
  std::printf("idle steps: fine\n");
}

// 20 calls of 25 steps, each one graph launch, against the plain kernels and the host's argmax.
void test_codes() {
  constexpr int kTokens = 626, kCalls = 20, kSteps = 25;
  SpeechFixture f(tts_shape(20), kTokens, 6);
  const int hidden = f.model.shape.hidden;
  const auto embedding = to_host(f.embedding, static_cast<size_t>(kSpeechBooks) * kTokens * hidden);
  const auto start = random_floats(hidden, 8);
  const OwnStream own;
  const Graph graph = captured(own.stream, [&] {
    for (int i = 0; i < kSteps; ++i) CHECK(f.fused.speech_step(f.codes, f.state, own.stream));
  });
  const auto begin_call = [](SpeechState s, int call) {
    s.step = s.count = 0;
    s.limit = kSteps;
    s.min_steps = kSteps;
    s.text_end = std::min(2 + 10 * (call + 1), 2 + 95);
    s.decode.visible_front = speech_visible_front(s, s.decode.position);
    return s;
  };
  SpeechState s = speech_state(302, 0);
  to_device(f.fused.x(), start);
  std::vector<Row> fused_codes, naive_codes;
  for (int call = 0; call < kCalls; ++call) {
    f.set(begin_call(s, call));
    CHECK(cudaDeviceSynchronize());
    CHECK(graph.launch(own.stream));
    s = f.get();
    expect(s.count == kSteps, "a chain of greedy steps stopped early");
    for (int i = 0; i < s.count; ++i) fused_codes.push_back(std::to_array(s.codes[i]));
  }
  NaiveDevice naive(f.model);  // over the same caches: rows are written before they are read
  std::vector<float> x = start;
  s = speech_state(302, 0);
  Philox random(0, 0);
  for (int i = 0; i < kCalls * kSteps; ++i) {
    if (i % kSteps == 0) s = begin_call(s, i / kSteps);
    to_device(naive.x(), x);
    naive.step(s.decode);
    const Row row = host_draw(to_host(naive.logits(), kSpeechBooks * kTokens), kTokens, s, random);
    naive_codes.push_back(row);
    for (int d = 0; d < hidden; ++d) {
      x[d] = 0;
      for (int b = 0; b < kSpeechBooks; ++b) {
        x[d] += wide(embedding[(static_cast<size_t>(b) * kTokens + row[b]) * hidden + d]);
      }
    }
    ++s.decode.position;
    s.decode.visible_front = speech_visible_front(s, s.decode.position);
  }
  size_t same = 0;
  while (same < naive_codes.size() && fused_codes[same] == naive_codes[same]) ++same;
  expect(fused_codes.size() == naive_codes.size() && same == naive_codes.size(),
         "greedy codes: only the first " + std::to_string(same) + " rows are equal");
  std::printf("greedy codes: %zu of %zu rows equal, %zu different rows\n", same, naive_codes.size(),
              std::set<Row>(fused_codes.begin(), fused_codes.end()).size());
}

std::vector<DecodeState> causal(std::vector<int> positions) {
  std::vector<DecodeState> states;
  for (int p : positions) states.push_back({p, 0, 0});
  return states;
}

// `quick`: what the emulation on the CPU can do in seconds.
void run_small(bool quick) {
  std::vector<DecodeState> masked = {
      {302, 12, 303}, {351, 22, 303}, {900, 112, 303}, {63, 2, 64}, {500, 320, 303}};
  std::vector<int> plain = {0, 5, 64, 700, 1023};
  if (!quick) {
    const DecodeState more[] = {
        {303, 12, 303}, {350, 12, 303}, {700, 92, 303}, {10, 100, 303}, {500, 302, 303}};
    masked.insert(masked.end(), std::begin(more), std::end(more));
    plain.insert(plain.end(), {1, 63, 65, 200, 511});
  }
  for (const bool overlap : {true, false}) {
    RandomModel a(make_shape(256, 2, 4, 2, 64, 768), 2048, 1024, true, 1e6, 1);
    test_kernels("small, groups of 2", a, causal(plain), overlap);
    RandomModel b(make_shape(896, 2, 7, 1, 128, 1000), 1001, 1024, true, 1e6, 2);
    test_kernels("odd sizes, a group of 7", b, causal(plain), overlap);
    RandomModel c(make_shape(512, 2, 4, 1, 128, 5768), 777, 1024, false, 1e4, 7);
    test_kernels("odd sizes, a group of 4", c, causal(plain), overlap);
    RandomModel d(tts_shape(2), 2504, 1024, false, 1e4, 3);
    test_kernels("speech model's sizes", d, masked, overlap);
    if (quick) return;
    test_kernels("speech model's sizes, causal", d, causal(plain), overlap);
    if (!overlap) break;
    test_step("small, groups of 2", a, causal(plain));
    test_step("odd sizes, a group of 7", b, causal(plain));
    test_step("speech model's sizes", d, masked);
  }
}

// racecheck follows every access to shared memory: a kernel takes it a second.
void run_race() {
  for (const bool overlap : {true, false}) {
    RandomModel a(make_shape(256, 1, 4, 2, 64, 768), 1001, 256, true, 1e6, 1);
    test_kernels("small, groups of 2", a, causal({70}), overlap);
    RandomModel d(make_shape(256, 1, 4, 4, 64, 512), 1000, 512, false, 1e4, 3);
    test_kernels("masked", d, {{351, 22, 303}}, overlap);
  }
  test_sampling(3);
}

void run_large() {
  {
    RandomModel model(llm_shape(2), 5000, 4608, true, 1e6, 11);
    test_kernels("language model's sizes", model, causal({0, 130, 1023, 4095}), true);
    test_step("language model's sizes", model, causal({1000, 4500}));
  }
  RandomModel model(llm_shape(28), 151700, 2048, true, 1e6, 12);
  test_equal("language model's sizes", model, {1024, 0, 0});
}

}  // namespace
}  // namespace minicpmo::cuda::test

int main(int argc, char** argv) {
  using namespace minicpmo::cuda::test;
  if (no_device()) return 77;
  // all (default), small (for memcheck), race (for racecheck), quick (for the emulation)
  const std::string size = argc > 1 ? argv[1] : "all";
  if (size == "race") {
    run_race();
    return report();
  }
  const bool quick = size == "quick", large = size == "all";
  run_small(quick);
  test_sampling(quick ? 210 : large ? 3000 : 300);
  test_idle();
  {
    RandomModel model(tts_shape(large ? 20 : 2), 2504, 1024, false, 1e4, 5);
    test_equal("speech model's sizes", model, {800, 102, 303});
  }
  if (large) {
    test_codes();
    size_t free = 0, total = 0;
    CHECK(cudaMemGetInfo(&free, &total));
    if (free > (20ull << 30)) {
      run_large();
    } else {
      std::printf("less than 20 GB free: the language model's sizes were left out\n");
    }
  }
  return report();
}
