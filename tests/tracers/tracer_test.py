"""The tracer in programs of its own: a call over RTP, its files, wrong parameters, its cost, and tools/turns.

Environment: SOURCE, BUILD, CALLER, GST_PLUGIN_PATH with the plugins of the elements and of the tracer.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / p) for p in ("tests/support", "tests/calls")]
import tap  # noqa: E402
from conversation import THREE_TURNS, call, opus  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
QUESTION = "q08_talk.wav"  # the shortest
TYPED = ["fdsrc", "!", "text/x-raw,format=utf8", "!", "minicpmollm", "!", "queue", "!", "minicpmotts", "!", "queue", "!",
         "minicpmovocoder", "!", "fakesink"]


def launch(parameters: str | None, *line: str, text: str = "", **environment: str) -> subprocess.CompletedProcess:
    env = dict(os.environ, **environment)
    if parameters is not None:
        env["GST_TRACERS"] = "minicpmoturns" + parameters
    return subprocess.run(["gst-launch-1.0", "-q", *line], input=text, capture_output=True, text=True, env=env, timeout=60)


def turns_tool(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SOURCE / "tools/turns.d/turns.py", *map(str, arguments)], capture_output=True,
                          text=True, timeout=60)


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.lines, self.trace = self.folder / "turns.jsonl", self.folder / "trace.json"

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.lines.read_text().splitlines()]

    def test_typed_questions(self):
        log = self.folder / "log"
        run = launch(f"(file={self.lines},trace={self.trace})", *TYPED, text="hello\nwhat is two plus two\n",
                     GST_DEBUG="GST_TRACER:7", GST_DEBUG_FILE=str(log), GST_DEBUG_NO_COLOR="1")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        turns = self.records()
        self.assertEqual([(t["turn"], t["kind"], t["finish"]) for t in turns], [(1, "typed", "stop"), (2, "typed", "stop")])
        for turn in turns:
            self.assertTrue(turn["complete"])
            self.assertAlmostEqual(sum(p["ms"] for p in turn["parts"]), turn["total_ms"], delta=1)
            self.assertLess({"prefill", "decode", "speech", "vocoder"}, {p["part"] for p in turn["parts"]})
        # The second one was there when the first was asked.
        waited = sum(p["ms"] for p in turns[1]["parts"] if p["part"] == "wait")
        self.assertGreater(waited, 1)
        self.check_trace(json.loads(self.trace.read_text()), turns)
        self.check_log(log.read_text(), turns)
        self.check_gst_stats(log)

    def check_trace(self, events: list[dict], turns: list[dict]):
        """Google's Trace Event Format, JSON array."""
        needed = {"X": {"ts", "dur"}, "M": {"args"}, "b": {"ts", "id2", "cat"}, "e": {"ts", "id2", "cat"}, "C": {"ts", "args"}}
        open_spans: dict[tuple, list[str]] = {}
        for event in events:
            self.assertIn(event["ph"], needed)
            self.assertLessEqual(needed[event["ph"]] | {"name", "pid", "tid"}, event.keys(), event)
            self.assertIsInstance(event["name"], str)
            for key in ("ts", "dur"):
                self.assertGreaterEqual(event.get(key, 0), 0)
            for key in ("pid", "tid"):
                self.assertIsInstance(event[key], int)
            if event["ph"] == "b":
                open_spans.setdefault((event["pid"], event["cat"], event["id2"]["local"]), []).append(event["name"])
            if event["ph"] == "e":  # nestable: the last one that was opened
                self.assertEqual(open_spans[event["pid"], event["cat"], event["id2"]["local"]].pop(), event["name"])
        self.assertEqual([s for s in open_spans.values() if s], [])
        self.assertEqual(len(open_spans), len(turns))
        threads = {e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
        self.assertGreaterEqual(len(threads), 3, threads)
        self.assertEqual({e["name"] for e in events if e["ph"] == "X"}, {"prefill", "decode", "speech", "vocoder"})

    def check_log(self, log: str, turns: list[dict]):
        self.assertIn("minicpmo-turn.class", log)
        told = [line for line in log.splitlines() if " TRACE " in line and " minicpmo-turn, " in line]
        self.assertEqual(len(told), len(turns), told)
        self.assertIn("finish=(string)stop", told[0])

    def check_gst_stats(self, log: pathlib.Path):
        run = subprocess.run(["gst-stats-1.0", log], capture_output=True, text=True, timeout=30)
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_wrong_parameters_warn(self):
        line = ["fakesrc", "num-buffers=3", "!", "fakesink"]
        for wrong in ("(color=blue)", "(file=/nonexistent/x)", "(file=(int)3)", "(file=)", "(,,)", "(=)", "(trace=/)"):
            with self.subTest(wrong):
                run = launch(wrong, *line, G_DEBUG="fatal-criticals")
                self.assertEqual(run.returncode, 0, run.stderr)
                self.assertIn("minicpmoturns: ", run.stderr)
        for right in ("", "()", f"(file={self.lines})"):
            with self.subTest(right):
                self.assertEqual(launch(right, *line).stderr, "")
        # Without a turn there is no line.
        self.assertEqual(self.lines.read_text(), "")

    def test_tool(self):
        self.assertEqual(launch(f"(file={self.lines})", *TYPED, text="hello\nhello\nhello\n").returncode, 0)
        shown = turns_tool(self.lines, "--waits")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        for word in ("p50", "p90", "p95", "tokens/s", "codes/s", "max-size-buffers=200"):
            self.assertIn(word, shown.stdout)
        for image in ("w.png", "w.svg"):
            self.assertEqual(turns_tool(self.lines, "--plot", self.folder / image).returncode, 0)
            self.assertGreater((self.folder / image).stat().st_size, 5000)
        slower = self.folder / "slower.jsonl"
        with slower.open("w") as out:
            for turn in self.records():
                for part in turn["parts"]:
                    part["ms"] += 500 * (part["part"] == "speech")
                turn["total_ms"] += 500
                out.write(json.dumps(turn) + "\n")
        compared = turns_tool(self.lines, slower)
        self.assertEqual(compared.returncode, 0, compared.stderr)
        speech = [line for line in compared.stdout.splitlines() if line.startswith("speech")]
        self.assertIn("+500.0", speech[-1])
        self.assertTrue(speech[-1].endswith("*"), speech)

    def test_tool_refuses_other_files(self):
        self.lines.write_text("hello\n{}\n")
        self.trace.write_text("")
        for path, word in ((self.lines, "line 1"), (self.trace, "no turn"), (self.folder / "none", "cannot read")):
            run = turns_tool(path)
            self.assertEqual(run.returncode, 1)
            self.assertIn(word, run.stderr)
            self.assertNotIn("Traceback", run.stderr)


class Cost(unittest.TestCase):
    """Counted instructions: the same on a busy machine."""
    PADS, FEW, MANY = 10, 200, 1200

    def instructions(self, buffers: int, plugins: str, tracer: bool) -> int:
        line = f"fakesrc num-buffers={buffers} ! " + "identity ! " * (self.PADS - 1) + "fakesink"
        environment = dict(os.environ, GST_PLUGIN_PATH=plugins, GST_REGISTRY=f"{self.folder}/{len(plugins)}.bin", MALLOC_PERTURB_="0")
        environment |= {"GST_TRACERS": "minicpmoturns"} if tracer else {}
        run = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "gst-launch-1.0", "-q", *line.split()],
                             capture_output=True, text=True, env=environment, timeout=100)
        self.assertEqual(run.returncode, 0, run.stderr)
        return int(re.search(r"Collected : (\d+)", run.stderr)[1])

    def of_a_pad(self, plugins: str, tracer: bool = False) -> float:
        self.instructions(1, plugins, tracer)  # writes the registry
        few, many = (self.instructions(n, plugins, tracer) for n in (self.FEW, self.MANY))
        return (many - few) / (self.MANY - self.FEW) / self.PADS

    def test_of_a_pad(self):
        if shutil.which("valgrind") is None:
            self.skipTest("valgrind is not installed")
        with tempfile.TemporaryDirectory() as self.folder:
            everything = os.environ["GST_PLUGIN_PATH"]
            without, off, on = self.of_a_pad("/nonexistent"), self.of_a_pad(everything), self.of_a_pad(everything, tracer=True)
        print(f"# instructions for a buffer that passes a pad: {without:.0f} without the plugin, {off:.0f} with it, {on:.0f} with the tracer")
        self.assertAlmostEqual(off, without, delta=0.02 * without)
        # Most of it is GStreamer's own, which looks for listeners at each reference taken and dropped once there is a tracer.
        self.assertLess(on - off, 2050)
        self.assertGreater(on - off, 100)


class Call(tap.RealtimeTestCase):
    TURNS = 10

    def test_ten_turns_over_rtp(self):
        with tempfile.TemporaryDirectory() as folder:
            lines = pathlib.Path(folder) / "turns.jsonl"
            os.environ["GST_TRACERS"] = f"minicpmoturns(file={lines})"
            try:
                conversation, arguments = opus(f"{THREE_TURNS} max-new-tokens=8")  # short answers
            finally:
                del os.environ["GST_TRACERS"]
            with conversation:
                report, problems, status = call(*arguments, *[SAMPLES / QUESTION] * self.TURNS)
                self.assertEqual((status, problems), (0, ""), conversation.output)
            turns = {t["turn"]: t for t in map(json.loads, lines.read_text().splitlines())}
        self.assertEqual(sorted(turns), list(range(1, self.TURNS + 1)))
        for turn in turns.values():
            self.check_turn(turn)
        # The caller counts from its last sample, minicpmoturn from the end of what it takes for voice. Both know when the
        # packet was sent that was heard first.
        less = [t["first_packet_ms"] - turns[n]["total_ms"] for n, t in enumerate(report["turns"], 1)]
        print(f"# less than the caller's: {[round(ms) for ms in less]} ms")
        self.assertGreater(min(less), -60)
        self.assertLess(max(less), 250)
        self.assertLess(max(less) - min(less), 150)

    def check_turn(self, turn: dict):
        self.assertTrue(turn["complete"], turn)
        self.assertEqual((turn["kind"], turn["again"]), ("spoken", False))
        self.assertAlmostEqual(sum(p["ms"] for p in turn["parts"]), turn["total_ms"], delta=1)
        settings = {p["part"]: p.get("setting", "") for p in turn["parts"]}
        self.assertIn("silence-duration=500", settings["endpoint"])
        self.assertIn("headroom=", settings["sink"])


if __name__ == "__main__":
    tap.main()
