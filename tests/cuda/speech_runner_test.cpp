// The speech model on a GPU: runner against ATen and against the host's draw on the small
// checkpoint; graphs against single launches; times at full size with random weights. Environment:
// MINICPMO_TEST_MODEL, the small model's directory.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/outer.h>

#include <chrono>
#include <cstdio>

#include "gpu_test.h"
#include "speech_checks.h"

namespace minicpmo {
namespace {

using namespace speech_checks;

class SpeechRunnerTest : public GpuTest {
 protected:
  // Loaded once.
  const Models& models() const {
    static const Models models(device_);
    return models;
  }
  StageDevice without_graphs() const {
    StageDevice device = device_;
    device.graphs = false;
    return device;
  }

  StageScope scope_;
};

void expect_close(const char* what, const Errors& errors) {
  EXPECT_LE(errors.runner, 0.05);
  EXPECT_LE(errors.runner, 2 * errors.coarse + 1e-3);
  std::printf(
      "%s: worst relative error of logits against float32: ATen bfloat16 %.2g, runner %.2g\n", what,
      errors.coarse, errors.runner);
}

TEST_F(SpeechRunnerTest, FirstSegment) {
  expect_close("first segment", first_segment(models(), 120));
}

TEST_F(SpeechRunnerTest, ContinuationSegment) {
  expect_close("continuation segment", continuation(models(), 120));
}

TEST_F(SpeechRunnerTest, LongText) {
  expect_close("40 tokens of text at once", long_text(models(), 60));
}

TEST_F(SpeechRunnerTest, CallsAreChains) {
  for (const double temperature : {0.0, 1.0}) {
    expect_chain(models().runner, {25, 25}, temperature);
    expect_chain(models().runner, {24, 1, 3, 22}, temperature);
    expect_chain(models().runner, {1, 1, 1, 7, 11, 20, 23}, temperature);
  }
}

TEST_F(SpeechRunnerTest, GraphsAreTheirKernels) {
  const WeightsPtr eager = load_small(without_graphs());
  for (const double temperature : {0.0, 1.0}) {
    Voice one(models().runner), other(eager);
    Outcome outcome;
    std::vector<CodeRow> codes, others;
    for (Voice* voice : {&one, &other}) {
      auto& rows = voice == &one ? codes : others;
      voice->decoder.prefill_text(text_ids(*eager, 10), 0);
      for (int call = 0; call < 8; ++call) {
        auto spec = call_of(25, rows.empty() ? CodeRow{} : rows.back(), temperature, 8,
                            static_cast<uint64_t>(call) * 100);
        spec.min_steps = 25;
        const auto more = run(*voice, spec, outcome);
        rows.insert(rows.end(), more.begin(), more.end());
      }
    }
    EXPECT_EQ(codes.size(), 200U);
    EXPECT_EQ(codes, others);
    EXPECT_EQ(one.logits(), other.logits());
  }
}

TEST_F(SpeechRunnerTest, CodesAreDrawnAsTheHostDraws) {
  expect_host_draws(models().runner, 300);
}

TEST_F(SpeechRunnerTest, EndsInsideACall) {
  for (const int step : {0, 3, 4, 5, 9, 14, 23, 24}) expect_end(models().runner, step, 25);
}

TEST_F(SpeechRunnerTest, Cancel) {
  expect_cancelled(models().runner, 25);
}

TEST_F(SpeechRunnerTest, RefusesWhatDoesNotFit) {
  expect_refused(models().runner);
}

TEST_F(SpeechRunnerTest, StepsAheadOfTheText) {
  int64_t ahead = 0;
  for (const Compatibility compatibility : {Compatibility::kNone, Compatibility::kUpstream}) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      ahead += expect_same_answers(models().runner,
                                   {.temperature = seed == 0 ? 0.0 : 1.0,
                                    .seed = seed,
                                    .max_codes = 150,
                                    .compatibility = compatibility},
                                   8 + static_cast<int>(seed));
    }
  }
  EXPECT_GT(ahead, 100);
}

// --- the published sizes

constexpr int kHidden = 768, kLayers = 20, kHeads = 12, kFfn = 3072, kTokens = 626, kText = 21178;
constexpr int kCapacity = 303 + 2048 + 75;

class RandomSpeech {
 public:
  RandomSpeech(const StageDevice& device, const StageStream& stream) : device_(device) {
    spec.options = stream.runner_options(device);
    spec.shape = {.hidden = kHidden,
                  .layers = kLayers,
                  .heads = kHeads,
                  .kv_heads = kHeads,
                  .head_dim = 64,
                  .ffn = kFfn};
    for (int i = 0; i < kLayers; ++i) {
      cuda::LayerWeights layer;
      layer.input_norm = random({kHidden}, 1.5);
      layer.qkv = matrix(3 * kHidden, kHidden, 1);
      layer.o = matrix(kHidden, kHidden, 1);
      layer.post_norm = random({kHidden}, 1.5);
      layer.gate_up = matrix(2 * kFfn, kHidden, 1);
      layer.down = matrix(kHidden, kFfn, 1);
      layer.keys = random({kHeads, kCapacity, 64}, 1);
      layer.values = random({kHeads, kCapacity, 64}, 1);
      spec.weights.layers.push_back(layer);
    }
    spec.weights.final_norm = random({kHidden}, 1.5);
    spec.weights.head = matrix(4 * kTokens, kHidden, 3);
    spec.weights.head_rows = 4 * kTokens;
    const at::Tensor frequencies =
        at::arange(0, 64, 2, at::kFloat).div_(-64).mul_(std::log(1e4)).exp_();
    const at::Tensor angles = at::outer(at::arange(kCapacity, at::kFloat), frequencies);
    for (const at::Tensor& table : {angles.cos(), angles.sin()})
      tensors_.push_back(table.to(device.device));
    spec.weights.rope_cos = tensors_[tensors_.size() - 2].const_data_ptr<float>();
    spec.weights.rope_sin = tensors_.back().const_data_ptr<float>();
    spec.weights.capacity = kCapacity;
    spec.text_embedding = random({kText, kHidden}, 1);
    spec.text_tokens = kText;
    spec.code_embedding = random({4 * kTokens, kHidden}, 1);
    spec.tokens = kTokens;
    spec.speaker = random({kHidden}, 0.04);
    spec.audio_bos_token = 21132;
  }

  cuda::SpeechRunnerSpec spec;

 private:
  cuda::bfloat16_bits* random(at::IntArrayRef shape, double spread) {
    tensors_.push_back(at::empty(shape, device_.options()).uniform_(-spread, spread));
    return bfloat16_data(tensors_.back());
  }
  cuda::bfloat16_bits* matrix(int64_t rows, int64_t columns, double gain) {
    return random({rows, columns}, gain * std::sqrt(3.0 / static_cast<double>(columns)));
  }
  StageDevice device_;
  std::vector<at::Tensor> tensors_;
};

template <class Body>
double median_ms(const StageStream& stream, int runs, Body&& body) {
  std::vector<double> times;
  for (int i = 0; i < runs + 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    stream.stream()->synchronize();
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
    if (i >= 3) times.push_back(time.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void expect_ok(const Result<void>& result) {
  ASSERT_TRUE(result.ok()) << result.error().message << " " << result.error().detail;
}

TEST_F(SpeechRunnerTest, FullSizeTimes) {
  const StageStream stream(device_, true);
  const StreamScope scope(stream);
  RandomSpeech model(device_, stream);
  std::vector<CodeRow> rows(25), codes[2];
  const std::vector<int32_t> ids(40, 77);
  for (const bool graphs : {true, false}) {
    model.spec.options.graphs = graphs;
    const auto begin = std::chrono::steady_clock::now();
    const auto runner = value_of(device_.runners->new_speech_runner(model.spec));
    const std::chrono::duration<double, std::milli> made = std::chrono::steady_clock::now() - begin;
    const auto prefill = [&](size_t n, int at) {
      return median_ms(stream, 30,
                       [&] { expect_ok(runner->prefill_text(std::span(ids).first(n), at)); });
    };
    const auto call = [&](int position, int steps) {
      auto spec = call_of(steps, some_row(3), 1);
      spec.position = position;
      spec.text_tokens = 300;
      spec.min_steps = steps;
      return spec;
    };
    const auto speak = [&](int position, int steps) {
      return median_ms(stream, 20, [&] {
        EXPECT_EQ(value_of(runner->speak(call(position, steps), CancelFlag(), rows)).count, steps);
      });
    };
    std::printf(
        "full size, %s: made in %.0f ms; begin of a segment %.3f ms; prefill of 12 rows "
        "%.3f ms, of 10 rows %.3f ms, of 40 rows %.3f ms\n",
        graphs ? "graphs" : "single launches", made.count(),
        median_ms(stream, 30, [&] { expect_ok(runner->begin_segment()); }), prefill(12, 0),
        prefill(10, 12), prefill(40, 22));
    for (const int position : {302, 327, 602, 1002, 2002}) {
      const double time = speak(position, 25);
      std::printf("full size, %s: call of 25 steps from position %d: %.2f ms, %.3f ms a step\n",
                  graphs ? "graphs" : "single launches", position, time, time / 25);
    }
    std::printf("full size, %s: call of 24 steps %.2f ms, of one step %.3f ms\n",
                graphs ? "graphs" : "single launches", speak(327, 24), speak(351, 1));
    const double first = median_ms(stream, 20, [&] {
      expect_ok(runner->begin_segment());
      expect_ok(runner->prefill_text(std::span(ids).first(12), 0));
      static_cast<void>(value_of(runner->speak(call(302, 25), CancelFlag(), rows)));
    });
    std::printf("full size, %s: text to the first 25 codes: %.2f ms\n",
                graphs ? "graphs" : "single launches", first);
    for (int i = 0; i < 4; ++i) {
      auto spec = call(302 + 25 * i, 25);
      if (i > 0) spec.last = rows[24];
      static_cast<void>(value_of(runner->speak(spec, CancelFlag(), rows)));
      codes[graphs ? 0 : 1].insert(codes[graphs ? 0 : 1].end(), rows.begin(), rows.end());
    }
  }
  EXPECT_EQ(codes[0], codes[1]);
  EXPECT_GT(std::set<CodeRow>(codes[0].begin(), codes[0].end()).size(), 20U);
}

}  // namespace
}  // namespace minicpmo
