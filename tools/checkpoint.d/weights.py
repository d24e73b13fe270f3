"""Random weights with sane activations.

Matrices and convolutions are normal with deviation 1/sqrt(inputs), so each layer keeps the scale of what it reads; what is
added to a residual is smaller by sqrt(2 x layers), so that the sum after all layers has about twice the variance of the
embedding. Norms are 1 (0 their biases), other biases 0.02 x normal, embeddings normal, heads such that logits have deviation 3.

Values come from a table of 65536 normal quantiles in the tensor's dtype, looked up with 16 random bits: about 10 times as
fast as drawing normals, and the same on every machine: bits from PCG64, seeded with the seed, the tensor's name and the
number of the piece.
"""
import functools
import hashlib
import math
import re
import statistics

import numpy as np

PIECE = 1 << 22  # values drawn at once; part of what a seed means
LOGITS = 3.0
# A planted reply: how much larger than others the embedding of its tokens is, so that what the layers add hardly turns it,
# and the logit of the next token.
REPLY_GAIN, REPLY_LOGIT = 4.0, 60.0
EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"


class Rules:
    """The deviation, or the constant, of each tensor. `endings`: how often the two end tokens are drawn. `reply`: distinct
    token ids, each of which the language model says after the one before it; empty: none."""

    def __init__(self, config: dict, endings: str, reply: tuple[int, ...] = ()) -> None:
        tts = config["tts_config"]
        self._layers = {"llm.": config["num_hidden_layers"], "apm.": config["audio_config"]["encoder_layers"],
                        "tts.model.": tts["num_hidden_layers"],
                        "vpm.": (config.get("vision_config") or {}).get("num_hidden_layers", 1)}
        self._language_end, self._speech_end = config["eos_token_id"], tts.get("num_audio_tokens", 626) - 1
        self._endings, self._reply = endings, reply

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
        if name == HEAD:
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

    def row_gains(self, name: str) -> dict[int, float]:
        """The rows of `name` that are scaled: the end token of the words or of the speech, the tokens of the reply."""
        if name == EMBEDDING:
            return dict.fromkeys(self._reply[:-1], REPLY_GAIN)
        if self._endings == "chance":
            return {}
        if name == HEAD:
            return {self._language_end: {"never": 0.0, "soon": 2.7}[self._endings]}
        if name == "tts.head_code.0.parametrizations.weight.original0":
            return {self._speech_end: {"never": 0.0, "soon": 2.0}[self._endings]}
        if name.startswith("tts.head_code") and name.endswith("original0") and self._endings == "never":
            return {self._speech_end: 0.0}
        return {}

    def answers(self, name: str) -> dict[int, int]:
        """The rows of `name` that point along the embedding of another token."""
        return dict(zip(self._reply[1:], self._reply)) if name == HEAD else {}


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


def draw(seed: int, name: str, start: int, count: int, values: np.ndarray) -> np.ndarray:
    """`count` values of a tensor from `start` on, all of one piece: `values` is the table they come from."""
    number, skip = divmod(start, PIECE)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key)
    bits.advance(skip // 4)
    drawn = bits.random_raw((skip % 4 + count + 3) // 4).astype("<u8", copy=False)
    return values.take(drawn.view("<u2")[skip % 4:skip % 4 + count])


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


def planted_row(seed: int, token: int, width: int, start: int, count: int) -> np.ndarray:
    """Values of the row of the output layer that answers `token`: its normed state is about its embedding, whose elements
    have deviation 1, so the logit is REPLY_LOGIT."""
    embedding = draw_across(seed, EMBEDDING, token * width + start, count, normal_quantiles())
    return embedding * (REPLY_LOGIT / width)


def draw_across(seed: int, name: str, start: int, count: int, values: np.ndarray) -> np.ndarray:
    """As draw(), over the border of a piece."""
    first = min(count, PIECE - start % PIECE)
    drawn = [draw(seed, name, start, first, values)]
    if first < count:
        drawn.append(draw(seed, name, start + first, count - first, values))
    return np.concatenate(drawn)


def whole(name: str, shape: tuple[int, ...], dtype: str, rules: Rules) -> np.ndarray | None:
    """The values of a tensor that is not drawn."""
    values, constant = special(name, shape), rules.constant(name)
    if values is None and constant is not None:
        values = np.full(shape, constant)
        for row, gain in rules.row_gains(name).items():
            values[row] *= gain
    return None if values is None else to_dtype(values, dtype).ravel()


def generate(seed: int, name: str, shape: tuple[int, ...], dtype: str, rules: Rules, number: int) -> np.ndarray:
    """Piece `number` of a tensor: its values from number * PIECE on, at most PIECE of them. What a piece holds depends on
    nothing but the arguments, so pieces can be made in any order, by any number of processes."""
    start = number * PIECE
    count = min(PIECE, math.prod(shape) - start)
    if (values := whole(name, shape, dtype, rules)) is not None:
        return values[start:start + count]
    deviation, width = rules.deviation(name, shape), math.prod(shape[1:])
    values = draw(seed, name, start, count, table(deviation, dtype))

    def overlap(row: int) -> tuple[int, int]:
        """Where the row lies in this piece."""
        first, last = np.clip((row * width - start, (row + 1) * width - start), 0, count)
        return int(first), int(last)
    for row, gain in rules.row_gains(name).items():
        first, last = overlap(row)
        if first < last:
            values[first:last] = draw(seed, name, start + first, last - first, table(deviation * gain, dtype))
    for row, token in rules.answers(name).items():
        first, last = overlap(row)
        if first < last:
            inside = start + first - row * width
            values[first:last] = to_dtype(planted_row(seed, token, width, inside, last - first), dtype)
    return values
