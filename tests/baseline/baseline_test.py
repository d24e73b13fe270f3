"""tools/baseline on the small checkpoint in float32: words and speech codes are those of the elements and of the golden files,
so that what it is timed at is the same work.

Environment: ASK (the program), SOURCE (the checkout). Needs the packages of tools/baseline/requirements.txt and torch
(tools/setup --baseline); skipped without.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import wave

SOURCE = pathlib.Path(os.environ["SOURCE"])
BASELINE, SAMPLES, GOLDEN = SOURCE / "tools/baseline", SOURCE / "tools/tiny/samples", SOURCE / "tests/fixtures/golden"
MODEL = SOURCE / "tools/tiny/model"
sys.path[:0] = [str(p) for p in (SOURCE / "tests/support", BASELINE, SOURCE / "tools/tiny/reference")]
import tap  # noqa: E402

try:
    import torch
    from networks import Networks
    from safetensors import safe_open
    from speech import MAX_CODES
    from streaming import Clock, EagerSpeechDecoder
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = ""

QUESTIONS = ["q01_cap.wav", "q04_spell.wav", "q05_count.wav", "q08_talk.wav"]


def answers(folder: str, *arguments: object) -> list[dict]:
    command = [sys.executable, BASELINE / "baseline.py", "--device", "cpu", "--output-dir", folder, *arguments]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return json.loads(run.stdout)


def samples(path: str) -> bytes:
    with wave.open(path) as sound:
        return sound.readframes(sound.getnframes())


def codes(answer: dict) -> bytes:
    return pathlib.Path(answer["wav"] + ".codes").read_bytes()


@unittest.skipIf(MISSING, MISSING)
class Baseline(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_spoken_questions_are_answered_as_by_the_elements(self):
        files = [SAMPLES / q for q in QUESTIONS]
        ours = os.path.join(self.folder, "elements")
        os.mkdir(ours)
        command = [os.environ["ASK"], "--device", "cpu", "--json", "--codes", "--output-dir", ours, *files]
        elements = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=280, check=True).stdout)
        for element, answer in zip(elements, answers(self.folder, *files), strict=True):
            self.assertEqual(answer["text"], element["text"])
            self.assertGreater(len(codes(answer)), 0)
            self.assertEqual(codes(answer), codes(element), answer["question"])
            self.assertEqual(answer["audio_seconds"], element["audio_seconds"])

    def test_typed_questions_are_one_conversation(self):
        with safe_open(GOLDEN / "text_question.safetensors", "pt") as golden:
            turns = json.loads(golden.metadata()["turns"])
        typed = [a for turn in turns for a in ("--text", turn["question"])]
        self.assertEqual([a["text"] for a in answers(self.folder, *typed)], [turn["text"] for turn in turns])

    def test_a_new_segment_begins_as_upstreams(self):
        """All of the speech model's streaming: slices, a cut, a carried prefix whose mask is not causal."""
        with safe_open(GOLDEN / "two_segments_upstream.safetensors", "pt") as golden:
            bursts, expected = json.loads(golden.metadata()["bursts"]), golden.get_tensor("codes")
            calls = golden.get_tensor("calls")
        with torch.inference_mode():
            networks = Networks(str(MODEL), "cpu", torch.float32, torch.float32)
            speaker = torch.frombuffer(bytearray((MODEL / "assets/default_speaker.f32").read_bytes()), dtype=torch.float32)
            chunks = list(EagerSpeechDecoder(networks, speaker, -1, MAX_CODES, Clock()).speak(bursts))
        self.assertEqual([[c.segment, len(c.rows)] for c in chunks], calls[:, :2].tolist())
        self.assertEqual([row for c in chunks for row in c.rows], expected.tolist())

    def test_early_sound_is_the_same_sound(self):
        held = answers(os.path.join(self.folder), SAMPLES / QUESTIONS[0])[0]
        sound = samples(held["wav"])
        early = answers(os.path.join(self.folder), "--early", SAMPLES / QUESTIONS[0])[0]
        self.assertEqual(samples(early["wav"]), sound)
        self.assertEqual(early["chunks"], held["chunks"] + 1)

    def test_limits_and_sampling(self):
        answer = answers(self.folder, "--max-codes", 60, "--temperature", 0.7, "--precision", "bfloat16", SAMPLES / QUESTIONS[2])[0]
        self.assertEqual(answer["codes"], 60)
        self.assertEqual(len(codes(answer)), 60 * 4 * 2)
        self.assertEqual(answer["audio_seconds"], 60 * 512 / 24000)
        self.assertGreater(answer["ttfb_ms"], answer["first_word_ms"])
        self.assertGreater(answer["rtf"], answer["steady_rtf"])


if __name__ == "__main__":
    tap.main()
