"""Asks the held-out questions and the samples, and judges the answers: the words and the speech codes against the Python
reference's, word for word and row for row; the sound with a recogniser and by its spectrum.

Environment: ASK (the program), SOURCE (the checkout), MINICPMO_REPORT (folder for figures and spectrograms).
Needs numpy, scipy, matplotlib and pocketsphinx.
"""
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / p) for p in ("tests/support", "tools", "tools/tiny/evaluate", "tools/tiny/training")]
import tap  # noqa: E402

QUESTIONS = SOURCE / "tests/fixtures/questions"
SAMPLES = SOURCE / "tools/tiny/samples"
REPORT = pathlib.Path(os.environ.get("MINICPMO_REPORT") or tempfile.mkdtemp())

# Where the reference's best and second best code are nearer than this, float32 in another order may choose the other.
MARGIN = 2e-4


def ask(files: list[pathlib.Path], folder: pathlib.Path) -> dict[str, dict]:
    command = [os.environ["ASK"], "--json", "--codes", "--output-dir", folder, *files]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return {os.path.basename(r["question"]): r for r in json.loads(run.stdout)}


class Answers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.questions = json.loads((QUESTIONS / "list.json").read_text())
        cls.folder = REPORT / "answers"
        cls.folder.mkdir(parents=True, exist_ok=True)
        cls.answers = ask([QUESTIONS / q["file"] for q in cls.questions], cls.folder)

    def test_every_question_is_answered(self):
        self.assertEqual(len(self.questions), 60)
        self.assertEqual(set(self.answers), {q["file"] for q in self.questions})

    def test_words_are_the_references(self):
        different = [(q["question"], q["reference_reply"], self.answers[q["file"]]["text"]) for q in self.questions
                     if self.answers[q["file"]]["text"] != q["reference_reply"]]
        self.assertEqual(different, [])

    def test_codes_are_the_references(self):
        compared, different = 0, []
        for q in self.questions:
            if q["min_margin"] < MARGIN:
                continue
            compared += 1
            codes = pathlib.Path(self.answers[q["file"]]["wav"] + ".codes").read_bytes()
            if hashlib.sha256(codes).hexdigest() != q["codes_sha256"]:
                different.append((q["file"], len(codes) // 8, q["codes"]))
        self.assertGreaterEqual(compared, 55)
        self.assertEqual(different, [])

    def test_sound_is_as_long_as_the_references(self):
        different = [(q["file"], self.answers[q["file"]]["audio_seconds"] * 24000, q["samples"]) for q in self.questions
                     if q["min_margin"] >= MARGIN
                     and round(self.answers[q["file"]]["audio_seconds"] * 24000) != q["samples"]]
        self.assertEqual(different, [])

    def test_most_answers_are_right(self):
        right = sum(self.answers[q["file"]]["text"] == q["answer"] for q in self.questions)
        reference = sum(q["reference_reply"] == q["answer"] for q in self.questions)
        print(f"# {right} of {len(self.questions)} answers are right, of the reference's {reference}")
        self.assertEqual(right, reference)

    def test_recogniser_hears_the_words_as_well_as_in_the_references_sound(self):
        from recogniser import Recogniser, edits, words
        from scipy.io import wavfile
        heard_in_reference = json.loads((QUESTIONS / "heard.json").read_text())
        recogniser, ours, reference, total, rows = Recogniser(), 0, 0, 0, []
        for q in self.questions:
            answer, text = self.answers[q["file"]], words(q["reference_reply"])
            if len(text) <= 2:
                continue
            rate, samples = wavfile.read(answer["wav"])
            heard = recogniser.hear(samples, rate)
            ours += edits(text, heard)
            reference += edits(text, heard_in_reference[q["file"]].split())
            total += len(text)
            rows.append(dict(file=q["file"], text=q["reference_reply"], heard=" ".join(heard)))
        print(f"# word error rate {ours / total:.4f}, in the reference's sound {reference / total:.4f}, {total} words")
        (REPORT / "recogniser.json").write_text(json.dumps(dict(
            word_error_rate=ours / total, reference=reference / total, words=total, rows=rows), indent=1))
        self.assertGreater(total, 250)
        self.assertLess(reference / total, 0.25)
        self.assertLessEqual(abs(ours - reference) / total, 0.01)

    def test_sound_is_clean(self):
        wavs = [self.answers[q["file"]]["wav"] for q in self.questions]
        run = subprocess.run([sys.executable, SOURCE / "tools/sound_report.py", "--out", REPORT / "sound", *wavs],
                             capture_output=True, text=True, timeout=280)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertEqual(len(list((REPORT / "sound").glob("*.png"))), len(wavs))


class Samples(unittest.TestCase):
    def test_samples_get_their_answers(self):
        rows = [r for r in json.loads((SAMPLES / "list.json").read_text()) if not r["file"].startswith("session")]
        with tempfile.TemporaryDirectory() as folder:
            answers = ask([SAMPLES / r["file"] for r in rows], pathlib.Path(folder))
        self.assertEqual({r["file"]: answers[r["file"]]["text"] for r in rows},
                         {r["file"]: r["expected_reply"] for r in rows})


if __name__ == "__main__":
    tap.main()
