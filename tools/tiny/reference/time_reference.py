"""How fast the Python reference answers, for comparison with the elements on the same machine.

    python time_reference.py MODEL_DIR QUESTION.wav... [--runs 10] [--warm-up 2] [--threads 1] [--early]
    [--json OUT]

The user's audio is encoded and read chunk by chunk before the clock starts, all but the last chunk: that is
what is left to do when a question ends. Per run:

    ttfb   s, from the last chunk being handed in to the first piece of sound. As upstream, a piece is held
           back until the next window exists; with --early its samples that are already final are given out
           at once.
    total  s, from the last chunk being handed in to the last piece of sound
    rtf    total / seconds of sound
    whole  s, with the reading of the earlier chunks
"""

import argparse
import json
import platform
import statistics
import time

import torch

from conversation import CHUNK
from tinyomni import TinyOmni, read_wav


@torch.no_grad()
def run(omni: TinyOmni, question: torch.Tensor, early: bool) -> dict:
    omni.reset()
    last = max(0, (len(question) - 321) // CHUNK * CHUNK)  # begin of the last chunk that is long enough
    begin = time.perf_counter()
    omni.conversation.read_audio(question[:last])
    if last == 0:
        omni.conversation.read_system()
    handed_in = time.perf_counter()
    omni.conversation.read_audio(question[last:])
    first, samples = None, 0
    for piece in omni.answer(early=early):
        if first is None:
            first = time.perf_counter() - handed_in
        samples += len(piece)
    total = time.perf_counter() - handed_in
    seconds = samples / 24000
    return dict(
        ttfb=first,
        total=total,
        rtf=total / seconds if seconds else None,
        seconds=seconds,
        whole=time.perf_counter() - begin,
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("question", nargs="+")
    p.add_argument("--runs", type=int, default=10, help="per question (default 10)")
    p.add_argument("--warm-up", type=int, default=2, help="runs that are not counted (default 2)")
    p.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    p.add_argument(
        "--early", action="store_true", help="give the first samples out as soon as they are final"
    )
    p.add_argument("--json", help="write the result here instead of to standard output")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    omni = TinyOmni(a.model)
    questions = [read_wav(q) for q in a.question]
    for i in range(a.warm_up):
        run(omni, questions[i % len(questions)], a.early)
    runs = []
    for n in range(a.runs):
        for path, x in zip(a.question, questions):
            runs.append(dict(question=path, run=n, **run(omni, x, a.early)))
    spoken = [r for r in runs if r["ttfb"] is not None]
    median = (
        {k: statistics.median(r[k] for r in spoken) for k in ("ttfb", "total", "rtf", "whole")}
        if spoken
        else {}
    )
    result = dict(
        torch=torch.__version__,
        python=platform.python_version(),
        threads=a.threads,
        early=a.early,
        median=median,
        runs=runs,
    )
    text = json.dumps(result, indent=1)
    if a.json:
        with open(a.json, "w") as f:
            f.write(text + "\n")
        print(json.dumps(median))
    else:
        print(text)


if __name__ == "__main__":
    main()
