// The language model stage: Qwen2 over the dialogue of conversation.h, sampled in bursts of three
// tokens (MiniCPM-o 2.6, modeling_minicpmo.py: streaming_prefill, streaming_generate).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "common/stage.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/gpu_timer.h"
#include "engine/sampling.h"
#include "engine/speech_gate.h"
#include "engine/stage_device.h"
#include "engine/tokenizer.h"
#include "engine/transformer.h"
#include "llm/conversation.h"
#include "llm/language_decoder.h"
#include "llm/token_choice.h"

namespace minicpmo {

// Immutable once loaded; shared by all sessions.
struct LanguageModelWeights {
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const Prompts> prompts;
  StageDevice device;
  at::Tensor embed_tokens;  // (vocab, hidden)
  Transformer transformer;
  at::Tensor lm_head;  // (vocab, hidden)
};

// Reads llm.* of the checkpoint. kCorrupt if a tensor or one of the dialogue's tokens is missing or
// does not fit.
Result<std::shared_ptr<const LanguageModelWeights>> load_language_model(
    const Checkpoint& checkpoint, const ModelConfig& config,
    std::shared_ptr<const Tokenizer> tokenizer, const StageDevice& device, const Progress& progress,
    const CancelFlag& cancel);

// Takes all its memory and reads the system prompt at once, so that the first turn need not. That
// takes a while: not for a streaming thread. kNoSpace if memory is short.
Result<std::unique_ptr<LanguageModel>> new_language_model(
    std::shared_ptr<const LanguageModelWeights> weights, const LanguageModelOptions& options);

// Rows of the language model per full second of audio, from the encoder's two strides and the
// pooling.
int64_t rows_per_chunk(const AudioConfig& audio);

class LanguageSession final : public LanguageModel {
 public:
  using TokenHook = minicpmo::TokenHook;

  LanguageSession(std::shared_ptr<const LanguageModelWeights> weights,
                  const LanguageModelOptions& options);

  // Makes the cache, and reads the system prompt now, if it is due.
  Result<void> prime(const CancelFlag& cancel);

  Result<void> prefill_audio(const Tensor& embeddings, const CancelFlag& cancel) override;
  Result<void> prefill_text(std::string_view text, const CancelFlag& cancel) override;
  bool turn_open() const override { return conversation_.turn_open(); }
  Result<void> start_answer(const CancelFlag& cancel) override;
  Result<Burst> next_burst(const CancelFlag& cancel) override;
  void interrupt(int64_t heard_bytes) override;
  Result<void> cancel_turn(bool resume, const CancelFlag& cancel) override;
  void reopen_turn() override;
  void reset() override;
  void set_options(const LanguageModelOptions& options) override { options_ = options; }
  int64_t context_used() const override { return conversation_.length(); }
  int64_t sessions() const override { return sessions_; }
  int64_t gpu_nanoseconds() const override {
    return prefill_timer_.nanoseconds() + decode_timer_.nanoseconds();
  }
  int64_t gpu_prefill_nanoseconds() const override { return prefill_timer_.nanoseconds(); }

  const Conversation& conversation() const { return conversation_; }
  void set_token_hook(TokenHook hook) { hook_ = std::move(hook); }

 private:
  struct Piece {  // accepted by the conversation, not yet read by the model
    Feed feed;
    at::Tensor audio;  // (rows, hidden) or undefined
  };
  struct Answer {
    SamplingSettings sampling;
    Philox random;
    at::Tensor speaker;  // float32 (1, hidden); undefined after the first burst
  };
  // What to go back to.
  struct Snapshot {
    Conversation conversation;
    std::optional<Answer> answer;
    int64_t valid_rows;  // of the cache that still belong to it
  };
  // One pass over burst tokens: what was sampled, before any of it is kept.
  struct Draft {
    std::vector<int32_t> ids;
    FinishReason finish = FinishReason::kNone;
    Philox random;
  };

  int64_t capacity_wanted() const;
  bool options_due() const;
  void begin_session();
  void forget_snapshots();
  Result<void> restore(Snapshot snapshot, const CancelFlag& cancel);
  void adopt_options();
  Result<void> ensure_decoder();
  void cut_cache();
  bool fits(const Conversation& conversation, const Feed& feed, int64_t answer_rows) const;
  Result<void> prefill(const std::function<Feed(const Conversation&)>& make_feed,
                       const at::Tensor& audio, bool may_wait, const CancelFlag& cancel);
  Result<at::Tensor> check_embeddings(const Tensor& embeddings) const;
  at::Tensor embed(std::span<const int32_t> ids) const;
  Result<at::Tensor> embed(const Piece& piece) const;
  Result<at::Tensor> read(const std::vector<Piece>& pieces, int64_t keep, const CancelFlag& cancel);
  Result<Draft> draft_burst(const CancelFlag& cancel);

  std::shared_ptr<const LanguageModelWeights> weights_;
  StageStream stream_;
  GpuTimer prefill_timer_{stream_}, decode_timer_{stream_};
  LanguageModelOptions options_;          // what was asked for
  LanguageModelOptions session_options_;  // what this session runs with
  Conversation conversation_;
  // Of its cache, rows [0, length) are conversation_.fed() without the queue.
  std::unique_ptr<LanguageDecoder> decoder_;
  std::vector<Piece> queue_;  // read together with what comes next
  int64_t queued_rows_ = 0;
  std::optional<Answer> answer_;
  // Before the interruption of the last answer, before the open turn, and before the last answer.
  std::optional<Snapshot> before_interruption_, before_turn_;
  std::optional<Conversation> before_answer_;
  int64_t speech_asked_ = 0;  // SpeechGate::asked() when the last burst was handed out
  std::optional<SpeechGate::FirstWords> first_words_;  // on a GPU, until speech can begin
  int bursts_ = 0;                                     // of this answer
  uint64_t answers_ = 0;
  int64_t sessions_ = 0;
  TokenHook hook_;
};

}  // namespace minicpmo
