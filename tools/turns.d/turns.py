"""Where the time of turns went: reads what the tracer minicpmoturns wrote, prints a table, draws, compares two runs.

    GST_TRACERS='minicpmoturns(file=turns.jsonl)' pipelines/call-rtp-opus ...
    tools/turns turns.jsonl                         each turn, its parts in ms, and p50/p90/p95
    tools/turns turns.jsonl --waits                 which setting of which element owns each part
    tools/turns turns.jsonl --plot turns.png        the waterfall (or .svg)
    tools/turns before.jsonl after.jsonl            medians, their difference and its 95 % interval (bootstrap)

A turn's time goes from the capture of the user's last voiced sample (a typed question: from its arrival at minicpmollm) to the
first sound that leaves the sink; plugins/tracers/README.md says what each part is.
"""
import argparse
import pathlib
import random
import statistics
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1] / "bench.d")]
import figures  # noqa: E402
import records  # noqa: E402

PERCENTILES = (0.5, 0.9, 0.95)
STAGES = {"decode": ("tokens_per_s", "tokens/s"), "speech": ("codes_per_s", "codes/s"), "vocoder": ("rtf", "RTF")}


def cell(value: float | None) -> str:
    return f"{value:9.1f}" if value is not None else f"{'-':>9s}"


def table(turns: list[dict]) -> str:
    """A line for each turn, then percentiles of those that were heard."""
    names = records.part_names(turns)
    head = f"{'turn':>18s} {'finish':12s}{'total':>9s}" + "".join(f" {n[:9]:>9s}" for n in names)
    lines = [head]
    for turn, name in zip(turns, records.labels(turns)):
        found = records.parts(turn)
        marks = "*" * (turn["discarded"] > 0)
        lines.append(f"{name[-18:]:>18s} {turn['finish'] + marks:12s}{cell(turn.get('total_ms'))}" +
                     "".join(f" {cell(found.get(n))}" for n in names))
    heard = [records.figures_of(t) for t in turns if t["complete"]]
    for share in PERCENTILES if heard else ():
        def at(key: str) -> float:
            # A part that a turn lacks took no time.
            return figures.percentile(sorted(figures.value(t, key) or 0.0 for t in heard), share)
        lines.append(f"{f'p{share * 100:.0f}':>18s} {'':12s}{cell(at('total_ms'))}" +
                     "".join(f" {cell(at('parts_ms.' + n))}" for n in names))
    if any(t["discarded"] for t in turns):
        lines.append("* the user went on, and an answer that had been begun was thrown away")
    return "\n".join(lines + stages(turns))


def stages(turns: list[dict]) -> list[str]:
    """How fast each stage worked: medians."""
    lines = []
    for stage in ("encode", "prefill", "decode", "speech", "vocoder"):
        found = [t["stages"][stage] for t in turns if stage in t["stages"]]
        if not found:
            continue
        ms, gpu = (statistics.median(f[key] for f in found) for key in ("ms", "gpu_ms"))
        line = f"{stage:>18s}: {ms:.1f} ms a turn, of it on the GPU {gpu:.1f} ms"
        if stage in STAGES:
            key, unit = STAGES[stage]
            speeds = [f[key] for f in found if key in f]
            if speeds:
                line += f", {statistics.median(speeds):.4g} {unit}"
        lines.append(line)
    sounds = [t["sound"] for t in turns if "sound" in t]
    if sounds:
        lines.append(f"{'sound':>18s}: {sum(s['put_off'] for s in sounds)} chunks put off, "
                     f"{sum(s['underrun_ms'] > 0 for s in sounds)} of {len(sounds)} answers with underruns, "
                     f"longest {max(s['underrun_ms'] for s in sounds):.1f} ms")
    return lines


def waits(turns: list[dict]) -> str:
    """Each part by element, the longest first: median, and who can change it."""
    found: dict[tuple[str, str], list[dict]] = {}
    for turn in turns:
        for part in turn["parts"]:
            found.setdefault((part["part"], part["element"]), []).append(part)
    rows = []
    for (part, element), those in found.items():
        ms = statistics.median(p["ms"] for p in those)
        queued = max(p.get("queue_buffers", 0) for p in those)
        level = f" (up to {queued} buffers before it)" if queued else ""
        rows.append((ms, f"{part:14s} {element:24s} {ms:9.2f} ms  {those[-1].get('setting', '')}{level}"))
    return "\n".join(row for _, row in sorted(rows, reverse=True))


def difference(a: list[dict], b: list[dict], key: str) -> dict | None:
    """Median of b less median of a, with the interval of the bootstrap; turns of a pipeline are drawn together."""
    before, after = figures.by_process(a, key), figures.by_process(b, key)
    if not before or not after:
        return None

    def median(groups: list[list[float]]) -> float:
        return statistics.median(v for group in groups for v in group)
    rng = random.Random(1)
    drawn = [statistics.median(figures.redrawn(after, rng)) - statistics.median(figures.redrawn(before, rng))
             for _ in range(figures.DRAWS)]
    low, high = figures.interval(drawn)
    return dict(before=median(before), after=median(after), difference=median(after) - median(before), low=low, high=high)


def comparison(before: list[dict], after: list[dict]) -> str:
    names = records.part_names(before + after)
    a, b = ([records.figures_of(t) for t in turns if t["complete"]] for turns in (before, after))
    for turn in a + b:
        for name in names:
            turn["parts_ms"].setdefault(name, 0.0)
    lines = [f"{'':14s} {'before':>9s} {'after':>9s} {'change':>9s} {'95 % interval':>21s}   ({len(a)} and {len(b)} turns, ms)"]
    for key in ["total_ms", *(f"parts_ms.{n}" for n in names), "rtf", "underrun_ms"]:
        d = difference(a, b, key)
        if d is None:
            continue
        sure = "" if d["low"] <= 0 <= d["high"] else "  *"
        digits = 3 if key == "rtf" else 1
        lines.append(f"{key.removeprefix('parts_ms.').removesuffix('_ms'):14s} {d['before']:9.{digits}f} {d['after']:9.{digits}f} "
                     f"{d['difference']:+9.{digits}f} [{d['low']:+9.{digits}f},{d['high']:+9.{digits}f}]{sure}")
    return "\n".join(lines + ["* the interval does not hold 0"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/turns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="one to show, or two to compare")
    parser.add_argument("--waits", action="store_true", help="also show which setting owns each part")
    parser.add_argument("--plot", metavar="IMAGE", help="draw the waterfall here (PNG or SVG; needs matplotlib)")
    options = parser.parse_args()
    if len(options.files) > 2:
        parser.error("one file, or two to compare")
    if options.plot and not options.plot.endswith((".png", ".svg")):
        parser.error("--plot writes .png or .svg")
    try:
        runs = [records.load(f) for f in options.files]
    except records.BadFile as e:
        print(f"tools/turns: {e}", file=sys.stderr)
        return 1
    for path, turns in zip(options.files, runs):
        print(f"{path}: {len(turns)} turns, {sum(t['complete'] for t in turns)} of them heard, in ms")
        print(table(turns))
        if options.waits:
            print(waits(turns))
    if len(runs) == 2:
        print(comparison(*runs))
    if options.plot:
        try:
            import waterfall
        except ImportError as e:
            print(f"tools/turns: --plot needs matplotlib ({e}): pip install matplotlib, or tools/setup --test", file=sys.stderr)
            return 1
        waterfall.draw(dict(zip(options.files, runs)), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
