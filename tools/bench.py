"""Time to first sound and realtime factor on the small checkpoint: the elements against the plain PyTorch reference.

Both are whole programs, run in turn (elements, reference, elements, ...), each with one warm-up question per program that is
not counted. The clock starts when the last of the question is handed in, the earlier audio having been fed at the pace of speech
(elements) or encoded before (reference), and stops at the first and at the last samples of the answer.

    ttfb  ms to the first samples     rtf  seconds to the last samples / seconds of speech     (lower is better)

`reference` holds its first chunk back as upstream does; `reference --early` sends it at once, like the elements.
"""
import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_QUESTIONS = ["q01_cap.wav", "q04_spell.wav", "q08_talk.wav"]


def elements(ask: str, questions: list[str], threads: int) -> list[dict]:
    command = [ask, "--json", "--realtime", questions[0], *questions]
    out = subprocess.run(command, capture_output=True, text=True, check=True,
                         env=os.environ | {"OMP_NUM_THREADS": str(threads)}).stdout
    return [dict(ttfb=r["ttfb_ms"], rtf=r["rtf"], question=os.path.basename(r["question"])) for r in json.loads(out)[1:]]


def reference(questions: list[str], threads: int, early: bool) -> list[dict]:
    command = [sys.executable, ROOT / "tools/tiny/reference/time_reference.py", ROOT / "tools/tiny/model", *questions,
               "--runs", "1", "--warm-up", "1", "--threads", str(threads), *(["--early"] if early else [])]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [dict(ttfb=r["ttfb"] * 1000, rtf=r["rtf"], question=os.path.basename(r["question"]))
            for r in json.loads(out)["runs"]]


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[draws // 40], medians[-draws // 40]


def describe(runs: list[dict]) -> dict:
    summary = dict(runs=len(runs))
    for key in ("ttfb", "rtf"):
        values = sorted(r[key] for r in runs)
        low, high = interval(values)
        summary[key] = dict(median=statistics.median(values), low=low, high=high, p95=values[int(0.95 * (len(values) - 1))])
    return summary


def machine() -> dict:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return dict(cpu=cpu, cores=os.cpu_count(), python=platform.python_version(), commit=commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", required=True, help="the minicpmo-ask program")
    parser.add_argument("--rounds", type=int, default=5, help="of each program; every round asks every question once")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each program (default 1)")
    parser.add_argument("--json", help="write machine, figures and runs here")
    parser.add_argument("questions", nargs="*", help="16 kHz WAV files (default: three of tools/tiny/samples)")
    arguments = parser.parse_args()
    questions = arguments.questions or [str(ROOT / "tools/tiny/samples" / q) for q in DEFAULT_QUESTIONS]
    runs: dict[str, list[dict]] = {"elements": [], "reference": [], "reference --early": []}
    for _ in range(arguments.rounds):
        runs["elements"] += elements(arguments.ask, questions, arguments.threads)
        runs["reference"] += reference(questions, arguments.threads, early=False)
        runs["reference --early"] += reference(questions, arguments.threads, early=True)
    report = dict(machine=machine(), threads=arguments.threads, summary={k: describe(r) for k, r in runs.items()}, runs=runs)
    print(report["machine"])
    for name, s in report["summary"].items():
        t, r = s["ttfb"], s["rtf"]
        print(f"{name:18s} TTFB {t['median']:6.1f} ms [{t['low']:.1f}, {t['high']:.1f}] p95 {t['p95']:.1f}   "
              f"RTF {r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}] p95 {r['p95']:.3f}   {s['runs']} runs")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
