"""Reading safetensors headers as strictly as elements/engine does; writing files tensor by tensor."""
import json
import math
import os
import pathlib
import struct
from dataclasses import dataclass
from typing import BinaryIO

MAX_HEADER = 100_000_000
WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
          "U64": 8, "F64": 8}


class FormatError(Exception):
    """The file is not safetensors, or not whole."""


@dataclass(frozen=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def unique_pairs(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise FormatError(f"header has the key \"{next(n for n in names if names.count(n) > 1)}\" twice")
    return found


def parse_entry(name: str, value: object) -> Entry:
    where = f'tensor "{name}"'
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise FormatError(f"{where}: dtype {dtype!r} is not supported")
    if not isinstance(shape, list) or not all(map(is_count, shape)) or len(shape) > 16:
        raise FormatError(f"{where}: shape {shape!r} makes no sense")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)) or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets {offsets!r} make no sense")
    wanted = math.prod(shape) * WIDTHS[dtype]
    if wanted != offsets[1] - offsets[0]:
        raise FormatError(f"{where}: shape and dtype need {wanted} bytes, data_offsets give {offsets[1] - offsets[0]}")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def parse_header(text: bytes) -> dict[str, Entry]:
    """Offsets still count from the end of the header."""
    if not text.startswith(b"{"):
        raise FormatError('header does not start with "{"')
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"header is not valid JSON: {e}") from e
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("__metadata__ holds something else than strings")
    return {name: parse_entry(name, value) for name, value in header.items()}


def check_contiguous(entries: dict[str, Entry], data_bytes: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "inside another tensor" if entry.begin < at else "after a hole"
            raise FormatError(f'tensor "{name}" begins at byte {entry.begin} of the data, {what}')
        if entry.end > data_bytes:
            raise FormatError(f'tensor "{name}" ends at byte {entry.end} of the data, which holds {data_bytes}; '
                              "the file is cut short")
        at = entry.end
    if at != data_bytes:
        raise FormatError(f"{data_bytes - at} bytes follow the last tensor")


def read_header(path: pathlib.Path) -> dict[str, Entry]:
    """The tensors of a file. Raises FormatError or OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise FormatError(f"{size} bytes, too short for a safetensors file")
        length = struct.unpack("<Q", head)[0]
        if length > min(MAX_HEADER, size - 8):
            if head.startswith(b"PK\x03\x04") or head[0] == 0x80:
                raise FormatError("a pickle, which can run code when it is read; `tools/checkpoint convert` converts Vocos.pt")
            if head.startswith(b"version "):
                raise FormatError("a Git LFS pointer, not the file itself; `tools/checkpoint fetch` gets the file")
            raise FormatError(f"header size {length} is more than the file holds ({size} bytes); it is cut short or "
                              "not safetensors")
        entries = parse_header(file.read(length))
    check_contiguous(entries, size - 8 - length)
    return {n: Entry(e.dtype, e.shape, e.begin + 8 + length, e.end + 8 + length) for n, e in entries.items()}


class Writer:
    """Writes PATH.part and renames it when all is written and on the disk: tensor after tensor in the order given, or piece
    by piece by whoever opens `part` and writes at `offsets`."""

    def __init__(self, path: pathlib.Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        self._path, self.part = path, path.with_name(path.name + ".part")
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, (dtype, shape) in tensors.items():
            size = math.prod(shape) * WIDTHS[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # keeps the data aligned
        begin = 8 + len(text)
        self.offsets = {name: begin + header[name]["data_offsets"][0] for name in tensors}  # bytes from the start of the file
        self._written, self._end = 0, begin + at
        self._file: BinaryIO = self.part.open("wb")
        self.write(struct.pack("<Q", len(text)) + text)
        self._file.flush()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.count(len(data))

    def count(self, size: int) -> None:
        """Somebody else has written `size` bytes."""
        self._written += size

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None and self._written == self._end:
            self.part.replace(self._path)
            return
        self.part.unlink()
        if kind is None:
            raise AssertionError(f"{self._path}: {self._written} bytes written, {self._end} promised")
