"""Answers of the Python reference to a folder of questions, as WAV files and the JSON that score_answers.py
reads.

    python reference_answers.py MODEL_DIR QUESTIONS_DIR OUT_DIR [--text-only]

QUESTIONS_DIR holds list.json (a list of objects with "file") and the questions, WAV or FLAC. Writes
OUT_DIR/answers.json: a list of {"file", "text", "wav" (relative to OUT_DIR), "codes", "codes_sha256",
"min_margin"}.
"""

import argparse
import hashlib
import json
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))
from tinyomni import TinyOmni, read_wav, write_wav  # noqa: E402


def code_digest(codes: list[list[int]]) -> str:
    """sha256 of the rows as little-endian uint16, row after row."""
    return hashlib.sha256(b"".join(c.to_bytes(2, "little") for row in codes for c in row)).hexdigest()


def code_margin(omni: TinyOmni) -> float:
    """Smallest distance between the best and the second best code: how near the answer is to flipping."""
    best = torch.cat([x for s in omni.trace.logits for x in s]).topk(2)[0]
    return round(float((best[:, 0] - best[:, 1]).min()), 6)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("questions")
    p.add_argument("out")
    p.add_argument("--text-only", action="store_true")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(1)
    omni, answers = TinyOmni(a.model), []
    for q in json.load(open(os.path.join(a.questions, "list.json"))):
        omni.reset()
        text, sound = omni.ask(read_wav(os.path.join(a.questions, q["file"])), voice=not a.text_only)
        row = dict(file=q["file"], text=text)
        if not a.text_only:
            row |= dict(
                wav=os.path.splitext(q["file"])[0] + ".wav",
                codes=len(omni.codes),
                codes_sha256=code_digest(omni.codes),
                min_margin=code_margin(omni),
            )
            write_wav(os.path.join(a.out, row["wav"]), sound)
        answers.append(row)
    json.dump(answers, open(os.path.join(a.out, "answers.json"), "w"), indent=1)
    print(f"{len(answers)} answers in {a.out}")


if __name__ == "__main__":
    main()
