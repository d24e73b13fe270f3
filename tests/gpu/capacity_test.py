"""tools/gpu/capacity.py: what it makes of the callers' turns. The turns are made up; the call server itself has tests of its own.

Environment: SOURCE (the checkout).
"""
import os
import pathlib
import sys
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / "tests/support"), str(SOURCE / "tools/gpu")]
import capacity  # noqa: E402
import tap  # noqa: E402


def heard(*parts: tuple[float, float], **more) -> dict:
    """A turn whose sound came so: (when, seconds of it)."""
    return dict(question="q", voice=9.4, stopped=10.0, stops=1, first=parts[0][0], parts=list(parts), words="Yes.",
                status="completed") | more


def report(levels: dict[int, list[float]], clean: float = 1.0, wrong: int = 0) -> dict:
    """Levels with the times to the first sound of their turns; from the voice on it is 600 ms more."""
    turns = []
    for calls, times in levels.items():
        for n, ms in enumerate(times):
            turns.append(dict(calls=calls, caller=n % calls, at=n, first_ms=ms, voice_ms=600 + ms, spare_ms=100.0,
                              underrun_ms=0.0 if n < clean * len(times) else 50.0, lag_ms=0.1, **({"wrong": "no sound"} if n < wrong else {})))
    return dict(machine={}, opened=[], turns=turns, levels=[dict(calls=n, cpu=0.1, threads=5) for n in levels])


class Play(unittest.TestCase):
    def test_sound_in_time(self):
        found = capacity.play(heard((10.1, 0.5), (10.4, 0.5), (10.9, 0.5)))
        self.assertEqual(found["underrun"], 0)
        self.assertAlmostEqual(found["spare"], 0.2)
        self.assertAlmostEqual(found["end"], 11.6)
        self.assertAlmostEqual(found["sound"], 1.5)

    def test_sound_that_comes_too_late_puts_off_the_rest(self):
        found = capacity.play(heard((10.0, 0.5), (10.8, 0.5), (11.4, 0.5)))
        self.assertAlmostEqual(found["underrun"], 0.3 + 0.1)
        self.assertAlmostEqual(found["spare"], -0.3)
        self.assertAlmostEqual(found["end"], 11.9)

    def test_one_part_and_none(self):
        self.assertIsNone(capacity.play(heard((10.0, 0.5)))["spare"])
        self.assertEqual(capacity.play({})["end"], 0)


class Told(unittest.TestCase):
    def test_a_good_turn(self):
        found = capacity.told(heard((10.1, 0.5), (10.3, 0.5)), 3, "", "Yes.")
        self.assertNotIn("wrong", found)
        self.assertAlmostEqual(found["first_ms"], 100)
        self.assertAlmostEqual(found["voice_ms"], 700)
        self.assertEqual((found["caller"], found["sound_s"], found["underrun_ms"]), (3, 1.0, 0))

    def test_what_is_wrong(self):
        whole = (10.1, 0.5)
        for turn, failure, word in ((heard(whole, words="No."), "", "wrong words"), (heard(whole, status="cancelled"), "", "cancelled"),
                                    (heard(whole, stops=2), "", "cut into 2"), (heard(whole), "closed with 1011", "1011"),
                                    (dict(question="q", voice=9.4, stopped=10.0, stops=1, status="completed", words="Yes."), "", "no sound"),
                                    (dict(question="q"), "", "no sound")):
            self.assertIn(word, capacity.told(turn, 0, failure, "Yes.")["wrong"])

    def test_words_that_nobody_asked_for(self):
        self.assertNotIn("wrong", capacity.told(heard((10.1, 0.5), words="Any."), 0, "", ""))


class Capacity(unittest.TestCase):
    def of(self, *reports: dict, key: str = "first_ms"):
        return capacity.capacity(capacity.by_calls(list(reports)), key)

    def test_up_to_the_first_that_is_too_slow(self):
        found = report({1: [50] * 20, 2: [60] * 20, 4: [50] * 17 + [80] * 3, 8: [60] * 20})
        self.assertEqual(self.of(found), (2, 75))
        self.assertEqual(self.of(found, key="voice_ms"), (8, 975))

    def test_underruns_and_wrong_turns(self):
        self.assertEqual(self.of(report({1: [50] * 20, 2: [50] * 20}, clean=0.96))[0], 2)
        self.assertEqual(self.of(report({1: [50] * 20, 2: [50] * 20}, clean=0.9))[0], None)
        self.assertEqual(self.of(report({1: [50] * 20}), report({2: [50] * 20}, wrong=2))[0], 1)

    def test_a_level_that_could_not_be_reached(self):
        found = report({1: [50] * 20, 2: [50] * 20})
        found["levels"].append(dict(calls=4, failed="WSServerHandshakeError: 503"))
        self.assertEqual(self.of(found)[0], 2)
        self.assertIn("503", capacity.table([found]))

    def test_runs_together(self):
        levels = capacity.by_calls([report({1: [50] * 20, 2: [60] * 20}), report({2: [60] * 10})])
        self.assertEqual({n: len(turns) for n, (_, turns) in levels.items()}, {1: 20, 2: 30})
        self.assertEqual(len({t["process"] for t in levels[2][1]}), 4)

    def test_without_one_call_alone_there_is_no_limit(self):
        self.assertEqual(self.of(report({2: [50] * 20})), (None, None))

    def test_guests(self):
        found = report({1: [50] * 20})
        found["opened"] = [dict(opened=capacity.GUEST, at=100.0, ms=20.0)]
        found["turns"] += [dict(beside=1, caller=who, at=at, first_ms=ms, voice_ms=700, underrun_ms=0.0, lag_ms=0.1)
                           for who, at, ms in ((capacity.GUEST, 104.0, 60.0), (0, 100.5, 90.0), (0, 110.0, 50.0))]
        lines = [line for line in capacity.table([found]).split("\n") if "one more every" in line]
        self.assertEqual(len(lines), 3)
        self.assertIn("1 turns", lines[2])
        self.assertIn("longest 90.0", lines[2])


if __name__ == "__main__":
    tap.main()
