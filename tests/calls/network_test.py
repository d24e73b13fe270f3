"""Conversations over a bad network: lost, late, doubled and foreign packets, and callers that go silent.

By default a few calls of each kind; MINICPMO_CALLS=full asks all held-out questions at every rate of loss, and
interrupts a thousand answers, too (about two hours).
Figures go to the TAP output and to $MINICPMO_REPORT/network.json.
Environment: SOURCE, CALLER, as conversation.py says.
"""
import json
import os
import pathlib
import re
import sys
import time
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / "tests/support")]
import tap  # noqa: E402
from conversation import call, captions_by_turn, opus  # noqa: E402

FULL = os.environ.get("MINICPMO_CALLS") == "full"
SAMPLES = SOURCE / "tools/tiny/samples"
REPLIES = {r["file"]: r["expected_reply"] for r in json.loads((SAMPLES / "list.json").read_text())}
CAPITAL, LIGHT_BULB, SPELL = "q01_cap.wav", "q02_gk.wav", "q04_spell.wav"
STALL_MS = 300
FIGURES: dict[str, dict] = {}


def words(text: str) -> list[str]:
    return re.sub("[^a-z ]", " ", text.lower()).split()


def figures(name: str, report: dict, right: int) -> dict:
    answers = [t for t in report["turns"] if t["answered"]]
    FIGURES[name] = dict(
        asked=len(report["turns"]), right=right,
        worst_first_packet_ms=round(max((t["first_packet_ms"] for t in answers), default=0)),
        longest_silence_ms=max((g["ms"] for t in answers for g in t["gaps"]), default=0),
        longest_packet_gap_ms=round(max((t["longest_packet_gap_ms"] for t in answers), default=0)),
        sent=report["sent"]["packets"], lost=report["sent"]["lost"], latest_ms=round(report["sent"]["latest_ms"]))
    print(f"# {name}: {FIGURES[name]}")
    return FIGURES[name]


class Network(tap.RealtimeTestCase):
    @classmethod
    def tearDownClass(cls):
        if folder := os.environ.get("MINICPMO_REPORT"):
            pathlib.Path(folder, "network.json").write_text(json.dumps(FIGURES, indent=1))

    def converse(self, name: str, *options, items=(CAPITAL, LIGHT_BULB, SPELL)) -> dict:
        """A call with `items`, all answered right. The figures."""
        conversation, arguments = opus()
        with conversation:
            items = [i if ":" in i else str(SAMPLES / i) for i in items]
            report, problems, status = call(*arguments, *options, *items)
            self.assertEqual((status, problems), (0, ""), conversation.output)
            time.sleep(0.2)  # the last line on its way
            captions = captions_by_turn(report, conversation)
        right = [REPLIES[os.path.basename(t["file"])] for t in report["turns"]]
        row = figures(name, report, sum(a == b for a, b in zip(captions, right)))
        self.assertEqual(captions, right, conversation.output)
        self.assertLessEqual(row["longest_silence_ms"], STALL_MS)
        return row

    def test_a_tenth_of_the_packets_lost(self):
        row = self.converse("10 % lost both ways", "--loss", 10, "--loss-back", 10)
        self.assertGreater(row["lost"], row["sent"] / 20)

    def test_third_of_the_packets_lost(self):
        row = self.converse("30 % lost both ways", "--loss", 30, "--loss-back", 30)
        self.assertGreater(row["lost"], row["sent"] / 5)

    def test_bursts(self):
        self.converse("60 ms lost every 2 s", "--burst", "3/2", items=(CAPITAL, LIGHT_BULB))

    def test_jitter_reordered_and_doubled_packets(self):
        self.converse("jitter 100 ms, 40 % reordered, 40 % doubled", "--jitter", 100, "--reorder", 40, "--duplicate", 40)

    def test_wrap_and_new_sources(self):
        # Both numbers wrap in the first question; the second and the third come from new sources.
        self.converse("wrap, new sources", "--wrap", "--new-source", 3, "--new-source", 9)

    def test_junk(self):
        self.converse("1000 packets of junk a second", "--junk", 1000, items=(CAPITAL, LIGHT_BULB))

    def test_blackout(self):
        # Right after the first answer nothing comes for 5 s, in the middle of a cough; the next question begins a second later.
        row = self.converse("blackout of 5 s", "--blackout", "7:5", items=(CAPITAL, "wait:6500", LIGHT_BULB, SPELL))
        self.assertGreater(row["lost"], 200)

    def test_caller_who_vanishes_in_the_middle_of_a_question(self):
        conversation, arguments = opus()
        with conversation:
            question = str(SAMPLES / CAPITAL)
            # The same source each time, from another port: so does a caller behind a router that moved.
            arguments += ["--ssrc", "77"]
            _, _, status = call(*arguments, "--blackout", "1:60", question, timeout=3)
            self.assertEqual(status, 1)
            self.assertTrue(conversation.alive(), conversation.output)
            known = len(conversation.answers)
            report, problems, status = call(*arguments, "wait:3000", question, str(SAMPLES / LIGHT_BULB))
            self.assertEqual((status, problems), (0, ""), conversation.output)
            time.sleep(0.2)
            print(f"# the cut question was answered: {conversation.texts()[known:-2]}")
            self.assertEqual(conversation.texts()[-2:], [REPLIES[CAPITAL], REPLIES[LIGHT_BULB]])


@unittest.skipUnless(FULL, "MINICPMO_CALLS=full runs it")
class Thorough(unittest.TestCase):
    """All held-out questions at every rate of loss, and worse networks than a call survives unharmed."""

    def hold(self, name: str, files: list[str], answers: list[str], *options) -> dict:
        conversation, arguments = opus()
        with conversation:
            report, problems, status = call(*arguments, *options, *files, limit=1200)
            self.assertEqual((status, problems), (0, ""), conversation.output[-5:])
            self.assertTrue(conversation.alive())
            time.sleep(0.2)
            captions = captions_by_turn(report, conversation)
        return figures(name, report, sum(words(a) == words(b) for a, b in zip(captions, answers)))

    def test_rates_of_loss(self):
        folder = SOURCE / "tests/fixtures/questions"
        questions = json.loads((folder / "list.json").read_text())
        files, answers = [str(folder / q["file"]) for q in questions], [q["answer"] for q in questions]
        rows = {rate: self.hold(f"{rate} % lost, all questions", files, answers, "--loss", rate, "--loss-back", rate)
                for rate in (0, 1, 5, 10, 20, 30)}
        for rate, row in rows.items():
            with self.subTest(rate=rate):
                self.assertLessEqual(row["longest_silence_ms"], STALL_MS)
                if rate <= 10:
                    self.assertGreaterEqual(row["right"], 0.95 * rows[0]["right"])

    def test_ten_turns(self):
        names = sorted(n for n in REPLIES if n.startswith("q"))
        row = self.hold("ten turns", [str(SAMPLES / n) for n in names], [REPLIES[n] for n in names])
        self.assertEqual((row["asked"], row["right"], row["longest_silence_ms"]), (10, 10, 0))

    def test_thousand_interruptions(self):
        conversation, arguments = opus()
        with conversation:
            report, problems, status = call(*arguments, "--interrupt-random", "150-1800", "--repeat", 501,
                                            str(SAMPLES / CAPITAL), str(SAMPLES / LIGHT_BULB), limit=7200)
            self.assertEqual((status, problems), (0, ""), conversation.output[-5:])
            time.sleep(0.2)
            wrong = [t for t in conversation.texts() if t not in (REPLIES[CAPITAL], REPLIES[LIGHT_BULB])]
        begins = [b - report["sent"]["clock"] for b in conversation.begins]
        known, silent = [], []
        for turn in report["turns"]:
            if i := turn.get("interrupted"):
                known.append(1000 * (min(b for b in begins if b > i["at"] - 0.05) - i["at"]))
                silent.append(i["old_sound_ms"] - known[-1])
        row = dict(interruptions=len(known), wrong=wrong[:5])
        for name, values in (("voice_to_known_ms", known), ("known_to_silence_ms", silent)):
            values.sort()
            row[name] = [round(values[int(p * (len(values) - 1))]) for p in (0.5, 0.95, 1)]
        FIGURES["interruptions"] = row
        print(f"# interruptions (median, 95th percentile, longest): {row}")
        self.assertGreaterEqual(len(known), 1000)
        self.assertEqual(wrong, [])
        self.assertLessEqual(row["known_to_silence_ms"][1], 120)

    def test_worse_networks(self):
        files = [str(SAMPLES / n) for n in (CAPITAL, LIGHT_BULB, SPELL)] * 3
        answers = [REPLIES[os.path.basename(f)] for f in files]
        for options in (["--burst", "10/4"], ["--burst", "50/8"], ["--jitter", 20], ["--jitter", 50], ["--reorder", 50],
                        ["--duplicate", 50], ["--junk", 10000], ["--noise", -50], ["--loss", 60, "--loss-back", 60]):
            with self.subTest(options=options):
                self.hold(" ".join(map(str, options)), files, answers, *options)


if __name__ == "__main__":
    tap.main()
