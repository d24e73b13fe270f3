#include "vocoder/vocoder.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/gpu_timer.h"
#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

Error bad_codes(const std::string& what) {
  return {ErrorCode::kFormat, "speech codes: " + what, ""};
}

template <class T>
Result<std::vector<int32_t>> check_codes(std::span<const std::byte> bytes, int64_t limit) {
  std::vector<int32_t> codes(bytes.size() / sizeof(T));
  for (size_t i = 0; i < codes.size(); ++i) {
    T value;  // the bytes may lie at any address
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    if (value < 0 || value >= limit) {
      return bad_codes("the value " + std::to_string(value) + " is not one of 0.." +
                       std::to_string(limit - 1));
    }
    codes[i] = static_cast<int32_t>(value);
  }
  return codes;
}

// The values of a tensor (rows, books), checked.
Result<std::vector<int32_t>> read_codes(const Tensor& tensor, int64_t books, int64_t limit) {
  const auto& dims = tensor.dims();
  if (dims.size() != 2 || dims[1] != books || dims[0] < 0) {
    return bad_codes("a tensor of " + std::to_string(books) + " columns is needed");
  }
  if (dims[0] > VocoderModel::kMaxRows) {
    return bad_codes(std::to_string(dims[0]) + " rows at once; at most " +
                     std::to_string(VocoderModel::kMaxRows) + " are allowed");
  }
  ASSIGN_OR_RETURN(const auto bytes, tensor.host_bytes());
  if (bytes.size() != tensor.byte_size())
    return bad_codes("the tensor has not the size of its dimensions");
  switch (tensor.type()) {
    case DataType::kUInt16:
      return check_codes<uint16_t>(bytes, limit);
    case DataType::kInt32:
      return check_codes<int32_t>(bytes, limit);
    default:
      return bad_codes("the type must be uint16 or int32");
  }
}

TensorPtr to_tensor(std::span<const float> pcm) {
  const auto bytes = std::as_bytes(pcm);
  return std::make_shared<HostTensor>(DataType::kFloat32,
                                      std::vector<int64_t>{static_cast<int64_t>(pcm.size())},
                                      std::vector<std::byte>(bytes.begin(), bytes.end()));
}

class VocoderSession final : public Vocoder {
 public:
  VocoderSession(std::shared_ptr<const VocoderModel> model, const VocoderOptions& options)
      : model_(std::move(model)), options_(options), stream_(model_->device(), true) {}

  // Stays with ATen if the model has no runner.
  Result<void> make_runner() {
    const StageDevice& device = model_->device();
    if (device.runners == nullptr) return {};
    const StreamScope scope(stream_);
    auto runner =
        device.runners->new_vocoder_runner(model_->runner_spec(stream_.runner_options(device)));
    if (!runner.ok())
      return runner.error().code == ErrorCode::kSettings ? Result<void>() : runner.error();
    runner_ = std::move(*runner);
    return {};
  }

  Result<TensorPtr> step(const Tensor& codes, bool segment_start,
                         const CancelFlag& cancel) override {
    return run_stage("the vocoder", stream_,
                     [&]() { return decode(codes, segment_start, cancel); });
  }

  Result<TensorPtr> flush() override {
    return run_stage("the vocoder", [&]() -> Result<TensorPtr> {
      TensorPtr tail = to_tensor(held_);
      reset();
      return tail;
    });
  }

  void reset() override {
    context_.clear();
    held_.clear();
    segment_start_ = false;
  }

  int64_t gpu_nanoseconds() const override { return timer_.nanoseconds(); }

 private:
  Result<TensorPtr> decode(const Tensor& tensor, bool segment_start, const CancelFlag& cancel) {
    const int64_t books = model_->dvae().books();
    ASSIGN_OR_RETURN(const auto codes, read_codes(tensor, books, model_->dvae().codes()));
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "the vocoder was cancelled", ""};
    segment_start = segment_start || segment_start_;
    segment_start_ = segment_start && codes.empty();
    if (codes.empty()) return to_tensor({});

    std::vector<int32_t> window = context_;
    window.insert(window.end(), codes.begin(), codes.end());
    ASSIGN_OR_RETURN(const std::vector<float> wav, waveform(window));
    const bool join = segment_start && options_.compatibility == Compatibility::kUpstream;
    std::vector<float> pcm = join ? append(wav) : cross_fade(wav);

    const size_t context =
        std::min(window.size(), static_cast<size_t>(VocoderModel::kContextRows * books));
    context_.assign(window.end() - static_cast<std::ptrdiff_t>(context), window.end());
    const size_t tail =
        context / static_cast<size_t>(books) * static_cast<size_t>(model_->samples_per_row());
    held_.assign(pcm.end() - static_cast<std::ptrdiff_t>(tail), pcm.end());
    return to_tensor(std::span(pcm).first(pcm.size() - tail));
  }

  Result<std::vector<float>> waveform(std::span<const int32_t> window) {
    const GpuTimer::Call timed(timer_);
    const size_t rows = window.size() / static_cast<size_t>(model_->dvae().books());
    std::vector<float> wav(rows * static_cast<size_t>(model_->samples_per_row()));
    if (runner_) {
      RETURN_IF_ERROR(runner_->decode(window, wav));
    } else {
      const at::Tensor decoded = model_->decode(window).wav;
      std::memcpy(wav.data(), decoded.const_data_ptr<float>(), wav.size() * sizeof(float));
    }
    return wav;
  }

  std::vector<float> append(std::span<const float> wav) const {
    std::vector<float> pcm(held_);
    pcm.insert(pcm.end(), wav.begin(), wav.end());
    return pcm;
  }

  // The window begins with the rows whose samples are held, so it is as long as held_ at least.
  std::vector<float> cross_fade(std::span<const float> wav) const {
    std::vector<float> pcm(wav.begin(), wav.end());
    const size_t n = held_.size();
    for (size_t i = 0; i < n; ++i) {
      pcm[i] = (held_[i] * static_cast<float>(n - i) + wav[i] * static_cast<float>(i + 1)) /
               static_cast<float>(n + 1);
    }
    return pcm;
  }

  std::shared_ptr<const VocoderModel> model_;
  VocoderOptions options_;
  StageStream stream_;  // high priority: sound that comes late is heard
  GpuTimer timer_{stream_};
  std::unique_ptr<cuda::VocoderRunner> runner_;
  std::vector<int32_t> context_;  // the last code rows, kContextRows at most
  std::vector<float> held_;       // their samples, not yet returned
  bool segment_start_ = false;    // of a step without rows
};

}  // namespace

VocoderModel::VocoderModel(const StageDevice& device, Dvae dvae, Vocos vocos)
    : device_(device), dvae_(std::move(dvae)), vocos_(std::move(vocos)) {
  if (device_.runners != nullptr) synthesis_ = vocos_.synthesis();
}

cuda::VocoderRunnerSpec VocoderModel::runner_spec(const cuda::RunnerOptions& options) const {
  cuda::VocoderRunnerSpec spec;
  spec.options = options;
  dvae_.describe(spec);
  vocos_.describe(spec);
  spec.synthesis = synthesis_.const_data_ptr<float>();
  spec.max_rows = static_cast<int>(kContextRows + kMaxRows);
  return spec;
}

VocoderModel::Window VocoderModel::decode(std::span<const int32_t> codes) const {
  Window window;
  window.mel = dvae_.decode(codes);
  window.wav = vocos_.decode(window.mel).to(at::kCPU).contiguous();
  return window;
}

Result<std::shared_ptr<const VocoderModel>> load_vocoder(
    const Checkpoint& checkpoint, const Checkpoint& vocos, const ModelConfig& config,
    const StageDevice& device, const Progress& progress, const CancelFlag& cancel) {
  using Model = std::shared_ptr<const VocoderModel>;
  return run_stage("loading the vocoder", [&]() -> Result<Model> {
    if (progress) progress(0, "vocoder");
    const StageDevice dvae_device = device.runners != nullptr ? device.with(at::kFloat) : device;
    ASSIGN_OR_RETURN(auto dvae, Dvae::load(checkpoint, "tts.dvae.", config.speech.books,
                                           config.speech.audio_tokens - 1, dvae_device));
    if (cancel.is_set())
      return Error{ErrorCode::kCancelled, "loading the vocoder was cancelled", ""};
    if (progress) progress(50, "vocoder");
    ASSIGN_OR_RETURN(auto loaded, Vocos::load(vocos, dvae.mel_bins(), device.device));
    if (progress) progress(100, "vocoder");
    return Model(std::make_shared<VocoderModel>(device, std::move(dvae), std::move(loaded)));
  });
}

Result<std::unique_ptr<Vocoder>> new_vocoder(std::shared_ptr<const VocoderModel> model,
                                             const VocoderOptions& options) {
  auto session = std::make_unique<VocoderSession>(std::move(model), options);
  RETURN_IF_ERROR(session->make_runner());
  return std::unique_ptr<Vocoder>(std::move(session));
}

}  // namespace minicpmo
