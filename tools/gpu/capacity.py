"""How many calls at once does minicpmo-call-server answer in time?

Callers speak over WebSockets, at the pace of speech, as people who talk with somebody: a question, the answer heard to its end,
a pause. More and more of them call; those who called stay. What each turn took is told for each number of calls:

    first_ms     the server's decision that the user has finished (speech_stopped) -> the answer's first sound, both as they come
    voice_ms     the question's last voiced sample sent -> the first sound: what a caller waits, the end-pointing's silence included
    underrun_ms  for how long sound that is played from its first sample on would have stopped
    spare_ms     how long before it was to be played the latest part of the sound came (the first one left out); negative: too late

Capacity is the largest number of calls up to which the 95th percentile stays within 1.5 times the median of one call alone and
95 % of the answers have no underrun. With --guests others come meanwhile, ask one question each and hang up: what their coming
costs those who are there. The last call, one more than --max-calls, has to be refused with 503.

    capacity.py --server COMMAND --calls 1,2,4,8 --json FILE      measures (GPU host: tools/gpu/run capacity)
    capacity.py --plot IMAGE FILE...                              draws (PNG or SVG), prints the table of several runs together
"""
import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import pathlib
import queue
import random
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools/bench.d"), str(ROOT / "tests/call-server")]
import figures  # noqa: E402

QUESTIONS = ["q01_cap.wav", "q00_arith.wav", "q02_gk.wav", "q03_opp.wav", "q04_spell.wav", "q08_talk.wav"]
PAUSE_S = 0.5, 2.5  # between the end of an answer and the next question
LIMIT_S = 40  # of a turn
TIMES = "first_ms", "voice_ms"
GROWTH = 1.5  # what the 95th percentile may be of the median of one call
CLEAN = 0.95  # of the answers
UNDERRUN_MS = 1.0  # what counts as one
PACE_S = 0.6  # between two that begin to call
GUEST = 10000  # the first one's number
EVERY_S = 3.0  # that one comes
COMING_MS = 1000  # after a guest's coming: the turns that are told apart


def voiced(samples) -> int:
    """How many samples there are up to the last one that is louder than -34 dB of the loudest."""
    import numpy
    loud = numpy.abs(samples.astype(float))
    return int(numpy.flatnonzero(loud > 0.02 * loud.max())[-1]) + 1


def caller_class():
    from socket_client import BLOCK, RATE, Client

    class Caller(Client):
        """Keeps times, not the sound."""

        def __init__(self, url: str):
            super().__init__(url)
            self.turn: dict = {}
            self.changed = asyncio.Event()
            self.ends_in = -1  # samples until the last voiced one is sent
            self.failure = ""
            self.begun = time.monotonic()

        async def _listen(self):
            async for message in self.socket:
                now, event = time.monotonic(), json.loads(message.data)
                if len(self.events) < 8:
                    self.events.append(event)  # the first ones are waited for
                self._heard(now, event)
            self.failure = self.failure or f"closed with {self.socket.close_code}"
            self.changed.set()

        def _heard(self, now: float, event: dict) -> None:
            kind, turn = event["type"], self.turn
            if kind == "input_audio_buffer.speech_stopped":
                turn["stopped"] = now
                turn["stops"] = turn.get("stops", 0) + 1
            elif kind == "response.output_audio.delta":
                length = len(base64.b64decode(event["delta"])) / 2 / RATE
                turn.setdefault("first", now)
                turn.setdefault("parts", []).append((now, length))
            elif kind == "response.output_audio_transcript.done":
                turn["words"] = event["transcript"].strip()
            elif kind == "response.done":
                turn["status"] = event["response"]["status"]
                self.changed.set()
            elif kind == "error":
                self.failure = event["error"]["message"]

        async def _send_block(self, block, due: float) -> None:
            if 0 <= self.ends_in <= BLOCK:
                self.turn["voice"] = time.monotonic()
                self.turn["lag_ms"] = 1000 * (self.turn["voice"] - due)
            await super()._send_block(block, due)
            self.ends_in -= BLOCK if self.ends_in >= 0 else 0

        async def ask_and_hear(self, samples, name: str) -> dict:
            """One turn, heard to its end."""
            self.turn = turn = {"question": name}
            self.changed.clear()
            self.ends_in = voiced(samples)
            self.say(samples)
            try:
                await asyncio.wait_for(self.changed.wait(), LIMIT_S)
                if end := play(turn)["end"]:
                    await asyncio.sleep(max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                self.failure = self.failure or f"no answer after {LIMIT_S} s"
            return turn
    return Caller


def play(turn: dict) -> dict:
    """What a client hears that plays the sound as soon as its first part has come: underruns, spare, end."""
    parts = turn.get("parts", [])
    due = parts[0][0] if parts else 0.0
    underrun, spare = 0.0, None
    for n, (came, length) in enumerate(parts):
        if n > 0:
            spare = min(spare, due - came) if spare is not None else due - came
        underrun += max(0.0, came - due)
        due = max(due, came) + length
    return dict(underrun=underrun, spare=spare, end=due, sound=sum(length for _, length in parts))


def told(turn: dict, caller: int, failure: str, reply: str) -> dict:
    """A line of the result; "wrong" says why the turn does not count."""
    heard = play(turn)
    found = dict(caller=caller, process=caller, question=turn["question"], at=turn.get("stopped"), sound_s=heard["sound"],
                 lag_ms=turn.get("lag_ms"), underrun_ms=1000 * heard["underrun"])
    if heard["spare"] is not None:
        found["spare_ms"] = 1000 * heard["spare"]
    if "first" in turn and "stopped" in turn and "voice" in turn:
        found |= dict(first_ms=1000 * (turn["first"] - turn["stopped"]), voice_ms=1000 * (turn["first"] - turn["voice"]))
    wrong = failure
    if not wrong and "first_ms" not in found:
        wrong = "no sound"
    if not wrong and turn.get("stops") != 1:
        wrong = f"the question was cut into {turn.get('stops')}"
    if not wrong and turn.get("status") != "completed":
        wrong = f"the answer is {turn.get('status')}"
    if not wrong and reply and turn.get("words") != reply:
        wrong = f"wrong words: {turn.get('words')!r}"
    return found | ({"wrong": wrong} if wrong else {})


# ---------------------------------------------------------------- callers, some in each process

async def talk(number: int, options: argparse.Namespace, stop: asyncio.Event, out) -> None:
    """Until `stop`; a guest asks once."""
    from socket_client import samples_of
    random_ = random.Random(f"{options.seed}/{number}")
    sounds = [(q, samples_of(ROOT / "tools/tiny/samples" / q)) for q in QUESTIONS]
    begin = time.monotonic()
    try:
        async with caller_class()(options.url) as caller:
            out.put(dict(opened=number, at=begin, ms=1000 * (time.monotonic() - begin)))
            await asyncio.sleep(random_.uniform(0.5, 3.0))
            while not stop.is_set():
                name, samples = random_.choice(sounds)
                turn = await caller.ask_and_hear(samples, name)
                out.put(told(turn, number, caller.failure, options.reply))
                if caller.failure or number >= GUEST:
                    return
                await asyncio.sleep(random_.uniform(*PAUSE_S))
    except Exception as e:  # noqa: BLE001  a refused or broken call is a result
        out.put(dict(opened=number, failed=f"{type(e).__name__}: {e}", status=getattr(e, "status", None)))


def callers(options: argparse.Namespace, orders, out) -> None:
    """A process: an order is the number of a caller, None the end."""
    async def run():
        stop, tasks = asyncio.Event(), []
        while (order := await asyncio.to_thread(orders.get)) is not None:
            tasks.append(asyncio.ensure_future(talk(order, options, stop, out)))
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.run(run())


# ---------------------------------------------------------------- the server and its machine

class Server:
    def __init__(self, options: argparse.Namespace, log: pathlib.Path):
        words = [*shlex.split(options.server), "--port", "0", "--max-calls", str(options.max_calls), "--offers-per-minute", "100000",
                 "--late-pause", "0",  # to find the limit it has to be passed
                 "--device", options.device, *(["--model", options.model] if options.model else []),
                 *(["--max-codes", str(options.max_codes)] if options.max_codes else [])]
        self.lines: list[str] = []
        with open(log, "w") as errors:
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.pid = self.process.pid
        threading.Thread(target=self._read, daemon=True).start()
        end = time.monotonic() + options.load_limit
        while not self.lines:
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise SystemExit(f"the server does not listen; see {log}")
            time.sleep(0.1)
        self.url = self.lines[0].split()[-1].rstrip("/")

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def load(self) -> dict:
        """Seconds of the processors, threads, resident bytes of the process."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = os.sysconf("SC_CLK_TCK")
        return dict(cpu_s=(int(fields[11]) + int(fields[12])) / ticks, threads=int(fields[17]),
                    resident=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Gpu:
    """Memory in use (MB), and how busy the GPU is (%), twice a second."""

    def __init__(self, device: str):
        self.seen: list[tuple[float, float, float]] = []
        self.process = None
        if device != "cpu":
            try:
                self.process = subprocess.Popen(["nvidia-smi", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits",
                                                 "-lms", "500"], stdout=subprocess.PIPE, text=True)
                threading.Thread(target=self._read, daemon=True).start()
            except OSError:
                pass

    def _read(self) -> None:
        for line in self.process.stdout:
            if found := re.match(r"([\d.]+), ([\d.]+)", line):
                self.seen.append((time.monotonic(), float(found[1]), float(found[2])))

    def between(self, begin: float, end: float) -> dict:
        seen = [s for s in self.seen if begin <= s[0] <= end]
        return dict(gpu_mb=max(s[1] for s in seen), gpu_percent=statistics.mean(s[2] for s in seen)) if seen else {}

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


# ---------------------------------------------------------------- a run

class Run:
    def __init__(self, options: argparse.Namespace):
        self.options, self.end = options, time.monotonic() + options.deadline
        self.path = pathlib.Path(options.json)
        self.turns: list[dict] = []
        self.opened: dict[int, dict] = {}
        self.levels: list[dict] = []
        self.guest = GUEST - 1
        self.lines = open(self.path.with_suffix(".jsonl"), "w", buffering=1)
        self.server = Server(options, self.path.with_suffix(".log"))
        options.url = self.server.url
        self.gpu = Gpu(options.device)
        context = multiprocessing.get_context("fork")
        self.out = context.Queue()
        self.orders = [context.Queue() for _ in range(options.processes)]
        self.workers = [context.Process(target=callers, args=(options, orders, self.out), daemon=True) for orders in self.orders]
        for worker in self.workers:
            worker.start()

    def left(self) -> float:
        return self.end - time.monotonic()

    def listen(self, until: float, enough=lambda: False) -> None:
        """What the callers tell, until this moment, or until it is enough."""
        while (rest := min(until, self.end) - time.monotonic()) > 0 and not enough():
            try:
                found = self.out.get(timeout=min(rest, 0.2))
            except queue.Empty:
                continue
            self.lines.write(json.dumps(found) + "\n")
            if "opened" in found:
                self.opened[found["opened"]] = self.opened.get(found["opened"], {}) | found
            else:
                self.turns.append(found)

    def call(self, number: int) -> dict:
        """One more caller; what became of the attempt."""
        self.orders[number % len(self.orders)].put(number)
        self.listen(time.monotonic() + 20, lambda: number in self.opened)
        return self.opened.get(number, {"failed": "the server did not answer within 20 s"})

    def residents(self) -> int:
        return sum(n < GUEST for n in self.opened)

    def level(self, calls: int) -> bool:
        """Whether it was measured to its end."""
        for number in range(self.residents(), calls):
            if "failed" in (found := self.call(number)):
                self.levels.append(dict(calls=calls, failed=found["failed"]))
                return False
            self.listen(time.monotonic() + PACE_S)
        # Each has had one answer, which is not counted.
        first = time.monotonic()
        self.listen(first + 30, lambda: {t["caller"] for t in self.turns} >= set(range(calls)))
        begin, before = time.monotonic(), self.server.load()
        self.listen(begin + self.options.seconds * (2 if calls == 1 else 1))
        end, after = time.monotonic(), self.server.load()
        # Answers under way at the end belong to this number of calls, too: nobody else calls meanwhile.
        self.listen(end + 10, lambda: False) if self.left() > 60 else None
        seen = [t for t in self.turns if t["at"] and begin <= t["at"] <= end or not t["at"] and t.get("wrong")]
        self.levels.append(dict(calls=calls, begin=begin, end=end, cpu=(after["cpu_s"] - before["cpu_s"]) / (end - begin),
                                threads=after["threads"], resident_mb=after["resident"] / 1e6, **self.gpu.between(begin, end)))
        for turn in seen:
            turn.setdefault("calls", calls)
        print(line(self.levels[-1], [t for t in self.turns if t.get("calls") == calls]), flush=True)
        if calls in self.options.guests:
            self.guests(calls)
        self.save()
        return self.server.process.poll() is None

    def guests(self, calls: int) -> None:
        """Others come while `calls` talk."""
        begin = time.monotonic()
        while time.monotonic() < begin + self.options.seconds and self.left() > 40:
            self.guest += 1
            self.orders[self.guest % len(self.orders)].put(self.guest)
            self.listen(time.monotonic() + EVERY_S)
        end = time.monotonic()
        self.listen(end + 12)
        for turn in self.turns:
            if turn["at"] and begin <= turn["at"] <= end:
                turn["beside"] = calls

    def refusal(self) -> dict:
        """One call more than --max-calls."""
        while self.residents() < self.options.max_calls and self.left() > 30:
            if "failed" in self.call(self.residents()):
                break
        begin = time.monotonic()
        found = self.call(self.residents())
        return dict(calls=self.residents() - 1, status=found.get("status"), ms=1000 * (time.monotonic() - begin))

    def save(self, **more) -> None:
        import bench
        report = dict(machine=bench.machine(), command=sys.argv[1:], levels=self.levels, turns=self.turns,
                      opened=list(self.opened.values()), **more)
        self.path.write_text(json.dumps(report) + "\n")

    def close(self) -> int:
        for orders in self.orders:
            orders.put(None)
        for worker in self.workers:
            worker.join(15)
            if worker.is_alive():
                worker.kill()
        self.gpu.stop()
        return self.server.stop()


def measure(options: argparse.Namespace) -> int:
    run = Run(options)
    more: dict = {}
    try:
        for calls in options.calls:
            if run.left() < options.seconds + 25:
                print(f"no time for {calls} calls")
                break
            if not run.level(calls):
                break
        if run.server.process.poll() is None:
            more["refused"] = run.refusal()
    finally:
        more["status"] = run.close()
        run.save(**more)
    print("one call more:", more.get("refused"), "; the server ended with status", more["status"])
    report = json.loads(run.path.read_text())
    print(table([report]))
    failed = [level for level in run.levels if "failed" in level] or more["status"] != 0 or more.get("refused", {}).get("status") != 503
    return 1 if failed else 0


# ---------------------------------------------------------------- figures

def good(turns: list[dict]) -> list[dict]:
    return [t for t in turns if not t.get("wrong")]


def percent(turns: list[dict]) -> float:
    """Of answers without an underrun."""
    return 100 * sum(t["underrun_ms"] < UNDERRUN_MS for t in turns) / len(turns) if turns else 0.0


HEAD = (f"{'calls':>5s} {'turns':>5s} {'wrong':>5s} | {'first sound p50':>15s} {'95 % interval':>15s} {'p95':>7s} | {'from voice p50':>14s} {'p95':>7s}"
        f" | {'clean %':>7s} {'underrun p95':>12s} {'spare p5':>8s} | {'GPU MB':>7s} {'busy %':>6s} {'CPUs':>5s} {'threads':>7s}")


def line(level: dict, turns: list[dict]) -> str:
    if "failed" in level:
        return f"{level['calls']:5d} {level['failed']}"
    heard = good(turns)
    first, voice, underrun, spare = (figures.summary(heard, key) for key in (*TIMES, "underrun_ms", "spare_ms"))
    if not (first and voice and underrun):
        return f"{level['calls']:5d} {0:5d} {len(turns):5d} | {next((t['wrong'] for t in turns if t.get('wrong')), 'nothing was said')}"
    late = sorted(t["spare_ms"] for t in heard if "spare_ms" in t)
    interval = f"[{first['low']:.1f}, {first['high']:.1f}]"
    return (f"{level['calls']:5d} {len(heard):5d} {len(turns) - len(heard):5d} | {first['median']:15.1f} {interval:>15s} {first['p95']:7.1f}"
            f" | {voice['median']:14.1f} {voice['p95']:7.1f} | {percent(heard):7.1f} {underrun['p95']:12.1f}"
            f" {figures.percentile(late, 0.05) if late else 0:8.1f} | {level.get('gpu_mb', 0):7.0f} {level.get('gpu_percent', 0):6.1f}"
            f" {level['cpu']:5.2f} {level['threads']:7d}")


def by_calls(reports: list[dict]) -> dict[int, tuple[dict, list[dict]]]:
    """Levels of several runs together: the load of the last one, the turns of all. Callers of two runs are not the same."""
    found: dict[int, tuple[dict, list[dict]]] = {}
    for n, report in enumerate(reports):
        for level in report["levels"]:
            turns = [t | {"process": f"{n}/{t['caller']}"} for t in report["turns"] if t.get("calls") == level["calls"]]
            if "failed" in level and level["calls"] in found:
                continue
            found[level["calls"]] = level, found.get(level["calls"], ({}, []))[1] + turns
    return dict(sorted(found.items()))


def capacity(levels: dict[int, tuple[dict, list[dict]]], key: str) -> tuple[int | None, float | None]:
    """The largest number of calls up to which all is in time, and the limit, 1.5 times the median of one call."""
    alone = figures.summary(good(levels.get(1, ({}, []))[1]), key)
    if not alone:
        return None, None
    limit, largest = GROWTH * alone["median"], None
    for calls, (level, turns) in levels.items():
        found = figures.summary(good(turns), key)
        if "failed" in level or not found or found["p95"] > limit or percent(good(turns)) < 100 * CLEAN or len(good(turns)) < CLEAN * len(turns):
            break
        largest = calls
    return largest, limit


def table(reports: list[dict]) -> str:
    levels = by_calls(reports)
    lines = [HEAD, *(line(level, turns) for level, turns in levels.values())]
    for key in TIMES:
        largest, limit = capacity(levels, key)
        if limit:
            lines.append(f"capacity by {key}: {largest} calls (p95 within {limit:.1f} ms, {100 * CLEAN:.0f} % of the answers clean)")
    wrong = sorted({t["wrong"] for _, turns in levels.values() for t in turns if t.get("wrong")})
    lines += [f"wrong: {w}" for w in wrong[:8]]
    lag = sorted(t["lag_ms"] for _, turns in levels.values() for t in turns if t.get("lag_ms") is not None)
    if lag:
        lines.append(f"callers' own lateness: p95 {figures.percentile(lag, 0.95):.2f} ms, longest {lag[-1]:.2f} ms")
    starts = sorted(o["ms"] for r in reports for o in r["opened"] if "ms" in o)
    if starts:
        lines.append(f"a call is open after {figures.percentile(starts, 0.5):.0f} ms (p50), {starts[-1]:.0f} ms (longest)")
    for calls in sorted({t["beside"] for r in reports for t in r["turns"] if "beside" in t}):
        lines += beside(reports, calls)
    during = [t for r in reports for t in good(r["turns"]) if "calls" not in t and "beside" not in t and t.get("first_ms") is not None]
    if found := figures.summary(during, "first_ms"):
        lines.append(f"turns while others began to call, and first turns: {found['turns']}, first sound p50 {found['median']:.1f}, p95 {found['p95']:.1f}, "
                     f"longest {found['max']:.1f} ms; clean {percent(during):.1f} %")
    return "\n".join(lines)


def beside(reports: list[dict], calls: int) -> list[str]:
    """What guests had, what those had who were there, and of these the turns just after a guest's coming."""
    lines = []
    came = [o["at"] for r in reports for o in r["opened"] if o["opened"] >= GUEST and "at" in o]
    turns = [t for r in reports for t in r["turns"] if t.get("beside") == calls]
    guests, others = [t for t in turns if t["caller"] >= GUEST], [t for t in turns if t["caller"] < GUEST]
    near = [t for t in others if any(-50 < 1000 * (t["at"] - at) < COMING_MS for at in came)]
    for who, those in (("guests", guests), ("the others", others), ("of these, just after a guest came", near)):
        if found := figures.summary(good(those), "first_ms"):
            lines.append(f"{calls} calls, one more every {EVERY_S:.0f} s, {who}: {found['turns']} turns, {len(those) - found['turns']} wrong, first sound "
                         f"p50 {found['median']:.1f}, p95 {found['p95']:.1f}, longest {found['max']:.1f} ms; clean {percent(good(those)):.1f} %")
    return lines


def draw(reports: list[dict], path: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    levels = {n: found for n, found in by_calls(reports).items() if good(found[1])}
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    names = "end of turn decided → first sound", "last voiced sample → first sound"
    for axes, key, name in zip(panels, TIMES, names):
        found = {n: figures.summary(good(turns), key) for n, (_, turns) in levels.items()}
        for n, (_, turns) in levels.items():
            axes.plot([n] * len(good(turns)), [t[key] for t in good(turns)], ".", color="0.75", markersize=3, zorder=0)
        for share, colour in (("median", "C0"), ("p95", "C3")):
            axes.plot(list(found), [s[share] for s in found.values()], "o-", color=colour, label=share.replace("median", "p50"))
        if limit := capacity(levels, key)[1]:
            axes.axhline(limit, color="C2", linestyle="--", label=f"1.5 × one call: {limit:.0f} ms")
        axes.set_title(name)
        axes.set_ylabel("ms")
        axes.set_ylim(0, 1.3 * max(s["p95"] for s in found.values()))
        axes.legend(frameon=False, loc="upper left")
    panels[2].plot(list(levels), [percent(good(turns)) for _, turns in levels.values()], "o-", label="answers without an underrun, %")
    if all("gpu_percent" in level for level, _ in levels.values()):
        panels[2].plot(list(levels), [level["gpu_percent"] for level, _ in levels.values()], "s-", label="GPU busy, %")
        panels[2].plot(list(levels), [level["gpu_mb"] / 1000 for level, _ in levels.values()], "^-", label="GPU memory, GB")
    panels[2].plot(list(levels), [100 * level["cpu"] for level, _ in levels.values()], "v-", label="server's CPU time, % of one core")
    panels[2].set_ylim(bottom=0)
    panels[2].set_title("sound, GPU, CPU")
    panels[2].legend(frameon=False, loc="center left", fontsize=8)
    for axes in panels:
        axes.set_xlabel("calls at once")
    m = reports[0]["machine"]
    figure.suptitle(f"{m['gpu'] or m['cpu']}, commit {m['commit']}", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="*", metavar="FILE", help="of --json: shows these instead of measuring")
    parser.add_argument("--server", metavar="COMMAND", help="minicpmo-call-server, and what must stand before it")
    parser.add_argument("--calls", default="1,2,4,8", type=lambda text: sorted({int(n) for n in text.split(",")}),
                        help="numbers of calls at once, with commas (default 1,2,4,8)")
    parser.add_argument("--max-calls", type=int, help="of the server (default: the largest of --calls)")
    parser.add_argument("--guests", default="", type=lambda text: {int(n) for n in text.split(",") if n},
                        help="the numbers of calls beside which others come and go, for as long again")
    parser.add_argument("--seconds", type=float, default=45, help="for each number of calls (one call alone: twice; default 45)")
    parser.add_argument("--deadline", type=float, default=480, help="seconds that all may take (default 480)")
    parser.add_argument("--load-limit", type=float, default=120, help="seconds that the server may load (default 120)")
    parser.add_argument("--processes", type=int, default=4, help="for the callers (default 4)")
    parser.add_argument("--seed", type=int, default=1, help="of questions and pauses (default 1)")
    parser.add_argument("--reply", default="", help="what every answer must be (default: not looked at)")
    parser.add_argument("--model", help="as of minicpmo-call-server")
    parser.add_argument("--device", default="auto", help="as of minicpmo-call-server")
    parser.add_argument("--max-codes", type=int, help="as of minicpmo-call-server")
    parser.add_argument("--json", default="capacity.json", help="write machine, levels and turns here (default capacity.json)")
    parser.add_argument("--plot", help="draw them here (PNG or SVG; needs matplotlib)")
    options = parser.parse_args()
    options.max_calls = options.max_calls or max(options.calls)
    if options.reports:
        status, reports = 0, [json.loads(pathlib.Path(f).read_text()) for f in options.reports]
        print(table(reports))
    elif options.server:
        status = measure(options)
        reports = [json.loads(pathlib.Path(options.json).read_text())]
    else:
        parser.error("--server, or results to show")
    if options.plot:
        draw(reports, options.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
