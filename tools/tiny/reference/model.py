"""The networks of MiniCPM-o 2.6's speech path in plain PyTorch, float32, without any streaming logic.

Every size comes from config.json and the tensor shapes, so the model directory is all that is needed. The
streaming scheme around the networks is in conversation.py (encoder cache, sessions, language model) and
speech.py (speech decoder, stitching).
"""

import json
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

Cache = list[list[torch.Tensor]]  # one [keys, values] per layer, each (heads, rows, head size)


def slaney_filters(n_mels: int, n_freq: int, f_max: float) -> torch.Tensor:
    """Mel filter bank (n_freq, n_mels) with Slaney's scale and area normalisation."""

    def hz_to_mel(f):
        return 3 * f / 200 if f < 1000 else 15 + math.log(f / 1000) * 27 / math.log(6.4)

    def mel_to_hz(m):
        return 200 * m / 3 if m < 15 else 1000 * math.exp(math.log(6.4) / 27 * (m - 15))

    top = hz_to_mel(f_max)
    points = torch.tensor([mel_to_hz(top * i / (n_mels + 1)) for i in range(n_mels + 2)], dtype=torch.float64)
    freq = torch.linspace(0, f_max, n_freq, dtype=torch.float64)
    width = points[1:] - points[:-1]
    slope = points[None] - freq[:, None]
    bank = torch.clamp(torch.minimum(-slope[:, :-2] / width[:-1], slope[:, 2:] / width[1:]), min=0)
    return (bank * (2 / (points[2:] - points[:-2]))[None]).float()


def log_mel(x: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """One audio chunk (n,) at 16 kHz -> (80, ceil(n / 160)). The right edge sees zeros, the left edge a
    reflection.
    """
    n = -(-len(x) // 160)
    padded = torch.cat([x[1:201].flip(0), x, x.new_zeros(400)])
    window = torch.hann_window(400)
    power = torch.stft(padded, 400, 160, window=window, center=False, return_complex=True).abs() ** 2
    m = torch.clamp(bank.T @ power, min=1e-10).log10()
    m = torch.maximum(m, m.max() - 8.0)  # the maximum includes frames that are cut below
    return ((m + 4.0) / 4.0)[:, :n]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rope(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    d = x.shape[-1]
    inv = 1.0 / theta ** (torch.arange(0, d, 2).float() / d)
    angle = positions.float()[:, None] * inv
    angle = torch.cat([angle, angle], -1)
    return x * angle.cos() + torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1) * angle.sin()


def attend(q, k, v, mask=None) -> torch.Tensor:
    """q (heads, tq, d); k, v (heads, tk, d); additive mask that broadcasts to (tq, tk)."""
    s = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if mask is not None:
        s = s + mask
    return s.softmax(-1) @ v


class Weights:
    """All tensors of a checkpoint (single file or sharded) as float32."""

    def __init__(self, path: str):
        index = os.path.join(path, "model.safetensors.index.json")
        files = ["model.safetensors"]
        if os.path.exists(index):
            files = sorted(set(json.load(open(index))["weight_map"].values()))
        self.w = {}
        for f in files:
            self.w.update({k: v.float() for k, v in load_file(os.path.join(path, f)).items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.w[name]

    def get(self, name: str) -> torch.Tensor | None:
        return self.w.get(name)

    def count(self, pattern: str) -> int:
        n = 0
        while pattern.format(n) in self.w:
            n += 1
        return n

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"])


class Decoder:
    """Qwen2 or Llama decoder layers over an explicit list of cached keys and values."""

    def __init__(self, weights: Weights, prefix: str, heads: int, kv_heads: int, theta: float, eps: float):
        self.w, self.prefix, self.heads, self.kv_heads, self.theta, self.eps = (
            weights,
            prefix,
            heads,
            kv_heads,
            theta,
            eps,
        )
        self.layers = weights.count(prefix + "layers.{}.input_layernorm.weight")

    def layer(self, i, x, positions, past_k, past_v, mask):
        w, p = self.w, f"{self.prefix}layers.{i}."
        t, d = x.shape
        head = d // self.heads
        y = rms_norm(x, w[p + "input_layernorm.weight"], self.eps)
        q, k, v = (w.linear(y, p + f"self_attn.{c}_proj").view(t, -1, head).transpose(0, 1) for c in "qkv")
        q, k = rope(q, positions, self.theta), rope(k, positions, self.theta)
        all_k, all_v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
        group = self.heads // self.kv_heads
        y = attend(q, all_k.repeat_interleave(group, 0), all_v.repeat_interleave(group, 0), mask)
        x = x + w.linear(y.transpose(0, 1).reshape(t, d), p + "self_attn.o_proj")
        y = rms_norm(x, w[p + "post_attention_layernorm.weight"], self.eps)
        y = F.silu(w.linear(y, p + "mlp.gate_proj")) * w.linear(y, p + "mlp.up_proj")
        return x + w.linear(y, p + "mlp.down_proj"), k, v

    def run(self, x: torch.Tensor, positions: torch.Tensor, cache: Cache, mask=None) -> torch.Tensor:
        """Appends to the cache; returns the states after the final norm. Causal unless a mask is given."""
        past, t = cache[0][0].shape[1], x.shape[0]
        if mask is None and t > 1:
            mask = torch.full((t, past + t), float("-inf")).triu(past + 1)
        for i in range(self.layers):
            x, k, v = self.layer(i, x, positions, cache[i][0], cache[i][1], mask)
            cache[i] = [torch.cat([cache[i][0], k], 1), torch.cat([cache[i][1], v], 1)]
        return rms_norm(x, self.w[self.prefix + "norm.weight"], self.eps)

    def empty_cache(self, rows: int = 0) -> Cache:
        head = self.w[self.prefix + "layers.0.self_attn.k_proj.weight"].shape[0] // self.kv_heads
        return [[torch.zeros(self.kv_heads, rows, head) for _ in range(2)] for _ in range(self.layers)]


class Model:
    """Checkpoint, tokenizers and every network; holds no state of a conversation."""

    def __init__(self, path: str):
        self.config = c = json.load(open(os.path.join(path, "config.json")))
        self.w = w = Weights(path)
        self.tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        self.tts_tokenizer = Tokenizer.from_file(
            os.path.join(path, "assets/chattts_tokenizer/tokenizer.json")
        )
        vocos = load_file(os.path.join(path, "assets/Vocos.safetensors"))
        self.vocos = {k: v.float() for k, v in vocos.items()}
        audio, tts = c["audio_config"], c["tts_config"]
        self.bank = slaney_filters(audio["num_mel_bins"], 201, 8000.0)
        self.audio_heads = audio["encoder_attention_heads"]
        self.audio_layers = w.count("apm.layers.{}.fc1.weight")
        self.llm = Decoder(
            w,
            "llm.model.",
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["rope_theta"],
            c["rms_norm_eps"],
        )
        self.tts = Decoder(
            w, "tts.model.", tts["num_attention_heads"], tts["num_attention_heads"], 10000.0, 1e-6
        )
        self.code_heads = []
        for q in range(tts["num_vq"]):
            g, v = (w[f"tts.head_code.{q}.parametrizations.weight.original{i}"] for i in (0, 1))
            self.code_heads.append(g * v / v.norm(dim=1, keepdim=True))
        self.text_slots = tts["streaming_text_reserved_len"]
        self.end_of_speech = tts["num_audio_tokens"] - 1

    # ---------------------------------------------------------------- language model
    def embed(self, ids: list[int]) -> torch.Tensor:
        return self.w["llm.model.embed_tokens.weight"][torch.tensor(ids, dtype=torch.long)]

    def run_llm(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        past = cache[0][0].shape[1]
        return self.llm.run(x, torch.arange(past, past + x.shape[0]), cache)

    def text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.w.linear(hidden, "llm.lm_head")

    # ---------------------------------------------------------------- audio encoder
    def empty_audio_cache(self) -> Cache:
        d = self.w["apm.conv2.weight"].shape[0] // self.audio_heads
        return [[torch.zeros(self.audio_heads, 0, d)] * 2 for _ in range(self.audio_layers)]

    def encode_audio(self, x: torch.Tensor, cache: Cache | None):
        """One chunk of PCM -> (mel, encoder states, embeddings for the LLM, cache).

        The cache is dropped first if it would reach the number of positions. No convolution state crosses a
        chunk.
        """
        w = self.w
        mel = log_mel(x, self.bank)
        h = F.gelu(F.conv1d(mel[None], w["apm.conv1.weight"], w["apm.conv1.bias"], padding=1))
        h = F.gelu(F.conv1d(h, w["apm.conv2.weight"], w["apm.conv2.bias"], padding=1, stride=2))[0].T
        table = w["apm.embed_positions.weight"]
        past = 0 if cache is None else cache[0][0].shape[1]
        if past + h.shape[0] >= table.shape[0]:
            past = 0
        cache = [list(kv) for kv in cache] if past else self.empty_audio_cache()
        h = h + table[past : past + h.shape[0]]
        for i in range(self.audio_layers):
            p = f"apm.layers.{i}."
            y = w.layer_norm(h, p + "self_attn_layer_norm")
            q, k, v = (
                w.linear(y, p + f"self_attn.{c}_proj").view(len(y), self.audio_heads, -1).transpose(0, 1)
                for c in "qkv"
            )
            cache[i] = [torch.cat([cache[i][0], k], 1), torch.cat([cache[i][1], v], 1)]
            y = attend(q, *cache[i]).transpose(0, 1).reshape(len(y), -1)
            h = h + w.linear(y, p + "self_attn.out_proj")
            h = h + w.linear(F.gelu(w.linear(w.layer_norm(h, p + "final_layer_norm"), p + "fc1")), p + "fc2")
        h = w.layer_norm(h, "apm.layer_norm")
        y = w.linear(F.relu(w.linear(h, "audio_projection_layer.linear1")), "audio_projection_layer.linear2")
        y = F.avg_pool1d(y.T[None], self.config["audio_pool_step"])[0].T
        return mel, h, y, cache

    # ---------------------------------------------------------------- speech decoder
    def speaker_embedding(self, hidden: torch.Tensor) -> torch.Tensor:
        p = self.w.linear(F.relu(self.w.linear(hidden, "tts.projector.linear1")), "tts.projector.linear2")
        return F.normalize(p, dim=-1)

    def text_embedding(self, ids: list[int]) -> torch.Tensor:
        return self.w["tts.emb_text.weight"][torch.tensor(ids, dtype=torch.long)].clone()

    def bos_embedding(self) -> torch.Tensor:
        return self.text_embedding([self.config["tts_config"]["audio_bos_token_id"]])

    def code_embedding(self, rows: list[list[int]]) -> torch.Tensor:
        return sum(self.w[f"tts.emb_code.{q}.weight"][torch.tensor([r[q] for r in rows])] for q in range(4))

    def code_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(hidden size,) -> (books, codes)"""
        return torch.stack([hidden @ head.T for head in self.code_heads])

    # ---------------------------------------------------------------- codes to sound
    @staticmethod
    def _block(x, w, p: str, dilation: int, scale: str) -> torch.Tensor:
        """ConvNeXt block on (1, channels, time)."""
        y = F.conv1d(
            x,
            w[p + "dwconv.weight"],
            w[p + "dwconv.bias"],
            padding=3 * dilation,
            dilation=dilation,
            groups=x.shape[1],
        )
        y = F.layer_norm(y.transpose(1, 2), (x.shape[1],), w[p + "norm.weight"], w[p + "norm.bias"], 1e-6)
        y = F.gelu(F.linear(y, w[p + "pwconv1.weight"], w[p + "pwconv1.bias"]))
        y = F.linear(y, w[p + "pwconv2.weight"], w[p + "pwconv2.bias"])
        return x + (y * w[p + scale]).transpose(1, 2)

    def codes_to_mel(self, codes: list[list[int]]) -> torch.Tensor:
        """n code rows -> natural-log mel (100, 2 n)."""
        w, c, d = self.w, torch.tensor(codes), "tts.dvae.decoder."
        powers = torch.tensor([1, 5, 25, 125])
        groups = []
        for g in range(2):
            z = [((c[:, 2 * g + r][:, None] // powers) % 5 - 2) / 2 for r in range(2)]
            groups.append(w.linear(z[0] + 0.25 * z[1], f"tts.dvae.vq_layer.quantizer.rvqs.{g}.project_out"))
        x = torch.stack(groups, 1).reshape(2 * len(c), -1).T[None]
        x = F.gelu(F.conv1d(x, w[d + "conv_in.0.weight"], w[d + "conv_in.0.bias"], padding=1))
        x = F.conv1d(x, w[d + "conv_in.2.weight"], w[d + "conv_in.2.bias"], padding=1)
        for i in range(w.count(d + "decoder_block.{}.coef")):
            x = self._block(x, w, f"{d}decoder_block.{i}.", 2, "coef")
        x = F.conv1d(x, w[d + "conv_out.weight"])
        return (F.conv1d(x, w["tts.dvae.out_conv.weight"], padding=1) * w["tts.dvae.coef"])[0]

    def mel_to_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Vocos: (100, t) -> 256 t samples at 24 kHz ("same" padding)."""
        v = self.vocos
        x = F.conv1d(mel[None], v["backbone.embed.weight"], v["backbone.embed.bias"], padding=3).transpose(
            1, 2
        )
        dim = x.shape[-1]
        x = F.layer_norm(x, (dim,), v["backbone.norm.weight"], v["backbone.norm.bias"], 1e-6).transpose(1, 2)
        i = 0
        while f"backbone.convnext.{i}.gamma" in v:
            x = self._block(x, v, f"backbone.convnext.{i}.", 1, "gamma")
            i += 1
        x = F.layer_norm(
            x.transpose(1, 2),
            (dim,),
            v["backbone.final_layer_norm.weight"],
            v["backbone.final_layer_norm.bias"],
            1e-6,
        )
        log_magnitude, phase = F.linear(x, v["head.out.weight"], v["head.out.bias"])[0].T.chunk(2, 0)
        window = v["head.istft.window"]
        frames = (
            torch.fft.irfft(torch.polar(log_magnitude.exp().clip(max=100.0), phase), 1024, dim=0)
            * window[:, None]
        )
        t = frames.shape[1]
        y, envelope = torch.zeros((t - 1) * 256 + 1024), torch.zeros((t - 1) * 256 + 1024)
        for i in range(t):
            y[i * 256 : i * 256 + 1024] += frames[:, i]
            envelope[i * 256 : i * 256 + 1024] += window**2
        return (y / envelope.clamp(min=1e-11))[384:-384]
