// The vocoder on a GPU: runner and ATen against the CPU on the small checkpoint, against each other
// on random weights of the full size; times. Skipped without a GPU. Environment: MINICPMO_MODEL,
// the small checkpoint's directory.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <functional>

#include "backend/device.h"
#include "vocoder_checks.h"
#include "weights_file.h"

namespace minicpmo {
namespace {

void add_convnext(WeightsFile& w, const std::string& prefix, const std::string& scale,
                  int64_t width, int64_t inner) {
  w.add_linear(prefix + "dwconv", {width, 1, 7});
  w.add_norm(prefix + "norm", width);
  w.add_linear(prefix + "pwconv1", {inner, width});
  w.add_linear(prefix + "pwconv2", {width, inner});
  w.add(prefix + scale, {width}, 0.1, 0.2);
}

// The sizes of MiniCPM-o 2.6.
WeightsFile full_dvae() {
  WeightsFile w;
  const std::string dvae = "tts.dvae.", decoder = dvae + "decoder.";
  for (const char* g : {"0", "1"})
    w.add_linear(dvae + "vq_layer.quantizer.rvqs." + g + ".project_out", {512, 4});
  w.add_linear(decoder + "conv_in.0", {128, 512, 3});
  w.add_linear(decoder + "conv_in.2", {256, 128, 3});
  for (int i = 0; i < 12; ++i)
    add_convnext(w, decoder + "decoder_block." + std::to_string(i) + ".", "coef", 256, 1024);
  w.add_linear(decoder + "conv_out", {512, 256, 1}, false);
  w.add_linear(dvae + "out_conv", {100, 512, 3}, false);
  w.add(dvae + "coef", {1, 100, 1}, 0.5, 1);
  return w;
}

WeightsFile full_vocos() {
  constexpr int64_t kWindow = 1024;
  WeightsFile w;
  w.add_linear("backbone.embed", {512, 100, 7});
  w.add_norm("backbone.norm", 512);
  for (int i = 0; i < 8; ++i)
    add_convnext(w, "backbone.convnext." + std::to_string(i) + ".", "gamma", 512, 1536);
  w.add_norm("backbone.final_layer_norm", 512);
  w.add_linear("head.out", {kWindow + 2, 512});
  w.add("head.istft.window", {kWindow}, 0);
  for (int64_t i = 0; i < kWindow; ++i) {
    w["head.istft.window"].data[static_cast<size_t>(i)] =
        static_cast<float>(0.5 - 0.5 * std::cos(2 * M_PI * static_cast<double>(i) / kWindow));
  }
  return w;
}

ModelPtr load_full(const StageDevice& device) {
  static const auto dvae = full_dvae().open(), vocos = full_vocos().open();
  ModelConfig config;
  config.speech.books = 4;
  config.speech.audio_tokens = 626;
  return value_of(load_vocoder(*dvae, *vocos, config, device, {}, CancelFlag()));
}

std::unique_ptr<cuda::VocoderRunner> make_runner(const VocoderModel& model,
                                                 const StageStream& stream, bool graphs) {
  const StreamScope scope(stream);
  cuda::VocoderRunnerSpec spec = model.runner_spec(stream.runner_options(model.device()));
  spec.options.graphs = graphs;
  return value_of(model.device().runners->new_vocoder_runner(spec));
}

class VocoderRunnerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto choice = choose_device("cuda", "bfloat16");
    if (!choice.ok() && choice.error().code == ErrorCode::kNotFound)
      GTEST_SKIP() << choice.error().message;
    ASSERT_TRUE(choice.ok()) << choice.error().message << " " << choice.error().detail;
    device_ = choice->stage;
    ASSERT_NE(device_.runners, nullptr);
  }

  StageDevice without_runners(at::ScalarType type) const {
    StageDevice device = device_.with(type);
    device.runners = nullptr;
    return device;
  }
  // ATen on the GPU.
  static std::vector<float> gpu_window(const VocoderModel& model, const StageStream& stream,
                                       std::span<const int32_t> codes) {
    const StreamScope scope(stream);
    return aten_window(model, codes);
  }

  StageDevice device_;
};

TEST_F(VocoderRunnerTest, EveryWindowEqualsTheCpu) {
  const ModelPtr model = load_small(device_), cpu = load_small(at::kFloat);
  const ModelPtr aten = load_small(without_runners(at::kFloat));
  const StageStream stream(device_, true);
  const auto runner = make_runner(*model, stream, true);
  double worst = 0, worst_aten = 0, loudest = 0;
  for (int64_t rows = 1; rows <= 29; ++rows) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      const auto codes = random_codes(rows, 100 * seed + static_cast<uint64_t>(rows));
      const auto exact = aten_window(*cpu, codes);
      worst = std::max(worst, difference(runner_window(*model, *runner, codes), exact));
      worst_aten = std::max(worst_aten, difference(gpu_window(*aten, stream, codes), exact));
      for (const float sample : exact) loudest = std::max(loudest, std::abs(double{sample}));
    }
  }
  std::printf("of full scale, against the CPU: runner %.2g, ATen %.2g; loudest sample %.2g\n",
              worst, worst_aten, loudest);
  EXPECT_LE(worst, kRunnerBound);
  EXPECT_LE(worst_aten, kRunnerBound);
  EXPECT_GT(loudest, 0.05);
}

TEST_F(VocoderRunnerTest, StreamsEqualTheCpu) {
  const auto codes = random_codes(120);
  const std::vector<int64_t> ends = {25, 50, 75, 76, 99, 120};
  const auto exact = stream(load_small(at::kFloat), codes, ends);
  const double runner = difference(stream(load_small(device_), codes, ends), exact);
  const double aten =
      difference(stream(load_small(without_runners(at::kFloat)), codes, ends), exact);
  const double coarse =
      difference(stream(load_small(without_runners(at::kBFloat16)), codes, ends), exact);
  std::printf(
      "stream, of full scale, against the CPU: runner %.2g, ATen %.2g, ATen with the DVAE "
      "in bfloat16 %.2g\n",
      runner, aten, coarse);
  EXPECT_LE(runner, kRunnerBound);
  EXPECT_LE(aten, kRunnerBound);
  EXPECT_LE(coarse, 0.03);  // as on the CPU
}

TEST_F(VocoderRunnerTest, GraphEqualsEager) {
  const ModelPtr model = load_full(device_);
  const StageStream stream(device_, true);
  const auto graph = make_runner(*model, stream, true), eager = make_runner(*model, stream, false);
  for (int64_t rows = 1; rows <= 29; ++rows) {
    const auto codes = random_codes(rows);
    const auto first = runner_window(*model, *graph, codes);
    EXPECT_EQ(first, runner_window(*model, *eager, codes)) << rows;
    EXPECT_EQ(first, runner_window(*model, *graph, codes)) << rows;
  }
}

TEST_F(VocoderRunnerTest, FullSizeEqualsAten) {
  const ModelPtr model = load_full(device_), cpu = load_full(at::kFloat);
  const StageStream stream(device_, true);
  const auto runner = make_runner(*model, stream, true);
  for (const int64_t rows : {1, 7, 25, 29}) {
    const auto codes = random_codes(rows);
    const auto exact = aten_window(*cpu, codes);
    double loudest = 0;
    for (const float sample : exact) loudest = std::max(loudest, std::abs(double{sample}));
    const double error = difference(runner_window(*model, *runner, codes), exact) / loudest;
    const double aten = difference(gpu_window(*model, stream, codes), exact) / loudest;
    std::printf("full size, %ld rows, relative to the loudest sample: runner %.2g, ATen %.2g\n",
                static_cast<long>(rows), error, aten);
    EXPECT_LE(error, 1e-4);
    EXPECT_LE(aten, 1e-4);
  }
}

// --- times

double milliseconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// From call to PCM on the host.
double median_ms(const std::function<void()>& call) {
  constexpr int kCalls = 101;
  std::vector<double> times;
  for (int i = 0; i < 10; ++i) call();
  for (int i = 0; i < kCalls; ++i) times.push_back(milliseconds(call));
  std::nth_element(times.begin(), times.begin() + kCalls / 2, times.end());
  return times[kCalls / 2];
}

TEST_F(VocoderRunnerTest, Times) {
  const ModelPtr model = load_full(device_), coarse = load_full(without_runners(at::kBFloat16));
  const StageStream stream(device_, true);
  const auto eager = make_runner(*model, stream, false);
  std::unique_ptr<cuda::VocoderRunner> graph;
  std::printf("making a runner with its graphs: %.1f ms\n",
              milliseconds([&] { graph = make_runner(*model, stream, true); }));
  for (const int64_t rows : {25, 29, 5, 1}) {
    const auto codes = random_codes(rows);
    std::vector<float> pcm(static_cast<size_t>(rows * model->samples_per_row()));
    const auto time = [&](cuda::VocoderRunner& runner) {
      return median_ms([&] { EXPECT_TRUE(runner.decode(codes, pcm).ok()); });
    };
    const auto time_aten = [&](const VocoderModel& aten) {
      return median_ms([&] { gpu_window(aten, stream, codes); });
    };
    const double replayed = time(*graph), single = time(*eager), aten = time_aten(*model);
    std::printf(
        "%2ld rows, ms: graph %.3f, launches %.3f, ATen float32 %.3f, ATen with the DVAE "
        "in bfloat16 %.3f\n",
        static_cast<long>(rows), replayed, single, aten, time_aten(*coarse));
    EXPECT_LT(replayed, aten);
  }
}

}  // namespace
}  // namespace minicpmo
