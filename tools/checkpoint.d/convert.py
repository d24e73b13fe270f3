"""assets/Vocos.pt (a pickle) to assets/Vocos.safetensors, in a process of its own that cannot reach the network.

A pickle can run code when it is read. torch.load(weights_only=True) allows tensors and plain containers only; it was broken
twice (CVE-2025-32434, fixed in torch 2.6; CVE-2026-24747, fixed in 2.10), so an older torch is refused, and nothing here ever
reads a file with weights_only=False.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys

import layout

WORKER = pathlib.Path(__file__).with_name("convert_worker.py")
MAX_BYTES = 2_000_000_000
REFUSED = 3  # the worker's exit status for a file it says something about


def isolation() -> list[str]:
    """A command that runs another without a network; empty where the system does not allow it."""
    unshare = shutil.which("unshare")
    for options in (["--net"], ["--user", "--map-root-user", "--net"]):
        if unshare and subprocess.run([unshare, *options, "true"], capture_output=True).returncode == 0:
            return [unshare, *options]
    return []


def convert(folder: pathlib.Path, source: pathlib.Path | None, force: bool) -> int:
    source, target = source or folder / "assets/Vocos.pt", folder / "assets/Vocos.safetensors"
    try:
        expected = layout.vocos_tensors(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, layout.ConfigError) as e:
        print(f"{folder}/config.json: {e}", file=sys.stderr)
        return 1
    if target.exists() and not force:
        print(f"{target} is there already; --force makes it anew", file=sys.stderr)
        return 1
    if not source.is_file():
        print(f"{source}: no such file; `tools/checkpoint fetch` gets it", file=sys.stderr)
        return 1
    if source.stat().st_size > MAX_BYTES:
        print(f"{source}: {source.stat().st_size} bytes is too much for Vocos (54 MB)", file=sys.stderr)
        return 1
    guard = isolation()
    if not guard:
        print("unshare is not allowed here: reading without isolation from the network", file=sys.stderr)
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")}
    target.parent.mkdir(parents=True, exist_ok=True)
    run = subprocess.run([*guard, sys.executable, "-I", WORKER, source.absolute(), target.absolute()], text=True,
                         input=json.dumps(expected), env=environment, capture_output=True)
    if run.returncode == 0:
        print(f"{target}: {run.stdout.strip()}")
        return 0
    target.with_name(target.name + ".part").unlink(missing_ok=True)
    if run.returncode == REFUSED:
        print(f"{source}: refused: {run.stdout.strip()}", file=sys.stderr)
    else:
        print(f"{source}: the converter failed ({run.returncode}):\n{run.stderr.strip()}", file=sys.stderr)
    return 1
