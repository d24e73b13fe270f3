"""A random checkpoint in the published layout: deterministic, written as a stream."""
import concurrent.futures
import json
import math
import os
import pathlib
import shutil
import sys
import time

import layout
import presets
import tokenizer_files
import weights
from progress import Progress
from safetensors_io import WIDTHS, Writer

TINY = pathlib.Path(__file__).resolve().parent.parent / "tiny/model"


def write_json(path: pathlib.Path, value: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


class Maker:
    def __init__(self, folder: pathlib.Path, config: dict, seed: int, endings: str, quiet: bool) -> None:
        self._folder, self._config, self._seed = folder, config, seed
        self._rules = weights.Rules(config, endings)
        self._tensors, self._vocos = layout.checkpoint_tensors(config), layout.vocos_tensors(config)
        self._dtype = layout.dtype(config)
        self._width = WIDTHS[self._dtype]
        self.bytes = (sum(math.prod(s) for s in self._tensors.values()) * self._width
                      + 4 * sum(math.prod(s) for s in self._vocos.values()))
        self._progress = Progress(f"{folder.name}:", self.bytes, quiet)

    def _write(self, path: pathlib.Path, tensors: layout.Tensors, dtype: str, pool: concurrent.futures.Executor) -> None:
        with Writer(path, {name: (dtype, shape) for name, shape in tensors.items()}) as out:
            for name, shape in tensors.items():
                for values in weights.generate(self._seed, name, shape, dtype, self._rules, pool):
                    out.write(values.data.cast("B"))
                    self._progress.add(values.nbytes)

    def write(self, shards: int) -> None:
        sizes = {name: math.prod(shape) * self._width for name, shape in self._tensors.items()}
        files = list(layout.split(sizes, shards))
        names = [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
            for name, tensors in zip(names, files):
                self._write(self._folder / name, {t: self._tensors[t] for t in tensors}, self._dtype, pool)
            self._write(self._folder / "assets/Vocos.safetensors", self._vocos, "F32", pool)
        where = {tensor: name for name, tensors in zip(names, files) for tensor in tensors}
        write_json(self._folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))})
        self._progress.finish()


def copy_tiny(folder: pathlib.Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "preprocessor_config.json"]
    speech = [f"assets/chattts_tokenizer/{n}.json" for n in ("tokenizer", "tokenizer_config", "special_tokens_map")]
    for name in names + speech:
        shutil.copyfile(TINY / name, folder / name)


def make(folder: pathlib.Path, preset: str, seed: int, layers: dict[str, int | None], endings: str, quiet: bool) -> None:
    start = time.monotonic()
    tiny = json.loads((TINY / "config.json").read_text())
    config = presets.config(preset, tiny, layers)
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"tools/checkpoint make: {folder} is not empty; name a new directory")
    (folder / "assets/chattts_tokenizer").mkdir(parents=True, exist_ok=True)
    maker = Maker(folder, config, seed, endings, quiet)
    free = shutil.disk_usage(folder).free
    if free < maker.bytes + 100_000_000:
        sys.exit(f"tools/checkpoint make: {folder} needs {maker.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    if preset == "tiny-random":
        copy_tiny(folder)
    else:
        tokenizer_files.write_language(folder)
        tokenizer_files.write_speech(folder / "assets/chattts_tokenizer")
        write_json(folder / "preprocessor_config.json", presets.PREPROCESSOR)
    maker.write(shards=4)
    # Last: a directory without it was not finished.
    write_json(folder / "config.json", config)
    if not quiet:
        print(f"{folder}: {maker.bytes / 1e9:.2f} GB of random weights (preset {preset}, seed {seed}) in "
              f"{time.monotonic() - start:.0f} s; they answer with noise")
