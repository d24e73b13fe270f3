"""Golden probabilities of speech: silero's own model over a few recordings, noise and silence.

python make_voice_activity.py WHEEL SAMPLES_DIR OUT_DIR

WHEEL is silero_vad-6.2.3-py3-none-any.whl of PyPI. Its TorchScript model and its safetensors file hold the same
network from two trainings: the golden values are of the TorchScript model with the weights of the safetensors file.
Described in tests/fixtures/golden/README.md.
"""

import hashlib
import io
import json
import os
import sys
import zipfile

import numpy as np
import torch
from safetensors.torch import load, save_file

from tinyomni import read_wav

WHEEL_SHA256 = "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"
WINDOW = 512
RECORDINGS = ["q01_cap.wav", "q05_count.wav", "q06_repeat.wav", "q08_talk.wav"]


def load_model(path: str) -> torch.jit.ScriptModule:
    """TorchScript is code: only from the wheel that was looked at."""
    with open(path, "rb") as file:
        wheel = file.read()
    if hashlib.sha256(wheel).hexdigest() != WHEEL_SHA256:
        sys.exit(f"{path} is not the wheel of silero-vad 6.2.3")
    with zipfile.ZipFile(io.BytesIO(wheel)) as files:
        model = torch.jit.load(io.BytesIO(files.read("silero_vad/data/silero_vad.jit")))
        weights = load(files.read("silero_vad/data/silero_vad_16k.safetensors"))
    parameters = model._model.state_dict()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights.pop(stored_name(name)))
    assert not weights, weights.keys()
    return model


def stored_name(name: str) -> str:
    """The name in the safetensors file of a parameter of the TorchScript model."""
    part, kind = name.rsplit(".", 1)
    if part == "stft":
        return "stft_conv.weight"
    if part == "decoder.rnn":
        return "lstm_cell." + kind
    return ("final_conv." if part == "decoder.decoder.2" else f"conv{int(part.split('.')[1]) + 1}.") + kind


def probabilities(model: torch.jit.ScriptModule, pcm: torch.Tensor) -> torch.Tensor:
    model.reset_states()
    windows = pcm[: len(pcm) // WINDOW * WINDOW].view(-1, 1, WINDOW)
    with torch.no_grad():
        return torch.cat([model(window, 16000).view(1) for window in windows])


def noise_and_silence() -> torch.Tensor:
    """int16: a second of noise that grows from nothing to full scale, then silence."""
    random = np.random.default_rng(1)
    count = 32 * WINDOW
    noise = random.standard_normal(count) * np.geomspace(1, 32768, count)
    return torch.from_numpy(np.concatenate([noise.clip(-32768, 32767), np.zeros(count)]).astype(np.int16))


def main(wheel: str, samples: str, out: str) -> None:
    torch.set_num_threads(1)
    model = load_model(wheel)
    tensors = {}
    for name in RECORDINGS:
        pcm = read_wav(os.path.join(samples, name))
        tensors[name + ".probabilities"] = probabilities(model, pcm)
    tensors["noise.input"] = noise_and_silence()
    tensors["noise.probabilities"] = probabilities(model, tensors["noise.input"].float() / 32768)
    os.makedirs(out, exist_ok=True)
    save_file(tensors, os.path.join(out, "probabilities.safetensors"),
              metadata={"recordings": json.dumps(RECORDINGS), "wheel_sha256": WHEEL_SHA256})


if __name__ == "__main__":
    main(*sys.argv[1:])
