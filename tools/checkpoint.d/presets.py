"""config.json of the checkpoints that `make` writes."""
import copy

TTS_TOKENS = dict(spk_emb_token_id=21143, audio_bos_token_id=21132, text_eos_token_id=21133)

# What the published checkpoint says, as far as it is known; keys that only training reads are left out.
FULL = {
    "architectures": ["MiniCPMO"], "model_type": "minicpmo", "version": "2.6", "torch_dtype": "bfloat16",
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 151700, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "hidden_act": "silu", "attention_dropout": 0.0, "tie_word_embeddings": False,
    "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "use_cache": True,
    "bos_token_id": 151643, "eos_token_id": 151645,
    "query_num": 64, "image_size": 448, "patch_size": 14, "vision_batch_size": 16, "batch_vision_input": True,
    "use_image_id": True, "slice_mode": True, "drop_vision_last_layer": False,
    "slice_config": {"model_type": "minicpmv", "patch_size": 14, "max_slice_nums": 9, "scale_resolution": 448},
    "audio_pool_step": 2, "audio_chunk_length": 1.0, "chunk_input": True, "stream_input": False,
    "init_vision": True, "init_audio": True, "init_tts": True,
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "patch_size": 14, "image_size": 980},
    "audio_config": {
        "model_type": "whisper", "architectures": ["MiniCPMWhisperEncoder"], "d_model": 1024, "encoder_layers": 24,
        "num_hidden_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "num_mel_bins": 80,
        "max_source_positions": 1500, "activation_function": "gelu", "scale_embedding": False, "dropout": 0.0},
    "tts_config": {
        "model_type": "conditional_chattts", "llm_dim": 3584, "hidden_size": 768, "intermediate_size": 3072,
        "num_attention_heads": 12, "num_hidden_layers": 20, "max_position_embeddings": 4096, "num_audio_tokens": 626,
        "num_text_tokens": 21178, "num_mel_bins": 100, "num_vq": 4, "use_speaker_embedding": True,
        "use_llm_hidden_state": False, "num_spk_embs": 1, **TTS_TOKENS, "use_text": True, "streaming": True,
        "streaming_text_chunk_size": 10, "streaming_text_reserved_len": 300, "streaming_audio_chunk_size": 50,
        "use_mlp": True, "top_p": 0.7, "top_k": 20, "repetition_penalty": 1.0, "attn_implementation": "sdpa"},
}

# The same structure, vocabularies and token ids (so the same tokenizers), but narrow and two layers deep: 55 MB.
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "query_num": 8,
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "image_size": 98},
    "audio_config": {"d_model": 64, "encoder_layers": 2, "num_hidden_layers": 2, "encoder_attention_heads": 4,
                     "encoder_ffn_dim": 256},
    "tts_config": {"llm_dim": 64, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
                   "num_hidden_layers": 2,
                   "dvae_config": {"idim": 64, "hidden": 64, "bn_dim": 32, "encoder_layers": 1, "decoder_layers": 2,
                                   "vq_dim": 128},
                   "vocos_config": {"dim": 64, "intermediate_dim": 96, "num_layers": 2, "n_fft": 1024,
                                    "hop_length": 256}},
}

PREPROCESSOR = {
    "image_processor_type": "MiniCPMVImageProcessor", "feature_extractor_type": "MiniCPMAAudioProcessor",
    "processor_class": "MiniCPMOProcessor", "max_slice_nums": 9, "scale_resolution": 448, "patch_size": 14,
    "use_image_id": True, "image_feature_size": 64, "slice_mode": True, "norm_mean": [0.5, 0.5, 0.5],
    "norm_std": [0.5, 0.5, 0.5], "unk": "<unk>", "version": 2.6,
    "feature_size": 80, "n_fft": 400, "hop_length": 160, "chunk_length": 30, "n_samples": 480000,
    "nb_max_frames": 3000, "sampling_rate": 16000, "padding_side": "right", "padding_value": 0.0,
    "return_attention_mask": False,
}

PRESETS = {"2.6": "full size, 17 GB", "2.6-small": "same structure and tokenizers, narrow: 55 MB",
           "tiny-random": "sizes and tokenizers of tools/tiny/model: 50 MB"}


# For measurements: 23 words, as the answers to the questions of the text benchmark are long.
REPLIES = {"2.6": "I'm sure my favorite color is blue because it makes me think of the sea and summer days near our old "
                  "white house."}


def overlay(base: dict, changes: dict) -> dict:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        merged[key] = overlay(merged[key], value) if isinstance(merged.get(key), dict) else value
    return merged


def config(preset: str, tiny: dict, layers: dict[str, int | None]) -> dict:
    """`tiny`: config.json of the small checkpoint. `layers`: other numbers of layers of llm, audio, tts and vision."""
    made = {"2.6": FULL, "2.6-small": overlay(FULL, SMALL), "tiny-random": tiny}[preset]
    made = overlay(made, {"torch_dtype": "bfloat16"})
    if layers.get("llm"):
        made["num_hidden_layers"] = layers["llm"]
    if layers.get("audio"):
        made["audio_config"] |= {"encoder_layers": layers["audio"], "num_hidden_layers": layers["audio"]}
    if layers.get("tts"):
        made["tts_config"]["num_hidden_layers"] = layers["tts"]
    if layers.get("vision") and made["init_vision"]:
        made["vision_config"]["num_hidden_layers"] = layers["vision"]
    return made
