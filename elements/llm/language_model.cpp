#include "llm/language_model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "cuda/language_runner.h"
#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"

namespace minicpmo {
namespace {

constexpr const char* kWhat = "language model";
// Rows per forward pass: bounds the attention scores' memory and the time until a cancel flag is
// seen.
constexpr int64_t kSlice = 512;
static_assert(kSlice <= cuda::LanguageRunner::kMaxRows);
// A turn is refused unless an answer of so many tokens has room behind it.
constexpr int64_t kAnswerReserve = 16;
// Bursts of three tokens before other answers' later words may go on: as many as speech usually
// begins with, and the one beside the first codes.
constexpr int kFirstBursts = 4;

Error cancelled() {
  return {ErrorCode::kCancelled, "cancelled", kWhat};
}

}  // namespace

Result<std::shared_ptr<const LanguageModelWeights>> load_language_model(
    const Checkpoint& checkpoint, const ModelConfig& config,
    std::shared_ptr<const Tokenizer> tokenizer, const StageDevice& device, const Progress& progress,
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
    weights->device = device;
    report(0, "language model: embeddings");
    ASSIGN_OR_RETURN(weights->embed_tokens,
                     checkpoint.load("llm.model.embed_tokens.weight", table, device));
    if (cancel.is_set()) return cancelled();
    report(10, "language model: layers");
    ASSIGN_OR_RETURN(weights->transformer,
                     Transformer::load(checkpoint, "llm.model.", config.language, device));
    if (cancel.is_set()) return cancelled();
    report(90, "language model: output layer");
    ASSIGN_OR_RETURN(weights->lm_head, checkpoint.load("llm.lm_head.weight", table, device));
    report(100, "language model");
    return Loaded(std::move(weights));
  });
}

Result<std::unique_ptr<LanguageModel>> new_language_model(
    std::shared_ptr<const LanguageModelWeights> weights, const LanguageModelOptions& options) {
  return run_stage(kWhat, [&]() -> Result<std::unique_ptr<LanguageModel>> {
    auto session = std::make_unique<LanguageSession>(std::move(weights), options);
    RETURN_IF_ERROR(session->prime(CancelFlag()));
    return std::unique_ptr<LanguageModel>(std::move(session));
  });
}

int64_t rows_per_chunk(const AudioConfig& audio) {
  const auto frames = static_cast<int64_t>(std::llround(audio.chunk_seconds * 100));
  const int64_t convolved = (frames - 1) / 2 + 1;
  return std::max<int64_t>(1, (convolved - audio.pool_step) / audio.pool_step + 1);
}

LanguageSession::LanguageSession(std::shared_ptr<const LanguageModelWeights> weights,
                                 const LanguageModelOptions& options)
    : weights_(std::move(weights)),
      stream_(weights_->device, false),
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
         options_.voice != session_options_.voice ||
         options_.context_length != session_options_.context_length ||
         options_.compatibility != session_options_.compatibility;
}

void LanguageSession::begin_session() {
  queue_.clear();
  queued_rows_ = 0;
  answer_.reset();
  first_words_.reset();
  forget_snapshots();
  if (sessions_ == 0 || options_due()) {
    session_options_ = options_;
    const int64_t voice_rows = options_.voice ? options_.voice->rows() : 0;
    conversation_.begin_session(options_.system_prompt, voice_rows, options_.compatibility);
  } else {
    conversation_.restart();  // the system message's rows stay in the cache
  }
  cut_cache();
  ++sessions_;
}

// Before the first turn of a session new options may still replace its system message.
void LanguageSession::adopt_options() {
  if (!conversation_.fresh() || !options_due()) return;
  begin_session();
  --sessions_;
}

// The decoder, with a cache of the size wanted.
Result<void> LanguageSession::ensure_decoder() {
  if (decoder_ && decoder_->cache().capacity() == capacity_wanted()) return {};
  if (decoder_ && conversation_.length() > 0)
    return Error{ErrorCode::kFailed, "language model: the context changed size in use", kWhat};
  decoder_.reset();  // before the new one is allocated: there may be no room for both
  ASSIGN_OR_RETURN(decoder_, make_language_decoder(weights_, capacity_wanted(), stream_));
  return {};
}

void LanguageSession::cut_cache() {
  if (!decoder_) return;
  KvCache& cache = decoder_->cache();
  cache.set_length(std::min(cache.length(), conversation_.length()));
}

Result<void> LanguageSession::prime(const CancelFlag& cancel) {
  return run_stage(kWhat, stream_, [&]() -> Result<void> {
    adopt_options();
    RETURN_IF_ERROR(ensure_decoder());
    const Feed feed = conversation_.system_message();
    if (feed.rows() == 0 || !fits(conversation_, feed, kAnswerReserve)) return {};
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
  ASSIGN_OR_RETURN(at::Tensor rows, unwrap_tensor(embeddings, weights_->device.device));
  // Tensors on a device come from our own audio encoder, whose input and weights are finite; to
  // look would wait for it.
  if (rows.is_cpu() && !at::isfinite(rows).all().item<bool>()) {
    return Error{ErrorCode::kFormat,
                 "language model: audio embeddings hold a value that is not finite", kWhat};
  }
  return rows.to(weights_->device.device, weights_->device.type);
}

Result<void> LanguageSession::prefill_audio(const Tensor& embeddings, const CancelFlag& cancel) {
  return run_stage(kWhat, stream_, [&]() -> Result<void> {
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
  return run_stage(kWhat, stream_, [&]() -> Result<void> {
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
  RETURN_IF_ERROR(ensure_decoder());
  if (!conversation_.turn_open()) {
    before_turn_ = Snapshot{conversation_, answer_, conversation_.length()};
    before_answer_.reset();
  }
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
  first_words_.reset();
  return {};
}

at::Tensor LanguageSession::embed(std::span<const int32_t> ids) const {
  const at::Tensor& table = weights_->embed_tokens;
  at::Tensor index = at::empty({static_cast<int64_t>(ids.size())}, at::kInt);
  std::copy(ids.begin(), ids.end(), index.mutable_data_ptr<int32_t>());
  return at::index_select(table, 0, index.to(table.device()));
}

Result<at::Tensor> LanguageSession::embed(const Piece& piece) const {
  at::Tensor rows = embed(piece.feed.ids), voice;
  for (const AudioSlots& slots : piece.feed.audio) {
    if (slots.voice && !voice.defined()) {
      ASSIGN_OR_RETURN(voice, check_embeddings(*session_options_.voice));
    }
    const at::Tensor& audio = slots.voice ? voice : piece.audio;
    rows.narrow(0, static_cast<int64_t>(slots.at), slots.rows)
        .copy_(audio.narrow(0, slots.row, slots.rows));
  }
  return rows;
}

// Runs the model over the pieces, behind the rows of the cache. Returns the states of the last
// `keep` rows at least. Nothing changed if it was cancelled.
Result<at::Tensor> LanguageSession::read(const std::vector<Piece>& pieces, int64_t keep,
                                         const CancelFlag& cancel) {
  const GpuTimer::Call timed(prefill_timer_);
  std::vector<at::Tensor> parts;
  parts.reserve(pieces.size());
  for (const Piece& piece : pieces) {
    ASSIGN_OR_RETURN(at::Tensor rows, embed(piece));
    parts.push_back(std::move(rows));
  }
  const at::Tensor x = parts.size() == 1 ? parts[0] : at::cat(parts);
  const int64_t begin = decoder_->cache().length(), total = x.size(0);
  at::Tensor hidden;
  for (int64_t done = 0; done < total;) {
    if (cancel.is_set()) return cancelled();
    int64_t rows = std::min(kSlice, total - done);
    const int64_t rest = total - done - rows;
    if (rest > 0 && rest < keep) rows -= keep;
    const bool last = done + rows == total;
    ASSIGN_OR_RETURN(hidden,
                     decoder_->read(x.narrow(0, done, rows), begin + done, last ? keep : 0));
    done += rows;
  }
  decoder_->cache().set_length(begin + total);
  return hidden;
}

Result<void> LanguageSession::start_answer(const CancelFlag& cancel) {
  return run_stage(kWhat, stream_, [&]() -> Result<void> {
    if (!conversation_.turn_open())
      return Error{ErrorCode::kFailed, "language model: there is nothing to answer", kWhat};
    if (cancel.is_set()) return cancelled();
    const Feed feed = conversation_.answer_prompt();
    const at::Device device = weights_->device.device;
    if (device.is_cuda()) first_words_.emplace(SpeechGate::of_device(device.index()));
    bursts_ = 0;
    auto pieces = queue_;
    pieces.push_back({feed, {}});
    ASSIGN_OR_RETURN(const at::Tensor hidden, read(pieces, feed.rows(), cancel));
    queue_.clear();
    queued_rows_ = 0;
    forget_snapshots();
    before_answer_ = conversation_;
    conversation_.accept_answer(feed, options_.max_new_tokens);
    const int64_t speaker =
        hidden.size(0) - feed.rows() + static_cast<int64_t>(weights_->prompts->speaker_at);
    answer_ = Answer{resolve_sampling(options_, weights_->config.generation),
                     Philox(options_.seed, answers_++),
                     hidden.narrow(0, speaker, 1).to(at::kFloat).clone()};
    return {};
  });
}

Result<LanguageSession::Draft> LanguageSession::draft_burst(const CancelFlag& cancel) {
  Draft draft{{}, FinishReason::kNone, answer_->random};
  const std::vector<int32_t> penalised = conversation_.penalty_scope();
  const std::vector<int32_t> stops = conversation_.stop_tokens();
  const int limit = conversation_.burst_limit();
  TokenDraws draws{conversation_.carried(), conversation_.length(), 0, penalised, stops,
                   answer_->sampling};
  // Each draw takes a row of the cache, but the one that follows the prompt.
  const int64_t rows_left = decoder_->cache().capacity() - draws.begin + (draws.carried ? 0 : 1);
  draws.count = static_cast<int>(std::min<int64_t>(limit, rows_left));
  const GpuTimer::Call timed(decode_timer_);
  ASSIGN_OR_RETURN(draft.ids, decoder_->draw(draws, hook_, &draft.random, cancel));
  if (!draft.ids.empty() && conversation_.is_stop(draft.ids.back())) {
    draft.finish = FinishReason::kStop;
  } else if (static_cast<int>(draft.ids.size()) < limit) {
    draft.finish = FinishReason::kContext;
  }
  return draft;
}

Result<Burst> LanguageSession::next_burst(const CancelFlag& cancel) {
  return run_stage(kWhat, stream_, [&]() -> Result<Burst> {
    if (!answer_ || !conversation_.answering())
      return Error{ErrorCode::kFailed, "language model: no answer is under way", kWhat};
    const at::Device device = weights_->device.device;
    SpeechGate* const gate = device.is_cuda() ? &SpeechGate::of_device(device.index()) : nullptr;
    if (gate != nullptr && !first_words_) gate->wait_for_first_words();
    if (gate != nullptr && !answer_->speaker.defined()) gate->wait(speech_asked_);
    // Until the burst is whole nothing of it counts: a cancelled or failed call can be made again.
    ASSIGN_OR_RETURN(Draft draft, draft_burst(cancel));
    if (gate != nullptr) speech_asked_ = gate->asked();
    if (++bursts_ == kFirstBursts || draft.finish != FinishReason::kNone) first_words_.reset();
    Burst burst = conversation_.accept_burst(std::move(draft.ids), draft.finish);
    decoder_->cache().set_length(conversation_.length());
    if (answer_->speaker.defined()) burst.speaker = wrap_tensor(answer_->speaker.to(at::kCPU));
    answer_->speaker.reset();
    answer_->random = draft.random;
    if (burst.finish != FinishReason::kNone) answer_.reset();
    return burst;
  });
}

void LanguageSession::interrupt(int64_t heard_bytes) {
  Snapshot before{conversation_, answer_, 0};
  conversation_.interrupt(heard_bytes);
  if (conversation_.turn_open()) return;
  answer_.reset();
  first_words_.reset();
  cut_cache();
  if (before_interruption_) return;
  before.valid_rows = conversation_.length();
  before_interruption_ = std::move(before);
}

void LanguageSession::forget_snapshots() {
  before_interruption_.reset();
  before_turn_.reset();
  before_answer_.reset();
}

Result<void> LanguageSession::cancel_turn(bool resume, const CancelFlag& cancel) {
  auto& snapshot = resume && before_interruption_ ? before_interruption_ : before_turn_;
  if (!snapshot) return {};
  return run_stage(kWhat, stream_, [&]() -> Result<void> {
    RETURN_IF_ERROR(restore(*snapshot, cancel));
    before_turn_.reset();
    if (resume) before_interruption_.reset();
    return {};
  });
}

Result<void> LanguageSession::restore(Snapshot snapshot, const CancelFlag& cancel) {
  const auto& ids = snapshot.conversation.fed();
  const bool answering = snapshot.answer.has_value();
  int64_t from = snapshot.valid_rows;
  // The first token of an answer is drawn from the state of the prompt's last row.
  if (answering && !snapshot.conversation.carried())
    from = std::min(from, snapshot.conversation.length() - 1);
  queue_.clear();
  queued_rows_ = 0;
  if (decoder_ && from < snapshot.conversation.length()) {
    decoder_->cache().set_length(from);
    const Feed lost{{ids.begin() + from, ids.end()}, {}};
    ASSIGN_OR_RETURN(const at::Tensor states, read({{lost, {}}}, answering ? 1 : 0, cancel));
  }
  conversation_ = std::move(snapshot.conversation);
  answer_ = std::move(snapshot.answer);
  first_words_.reset();
  cut_cache();
  return {};
}

void LanguageSession::reopen_turn() {
  if (!before_answer_) return;
  conversation_ = std::move(*before_answer_);
  forget_snapshots();
  answer_.reset();
  first_words_.reset();
  cut_cache();
  --answers_;  // as if there had been none
}

void LanguageSession::reset() {
  begin_session();
  answers_ = 0;
}

}  // namespace minicpmo
