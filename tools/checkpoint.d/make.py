"""A random checkpoint in the published layout: deterministic, written as a stream."""
import contextlib
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import time
import typing
from collections.abc import Iterator

import layout
import presets
import reply
import tokenizer_files
import weights
from progress import Progress
from safetensors_io import WIDTHS, Writer

TINY = pathlib.Path(__file__).resolve().parent.parent / "tiny/model"


def write_json(path: pathlib.Path, value: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


class Piece(typing.NamedTuple):
    file: pathlib.Path
    offset: int  # of the piece, in bytes
    name: str
    shape: layout.Shape
    dtype: str
    number: int


class PieceMaker:
    """What the processes run. Pickled once, for each of them."""

    def __init__(self, seed: int, rules: weights.Rules) -> None:
        self._seed, self._rules = seed, rules

    def __call__(self, piece: Piece) -> tuple[pathlib.Path, int]:
        data = weights.generate(self._seed, piece.name, piece.shape, piece.dtype, self._rules, piece.number)
        with piece.file.open("r+b", buffering=0) as file:
            file.seek(piece.offset)
            rest = data.data.cast("B")
            while rest:
                rest = rest[file.write(rest):]
        return piece.file, data.nbytes


maker: PieceMaker | None = None  # of this process


def start_process(made: PieceMaker) -> None:
    global maker
    maker = made
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them


def run_piece(piece: Piece) -> tuple[pathlib.Path, int]:
    return maker(piece)


class Maker:
    def __init__(self, folder: pathlib.Path, config: dict, seed: int, rules: weights.Rules, quiet: bool) -> None:
        self._folder, self._seed, self._rules = folder, seed, rules
        self._tensors, self._vocos = layout.checkpoint_tensors(config), layout.vocos_tensors(config)
        self._dtype = layout.dtype(config)
        self._width = WIDTHS[self._dtype]
        self.bytes = (sum(math.prod(s) for s in self._tensors.values()) * self._width
                      + 4 * sum(math.prod(s) for s in self._vocos.values()))
        self._progress = Progress(f"{folder.name}:", self.bytes, quiet)

    def _pieces(self, out: Writer, tensors: layout.Tensors, dtype: str) -> Iterator[Piece]:
        for name, shape in tensors.items():
            for number in range(math.ceil(math.prod(shape) / weights.PIECE)):
                offset = out.offsets[name] + number * weights.PIECE * WIDTHS[dtype]
                yield Piece(out.part, offset, name, shape, dtype, number)

    def write(self, shards: int, processes: int) -> None:
        sizes = {name: math.prod(shape) * self._width for name, shape in self._tensors.items()}
        parts = list(layout.split(sizes, shards))
        names = [f"model-{n + 1:05d}-of-{len(parts):05d}.safetensors" for n in range(len(parts))]
        files = {self._folder / name: ({t: self._tensors[t] for t in part}, self._dtype) for name, part in zip(names, parts)}
        files[self._folder / "assets/Vocos.safetensors"] = self._vocos, "F32"
        self._write_files(files, processes)
        where = {tensor: name for name, part in zip(names, parts) for tensor in part}
        write_json(self._folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))})
        self._progress.finish()

    def _write_files(self, files: dict[pathlib.Path, tuple[layout.Tensors, str]], processes: int) -> None:
        with contextlib.ExitStack() as stack:
            writers = {path: stack.enter_context(Writer(path, {name: (dtype, shape) for name, shape in tensors.items()}))
                       for path, (tensors, dtype) in files.items()}
            by_part = {out.part: out for out in writers.values()}
            pieces = [p for path, (tensors, dtype) in files.items() for p in self._pieces(writers[path], tensors, dtype)]
            made = PieceMaker(self._seed, self._rules)
            with multiprocessing.get_context("fork").Pool(processes, start_process, (made,)) as pool:
                for part, size in pool.imap_unordered(run_piece, pieces):
                    by_part[part].count(size)
                    self._progress.add(size)


def copy_tiny(folder: pathlib.Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "preprocessor_config.json"]
    speech = [f"assets/chattts_tokenizer/{n}.json" for n in ("tokenizer", "tokenizer_config", "special_tokens_map")]
    for name in names + speech:
        shutil.copyfile(TINY / name, folder / name)


def plant(folder: pathlib.Path, text: str, config: dict, quiet: bool) -> tuple[int, ...]:
    """The ids that the language model is to say one after the other, from the answer prompt's last token on."""
    language, speech = reply.LanguageTokenizer(folder), reply.SpeechTokenizer(folder)
    ids = language.encode(text)
    if (twice := next((i for i in ids if ids.count(i) > 1), None)) is not None:
        sys.exit(f"tools/checkpoint make: --reply {text!r} has the token {language.text([twice])!r} twice, and each token "
                 "can be followed by one other only; write it with different words")
    if not quiet:
        print(f"{folder}: the reply {text!r} has {len(ids)} tokens; {reply.describe_start(language, speech, ids)}")
    start, end = (language.id(token) for token in ("<|tts_bos|>", "<|tts_eos|>"))
    return start, *ids, end, config["eos_token_id"]


def make(folder: pathlib.Path, preset: str, seed: int, layers: dict[str, int | None], endings: str | None, text: str,
         processes: int, quiet: bool) -> None:
    start = time.monotonic()
    tiny = json.loads((TINY / "config.json").read_text())
    config = presets.config(preset, tiny, layers)
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"tools/checkpoint make: {folder} is not empty; name a new directory")
    (folder / "assets/chattts_tokenizer").mkdir(parents=True, exist_ok=True)
    if preset == "tiny-random":
        copy_tiny(folder)
    else:
        tokenizer_files.write_language(folder)
        tokenizer_files.write_speech(folder / "assets/chattts_tokenizer")
        write_json(folder / "preprocessor_config.json", presets.PREPROCESSOR)
    planted = plant(folder, text, config, quiet) if text else ()
    rules = weights.Rules(config, endings or ("never" if text else "chance"), planted)
    maker = Maker(folder, config, seed, rules, quiet)
    free = shutil.disk_usage(folder).free
    if free < maker.bytes + 100_000_000:
        sys.exit(f"tools/checkpoint make: {folder} needs {maker.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    maker.write(4, processes)
    # Last: a directory without it was not finished.
    write_json(folder / "config.json", config)
    if not quiet:
        answers = "the planted reply, spoken as noise" if text else "noise"
        print(f"{folder}: {maker.bytes / 1e9:.2f} GB of random weights (preset {preset}, seed {seed}) in "
              f"{time.monotonic() - start:.0f} s; they answer with {answers}")
