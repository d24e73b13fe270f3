#include "backend/model_check.h"

#include <string>
#include <vector>

namespace minicpmo {
namespace {

struct Expected {
  std::string tensor;
  size_t dimension;
  int64_t size;
  const char* key;  // of config.json
};

Error corrupt(const std::string& what) {
  return Error{ErrorCode::kCorrupt, what};
}

Result<void> check_layers(const Checkpoint& checkpoint, const std::string& prefix,
                          const std::string& suffix, int64_t wanted, const char* key) {
  const int64_t layers = checkpoint.count(prefix, suffix);
  if (layers == 0 || layers == wanted) return {};
  return corrupt(checkpoint.location() + ": \"" + prefix + "\" holds " + std::to_string(layers) +
                 " layers, " + key + " of config.json is " + std::to_string(wanted));
}

Result<void> check_size(const Tokenizer& tokenizer, int64_t limit, const char* key,
                        const std::string& file) {
  if (tokenizer.size() <= limit) return {};
  return corrupt(file + ": has ids up to " + std::to_string(tokenizer.size() - 1) + ", but " + key +
                 " of config.json is " + std::to_string(limit));
}

}  // namespace

Result<void> check_shapes(const Checkpoint& checkpoint, const ModelConfig& config) {
  const auto& [audio, language, speech] = std::tie(config.audio, config.language, config.speech);
  const std::vector<Expected> expected = {
      {"llm.model.embed_tokens.weight", 0, language.vocab_size, "vocab_size"},
      {"llm.model.embed_tokens.weight", 1, language.hidden_size, "hidden_size"},
      {"llm.lm_head.weight", 0, language.vocab_size, "vocab_size"},
      {"llm.model.layers.0.mlp.gate_proj.weight", 0, language.intermediate_size,
       "intermediate_size"},
      {"apm.conv1.weight", 0, audio.hidden_size, "audio_config.d_model"},
      {"apm.conv1.weight", 1, audio.mel_bins, "audio_config.num_mel_bins"},
      {"apm.embed_positions.weight", 0, audio.max_positions, "audio_config.max_source_positions"},
      {"audio_projection_layer.linear2.weight", 0, language.hidden_size, "hidden_size"},
      {"tts.projector.linear1.weight", 1, speech.llm_dim, "tts_config.llm_dim"},
      {"tts.emb_text.weight", 0, speech.text_tokens, "tts_config.num_text_tokens"},
      {"tts.emb_text.weight", 1, speech.decoder.hidden_size, "tts_config.hidden_size"},
      {"tts.emb_code.0.weight", 0, speech.audio_tokens, "tts_config.num_audio_tokens"},
  };
  for (const Expected& e : expected) {
    if (!checkpoint.has(e.tensor)) continue;
    ASSIGN_OR_RETURN(const std::vector<int64_t> shape, checkpoint.shape(e.tensor));
    if (e.dimension < shape.size() && shape[e.dimension] == e.size) continue;
    const std::string have =
        e.dimension < shape.size() ? std::to_string(shape[e.dimension]) : "missing";
    return corrupt(checkpoint.location() + ": dimension " + std::to_string(e.dimension) +
                   " of tensor \"" + e.tensor + "\" is " + have + ", " + e.key +
                   " of config.json is " + std::to_string(e.size));
  }
  RETURN_IF_ERROR(check_layers(checkpoint, "llm.model.layers.", ".input_layernorm.weight",
                               language.layers, "num_hidden_layers"));
  RETURN_IF_ERROR(check_layers(checkpoint, "apm.layers.", ".fc1.weight", audio.layers,
                               "audio_config.encoder_layers"));
  RETURN_IF_ERROR(check_layers(checkpoint, "tts.model.layers.", ".input_layernorm.weight",
                               speech.decoder.layers, "tts_config.num_hidden_layers"));
  RETURN_IF_ERROR(
      check_layers(checkpoint, "tts.emb_code.", ".weight", speech.books, "tts_config.num_vq"));
  return {};
}

Result<void> check_language_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config,
                                      const std::string& file) {
  RETURN_IF_ERROR(check_size(tokenizer, config.language.vocab_size, "vocab_size", file));
  for (const char* token :
       {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|audio_start|>", "<|audio_end|>",
        "<|spk_bos|>", "<|spk|>", "<|spk_eos|>", "<|tts_bos|>", "<|tts_eos|>"}) {
    if (tokenizer.token_to_id(token) < 0) {
      return corrupt(file + ": has no token " + token + "; is it of another model?");
    }
  }
  return {};
}

Result<void> check_speech_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config,
                                    const std::string& file) {
  const SpeechConfig& speech = config.speech;
  RETURN_IF_ERROR(check_size(tokenizer, speech.text_tokens, "tts_config.num_text_tokens", file));
  struct Token {
    const char* text;
    int64_t id;  // negative: any
    const char* key;
  };
  for (const Token& token : {Token{"[Stts]", -1, ""},
                             {"[spk_emb]", speech.speaker_token, "spk_emb_token_id"},
                             {"[Ptts]", speech.audio_bos_token, "audio_bos_token_id"},
                             {"[Etts]", speech.text_eos_token, "text_eos_token_id"}}) {
    const int32_t id = tokenizer.token_to_id(token.text);
    if (id < 0) return corrupt(file + ": has no token " + token.text + "; is it of another model?");
    if (token.id >= 0 && id != token.id) {
      return corrupt(file + ": token " + token.text + " is " + std::to_string(id) +
                     ", tts_config." + token.key + " of config.json is " +
                     std::to_string(token.id));
    }
  }
  return {};
}

}  // namespace minicpmo
