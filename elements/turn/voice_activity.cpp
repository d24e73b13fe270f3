#include "turn/voice_activity.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/checkpoint.h"
#include "engine/cpu_kernels.h"
#include "engine/stage_scope.h"
#include "turn/background.h"

namespace minicpmo {
namespace {

constexpr size_t kWindow = VoiceActivity::kWindow;
constexpr size_t kContext = 64;  // samples before the window, and mirrored ones behind it
constexpr int64_t kFftLength = 256, kHop = 128, kBins = kFftLength / 2 + 1;
constexpr int64_t kFrames = (kWindow + 2 * kContext - kFftLength) / kHop + 1;
static_assert(kFrames == 4);
constexpr int64_t kHidden = 128;
constexpr int64_t kKernel = 3;

struct ConvShape {
  const char* name;
  int64_t in, out, stride, frames;  // frames: of its input
};
constexpr std::array<ConvShape, 4> kConvolutions = {{{"conv1", kBins, 128, 1, kFrames},
                                                     {"conv2", 128, 64, 2, 4},
                                                     {"conv3", 64, 64, 2, 2},
                                                     {"conv4", 64, kHidden, 1, 1}}};
// Far beyond any sound. A sample whose square is infinite would stay in the LSTM's state as NaN.
constexpr float kLoudest = 1e6f;

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

// y = weight x + bias on float32 rows; the weight is (out, in).
struct Linear {
  at::Tensor weight, bias;

  void operator()(const float* x, int64_t rows, int64_t step, float* y) const {
    cpu::linear(x, rows, step, weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
                weight.size(0), weight.size(1), y);
  }
};

struct Network {
  Linear fourier;  // 2 bins out: real parts, then imaginary ones, of a windowed transform
  std::array<Linear, kConvolutions.size()> convolutions;  // kernel * in: its frames one by one
  Linear input_gates, state_gates;                        // of the LSTM cell: in, forget, cell, out
  Linear out;

  // Throws c10::Error.
  Result<void> load(const Checkpoint& file);
};

Result<Linear> load_linear(const Checkpoint& file, const std::string& weight,
                           const std::string& bias, const std::vector<int64_t>& shape) {
  Linear linear;
  ASSIGN_OR_RETURN(linear.weight, file.load(weight, shape, StageDevice()));
  if (shape.size() == 3) linear.weight = linear.weight.permute({0, 2, 1}).reshape({shape[0], -1});
  linear.weight = linear.weight.contiguous();
  if (bias.empty()) {
    linear.bias = at::zeros({shape[0]});
  } else {
    ASSIGN_OR_RETURN(linear.bias, file.load(bias, {shape[0]}, StageDevice()));
  }
  return linear;
}

Result<void> Network::load(const Checkpoint& file) {
  ASSIGN_OR_RETURN(fourier, load_linear(file, "stft_conv.weight", "", {2 * kBins, 1, kFftLength}));
  for (size_t i = 0; i < kConvolutions.size(); ++i) {
    const ConvShape& shape = kConvolutions[i];
    const std::string name = shape.name;
    ASSIGN_OR_RETURN(convolutions[i], load_linear(file, name + ".weight", name + ".bias",
                                                  {shape.out, shape.in, kKernel}));
  }
  const std::vector<int64_t> gates = {4 * kHidden, kHidden};
  ASSIGN_OR_RETURN(input_gates,
                   load_linear(file, "lstm_cell.weight_ih", "lstm_cell.bias_ih", gates));
  ASSIGN_OR_RETURN(state_gates,
                   load_linear(file, "lstm_cell.weight_hh", "lstm_cell.bias_hh", gates));
  ASSIGN_OR_RETURN(out, load_linear(file, "final_conv.weight", "final_conv.bias", {1, kHidden, 1}));
  return {};
}

using Gates = std::array<float, 4 * kHidden>;
using Hidden = std::array<float, kHidden>;

// What one session remembers.
struct State {
  std::array<float, kWindow + 2 * kContext> signal{};  // before, the window, its end mirrored
  Hidden hidden{}, cell{};
  Background background;
};

class Silero final : public VoiceActivity {
 public:
  Silero(Network network, float margin_db)
      : network_(std::move(network)), margin_db_(margin_db), spectrum_(kFrames * 2 * kBins) {
    // A frame of zeros before the first and behind the last one.
    for (size_t i = 0; i < kConvolutions.size(); ++i)
      frames_[i].resize(static_cast<size_t>((kConvolutions[i].frames + 2) * kConvolutions[i].in));
  }

  Result<float> step(std::span<const float, kWindow> pcm) override {
    hear(pcm);
    transform();
    Hidden features;
    for (size_t i = 0; i < kConvolutions.size(); ++i) {
      const bool last = i + 1 == kConvolutions.size();
      convolve(i, last ? features.data() : frames_[i + 1].data() + kConvolutions[i + 1].in);
    }
    const float speech = remember(features);
    const std::span<const float> window(state_.signal.data() + kContext, kWindow);
    const bool meant = margin_db_ <= 0 || state_.background.stands_out(window, margin_db_);
    return meant ? speech : 0.0f;
  }

  void reset() override { state_ = State(); }

 private:
  void hear(std::span<const float, kWindow> pcm) {
    float* const window = state_.signal.data() + kContext;
    float* const end = window + kWindow;
    std::copy(end - kContext, end, state_.signal.data());
    std::transform(pcm.begin(), pcm.end(), window, [](float x) {
      return std::isfinite(x) ? std::clamp(x, -kLoudest, kLoudest) : 0.0f;
    });
    std::reverse_copy(end - 1 - kContext, end - 1, end);
  }

  // The magnitudes of the short-time Fourier transforms.
  void transform() {
    network_.fourier(state_.signal.data(), kFrames, kHop, spectrum_.data());
    float* magnitude = frames_[0].data() + kBins;
    for (int64_t frame = 0; frame < kFrames; ++frame) {
      const float* const real = spectrum_.data() + frame * 2 * kBins;
      const float* const imaginary = real + kBins;
      for (int64_t i = 0; i < kBins; ++i)
        *magnitude++ = std::sqrt(real[i] * real[i] + imaginary[i] * imaginary[i]);
    }
  }

  void convolve(size_t index, float* out) {
    const ConvShape& shape = kConvolutions[index];
    const int64_t rows = (shape.frames - 1) / shape.stride + 1;
    network_.convolutions[index](frames_[index].data(), rows, shape.stride * shape.in, out);
    std::for_each_n(out, rows * shape.out, [](float& x) { x = std::max(x, 0.0f); });
  }

  // The LSTM cell and the unit behind it.
  float remember(const Hidden& features) {
    Gates gates, from_state;
    network_.input_gates(features.data(), 1, 0, gates.data());
    network_.state_gates(state_.hidden.data(), 1, 0, from_state.data());
    Hidden heard;
    for (size_t i = 0; i < kHidden; ++i) {
      const auto gate = [&](size_t which) {
        return gates[which * kHidden + i] + from_state[which * kHidden + i];
      };
      float& cell = state_.cell[i];
      cell = sigmoid(gate(1)) * cell + sigmoid(gate(0)) * std::tanh(gate(2));
      state_.hidden[i] = sigmoid(gate(3)) * std::tanh(cell);
      heard[i] = std::max(state_.hidden[i], 0.0f);
    }
    float score;
    network_.out(heard.data(), 1, 0, &score);
    return sigmoid(score);
  }

  const Network network_;
  const float margin_db_;
  State state_;
  std::vector<float> spectrum_;                                  // (frames, 2 bins)
  std::array<std::vector<float>, kConvolutions.size()> frames_;  // inputs of the convolutions
};

constexpr const char* kWhatToDo =
    "; name the silero_vad_16k.safetensors of silero-vad 6.2.3 on PyPI, which tools/setup fetches";

}  // namespace

Result<std::unique_ptr<VoiceActivity>> new_voice_activity(const std::string& path,
                                                          float margin_db) {
  auto loaded = run_stage("voice activity", [&]() -> Result<std::unique_ptr<VoiceActivity>> {
    ASSIGN_OR_RETURN(const auto file, Checkpoint::open_file(path));
    Network network;
    RETURN_IF_ERROR(network.load(*file));
    return std::unique_ptr<VoiceActivity>(std::make_unique<Silero>(std::move(network), margin_db));
  });
  if (loaded.ok()) return loaded;
  Error error = loaded.error();
  if (error.code != ErrorCode::kNoSpace && error.code != ErrorCode::kFailed)
    error.message += kWhatToDo;
  return error;
}

}  // namespace minicpmo
