"""The networks of the speech path as Hugging Face modules, where those exist, and plain PyTorch: no streaming, no state.

Whisper's encoder, Qwen2 and Llama are those of transformers; projector, code heads, speech codec and Vocos are written
here. Attributes are named as in the checkpoint, so that state_dict() names the tensors to read.
"""

import contextlib
import json
import os

import torch
import torch.nn.functional as F
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

BOOKS, DIGITS, LEVELS, RESIDUALS = 4, 4, 5, 2
CODEC = dict(idim=512, hidden=256, bn_dim=128, decoder_layers=12, vq_dim=1024)
VOCOS = dict(dim=512, intermediate_dim=1536, num_layers=8, n_fft=1024, hop_length=256)
MEL_BINS = 100


def layer_tensors(cache: DynamicCache, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer, (1, heads, rows, head size), under the names of transformers 5 and 4."""
    if hasattr(cache, "layers"):
        return cache.layers[i].keys, cache.layers[i].values
    return cache.key_cache[i], cache.value_cache[i]


def read_tokenizer(path: str) -> Tokenizer:
    """A tokenizer.json. That transformers 4.44.2 insists on a library which wants merges as "a b", not as ["a", "b"]."""
    with open(path, encoding="utf-8") as f:
        content = json.load(f)
    if merges := content["model"].get("merges"):
        content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    return Tokenizer.from_str(json.dumps(content))


class Container(nn.Module):
    """A name in the checkpoint's tree, without computation."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, module in children.items():
            self.add_module(name, module)


class Projector(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(into, out), nn.Linear(out, out)

    def forward(self, x):
        return self.linear2(F.relu(self.linear1(x)))


class ConvNeXt(nn.Module):
    """Depthwise convolution of 7 taps, layer norm, feed-forward, scaled residual. (1, width, time)"""

    def __init__(self, width: int, inner: int, dilation: int, scale: str):
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, 7, padding=3 * dilation, dilation=dilation, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.scale = scale
        self.register_parameter(scale, nn.Parameter(torch.ones(width)))

    def forward(self, x):
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + (y * getattr(self, self.scale)).transpose(1, 2)


class Codec(nn.Module):
    """Decoder side of the speech codec: code rows to mel frames."""

    def __init__(self, sizes: dict):
        super().__init__()
        half = sizes["vq_dim"] // 2
        groups = [Container(project_out=nn.Linear(DIGITS, half)) for _ in range(2)]
        self.vq_layer = Container(quantizer=Container(rvqs=nn.ModuleList(groups)))
        hidden, narrow = sizes["hidden"], sizes["bn_dim"]
        self.decoder = Container(
            conv_in=nn.Sequential(
                nn.Conv1d(half, narrow, 3, padding=1), nn.GELU(), nn.Conv1d(narrow, hidden, 3, padding=1)
            ),
            decoder_block=nn.ModuleList(
                ConvNeXt(hidden, 4 * hidden, 2, "coef") for _ in range(sizes["decoder_layers"])
            ),
            conv_out=nn.Conv1d(hidden, sizes["idim"], 1, bias=False),
        )
        self.out_conv = nn.Conv1d(sizes["idim"], MEL_BINS, 3, padding=1, bias=False)
        self.coef = nn.Parameter(torch.ones(1, MEL_BINS, 1))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """(rows, 4) -> natural-log mel (1, 100, 2 rows)"""
        powers = LEVELS ** torch.arange(DIGITS, device=codes.device)
        digits = (codes[:, :, None] // powers % LEVELS - 2).to(self.coef.dtype) / 2
        groups = []
        for g, rvq in enumerate(self.vq_layer.quantizer.rvqs):
            z = digits[:, RESIDUALS * g] + digits[:, RESIDUALS * g + 1] / 4
            groups.append(rvq.project_out(z))
        x = torch.stack(groups, 1).flatten(0, 1).T[None]
        x = self.decoder.conv_in(x)
        for block in self.decoder.decoder_block:
            x = block(x)
        return self.out_conv(self.decoder.conv_out(x)) * self.coef


class Vocos(nn.Module):
    """Mel frames to sound at 24 kHz, "same" padding. float32, as upstream."""

    def __init__(self, sizes: dict):
        super().__init__()
        width, self.n_fft, self.hop = sizes["dim"], sizes["n_fft"], sizes["hop_length"]
        self.backbone = Container(
            embed=nn.Conv1d(MEL_BINS, width, 7, padding=3),
            norm=nn.LayerNorm(width, eps=1e-6),
            convnext=nn.ModuleList(
                ConvNeXt(width, sizes["intermediate_dim"], 1, "gamma") for _ in range(sizes["num_layers"])
            ),
            final_layer_norm=nn.LayerNorm(width, eps=1e-6),
        )
        istft = Container()
        istft.register_buffer("window", torch.hann_window(self.n_fft))
        self.head = Container(out=nn.Linear(width, self.n_fft + 2), istft=istft)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """(1, 100, t) -> (hop t,)"""
        b = self.backbone
        x = b.norm(b.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in b.convnext:
            x = block(x)
        log_magnitude, phase = self.head.out(b.final_layer_norm(x.transpose(1, 2))).transpose(1, 2).chunk(2, 1)
        magnitude = log_magnitude.exp().clip(max=100.0)
        spectrum = magnitude * torch.complex(phase.cos(), phase.sin())
        window = self.head.istft.window
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=1) * window[None, :, None]
        t = frames.shape[-1]
        length, cut = (t - 1) * self.hop + self.n_fft, (self.n_fft - self.hop) // 2

        def overlap_add(x):
            return F.fold(x, (1, length), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0, cut:-cut]

        envelope = overlap_add(window.square().expand(1, t, -1).transpose(1, 2))
        return (overlap_add(frames) / envelope)[0]


class SpeechModel(nn.Module):
    """ChatTTS: tables, projector of the voice, Llama, weight-normed heads that stay parametrised, as upstream's."""

    def __init__(self, c: dict):
        super().__init__()
        width = c["hidden_size"]
        self.projector = Projector(c["llm_dim"], width)
        self.emb_text = nn.Embedding(c["num_text_tokens"], width)
        self.emb_code = nn.ModuleList(nn.Embedding(c["num_audio_tokens"], width) for _ in range(BOOKS))
        self.head_code = nn.ModuleList(
            weight_norm(nn.Linear(width, c["num_audio_tokens"], bias=False)) for _ in range(BOOKS)
        )
        self.model = LlamaModel(
            LlamaConfig(
                hidden_size=width,
                intermediate_size=c["intermediate_size"],
                num_attention_heads=c["num_attention_heads"],
                num_key_value_heads=c["num_attention_heads"],
                num_hidden_layers=c["num_hidden_layers"],
                max_position_embeddings=c["max_position_embeddings"],
                rms_norm_eps=1e-6,
            )
        )
        self.model.embed_tokens = None  # only embeddings are fed
        self.dvae = Codec(CODEC | {k: v for k, v in c.get("dvae_config", {}).items() if k in CODEC})
        self.head_size = width // c["num_attention_heads"]

    def speaker(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projector(hidden.to(self.emb_text.weight.dtype)), dim=-1)

    def embed_codes(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, 4) -> (1, n, width)"""
        return torch.stack([table(rows[None, :, q]) for q, table in enumerate(self.emb_code)], 3).sum(3)

    def empty_cache(self, rows: int) -> DynamicCache:
        heads, dtype = self.model.config.num_attention_heads, self.emb_text.weight.dtype
        cache = DynamicCache()
        for i in range(self.model.config.num_hidden_layers):
            zeros = torch.zeros(1, heads, rows, self.head_size, dtype=dtype, device=self.emb_text.weight.device)
            cache.update(zeros, zeros.clone(), i)
        return cache


class Encoder(nn.Module):
    """Whisper's encoder over one chunk at a time, with a cache, then projection and pooling.

    Upstream subclasses the encoder for its cache; here the layers' modules are called one by one.
    """

    def __init__(self, config: dict):
        super().__init__()
        audio = config["audio_config"]
        self.apm = WhisperEncoder(WhisperConfig(**{k: v for k, v in audio.items() if k != "model_type"}))
        for i, layer in enumerate(self.apm.layers):
            layer.self_attn.layer_idx = i
        self.audio_projection_layer = Projector(audio["encoder_ffn_dim"] // 4, config["hidden_size"])
        self.pool = nn.AvgPool1d(config["audio_pool_step"])
        code = self.apm.layers[0].self_attn.forward.__code__
        self.cache_name = "past_key_values" if "past_key_values" in code.co_varnames else "past_key_value"

    def _layer(self, layer, x, cache):
        y = layer.self_attn(layer.self_attn_layer_norm(x), **{self.cache_name: cache})[0]
        x = x + y
        return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))

    def forward(self, mel: torch.Tensor, cache: EncoderDecoderCache | None):
        """(1, 80, frames) -> (tokens, width of the language model), cache"""
        x = F.gelu(self.apm.conv1(mel))
        x = F.gelu(self.apm.conv2(x)).permute(0, 2, 1)
        past = 0 if cache is None else cache.get_seq_length()
        if past + x.shape[1] >= self.apm.embed_positions.num_embeddings:
            past = 0
        if past == 0:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        x = x + self.apm.embed_positions(torch.arange(past, past + x.shape[1], device=x.device))
        for layer in self.apm.layers:
            x = self._layer(layer, x, cache)
        x = self.audio_projection_layer(self.apm.layer_norm(x))
        return self.pool(x.transpose(1, 2))[0].T, cache


class Checkpoint:
    """Tensors by name, from all shards of a directory."""

    def __init__(self, path: str, device: torch.device):
        files = ["model.safetensors"]
        index = os.path.join(path, "model.safetensors.index.json")
        if os.path.exists(index):
            with open(index) as f:
                files = sorted(set(json.load(f)["weight_map"].values()))
        self.where = {}
        for name in [*files, "assets/Vocos.safetensors"]:
            shard = safe_open(os.path.join(path, name), framework="pt", device=str(device))
            self.where |= {key: shard for key in shard.keys()}

    def read_into(self, module: nn.Module, prefix: str = ""):
        """Every tensor of the module; a missing one is a KeyError."""
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                tensor.copy_(self.where[prefix + name].get_tensor(prefix + name))


@contextlib.contextmanager
def made_on(device: torch.device, dtype: torch.dtype):
    """Modules made inside have their weights there, in this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


class Networks:
    """Everything that is loaded once; what the streaming code calls."""

    def __init__(self, path: str, device: str, dtype: torch.dtype, speech_dtype: torch.dtype):
        self.device, self.dtype = torch.device(device), dtype
        with open(os.path.join(path, "config.json")) as f:
            config = json.load(f)
        tts = config["tts_config"]
        with made_on(self.device, dtype):
            keys = (
                "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
                "max_position_embeddings rms_norm_eps rope_theta hidden_act tie_word_embeddings"
            ).split()
            self.llm = Qwen2ForCausalLM(Qwen2Config(use_sliding_window=False, **{k: config[k] for k in keys}))
            self.encoder = Encoder(config)
        with made_on(self.device, speech_dtype):
            self.speech = SpeechModel(tts)
        with made_on(self.device, torch.float32):
            self.vocos = Vocos(VOCOS | {k: v for k, v in tts.get("vocos_config", {}).items() if k in VOCOS})
        checkpoint = Checkpoint(path, self.device)
        for module, prefix in ((self.llm, "llm."), (self.encoder, ""), (self.speech, "tts."), (self.vocos, "")):
            checkpoint.read_into(module.eval().requires_grad_(False), prefix)
        self.tokenizer = read_tokenizer(os.path.join(path, "tokenizer.json"))
        self.tts_tokenizer = read_tokenizer(os.path.join(path, "assets/chattts_tokenizer/tokenizer.json"))
        self.feature_extractor = WhisperFeatureExtractor(feature_size=config["audio_config"]["num_mel_bins"])
        self.text_slots = tts["streaming_text_reserved_len"]
        self.end_of_speech = tts["num_audio_tokens"] - 1
        self.audio_bos = tts["audio_bos_token_id"]
        self.generation = self._generation(path)

    @staticmethod
    def _generation(path: str) -> dict:
        """The checkpoint's way of sampling; the published one has no such file, and upstream's code says this."""
        found = dict(do_sample=True, temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05)
        name = os.path.join(path, "generation_config.json")
        if os.path.exists(name):
            with open(name) as f:
                found |= {k: v for k, v in json.load(f).items() if k in found}
        return found

    @property
    def tts(self) -> SpeechModel:
        return self.speech

    def log_mel(self, chunk: torch.Tensor) -> torch.Tensor:
        """PCM at 16 kHz -> (1, 80, frames) on the device. On the CPU, padded to 30 s, as upstream does."""
        features = self.feature_extractor(
            chunk.numpy(), sampling_rate=16000, return_tensors="pt", padding="max_length"
        )
        return features["input_features"][:, :, : -(-len(chunk) // 160)].to(self.device, self.dtype)

    def codes_to_mel(self, codes: list[list[int]]) -> torch.Tensor:
        return self.speech.dvae(torch.tensor(codes, device=self.device))

    def mel_to_audio(self, mel: torch.Tensor) -> torch.Tensor:
        return self.vocos(mel.float()).cpu()
