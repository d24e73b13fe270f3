"""Perfetto opens the tracer's trace without a complaint, and shows in it what the records say.

Environment: SOURCE, GST_PLUGIN_PATH with the plugins of the elements and of the tracer, MINICPMO_PYTHON.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["SOURCE"]) / "tests/support"))
import tap  # noqa: E402
from perfetto import Perfetto  # noqa: E402

CONVERSATION = "minicpmollm ! queue ! minicpmotts ! queue ! minicpmovocoder ! fakesink"
LINE = f"fdsrc ! text/x-raw,format=utf8 ! {CONVERSATION}".split()


class Trace(unittest.TestCase):
    def test_is_shown(self):
        with tempfile.TemporaryDirectory() as folder:
            lines, trace = pathlib.Path(folder) / "turns.jsonl", pathlib.Path(folder) / "trace.json"
            subprocess.run(["gst-launch-1.0", "-q", *LINE], input="hello\nwhat is two plus two\n", text=True, check=True, timeout=60,
                           env=dict(os.environ, GST_TRACERS=f"minicpmoturns(file={lines},trace={trace})"))
            turns = [json.loads(line) for line in lines.read_text().splitlines()]
            for text in (trace.read_text(), trace.read_text().rstrip().removesuffix("]")):  # as a program that is killed leaves it
                trace.write_text(text)
                with Perfetto(trace) as perfetto:
                    perfetto.load()
                    self.check(perfetto, turns)

    def check(self, perfetto: Perfetto, turns: list[dict]):
        complaints = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
        self.assertEqual(perfetto.query(complaints), [])
        shown = perfetto.query("""
            select t.name, s.name, s.dur / 1e6 from slice s join process_track t on s.track_id = t.id order by s.ts, s.dur desc""")
        told = []
        for turn in turns:
            name = f"turn {turn['turn']} ({turn['finish']})"
            told += [(name, name, turn["total_ms"])] + [(name, p["part"], p["ms"]) for p in turn["parts"]]
        # The second turn began while the first was answered.
        self.assertEqual(sorted(r[:2] for r in shown), sorted([a, b] for a, b, _ in told))
        for (_, name, ms), (_, _, wanted) in zip(sorted(shown), sorted(told)):
            self.assertAlmostEqual(ms, wanted, delta=0.002, msg=name)
        work = perfetto.query("""
            select s.name, count(*), sum(s.dur) / 1e6, count(distinct utid) from slice s join thread_track t on s.track_id = t.id
            group by 1""")
        for stage, calls, ms, threads in work:
            found = [t["stages"][stage] for t in turns]
            self.assertEqual((calls, threads), (sum(f["calls"] for f in found), 1), stage)
            self.assertAlmostEqual(ms, sum(f["ms"] for f in found), delta=0.1, msg=stage)
        self.assertEqual({row[0] for row in work}, {"prefill", "decode", "speech", "vocoder"})
        self.assertEqual({name for name, in perfetto.query("select distinct name from process_counter_track")},
                         {"queue0 buffers", "queue1 buffers"})
        self.assertIn(["pipeline0"], perfetto.query("select name from process"))

    def test_what_is_no_trace_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "trace.json"
            trace.write_text("nobody spoke")
            with Perfetto(trace) as perfetto, self.assertRaises(AssertionError):
                perfetto.load()


if __name__ == "__main__":
    tap.main()
