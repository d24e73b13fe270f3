// One step of a decoder-only transformer for one sequence on a CUDA device: fused kernels for the
// language model (Qwen2) and the speech model (Llama) of MiniCPM-o 2.6. Whatever changes from step
// to step is read from device memory, so that a step, or a chain of steps, can be captured into a
// CUDA graph once and replayed.
//
// Weights and cache are bfloat16, sums and activations between the kernels float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/decoder_types.h"

namespace minicpmo::cuda {

// In device memory. The step writes row `position` of the cache and attends to rows [0,
// visible_front) and [visible_from, position]. {p, 0, 0} is plain causal attention.
struct DecodeState {
  int32_t position = 0;
  int32_t visible_front = 0;
  int32_t visible_from = 0;
};

constexpr int kSpeechBooks = 4;
constexpr int kMaxCallCodes = 64;

// The speech model's state of one call of at most kMaxCallCodes steps, in device memory (one copy
// to set it, one to read it). Cache rows: front_rows special ones, text_slots of text, the
// begin-of-audio row, then one for each row of codes (MiniCPM-o 2.6, modeling_minicpmo.py:
// ConditionalChatTTS).
struct SpeechState {
  DecodeState decode;
  int32_t front_rows = 2, text_slots = 300;
  int32_t text_slice = 10,
          codes_per_slice = 50;  // ten more slots of text become visible for every 50 rows of codes
  int32_t text_end = 2;          // text rows from here on hold nothing and stay hidden
  int32_t step = 0, limit = 25;  // steps done, and allowed, in this call
  int32_t min_steps = 10;        // the end code is barred in steps before this one
  int32_t count = 0;             // rows written to `codes` in this call
  int32_t ended = 0;             // a book drew the end code; its row is not in `codes`
  int32_t last[kSpeechBooks] = {};             // what the next step reads
  int32_t top_k = 20, min_keep = 3;            // top_k <= 0: off
  float temperature[kSpeechBooks] = {};        // all 0: the best code, no draw
  double top_p = 0.7;                          // >= 1: off
  uint64_t seed = 0, stream = 0, counter = 0;  // as class Philox (engine/sampling.h)
  int32_t codes[kMaxCallCodes][kSpeechBooks] = {};
};

// How many rows from the front the step at `position` may see.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline int32_t
    speech_visible_front(const SpeechState& s, int32_t position) {
  const int32_t past = position - s.text_slots;
  const int32_t slices = past > 0 ? (past + s.codes_per_slice - 1) / s.codes_per_slice : 0;
  const int32_t slots = slices * s.text_slice < s.text_slots ? slices * s.text_slice : s.text_slots;
  const int32_t front = slots + s.front_rows;
  return front < s.text_end ? front : s.text_end;
}

struct SpeechCodes {
  const bfloat16_bits* embedding = nullptr;  // (books, tokens, hidden)
  int tokens = 0;                            // per book, at most 1024; the last one means end
};

// Enqueues the kernels; owns the buffers between them. Not thread-safe; one per sequence.
class DecodeStep {
 public:
  DecodeStep() = default;
  ~DecodeStep();
  DecodeStep(const DecodeStep&) = delete;
  DecodeStep& operator=(const DecodeStep&) = delete;

  // Why the shape cannot be run, or null.
  static const char* unsupported(const DecoderShape& shape);
  // Allocates. `overlap`: a kernel may start, and fetch its weights, while the one before it drains
  // (programmatic dependent launch, compute capability 9.0 and later; ignored elsewhere).
  cudaError_t init(const DecoderShape& shape, const DecoderWeights& weights, bool overlap);

  // x() holds the input embedding before, and garbage after. Leaves the normed state in hidden()
  // and the head's rows in logits(). Does not change the state.
  cudaError_t step(const DecodeState* state, cudaStream_t stream);
  // A step of the language model: reads the embedding of *token, and moves state->position on.
  cudaError_t token_step(const bfloat16_bits* embedding, const int32_t* token, DecodeState* state,
                         cudaStream_t stream);
  // A step of the speech model: then draws the codes, moves the state on, and writes the sum of the
  // codes' embeddings into x(). Once the call has ended (end code, limit, or cache full) further
  // steps change nothing but x(), which stays the embedding of `last`.
  cudaError_t speech_step(const SpeechCodes& codes, SpeechState* state, cudaStream_t stream);
  // The last part of speech_step alone, on whatever logits() holds.
  cudaError_t draw_codes(const SpeechCodes& codes, SpeechState* state, cudaStream_t stream);

  float* x() { return x_; }            // (hidden)
  float* hidden() { return hidden_; }  // (hidden)
  float* logits() { return logits_; }  // (head_rows)
  float* qkv() { return qkv_; }
  float* attended() { return attended_; }
  float* inner() { return inner_; }
  // Parts of a layer, for tests and timing.
  cudaError_t run_qkv(int layer, cudaStream_t stream);
  cudaError_t run_attention(int layer, const DecodeState* state, cudaStream_t stream);
  cudaError_t run_o(int layer, cudaStream_t stream);
  cudaError_t run_gate_up(int layer, cudaStream_t stream);
  cudaError_t run_down(int layer, cudaStream_t stream);
  cudaError_t run_head(cudaStream_t stream);

 private:
  DecoderShape shape_;
  DecoderWeights weights_;
  bool overlap_ = false;
  int processors_ = 0, splits_ = 1;
  void* memory_ = nullptr;
  float *x_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr, *inner_ = nullptr, *hidden_ = nullptr,
        *logits_ = nullptr, *partial_ = nullptr;
  uint32_t* arrived_ = nullptr;
};

}  // namespace minicpmo::cuda
