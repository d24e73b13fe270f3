// The speech model stage: text bursts and a speaker vector to audio codes (MiniCPM-o 2.6:
// ConditionalChatTTS and its streaming driver). SpeechText decides what is read and when,
// SpeechDecoder is the network, this samples.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "common/stage.h"
#include "engine/gpu_timer.h"
#include "engine/sampling.h"
#include "engine/speech_gate.h"
#include "tts/speech_decoder.h"
#include "tts/speech_text.h"

namespace minicpmo {

inline constexpr int64_t kCodesPerCall = 25;
inline constexpr int64_t kCodesBeforeEnd = 10;  // of each call: speech does not end there
inline constexpr size_t kCarriedCodes = 50;     // a continuation segment starts from

struct CodeSampling {
  double temperature = 1;  // factor on the books' temperatures 0.1, 0.3, 0.1, 0.3; 0 is greedy
  double top_p = 0.7;
  int64_t top_k = 20;
};

// Logits (books, audio_tokens) as they are drawn from, book by book: divided by the temperature,
// top-p and then top-k (the first step of a segment: neither), of which at least 3 stay, and the
// last token, which ends the speech, at -inf if !may_end. temperature 0: only the latter.
void filter_codes(std::span<float> logits, const CodeSampling& sampling, bool first_step,
                  bool may_end);
// One row from the logits, filtered in place: a draw per book, or with temperature 0 the best.
CodeRow choose_codes(std::span<float> logits, const CodeSampling& sampling, bool first_step,
                     bool may_end, Philox& random);

// A session. The random numbers of an answer depend on the seed and on how many answers were
// started since construction or reset().
//
// While it waits for text it goes on with the steps of the next call that will not see that text
// (visible_text_end()), so that less is left to do once it is there. The codes are the same.
class SpeechSession final : public SpeechModel {
 public:
  // Sees the logits of each step as they are sampled (end barred if it is) and the row chosen;
  // returns the row to go on with (for tests that force a reference's codes). With a hook every
  // step is run on its own, and none ahead of the text.
  using CodeHook = std::function<CodeRow(std::span<const float> logits, const CodeRow& row)>;

  // Throws c10::Error.
  explicit SpeechSession(std::shared_ptr<const SpeechModelWeights> weights);

  Result<void> start(const Tensor& speaker, const SpeechModelOptions& options) override;
  void push_text(std::string_view burst) override;
  void end_text() override { text_.end(); }
  Result<std::optional<CodeChunk>> step(const CancelFlag& cancel) override;
  void reset() override;
  int64_t gpu_nanoseconds() const override { return timer_.nanoseconds(); }

  void set_code_hook(CodeHook hook) { hook_ = std::move(hook); }
  const SpeechText& text() const { return text_; }
  const SpeechDecoder* decoder() const { return decoder_.get(); }
  int64_t codes_ahead() const { return codes_ahead_; }  // of this answer: made before their text

 private:
  // The begin of the next call, made before its text is known.
  struct Ahead {
    int64_t position = 0;      // before it
    uint64_t counter = 0;      // of the random numbers, before it
    int64_t rows = 0;          // at the end of codes_
    bool ended = false;        // and then the end code was drawn
    int64_t visible_text = 0;  // text rows from here on were not seen
  };

  void make_decoder(const SpeechModelOptions& options);
  int64_t code_rows(const SpeechModelOptions& options) const;
  Result<std::optional<CodeChunk>> speak(const SpeechCall& call, const CancelFlag& cancel);
  void prepare(const SpeechCall& call);
  Result<void> run_ahead(const CancelFlag& cancel);
  void check_ahead(const SpeechCall& call);
  Result<bool> generate(int64_t from, int64_t to, int64_t text_tokens, const CancelFlag& cancel);
  Result<bool> generate_on_runner(int64_t from, int64_t to, int64_t text_tokens,
                                  const CancelFlag& cancel);
  CodeRow choose(std::span<float> logits, bool first_step, bool may_end);
  bool at_limit(const SpeechCall& call) const;
  int64_t codes_left() const;
  int64_t steps_of_call(int64_t made) const;

  std::shared_ptr<const SpeechModelWeights> weights_;
  SpeechText text_;
  StageStream stream_;
  GpuTimer timer_{stream_};
  std::unique_ptr<SpeechDecoder> decoder_;
  SpeechModelOptions options_;
  CodeSampling sampling_;
  Philox random_{0, 0};
  uint64_t answers_ = 0;
  bool active_ = false;  // between start() and the last chunk
  std::optional<Error> failed_;
  std::vector<CodeRow> codes_;  // of this segment, the carried ones included
  size_t carried_ = 0;
  int64_t text_read_ = 0;  // text rows of this segment before here are prefilled
  std::optional<Ahead> ahead_;
  bool may_run_ahead_ = false;  // the segment goes on
  int64_t codes_ahead_ = 0;
  CodeHook hook_;
  std::optional<SpeechGate::FirstSound> first_sound_;  // on a GPU, until the first codes are made
};

std::unique_ptr<SpeechModel> new_speech_model(std::shared_ptr<const SpeechModelWeights> weights);

}  // namespace minicpmo
