"""Upstream's sampling filters as pure functions: float32 logits in, the probabilities that are drawn from
out.

They follow transformers 4.44.2 (logits processors and warpers) in the order in which upstream applies them.
"""

import torch

TTS_TEMPERATURES = (0.1, 0.3, 0.1, 0.3)


def repetition_penalty(logits: torch.Tensor, ids: list[int], penalty: float) -> torch.Tensor:
    """Once per distinct id: score * penalty if it is negative, otherwise score / penalty."""
    out = logits.clone()
    for i in set(ids):
        out[i] = out[i] * penalty if out[i] < 0 else out[i] / penalty
    return out


def top_k(logits: torch.Tensor, k: int, min_keep: int = 1) -> torch.Tensor:
    """All but the k best (ties with the k-th stay) become -inf. (..., n); k = 0: off."""
    if k <= 0:
        return logits
    k = min(max(k, min_keep), logits.shape[-1])
    return logits.masked_fill(logits < logits.topk(k)[0][..., -1:], float("-inf"))


def top_p(logits: torch.Tensor, p: float, min_keep: int = 1) -> torch.Tensor:
    """Sorted ascending, entries with a cumulative probability <= 1 - p become -inf; the min_keep best always
    stay.
    """
    if p >= 1.0:
        return logits
    values, order = logits.sort(descending=False)
    drop = values.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -min_keep:] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))


def llm_probabilities(
    logits: torch.Tensor,
    penalised: list[int],
    temperature: float = 0.7,
    p: float = 0.8,
    k: int = 100,
    penalty: float = 1.05,
) -> torch.Tensor:
    """One step of the language model: penalty, temperature, top-k, top-p. logits (vocabulary,).

    penalised: the ids of the current burst's call, i.e. the nine prompt ids (first burst) or the one id
    carried over (later bursts), and the ids already sampled in this burst.
    """
    x = repetition_penalty(logits.float(), penalised, penalty) / temperature
    return top_p(top_k(x, k), p).softmax(-1)


def tts_probabilities(
    logits: torch.Tensor,
    step: int,
    first: bool,
    temperature: float = 1.0,
    p: float = 0.7,
    k: int = 20,
    min_keep: int = 3,
    min_new: int = 10,
) -> torch.Tensor:
    """One step of the speech decoder: temperature per book, top-p, top-k, no end of speech in a call's first
    steps.

    logits (books, codes); step: index within the call of 25; first: the very first audio step (BOS), which is
    drawn from the unfiltered distribution; temperature: a factor on the model's temperatures.
    """
    x = logits.float() / (torch.tensor(TTS_TEMPERATURES) * temperature)[:, None]
    if not first:
        x = top_k(top_p(x, p, min_keep), k, min_keep)
    if step < min_new:
        x = x.clone()
        x[:, -1] = float("-inf")
    return x.softmax(-1)
