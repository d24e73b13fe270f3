// What the tests of the vocoder's runner share, on a GPU and on the emulated device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "engine/stage_scope.h"
#include "value_of.h"
#include "vocoder/vocoder.h"
#include "vocoder/vocoder_weights.h"

namespace minicpmo {

using ModelPtr = std::shared_ptr<const VocoderModel>;

// Of full scale, runner against the CPU. Both are float32 and sum in another order: on the small
// checkpoint the mel spectrograms differ by 1e-6, and the exponential of the head makes up to ten
// times as much of it where the sound is loud.
constexpr double kRunnerBound = 1e-5;

// MINICPMO_MODEL in the environment, otherwise the small checkpoint of the source tree.
inline std::string model_directory() {
  const char* const named = std::getenv("MINICPMO_MODEL");
  return named != nullptr ? named : MODEL_DIR;
}

inline ModelPtr load_small(const StageDevice& device) {
  const std::string directory = model_directory();
  const auto checkpoint = value_of(Checkpoint::open(directory));
  const auto vocos = value_of(Checkpoint::open_file(directory + "/assets/Vocos.safetensors"));
  const ModelConfig config = value_of(read_config(directory));
  return value_of(load_vocoder(*checkpoint, *vocos, config, device, {}, CancelFlag()));
}

inline std::vector<float> aten_window(const VocoderModel& model, std::span<const int32_t> codes) {
  const StageScope scope;
  const at::Tensor wav = model.decode(codes).wav;
  return {wav.const_data_ptr<float>(), wav.const_data_ptr<float>() + wav.numel()};
}

inline std::vector<float> runner_window(const VocoderModel& model, cuda::VocoderRunner& runner,
                                        std::span<const int32_t> codes) {
  std::vector<float> pcm(codes.size() / 4 * static_cast<size_t>(model.samples_per_row()), NAN);
  const auto done = runner.decode(codes, pcm);
  if (!done.ok()) throw std::runtime_error(done.error().message + " " + done.error().detail);
  return pcm;
}

// NaN counts as infinite.
inline double difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

// The whole answer of a new session whose calls end at these rows.
inline std::vector<float> stream(const ModelPtr& model, const std::vector<int32_t>& codes,
                                 const std::vector<int64_t>& ends) {
  const auto session = value_of(new_vocoder(model, VocoderOptions()));
  std::vector<float> pcm;
  const auto append = [&](const TensorPtr& piece) {
    const auto bytes = value_of(piece->host_bytes());
    const size_t begin = pcm.size();
    pcm.resize(begin + bytes.size() / sizeof(float));
    if (!bytes.empty()) std::memcpy(pcm.data() + begin, bytes.data(), bytes.size());
  };
  int64_t begin = 0;
  for (const int64_t end : ends) {
    const auto bytes = std::as_bytes(std::span(codes).subspan(4 * begin, 4 * (end - begin)));
    const HostTensor rows(DataType::kInt32, {end - begin, 4},
                          std::vector<std::byte>(bytes.begin(), bytes.end()));
    append(value_of(session->step(rows, false, CancelFlag())));
    begin = end;
  }
  append(value_of(session->flush()));
  return pcm;
}

}  // namespace minicpmo
