"""The tensors of a MiniCPM-o 2.6 checkpoint as a formula of its config.json: names, shapes, order, dtypes.

Order and names are those of the published model's state dict: llm, vpm, resampler, apm, audio_projection_layer, tts.
Widths that the published code has as constants (speech codec, Vocos) may be overridden in config.json by
tts_config.dvae_config and tts_config.vocos_config, as the small checkpoint does.
"""
from collections.abc import Iterator

Shape = tuple[int, ...]
Tensors = dict[str, Shape]

DVAE = dict(idim=512, hidden=256, bn_dim=128, encoder_layers=12, decoder_layers=12, vq_dim=1024)
VOCOS = dict(dim=512, intermediate_dim=1536, num_layers=8, n_fft=1024, hop_length=256)
SPEECH = dict(llm_dim=2560, hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=20,
              num_text_tokens=21178, num_audio_tokens=626, num_mel_bins=100, num_vq=4)
VISION = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, patch_size=14,
              image_size=980, num_channels=3)
UNUSED_TEXT_ROWS = 32000  # tts.model.embed_tokens: the Llama class's default vocabulary; nothing reads it
CODE_GROUPS, CODE_DIGITS = 2, 4  # quantiser: two groups of codes of four base-5 digits

# May be left out: nothing reads them.
OPTIONAL = {"tts.model.embed_tokens.weight"}
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class ConfigError(Exception):
    """A key of config.json that the layout needs is missing or makes no sense."""


def sizes(config: dict, key: str | None, defaults: dict) -> dict[str, int]:
    """config[key], or config itself, on top of `defaults`; every value that is read must be a positive integer."""
    section = config if key is None else config.get(key) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{key} is not an object")
    merged = defaults | {k: v for k, v in section.items() if k in defaults and v is not None}
    for name, value in merged.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 22:
            where = name if key is None else f"{key}.{name}"
            raise ConfigError(f"{where} is {'missing' if value is None else repr(value)}, not a size")
    return merged


def divide(config_key: str, whole: int, parts: int) -> int:
    if whole % parts:
        raise ConfigError(f"{config_key} is {parts}, which does not divide {whole}")
    return whole // parts


def linear(name: str, out: int, into: int, bias: bool = True) -> Tensors:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name: str, out: int, into: int, taps: int, bias: bool = True) -> Tensors:
    return {f"{name}.weight": (out, into, taps)} | ({f"{name}.bias": (out,)} if bias else {})


def decoder_layers(prefix: str, layers: int, width: int, inner: int, kv_width: int, bias: bool) -> Tensors:
    """Qwen2 (biases on q, k and v) and Llama (none)."""
    tensors: Tensors = {}
    for n in range(layers):
        p = f"{prefix}layers.{n}."
        tensors |= linear(p + "self_attn.q_proj", width, width, bias)
        tensors |= linear(p + "self_attn.k_proj", kv_width, width, bias)
        tensors |= linear(p + "self_attn.v_proj", kv_width, width, bias)
        tensors |= linear(p + "self_attn.o_proj", width, width, False)
        tensors |= linear(p + "mlp.gate_proj", inner, width, False)
        tensors |= linear(p + "mlp.up_proj", inner, width, False)
        tensors |= linear(p + "mlp.down_proj", width, inner, False)
        tensors |= {p + "input_layernorm.weight": (width,), p + "post_attention_layernorm.weight": (width,)}
    return tensors | {f"{prefix}norm.weight": (width,)}


def language(config: dict) -> Tensors:
    c = sizes(config, None, dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                           "num_key_value_heads", "vocab_size")))
    width = c["hidden_size"]
    kv_width = divide("num_attention_heads", width, c["num_attention_heads"]) * c["num_key_value_heads"]
    table = (c["vocab_size"], width)
    return ({"llm.model.embed_tokens.weight": table}
            | decoder_layers("llm.model.", c["num_hidden_layers"], width, c["intermediate_size"], kv_width, bias=True)
            | {"llm.lm_head.weight": table})


def vision(config: dict) -> Tensors:
    """SigLIP with NaViT positions, and the resampler, which looks with query_num queries."""
    c = sizes(config, "vision_config", VISION)
    out = sizes(config, None, dict(hidden_size=None, query_num=64))
    width, p = c["hidden_size"], "vpm.embeddings."
    patches = (c["image_size"] // c["patch_size"]) ** 2
    tensors: Tensors = {p + "patch_embedding.weight": (width, c["num_channels"], c["patch_size"], c["patch_size"]),
                        p + "patch_embedding.bias": (width,), p + "position_embedding.weight": (patches, width)}
    layers = c["num_hidden_layers"] - (config.get("drop_vision_last_layer") is True)
    for n in range(layers):
        p = f"vpm.encoder.layers.{n}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            tensors |= linear(p + "self_attn." + name, width, width)
        tensors |= norm(p + "layer_norm1", width) | linear(p + "mlp.fc1", c["intermediate_size"], width)
        tensors |= linear(p + "mlp.fc2", width, c["intermediate_size"]) | norm(p + "layer_norm2", width)
    tensors |= norm("vpm.post_layernorm", width)
    wide = out["hidden_size"]
    tensors |= {"resampler.query": (out["query_num"], wide), "resampler.proj": (wide, wide)}
    tensors |= linear("resampler.kv_proj", wide, width, bias=False)
    tensors |= {"resampler.attn.in_proj_weight": (3 * wide, wide), "resampler.attn.in_proj_bias": (3 * wide,)}
    tensors |= linear("resampler.attn.out_proj", wide, wide)
    for name in ("ln_q", "ln_kv", "ln_post"):
        tensors |= norm("resampler." + name, wide)
    return tensors


def audio(config: dict) -> Tensors:
    """Whisper's encoder (no bias on k) and the projection to the language model."""
    c = sizes(config, "audio_config", dict(d_model=None, encoder_layers=None, encoder_ffn_dim=None, num_mel_bins=80,
                                           max_source_positions=1500))
    width, inner = c["d_model"], c["encoder_ffn_dim"]
    tensors = conv("apm.conv1", width, c["num_mel_bins"], 3) | conv("apm.conv2", width, width, 3)
    tensors |= {"apm.embed_positions.weight": (c["max_source_positions"], width)}
    for n in range(c["encoder_layers"]):
        p = f"apm.layers.{n}."
        tensors |= linear(p + "self_attn.k_proj", width, width, bias=False)
        for name in ("v_proj", "q_proj", "out_proj"):
            tensors |= linear(p + "self_attn." + name, width, width)
        tensors |= norm(p + "self_attn_layer_norm", width) | linear(p + "fc1", inner, width)
        tensors |= linear(p + "fc2", width, inner) | norm(p + "final_layer_norm", width)
    out = sizes(config, None, dict(hidden_size=None))["hidden_size"]
    # linear1 takes a quarter of the feed-forward width, which is the encoder's width.
    return (tensors | norm("apm.layer_norm", width)
            | linear("audio_projection_layer.linear1", out, inner // 4) | linear("audio_projection_layer.linear2", out, out))


def convnext(prefix: str, width: int, inner: int, gain: str) -> Tensors:
    return ({prefix + gain: (width,)} | conv(prefix + "dwconv", width, 1, 7) | norm(prefix + "norm", width)
            | linear(prefix + "pwconv1", inner, width) | linear(prefix + "pwconv2", width, inner))


def codec(config: dict, mel_bins: int) -> Tensors:
    """The speech codec: the encoder (not used for speaking), the quantiser, the decoder."""
    c = sizes(config.get("tts_config") or {}, "dvae_config", DVAE)
    half = divide("dvae_config.vq_dim", c["vq_dim"], CODE_GROUPS)
    p = "tts.dvae."
    tensors = {p + "coef": (1, mel_bins, 1)}
    tensors |= conv(p + "downsample_conv.0", c["idim"], mel_bins, 3) | conv(p + "downsample_conv.2", c["idim"], c["idim"], 4)
    for side, into, out in (("encoder", c["idim"], c["vq_dim"]), ("decoder", half, c["idim"])):
        q = f"{p}{side}."
        tensors |= conv(q + "conv_in.0", c["bn_dim"], into, 3) | conv(q + "conv_in.2", c["hidden"], c["bn_dim"], 3)
        for n in range(c[f"{side}_layers"]):
            tensors |= convnext(f"{q}decoder_block.{n}.", c["hidden"], 4 * c["hidden"], "coef")
        tensors |= conv(q + "conv_out", out, c["hidden"], 1, bias=False)
    tensors |= conv(p + "out_conv", mel_bins, c["idim"], 3, bias=False)
    for group in range(CODE_GROUPS):
        q = f"{p}vq_layer.quantizer.rvqs.{group}."
        tensors |= linear(q + "project_in", CODE_DIGITS, half) | linear(q + "project_out", half, CODE_DIGITS)
    return tensors


def speech(config: dict) -> Tensors:
    """ChatTTS: projector of the voice, tables, weight-normed heads, the Llama, the codec."""
    c = sizes(config, "tts_config", SPEECH)
    width = c["hidden_size"]
    tensors = linear("tts.projector.linear1", width, c["llm_dim"]) | linear("tts.projector.linear2", width, width)
    for book in range(c["num_vq"]):
        tensors[f"tts.emb_code.{book}.weight"] = (c["num_audio_tokens"], width)
    tensors["tts.emb_text.weight"] = (c["num_text_tokens"], width)
    for book in range(c["num_vq"]):
        p = f"tts.head_code.{book}.parametrizations.weight.original"
        tensors |= {p + "0": (c["num_audio_tokens"], 1), p + "1": (c["num_audio_tokens"], width)}
    tensors |= codec(config, c["num_mel_bins"])
    tensors["tts.model.embed_tokens.weight"] = (UNUSED_TEXT_ROWS, width)
    return tensors | decoder_layers("tts.model.", c["num_hidden_layers"], width, c["intermediate_size"], width, bias=False)


def checkpoint_tensors(config: dict) -> Tensors:
    """Everything in the safetensors shards, in order. Raises ConfigError."""
    tensors = language(config)
    if config.get("init_vision", True):
        tensors |= vision(config)
    if config.get("init_audio", True):
        tensors |= audio(config)
    if config.get("init_tts", True):
        tensors |= speech(config)
    return tensors


def vocos_tensors(config: dict) -> Tensors:
    """assets/Vocos.safetensors: always float32 in a made or converted file."""
    tts = config.get("tts_config") or {}
    c, mel_bins = sizes(tts, "vocos_config", VOCOS), sizes(config, "tts_config", SPEECH)["num_mel_bins"]
    width, n_fft, p = c["dim"], c["n_fft"], "feature_extractor.mel_spec."
    tensors: Tensors = {p + "spectrogram.window": (n_fft,), p + "mel_scale.fb": (n_fft // 2 + 1, mel_bins)}
    tensors |= conv("backbone.embed", width, mel_bins, 7) | norm("backbone.norm", width)
    for n in range(c["num_layers"]):
        tensors |= convnext(f"backbone.convnext.{n}.", width, c["intermediate_dim"], "gamma")
    return (tensors | norm("backbone.final_layer_norm", width) | linear("head.out", n_fft + 2, width)
            | {"head.istft.window": (n_fft,)})


def dtype(config: dict) -> str:
    """The dtype of the shards' tensors, as safetensors writes it."""
    name = config.get("torch_dtype", "bfloat16")
    if name not in DTYPES:
        raise ConfigError(f"torch_dtype is {name!r}, not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def split(tensor_bytes: dict[str, int], shards: int) -> Iterator[list[str]]:
    """In order, into `shards` files: at most 5 GB each if that gives the wanted number, as the published model was cut
    (4.88, 4.93, 4.33 and 3.21 GB); the smallest even limit otherwise."""
    def cut(limit: int) -> list[list[str]]:
        files, room = [], 0
        for name, size in tensor_bytes.items():
            if not files or size > room:
                files.append([])
                room = limit
            files[-1].append(name)
            room -= size
        return files
    low, high = max(tensor_bytes.values()), sum(tensor_bytes.values())
    if len(cut(5_000_000_000)) == shards:
        return iter(cut(5_000_000_000))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= shards else (middle + 1, high)
    return iter(cut(low))
