// The speech model's network and its KV cache: a Llama decoder over 303 text positions and the
// codes behind them (MiniCPM-o 2.6, modeling_minicpmo.py: ConditionalChatTTS.prefill_text,
// prefill_audio_ids, generate).
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "common/stage.h"
#include "cuda/speech_runner.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/stage_device.h"
#include "engine/tokenizer.h"
#include "engine/transformer.h"

namespace minicpmo {

inline constexpr int64_t kBooks = 4;
using CodeRow = std::array<uint16_t, kBooks>;

// Immutable once loaded; shared by all sessions.
struct SpeechModelWeights {
  SpeechConfig config;
  bool greedy = false;  // the checkpoint says that it is not to be sampled
  std::shared_ptr<const Tokenizer> tokenizer;
  int32_t start_token = 0;  // [Stts]
  StageDevice device;
  at::Tensor projector1_weight, projector1_bias, projector2_weight, projector2_bias;
  at::Tensor emb_text;  // (text_tokens, hidden)
  at::Tensor emb_code;  // (books * audio_tokens, hidden)
  at::Tensor heads;     // (books * audio_tokens, hidden), float32: g * v / |v| of the weight norm
  at::Tensor runner_heads;  // the same in bfloat16, if there are runners
  Transformer transformer;
};

// Reads tts.* without tts.dvae.*. `tokenizer` is the checkpoint's assets/chattts_tokenizer. Errors:
// kCorrupt naming the tensor or token, kCancelled, kNoSpace. progress may be empty.
Result<std::shared_ptr<const SpeechModelWeights>> load_speech_model(
    const Checkpoint& checkpoint, const ModelConfig& config,
    std::shared_ptr<const Tokenizer> tokenizer, const StageDevice& device, const Progress& progress,
    const CancelFlag& cancel);

// First text position that an audio step at `position` does not see: of `slots` text slots, ten
// more every 50 steps, never more than the known text with its [Etts]. Positions from there to the
// audio start (slots + 2) are masked, the audio start itself always, even for its own step; all
// codes are visible.
int64_t visible_text_end(int64_t position, int64_t text_tokens, int64_t slots, int64_t slice);

// Throws c10::Error (its callers run inside run_stage, on the session's stream).
class SpeechDecoder {
 public:
  // max_codes: the most code rows that a segment will hold.
  // stream: what it is used on; with a runner for it if the device has one for these weights.
  SpeechDecoder(std::shared_ptr<const SpeechModelWeights> weights, int64_t max_codes,
                const StageStream& stream = {});

  const std::shared_ptr<const SpeechModelWeights>& weights() const { return weights_; }
  int64_t max_codes() const { return max_codes_; }
  // speaker: float32 (1, llm_dim), on any device. What takes the place of [spk_emb]: projected,
  // then of length 1. (1, hidden)
  void set_speaker(const at::Tensor& speaker);
  const at::Tensor& speaker() const { return speaker_; }
  cuda::SpeechRunner* runner() const { return runner_.get(); }  // or null

  // An empty segment: rows of zeros up to the audio start. They matter: a continuation segment sees
  // some of them.
  void begin_segment();
  // Text ids for positions begin, begin + 1, ...; reads what is before them, overwrites what was
  // there. begin = 0: the second one is the speaker.
  void prefill_text(std::span<const int32_t> ids, int64_t begin);
  // The audio start and `codes`, before the first step of a segment. All of them see each other and
  // the text that the first one sees: the weights were made with this.
  at::Tensor prefill_codes(std::span<const CodeRow> codes, int64_t text_tokens);
  // True before the first step of a segment, unless codes were prefilled.
  bool at_start() const { return cache_.length() == audio_start(); }
  // Where the next audio step is.
  int64_t position() const { return cache_.length(); }
  // Forgets the audio steps from `position` on.
  void rewind(int64_t position) { cache_.set_length(position); }
  // One audio step: reads `previous` (the audio start if at_start()) and returns the logits of the
  // next row, (books, audio_tokens) row-major, on the host; valid until the next call.
  std::span<float> step(const CodeRow& previous, int64_t text_tokens);
  // With a runner: up to call.steps steps at once, with the codes drawn on the device. Sets
  // call.position. Fails as SpeechRunner::speak().
  Result<cuda::SpeechRunner::Outcome> speak(cuda::SpeechCallSpec call, const CancelFlag& cancel,
                                            std::span<CodeRow> codes);

 private:
  int64_t audio_start() const { return weights_->config.text_reserved + 2; }
  std::unique_ptr<cuda::SpeechRunner> make_runner(const StageStream& stream) const;
  at::Tensor embed_codes(std::span<const CodeRow> codes) const;
  at::Tensor mask_for(int64_t keys, int64_t text_tokens);

  std::shared_ptr<const SpeechModelWeights> weights_;
  int64_t max_codes_;
  KvCache cache_;
  at::Tensor speaker_;
  at::Tensor mask_;  // (1, capacity); only [visible_, audio_start] is hidden
  int64_t visible_ = 0;
  at::Tensor logits_;
  std::unique_ptr<cuda::SpeechRunner> runner_;
};

}  // namespace minicpmo
