"""How fast this GPU's memory is, now, as one line of JSON (bytes per second):

    bandwidth.py [DEVICE]      cuda:0 unless given

copy: read and written, of a copy within the memory; read: of a sum over float32. Each is the median of its repetitions,
timed by events. A process of its own, so that nothing of it is left in the memory that is measured afterwards.
"""
import json
import statistics
import sys

import torch

BYTES = 4 << 30  # far more than any cache holds
REPEATS = 20


def seconds(run) -> float:
    """Median of one call."""
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    marks[-1].synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:])) / 1000


def main() -> None:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda:0")
    torch.cuda.set_device(device)
    source = torch.ones(BYTES // 4, device=device)
    target = torch.empty_like(source)
    found = dict(copy=2 * BYTES / seconds(lambda: target.copy_(source)))
    found["read"] = BYTES / seconds(lambda: torch.sum(source))
    print(json.dumps(found | dict(device=torch.cuda.get_device_name(device), bytes=BYTES, repeats=REPEATS)))


if __name__ == "__main__":
    main()
