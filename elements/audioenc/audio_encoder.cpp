#include "audioenc/audio_encoder.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/gpu_timer.h"
#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"

namespace minicpmo {

// Reads weights by name, with the shapes that follow from config.json.
struct AudioEncoderModel::Loader {
  const Checkpoint& checkpoint;
  int64_t hidden;
  const StageDevice& device;

  Result<Norm> norm(const std::string& name) const {
    Norm norm;
    ASSIGN_OR_RETURN(norm.weight, checkpoint.load(name + ".weight", {hidden}, device));
    ASSIGN_OR_RETURN(norm.bias, checkpoint.load(name + ".bias", {hidden}, device));
    return norm;
  }

  Result<Linear> linear(const std::string& name, int64_t out, int64_t in) const {
    Linear linear;
    ASSIGN_OR_RETURN(linear.weight, checkpoint.load(name + ".weight", {out, in}, device));
    ASSIGN_OR_RETURN(linear.bias, checkpoint.load(name + ".bias", {linear.weight.size(0)}, device));
    return linear;
  }

  // Queries, keys and values in one product. Whisper's keys have no bias.
  Result<Linear> qkv(const std::string& name) const {
    ASSIGN_OR_RETURN(const Linear q, linear(name + "q_proj", hidden, hidden));
    ASSIGN_OR_RETURN(const Linear v, linear(name + "v_proj", hidden, hidden));
    ASSIGN_OR_RETURN(const at::Tensor k,
                     checkpoint.load(name + "k_proj.weight", {hidden, hidden}, device));
    return Linear{at::cat({q.weight, k, v.weight}),
                  at::cat({q.bias, at::zeros({hidden}, q.bias.options()), v.bias})};
  }

  Result<Layer> layer(int64_t index, int64_t intermediate) const {
    const std::string name = "apm.layers." + std::to_string(index) + ".";
    Layer layer;
    ASSIGN_OR_RETURN(layer.attention_norm, norm(name + "self_attn_layer_norm"));
    ASSIGN_OR_RETURN(layer.qkv, qkv(name + "self_attn."));
    ASSIGN_OR_RETURN(layer.out, linear(name + "self_attn.out_proj", hidden, hidden));
    ASSIGN_OR_RETURN(layer.mlp_norm, norm(name + "final_layer_norm"));
    ASSIGN_OR_RETURN(layer.fc1, linear(name + "fc1", intermediate, hidden));
    ASSIGN_OR_RETURN(layer.fc2, linear(name + "fc2", hidden, intermediate));
    return layer;
  }
};

namespace {

Error corrupt(const Checkpoint& checkpoint, const std::string& what) {
  return {ErrorCode::kCorrupt, checkpoint.location() + ": " + what, ""};
}

// What the code below divides by or sizes things by.
Result<void> check(const Checkpoint& checkpoint, const AudioConfig& c) {
  if (c.hidden_size < 1 || c.heads < 1 || c.hidden_size % c.heads != 0 || c.layers < 1 ||
      c.intermediate_size < 1 || c.max_positions < 2 || c.pool_step < 1 || c.mel_bins < 1 ||
      c.mel_bins > LogMel::kFftSize / 2) {
    return corrupt(checkpoint,
                   "the audio_config of config.json makes no sense: d_model must be a "
                   "multiple of encoder_attention_heads, all sizes positive");
  }
  const int64_t layers = checkpoint.count("apm.layers.", ".fc1.weight");
  if (layers > c.layers) {
    return corrupt(checkpoint, "has " + std::to_string(layers) +
                                   " layers apm.layers.N, but config.json has " +
                                   std::to_string(c.layers) + " (audio_config.encoder_layers)");
  }
  return {};
}

}  // namespace

at::Tensor AudioEncoderModel::Norm::operator()(const at::Tensor& x) const {
  return at::layer_norm(x, weight.sizes(), weight, bias, 1e-5);
}

at::Tensor AudioEncoderModel::Linear::operator()(const at::Tensor& x) const {
  return at::linear(x, weight, bias);
}

cuda::EncoderLayerWeights AudioEncoderModel::Layer::for_runner(const at::Tensor& keys,
                                                               const at::Tensor& values) const {
  cuda::EncoderLayerWeights w;
  w.attention_norm = bfloat16_data(attention_norm.weight);
  w.attention_norm_bias = bfloat16_data(attention_norm.bias);
  w.qkv = bfloat16_data(qkv.weight);
  w.qkv_bias = bfloat16_data(qkv.bias);
  w.out = bfloat16_data(out.weight);
  w.out_bias = bfloat16_data(out.bias);
  w.mlp_norm = bfloat16_data(mlp_norm.weight);
  w.mlp_norm_bias = bfloat16_data(mlp_norm.bias);
  w.fc1 = bfloat16_data(fc1.weight);
  w.fc1_bias = bfloat16_data(fc1.bias);
  w.fc2 = bfloat16_data(fc2.weight);
  w.fc2_bias = bfloat16_data(fc2.bias);
  w.keys = bfloat16_data(keys);
  w.values = bfloat16_data(values);
  return w;
}

AudioEncoderModel::AudioEncoderModel(const AudioConfig& config, const StageDevice& device)
    : config_(config), device_(device), log_mel_(config.mel_bins) {}

Result<void> AudioEncoderModel::load_front(const Loader& loader, int64_t language_size) {
  const Checkpoint& checkpoint = loader.checkpoint;
  const int64_t hidden = config_.hidden_size;
  ASSIGN_OR_RETURN(conv1_,
                   Conv1d::load(checkpoint, "apm.conv1", hidden, config_.mel_bins, true, device_));
  ASSIGN_OR_RETURN(conv2_, Conv1d::load(checkpoint, "apm.conv2", hidden, hidden, true, device_, 2));
  ASSIGN_OR_RETURN(embed_positions_, checkpoint.load("apm.embed_positions.weight",
                                                     {config_.max_positions, hidden}, device_));
  ASSIGN_OR_RETURN(norm_, loader.norm("apm.layer_norm"));
  ASSIGN_OR_RETURN(projector1_, loader.linear("audio_projection_layer.linear1", -1, hidden));
  ASSIGN_OR_RETURN(projector2_, loader.linear("audio_projection_layer.linear2", language_size,
                                              projector1_.weight.size(0)));
  return {};
}

Result<std::shared_ptr<const AudioEncoderModel>> AudioEncoderModel::load(
    const Checkpoint& checkpoint, const ModelConfig& config, const StageDevice& device,
    const Progress& progress, const CancelFlag& cancel) {
  RETURN_IF_ERROR(check(checkpoint, config.audio));
  std::shared_ptr<AudioEncoderModel> model(new AudioEncoderModel(config.audio, device));
  const Loader loader{checkpoint, config.audio.hidden_size, device};
  RETURN_IF_ERROR(model->load_front(loader, config.language.hidden_size));
  for (int64_t i = 0; i < config.audio.layers; ++i) {
    if (cancel.is_set()) {
      return Error{ErrorCode::kCancelled, "loading the audio encoder was cancelled", ""};
    }
    if (progress) progress(static_cast<int>(100 * i / config.audio.layers), "audio encoder");
    ASSIGN_OR_RETURN(auto layer, loader.layer(i, config.audio.intermediate_size));
    model->layers_.push_back(std::move(layer));
  }
  if (progress) progress(100, "audio encoder");
  return std::shared_ptr<const AudioEncoderModel>(std::move(model));
}

void AudioEncoderModel::prepare(AudioCache& cache, int64_t positions) const {
  if (cache.length + positions >= config_.max_positions) cache.length = 0;
  if (!cache.keys.empty()) return;
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < 2 * layers_.size(); ++i) {
    tensors.push_back(
        at::empty({config_.heads, config_.max_positions, config_.hidden_size / config_.heads},
                  device_.options()));
  }
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(layers_.size());
  cache.values.assign(middle, tensors.end());
  cache.keys.assign(tensors.begin(), middle);
}

at::Tensor AudioEncoderModel::attention(const Layer& layer, const at::Tensor& x, at::Tensor keys,
                                        at::Tensor values, int64_t begin) const {
  const int64_t frames = x.size(0), end = begin + frames;
  const at::Tensor qkv =
      layer.qkv(layer.attention_norm(x)).view({frames, 3, config_.heads, -1}).permute({1, 2, 0, 3});
  keys.narrow(1, begin, frames).copy_(qkv[1]);
  values.narrow(1, begin, frames).copy_(qkv[2]);
  const at::Tensor mixed =
      at::scaled_dot_product_attention(qkv[0].unsqueeze(0), keys.narrow(1, 0, end).unsqueeze(0),
                                       values.narrow(1, 0, end).unsqueeze(0));
  return layer.out(mixed[0].transpose(0, 1).reshape({frames, config_.hidden_size}));
}

at::Tensor AudioEncoderModel::encode(const at::Tensor& mel, AudioCache& cache,
                                     const CancelFlag& cancel) const {
  at::Tensor x = conv1_(mel.to(device_.device, device_.type));
  at::gelu_(x);
  x = conv2_(x);
  at::gelu_(x);
  const int64_t frames = x.size(0);
  prepare(cache, frames);
  x.add_(embed_positions_.narrow(0, cache.length, frames));
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (cancel.is_set()) return {};
    const Layer& layer = layers_[i];
    x.add_(attention(layer, x, cache.keys[i], cache.values[i], cache.length));
    at::Tensor y = layer.fc1(layer.mlp_norm(x));
    at::gelu_(y);
    x.add_(layer.fc2(y));
  }
  cache.length += frames;
  return norm_(x);
}

Result<std::unique_ptr<cuda::EncoderRunner>> AudioEncoderModel::new_runner(
    const cuda::RunnerOptions& options, int64_t max_frames, const AudioCache& cache) const {
  if (device_.type != at::kBFloat16 || device_.runners == nullptr || conv1_.kernel != 3 ||
      conv2_.kernel != 3) {
    return Error{ErrorCode::kSettings, "the audio encoder: no kernels for this model", ""};
  }
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  cuda::EncoderRunnerSpec spec;
  spec.options = options;
  spec.mel_bins = narrow(config_.mel_bins);
  spec.hidden = narrow(config_.hidden_size);
  spec.heads = narrow(config_.heads);
  spec.ffn = narrow(config_.intermediate_size);
  spec.max_positions = narrow(config_.max_positions);
  spec.pool_step = narrow(config_.pool_step);
  spec.projected = narrow(projector1_.weight.size(0));
  spec.language = narrow(projector2_.weight.size(0));
  spec.max_frames = narrow(max_frames);
  spec.conv1 = bfloat16_data(conv1_.weight);
  spec.conv1_bias = bfloat16_data(conv1_.bias);
  spec.conv2 = bfloat16_data(conv2_.weight);
  spec.conv2_bias = bfloat16_data(conv2_.bias);
  spec.positions = bfloat16_data(embed_positions_);
  spec.norm = bfloat16_data(norm_.weight);
  spec.norm_bias = bfloat16_data(norm_.bias);
  spec.projector1 = bfloat16_data(projector1_.weight);
  spec.projector1_bias = bfloat16_data(projector1_.bias);
  spec.projector2 = bfloat16_data(projector2_.weight);
  spec.projector2_bias = bfloat16_data(projector2_.bias);
  for (size_t i = 0; i < layers_.size(); ++i) {
    spec.layers.push_back(layers_[i].for_runner(cache.keys[i], cache.values[i]));
  }
  return device_.runners->new_encoder_runner(spec);
}

at::Tensor AudioEncoderModel::project(const at::Tensor& states) const {
  const int64_t rows = states.size(0) / config_.pool_step;
  const at::Tensor y = projector1_(states.narrow(0, 0, rows * config_.pool_step)).relu_();
  // The model projects, then averages; the second product is linear, so averaging before it is the
  // same for half of the work.
  return projector2_(y.view({rows, config_.pool_step, -1}).mean(1));
}

namespace {

class AudioEncoderSession final : public AudioEncoder {
 public:
  explicit AudioEncoderSession(std::shared_ptr<const AudioEncoderModel> model)
      : model_(std::move(model)), stream_(model_->device(), /*high_priority=*/false) {}

  // The runner, where there is one.
  Result<void> prepare() {
    const StageDevice& device = model_->device();
    if (device.runners == nullptr || device.type != at::kBFloat16) return {};
    return run_stage("the audio encoder", stream_, [&]() -> Result<void> {
      const AudioConfig& config = model_->config();
      const int64_t samples =
          std::llround(config.chunk_seconds * static_cast<double>(LogMel::kSampleRate));
      const int64_t frames = LogMel::frames(std::clamp<int64_t>(samples, 1, model_->max_samples()));
      model_->prepare(cache_, 0);
      auto runner = model_->new_runner(stream_.runner_options(device), frames, cache_);
      if (!runner.ok() && runner.error().code == ErrorCode::kSettings) return {};
      ASSIGN_OR_RETURN(runner_, std::move(runner));
      runner_frames_ = frames;
      return {};
    });
  }

  Result<TensorPtr> step(std::span<const float> pcm, const CancelFlag& cancel) override {
    return run_stage("the audio encoder", stream_, [&]() { return encode(pcm, cancel); });
  }

  void reset() override { cache_.length = 0; }
  int64_t gpu_nanoseconds() const override { return timer_.nanoseconds(); }

 private:
  Result<TensorPtr> encode(std::span<const float> pcm, const CancelFlag& cancel) {
    const auto samples = static_cast<int64_t>(pcm.size());
    if (samples > model_->max_samples()) {
      return Error{ErrorCode::kFormat,
                   "an audio chunk of " + std::to_string(samples) +
                       " samples is too long; at most " + std::to_string(model_->max_samples()) +
                       " samples fit the audio encoder",
                   ""};
    }
    if (model_->rows(samples) < 1) return TensorPtr();
    const at::Tensor mel = model_->mel(pcm);
    const GpuTimer::Call timed(timer_);
    if (mel.size(0) <= runner_frames_) return run(mel, cancel);
    const at::Tensor states = model_->encode(mel, cache_, cancel);
    if (!states.defined()) return cancelled();
    return wrap_tensor(model_->project(states));
  }

  Result<TensorPtr> run(const at::Tensor& mel, const CancelFlag& cancel) {
    if (cancel.is_set()) return cancelled();
    const int64_t positions = (mel.size(0) + 1) / 2;
    model_->prepare(cache_, positions);
    const at::Tensor embeddings =
        at::empty({positions / model_->config().pool_step, model_->language_size()},
                  model_->device().options());
    const std::span<const float> frames(mel.const_data_ptr<float>(),
                                        static_cast<size_t>(mel.numel()));
    RETURN_IF_ERROR(
        runner_->step(frames, static_cast<int>(cache_.length), bfloat16_data(embeddings)));
    cache_.length += positions;
    return wrap_tensor(embeddings);
  }

  static Error cancelled() {
    return Error{ErrorCode::kCancelled, "encoding audio was cancelled", ""};
  }

  std::shared_ptr<const AudioEncoderModel> model_;
  StageStream stream_;
  GpuTimer timer_{stream_};
  AudioCache cache_;
  std::unique_ptr<cuda::EncoderRunner> runner_;
  int64_t runner_frames_ = 0;  // mel frames that it takes
};

}  // namespace

Result<std::shared_ptr<const AudioEncoderModel>> load_audio_encoder(const Checkpoint& checkpoint,
                                                                    const ModelConfig& config,
                                                                    const StageDevice& device,
                                                                    const Progress& progress,
                                                                    const CancelFlag& cancel) {
  return run_stage("loading the audio encoder", [&]() {
    return AudioEncoderModel::load(checkpoint, config, device, progress, cancel);
  });
}

Result<std::unique_ptr<AudioEncoder>> new_audio_encoder(
    std::shared_ptr<const AudioEncoderModel> model) {
  auto session = std::make_unique<AudioEncoderSession>(std::move(model));
  RETURN_IF_ERROR(session->prepare());
  return std::unique_ptr<AudioEncoder>(std::move(session));
}

}  // namespace minicpmo
