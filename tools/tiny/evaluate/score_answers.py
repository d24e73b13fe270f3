"""Judges answers: texts against the reference's and the right ones, sound with a recogniser.

    python score_answers.py QUESTIONS_DIR ANSWERS [REFERENCE_ANSWERS] [--json OUT] [--voice]

ANSWERS is a JSON list of {"file" (of the question), "text", "wav" (path, relative to the JSON)} or a folder
with answers.json. REFERENCE_ANSWERS is the same from reference_answers.py; its sound is judged too. Word
error rates are over all words of all answers with more than two words: "heard" against the answer's own text,
"end to end" against the right answer. Exit code 1 if a text differs from the reference's reply in list.json,
or if a word error rate is more than --tolerance above the reference's.
"""

import argparse
import json
import os
import sys
from collections import defaultdict

from scipy.io import wavfile

from recogniser import Recogniser, edits, words


def load(path: str) -> dict[str, dict]:
    if os.path.isdir(path):
        path = os.path.join(path, "answers.json")
    rows = json.load(open(path))
    for r in rows:
        if r.get("wav"):
            r["wav"] = os.path.join(os.path.dirname(os.path.abspath(path)), r["wav"])
    return {r["file"]: r for r in rows}


def text_report(questions: list[dict], answers: dict[str, dict]) -> dict:
    groups, different = defaultdict(list), []
    for q in questions:
        got = answers[q["file"]]["text"]
        for key in ("all", q["group"], "kind " + q["kind"]):
            groups[key].append(words(got) == words(q["answer"]))
        if got != q["reference_reply"]:
            different.append(dict(file=q["file"], reference=q["reference_reply"], got=got))
    return dict(right={k: [sum(v), len(v)] for k, v in groups.items()}, different=different)


def sound_report(recogniser: Recogniser, questions: list[dict], answers: dict[str, dict]) -> dict:
    heard_errors = heard_words = end_errors = end_words = 0
    rows = []
    for q in questions:
        a = answers[q["file"]]
        text, right = words(a["text"]), words(q["answer"])
        if len(right) <= 2:
            continue
        rate, x = wavfile.read(a["wav"])
        heard = recogniser.hear(x if x.ndim == 1 else x[:, 0], rate)
        heard_errors += edits(text, heard)
        heard_words += len(text)
        end_errors += edits(right, heard)
        end_words += len(right)
        rows.append(dict(file=q["file"], text=a["text"], heard=" ".join(heard), errors=edits(text, heard)))
    return dict(
        answers=len(rows),
        words=heard_words,
        word_error_rate=round(heard_errors / max(heard_words, 1), 4),
        end_to_end=round(end_errors / max(end_words, 1), 4),
        rows=rows,
    )


def voice_report(recogniser: Recogniser, questions: list[dict], answers: dict[str, dict]) -> dict:
    """The same texts spoken by the voice that the model learnt from: the recogniser's own floor."""
    import synth

    errors = total = 0
    for q in questions:
        text = words(answers[q["file"]]["text"])
        if len(words(q["answer"])) > 2:
            errors += edits(text, recogniser.hear(synth.answer(answers[q["file"]]["text"]), 24000))
            total += len(text)
    return dict(word_error_rate=round(errors / max(total, 1), 4))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("questions")
    p.add_argument("answers")
    p.add_argument("reference", nargs="?")
    p.add_argument("--json", help="write the whole report here")
    p.add_argument(
        "--voice", action="store_true", help="judge the original voice (flite slt) saying the same texts, too"
    )
    p.add_argument(
        "--tolerance", type=float, default=0.02, help="allowed difference of word error rates (default 0.02)"
    )
    a = p.parse_args()
    answers = load(a.answers)
    questions = [q for q in json.load(open(os.path.join(a.questions, "list.json"))) if q["file"] in answers]
    if not questions:
        sys.exit(f"{a.answers} answers none of the questions in {a.questions}/list.json")
    report = dict(text=text_report(questions, answers))
    for k, (n, m) in report["text"]["right"].items():
        print(f"{k:20s} {n}/{m} right")
    for d in report["text"]["different"]:
        print(f"differs from the reference: {d['file']}: {d['got']!r}, reference {d['reference']!r}")
    failed = bool(report["text"]["different"])
    if all("wav" in r for r in answers.values()):
        recogniser = Recogniser()
        report["sound"] = sound_report(recogniser, questions, answers)
        if a.reference:
            report["reference"] = sound_report(recogniser, questions, load(a.reference))
        if a.voice:
            report["voice"] = voice_report(recogniser, questions, answers)
        for k in ("sound", "reference", "voice"):
            if k in report:
                r = report[k]
                print(
                    f"{k}: word error rate {r['word_error_rate']:.4f}"
                    + (f", end to end {r['end_to_end']:.4f}, {r['words']} words" if "words" in r else "")
                )
        if (
            a.reference
            and report["sound"]["word_error_rate"] > report["reference"]["word_error_rate"] + a.tolerance
        ):
            print(f"FAILED: the word error rate is more than {a.tolerance} above the reference's")
            failed = True
    if a.json:
        json.dump(report, open(a.json, "w"), indent=1)
    sys.exit(failed)


if __name__ == "__main__":
    main()
