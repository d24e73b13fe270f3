"""What the recogniser hears in the Python reference's answers: tests/fixtures/questions/heard.json.

    python make_heard.py QUESTIONS_DIR REFERENCE_ANSWERS_DIR

REFERENCE_ANSWERS_DIR comes from reference_answers.py. Stored so that the tests can hold the elements' sound to the reference's
without PyTorch.
"""

import argparse
import json
import os

from recogniser import Recogniser
from scipy.io import wavfile


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("questions")
    p.add_argument("answers")
    a = p.parse_args()
    recogniser, heard = Recogniser(), {}
    for row in json.load(open(os.path.join(a.answers, "answers.json"))):
        rate, samples = wavfile.read(os.path.join(a.answers, row["wav"]))
        heard[row["file"]] = " ".join(recogniser.hear(samples, rate))
    with open(os.path.join(a.questions, "heard.json"), "w") as file:
        json.dump(dict(sorted(heard.items())), file, indent=0)
        file.write("\n")


if __name__ == "__main__":
    main()
