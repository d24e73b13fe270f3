"""For each WAV file given: the words that the recogniser hears in it, one line per file. Needs numpy, scipy and pocketsphinx."""
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(os.environ["SOURCE"]) / "tools/tiny/evaluate"))
from recogniser import Recogniser  # noqa: E402
from scipy.io import wavfile  # noqa: E402

recogniser = Recogniser()
for name in sys.argv[1:]:
    rate, samples = wavfile.read(name)
    print(" ".join(recogniser.hear(samples, rate)))
