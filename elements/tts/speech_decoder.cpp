#include "tts/speech_decoder.h"

#define AT_PER_OPERATOR_HEADERS  // TensorOperators.h would include every operator of torch
                                 // otherwise
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

constexpr int64_t kStepsPerSlice =
    50;  // audio steps after which one more slice of text becomes visible

Result<void> check_config(const SpeechConfig& config, const Tokenizer& tokenizer,
                          int32_t start_token) {
  const auto corrupt = [](const std::string& what) {
    return Error{ErrorCode::kCorrupt, "config.json: tts_config: " + what};
  };
  if (config.books != kBooks)
    return corrupt("num_vq is " + std::to_string(config.books) + ", not 4");
  if (config.audio_tokens < 2 || config.audio_tokens > 65536) {
    return corrupt("num_audio_tokens is " + std::to_string(config.audio_tokens) + ", not 2..65536");
  }
  if (config.text_slice < 1 || config.text_reserved < config.text_slice) {
    return corrupt("streaming_text_reserved_len and streaming_text_chunk_size do not go together");
  }
  if (config.decoder.max_positions <= 2 * config.text_reserved) {
    return corrupt("max_position_embeddings leaves no room for codes");
  }
  if (start_token < 0) {
    return Error{ErrorCode::kCorrupt,
                 "the speech tokenizer has no token [Stts]: is it that of MiniCPM-o?"};
  }
  const int64_t largest =
      std::max<int64_t>({tokenizer.size() - 1, start_token, config.speaker_token,
                         config.audio_bos_token, config.text_eos_token});
  if (largest >= config.text_tokens) {
    return corrupt("num_text_tokens is " + std::to_string(config.text_tokens) +
                   ", but there is a token " + std::to_string(largest));
  }
  return {};
}

// Weight norm (Salimans, Kingma 2016; torch.nn.utils.parametrizations.weight_norm with dim 0),
// folded in float32, on the CPU whatever the device: the heads are the same everywhere.
Result<at::Tensor> load_head(const Checkpoint& checkpoint, const std::string& name, int64_t rows,
                             int64_t width) {
  const std::string base = name + ".parametrizations.weight.original";
  ASSIGN_OR_RETURN(const at::Tensor g, checkpoint.load(base + "0", {rows, 1}, at::kFloat));
  ASSIGN_OR_RETURN(const at::Tensor v, checkpoint.load(base + "1", {rows, width}, at::kFloat));
  return g * v / at::linalg_vector_norm(v, 2, at::IntArrayRef{1}, true);
}

at::Tensor index_on(const StageDevice& device, const std::vector<int64_t>& values) {
  at::Tensor index = at::empty({std::ssize(values)}, at::kLong);
  std::copy(values.begin(), values.end(), index.mutable_data_ptr<int64_t>());
  return index.to(device.device);
}

bool runs_on_runner(const StageDevice& device) {
  return device.runners != nullptr && device.runners->new_speech_runner != nullptr &&
         device.type == at::kBFloat16;
}

// A runner's error, as one that run_stage() turns into the same again.
void check_runner(const Result<void>& result) {
  if (result.ok()) return;
  const Error& error = result.error();
  TORCH_CHECK_WITH(OutOfMemoryError, error.code != ErrorCode::kNoSpace, error.message, ": ",
                   error.detail);
  TORCH_CHECK(false, error.message, ": ", error.detail);
}

Result<void> load_embeddings(const Checkpoint& checkpoint, SpeechModelWeights& weights) {
  const SpeechConfig& config = weights.config;
  const int64_t width = config.decoder.hidden_size, tokens = config.audio_tokens;
  const auto load = [&](const std::string& name, const std::vector<int64_t>& shape) {
    return checkpoint.load("tts." + name, shape, weights.device);
  };
  ASSIGN_OR_RETURN(weights.projector1_weight,
                   load("projector.linear1.weight", {width, config.llm_dim}));
  ASSIGN_OR_RETURN(weights.projector1_bias, load("projector.linear1.bias", {width}));
  ASSIGN_OR_RETURN(weights.projector2_weight, load("projector.linear2.weight", {width, width}));
  ASSIGN_OR_RETURN(weights.projector2_bias, load("projector.linear2.bias", {width}));
  ASSIGN_OR_RETURN(weights.emb_text, load("emb_text.weight", {config.text_tokens, width}));
  std::vector<at::Tensor> embeddings, heads;
  for (int64_t book = 0; book < kBooks; ++book) {
    const std::string n = std::to_string(book);
    ASSIGN_OR_RETURN(at::Tensor embedding, load("emb_code." + n + ".weight", {tokens, width}));
    ASSIGN_OR_RETURN(at::Tensor head, load_head(checkpoint, "tts.head_code." + n, tokens, width));
    embeddings.push_back(std::move(embedding));
    heads.push_back(std::move(head));
  }
  weights.emb_code = at::cat(embeddings, 0);
  weights.heads = at::cat(heads, 0).to(weights.device.device);
  if (runs_on_runner(weights.device)) weights.runner_heads = weights.heads.to(at::kBFloat16);
  return {};
}

}  // namespace

Result<std::shared_ptr<const SpeechModelWeights>> load_speech_model(
    const Checkpoint& checkpoint, const ModelConfig& config,
    std::shared_ptr<const Tokenizer> tokenizer, const StageDevice& device, const Progress& progress,
    const CancelFlag& cancel) {
  using Loaded = Result<std::shared_ptr<const SpeechModelWeights>>;
  return run_stage("loading the speech model", [&]() -> Loaded {
    auto weights = std::make_shared<SpeechModelWeights>();
    weights->config = config.speech;
    weights->greedy = !config.generation.do_sample;
    weights->device = device;
    weights->start_token = tokenizer->token_to_id("[Stts]");
    RETURN_IF_ERROR(check_config(config.speech, *tokenizer, weights->start_token));
    weights->tokenizer = std::move(tokenizer);
    if (progress) progress(0, "speech model: embeddings");
    RETURN_IF_ERROR(load_embeddings(checkpoint, *weights));
    if (cancel.is_set())
      return Error{ErrorCode::kCancelled, "loading the speech model was stopped"};
    if (progress) progress(30, "speech model: decoder");
    ASSIGN_OR_RETURN(weights->transformer,
                     Transformer::load(checkpoint, "tts.model.", config.speech.decoder, device));
    if (cancel.is_set())
      return Error{ErrorCode::kCancelled, "loading the speech model was stopped"};
    if (progress) progress(100, "speech model");
    return std::shared_ptr<const SpeechModelWeights>(std::move(weights));
  });
}

int64_t visible_text_end(int64_t position, int64_t text_tokens, int64_t slots, int64_t slice) {
  const int64_t steps = position - slots;
  const int64_t slices = (steps + kStepsPerSlice - 1) / kStepsPerSlice;
  const int64_t seen = std::min(slices * slice, slots) + 2;
  return std::min({seen, text_tokens + 3, slots + 2});
}

SpeechDecoder::SpeechDecoder(std::shared_ptr<const SpeechModelWeights> weights, int64_t max_codes,
                             const StageStream& stream)
    : weights_(std::move(weights)),
      max_codes_(max_codes),
      cache_(weights_->config.decoder, audio_start() + 1 + max_codes, weights_->device,
             audio_start()),
      mask_(at::zeros({1, cache_.capacity()}, weights_->device.options())),
      visible_(audio_start() + 1) {
  speaker_ = at::zeros({1, weights_->config.decoder.hidden_size}, weights_->device.options());
  runner_ = make_runner(stream);
}

std::unique_ptr<cuda::SpeechRunner> SpeechDecoder::make_runner(const StageStream& stream) const {
  const SpeechModelWeights& w = *weights_;
  if (!runs_on_runner(w.device)) return nullptr;
  cuda::SpeechRunnerSpec spec;
  spec.options = stream.runner_options(w.device);
  spec.shape = w.transformer.decoder_shape();
  spec.weights = w.transformer.decoder_weights(cache_);
  spec.weights.head = bfloat16_data(w.runner_heads);
  spec.weights.head_rows = static_cast<int>(w.runner_heads.size(0));
  spec.text_embedding = bfloat16_data(w.emb_text);
  spec.text_tokens = static_cast<int>(w.config.text_tokens);
  spec.code_embedding = bfloat16_data(w.emb_code);
  spec.tokens = static_cast<int>(w.config.audio_tokens);
  spec.speaker = bfloat16_data(speaker_);
  spec.text_slots = static_cast<int>(w.config.text_reserved);
  spec.text_slice = static_cast<int>(w.config.text_slice);
  spec.codes_per_slice = static_cast<int>(kStepsPerSlice);
  spec.audio_bos_token = static_cast<int>(w.config.audio_bos_token);
  auto runner = w.device.runners->new_speech_runner(spec);
  if (runner.ok()) return std::move(*runner);
  if (runner.error().code != ErrorCode::kSettings) check_runner(runner.error());
  return nullptr;  // no kernels for these sizes
}

void SpeechDecoder::set_speaker(const at::Tensor& speaker) {
  const SpeechModelWeights& w = *weights_;
  // One row. On a GPU without cuBLAS, of which torch sets up a handle in every thread that asks.
  const auto linear = [&](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    if (!w.device.is_cuda()) return at::linear(x, weight, bias);
    const at::Tensor products = weight.to(at::kFloat) * x.to(at::kFloat);
    return at::sum(products, at::IntArrayRef{1}).add_(bias).unsqueeze(0);
  };
  const at::Tensor hidden =
      at::relu(linear(speaker.to(w.device.options()), w.projector1_weight, w.projector1_bias));
  const at::Tensor projected = linear(hidden, w.projector2_weight, w.projector2_bias);
  const at::Tensor length = at::linalg_vector_norm(projected, 2, at::IntArrayRef{-1}, true);
  speaker_.copy_(projected / length.clamp_min(1e-12));
}

void SpeechDecoder::begin_segment() {
  cache_.set_length(audio_start());
  if (runner_) return check_runner(runner_->begin_segment());
  for (int64_t i = 0; i < weights_->config.decoder.layers; ++i) {
    cache_.keys(i).narrow(1, 0, audio_start()).zero_();
    cache_.values(i).narrow(1, 0, audio_start()).zero_();
  }
}

void SpeechDecoder::prefill_text(std::span<const int32_t> ids, int64_t begin) {
  if (ids.empty()) return;
  TORCH_CHECK(begin + std::ssize(ids) <= audio_start(), "speech model: text beyond its slots");
  if (runner_) return check_runner(runner_->prefill_text(ids, static_cast<int>(begin)));
  const at::Tensor index = index_on(weights_->device, {ids.begin(), ids.end()});
  at::Tensor x = at::index_select(weights_->emb_text, 0, index);
  if (begin == 0 && ids.size() > 1) x.narrow(0, 1, 1).copy_(speaker_);
  weights_->transformer.forward(x, begin, cache_);
}

at::Tensor SpeechDecoder::embed_codes(std::span<const CodeRow> codes) const {
  const int64_t tokens = weights_->config.audio_tokens;
  std::vector<int64_t> index;
  for (const CodeRow& row : codes) {
    for (int64_t book = 0; book < kBooks; ++book)
      index.push_back(book * tokens + row[static_cast<size_t>(book)]);
  }
  const at::Tensor rows =
      at::index_select(weights_->emb_code, 0, index_on(weights_->device, index));
  return at::sum(rows.view({std::ssize(codes), kBooks, -1}), at::IntArrayRef{1});
}

// The mask of one audio position for `keys` keys. Only the border moves, so the tensor is kept.
at::Tensor SpeechDecoder::mask_for(int64_t keys, int64_t text_tokens) {
  const SpeechConfig& config = weights_->config;
  const int64_t visible =
      visible_text_end(cache_.length(), text_tokens, config.text_reserved, config.text_slice);
  if (visible != visible_) {
    const int64_t end = audio_start() + 1;
    mask_.narrow(1, 0, visible).zero_();
    mask_.narrow(1, visible, end - visible).fill_(-std::numeric_limits<float>::infinity());
    visible_ = visible;
  }
  return mask_.narrow(1, 0, keys);
}

at::Tensor SpeechDecoder::prefill_codes(std::span<const CodeRow> codes, int64_t text_tokens) {
  TORCH_CHECK(at_start(), "speech model: codes are prefilled behind other codes");
  const at::Tensor bos = weights_->emb_text.narrow(0, weights_->config.audio_bos_token, 1);
  const at::Tensor x = codes.empty() ? bos : at::cat({bos, embed_codes(codes)}, 0);
  const int64_t end = cache_.length() + x.size(0);
  TORCH_CHECK(end <= cache_.capacity(), "speech model: the cache is full");
  at::Tensor states =
      weights_->transformer.forward(x, cache_.length(), cache_, mask_for(end, text_tokens));
  cache_.set_length(end);
  return states;
}

std::span<float> SpeechDecoder::step(const CodeRow& previous, int64_t text_tokens) {
  const int64_t position = cache_.length();
  TORCH_CHECK(position < cache_.capacity(), "speech model: the cache is full");
  const at::Tensor x = at_start()
                           ? weights_->emb_text.narrow(0, weights_->config.audio_bos_token, 1)
                           : embed_codes(std::span(&previous, 1));
  const at::Tensor h =
      weights_->transformer.forward(x, position, cache_, mask_for(position + 1, text_tokens));
  cache_.set_length(position + 1);
  logits_ = at::mv(weights_->heads, h.view({-1}).to(at::kFloat)).to(at::kCPU).contiguous();
  return {logits_.mutable_data_ptr<float>(), static_cast<size_t>(logits_.numel())};
}

Result<cuda::SpeechRunner::Outcome> SpeechDecoder::speak(cuda::SpeechCallSpec call,
                                                         const CancelFlag& cancel,
                                                         std::span<CodeRow> codes) {
  call.position = static_cast<int>(position());
  ASSIGN_OR_RETURN(const auto outcome, runner_->speak(call, cancel, codes));
  cache_.set_length(position() + outcome.count + (outcome.ended ? 1 : 0));
  return outcome;
}

}  // namespace minicpmo
