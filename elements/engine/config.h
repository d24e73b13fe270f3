// config.json, generation_config.json: every number checked for type and range before anything is
// sized by it.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "common/result.h"

namespace minicpmo {

struct AudioConfig {  // audio_config (WhisperConfig), audio_pool_step, audio_chunk_length
  int64_t hidden_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t intermediate_size = 0;
  int64_t mel_bins = 80;
  int64_t max_positions = 1500;
  int64_t pool_step = 2;
  double chunk_seconds = 1.0;
};

struct DecoderConfig {  // Qwen2 (llm) or Llama (tts.model)
  int64_t hidden_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;  // 0 for tts.model
  int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 1e4;
  bool qkv_bias = false;
};

struct SpeechConfig {  // tts_config
  DecoderConfig decoder;
  int64_t llm_dim = 0;
  int64_t text_tokens = 0;
  int64_t audio_tokens = 626;  // the last one ends the speech
  int64_t books = 4;
  int64_t speaker_token = 0;
  int64_t audio_bos_token = 0;
  int64_t text_eos_token = 0;
  int64_t text_reserved = 300;  // text slots of a segment
  int64_t text_slice = 10;      // text tokens prefilled per audio call
  int64_t mel_bins = 100;
  double top_p = 0.7;
  int64_t top_k = 20;
};

struct GenerationDefaults {  // generation_config.json, or the published defaults of model-spec 3.4
  bool do_sample = true;
  double temperature = 0.7;
  double top_p = 0.8;
  int64_t top_k = 100;
  double repetition_penalty = 1.05;
};

struct ModelConfig {
  std::string version;
  AudioConfig audio;
  DecoderConfig language;
  SpeechConfig speech;
  GenerationDefaults generation;
};

// Errors name the file and the key.
Result<ModelConfig> read_config(const std::string& directory);

}  // namespace minicpmo
