#include "tts/speech_model.h"

#define AT_PER_OPERATOR_HEADERS  // TensorOperators.h would include every operator of torch
                                 // otherwise
#include <ATen/ops/zeros.h>

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
// Rows beyond the limit: what a continuation starts from, and upstream's last call.
constexpr int64_t kExtraCodes = static_cast<int64_t>(kCarriedCodes) + kCodesPerCall;

SpeechTextOptions text_options(const SpeechModelWeights& weights) {
  SpeechTextOptions options;
  options.slots = weights.config.text_reserved;
  options.slice = weights.config.text_slice;
  options.start_token = weights.start_token;
  options.speaker_token = static_cast<int32_t>(weights.config.speaker_token);
  options.end_token = static_cast<int32_t>(weights.config.text_eos_token);
  return options;
}

float book_temperature(const CodeSampling& sampling, size_t book) {
  return kTemperatures[book] * static_cast<float>(sampling.temperature);
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
      const float temperature = book_temperature(sampling, book);
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
      stream_(weights_->device, true) {
  if (!weights_->device.is_cuda()) return;
  // Now rather than in the first answer: it captures graphs, and libraries set themselves up.
  const StageScope stage;
  const StreamScope stream(stream_);
  make_decoder({});
  decoder_->set_speaker(at::zeros({1, weights_->config.llm_dim}));
}

Result<void> SpeechSession::start(const Tensor& speaker, const SpeechModelOptions& options) {
  active_ = false;
  failed_.reset();
  first_sound_.reset();
  return run_stage("speech model", stream_, [&]() -> Result<void> {
    if (options.max_codes < 1 || !std::isfinite(options.temperature)) {
      return Error{ErrorCode::kSettings,
                   "the speech model needs max-codes of at least 1 and a finite temperature"};
    }
    const SpeechConfig& config = weights_->config;
    ASSIGN_OR_RETURN(const at::Tensor vector, read_speaker(speaker, config.llm_dim));
    options_ = options;
    const int64_t most = code_rows(options) - kExtraCodes;
    options_.max_codes = static_cast<int>(std::min<int64_t>(options.max_codes, most));
    if (options_.max_codes < 1) {
      return Error{ErrorCode::kCorrupt,
                   "config.json: tts_config: max_position_embeddings leaves no room for codes"};
    }
    make_decoder(options);
    decoder_->set_speaker(vector);
    sampling_.temperature = options.temperature >= 0 ? options.temperature
                            : weights_->greedy       ? 0
                                                     : 1;
    sampling_.top_p = config.top_p;
    sampling_.top_k = config.top_k;
    random_ = Philox(options.seed, answers_++);
    text_.start(options.compatibility);
    ahead_.reset();
    may_run_ahead_ = false;
    codes_ahead_ = 0;
    active_ = true;
    const at::Device device = weights_->device.device;
    if (device.is_cuda()) first_sound_.emplace(SpeechGate::of_device(device.index()));
    return {};
  });
}

// Code rows that a segment may come to. Whatever the limit, upstream's driver may speak a call for
// each slice of text first.
int64_t SpeechSession::code_rows(const SpeechModelOptions& options) const {
  const SpeechConfig& config = weights_->config;
  const int64_t at_least = (config.text_reserved / config.text_slice + 1) * kCodesPerCall;
  const int64_t room = config.decoder.max_positions - config.text_reserved - 3;
  return std::min(std::max<int64_t>(options.max_codes, at_least) + kExtraCodes, room);
}

void SpeechSession::make_decoder(const SpeechModelOptions& options) {
  const int64_t rows = code_rows(options);
  if (!decoder_ || decoder_->max_codes() < rows)
    decoder_ = std::make_unique<SpeechDecoder>(weights_, rows, stream_);
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
  ahead_.reset();
  first_sound_.reset();
}

Result<std::optional<CodeChunk>> SpeechSession::step(const CancelFlag& cancel) {
  if (failed_) return *failed_;
  if (!active_) return std::optional<CodeChunk>();
  auto result = run_stage("speech model", stream_, [&]() -> Result<std::optional<CodeChunk>> {
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "speaking was stopped"};
    if (const auto call = text_.next()) return speak(*call, cancel);
    if (!text_.done()) {
      if (first_sound_) first_sound_->needs_text();
      RETURN_IF_ERROR(run_ahead(cancel));
      return std::optional<CodeChunk>();
    }
    active_ = false;
    return std::optional(CodeChunk{code_tensor({}), false, true});
  });
  if (!result.ok()) failed_ = result.error();
  if (!result.ok() || result->has_value()) first_sound_.reset();
  return result;
}

void SpeechSession::prepare(const SpeechCall& call) {
  if (call.new_segment) {
    const size_t carried = call.prefix.empty() ? 0 : std::min(kCarriedCodes, codes_.size());
    codes_.erase(codes_.begin(), codes_.end() - static_cast<int64_t>(carried));
    carried_ = carried;
    text_read_ = 0;
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
  if (!call.ids.empty()) text_read_ = call.begin + std::ssize(call.ids);
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

// How far a call goes of which `made` rows are made.
int64_t SpeechSession::steps_of_call(int64_t made) const {
  if (options_.compatibility == Compatibility::kUpstream) return kCodesPerCall;
  return std::min(kCodesPerCall, made + codes_left());
}

// Steps from, ..., to - 1 of a call; whether a book drew the end code.
Result<bool> SpeechSession::generate(int64_t from, int64_t to, int64_t text_tokens,
                                     const CancelFlag& cancel) {
  if (from >= to) return false;
  if (decoder_->runner() && !hook_) return generate_on_runner(from, to, text_tokens, cancel);
  const auto end_code = static_cast<uint16_t>(weights_->config.audio_tokens - 1);
  for (int64_t i = from; i < to; ++i) {
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "speaking was stopped"};
    const bool first = decoder_->at_start();
    const std::span<float> logits = decoder_->step(first ? CodeRow{} : codes_.back(), text_tokens);
    const CodeRow row = choose(logits, first, i >= kCodesBeforeEnd);
    if (std::find(row.begin(), row.end(), end_code) != row.end()) return true;
    codes_.push_back(row);
  }
  return false;
}

Result<bool> SpeechSession::generate_on_runner(int64_t from, int64_t to, int64_t text_tokens,
                                               const CancelFlag& cancel) {
  cuda::SpeechCallSpec call;
  call.text_tokens = static_cast<int>(text_tokens);
  call.steps = static_cast<int>(to - from);
  call.min_steps = static_cast<int>(std::max<int64_t>(0, kCodesBeforeEnd - from));
  if (!decoder_->at_start()) call.last = codes_.back();
  for (size_t book = 0; book < kBooks; ++book)
    call.sampling.temperature[book] = book_temperature(sampling_, book);
  call.sampling.top_k = static_cast<int>(sampling_.top_k);
  call.sampling.min_keep = static_cast<int>(kMinKeep);
  call.sampling.top_p = sampling_.top_p;
  call.sampling.seed = random_.seed();
  call.sampling.stream = random_.stream();
  call.sampling.counter = random_.counter();
  std::array<CodeRow, kCodesPerCall> rows;
  ASSIGN_OR_RETURN(const auto outcome, decoder_->speak(call, cancel, rows));
  random_.set_counter(outcome.counter);
  codes_.insert(codes_.end(), rows.begin(), rows.begin() + outcome.count);
  return outcome.ended;
}

// Called when the next call waits for text.
Result<void> SpeechSession::run_ahead(const CancelFlag& cancel) {
  if (!may_run_ahead_ || ahead_ || hook_) return {};
  const SpeechConfig& config = weights_->config;
  Ahead ahead{.position = decoder_->position(), .counter = random_.counter()};
  // The text may still grow as far as the slots.
  const auto visible = [&](int64_t position) {
    return visible_text_end(position, config.text_reserved, config.text_reserved,
                            config.text_slice);
  };
  int64_t steps = 0;
  while (steps < steps_of_call(0) && visible(ahead.position + steps) <= text_read_) ++steps;
  if (steps == 0) return {};
  const auto before = std::ssize(codes_);
  const GpuTimer::Call timed(timer_);
  ASSIGN_OR_RETURN(ahead.ended, generate(0, steps, config.text_reserved, cancel));
  ahead.rows = std::ssize(codes_) - before;
  ahead.visible_text = visible(decoder_->position() - 1);
  ahead_ = ahead;
  codes_ahead_ += ahead.rows;
  return {};
}

// Forgets what was made ahead of `call` if the call would not make the same: if it writes text that
// has been seen, or the text has become too short for what has been seen to be text.
void SpeechSession::check_ahead(const SpeechCall& call) {
  if (!ahead_) return;
  const SpeechConfig& config = weights_->config;
  const int64_t last = decoder_->position() - 1;
  const int64_t visible =
      visible_text_end(last, call.text_tokens, config.text_reserved, config.text_slice);
  const bool rewrites = !call.ids.empty() && call.begin < ahead_->visible_text;
  if (!call.new_segment && !rewrites && visible == ahead_->visible_text) return;
  codes_.resize(codes_.size() - static_cast<size_t>(ahead_->rows));
  codes_ahead_ -= ahead_->rows;
  decoder_->rewind(ahead_->position);
  random_.set_counter(ahead_->counter);
  ahead_.reset();
}

Result<std::optional<CodeChunk>> SpeechSession::speak(const SpeechCall& call,
                                                      const CancelFlag& cancel) {
  std::optional<SpeechGate::FirstSound::Making> making;
  if (first_sound_) making.emplace(*first_sound_);
  check_ahead(call);
  const Ahead made = std::exchange(ahead_, std::nullopt).value_or(Ahead{});
  const GpuTimer::Call timed(timer_);
  prepare(call);
  const size_t before = codes_.size() - static_cast<size_t>(made.rows);
  bool ended = made.ended;
  if (!ended) {
    ASSIGN_OR_RETURN(ended,
                     generate(made.rows, steps_of_call(made.rows), call.text_tokens, cancel));
  }
  const bool limit = at_limit(call);
  text_.generated(ended, limit);
  may_run_ahead_ = !ended && !limit;
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
