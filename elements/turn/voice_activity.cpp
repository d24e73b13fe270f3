#include "turn/voice_activity.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/lstm_cell.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>

#include "engine/checkpoint.h"
#include "engine/conv1d.h"
#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

constexpr int64_t kContext = 64;  // samples before the window, and mirrored ones behind it
constexpr int64_t kWindow = VoiceActivity::kWindow;
constexpr int64_t kFftLength = 256, kHop = 128, kBins = kFftLength / 2 + 1;
constexpr int64_t kFrames = (kWindow + 2 * kContext - kFftLength) / kHop + 1;
constexpr int64_t kHidden = 128;

struct ConvShape {
  const char* name;
  int64_t out, in, stride;
};
constexpr std::array<ConvShape, 4> kConvolutions = {{{"conv1", 128, kBins, 1},
                                                     {"conv2", 64, 128, 2},
                                                     {"conv3", 64, 64, 2},
                                                     {"conv4", kHidden, 64, 1}}};
constexpr int64_t kKernel = 3;
// Far beyond any sound. A sample whose square is infinite would stay in the LSTM's state as NaN.
constexpr float kLoudest = 1e6f;

struct Network {
  at::Tensor fourier;  // (2 bins, FFT length): real parts, then imaginary ones, windowed
  std::array<Conv1d, kConvolutions.size()> convolutions;
  at::Tensor input_weight, state_weight, input_bias, state_bias;  // of the LSTM cell
  at::Tensor out;                                                 // (hidden)
  float out_bias = 0;

  Result<void> load(const Checkpoint& file);
};

Result<void> Network::load(const Checkpoint& file) {
  const StageDevice cpu;
  ASSIGN_OR_RETURN(fourier, file.load("stft_conv.weight", {2 * kBins, 1, kFftLength}, cpu));
  fourier = fourier.view({2 * kBins, kFftLength});
  for (size_t i = 0; i < kConvolutions.size(); ++i) {
    const ConvShape& shape = kConvolutions[i];
    ASSIGN_OR_RETURN(Conv1d conv,
                     Conv1d::load(file, shape.name, shape.out, shape.in, true, cpu, shape.stride));
    if (conv.kernel != kKernel) {
      return Error{ErrorCode::kCorrupt,
                   file.location() + ": tensor \"" + shape.name + ".weight\" has a kernel of " +
                       std::to_string(conv.kernel) + ", expected " + std::to_string(kKernel)};
    }
    convolutions[i] = std::move(conv);
  }
  const int64_t gates = 4 * kHidden;
  ASSIGN_OR_RETURN(input_weight, file.load("lstm_cell.weight_ih", {gates, kHidden}, cpu));
  ASSIGN_OR_RETURN(state_weight, file.load("lstm_cell.weight_hh", {gates, kHidden}, cpu));
  ASSIGN_OR_RETURN(input_bias, file.load("lstm_cell.bias_ih", {gates}, cpu));
  ASSIGN_OR_RETURN(state_bias, file.load("lstm_cell.bias_hh", {gates}, cpu));
  ASSIGN_OR_RETURN(out, file.load("final_conv.weight", {1, kHidden, 1}, cpu));
  out = out.view({kHidden});
  ASSIGN_OR_RETURN(const at::Tensor bias, file.load("final_conv.bias", {1}, cpu));
  out_bias = *bias.const_data_ptr<float>();
  return {};
}

class Silero final : public VoiceActivity {
 public:
  // Throws c10::Error.
  explicit Silero(Network network)
      : network_(std::move(network)), signal_(at::zeros({kWindow + 2 * kContext})) {
    clear();
  }

  Result<float> step(std::span<const float, VoiceActivity::kWindow> pcm) override {
    return run_stage("voice activity", [&]() -> Result<float> {
      hear(pcm);
      return probability();
    });
  }

  void reset() override {
    (void)run_stage("voice activity", [&]() -> Result<void> {
      clear();
      return {};
    });
  }

 private:
  void clear() {
    signal_.zero_();
    hidden_ = at::zeros({1, kHidden});
    cell_ = at::zeros({1, kHidden});
  }

  void hear(std::span<const float, VoiceActivity::kWindow> pcm) {
    float* const signal = signal_.mutable_data_ptr<float>();
    float* const window = signal + kContext;
    float* const end = window + kWindow;
    std::copy(end - kContext, end, signal);
    std::transform(pcm.begin(), pcm.end(), window, [](float x) {
      return std::isfinite(x) ? std::clamp(x, -kLoudest, kLoudest) : 0.0f;
    });
    std::reverse_copy(end - 1 - kContext, end - 1, end);
  }

  float probability() {
    const at::Tensor spectrum = at::linear(
        signal_.as_strided({kFrames, kFftLength}, {kHop, 1}).contiguous(), network_.fourier);
    at::Tensor x = spectrum.narrow(1, 0, kBins).square();
    x.add_(spectrum.narrow(1, kBins, kBins).square()).sqrt_();
    for (const Conv1d& convolution : network_.convolutions) x = convolution(x).relu_();
    std::tie(hidden_, cell_) =
        at::lstm_cell(x, {hidden_, cell_}, network_.input_weight, network_.state_weight,
                      network_.input_bias, network_.state_bias);
    const at::Tensor score = at::dot(hidden_.relu().view({kHidden}), network_.out);
    return 1.0f / (1.0f + std::exp(-(*score.const_data_ptr<float>() + network_.out_bias)));
  }

  const Network network_;
  at::Tensor signal_;         // what came before, the window, its end mirrored
  at::Tensor hidden_, cell_;  // (1, hidden)
};

constexpr const char* kWhatToDo =
    "; name the silero_vad_16k.safetensors of silero-vad 6.2.3 on PyPI, which tools/setup fetches";

}  // namespace

Result<std::unique_ptr<VoiceActivity>> new_voice_activity(const std::string& path) {
  auto loaded = run_stage("voice activity", [&]() -> Result<std::unique_ptr<VoiceActivity>> {
    ASSIGN_OR_RETURN(const auto file, Checkpoint::open_file(path));
    Network network;
    RETURN_IF_ERROR(network.load(*file));
    return std::unique_ptr<VoiceActivity>(std::make_unique<Silero>(std::move(network)));
  });
  if (loaded.ok()) return loaded;
  Error error = loaded.error();
  if (error.code != ErrorCode::kNoSpace && error.code != ErrorCode::kFailed)
    error.message += kWhatToDo;
  return error;
}

}  // namespace minicpmo
