#include "tts/speech_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"

namespace minicpmo {
namespace {

constexpr std::array<float, kBooks> kTemperatures = {0.1F, 0.3F, 0.1F, 0.3F};
constexpr int64_t kMinKeep = 3;

SpeechTextOptions text_options(const SpeechModelWeights& weights) {
  SpeechTextOptions options;
  options.slots = weights.config.text_reserved;
  options.slice = weights.config.text_slice;
  options.start_token = weights.start_token;
  options.speaker_token = static_cast<int32_t>(weights.config.speaker_token);
  options.end_token = static_cast<int32_t>(weights.config.text_eos_token);
  return options;
}

// The vector itself, checked.
Result<at::Tensor> read_speaker(const Tensor& speaker, int64_t size) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorCode::kFormat, "the speaker vector " + what + "; expected float32 (1, " +
                                         std::to_string(size) + ")"};
  };
  if (speaker.type() != DataType::kFloat32) return bad("is not float32");
  if (speaker.dims() != std::vector<int64_t>{1, size}) {
    int64_t values = 1;
    for (int64_t d : speaker.dims()) values *= d;
    return bad("has " + std::to_string(values) + " values in " +
               std::to_string(speaker.dims().size()) + " dimensions");
  }
  ASSIGN_OR_RETURN(at::Tensor vector, unwrap_tensor(speaker));
  vector = vector.to(at::kCPU);
  const float* data = vector.const_data_ptr<float>();
  if (!std::all_of(data, data + size, [](float x) { return std::isfinite(x); })) {
    return bad("has values that are not finite");
  }
  return vector;
}

TensorPtr code_tensor(std::span<const CodeRow> rows) {
  std::vector<std::byte> bytes(rows.size_bytes());
  if (!rows.empty()) std::memcpy(bytes.data(), rows.data(), bytes.size());
  return std::make_shared<HostTensor>(
      DataType::kUInt16, std::vector<int64_t>{std::ssize(rows), kBooks}, std::move(bytes));
}

}  // namespace

void filter_codes(std::span<float> logits, const CodeSampling& sampling, bool first_step,
                  bool may_end) {
  const size_t tokens = logits.size() / kBooks;
  for (size_t book = 0; book < kBooks; ++book) {
    const std::span<float> scores = logits.subspan(book * tokens, tokens);
    if (sampling.temperature > 0) {
      const float temperature = kTemperatures[book] * static_cast<float>(sampling.temperature);
      for (float& score : scores) score /= temperature;
      if (!first_step) {
        apply_top_p(scores, sampling.top_p, kMinKeep);
        apply_top_k(scores, sampling.top_k, kMinKeep);
      }
    }
    if (!may_end) scores.back() = -std::numeric_limits<float>::infinity();
  }
}

CodeRow choose_codes(std::span<float> logits, const CodeSampling& sampling, bool first_step,
                     bool may_end, Philox& random) {
  filter_codes(logits, sampling, first_step, may_end);
  CodeRow row{};
  const size_t tokens = logits.size() / kBooks;
  for (size_t book = 0; book < kBooks; ++book) {
    const std::span<const float> scores = logits.subspan(book * tokens, tokens);
    row[book] = static_cast<uint16_t>(sampling.temperature > 0 ? sample(scores, random.uniform())
                                                               : argmax(scores));
  }
  return row;
}

SpeechSession::SpeechSession(std::shared_ptr<const SpeechModelWeights> weights)
    : weights_(std::move(weights)),
      text_(weights_->tokenizer, text_options(*weights_)),
      stream_(weights_->device, true) {}

Result<void> SpeechSession::start(const Tensor& speaker, const SpeechModelOptions& options) {
  active_ = false;
  failed_.reset();
  return run_stage("speech model", stream_, [&]() -> Result<void> {
    if (options.max_codes < 1 || !std::isfinite(options.temperature)) {
      return Error{ErrorCode::kSettings,
                   "the speech model needs max-codes of at least 1 and a finite temperature"};
    }
    const SpeechConfig& config = weights_->config;
    ASSIGN_OR_RETURN(const at::Tensor vector, read_speaker(speaker, config.llm_dim));
    options_ = options;
    // Whatever the limit, upstream's driver may speak a call for each slice of text first.
    const int64_t at_least = (config.text_reserved / config.text_slice + 1) * kCodesPerCall;
    const int64_t extra = static_cast<int64_t>(kCarriedCodes) + kCodesPerCall;
    const int64_t room = config.decoder.max_positions - config.text_reserved - 3;
    const int64_t rows = std::min(std::max<int64_t>(options.max_codes, at_least) + extra, room);
    options_.max_codes = static_cast<int>(std::min<int64_t>(options.max_codes, rows - extra));
    if (options_.max_codes < 1) {
      return Error{ErrorCode::kCorrupt,
                   "config.json: tts_config: max_position_embeddings leaves no room for codes"};
    }
    if (!decoder_ || decoder_->max_codes() != rows)
      decoder_ = std::make_unique<SpeechDecoder>(weights_, rows);
    decoder_->set_speaker(vector);
    sampling_.temperature = options.temperature >= 0 ? options.temperature
                            : weights_->greedy       ? 0
                                                     : 1;
    sampling_.top_p = config.top_p;
    sampling_.top_k = config.top_k;
    random_ = Philox(options.seed, answers_++);
    text_.start(options.compatibility);
    active_ = true;
    return {};
  });
}

void SpeechSession::push_text(std::string_view burst) {
  if (!active_ || failed_) return;
  const auto pushed = run_stage("speech model", stream_, [&]() -> Result<void> {
    text_.push(burst);
    return {};
  });
  if (!pushed.ok()) failed_ = pushed.error();
}

void SpeechSession::reset() {
  active_ = false;
  failed_.reset();
  answers_ = 0;
  codes_.clear();
}

Result<std::optional<CodeChunk>> SpeechSession::step(const CancelFlag& cancel) {
  if (failed_) return *failed_;
  if (!active_) return std::optional<CodeChunk>();
  auto result = run_stage("speech model", stream_, [&]() -> Result<std::optional<CodeChunk>> {
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "speaking was stopped"};
    if (const auto call = text_.next()) return speak(*call, cancel);
    if (!text_.done()) return std::optional<CodeChunk>();
    active_ = false;
    return std::optional(CodeChunk{code_tensor({}), false, true});
  });
  if (!result.ok()) failed_ = result.error();
  return result;
}

void SpeechSession::prepare(const SpeechCall& call) {
  if (call.new_segment) {
    const size_t carried = call.prefix.empty() ? 0 : std::min(kCarriedCodes, codes_.size());
    codes_.erase(codes_.begin(), codes_.end() - static_cast<int64_t>(carried));
    carried_ = carried;
    decoder_->begin_segment();
    if (carried > 0) {
      std::vector<int32_t> ids = {weights_->start_token,
                                  static_cast<int32_t>(weights_->config.speaker_token)};
      ids.insert(ids.end(), call.prefix.begin(), call.prefix.end());
      decoder_->prefill_text(ids, 0);
      // The last row is what the first step reads.
      decoder_->prefill_codes(std::span(codes_).first(carried - 1), std::ssize(call.prefix));
    }
  }
  decoder_->prefill_text(call.ids, call.begin);
}

CodeRow SpeechSession::choose(std::span<float> logits, bool first_step, bool may_end) {
  const CodeRow row = choose_codes(logits, sampling_, first_step, may_end, random_);
  return hook_ ? hook_(logits, row) : row;
}

// Upstream looks only after a call, only once the text is complete, and counts the carried codes.
bool SpeechSession::at_limit(const SpeechCall& call) const {
  if (options_.compatibility == Compatibility::kNone) return codes_left() == 0;
  return call.text_complete && std::ssize(codes_) > options_.max_codes;
}

int64_t SpeechSession::codes_left() const {
  return options_.max_codes - (std::ssize(codes_) - static_cast<int64_t>(carried_));
}

Result<std::optional<CodeChunk>> SpeechSession::speak(const SpeechCall& call,
                                                      const CancelFlag& cancel) {
  prepare(call);
  int64_t count = kCodesPerCall;
  if (options_.compatibility == Compatibility::kNone) count = std::min(count, codes_left());
  const uint16_t end_code = static_cast<uint16_t>(weights_->config.audio_tokens - 1);
  const size_t before = codes_.size();
  bool ended = false;
  for (int64_t i = 0; i < count && !ended; ++i) {
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "speaking was stopped"};
    const bool first = decoder_->at_start();
    const std::span<float> logits =
        decoder_->step(first ? CodeRow{} : codes_.back(), call.text_tokens);
    const CodeRow row = choose(logits, first, i >= kCodesBeforeEnd);
    ended = std::find(row.begin(), row.end(), end_code) != row.end();
    if (!ended) codes_.push_back(row);
  }
  text_.generated(ended, at_limit(call));
  CodeChunk chunk;
  chunk.codes = code_tensor(std::span(codes_).subspan(before));
  chunk.segment_start = call.continuation;
  chunk.last = text_.done();
  if (chunk.last) active_ = false;
  return std::optional(std::move(chunk));
}

std::unique_ptr<SpeechModel> new_speech_model(std::shared_ptr<const SpeechModelWeights> weights) {
  return std::make_unique<SpeechSession>(std::move(weights));
}

}  // namespace minicpmo
