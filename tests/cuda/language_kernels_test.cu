// Checks the prefill and the bursts of the language model's runner: prefill against one step after
// the other, bursts against the host's choice from the same logits, graphs against single launches.
// Usage: language_kernels_test [quick | race | bench]. With no argument it ends with timings at full size,
// which say nothing about the words: the weights are random. Exits with 77 (skipped) where there is
// no CUDA device.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/decode.h"
#include "cuda/language_runner.h"
#include "cuda/prefill.h"
#include "llm/token_choice.h"
#include "random_model.cuh"

namespace minicpmo::cuda::test {
namespace {

std::vector<float> widened(const std::vector<uint16_t>& v) {
  std::vector<float> out(v.size());
  std::transform(v.begin(), v.end(), out.begin(), wide);
  return out;
}

// A model, and what of its cache tests ask for.
struct Model {
  Model(const DecoderShape& shape, int vocab, int capacity, uint64_t seed)
      : random(shape, vocab, capacity, true, 1e6, seed) {
    embedding = random.random(static_cast<size_t>(vocab) * shape.hidden, 0, 1.7F);
    clear();
  }
  void clear() {
    for (const LayerWeights& w : random.weights.layers) {
      CHECK(cudaMemset(w.keys, 0, random.cache_size() * 2));
      CHECK(cudaMemset(w.values, 0, random.cache_size() * 2));
    }
    CHECK(cudaDeviceSynchronize());  // streams of one's own do not wait for it
  }
  // Keys and values of rows [begin, end), all layers.
  std::vector<uint16_t> rows(int begin, int end) const {
    std::vector<uint16_t> out;
    const size_t d = random.shape.head_dim, capacity = random.weights.capacity;
    for (const LayerWeights& w : random.weights.layers) {
      for (const uint16_t* side : {w.keys, w.values}) {
        const auto all = to_host(side, random.cache_size());
        for (int h = 0; h < random.shape.kv_heads; ++h) {
          out.insert(out.end(), all.begin() + (h * capacity + begin) * d,
                     all.begin() + (h * capacity + end) * d);
        }
      }
    }
    return out;
  }
  LanguageRunnerSpec spec(cudaStream_t stream, bool graphs) const {
    LanguageRunnerSpec s;
    s.options.stream = stream;
    s.options.graphs = graphs;
    s.shape = random.shape;
    s.weights = random.weights;
    s.embedding = embedding;
    s.vocab = random.weights.head_rows;
    return s;
  }
  RandomModel random;
  uint16_t* embedding;
};

// --- prefill

// The normed states of `count` rows and the cache, one step after the other.
std::vector<float> stepped(Model& model, const std::vector<uint16_t>& x, int count) {
  const size_t hidden = model.random.shape.hidden;
  DecodeStep step;
  CHECK(step.init(model.random.shape, model.random.weights, false));
  DecodeState* state = nullptr;
  CHECK(cudaMalloc(&state, sizeof *state));
  std::vector<float> out;
  const std::vector<float> input = widened(x);
  for (int i = 0; i < count; ++i) {
    const DecodeState s{i, 0, 0};
    to_device(state, std::vector{s});
    to_device(step.x(),
              std::vector<float>(input.begin() + i * hidden, input.begin() + (i + 1) * hidden));
    CHECK(step.step(state, cudaStreamPerThread));
    const auto y = to_host(step.hidden(), hidden);
    out.insert(out.end(), y.begin(), y.end());
  }
  cudaFree(state);
  return out;
}

struct Prefilled {
  Prefilled(Model& model, int max_rows, size_t most_scores = Prefill::kMostScores)
      : hidden(model.random.shape.hidden) {
    CHECK(blas.init(own.stream));
    CHECK(prefill.init(model.random.shape, model.random.weights, max_rows,
                       model.random.weights.capacity, &blas, own.stream, most_scores));
    CHECK(cudaMalloc(&normed, sizeof(float) * max_rows * hidden));
  }
  ~Prefilled() { cudaFree(normed); }
  std::vector<float> states(int rows) {
    CHECK(prefill.final_norm(0, rows, normed));
    own.wait();
    return to_host(normed, rows * hidden);
  }
  // x: on the device.
  std::vector<float> run(const uint16_t* x, int begin, int rows) {
    CHECK(prefill.load(x + begin * hidden, rows));
    CHECK(prefill.run(rows, begin));
    return states(rows);
  }
  OwnStream own;
  Blas blas;
  Prefill prefill;
  size_t hidden;
  float* normed = nullptr;
};

void test_prefill(const std::string& name, const DecoderShape& shape, int capacity, int rows) {
  // bfloat16 between the products, where a step has float32.
  constexpr double kRounding = 2e-2, kSame = 5e-3;
  Model model(shape, 64, capacity, 21);
  const size_t hidden = shape.hidden;
  uint16_t* const x = model.random.random(rows * hidden, 0, 1.7F);
  const std::vector<float> reference = stepped(model, to_host(x, rows * hidden), rows);
  const std::vector<float> reference_cache = widened(model.rows(0, rows));

  model.clear();
  Prefilled whole(model, rows);
  const std::vector<float> states = whole.run(x, 0, rows);
  const std::vector<float> cache = widened(model.rows(0, rows));
  const double d = distance(states, reference), c = distance(cache, reference_cache);
  expect(d < kRounding, name + ": prefill and steps differ by " + std::to_string(d));
  expect(c < kRounding, name + ": the cache differs by " + std::to_string(c));
  const auto behind = model.rows(rows, capacity);
  expect(std::all_of(behind.begin(), behind.end(), [](uint16_t v) { return v == 0; }),
         name + ": rows behind the last one were written");

  model.clear();
  const int cut = rows / 2 + 1;
  std::vector<float> parts = whole.run(x, 0, cut);
  const std::vector<float> second = whole.run(x, cut, rows - cut);
  parts.insert(parts.end(), second.begin(), second.end());
  const double chunked = distance(parts, states);
  expect(chunked < kSame, name + ": in two parts it differs by " + std::to_string(chunked));

  model.clear();
  // Room for the scores of about five rows.
  Prefilled narrow(model, rows, static_cast<size_t>(shape.heads) * ((rows + 7) / 8 * 8) * 5);
  const double blocks = distance(narrow.run(x, 0, rows), states);
  expect(blocks < kSame, name + ": attention in blocks differs by " + std::to_string(blocks));
  std::printf("%-24s prefill: steps %.1e, cache %.1e, in parts %.1e, in blocks %.1e\n",
              name.c_str(), d, c, chunked, blocks);
}

// A graph of 16 rows over fixed keys, of which fewer hold something.
void test_bucket(const DecoderShape& shape) {
  constexpr int kRows = 16, kKeys = 40, kFirst = 13, kSecond = 5;
  Model model(shape, 64, 64, 22);
  const size_t hidden = shape.hidden;
  uint16_t* const x = model.random.random((kFirst + kRows) * hidden, 0, 1.7F);
  Prefilled plain(model, kRows);
  plain.run(x, 0, kFirst);
  const std::vector<float> reference = plain.run(x, kFirst, kSecond);
  const auto cache = model.rows(0, 64);

  model.clear();
  Prefilled bucket(model, kRows);
  const OwnStream& own = bucket.own;
  PrefillState* state = nullptr;
  CHECK(cudaMalloc(&state, sizeof *state));
  const auto run = [&](int begin, int rows) {
    const PrefillState s{begin, rows};
    to_device(state, std::vector{s});
    CHECK(bucket.prefill.load(x + begin * hidden, kRows));
    CHECK(bucket.prefill.run(state, kRows, kKeys));
    own.wait();
  };
  run(0, kFirst);
  run(kFirst, kSecond);
  const double d = distance(bucket.states(kSecond), reference);
  expect(d < 5e-3, "a fixed number of rows differs by " + std::to_string(d));
  const double c = distance(widened(model.rows(0, 64)), widened(cache));
  expect(c < 5e-3, "its cache differs by " + std::to_string(c));
  const auto behind = model.rows(kFirst + kSecond, 64);
  expect(std::all_of(behind.begin(), behind.end(), [](uint16_t v) { return v == 0; }),
         "filling rows were written to the cache");
  std::printf("fixed number of rows: %.1e\n", d);
  cudaFree(state);
}

// --- bursts

int32_t host_choice(std::vector<float> logits, const std::vector<int32_t>& penalised,
                    const TokenSampling& s, Philox& random) {
  return choose_token(logits, penalised, {s.temperature, s.top_p, s.repetition_penalty, s.top_k},
                      &random);
}

template <typename T>
T must(Result<T> result, const char* what) {
  if (!result.ok()) {
    std::printf("FAILED: %s: %s (%s)\n", what, result.error().message.c_str(),
                result.error().detail.c_str());
    std::exit(1);
  }
  return std::move(*result);
}
void must(const Result<void>& result, const char* what) {
  if (result.ok()) return;
  std::printf("FAILED: %s: %s (%s)\n", what, result.error().message.c_str(),
              result.error().detail.c_str());
  std::exit(1);
}

constexpr int kPrompt = 11;
constexpr int kVocab = 2000;

struct Session {
  Session(Model& model, bool graphs)
      : runner(must(new_language_runner(model.spec(own.stream, graphs)), "a runner")) {}
  std::vector<float> logits(std::optional<int32_t> carried, int begin) {
    std::vector<float> out(kVocab);
    must(runner->next_logits(carried, begin, out), "logits");
    return out;
  }
  std::vector<int32_t> draw(TokenBurst burst, const CancelFlag& cancel = CancelFlag()) {
    return must(runner->draw(burst, cancel), "a burst");
  }
  OwnStream own;
  std::unique_ptr<LanguageRunner> runner;
};

// An answer of `bursts` bursts of three; each begins with the last token of the one before.
std::vector<int32_t> answer(Session& session, const TokenSampling& sampling, int bursts,
                            const std::vector<int32_t>& prompt) {
  std::vector<int32_t> ids;
  TokenSampling now = sampling;
  for (int i = 0; i < bursts; ++i) {
    TokenBurst burst;
    std::vector<int32_t> penalised = prompt;
    if (!ids.empty()) {
      burst.carried = ids.back();
      penalised = {ids.back()};
    }
    burst.begin = kPrompt + std::max(0, static_cast<int>(ids.size()) - 1);
    burst.count = 3;
    burst.penalised = penalised;
    burst.sampling = now;
    const auto drawn = session.draw(burst);
    ids.insert(ids.end(), drawn.begin(), drawn.end());
    if (now.temperature > 0) now.counter += drawn.size();
  }
  return ids;
}

// The same, a token at a time, chosen on the host.
std::vector<int32_t> host_answer(Session& session, const TokenSampling& sampling, int bursts,
                                 const std::vector<int32_t>& prompt) {
  std::vector<int32_t> ids;
  Philox random(sampling.seed, sampling.stream);
  random.set_counter(sampling.counter);
  for (int i = 0; i < bursts; ++i) {
    std::vector<int32_t> penalised = prompt;
    if (!ids.empty()) penalised = {ids.back()};
    for (int j = 0; j < 3; ++j) {
      std::optional<int32_t> carried;
      if (!ids.empty()) carried = ids.back();
      const int begin = kPrompt + std::max(0, static_cast<int>(ids.size()) - 1);
      ids.push_back(host_choice(session.logits(carried, begin), penalised, sampling, random));
      penalised.push_back(ids.back());
    }
  }
  return ids;
}

void test_bursts(const DecoderShape& shape, int bursts) {
  Model model(shape, kVocab, 64, 23);
  uint16_t* const x = model.random.random(kPrompt * shape.hidden, 0, 1.7F);
  Session graphs(model, true), eager(model, false);
  const auto begin = [&](Session& session) {
    model.clear();
    must(session.runner->prefill(x, kPrompt, 0, 4), "prefill");
  };
  const std::vector<int32_t> prompt = {5, 1, 77, 1999, 5};
  const TokenSampling ways[] = {{0, 0, 1, 1, 0, 0, 0},
                                {0, 0, 1, 1.3F, 0, 0, 0},
                                {0.7F, 100, 0.8, 1.05F, 42, 3, 5},
                                {1.5F, 0, 0.95, 1, 43, 1, 0},
                                {2.0F, 20, 1, 1.2F, 44, 0, 2}};
  int way = 0;
  for (const TokenSampling& sampling : ways) {
    const std::string name = "sampling " + std::to_string(way++);
    begin(graphs);
    const auto ids = answer(graphs, sampling, bursts, prompt);
    const auto cache = model.rows(0, kPrompt + 3 * bursts - 1);
    begin(eager);
    expect(answer(eager, sampling, bursts, prompt) == ids, name + ": graphs draw other tokens");
    expect(model.rows(0, kPrompt + 3 * bursts - 1) == cache, name + ": graphs leave another cache");
    begin(eager);
    expect(host_answer(eager, sampling, bursts, prompt) == ids,
           name + ": the host chooses otherwise");
    expect(model.rows(0, kPrompt + 3 * bursts - 1) == cache,
           name + ": single steps leave another cache");
    std::printf("%s:", name.c_str());
    for (int32_t id : ids) std::printf(" %d", id);
    std::printf("\n");
  }
}

void test_burst_rules(const DecoderShape& shape) {
  constexpr int kCapacity = kPrompt + 4;
  Model model(shape, kVocab, kCapacity, 24);
  uint16_t* const x = model.random.random(kPrompt * shape.hidden, 0, 1.7F);
  Session session(model, true);
  model.clear();
  must(session.runner->prefill(x, kPrompt, 0, 4), "prefill");
  TokenBurst burst;
  burst.begin = kPrompt;
  burst.count = 3;
  const auto ids = session.draw(burst);
  const auto logits = session.logits(std::nullopt, kPrompt);
  expect(ids.size() == 3 && ids[0] == argmax(logits), "the first token follows the prompt");
  expect(session.draw(burst) == ids, "the first burst can be made again");

  const int32_t stops[] = {-1, ids[1]};
  burst.stops = stops;
  const size_t wanted = ids[0] == ids[1] ? 1 : 2;
  expect(session.draw(burst).size() == wanted, "a stop token ends the burst");
  burst.stops = {};

  CancelFlag cancel;
  cancel.set();
  const auto cancelled = session.runner->draw(burst, cancel);
  expect(!cancelled.ok() && cancelled.error().code == ErrorCode::kCancelled, "cancelled");
  expect(session.draw(burst) == ids, "a cancelled burst can be made again");

  TokenBurst next;
  next.carried = ids.back();
  next.begin = kPrompt + 2;
  next.count = 2;
  expect(session.draw(next).size() == 2, "up to the last row of the cache");
  next.count = 3;
  expect(!session.runner->draw(next, CancelFlag()).ok(), "not beyond the cache");

  auto* const norm = const_cast<uint16_t*>(model.random.weights.final_norm);
  CHECK(cudaMemset(norm, 0xff, 2));
  expect(!session.runner->draw(burst, CancelFlag()).ok(),
         "the second token's logits are no numbers");
  must(session.runner->prefill(x, kPrompt, 0, 4), "prefill");
  burst.count = 1;
  expect(!session.runner->draw(burst, CancelFlag()).ok(), "the prompt's logits are no numbers");
}

// states() and the prompt's logits against a step's.
void test_prompt(const DecoderShape& shape) {
  Model model(shape, kVocab, 64, 25);
  const size_t hidden = shape.hidden;
  uint16_t* const x = model.random.random(kPrompt * hidden, 0, 1.7F);
  const std::vector<float> reference = stepped(model, to_host(x, kPrompt * hidden), kPrompt);
  Session session(model, true);
  model.clear();
  must(session.runner->prefill(x, kPrompt, 0, 4), "prefill");
  session.own.wait();
  const auto states = to_host(session.runner->states(), 4 * hidden);
  const std::vector<float> last(reference.end() - 4 * hidden, reference.end());
  const double d = distance(states, last);
  expect(d < 2e-2, "the kept states differ by " + std::to_string(d));
  const auto head = widened(to_host(model.random.weights.head, kVocab * hidden));
  std::vector<double> logits(kVocab);
  for (int v = 0; v < kVocab; ++v) {
    for (size_t i = 0; i < hidden; ++i)
      logits[v] += static_cast<double>(head[v * hidden + i]) * states[3 * hidden + i];
  }
  const double l = distance(session.logits(std::nullopt, kPrompt), logits);
  expect(l < 1e-5, "the prompt's logits differ by " + std::to_string(l));
}

// --- timings at full size

double seconds_of(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void time_prefill(Model& model, Session& session) {
  constexpr int kRepeats = 15;
  uint16_t* const x =
      model.random.random(static_cast<size_t>(LanguageRunner::kMaxRows) * 3584, 0, 1.7F);
  for (const int begin : {0, 1000, 7000}) {
    for (const int rows : {1, 9, 36, 64, 128, 512}) {
      std::vector<double> times, launches;
      for (int i = 0; i <= kRepeats; ++i) {
        double enqueue = 0;
        const double t = seconds_of([&] {
          enqueue = seconds_of(
              [&] { must(session.runner->prefill(x, rows, begin, std::min(rows, 9)), "prefill"); });
          session.own.wait();
        });
        if (i > 0) times.push_back(t), launches.push_back(enqueue);
      }
      std::printf("prefill of %3d rows at %4d: %7.3f ms (of which to enqueue %.3f ms)\n", rows,
                  begin, median(times) * 1e3, median(launches) * 1e3);
    }
  }
}

void time_bursts(Session& session, const char* name) {
  for (const int context : {128, 1024, 4096}) {
    TokenBurst burst;
    burst.carried = 1;
    burst.count = 3;
    burst.begin = context;
    burst.sampling = {0.7F, 100, 0.8, 1.05F, 1, 2, 3};
    std::vector<double> times;
    for (int i = 0; i < 12; ++i) {
      const double t = seconds_of([&] { session.draw(burst); });
      if (i > 1) times.push_back(t);
      burst.begin += 3;
    }
    std::printf("%s: burst of 3 at context %4d: %.3f ms a token\n", name, context,
                median(times) * 1e3 / 3);
  }
}

void run_bench() {
  size_t free = 0, total = 0;
  CHECK(cudaMemGetInfo(&free, &total));
  if (free < (22ull << 30)) {
    std::printf("less than 22 GiB free: no timings at full size\n");
    return;
  }
  Model model(llm_shape(28), 151700, 8192, 31);
  const double start = seconds_of([&] { Session once(model, true); });
  const double again = seconds_of([&] { Session once(model, true); });
  std::printf("a runner takes %.3f s, the second %.3f s\n", start, again);
  Session graphs(model, true), eager(model, false);
  time_bursts(graphs, "graphs");
  time_bursts(eager, "single launches");
  time_prefill(model, graphs);
}

void run_tests(bool quick) {
  const DecoderShape small = make_shape(256, 2, 4, 2, 64, 768);  // as the small checkpoint
  test_prefill("small, groups of 2", small, 96, quick ? 19 : 37);
  test_prefill("one head a group", make_shape(192, 2, 3, 3, 64, 256), 21, 21);
  test_bucket(make_shape(192, 2, 3, 3, 64, 256));
  test_bucket(small);
  test_prompt(small);
  test_bursts(small, quick ? 2 : 6);
  test_burst_rules(small);
  if (quick) return;
  test_prefill("a group of 7", make_shape(896, 2, 7, 1, 128, 1000), 600, 512);
  test_prefill("speech model's sizes", tts_shape(4), 400, 304);
  test_prefill("language model's sizes", llm_shape(2), 1200, 548);
  test_bucket(tts_shape(4));
}

}  // namespace
}  // namespace minicpmo::cuda::test

int main(int argc, char** argv) {
  using namespace minicpmo::cuda::test;
  if (no_device()) return 77;
  const std::string what = argc > 1 ? argv[1] : "all";
  if (what == "race") {  // racecheck follows every access to shared memory
    const auto small = make_shape(256, 1, 4, 2, 64, 768);
    test_prefill("small, groups of 2", small, 96, 11);
    test_bucket(small);
    return report();
  }
  if (what != "bench") run_tests(what == "quick");
  if (what != "quick") run_bench();
  return report();
}
