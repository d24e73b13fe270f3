"""Time to first sound and realtime factor: the elements, and other programs in turn with them.

Whole programs run in turn (elements, baseline, elements, ...); the first question that a process is asked warms it up and
is not counted. Typed questions are those of the public text benchmark of MiniCPM-o 2.6 (one for the warm-up, then six),
spoken ones are WAV files at the pace of speech. The typed ones are one conversation, as in that benchmark; each spoken one is its own.

    first_turn_ms   ttfb_ms of the question that is not counted (the elements only)
    first_to_tenth  with --same: first_turn_ms / ttfb_ms of the tenth
    ttfb_ms         the question handed in (typed: all of it; spoken: its last sample) -> the first samples on the host
    first_word_ms   -> the first text;    first_packet_ms   -> the first RTP packet of Opus
    rtf             time to the last samples / seconds of speech
    steady_rtf      time from the first samples to the last / seconds of speech
    worst_chunk     the longest wait for a chunk after the first / the seconds it holds
    underrun_ms     for how long sound that is played from its first sample on would have stopped
    token_ms        one token of the language model, before speech begins (shortest of the turn)
    parts_ms        where ttfb_ms went: encode (the rest of the question), prefill, decode (until the text lets speech begin),
                    speech (the first codes), vocoder (the first samples). They add up to it. What of the first burst is
                    prefill is estimated from token_ms.
    gpu_ms          what each part took on the GPU between the end of the question and the first samples, by CUDA events
                    around each call of a stage: launches and their gaps included, and what ran beside it. The stages overlap,
                    and the language model goes on after the text that lets speech begin: they do not add up.
    gpu_turn_ms     the same until the end of the turn (in the turns only)
    context         positions of the language model's context at the end of the answer
    record          with --records: what the tracer minicpmoturns told of the turn; the file has them line by line, for tools/turns
Lower is better for all of them but the last.

On a GPU, if this Python has torch, the memory's bandwidth is measured first (bandwidth.py), in bytes per second:

    bandwidth.copy, .read   of a copy (read and written) and of a sum;  .attainable   the larger of them
    bandwidth.token_bytes   what one token reads: all weights llm.* but the embedding table, keys and values of the context
    bandwidth.token_ms      median of the elements' turns;  .achieved   token_bytes in this time;  .percent   of attainable
    bandwidth.missing       or why all this is not there

The elements say all this with `minicpmo-ask --json`; --baseline names a program that takes --model, --device, --precision,
--max-codes, --text (several times) and WAV files, and prints an array of such objects (tools/baseline/baseline.py), those of
the keys that it knows. --reference is tools/tiny/reference, plain PyTorch on the small checkpoint and the CPU, once as upstream
(the first chunk waits for the second) and once --early.
"""
import argparse
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.append(str(ROOT / "tools/turns.d"))
import figures  # noqa: E402
import records  # noqa: E402
import traffic  # noqa: E402

TYPED = ["Hi, how are you?", "I'm fine, thank you!", "What's your name?", "My name is John Doe", "What's your favorite color?",
         "My favorite color is blue", "What's your favorite food?"]
SPOKEN = ["q01_cap.wav", "q00_arith.wav", "q01_cap.wav", "q02_gk.wav", "q03_opp.wav", "q04_spell.wav", "q08_talk.wav"]


class Failed(Exception):
    """A program did not end well."""


def output(command: list, options: argparse.Namespace, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=options.limit,
                              env=os.environ | (environment or {}))
    except subprocess.TimeoutExpired as e:
        raise Failed(f"{shlex.join(map(str, command))}: not done after {options.limit} s") from e
    if done.returncode:
        raise Failed(f"{shlex.join(map(str, command))}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def common(options: argparse.Namespace) -> list[str]:
    arguments = []
    for name in ("model", "device", "precision", "max_codes", "max_new_tokens"):
        given = getattr(options, name)
        if given and given != "auto":
            arguments += ["--" + name.replace("_", "-"), str(given)]
    return arguments


def asked(options: argparse.Namespace) -> list[str]:
    texts = TYPED[1:2] * 10 if options.same else TYPED
    return options.questions if options.spoken else [part for text in texts for part in ("--text", text)]


def traced(command: list, options: argparse.Namespace) -> list[dict]:
    """What minicpmo-ask says of its turns; with --records also what the tracer tells of each."""
    environment = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    if not options.records:
        return json.loads(output(command, options, environment))
    with tempfile.TemporaryDirectory() as folder:
        lines = os.path.join(folder, "turns.jsonl")
        turns = json.loads(output(command, options, environment | {"GST_TRACERS": f"minicpmoturns(file={lines})"}))
        try:
            told = records.load(lines)
        except records.BadFile as e:
            raise Failed(f"no records of the tracer minicpmoturns ({e})") from e
    if len(told) != len(turns):
        raise Failed(f"the tracer minicpmoturns told of {len(told)} turns, there were {len(turns)}")
    return [turn | {"record": record} for turn, record in zip(turns, told)]


def elements(options: argparse.Namespace) -> list[dict]:
    command = [*shlex.split(options.ask), "--json", "--rtp", *common(options)]
    command += ["--realtime"] if options.spoken else ["--separate"] if options.separate else []
    turns = traced([*command, *asked(options)], options)
    if len(turns) > 1:
        turns[1]["first_turn_ms"] = turns[0]["ttfb_ms"]
    if options.same:
        turns[-1]["first_to_tenth"] = turns[0]["ttfb_ms"] / turns[-1]["ttfb_ms"]
    for turn in turns[1:]:  # the first one loads the model for all
        if options.separate or options.spoken:
            turn["session_ms"] = turn["load_ms"]
        turn["load_ms"] = turns[0]["load_ms"]
    return turns[1:]


def baseline(options: argparse.Namespace) -> list[dict]:
    return json.loads(output([*shlex.split(options.baseline), *common(options), *asked(options)], options))[1:]


def reference(options: argparse.Namespace, early: bool) -> list[dict]:
    command = [sys.executable, ROOT / "tools/tiny/reference/time_reference.py", ROOT / "tools/tiny/model",
               *options.questions[1:], "--runs", "1", "--warm-up", "1", "--threads", options.threads or 1,
               *(["--early"] if early else [])]
    return [dict(ttfb_ms=r["ttfb"] * 1000, rtf=r["rtf"], question=os.path.basename(r["question"]))
            for r in json.loads(output(command, options))["runs"]]


def programs(options: argparse.Namespace) -> dict:
    chosen = {"elements": lambda: elements(options)}
    if options.baseline:
        chosen["baseline"] = lambda: baseline(options)
    if options.reference:
        chosen["reference"] = lambda: reference(options, early=False)
        chosen["reference --early"] = lambda: reference(options, early=True)
    return chosen


def first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().split("\n")[0]
    except OSError:
        return ""


def machine() -> dict:
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    asked_of_gpu = "name,driver_version,clocks.sm,clocks.max.sm,power.limit"
    gpu = first_line("nvidia-smi", f"--query-gpu={asked_of_gpu}", "--format=csv,noheader")
    return dict(cpu=cpu, cores=os.cpu_count(), gpu=gpu, python=platform.python_version(),
                commit=os.environ.get("COMMIT") or first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"))


def measure(options: argparse.Namespace) -> tuple[dict[str, list[dict]], list[str]]:
    """The turns of each program, and what failed."""
    chosen = programs(options)
    turns: dict[str, list[dict]] = {name: [] for name in chosen}
    failures = []
    others = options.other_processes or options.processes
    # Fewer runs of the others lie evenly between those of the elements.
    due = {int((i + 0.5) * options.processes / others) for i in range(others)}
    for process in range(options.processes):
        for name, run in chosen.items():
            if name != "elements" and process not in due:
                continue
            try:
                found = run()
            except (Failed, ValueError, KeyError) as e:
                failures.append(f"{name}, process {process}: {e}")
                print(failures[-1], file=sys.stderr)
                continue
            turns[name] += [turn | {"process": process} for turn in found]
    return turns, failures


def measured_bandwidth(options: argparse.Namespace) -> dict:
    device = options.device if (options.device or "").startswith("cuda") else "cuda:0"
    try:
        return json.loads(output([sys.executable, ROOT / "tools/bench.d/bandwidth.py", device], options))
    except Failed as e:
        return dict(missing=str(e).strip().split("\n")[-1])


def bandwidth(found: dict, options: argparse.Namespace, turns: list[dict]) -> dict:
    """What was measured, and how much of it the language model reaches."""
    token_ms, context = figures.summary(turns, "token_ms"), figures.summary(turns, "context")
    if "missing" in found or not token_ms or not context:
        return found
    model = pathlib.Path(options.model) if options.model else ROOT / "tools/tiny/model"
    size = traffic.token_bytes(model, options.precision or "auto", context["median"])
    attainable = max(found["copy"], found["read"])
    achieved = size / token_ms["median"] * 1000
    return found | dict(attainable=attainable, token_bytes=size, token_ms=token_ms["median"], achieved=achieved,
                        percent=100 * achieved / attainable)


def bandwidth_line(found: dict) -> str:
    if "percent" not in found:
        return f"bandwidth: {found.get('missing', 'no token was timed')}"
    return (f"bandwidth: copy {found['copy'] / 1e12:.3f}, read {found['read'] / 1e12:.3f} TB/s; a token reads "
            f"{found['token_bytes'] / 1e9:.3f} GB in {found['token_ms']:.3f} ms: {found['achieved'] / 1e12:.3f} TB/s, "
            f"{found['percent']:.1f} % of attainable")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", required=True, metavar="COMMAND", help="minicpmo-ask, and what must stand before it")
    parser.add_argument("--baseline", metavar="COMMAND", help="a program to compare with, as above")
    parser.add_argument("--reference", action="store_true", help="compare with tools/tiny/reference (spoken, small checkpoint)")
    parser.add_argument("--processes", type=int, default=5, help="of each program (default 5); each asks everything once")
    parser.add_argument("--other-processes", type=int, help="of each other program (default: as many)")
    parser.add_argument("--spoken", action="store_true", help="ask aloud")
    parser.add_argument("--separate", action="store_true", help="each typed question in a conversation of its own (elements)")
    parser.add_argument("--same", action="store_true", help="the same typed question ten times; with --separate")
    for name in ("model", "device", "precision", "max-codes", "max-new-tokens"):
        parser.add_argument("--" + name, help="as of minicpmo-ask")
    parser.add_argument("--threads", type=int, help="of torch on the CPU, in each program (default: its own choice)")
    parser.add_argument("--limit", type=int, default=300, help="seconds that one process may take (default 300)")
    parser.add_argument("--json", help="write machine, figures and turns here")
    parser.add_argument("--records", metavar="FILE", help="load the tracer minicpmoturns, and write what it tells of the elements' turns here")
    parser.add_argument("--plot", help="draw them here (PNG; needs matplotlib)")
    parser.add_argument("questions", nargs="*", help="16 kHz WAV files; the first one is the warm-up (default: of tools/tiny)")
    options = parser.parse_args()
    options.questions = options.questions or [str(ROOT / "tools/tiny/samples" / q) for q in SPOKEN]
    if options.other_processes is not None and not 1 <= options.other_processes <= options.processes:
        parser.error("--other-processes goes from 1 to --processes")
    if options.reference and not options.spoken:
        parser.error("--reference needs --spoken")
    if options.baseline and options.separate:
        parser.error("--separate is for the elements alone")
    if options.same and not options.separate:
        parser.error("--same needs --separate: a longer context takes longer")
    return options


def main() -> int:
    options = arguments()
    here = machine()
    gpu = here["gpu"] and options.device != "cpu"
    measured = measured_bandwidth(options) if gpu else dict(missing="not on a GPU")
    turns, failures = measure(options)
    report = dict(machine=here, bandwidth=bandwidth(measured, options, turns["elements"]), command=sys.argv[1:],
                  failures=failures, turns=turns,
                  summary={name: figures.summaries(found) for name, found in turns.items()},
                  ratios={name: {key: r for key in ("ttfb_ms", "rtf", "steady_rtf")
                                 if (r := figures.ratio(found, turns["elements"], key))}
                          for name, found in turns.items() if name != "elements"})
    print(report["machine"])
    print(figures.table(report["summary"]))
    print(bandwidth_line(report["bandwidth"]))
    for name, ratios in report["ratios"].items():
        for key, r in ratios.items():
            print(f"{name} / elements, {key}: {r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.records:
        told = [turn["record"] | {"process": turn["process"]} for turn in turns["elements"]]
        pathlib.Path(options.records).write_text("".join(json.dumps(record) + "\n" for record in told))
    if options.plot:
        import plot
        plot.draw(report, options.plot)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
