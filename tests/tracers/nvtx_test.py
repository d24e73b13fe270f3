"""Builds with -Dnvtx=enabled: every call of a stage is a range of NVTX, on the thread that does it.

Environment: SOURCE, GST_PLUGIN_PATH with the plugins of the elements and of the tracer, NVTX_INJECTION64_PATH (nvtx_log.cpp).
"""
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["SOURCE"]) / "tests/support"))
import tap  # noqa: E402

LINE = ("fdsrc ! text/x-raw,format=utf8 ! minicpmollm ! queue ! minicpmotts ! queue ! minicpmovocoder ! fakesink").split()


class Ranges(unittest.TestCase):
    def test_are_the_calls_of_the_stages(self):
        with tempfile.TemporaryDirectory() as folder:
            lines, log = pathlib.Path(folder) / "turns.jsonl", pathlib.Path(folder) / "nvtx"
            subprocess.run(["gst-launch-1.0", "-q", *LINE], input="hello\nwhat is two plus two\n", text=True, check=True, timeout=60,
                           env=dict(os.environ, GST_TRACERS=f"minicpmoturns(file={lines})", NVTX_LOG=str(log)))
            turns = [json.loads(line) for line in lines.read_text().splitlines()]
            ranges = [line.split() for line in log.read_text().splitlines()]
        wanted: collections.Counter = collections.Counter()
        for turn in turns:
            wanted.update({stage: work["calls"] for stage, work in turn["stages"].items()})
        self.assertEqual(set(wanted), {"prefill", "decode", "speech", "vocoder"})
        self.assertEqual(collections.Counter(what for _, what in ranges if what != "pop"), wanted)
        threads: dict[str, set] = {}
        for thread in {t for t, _ in ranges}:
            calls = [what for t, what in ranges if t == thread]
            self.assertEqual(calls[1::2], ["pop"] * (len(calls) // 2))  # each is closed before the next
            for stage in calls[::2]:
                threads.setdefault(stage, set()).add(thread)
        self.assertEqual({len(t) for t in threads.values()}, {1})
        self.assertEqual(len(set.union(*threads.values())), 3)


if __name__ == "__main__":
    tap.main()
