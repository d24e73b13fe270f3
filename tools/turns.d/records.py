"""What the tracer minicpmoturns wrote: one JSON object a line, the last one of a turn counts. tools/bench --records adds the
number of the process to each."""
import json
import pathlib

# The order of the way, and what is shown together. Names of the tracer that are not here come last.
ORDER = ("network", "jitter-buffer", "capture", "media-in", "endpoint", "queue", "other", "encode", "wait", "prefill",
         "decode", "decode-more", "speech", "vocoder", "confirm", "media-out", "packetise", "sink")


class BadFile(Exception):
    pass


def load(path: str) -> list[dict]:
    """The turns of a file, in the order of their begin; a process that was killed may have left half a line."""
    turns: dict[tuple, dict] = {}
    try:
        lines = pathlib.Path(path).read_text(errors="replace").splitlines()
    except OSError as e:
        raise BadFile(f"cannot read {path}: {e.strerror}") from e
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            key = record.get("process"), record["pipeline"], int(record["turn"])
            record["parts"] = [p for p in record["parts"] if float(p["ms"]) >= 0 and p["part"]]
        except (ValueError, KeyError, TypeError) as e:
            if number == len(lines):
                break
            raise BadFile(f"{path}, line {number}: not a record of the tracer minicpmoturns ({e})") from e
        turns[key] = record
    if not turns:
        raise BadFile(f"{path} has no turn: was the tracer loaded (GST_TRACERS, GST_PLUGIN_PATH), and were there turns?")
    return sorted(turns.values(), key=lambda t: t.get("begin_ns", 0))


def labels(turns: list[dict]) -> list[str]:
    """Each turn's number, and where it is from if not all are from one pipeline."""
    places = [(t.get("process"), t["pipeline"]) for t in turns]
    several = len({process for process, _ in places}) > 1
    if len(set(places)) < 2:
        return [str(t["turn"]) for t in turns]
    return [(f"{process}:" if several else "") + f"{pipeline}/{t['turn']}" for (process, pipeline), t in zip(places, turns)]


def part_names(turns: list[dict]) -> list[str]:
    names = {p["part"] for turn in turns for p in turn["parts"]}
    return [n for n in ORDER if n in names] + sorted(names - set(ORDER))


def parts(turn: dict) -> dict[str, float]:
    """Milliseconds by name."""
    found: dict[str, float] = {}
    for p in turn["parts"]:
        found[p["part"]] = found.get(p["part"], 0.0) + p["ms"]
    return found


def figures_of(turn: dict) -> dict:
    """As tools/bench.d/figures.py takes a turn: those that were heard have all parts, the others none."""
    out: dict = {"process": (turn.get("process"), turn["pipeline"])}
    if not turn["complete"]:
        return out
    out["total_ms"] = turn["total_ms"]
    out["parts_ms"] = parts(turn)
    if "sound" in turn:
        out |= {k: turn["sound"][k] for k in ("rtf", "steady_rtf", "underrun_ms") if k in turn["sound"]}
    for stage, found in turn["stages"].items():
        out.setdefault("stages", {})[stage] = found
    return out
