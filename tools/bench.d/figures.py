"""Figures of turns: medians with intervals, percentiles, tables. A turn is what minicpmo-ask --json or tools/baseline says of
one question, with the process that it ran in ("process")."""
import random
import statistics

# What is summarised, and how it is shown: (key, unit, digits). The parts of the time to the first sound follow.
COLUMNS = [("ttfb_ms", "ms", 1), ("first_turn_ms", "ms", 1), ("first_to_tenth", "", 3), ("first_word_ms", "ms", 1), ("first_packet_ms", "ms", 1),
           ("rtf", "", 3),
           ("steady_rtf", "", 3), ("worst_chunk", "", 3), ("underrun_ms", "ms", 1), ("token_ms", "ms", 2)]
PARTS = ("encode", "prefill", "decode", "speech", "vocoder")
DRAWS = 2000


def value(turn: dict, key: str) -> float | None:
    """`key` may name a part: parts_ms.decode. None if the turn does not say, or nothing of the kind happened (-1)."""
    found: object = turn
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return float(found) if isinstance(found, (int, float)) and found >= 0 else None


def by_process(turns: list[dict], key: str) -> list[list[float]]:
    groups: dict[object, list[float]] = {}
    for turn in turns:
        if (v := value(turn, key)) is not None:
            groups.setdefault(turn.get("process"), []).append(v)
    return list(groups.values())


def redrawn(groups: list[list[float]], rng: random.Random) -> list[float]:
    """Turns of a process resemble each other: processes are drawn first, then turns within each."""
    return [v for group in rng.choices(groups, k=len(groups)) for v in rng.choices(group, k=len(group))]


def interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of bootstrapped values."""
    ordered = sorted(values)
    return ordered[len(ordered) // 40], ordered[-1 - len(ordered) // 40]


def percentile(ordered: list[float], share: float) -> float:
    """Between the two nearest, as numpy's default."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def summary(turns: list[dict], key: str) -> dict | None:
    groups = by_process(turns, key)
    ordered = sorted(v for group in groups for v in group)
    if not ordered:
        return None
    rng = random.Random(1)
    low, high = interval([statistics.median(redrawn(groups, rng)) for _ in range(DRAWS)])
    p50, p90, p95 = (percentile(ordered, share) for share in (0.5, 0.9, 0.95))
    return dict(turns=len(ordered), processes=len(groups), median=p50, low=low, high=high, p90=p90, p95=p95,
                p95_to_p50=p95 / p50 if p50 else None, min=ordered[0], max=ordered[-1])


def summaries(turns: list[dict]) -> dict[str, dict]:
    keys = [key for key, _, _ in COLUMNS] + [f"{kind}.{part}" for part in PARTS for kind in ("parts_ms", "gpu_ms")]
    keys += ["context", "load_ms", "session_ms", "gpu_memory_mib", "host_memory_mib", "audio_seconds"]
    found = {key: summary(turns, key) for key in keys}
    return {key: s for key, s in found.items() if s}


def ratio(slow: list[dict], fast: list[dict], key: str) -> dict | None:
    """How many times larger the median of `slow` is."""
    a, b = by_process(slow, key), by_process(fast, key)
    if not a or not b:
        return None

    def median(groups: list[list[float]]) -> float:
        return statistics.median(v for group in groups for v in group)
    rng = random.Random(1)
    drawn = [statistics.median(redrawn(a, rng)) / statistics.median(redrawn(b, rng)) for _ in range(DRAWS)]
    low, high = interval(drawn)
    return dict(ratio=median(a) / median(b), low=low, high=high)


def shown(key: str) -> str:
    """Parts lie below what they are parts of, those on the GPU beside them."""
    if key.startswith("gpu_ms."):
        return f"    {key.removeprefix('gpu_ms.')} (GPU)"
    return "  " + key.removeprefix("parts_ms.") if key.startswith("parts_ms.") else key.removesuffix("_ms")


def table(summary_of: dict[str, dict[str, dict]]) -> str:
    """One line for each program and figure."""
    lines = [f"{'':20s} {'':18s} {'median':>9s} {'95 % interval':>21s} {'p90':>9s} {'p95':>9s} {'p95/p50':>8s} {'max':>9s} "
             "turns"]
    digits = {key: n for key, _, n in COLUMNS}
    units = {key: unit for key, unit, _ in COLUMNS}
    for program, found in summary_of.items():
        for key, s in found.items():
            n, unit = digits.get(key, 1), units.get(key, "")
            spread = f"{s['p95_to_p50']:8.2f}" if s["p95_to_p50"] else f"{'':8s}"
            name = shown(key) + (f" {unit}" if unit else "")
            lines.append(f"{program:20s} {name:18s} {s['median']:9.{n}f} [{s['low']:9.{n}f},{s['high']:9.{n}f}] "
                         f"{s['p90']:9.{n}f} {s['p95']:9.{n}f} {spread} {s['max']:9.{n}f} {s['turns']:5d}")
    return "\n".join(lines)
