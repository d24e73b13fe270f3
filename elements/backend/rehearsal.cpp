#include "backend/rehearsal.h"

#include <vector>

namespace minicpmo {
namespace {

// Zeros on the host.
HostTensor zeros(DataType type, int64_t rows, int64_t columns, size_t element_size) {
  const auto bytes = static_cast<size_t>(rows * columns) * element_size;
  return {type, {rows, columns}, std::vector<std::byte>(bytes)};
}

}  // namespace

Result<void> rehearse(AudioEncoder& encoder, const EngineInfo& info) {
  const std::vector<float> silence(static_cast<size_t>(info.chunk_samples));
  ASSIGN_OR_RETURN(const TensorPtr embeddings, encoder.step(silence, CancelFlag()));
  encoder.reset();
  return {};
}

// A chunk read by itself, one that waits for the prompt, the prompt, the first words.
Result<void> rehearse(LanguageModel& model, const EngineInfo& info) {
  const auto turn = [&]() -> Result<void> {
    for (const int64_t rows : {info.chunk_rows, int64_t{1}}) {
      const HostTensor chunk = zeros(DataType::kFloat32, rows, info.hidden_size, sizeof(float));
      RETURN_IF_ERROR(model.prefill_audio(chunk, CancelFlag()));
    }
    RETURN_IF_ERROR(model.start_answer(CancelFlag()));
    for (int i = 0; i < 2; ++i) {
      ASSIGN_OR_RETURN(const Burst burst, model.next_burst(CancelFlag()));
      if (burst.finish != FinishReason::kNone) break;
    }
    return {};
  };
  const Result<void> result = turn();
  model.reset();
  if (!result.ok() && result.error().code != ErrorCode::kContextFull) return result;
  return {};
}

Result<void> rehearse(SpeechModel& model, const EngineInfo& info) {
  const HostTensor speaker = zeros(DataType::kFloat32, 1, info.hidden_size, sizeof(float));
  RETURN_IF_ERROR(model.start(speaker, {}));
  model.push_text("Good morning. How are you today? ");
  model.end_text();
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(const auto chunk, model.step(CancelFlag()));
    if (!chunk || chunk->last) break;
  }
  model.reset();
  return {};
}

Result<void> rehearse(Vocoder& vocoder) {
  const HostTensor codes = zeros(DataType::kUInt16, 25, 4, sizeof(uint16_t));
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(const TensorPtr pcm, vocoder.step(codes, false, CancelFlag()));
  }
  ASSIGN_OR_RETURN(const TensorPtr tail, vocoder.flush());
  return {};
}

}  // namespace minicpmo
