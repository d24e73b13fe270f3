#!/usr/bin/env python3
"""When each stage of a pipeline worked, and for how long two of them worked at once, from a log of GStreamer:

    GST_DEBUG="minicpmo*:6,GST_SCHEDULING:5" GST_DEBUG_FILE=LOG gst-launch-1.0 ...
    overlap.py LOG

A stage works from the call of its chain function to the return, and on its thread from one buffer that it sends to the next
while its answer goes on, except while what is behind it in the same thread works or has no room: the time in the chain function
of the next element is taken off. The language model's answer goes on from its question's last chunk to its last word, the
speech model's from its last word in to its last codes. The log itself costs time: the figures are for order, not for speed.
"""
import collections
import re
import sys

LINE = re.compile(r"^(\d+):(\d+):([\d.]+)\s+\d+\s+(0x\w+)\s+\w+\s+(\S+)\s+\S+?:\d+:(\w+):<([^>]*)>\s(.*)$")
STAGES = ("minicpmoaudioenc", "minicpmollm", "minicpmotts", "minicpmovocoder")
SHORT = {"minicpmoaudioenc": "encoder", "minicpmollm": "language model", "minicpmotts": "speech model", "minicpmovocoder": "vocoder"}
Interval = tuple[float, float]


def merge(intervals: list[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for begin, end in sorted(i for i in intervals if i[1] > i[0]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def common(a: list[Interval], b: list[Interval]) -> list[Interval]:
    return merge([(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b])


def without(a: list[Interval], b: list[Interval]) -> list[Interval]:
    left = []
    for begin, end in merge(a):
        for x, y in common([(begin, end)], b):
            left.append((begin, x))
            begin = y
        left.append((begin, end))
    return merge(left)


def length(intervals: list[Interval]) -> float:
    return 1000 * sum(end - begin for begin, end in intervals)


class Log:
    """Calls of chain functions, (thread, element) -> intervals, and single lines, (category, function) -> (time, thread)."""

    def __init__(self, path: str):
        self.calls: dict[tuple[str, str], list[Interval]] = collections.defaultdict(list)
        self.told: dict[tuple[str, str], list[tuple[float, str]]] = collections.defaultdict(list)
        begun: dict[tuple[str, str], float] = {}
        with open(path, errors="replace") as lines:
            for line in lines:
                if not (m := LINE.match(line)):
                    continue
                time = int(m[1]) * 3600 + int(m[2]) * 60 + float(m[3])
                key = m[4], m[7].split(":")[0]
                if m[5] != "GST_SCHEDULING":
                    self.told[m[5], m[6]].append((time, m[4]))
                elif m[8].startswith("calling chainfunction"):
                    begun[key] = time
                elif m[8].startswith("called chainfunction") and key in begun:
                    self.calls[key].append((begun.pop(key), time))

    def of(self, stage: str) -> list[Interval]:
        """The calls of a stage's own chain function."""
        return merge([i for (_, element), found in self.calls.items() if element.startswith(stage) for i in found])

    def behind(self, thread: str, stage: str) -> list[Interval]:
        """What other elements than `stage` did in its thread while it waited for them."""
        outputs = [i for (t, element), found in self.calls.items() if t == thread and not element.startswith(STAGES)
                   for i in found]
        inputs = merge([i for (t, element), found in self.calls.items() if t == thread and element.startswith(stage)
                        for i in found])
        # A queue's own push into the stage encloses nothing of the stage's; what encloses the stage is not behind it.
        return merge([i for i in outputs if not any(i[0] <= own[0] and own[1] <= i[1] for own in inputs)])


def busy(log: Log) -> dict[str, list[Interval]]:
    found = {}
    embedded = log.told["minicpmoaudioenc", "push"]
    words = log.told["minicpmollm", "push_text"]
    heard = log.told["minicpmotts", "burst"]
    sound = log.told["minicpmovocoder", "push"]
    for name, told in zip(STAGES, (embedded, words, heard, sound)):
        if not told:
            raise SystemExit(f"nothing is told of {name}")
    found["minicpmoaudioenc"] = without(log.of("minicpmoaudioenc"), log.behind(embedded[0][1], "minicpmoaudioenc"))
    answer = [(embedded[-1][0], words[-1][0])]
    found["minicpmollm"] = without(answer, log.behind(words[0][1], "minicpmollm"))
    codes = log.behind(heard[0][1], "minicpmotts")
    rest = [(max(words[-1][0], heard[0][0]), max(end for _, end in codes))] if codes else []
    found["minicpmotts"] = without(log.of("minicpmotts") + rest, codes)
    found["minicpmovocoder"] = without(log.of("minicpmovocoder"), log.behind(sound[0][1], "minicpmovocoder"))
    found["threads"] = sorted({t for told in (embedded, words, heard, sound) for _, t in told})
    return found


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    found = busy(Log(sys.argv[1]))
    threads = found.pop("threads")
    start = found["minicpmollm"][0][0]
    print(f"{len(threads)} threads; ms from the last embeddings on:")
    for stage in STAGES:
        i = found[stage]
        print(f"  {SHORT[stage]:15s} {len(i):4d} times at work, {length(i):9.1f} ms in all, "
              f"from {(i[0][0] - start) * 1000:9.1f} to {(i[-1][1] - start) * 1000:9.1f}")
    language, speech, sound = (found[s] for s in STAGES[1:])
    together = {"language model and speech model": common(language, speech),
                "speech model and vocoder": common(speech, sound),
                "language model and vocoder": common(language, sound),
                "all three": common(common(language, speech), sound)}
    for what, i in together.items():
        print(f"  at work at once: {what:32s} {length(i):9.1f} ms")
    return 0 if length(together["language model and speech model"]) > 0 and length(together["speech model and vocoder"]) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
