"""Short accounts of what the measuring programs wrote:

    report.py lines TURNS.json       one line for each turn of minicpmo-ask --json
    report.py same A.json B.json     whether the turns say the same words; exit status 1 if not
    report.py trace LOG              when each element worked, from a log with GST_DEBUG="minicpmo*:6"
    report.py table RESULT.json      the table of tools/bench again
    report.py plot RESULT.json PNG   drawn (needs matplotlib)
"""
import collections
import json
import pathlib
import re
import sys

import figures

# Time, thread, category, function and object of a line that tells of work on the data.
LINE = re.compile(r"^(\d+):(\d+):([\d.]+)\s+\d+\s+(0x\w+)\s+\w+\s+(minicpmo\w+)\s+\S+?:\d+:(\w+):<\w+>")
WORK = {("minicpmoaudioenc", "push"): "embeddings out", ("minicpmollm", "push_text"): "words out",
        ("minicpmotts", "burst"): "words in", ("minicpmovocoder", "push"): "sound out"}


def lines(path: str) -> str:
    shown = []
    for turn in json.loads(pathlib.Path(path).read_text()):
        parts = turn.get("parts_ms", {})
        gpu = turn.get("gpu_ms", {})
        where = ", ".join(f"{p} {parts[p]:.1f}" + (f", GPU {gpu[p]:.1f}" if p in gpu else "")
                          for p in figures.PARTS if p in parts)
        shown.append(f"  TTFB {turn['ttfb_ms']:7.1f} ms ({where})  "
                     f"RTF {turn['rtf']:.3f}  {turn['audio_seconds']:5.2f} s  {turn['text'].strip()[:60]}")
    return "\n".join(shown)


def same(path: str, other: str) -> bool:
    """Says which turns have other words."""
    turns, others = (json.loads(pathlib.Path(p).read_text()) for p in (path, other))
    differ = [(a["text"], b["text"]) for a, b in zip(turns, others) if a["text"] != b["text"]]
    for a, b in differ:
        print(f"  not the same words: {a!r} and {b!r}")
    return not differ and len(turns) == len(others)


def trace(path: str) -> str:
    events = collections.defaultdict(list)
    with open(path, errors="replace") as log:
        for line in log:
            if (m := LINE.match(line)) and (m[5], m[6]) in WORK:
                events[m[5], m[6]].append((int(m[1]) * 3600 + int(m[2]) * 60 + float(m[3]), m[4]))
    if len(events) < len(WORK):
        missing = [element for element, function in WORK if (element, function) not in events]
        return f"nothing is told of {', '.join(missing)}"
    start = events["minicpmoaudioenc", "push"][-1][0]
    shown = ["ms after the last embeddings left the encoder:"]
    for key, what in WORK.items():
        times = [t - start for t, _ in events[key]]
        threads = ", ".join(sorted({thread for _, thread in events[key]}))
        shown.append(f"  {key[0]:17s} {what:15s} {len(times):4d} times, {times[0] * 1000:9.1f} to {times[-1] * 1000:9.1f}, "
                     f"thread {threads}")
    last_word = events["minicpmollm", "push_text"][-1][0]
    early = [t for t, _ in events["minicpmovocoder", "push"] if t < last_word]
    shown.append(f"{len(early)} chunks of sound left the vocoder before the last words left the language model")
    threads = {thread for found in events.values() for _, thread in found}
    shown.append(f"{len(threads)} threads")
    return "\n".join(shown)


def table(path: str) -> str:
    return figures.table(json.loads(pathlib.Path(path).read_text())["summary"])


def main() -> int:
    commands = {"lines": lines, "trace": trace, "table": table}
    if len(sys.argv) == 4 and sys.argv[1] == "same":
        return 0 if same(*sys.argv[2:]) else 1
    if len(sys.argv) == 4 and sys.argv[1] == "plot":
        import plot
        plot.draw(json.loads(pathlib.Path(sys.argv[2]).read_text()), sys.argv[3])
        return 0
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    print(commands[sys.argv[1]](sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
