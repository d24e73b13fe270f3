#include "engine/config.h"

#include <cmath>
#include <initializer_list>
#include <optional>

#include "engine/json_file.h"
#include "engine/paths.h"

namespace minicpmo {
namespace {

using nlohmann::json;

// Reads checked values of one JSON object and keeps the first error, so that a reader is a plain
// list of keys.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  // Absent (or null) keys take `fallback`; without one they are an error.
  int64_t integer(const char* key, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = {}) {
    const json* value = find(key);
    if (!value) return fallback ? *fallback : (fail(key, "is missing"), low);
    if (!value->is_number_integer()) {
      fail(key, "is " + shown(*value) + ", not a whole number");
      return low;
    }
    const bool too_high =
        value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    const int64_t n = too_high ? INT64_MAX : value->get<int64_t>();
    if (n < low || n > high) {
      fail(key, "is " + value->dump() + ", outside " + std::to_string(low) + ".." +
                    std::to_string(high));
      return low;
    }
    return n;
  }

  double number(const char* key, double low, double high, std::optional<double> fallback = {}) {
    const json* value = find(key);
    if (!value) return fallback ? *fallback : (fail(key, "is missing"), low);
    if (!value->is_number()) {
      fail(key, "is " + shown(*value) + ", not a number");
      return low;
    }
    const double x = value->get<double>();
    if (!(x >= low && x <= high)) {
      fail(key, "is " + value->dump() + ", outside " + json(low).dump() + ".." + json(high).dump());
      return low;
    }
    return x;
  }

  bool boolean(const char* key, bool fallback) {
    const json* value = find(key);
    if (!value) return fallback;
    if (!value->is_boolean()) fail(key, "is " + shown(*value) + ", not true or false");
    return value->is_boolean() && value->get<bool>();
  }

  std::string string(const char* key) {
    const json* value = find(key);
    if (!value) return "";
    if (value->is_string()) return value->get<std::string>();
    // A version is a string in the published file; a number says as much.
    if (value->is_number()) return value->dump();
    fail(key, "is " + shown(*value) + ", not a string");
    return "";
  }

  // Values that only one setting of is implemented.
  void only(const char* key, const json& wanted) {
    const json* value = find(key);
    if (value && *value != wanted) {
      fail(key, "is " + shown(*value) + ", only " + wanted.dump() + " is supported");
    }
  }

  void fail(const std::string& key, const std::string& what) {
    if (!error_) error_ = Error{ErrorCode::kCorrupt, where_ + key + " " + what};
  }
  Result<void> result() const { return error_ ? Result<void>(*error_) : Result<void>(); }

 private:
  static std::string shown(const json& value) { return value.dump(-1, ' ', true).substr(0, 80); }

  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  const json& object_;
  std::string where_;
  std::optional<Error> error_;
};

constexpr int64_t kMaxWidth = 1 << 16;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxVocabulary = 1 << 22;
constexpr int64_t kMaxPositions = 1 << 18;

void check_heads(Reader& reader, const char* key, int64_t width, int64_t heads, bool rotary) {
  if (heads <= 0 || width % heads != 0) {
    reader.fail(key, "is " + std::to_string(heads) + ", which does not divide the hidden size " +
                         std::to_string(width));
  } else if (rotary && width / heads % 2 != 0) {
    reader.fail(key, "is " + std::to_string(heads) + ", which makes the head size " +
                         std::to_string(width / heads) + " odd");
  }
}

Result<DecoderConfig> read_language(const json& object, const std::string& where) {
  Reader r(object, where);
  DecoderConfig c;
  c.hidden_size = r.integer("hidden_size", 1, kMaxWidth);
  c.layers = r.integer("num_hidden_layers", 1, kMaxLayers);
  c.heads = r.integer("num_attention_heads", 1, kMaxHeads);
  c.kv_heads = r.integer("num_key_value_heads", 1, kMaxHeads, c.heads);
  c.intermediate_size = r.integer("intermediate_size", 1, 4 * kMaxWidth);
  c.vocab_size = r.integer("vocab_size", 1, kMaxVocabulary);
  c.max_positions = r.integer("max_position_embeddings", 1, kMaxPositions);
  c.rms_norm_eps = r.number("rms_norm_eps", 0, 0.1, 1e-6);
  c.rope_theta = r.number("rope_theta", 1, 1e12, 1e4);
  c.qkv_bias = true;  // Qwen2: biases on q, k and v, none elsewhere
  check_heads(r, "num_attention_heads", c.hidden_size, c.heads, true);
  if (c.kv_heads <= 0 || c.heads % c.kv_heads != 0) {
    r.fail("num_key_value_heads", "is " + std::to_string(c.kv_heads) +
                                      ", which does not divide the number of heads " +
                                      std::to_string(c.heads));
  }
  r.only("hidden_act", "silu");
  r.only("use_sliding_window", false);
  r.only("tie_word_embeddings", false);
  RETURN_IF_ERROR(r.result());
  return c;
}

Result<AudioConfig> read_audio(const json& top, const json& object, const std::string& where) {
  Reader r(object, where + "audio_config.");
  AudioConfig c;
  c.hidden_size = r.integer("d_model", 1, kMaxWidth);
  c.layers = r.integer("encoder_layers", 1, kMaxLayers);
  c.heads = r.integer("encoder_attention_heads", 1, kMaxHeads);
  c.intermediate_size = r.integer("encoder_ffn_dim", 1, 4 * kMaxWidth);
  c.mel_bins = r.integer("num_mel_bins", 1, 1024, 80);
  c.max_positions = r.integer("max_source_positions", 1, kMaxPositions, 1500);
  check_heads(r, "encoder_attention_heads", c.hidden_size, c.heads, false);
  r.only("activation_function", "gelu");
  r.only("scale_embedding", false);
  RETURN_IF_ERROR(r.result());
  Reader outer(top, where);
  c.pool_step = outer.integer("audio_pool_step", 1, 64, 2);
  c.chunk_seconds = outer.number("audio_chunk_length", 0.1, 30, 1.0);
  RETURN_IF_ERROR(outer.result());
  return c;
}

Result<SpeechConfig> read_speech(const json& object, const std::string& where) {
  Reader r(object, where + "tts_config.");
  SpeechConfig c;  // defaults: class ConditionalChatTTSConfig of the published model
  c.decoder.hidden_size = r.integer("hidden_size", 1, kMaxWidth, 768);
  c.decoder.layers = r.integer("num_hidden_layers", 1, kMaxLayers, 20);
  c.decoder.heads = r.integer("num_attention_heads", 1, kMaxHeads, 12);
  c.decoder.kv_heads = c.decoder.heads;
  c.decoder.intermediate_size = r.integer("intermediate_size", 1, 4 * kMaxWidth, 3072);
  c.decoder.max_positions = r.integer("max_position_embeddings", 1, kMaxPositions, 4096);
  check_heads(r, "num_attention_heads", c.decoder.hidden_size, c.decoder.heads, true);
  c.llm_dim = r.integer("llm_dim", 1, kMaxWidth, 2560);
  c.text_tokens = r.integer("num_text_tokens", 1, kMaxVocabulary, 21178);
  c.audio_tokens = r.integer("num_audio_tokens", 2, 1 << 16, 626);
  c.books = r.integer("num_vq", 1, 64, 4);
  c.speaker_token = r.integer("spk_emb_token_id", 0, c.text_tokens - 1, 21143);
  c.audio_bos_token = r.integer("audio_bos_token_id", 0, c.text_tokens - 1, 21132);
  c.text_eos_token = r.integer("text_eos_token_id", 0, c.text_tokens - 1, 21133);
  c.text_reserved = r.integer("streaming_text_reserved_len", 1, 1 << 14, 300);
  c.text_slice = r.integer("streaming_text_chunk_size", 1, c.text_reserved, 10);
  c.mel_bins = r.integer("num_mel_bins", 1, 1024, 100);
  c.top_p = r.number("top_p", 0, 1, 0.7);
  c.top_k = r.integer("top_k", 0, 1 << 16, 20);
  for (const auto& [key, id] : {std::pair("spk_emb_token_id", c.speaker_token),
                                {"audio_bos_token_id", c.audio_bos_token},
                                {"text_eos_token_id", c.text_eos_token}}) {
    if (id >= c.text_tokens) r.fail(key, "is not below num_text_tokens");
  }
  if (c.text_reserved + 3 >= c.decoder.max_positions) {
    r.fail("max_position_embeddings", "leaves no room for speech after " +
                                          std::to_string(c.text_reserved + 3) + " text positions");
  }
  r.only("num_spk_embs", 1);
  r.only("use_speaker_embedding", true);
  r.only("use_llm_hidden_state", false);
  r.only("use_mlp", true);
  RETURN_IF_ERROR(r.result());
  return c;
}

Result<GenerationDefaults> read_generation(const std::string& directory) {
  GenerationDefaults defaults;
  const auto path = resolve_inside(directory, "generation_config.json");
  if (!path.ok()) {
    // The published checkpoint has none.
    if (path.error().code == ErrorCode::kNotFound) return defaults;
    return path.error();
  }
  ASSIGN_OR_RETURN(const json object, read_json_file(*path));
  if (!object.is_object()) return Error{ErrorCode::kCorrupt, *path + ": not a JSON object"};
  Reader r(object, *path + ": ");
  defaults.do_sample = r.boolean("do_sample", defaults.do_sample);
  defaults.temperature = r.number("temperature", 0, 100, defaults.temperature);
  defaults.top_p = r.number("top_p", 0, 1, defaults.top_p);
  defaults.top_k = r.integer("top_k", 0, kMaxVocabulary, defaults.top_k);
  defaults.repetition_penalty =
      r.number("repetition_penalty", 0.01, 100, defaults.repetition_penalty);
  RETURN_IF_ERROR(r.result());
  return defaults;
}

Result<const json*> child(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_object()) {
    return Error{ErrorCode::kCorrupt, where + key + " is missing or not an object"};
  }
  return &*found;
}

}  // namespace

Result<ModelConfig> read_config(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string path, resolve_inside(directory, "config.json"));
  ASSIGN_OR_RETURN(const json object, read_json_file(path));
  const std::string where = path + ": ";
  if (!object.is_object()) return Error{ErrorCode::kCorrupt, where + "not a JSON object"};
  Reader r(object, where);
  ModelConfig config;
  config.version = r.string("version");
  r.only("model_type", "minicpmo");
  if (!config.version.empty() && config.version != "2.6") {
    r.fail("version", "is " + config.version.substr(0, 40) + ", only 2.6 is supported");
  }
  RETURN_IF_ERROR(r.result());
  ASSIGN_OR_RETURN(config.language, read_language(object, where));
  ASSIGN_OR_RETURN(const json* audio, child(object, "audio_config", where));
  ASSIGN_OR_RETURN(config.audio, read_audio(object, *audio, where));
  ASSIGN_OR_RETURN(const json* speech, child(object, "tts_config", where));
  ASSIGN_OR_RETURN(config.speech, read_speech(*speech, where));
  if (config.speech.llm_dim != config.language.hidden_size) {
    return Error{ErrorCode::kCorrupt,
                 where + "tts_config.llm_dim is " + std::to_string(config.speech.llm_dim) +
                     ", hidden_size is " + std::to_string(config.language.hidden_size) +
                     "; they must be equal"};
  }
  ASSIGN_OR_RETURN(config.generation, read_generation(directory));
  return config;
}

}  // namespace minicpmo
