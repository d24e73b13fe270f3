"""Reads one pickle and writes safetensors; run by convert.py. Arguments: the pickle, the result. Standard input: the names
and shapes that are expected, as JSON. Prints what it did, or why it refuses (exit status 3)."""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from safetensors_io import Writer  # noqa: E402


class Refused(Exception):
    pass


def reason(error: Exception) -> str:
    """What torch found, without its advice to read the file unsafely."""
    sentences = re.split(r"(?<=[.:])\s+|\n+", str(error))
    useless = ("In PyTorch 2.6", "Re-running", "Do it only", "Weights only load failed", "Check the doc", "Please file")
    found = [s.strip() for s in sentences if s.strip() and not s.strip().startswith(useless)]
    return f"{type(error).__name__}: {' '.join(found[:2])[:300]}"


def load(path: pathlib.Path) -> dict:
    import torch
    version = tuple(map(int, re.match(r"(\d+)\.(\d+)", torch.__version__).groups()))
    if version < (2, 10):
        raise Refused(f"torch {torch.__version__} reads pickles unsafely (CVE-2026-24747); 2.10 or newer is needed")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds; every one means that the file is not what it should be
        raise Refused(f"torch.load(weights_only=True) does not accept it: {reason(e)}") from e
    if not isinstance(state, dict):
        raise Refused(f"holds a {type(state).__name__}, not a dictionary of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Refused(f"entry {name!r} is a {type(value).__name__}, not a tensor")
        if not value.is_floating_point():
            raise Refused(f"tensor {name} is {value.dtype}, not floating-point")
    return state


def compare(state: dict, expected: dict[str, list[int]]) -> None:
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or extra:
        raise Refused("is not Vocos: " + "; ".join(
            f"{what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            for names, what in ((missing, "missing"), (extra, "unknown")) if names))
    for name, shape in expected.items():
        if list(state[name].shape) != shape:
            raise Refused(f"tensor {name} is {list(state[name].shape)}, not {shape}")
        if not bool(state[name].isfinite().all()):
            raise Refused(f"tensor {name} holds values that are not finite")


def main() -> None:
    source, target = map(pathlib.Path, sys.argv[1:3])
    expected = json.load(sys.stdin)
    try:
        state = load(source)
        compare(state, expected)
    except Refused as e:
        print(e)
        sys.exit(3)
    with Writer(target, {name: ("F32", tuple(shape)) for name, shape in expected.items()}) as out:
        for name in expected:
            out.write(state[name].float().contiguous().numpy().tobytes())
    print(f"{len(expected)} tensors, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
