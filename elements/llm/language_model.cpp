#include "llm/language_model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linear.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"

namespace minicpmo {
namespace {

constexpr const char* kWhat = "language model";
// Rows per forward pass: bounds the attention scores' memory and the time until a cancel flag is
// seen.
constexpr int64_t kSlice = 512;
// A turn is refused unless an answer of so many tokens has room behind it.
constexpr int64_t kAnswerReserve = 16;

Error cancelled() {
  return {ErrorCode::kCancelled, "cancelled", kWhat};
}

}  // namespace

Result<std::shared_ptr<const LanguageModelWeights>> load_language_model(
    const Checkpoint& checkpoint, const ModelConfig& config,
    std::shared_ptr<const Tokenizer> tokenizer, at::ScalarType type, const Progress& progress,
    const CancelFlag& cancel) {
  using Loaded = std::shared_ptr<const LanguageModelWeights>;
  return run_stage("loading the language model", [&]() -> Result<Loaded> {
    const auto report = [&](int percent, const char* what) {
      if (progress) progress(percent, what);
    };
    auto weights = std::make_shared<LanguageModelWeights>();
    ASSIGN_OR_RETURN(Prompts prompts,
                     Prompts::load(*tokenizer, config.language.vocab_size,
                                   rows_per_chunk(config.audio), checkpoint.location()));
    const std::vector<int64_t> table = {config.language.vocab_size, config.language.hidden_size};
    weights->config = config;
    weights->tokenizer = std::move(tokenizer);
    weights->prompts = std::make_shared<const Prompts>(std::move(prompts));
    weights->type = type;
    report(0, "language model: embeddings");
    ASSIGN_OR_RETURN(weights->embed_tokens,
                     checkpoint.load("llm.model.embed_tokens.weight", table, type));
    if (cancel.is_set()) return cancelled();
    report(10, "language model: layers");
    ASSIGN_OR_RETURN(weights->transformer,
                     Transformer::load(checkpoint, "llm.model.", config.language, type));
    if (cancel.is_set()) return cancelled();
    report(90, "language model: output layer");
    ASSIGN_OR_RETURN(weights->lm_head, checkpoint.load("llm.lm_head.weight", table, type));
    report(100, "language model");
    return Loaded(std::move(weights));
  });
}

std::unique_ptr<LanguageModel> new_language_model(
    std::shared_ptr<const LanguageModelWeights> weights, const LanguageModelOptions& options) {
  auto session = std::make_unique<LanguageSession>(std::move(weights), options);
  // An error here comes again, and is reported, at the first turn.
  (void)session->prime(CancelFlag());
  return session;
}

int64_t rows_per_chunk(const AudioConfig& audio) {
  const auto frames = static_cast<int64_t>(std::llround(audio.chunk_seconds * 100));
  const int64_t convolved = (frames - 1) / 2 + 1;
  return std::max<int64_t>(1, (convolved - audio.pool_step) / audio.pool_step + 1);
}

SamplingSettings resolve_sampling(const LanguageModelOptions& options,
                                  const GenerationDefaults& defaults) {
  const double temperature = defaults.do_sample ? defaults.temperature : 0.0;
  return {options.temperature < 0 ? temperature : options.temperature,
          options.top_p < 0 ? defaults.top_p : options.top_p,
          options.repetition_penalty < 0 ? defaults.repetition_penalty : options.repetition_penalty,
          options.top_k < 0 ? defaults.top_k : options.top_k};
}

int32_t choose_token(std::span<float> logits, std::span<const int32_t> penalised,
                     const SamplingSettings& settings, Philox* random) {
  if (settings.repetition_penalty > 0 && settings.repetition_penalty != 1)
    apply_repetition_penalty(logits, penalised, settings.repetition_penalty);
  const int32_t best = argmax(logits);
  if (settings.temperature <= 0) return best;
  // Counted from the best one, a very low temperature cannot overflow; the softmax is the same.
  const float top = logits[static_cast<size_t>(best)];
  const auto temperature = static_cast<float>(settings.temperature);
  for (float& logit : logits) logit = logit == top ? 0 : (logit - top) / temperature;
  if (settings.top_k > 0) apply_top_k(logits, settings.top_k);
  if (settings.top_p < 1) apply_top_p(logits, settings.top_p);
  return sample(logits, random->uniform());
}

LanguageSession::LanguageSession(std::shared_ptr<const LanguageModelWeights> weights,
                                 const LanguageModelOptions& options)
    : weights_(std::move(weights)),
      options_(options),
      conversation_(weights_->tokenizer, weights_->prompts) {
  begin_session();
}

int64_t LanguageSession::capacity_wanted() const {
  return std::clamp<int64_t>(session_options_.context_length, 1,
                             weights_->config.language.max_positions);
}

// Whether the session's system message is not the one asked for.
bool LanguageSession::options_due() const {
  return options_.system_prompt != session_options_.system_prompt ||
         options_.context_length != session_options_.context_length ||
         options_.compatibility != session_options_.compatibility;
}

void LanguageSession::begin_session() {
  queue_.clear();
  queued_rows_ = 0;
  answer_.reset();
  if (sessions_ == 0 || options_due()) {
    session_options_ = options_;
    conversation_.begin_session(options_.system_prompt, options_.compatibility);
  } else {
    conversation_.restart();  // the system message's rows stay in the cache
  }
  if (cache_) cache_->set_length(std::min(cache_->length(), conversation_.length()));
  ++sessions_;
}

// Before the first turn of a session new options may still replace its system message.
void LanguageSession::adopt_options() {
  if (!conversation_.fresh() || !options_due()) return;
  begin_session();
  --sessions_;
}

Result<void> LanguageSession::ensure_cache() {
  if (cache_ && cache_->capacity() == capacity_wanted()) return {};
  if (cache_ && conversation_.length() > 0)
    return Error{ErrorCode::kFailed, "language model: the context changed size in use", kWhat};
  cache_.reset();  // before the new one is allocated: there may be no room for both
  cache_.emplace(weights_->config.language, capacity_wanted(), weights_->type);
  return {};
}

Result<void> LanguageSession::prime(const CancelFlag& cancel) {
  return run_stage(kWhat, [&]() -> Result<void> {
    adopt_options();
    const Feed feed = conversation_.system_message();
    if (feed.rows() == 0 || !fits(conversation_, feed, kAnswerReserve)) return {};
    RETURN_IF_ERROR(ensure_cache());
    ASSIGN_OR_RETURN(const at::Tensor hidden, read({{feed, {}}}, 0, cancel));
    conversation_.accept_system(feed);
    return {};
  });
}

bool LanguageSession::fits(const Conversation& conversation, const Feed& feed,
                           int64_t answer_rows) const {
  const int64_t prompt = static_cast<int64_t>(weights_->prompts->answer.ids.size());
  return conversation.length() + feed.rows() + prompt + answer_rows <= capacity_wanted();
}

Result<at::Tensor> LanguageSession::check_embeddings(const Tensor& embeddings) const {
  const int64_t hidden = weights_->config.language.hidden_size;
  const auto& dims = embeddings.dims();
  const bool floating =
      embeddings.type() == DataType::kFloat32 || embeddings.type() == DataType::kBFloat16;
  if (!floating || dims.size() != 2 || dims[1] != hidden) {
    return Error{ErrorCode::kFormat,
                 "language model: audio embeddings must be float32 or bfloat16, (rows, " +
                     std::to_string(hidden) + "); connect an audio encoder of the same checkpoint",
                 "got " + std::to_string(dims.size()) + " dimensions, the last of " +
                     std::to_string(dims.empty() ? 0 : dims.back())};
  }
  ASSIGN_OR_RETURN(at::Tensor rows, unwrap_tensor(embeddings));
  if (!at::isfinite(rows).all().item<bool>()) {
    return Error{ErrorCode::kFormat,
                 "language model: audio embeddings hold a value that is not finite", kWhat};
  }
  return rows.to(weights_->embed_tokens.device(), weights_->type);
}

Result<void> LanguageSession::prefill_audio(const Tensor& embeddings, const CancelFlag& cancel) {
  return run_stage(kWhat, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const at::Tensor rows, check_embeddings(embeddings));
    if (rows.size(0) == 0) return {};
    // Less than a full chunk means that the turn ends here.
    const bool may_wait = rows.size(0) < weights_->prompts->group_rows;
    return prefill([&](const Conversation& c) { return c.user_audio(rows.size(0)); }, rows,
                   may_wait, cancel);
  });
}

Result<void> LanguageSession::prefill_text(std::string_view text, const CancelFlag& cancel) {
  if (text.empty()) return {};
  return run_stage(kWhat, [&]() -> Result<void> {
    return prefill([&](const Conversation& c) { return c.user_text(text); }, {}, true, cancel);
  });
}

// What may wait is read together with the answer prompt that most likely follows: one pass over the
// weights less between the end of the question and the first word.
Result<void> LanguageSession::prefill(const std::function<Feed(const Conversation&)>& make_feed,
                                      const at::Tensor& audio, bool may_wait,
                                      const CancelFlag& cancel) {
  if (cancel.is_set()) return cancelled();
  adopt_options();
  Feed feed = make_feed(conversation_);
  if (!conversation_.turn_open() && !conversation_.fresh()) {
    // Upstream's server begins anew when the context is full at the end of a turn; here, when the
    // next turn and its answer might not fit.
    const int64_t second = conversation_.turn_start_rows() + weights_->prompts->group_rows + 2;
    const int64_t short_by = std::max<int64_t>(0, second - feed.rows());
    if (!fits(conversation_, feed, options_.max_new_tokens + short_by)) {
      Conversation anew = conversation_;
      anew.restart();
      Feed first = make_feed(anew);
      if (fits(anew, first, kAnswerReserve)) {
        begin_session();
        feed = make_feed(conversation_);
      }
    }
  }
  if (!fits(conversation_, feed, kAnswerReserve)) {
    return Error{ErrorCode::kContextFull,
                 "language model: " + std::to_string(feed.rows()) +
                     " more positions do not fit into the context of " +
                     std::to_string(capacity_wanted()) + " together with an answer; " +
                     std::to_string(conversation_.length()) + " are taken",
                 kWhat};
  }
  RETURN_IF_ERROR(ensure_cache());
  const int64_t rows = feed.rows();
  const int64_t prompt = static_cast<int64_t>(weights_->prompts->answer.ids.size());
  Conversation next = conversation_;
  next.accept_user(feed);
  auto pieces = queue_;
  pieces.push_back({std::move(feed), audio});
  if (may_wait && queued_rows_ + rows + prompt <= kSlice) {
    queue_ = std::move(pieces);
    queued_rows_ += rows;
  } else {
    ASSIGN_OR_RETURN(const at::Tensor hidden, read(pieces, 0, cancel));
    queue_.clear();
    queued_rows_ = 0;
  }
  conversation_ = std::move(next);
  answer_.reset();
  return {};
}

at::Tensor LanguageSession::embed(std::span<const int32_t> ids) const {
  const at::Tensor& table = weights_->embed_tokens;
  at::Tensor index = at::empty({static_cast<int64_t>(ids.size())}, at::kInt);
  std::copy(ids.begin(), ids.end(), index.mutable_data_ptr<int32_t>());
  return at::index_select(table, 0, index.to(table.device()));
}

at::Tensor LanguageSession::embed(const Piece& piece) const {
  at::Tensor rows = embed(piece.feed.ids);
  for (const AudioSlots& slots : piece.feed.audio) {
    rows.narrow(0, static_cast<int64_t>(slots.at), slots.rows)
        .copy_(piece.audio.narrow(0, slots.row, slots.rows));
  }
  return rows;
}

// Runs the model over the pieces, behind the rows of the cache. Returns the states of the last
// `keep` rows at least. Nothing changed if it was cancelled.
Result<at::Tensor> LanguageSession::read(const std::vector<Piece>& pieces, int64_t keep,
                                         const CancelFlag& cancel) {
  std::vector<at::Tensor> parts;
  parts.reserve(pieces.size());
  for (const Piece& piece : pieces) parts.push_back(embed(piece));
  const at::Tensor x = parts.size() == 1 ? parts[0] : at::cat(parts);
  const int64_t begin = cache_->length(), total = x.size(0);
  at::Tensor hidden;
  for (int64_t done = 0; done < total;) {
    if (cancel.is_set()) return cancelled();
    int64_t rows = std::min(kSlice, total - done);
    const int64_t rest = total - done - rows;
    if (rest > 0 && rest < keep) rows -= keep;
    hidden = weights_->transformer.forward(x.narrow(0, done, rows), begin + done, *cache_);
    done += rows;
  }
  cache_->set_length(begin + total);
  return hidden;
}

at::Tensor LanguageSession::logits_of(const at::Tensor& hidden) const {
  return at::linear(hidden.narrow(0, hidden.size(0) - 1, 1), weights_->lm_head);
}

Result<void> LanguageSession::start_answer(const CancelFlag& cancel) {
  return run_stage(kWhat, [&]() -> Result<void> {
    if (!conversation_.turn_open())
      return Error{ErrorCode::kFailed, "language model: there is nothing to answer", kWhat};
    if (cancel.is_set()) return cancelled();
    const Feed feed = conversation_.answer_prompt();
    auto pieces = queue_;
    pieces.push_back({feed, {}});
    ASSIGN_OR_RETURN(const at::Tensor hidden, read(pieces, feed.rows(), cancel));
    queue_.clear();
    queued_rows_ = 0;
    conversation_.accept_answer(feed, options_.max_new_tokens);
    const int64_t speaker =
        hidden.size(0) - feed.rows() + static_cast<int64_t>(weights_->prompts->speaker_at);
    answer_ = Answer{resolve_sampling(options_, weights_->config.generation),
                     Philox(options_.seed, answers_++), logits_of(hidden),
                     hidden.narrow(0, speaker, 1).to(at::kFloat).clone()};
    return {};
  });
}

Result<int32_t> LanguageSession::pick(const at::Tensor& logits,
                                      const std::vector<int32_t>& penalised, Philox* random) const {
  const at::Tensor raw = logits.to(at::kCPU, at::kFloat).contiguous();
  const float* data = raw.const_data_ptr<float>();
  std::vector<float> scores(data, data + raw.numel());
  int32_t id = choose_token(scores, penalised, answer_->sampling, random);
  if (hook_) id = hook_(std::span<const float>(data, scores.size()), id);
  if (id < 0 || id >= static_cast<int32_t>(scores.size()) || !std::isfinite(data[id])) {
    return Error{ErrorCode::kFailed,
                 "language model: the logits are not finite; the weights may be damaged", kWhat};
  }
  return id;
}

Result<LanguageSession::Draft> LanguageSession::draft_burst(const CancelFlag& cancel) {
  Draft draft{{}, FinishReason::kNone, answer_->random};
  std::vector<int32_t> penalised = conversation_.penalty_scope();
  at::Tensor logits = answer_->first_logits;
  std::optional<int32_t> carried = conversation_.carried();
  int64_t rows = conversation_.length();
  const int limit = conversation_.burst_limit();
  while (static_cast<int>(draft.ids.size()) < limit && draft.finish == FinishReason::kNone) {
    if (cancel.is_set()) return cancelled();
    if (carried) {
      if (rows >= cache_->capacity()) {
        draft.finish = FinishReason::kContext;
        break;
      }
      const int32_t fed[] = {*carried};
      logits = logits_of(weights_->transformer.forward(embed(fed), rows, *cache_));
      ++rows;
    }
    ASSIGN_OR_RETURN(const int32_t id, pick(logits, penalised, &draft.random));
    draft.ids.push_back(id);
    penalised.push_back(id);
    carried = id;
    if (conversation_.is_stop(id)) draft.finish = FinishReason::kStop;
  }
  return draft;
}

Result<Burst> LanguageSession::next_burst(const CancelFlag& cancel) {
  return run_stage(kWhat, [&]() -> Result<Burst> {
    if (!answer_ || !conversation_.answering())
      return Error{ErrorCode::kFailed, "language model: no answer is under way", kWhat};
    // Until the burst is whole nothing of it counts: a cancelled or failed call can be made again.
    ASSIGN_OR_RETURN(Draft draft, draft_burst(cancel));
    Burst burst = conversation_.accept_burst(std::move(draft.ids), draft.finish);
    cache_->set_length(conversation_.length());
    if (answer_->speaker.defined()) burst.speaker = wrap_tensor(answer_->speaker);
    answer_->speaker.reset();
    answer_->first_logits.reset();
    answer_->random = draft.random;
    if (burst.finish != FinishReason::kNone) answer_.reset();
    return burst;
  });
}

void LanguageSession::interrupt(int64_t heard_bytes) {
  conversation_.interrupt(heard_bytes);
  if (conversation_.turn_open()) return;
  answer_.reset();
  if (cache_) cache_->set_length(std::min(cache_->length(), conversation_.length()));
}

void LanguageSession::reset() {
  begin_session();
  answers_ = 0;
}

}  // namespace minicpmo
