"""pocketsphinx as a judge of spoken answers: its own acoustic model, the domain's words, a bigram model of
the reply texts.

Needs the Debian packages pocketsphinx and pocketsphinx-en-us.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "training"))
import corpus  # noqa: E402

ACOUSTIC_MODEL = "/usr/share/pocketsphinx/model/en-us/en-us"
DICTIONARY = "/usr/share/pocketsphinx/model/en-us/cmudict-en-us.dict"


def words(text: str) -> list[str]:
    return re.sub("[^a-z ]", " ", text.lower()).split()


def edits(a: list[str], b: list[str]) -> int:
    """Levenshtein distance in words."""
    d = list(range(len(b) + 1))
    for i, x in enumerate(a):
        p = d[:]
        d[0] = i + 1
        for j, y in enumerate(b):
            d[j + 1] = min(p[j] + (x != y), p[j + 1] + 1, d[j] + 1)
    return d[-1]


class Recogniser:
    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.dictionary, self.grammar = (os.path.join(self.folder.name, f) for f in ("dict", "lm.arpa"))
        texts = [words(t) for t in corpus.all_reply_texts(7, 6000)]
        pronunciations = defaultdict(list)
        with open(DICTIONARY, errors="replace") as f:
            for line in f:
                w, p = line.rstrip("\n").split(" ", 1)
                pronunciations[re.sub(r"\(\d+\)$", "", w)].append(p)
        with open(self.dictionary, "w") as f:
            for w in sorted({w for t in texts for w in t if w in pronunciations}):
                for i, p in enumerate(pronunciations[w]):
                    f.write(w + (f"({i + 1})" if i else "") + " " + p + "\n")
        self._write_bigrams([["<s>"] + [w for w in t if w in pronunciations] + ["</s>"] for t in texts])

    def _write_bigrams(self, sentences: list[list[str]]):
        """Bigrams with weight 0.6, interpolated with unigrams (0.4), as an ARPA file."""
        unigrams, bigrams = defaultdict(float), defaultdict(float)
        for s in sentences:
            for w in s:
                unigrams[w] += 1
            for pair in zip(s, s[1:]):
                bigrams[pair] += 1
        total = sum(unigrams.values())
        followers = defaultdict(list)
        for (x, y), c in bigrams.items():
            followers[x].append((y, c))
        with open(self.grammar, "w") as f:
            f.write(f"\\data\\\nngram 1={len(unigrams)}\nngram 2={len(bigrams)}\n\n\\1-grams:\n")
            for w in sorted(unigrams):
                f.write(f"{np.log10(unigrams[w] / total):.4f} {w} {np.log10(0.4):.4f}\n")
            f.write("\n\\2-grams:\n")
            for x in sorted(followers):
                n = sum(c for _, c in followers[x])
                for y, c in sorted(followers[x]):
                    f.write(f"{np.log10(0.6 * c / n + 0.4 * unigrams[y] / total):.4f} {x} {y}\n")
            f.write("\n\\end\\\n")

    def hear(self, x: np.ndarray, rate: int) -> list[str]:
        """Mono sound (float, any scale) -> the words heard."""
        x = np.asarray(x, dtype=np.float64)
        if rate != 16000:
            g = np.gcd(rate, 16000)
            x = resample_poly(x, 16000 // g, rate // g)
        x = x / max(1e-3, np.abs(x).max()) * 0.6
        path = os.path.join(self.folder.name, "a.wav")
        quiet = np.zeros(3000)
        wavfile.write(path, 16000, np.round(np.concatenate([quiet, x, quiet]) * 32767).astype(np.int16))
        r = subprocess.run(
            [
                "pocketsphinx_continuous",
                "-infile",
                path,
                "-hmm",
                ACOUSTIC_MODEL,
                "-dict",
                self.dictionary,
                "-lm",
                self.grammar,
                "-logfn",
                "/dev/null",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return words(r.stdout)
