// Checks the drawing of tokens on the device against the host's choice (llm/token_choice.h).
// Usage: token_sampling_test [quick | race]. Exits with 77 (skipped) where there is no CUDA device.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda/token_sampling.h"
#include "harness.cuh"
#include "llm/token_choice.h"

namespace minicpmo::cuda::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t host_choice(std::vector<float> logits, const std::vector<int32_t>& penalised,
                    const TokenState& s, Philox& random) {
  return choose_token(logits, penalised, {s.temperature, s.top_p, s.penalty, s.top_k}, &random);
}

struct Fixture {
  Fixture(int vocabulary, int most_penalised) : vocabulary(vocabulary) {
    CHECK(sampler.init(vocabulary, most_penalised, true));
    CHECK(cudaMalloc(&logits, vocabulary * sizeof(float)));
    CHECK(cudaMalloc(&state, sizeof(TokenState)));
    graph = captured(own.stream, [&] { CHECK(sampler.draw(logits, state, own.stream)); });
  }
  ~Fixture() {
    cudaFree(logits);
    cudaFree(state);
  }
  int vocabulary;
  TokenSampler sampler;
  float* logits = nullptr;
  TokenState* state = nullptr;
  OwnStream own;
  Graph graph;
};

std::set<int32_t> seen;

// `draws` draws one after the other from the same logits, as the penalty grows.
void compare(Fixture& f, const std::string& where, const std::vector<float>& logits,
             std::vector<int32_t> penalised, TokenState s, int draws) {
  Philox random(s.seed, s.stream);
  for (uint64_t i = 0; i < s.counter; ++i) random.uniform();
  s.penalised = static_cast<int32_t>(penalised.size());
  to_device(f.logits, logits);
  to_device(f.sampler.penalised(), penalised);
  to_device(f.state, std::vector{s});
  CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < draws; ++i) CHECK(f.graph.launch(f.own.stream));
  const TokenState after = to_host(f.state, 1)[0];
  bool not_finite = false;
  for (int i = 0; i < draws; ++i) {
    const int32_t expected = host_choice(logits, penalised, s, random);
    expect(after.ids[i] == expected, where + ": draw " + std::to_string(i) + " is token " +
                                         std::to_string(after.ids[i]) + ", not " +
                                         std::to_string(expected));
    if (after.ids[i] < 0 || after.ids[i] >= f.vocabulary) return;
    not_finite = not_finite || !std::isfinite(logits[after.ids[i]]);
    penalised.push_back(expected);
    seen.insert(expected);
  }
  expect(after.token == after.ids[draws - 1] && after.drawn == s.drawn + draws, where + ": state");
  expect(after.counter == s.counter + (s.temperature > 0 ? draws : 0), where + ": counter");
  expect(after.not_finite == (not_finite ? 1 : 0), where + ": not_finite");
  expect(after.penalised == static_cast<int32_t>(penalised.size()) &&
             to_host(f.sampler.penalised(), penalised.size()) == penalised,
         where + ": the list of penalised tokens");
  expect(to_host(f.logits, logits.size()).size() == logits.size(), where + ": logits");
}

std::vector<int32_t> random_ids(int count, int vocabulary, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(generator() % vocabulary);
  return ids;
}

// Names of what is done to random logits.
enum Kind { kPlain, kCoarse, kEqual, kNoNumbers, kHoles, kPeaked, kFlat, kHuge, kKinds };
const char* const kNames[] = {"plain", "coarse", "equal", "no numbers",
                              "holes", "peaked", "flat",  "huge"};

std::vector<float> make_logits(Kind kind, int count, unsigned seed) {
  if (kind == kEqual) return std::vector<float>(count, 0.25F);
  auto x = random_floats(count, seed, kind == kFlat ? 1e-4F : kind == kHuge ? 200 : 2.5F);
  for (int i = 0; i < count; ++i) {
    if (kind == kCoarse) x[i] = std::round(x[i] * 4) / 4;
    if (kind == kNoNumbers && i % 3 == 0) x[i] = std::numeric_limits<float>::quiet_NaN();
    if (kind == kHoles && i % 50 != 7) x[i] = -kInfinity;
    if (kind == kPeaked && i == count * 2 / 3) x[i] = 30;
  }
  return x;
}

void test_random(int vocabulary, int cases, unsigned seed) {
  Fixture f(vocabulary, 4096);
  const int ks[] = {100, 1, 20, 0, 1024, 2, 50, 300};
  // Not on the edge between two equal probabilities, where rounding decides.
  const double ps[] = {0.8037, 1, 0.513, 0.9713, 0.0313, 0.9137};
  const float temperatures[] = {0.7F, 1, 0.3F, 2.3F, 0, 1e-4F};
  const float penalties[] = {1.05F, 1, 1.3F, 0.8F};
  std::mt19937 generator(seed);
  for (int i = 0; i < cases; ++i) {
    TokenState s;
    const auto kind = static_cast<Kind>(i % kKinds);
    s.top_k = ks[generator() % std::size(ks)];
    s.top_p = ps[generator() % std::size(ps)];
    s.temperature = temperatures[generator() % std::size(temperatures)];
    s.penalty = penalties[generator() % std::size(penalties)];
    s.seed = generator() * 4294967296ull + generator();
    s.stream = generator() % 5;
    s.counter = generator() % 40;
    const std::string where =
        std::string(kNames[kind]) + ", vocabulary " + std::to_string(vocabulary) + ", k " +
        std::to_string(s.top_k) + ", p " + std::to_string(s.top_p) + ", temperature " +
        std::to_string(s.temperature) + ", penalty " + std::to_string(s.penalty);
    const auto logits = make_logits(kind, vocabulary, generator());
    auto ids = random_ids(static_cast<int>(generator() % 600), vocabulary, generator());
    for (int n = 0; n < 3; ++n) {  // tokens that matter, twice
      ids.push_back(argmax(logits));
      ids.push_back(static_cast<int32_t>(generator() % vocabulary));
    }
    ids.insert(ids.end(), {-1, vocabulary, std::numeric_limits<int32_t>::min(),
                           std::numeric_limits<int32_t>::max()});
    compare(f, where, logits, ids, s, 1 + static_cast<int>(generator() % 3));
  }
}

// What has a definite answer or is at the edge.
void test_edges(int vocabulary, bool quick) {
  Fixture f(vocabulary, 64);
  TokenState s;
  s.temperature = 1;
  const std::string size = ", vocabulary " + std::to_string(vocabulary);
  std::vector<int> ks = {1, 100, vocabulary - 1, 0};
  std::vector<double> ps = {0.0, 0.3713, 1.0};
  if (!quick) {
    ks.insert(ks.end(), {2, 1024, vocabulary, vocabulary + 1, -1});
    ps.insert(ps.end(), {-1.0, 2.0});
  }
  for (const int k : ks) {
    for (const double p : ps) {
      s.top_k = k;
      s.top_p = p;
      s.seed += 17;
      const std::string where = "edges, k " + std::to_string(k) + ", p " + std::to_string(p) + size;
      compare(f, where, make_logits(kPlain, vocabulary, 3 + k), {}, s, 2);
      compare(f, where + ", equal", make_logits(kEqual, vocabulary, 0), {}, s, 2);
      auto one = std::vector<float>(vocabulary, -kInfinity);
      one[vocabulary / 2] = -3;
      compare(f, where + ", one number", one, {}, s, 1);
      one[vocabulary / 3] = kInfinity;
      compare(f, where + ", infinity", one, {}, s, 1);
    }
  }
  s.top_k = 50;
  s.top_p = 0.8;
  s.temperature = 1e30F;  // all distances become equal
  compare(f, "hot" + size, make_logits(kPlain, vocabulary, 5), {1, 2, 3}, s, 2);
  s.temperature = 1e-38F;
  compare(f, "cold" + size, make_logits(kPlain, vocabulary, 5), {1, 2, 3}, s, 2);
  s.temperature = 0;
  auto ties = make_logits(kPlain, vocabulary, 6);
  ties[vocabulary - 1] = ties[vocabulary / 2] = 40;
  compare(f, "greedy, ties" + size, ties, {}, s, 2);
  ties[vocabulary / 2] = 0.0F;
  for (float& x : ties) x = std::min(x, -0.0F);
  compare(f, "greedy, zeros" + size, ties, {}, s, 2);
  s.penalty = 1.2F;
  compare(f, "greedy, list full" + size, make_logits(kPlain, vocabulary, 8),
          random_ids(61, vocabulary, 1), s, 3);
}

// Nothing but what is not a number or minus infinity: any valid id, and the flag.
void test_no_logits(int vocabulary) {
  Fixture f(vocabulary, 8);
  for (const float value : {-kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const float temperature : {0.0F, 0.7F}) {
      TokenState s;
      s.temperature = temperature;
      s.top_k = 20;
      to_device(f.logits, std::vector<float>(vocabulary, value));
      to_device(f.state, std::vector{s});
      CHECK(cudaDeviceSynchronize());
      CHECK(f.graph.launch(f.own.stream));
      const TokenState after = to_host(f.state, 1)[0];
      expect(after.not_finite == 1 && after.token >= 0 && after.token < vocabulary,
             "no logits: " + std::to_string(after.token));
    }
  }
}

}  // namespace
}  // namespace minicpmo::cuda::test

int main(int argc, char** argv) {
  using namespace minicpmo::cuda::test;
  if (no_device()) return 77;
  const std::string size = argc > 1 ? argv[1] : "all";
  if (size == "race") {  // racecheck follows every access to shared memory: a draw takes it a second
    test_random(1100, 3, 4);
    test_random(70, kKinds, 5);
    return report();
  }
  const bool quick = size == "quick";
  test_random(151700, quick ? 2 : 400, 1);
  test_random(5003, quick ? 32 : 1500, 2);
  test_random(262144, quick ? 0 : 24, 3);
  test_random(37, quick ? 32 : 300, 4);
  for (const int vocabulary : {1100, 1}) test_edges(vocabulary, quick);
  if (!quick) test_edges(151700, false);
  test_no_logits(2000);
  expect(static_cast<int>(seen.size()) > 100, "too few different tokens");
  std::printf("token sampling: %zu different tokens\n", seen.size());
  return report();
}
