"""When each word of spoken answers ends: what elements/tts/heard_text estimates is measured against this.

    python heard_words.py MODEL_DIR QUESTIONS_DIR SENTENCES OUT_DIR

Answers: of the Python reference to QUESTIONS_DIR and to typed questions; their words are found in the sound by
pocketsphinx, forced to the answer's text. Answers that pocketsphinx, free to hear anything of the domain, hears otherwise
in more than a third of the words are left out. Also the lines of SENTENCES as four voices of flite say them, whose words'
times flite tells itself; on these the forced alignment is checked first.

Writes OUT_DIR/heard.json (all) and OUT_DIR/held_out.json (every second answer; the constants of heard_text.cpp were fitted
to the others), lists of
  {"voice": "model" or flite's, "text", "rows" (512 samples at 24 kHz),
   "chunks": [[rows, bytes of text known when they were made], ...] (model only),
   "words": [[byte of the text after the word and its punctuation, row where it ends], ...]}
and prints the fit. Needs the Debian packages flite, pocketsphinx, pocketsphinx-en-us, sox and the Python packages of
tools/requirements-reference.txt.
"""

import argparse
import functools
import json
import os
import random
import re
import subprocess
import sys
import tempfile

import numpy as np
from recogniser import ACOUSTIC_MODEL, DICTIONARY, Recogniser, edits
from recogniser import words as plain_words
from scipy.io import wavfile
from scipy.signal import resample_poly

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", d) for d in ("reference", "training")]
import corpus  # noqa: E402

VOICES = ["slt", "rms", "awb", "kal"]
ROWS_PER_SECOND = 24000 / 512
TYPED = [
    *(f"count from {a} to {b}" for a, b in [("one", "nine"), ("three", "twelve"), ("eight", "fifteen")]),
    *(f"how do you spell {w}" for w in ("banana", "orange", "garden", "window", "purple")),
    "count from twenty to thirty",
    "tell me a story",
    "tell me a joke",
    "where are you",
    "what is the weather like",
    "talk to me",
]
REPEATED = 16  # sentences to repeat


# ---------------------------------------------------------------- forced alignment
def for_recogniser(path: str, pad: float) -> np.ndarray:
    rate, x = wavfile.read(path)
    g = np.gcd(rate, 16000)
    x = resample_poly(x.astype(float), 16000 // g, rate // g)
    quiet = np.zeros(int(pad * 16000))
    x = np.concatenate([quiet, x / max(1, np.abs(x).max()) * 0.6, quiet])
    x += np.random.default_rng(1).normal(0, 1e-4, len(x))
    return np.round(x * 32767).astype("<i2")


def align(items: list[tuple[str, list[str]]]) -> list[list[tuple[float, float]] | None]:
    """(WAV file, its words) -> (begin, end) of each word in seconds; None where that failed."""
    pad, result = 0.3, [None] * len(items)
    wanted = {w for _, ws in items for w in ws}
    with tempfile.TemporaryDirectory() as d:
        with open(DICTIONARY, errors="replace") as f, open(f"{d}/dict", "w") as out:
            out.writelines(x for x in f if re.sub(r"\(\d+\)$", "", x.split(" ", 1)[0]) in wanted)
        with open(f"{d}/list", "w") as f:
            f.writelines(f"u{n}\n" for n in range(len(items)))
        for n, (path, ws) in enumerate(items):
            for_recogniser(path, pad).tofile(f"{d}/u{n}.raw")
            with open(f"{d}/u{n}.fsg", "w") as f:
                f.write(f"FSG_BEGIN u{n}\nNUM_STATES {len(ws) + 1}\nSTART_STATE 0\nFINAL_STATE {len(ws)}\n")
                f.writelines(f"TRANSITION {i} {i + 1} 1.0 {w}\n" for i, w in enumerate(ws))
                f.write("FSG_END\n")
        options = dict(adcin="yes", cepdir=d, cepext=".raw", ctl=f"{d}/list", fsgctl=f"{d}/list", fsgdir=d)
        options |= dict(fsgext=".fsg", hmm=ACOUSTIC_MODEL, dict=f"{d}/dict", hypseg=f"{d}/words", cmn="batch")
        options |= dict(remove_silence="no", remove_noise="no", bestpath="no", logfn="/dev/null")
        options |= dict(beam="1e-200", pbeam="1e-200", wbeam="1e-200")
        subprocess.run(
            ["pocketsphinx_batch", *(x for k, v in options.items() for x in ("-" + k, v))], check=True
        )
        with open(f"{d}/words") as f:
            for line in f:  # uN S . T . A . L . (first frame, score, score, word)... last frame
                name, fields = line.split()[0], line.split()[9:]
                frames = [int(x) for x in fields[::4]]
                heard = [re.sub(r"\(\d+\)$", "", w) for w in fields[3::4]]
                spans = [(w, a / 100 - pad, b / 100 - pad) for w, a, b in zip(heard, frames, frames[1:])]
                spans = [s for s in spans if s[0][0] not in "<[+("]
                if [s[0] for s in spans] == items[int(name[1:])][1]:
                    result[int(name[1:])] = [s[1:] for s in spans]
    return result


# ---------------------------------------------------------------- flite, which tells its times
def flite(voice: str, text: str, *options: str, out: str = "none") -> list[str]:
    command = ["flite", "-voice", voice, *options, "-t", text, "-o", out]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@functools.cache
def phones_of(voice: str, word: str) -> int:
    return sum(p != "pau" for p in flite(voice, re.sub("[^A-Za-z']", "", word), "-ps"))


def flite_times(voice: str, text: str, out: str = "none"):
    """(begin, end) of each word in seconds, length; None if its phones are not those of its words."""
    phones = [(p, float(t)) for p, t in (x.split(":") for x in flite(voice, text, "-psdur", out=out))]
    spans, k = [], 0
    for word in text.split():
        count = phones_of(voice, word)
        while phones[k][0] == "pau":
            k += 1
        if k + count >= len(phones) or any(p == "pau" for p, _ in phones[k : k + count]):
            return None
        spans.append((phones[k - 1][1] if k else 0.0, phones[k + count - 1][1]))
        k += count
    return (spans, phones[-1][1]) if all(p == "pau" for p, _ in phones[k:]) else None


def check_alignment(sentences: list[str]):
    with tempfile.TemporaryDirectory() as d:
        known = [(s, flite_times("slt", s, f"{d}/{i}.wav")) for i, s in enumerate(sentences)]
        items = [(f"{d}/{i}.wav", re.findall("[a-z']+", s.lower())) for i, s in enumerate(sentences)]
        found = align(items)
    e = [a[1] - b[1] for (_, t), f in zip(known, found) if t and f for a, b in zip(f, t[0])]
    size = np.abs(np.array(e))
    print(
        f"forced alignment against flite, {len(e)} words: ends differ by {1000 * size.mean():.0f} ms in the mean, "
        f"{1000 * np.quantile(size, 0.95):.0f} ms at p95"
    )


# ---------------------------------------------------------------- answers
def ends_of_words(text: str) -> list[int]:
    return [len(text[: m.end()].encode()) for m in re.finditer(r"\S+", text)]


def entry(voice: str, text: str, rows: int, spans, chunks) -> dict:
    ends = [round(s[1] * ROWS_PER_SECOND, 1) for s in spans]
    return dict(
        voice=voice,
        text=text,
        rows=rows,
        chunks=chunks,
        words=list(map(list, zip(ends_of_words(text), ends))),
        begin=round(spans[0][0] * ROWS_PER_SECOND, 1),
    )


def spoken_sentences(sentences: list[str]) -> list[dict]:
    result = []
    for i, s in enumerate(sentences):
        for v in VOICES:
            times = flite_times(v, s)
            if times is not None:
                rows = round(times[1] * ROWS_PER_SECOND)
                result.append(entry(v, s, rows, times[0], []) | dict(group=i))
    return result


def answers(model: str, questions: str, out: str) -> list[dict]:
    import torch
    from tinyomni import TinyOmni, read_wav, write_wav

    torch.set_num_threads(1)
    omni, rng, made = TinyOmni(model), random.Random(5), []
    asked = [read_wav(os.path.join(questions, q["file"])) for q in json.load(open(f"{questions}/list.json"))]
    repeat = ["repeat after me " + corpus.sentence(rng) for _ in range(REPEATED)]
    for question in [*asked, *TYPED, *repeat]:
        omni.reset()
        text, sound = omni.ask(question)
        known = np.cumsum([len(b.text.encode()) for b in omni.bursts]).tolist()
        path = os.path.join(out, f"{len(made)}.wav")
        write_wav(path, sound)
        made.append((path, text, [[len(c.rows), known[c.burst]] for c in omni.chunks]))
    recogniser, result = Recogniser(), []
    spans = align([(path, plain_words(text)) for path, text, _ in made])
    for i, ((path, text, chunks), s) in enumerate(zip(made, spans)):
        rate, sound = wavfile.read(path)
        said = edits(plain_words(text), recogniser.hear(sound, rate)) <= len(plain_words(text)) / 3
        if s is None or not said or len(s) != len(text.split()):
            print("left out:", text)
            continue
        result.append(entry("model", text, sum(c[0] for c in chunks), s, chunks) | dict(group=i))
    return result


# ---------------------------------------------------------------- fit
def fit(table: list[dict]):
    """Rows from the end of a word to the end of the next, by its letters and the punctuation between them."""
    x, y = [], []
    for a in table:
        before, row, pause = 0, a["begin"], 0
        for end, at in a["words"]:
            word = a["text"].encode()[before:end].decode()
            x.append([sum(c.isalpha() for c in word), pause])
            y.append(at - row)
            before, row, pause = end, at, word[-1] in ".,;:!?"
    (letter, pause), *_ = np.linalg.lstsq(np.array(x, float), np.array(y), rcond=None)
    begin = np.median([a["begin"] for a in table])
    tail = np.median([a["rows"] - a["words"][-1][1] for a in table])
    print(
        f"{len(table)} answers, {len(y)} words: {letter:.2f} rows per letter, a pause is {pause / letter:.1f} letters, "
        f"{begin:.0f} rows before, {tail:.0f} behind"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "questions", "sentences", "out"):
        p.add_argument(name)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    with open(a.sentences) as f:
        sentences = f.read().splitlines()
    check_alignment(sentences)
    table = answers(a.model, a.questions, a.out) + spoken_sentences(sentences)
    for voice in ["model", *VOICES]:
        print(voice, end=": ")
        fit([t for t in table if t["voice"] == voice and t["group"] % 2 == 0])
    held_out = [t for t in table if t["group"] % 2]
    for t in table:
        del t["group"], t["begin"]
    for name, rows in (("heard", table), ("held_out", held_out)):
        with open(os.path.join(a.out, f"{name}.json"), "w") as f:
            f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
