"""The speaker vector that text-to-speech uses when there is no language model before it.

    python make_default_speaker.py MODEL_DIR [OUT]

Writes the language model's hidden state at <|spk|> of the answer to a typed "hello" (default system prompt)
as raw little-endian float32, hidden_size values, to MODEL_DIR/assets/default_speaker.f32.
"""

import argparse
import os

import torch

from conversation import Conversation
from model import Model


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("out", nargs="?")
    a = p.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        c = Conversation(Model(a.model))
        c.read_text("hello")
        bursts = list(c.generate())
    out = a.out or os.path.join(a.model, "assets", "default_speaker.f32")
    with open(out, "wb") as f:
        f.write(bursts[0].speaker.float().numpy().astype("<f4").tobytes())
    print(f"{out}: {bursts[0].speaker.numel()} values; the answer was: {''.join(b.text for b in bursts)}")


if __name__ == "__main__":
    main()
