"""The held-out questions of tests/fixtures/questions.

    python ../training/make_testset.py TESTSET 150
    python make_questions.py MODEL_DIR TESTSET OUT_DIR [--each 20]

Writes full_450.json (every question of TESTSET: text, the reference's reply, sha256 of the WAV, which is made
anew when it is needed), and --each questions per voice group as FLAC with list.json: the right answer, the
reference's reply, and number and sha256 of its codes. Questions are taken kind by kind in turn, in the order
of the test set. Needs sox.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict

import torch

import reference_answers
from recogniser import words

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))
from tinyomni import TinyOmni, read_wav  # noqa: E402


def pick(rows: list[dict], each: int) -> list[dict]:
    out = []
    for group in dict.fromkeys(r["group"] for r in rows):
        kinds = defaultdict(list)
        for r in rows:
            if r["group"] == group:
                kinds[r["kind"]].append(r)
        chosen = []
        while len(chosen) < each and any(kinds.values()):
            chosen += [kinds[k].pop(0) for k in sorted(kinds) if kinds[k]]
        out += chosen[:each]
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("testset")
    p.add_argument("out")
    p.add_argument("--each", type=int, default=20)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(1)
    rows = json.load(open(os.path.join(a.testset, "list.json")))
    omni, full = TinyOmni(a.model), []
    for r in rows:
        omni.reset()
        path = os.path.join(a.testset, r["file"])
        reply = omni.ask(read_wav(path), voice=False)[0]
        full.append(
            {k: r[k] for k in ("file", "group", "kind", "question", "answer")}
            | dict(reference_reply=reply, sha256=hashlib.sha256(open(path, "rb").read()).hexdigest())
        )
    right = sum(words(r["reference_reply"]) == words(r["answer"]) for r in full)
    print(f"{right} of {len(full)} right")
    with open(os.path.join(a.out, "full_450.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in full) + "\n]\n")
    chosen = []
    for r in pick(full, a.each):
        omni.reset()
        reply, sound = omni.ask(read_wav(os.path.join(a.testset, r["file"])))
        name = os.path.splitext(r["file"])[0] + ".flac"
        subprocess.run(
            ["sox", "-D", os.path.join(a.testset, r["file"]), "-C", "8", os.path.join(a.out, name)],
            check=True,
        )
        assert torch.equal(
            read_wav(os.path.join(a.out, name)), read_wav(os.path.join(a.testset, r["file"]))
        ), name
        chosen.append(
            dict(
                file=name,
                group=r["group"],
                kind=r["kind"],
                question=r["question"],
                answer=r["answer"],
                reference_reply=reply,
                codes=len(omni.codes),
                codes_sha256=reference_answers.code_digest(omni.codes),
                min_margin=reference_answers.code_margin(omni),
                samples=len(sound),
            )
        )
    with open(os.path.join(a.out, "list.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in chosen) + "\n]\n")
    print(f"{len(chosen)} questions in {a.out}")


if __name__ == "__main__":
    main()
