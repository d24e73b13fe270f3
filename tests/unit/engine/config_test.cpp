// config.json: what is read, and that no value is believed unchecked.
#include "engine/config.h"

#include <nlohmann/json.hpp>

#include "test_files.h"

namespace minicpmo {
namespace {

using namespace minicpmo::testing;
using nlohmann::json;

class ConfigTest : public ::testing::Test {
 protected:
  ConfigTest() : config_(json::parse(read_bytes(std::string(MODEL_DIR) + "/config.json"))) {}
  Result<ModelConfig> read() {
    write_file(dir_ / "config.json", config_.dump());
    return read_config(dir_.path());
  }
  // With `value` at `pointer`, reading fails and names the file and `key`.
  ::testing::AssertionResult refused(const std::string& pointer, const json& value) {
    const json before = config_;
    config_[json::json_pointer(pointer)] = value;
    const auto result = read();
    config_ = before;
    const std::string key = pointer.substr(pointer.rfind('/') + 1);
    return fails(result, ErrorCode::kCorrupt, {dir_ / "config.json", key});
  }

  TempDir dir_;
  json config_;
};

TEST_F(ConfigTest, ReadsTheSmallCheckpoint) {
  const auto config = read_config(MODEL_DIR);
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->version, "2.6");
  EXPECT_EQ(config->language.hidden_size, config_["hidden_size"]);
  EXPECT_EQ(config->language.kv_heads, config_["num_key_value_heads"]);
  EXPECT_TRUE(config->language.qkv_bias);
  EXPECT_DOUBLE_EQ(config->language.rope_theta, 1e6);
  EXPECT_EQ(config->audio.layers, config_["audio_config"]["encoder_layers"]);
  EXPECT_EQ(config->audio.pool_step, 2);
  EXPECT_FALSE(config->speech.decoder.qkv_bias);
  EXPECT_EQ(config->speech.text_reserved, 300);
  EXPECT_EQ(config->speech.decoder.kv_heads, config->speech.decoder.heads);
  EXPECT_FALSE(config->generation.do_sample);
  EXPECT_DOUBLE_EQ(config->generation.repetition_penalty, 1.0);
}

TEST_F(ConfigTest, MissingKeysTakeThePublishedDefaults) {
  config_["tts_config"] = {{"llm_dim", config_["hidden_size"]}};
  config_.erase("audio_pool_step");
  config_.erase("num_key_value_heads");
  const auto config = read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->speech.decoder.hidden_size, 768);
  EXPECT_EQ(config->speech.decoder.layers, 20);
  EXPECT_EQ(config->speech.text_tokens, 21178);
  EXPECT_EQ(config->speech.audio_bos_token, 21132);
  EXPECT_EQ(config->audio.pool_step, 2);
  EXPECT_EQ(config->language.kv_heads, config->language.heads);
  // There is no generation_config.json here, as in the published checkpoint.
  EXPECT_DOUBLE_EQ(config->generation.temperature, 0.7);
  EXPECT_EQ(config->generation.top_k, 100);
}

TEST_F(ConfigTest, RefusesSizesOutOfRange) {
  for (const char* key : {"/hidden_size",
                          "/num_hidden_layers",
                          "/num_attention_heads",
                          "/num_key_value_heads",
                          "/intermediate_size",
                          "/vocab_size",
                          "/max_position_embeddings",
                          "/audio_config/d_model",
                          "/audio_config/encoder_layers",
                          "/audio_config/encoder_attention_heads",
                          "/audio_config/num_mel_bins",
                          "/audio_config/max_source_positions",
                          "/tts_config/hidden_size",
                          "/tts_config/num_hidden_layers",
                          "/tts_config/num_attention_heads",
                          "/tts_config/num_audio_tokens",
                          "/tts_config/num_text_tokens",
                          "/tts_config/num_vq",
                          "/tts_config/streaming_text_reserved_len",
                          "/tts_config/streaming_text_chunk_size",
                          "/audio_pool_step"}) {
    for (const json& value :
         {json(0), json(-1), json(1'000'000'000), json(18446744073709551615ull), json("256"),
          json(256.5), json(true), json::array(), json::object()}) {
      EXPECT_TRUE(refused(key, value)) << key << " = " << value;
    }
  }
}

TEST_F(ConfigTest, RefusesHeadsThatDoNotDivide) {
  EXPECT_TRUE(refused("/num_attention_heads", 3));
  EXPECT_TRUE(refused("/num_key_value_heads", 3));
  EXPECT_TRUE(refused("/num_attention_heads", 256));  // head size 1: nothing to rotate
  EXPECT_TRUE(refused("/audio_config/encoder_attention_heads", 7));
  EXPECT_TRUE(refused("/tts_config/num_attention_heads", 5));
}

TEST_F(ConfigTest, RefusesNumbersThatMakeNoSense) {
  EXPECT_TRUE(refused("/rms_norm_eps", -1e-6));
  EXPECT_TRUE(refused("/rms_norm_eps", "small"));
  EXPECT_TRUE(refused("/rope_theta", 0));
  EXPECT_TRUE(refused("/rope_theta", 1e300));
  EXPECT_TRUE(refused("/audio_chunk_length", 0));
  EXPECT_TRUE(refused("/audio_chunk_length", 1e9));
  EXPECT_TRUE(refused("/tts_config/top_p", 1.5));
  EXPECT_TRUE(refused("/tts_config/audio_bos_token_id", 800));
  EXPECT_TRUE(refused("/tts_config/audio_bos_token_id", -1));
  EXPECT_TRUE(refused("/tts_config/max_position_embeddings", 303));
}

TEST_F(ConfigTest, RefusesVariantsThatAreNotImplemented) {
  EXPECT_TRUE(refused("/model_type", "llama"));
  EXPECT_TRUE(refused("/version", "4.5"));
  EXPECT_TRUE(refused("/hidden_act", "gelu"));
  EXPECT_TRUE(refused("/use_sliding_window", true));
  EXPECT_TRUE(refused("/tie_word_embeddings", true));
  EXPECT_TRUE(refused("/audio_config/activation_function", "relu"));
  EXPECT_TRUE(refused("/tts_config/use_llm_hidden_state", true));
}

TEST_F(ConfigTest, RefusesMissingOrWrongParts) {
  EXPECT_TRUE(refused("/audio_config", json::array()));
  EXPECT_TRUE(refused("/tts_config", nullptr));
  EXPECT_TRUE(refused("/tts_config/llm_dim", 2560));  // not the language model's width
  config_.erase("hidden_size");
  EXPECT_TRUE(fails(read(), ErrorCode::kCorrupt, {"hidden_size", "missing"}));
}

TEST_F(ConfigTest, RefusesFilesThatAreNoConfiguration) {
  EXPECT_TRUE(
      fails(read_config(dir_.path()), ErrorCode::kNotFound, {"config.json does not exist"}));
  EXPECT_TRUE(fails(read_config(dir_ / "none"), ErrorCode::kNotFound, {"none"}));
  for (const char* text : {"", "[]", "1", "{\"a\":1,\"a\":2}", "not json", "{}"}) {
    write_file(dir_ / "config.json", text);
    EXPECT_TRUE(fails(read_config(dir_.path()), ErrorCode::kCorrupt, {"config.json"})) << text;
  }
}

TEST_F(ConfigTest, ChecksTheGenerationDefaults) {
  write_file(dir_ / "generation_config.json", R"({"temperature":0.5,"top_k":7,"do_sample":true})");
  const auto config = read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_DOUBLE_EQ(config->generation.temperature, 0.5);
  EXPECT_EQ(config->generation.top_k, 7);
  EXPECT_DOUBLE_EQ(config->generation.top_p, 0.8);
  for (const char* text : {R"({"temperature":-1})", R"({"top_p":2})", R"({"top_k":-5})",
                           R"({"repetition_penalty":0})", R"({"do_sample":"yes"})", "[]", "{"}) {
    write_file(dir_ / "generation_config.json", text);
    EXPECT_TRUE(fails(read(), ErrorCode::kCorrupt, {"generation_config.json"})) << text;
  }
}

}  // namespace
}  // namespace minicpmo
