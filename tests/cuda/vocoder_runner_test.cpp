// The vocoder on a GPU: runner and ATen against the CPU on the small checkpoint, against each other
// on random weights of the full size; times. Skipped without a GPU. Environment: MINICPMO_MODEL,
// the small checkpoint's directory.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <functional>

#include "gpu_test.h"
#include "vocoder_checks.h"

namespace minicpmo {
namespace {

// As MiniCPM-o 2.6 has them.
const VocoderSizes kFullSizes = {512, 128, 256, 1024, 12, 100, 512, 1536, 8, 0.2, 0.1};

ModelPtr load_full(const StageDevice& device) {
  static const auto dvae = dvae_weights(kFullSizes).open();
  static const auto vocos = vocos_weights(1024, kFullSizes).open();
  return value_of(load_vocoder(*dvae, *vocos, vocoder_config(), device, {}, CancelFlag()));
}

std::unique_ptr<cuda::VocoderRunner> make_runner(const VocoderModel& model,
                                                 const StageStream& stream, bool graphs) {
  const StreamScope scope(stream);
  cuda::VocoderRunnerSpec spec = model.runner_spec(stream.runner_options(model.device()));
  spec.options.graphs = graphs;
  return value_of(model.device().runners->new_vocoder_runner(spec));
}

class VocoderRunnerTest : public GpuTest {
 protected:
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
};

TEST_F(VocoderRunnerTest, EveryWindowEqualsTheCpu) {
  const ModelPtr model = load_small(device_), cpu = load_small(at::kFloat);
  const ModelPtr aten = load_small(without_runners(at::kFloat));
  const StageStream stream(device_, true);
  const auto runner = make_runner(*model, stream, true);
  double worst = 0, worst_aten = 0, loudest = 0;
  for (int64_t rows = 1; rows <= 29; ++rows) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      const auto codes = some_codes(rows, 100 * seed + static_cast<uint64_t>(rows));
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
  const auto codes = some_codes(120);
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

// For racecheck, which takes seconds for each window.
TEST_F(VocoderRunnerTest, TwoWindows) {
  const ModelPtr model = load_small(device_), cpu = load_small(at::kFloat);
  const StageStream stream(device_, true);
  const auto runner = make_runner(*model, stream, false);
  for (const int64_t rows : {3, 29}) {
    const auto codes = some_codes(rows);
    EXPECT_LE(difference(runner_window(*model, *runner, codes), aten_window(*cpu, codes)), 1e-4);
  }
}

TEST_F(VocoderRunnerTest, GraphEqualsEager) {
  const ModelPtr model = load_full(device_);
  const StageStream stream(device_, true);
  const auto graph = make_runner(*model, stream, true), eager = make_runner(*model, stream, false);
  for (int64_t rows = 1; rows <= 29; ++rows) {
    const auto codes = some_codes(rows);
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
    const auto codes = some_codes(rows);
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
    const auto codes = some_codes(rows);
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
