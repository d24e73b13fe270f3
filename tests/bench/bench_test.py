"""tools/bench.d: what it computes, and a run on the CPU.

Environment: ASK (the program), SOURCE (the checkout).
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
MODEL, BENCH = SOURCE / "tools/tiny/model", SOURCE / "tools/bench.d"
sys.path[:0] = [str(SOURCE / "tests/support"), str(BENCH)]
import bench  # noqa: E402
import figures  # noqa: E402
import records  # noqa: E402
import tap  # noqa: E402
import traffic  # noqa: E402


class Traffic(unittest.TestCase):
    def test_weights_are_those_of_the_layers_and_the_head(self):
        c = json.loads((MODEL / "config.json").read_text())
        hidden, ffn = c["hidden_size"], c["intermediate_size"]
        shared = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
        attention = 2 * hidden * hidden + 2 * hidden * shared + hidden + 2 * shared  # queries, keys and values have biases
        layer = attention + 3 * hidden * ffn + 2 * hidden
        self.assertEqual(traffic.weights(MODEL), c["num_hidden_layers"] * layer + hidden + c["vocab_size"] * hidden)

    def test_bytes_of_a_token(self):
        self.assertEqual(traffic.cached(MODEL), 2 * 4 * 2 * 64)  # keys and values, layers, heads, their size
        at_start, later = (traffic.token_bytes(MODEL, "auto", n) for n in (0, 100))
        self.assertEqual(later - at_start, 100 * 2 * traffic.cached(MODEL))
        self.assertEqual(traffic.token_bytes(MODEL, "float32", 100), 2 * later)


class Report(unittest.TestCase):
    turns = [dict(process=0, ttfb_ms=9.0, token_ms=ms, context=100, parts_ms=dict(decode=5.0), gpu_ms=dict(decode=4.0))
             for ms in (1.0, 2.0, 6.0)]

    def test_bandwidth_is_that_of_the_median_token(self):
        options = argparse.Namespace(model=str(MODEL), precision=None)
        found = bench.bandwidth(dict(copy=3e9, read=2e9), options, self.turns)
        size = traffic.token_bytes(MODEL, "bfloat16", 100)
        self.assertEqual(found["attainable"], 3e9)
        self.assertAlmostEqual(found["achieved"], size / 0.002)
        self.assertAlmostEqual(found["percent"], 100 * size / 0.002 / 3e9)
        self.assertIn("of attainable", bench.bandwidth_line(found))

    def test_without_a_gpu_it_says_why(self):
        found = bench.bandwidth(dict(missing="not on a GPU"), argparse.Namespace(), self.turns)
        self.assertEqual(found, dict(missing="not on a GPU"))
        self.assertEqual(bench.bandwidth_line(found), "bandwidth: not on a GPU")

    def test_times_on_the_gpu_stand_beside_the_parts(self):
        shown = figures.table(dict(elements=figures.summaries(self.turns))).splitlines()
        at = next(i for i, line in enumerate(shown) if line.split()[1:2] == ["decode"])
        self.assertEqual(shown[at].split()[2], "5.0")
        self.assertEqual(shown[at + 1].split()[1:4], ["decode", "(GPU)", "4.0"])


class Run(unittest.TestCase):
    def test_typed_questions_on_the_cpu(self):
        with tempfile.TemporaryDirectory() as folder:
            result, lines = pathlib.Path(folder) / "result.json", pathlib.Path(folder) / "turns.jsonl"
            command = [sys.executable, BENCH / "bench.py", "--ask", os.environ["ASK"], "--model", MODEL, "--device", "cpu",
                       "--max-new-tokens", "12", "--threads", "1", "--processes", "2", "--json", result, "--records", lines]
            run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
            self.assertEqual(run.returncode, 0, run.stderr)
            report, told = json.loads(result.read_text()), records.load(lines)
        self.assertEqual(report["bandwidth"], dict(missing="not on a GPU"))
        self.assertEqual(report["summary"]["elements"]["ttfb_ms"]["turns"], 12)
        self.assertIn("parts_ms.decode", report["summary"]["elements"])
        self.assertNotIn("gpu_ms.decode", report["summary"]["elements"])
        self.check_records(told, report["turns"]["elements"])

    def check_records(self, told: list[dict], turns: list[dict]):
        """Those of the tracer are those of minicpmo-ask, which has clocks of its own."""
        self.assertEqual([(r["process"], r["turn"]) for r in told], [(p, n) for p in (0, 1) for n in range(2, 8)])
        for record, turn in zip(told, turns):
            self.assertEqual((record["kind"], record["complete"]), ("typed", True), record)
            self.assertLess({"prefill", "speech", "vocoder"}, {p["part"] for p in record["parts"]})
            self.assertAlmostEqual(sum(p["ms"] for p in record["parts"]), record["total_ms"], delta=1)
            to_sound = sum(p["ms"] for p in record["parts"] if p["part"] not in ("media-out", "sink"))
            self.assertAlmostEqual(to_sound, turn["ttfb_ms"], delta=20)


if __name__ == "__main__":
    tap.main()
