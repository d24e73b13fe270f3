"""Random weights with sane activations.

Matrices and convolutions are normal with deviation 1/sqrt(inputs), so each layer keeps the scale of what it reads; what is
added to a residual is smaller by sqrt(2 x layers), so that the sum after all layers has about twice the variance of the
embedding. Norms are 1 (0 their biases), other biases 0.02 x normal, embeddings normal, heads such that logits have deviation 3.

Values come from a table of 65536 normal quantiles in the tensor's dtype, looked up with 16 random bits: about 10 times as
fast as drawing normals, and the same on every machine: bits from PCG64, seeded with the seed, the tensor's name and the
number of the piece.
"""
import concurrent.futures
import functools
import hashlib
import math
import re
import statistics
from collections.abc import Iterator

import numpy as np

PIECE = 1 << 22  # values drawn at once; part of what a seed means
LOGITS = 3.0
AHEAD = 4  # pieces in memory


class Rules:
    """The deviation, or the constant, of each tensor. `endings`: how often the two end tokens are drawn."""

    def __init__(self, config: dict, endings: str) -> None:
        tts = config["tts_config"]
        self._layers = {"llm.": config["num_hidden_layers"], "apm.": config["audio_config"]["encoder_layers"],
                        "tts.model.": tts["num_hidden_layers"],
                        "vpm.": (config.get("vision_config") or {}).get("num_hidden_layers", 1)}
        self._language_end, self._speech_end = config["eos_token_id"], tts.get("num_audio_tokens", 626) - 1
        self._endings = endings

    def constant(self, name: str) -> float | None:
        if re.search(r"norm\d?\.(weight|bias)$|\.ln_\w+\.(weight|bias)$", name):
            return float(name.endswith("weight"))
        if name.endswith("parametrizations.weight.original0"):
            return LOGITS  # the norm of each row; what comes in has deviation 1
        if name == "tts.dvae.coef":
            return 1.0
        if name.endswith((".coef", ".gamma")):
            return 0.3  # gain of a ConvNeXt branch
        return None

    def deviation(self, name: str, shape: tuple[int, ...]) -> float:
        scale = 1 / math.sqrt(math.prod(shape[1:]) or 1)
        if name.endswith("bias"):
            return 0.02
        if name == "llm.lm_head.weight":
            return LOGITS * scale
        if re.search(r"(embed_tokens|emb_text|position_embedding|\.query)", name):
            return 1.0
        if re.search(r"emb_code|embed_positions", name):
            return 0.5  # four books are added; positions are added to what was heard
        if name == "head.out.weight":
            return 0.5 * scale  # log-magnitudes and phases
        if re.search(r"(o_proj|down_proj|self_attn\.out_proj|fc2)\.weight$", name):
            depth = next((n for prefix, n in self._layers.items() if name.startswith(prefix)), 1)
            return scale / math.sqrt(2 * depth)
        return scale

    def row_gain(self, name: str) -> tuple[int, float] | None:
        """A row of `name` that is scaled: the end token of the words or of the speech."""
        if self._endings == "chance":
            return None
        if name == "llm.lm_head.weight":
            return self._language_end, {"never": 0.0, "soon": 2.7}[self._endings]
        if name == "tts.head_code.0.parametrizations.weight.original0":
            return self._speech_end, {"never": 0.0, "soon": 2.0}[self._endings]
        if name.startswith("tts.head_code") and name.endswith("original0") and self._endings == "never":
            return self._speech_end, 0.0
        return None


@functools.cache
def normal_quantiles() -> np.ndarray:
    inverse = statistics.NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / 65536) for i in range(32768, 65536)])
    return np.concatenate([-half[::-1], half])


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 to F32, F16 or BF16 (as uint16, rounded to nearest even)."""
    if dtype == "F16":
        return values.astype("<f2")
    single = values.astype("<f4")
    if dtype == "F32":
        return single
    bits = single.view("<u4")
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")


@functools.lru_cache(maxsize=64)
def table(deviation: float, dtype: str) -> np.ndarray:
    return to_dtype(normal_quantiles() * deviation, dtype)


def piece(seed: int, name: str, number: int, count: int, values: np.ndarray) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key).random_raw((count + 3) // 4).astype("<u8", copy=False)
    return values.take(bits.view("<u2")[:count])


def hann(n_fft: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)


def mel_filters(bins: int, mels: int, rate: int = 24000) -> np.ndarray:
    """HTK scale, triangles of height 1 (torchaudio's default): (bins, mels)."""
    edges = np.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), mels + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    distance = hertz[None, :] - np.linspace(0, rate // 2, bins)[:, None]
    width = np.diff(hertz)
    return np.maximum(0, np.minimum(-distance[:, :-2] / width[:-1], distance[:, 2:] / width[1:]))


def special(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The tensors of Vocos that are no weights."""
    if name.endswith(".window"):
        return hann(shape[0])
    return mel_filters(*shape) if name.endswith("mel_scale.fb") else None


def generate(seed: int, name: str, shape: tuple[int, ...], dtype: str, rules: Rules,
             pool: concurrent.futures.Executor) -> Iterator[np.ndarray]:
    """The values of one tensor, in pieces."""
    count = math.prod(shape)
    values, constant = special(name, shape), rules.constant(name)
    row = rules.row_gain(name)
    if values is None and constant is not None:
        values = np.full(shape, constant)
        if row:
            values[row[0]] *= row[1]
    if values is not None:
        yield to_dtype(values, dtype)
        return
    deviation = rules.deviation(name, shape)
    lookup = table(deviation, dtype)
    scaled = table(deviation * row[1], dtype) if row else lookup
    width = math.prod(shape[1:])
    waiting: list[concurrent.futures.Future] = []
    starts = iter(range(0, count, PIECE))
    for start in starts:
        waiting.append(pool.submit(piece, seed, name, start // PIECE, min(PIECE, count - start), lookup))
        if len(waiting) >= AHEAD:
            break
    for start in range(0, count, PIECE):
        values = waiting.pop(0).result()
        if (after := next(starts, None)) is not None:
            waiting.append(pool.submit(piece, seed, name, after // PIECE, min(PIECE, count - after), lookup))
        if row:
            first, last = (np.clip(n * width - start, 0, len(values)) for n in (row[0], row[0] + 1))
            if first < last:
                values[first:last] = piece(seed, name, start // PIECE, len(values), scaled)[first:last]
        yield values
