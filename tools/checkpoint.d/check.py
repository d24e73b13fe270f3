"""Says what is wrong with a checkpoint and what is missing. Reads headers only, unless asked to scan the values."""
import json
import math
import pathlib
from collections import Counter

import layout
import manifest
from progress import Progress
from safetensors_io import Entry, FormatError, read_header

INDEX = "model.safetensors.index.json"
SPEECH_TOKENIZER = "assets/chattts_tokenizer/tokenizer.json"
SHOWN = 8  # of one kind of problem in one file
MODEL_SIZES = {
    "audio_config.encoder_attention_heads": ("audio_config", "encoder_attention_heads", "d_model"),
    "tts_config.num_attention_heads": ("tts_config", "num_attention_heads", "hidden_size"),
}
LANGUAGE_TOKENS = ("<|im_start|> <|im_end|> <|endoftext|> <|audio_start|> <|audio_end|> <|spk_bos|> <|spk|> <|spk_eos|> "
                   "<|tts_bos|> <|tts_eos|>").split()
SPEECH_TOKENS = {"[Stts]": None, "[spk_emb]": ("spk_emb_token_id", 21143), "[Ptts]": ("audio_bos_token_id", 21132),
                 "[Etts]": ("text_eos_token_id", 21133)}


def shortened(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class Check:
    def __init__(self, folder: pathlib.Path, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.problems: list[str] = []
        self.config: dict = {}
        self.bytes = self.tensors = 0
        self._headers: dict[str, dict[str, Entry] | None] = {}  # None: cannot be read, and that was said

    def problem(self, file: str, what: str) -> None:
        self.problems.append(f"{file}: {what}")

    def read_json(self, name: str) -> dict | None:
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return self.problem(name, "missing")
        except (OSError, ValueError, RecursionError) as e:
            return self.problem(name, f"cannot be read: {e}")
        if not isinstance(value, dict):
            return self.problem(name, "is not a JSON object")
        return value

    def header(self, name: str) -> dict[str, Entry] | None:
        if name not in self._headers:
            self._headers[name] = None
            try:
                self._headers[name] = read_header(self.folder / name)
            except FileNotFoundError:
                self.problem(name, "missing")
            except (OSError, FormatError) as e:
                self.problem(name, str(e))
        return self._headers[name]

    def run(self) -> None:
        config = self.read_json("config.json")
        if config is None:
            return
        self.config = config
        self.check_config()
        try:
            expected, kind = layout.checkpoint_tensors(config), layout.dtype(config)
            vocos = layout.vocos_tensors(config)
        except layout.ConfigError as e:
            self.problem("config.json", str(e))
            return
        self.check_weights(expected, kind)
        self.check_vocos(vocos)
        self.check_tokenizers()

    def check_config(self) -> None:
        if self.config.get("model_type") != "minicpmo":
            self.problem("config.json", f"model_type is {self.config.get('model_type')!r}, not 'minicpmo'")
        if str(self.config.get("version", "2.6")) != "2.6":
            self.problem("config.json", f"version is {self.config['version']!r}, only 2.6 is supported")
        for section in ("audio_config", "tts_config"):
            if not isinstance(self.config.get(section), dict):
                self.problem("config.json", f"{section} is missing or not an object")
        for key, (section, heads, width) in MODEL_SIZES.items():
            part = self.config.get(section)
            if isinstance(part, dict) and isinstance(part.get(heads), int) and isinstance(part.get(width), int) \
                    and (part[heads] < 1 or part[width] % part[heads]):
                self.problem("config.json", f"{key} is {part[heads]}, which does not divide {width} {part[width]}")
        tts = self.config.get("tts_config") or {}
        if isinstance(tts, dict) and tts.get("llm_dim") != self.config.get("hidden_size"):
            self.problem("config.json", f"tts_config.llm_dim is {tts.get('llm_dim')}, hidden_size "
                                        f"{self.config.get('hidden_size')}; they must be equal")

    def shards(self) -> dict[str, str] | None:
        """Tensor -> file, from the index or from the one file there is."""
        if not (self.folder / INDEX).exists() and (self.folder / "model.safetensors").exists():
            header = self.header("model.safetensors")
            return None if header is None else dict.fromkeys(header, "model.safetensors")
        index = self.read_json(INDEX)
        if index is None:
            return None
        where = index.get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) and "/" not in f and "\\" not in f
                                                  for f in where.values()):
            return self.problem(INDEX, "weight_map is not an object of file names in this directory")
        metadata = index.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        headers = [self.header(f) for f in sorted(set(where.values()))]
        found = sum(e.end - e.begin for h in headers if h is not None for e in h.values())
        if None not in headers and total is not None and total != found:
            self.problem(INDEX, f"metadata.total_size is {total}, the files hold {found} bytes")
        return where

    def check_weights(self, expected: layout.Tensors, kind: str) -> None:
        where = self.shards()
        if where is None:
            return
        for file in sorted(set(where.values())):
            header = self.header(file)
            if header is None:
                continue
            named = {t for t, f in where.items() if f == file}
            if lost := sorted(named - set(header)):
                self.problem(file, f"does not hold {shortened(lost)}, which {INDEX} places there")
            if extra := sorted(set(header) - named):
                self.problem(file, f"holds {shortened(extra)}, which {INDEX} does not place there")
            self.check_tensors(file, {t: expected.get(t) for t in header}, kind)
        missing = [t for t in expected if t not in where and t not in layout.OPTIONAL]
        for prefix, count in Counter(t.split(".")[0] for t in missing).items():
            names = [t for t in missing if t.split(".")[0] == prefix]
            self.problem("weights", f"{count} tensors of {prefix} are missing: {shortened(names)}")

    def check_tensors(self, file: str, expected: dict[str, layout.Shape | None], kind: str) -> None:
        header = self._headers[file]
        unknown = sorted(t for t, shape in expected.items() if shape is None)
        if unknown:
            self.problem(file, f"{len(unknown)} tensors do not belong to this model: {shortened(unknown)}")
        shapes = [f"{t} is {list(header[t].shape)}, config.json wants {list(s)}" for t, s in expected.items()
                  if s is not None and header[t].shape != s]
        for text in shapes[:SHOWN]:
            self.problem(file, "shape of " + text)
        if len(shapes) > SHOWN:
            self.problem(file, f"{len(shapes) - SHOWN} more shapes are wrong")
        for dtype, count in Counter(header[t].dtype for t in expected).items():
            if dtype != kind:
                names = [t for t in expected if header[t].dtype == dtype]
                self.problem(file, f"{count} tensors are {dtype}, not {kind}: {shortened(names)}")
        self.tensors += len(expected)
        self.bytes += sum(header[t].end - header[t].begin for t in expected)

    def check_vocos(self, expected: layout.Tensors) -> None:
        name = "assets/Vocos.safetensors"
        if not (self.folder / name).exists() and (self.folder / "assets/Vocos.pt").exists():
            self.problem(name, f"missing; make it from assets/Vocos.pt: tools/checkpoint convert {self.folder}")
            return
        header = self.header(name)
        if header is None:
            return
        if missing := [t for t in expected if t not in header]:
            self.problem(name, f"{len(missing)} tensors are missing: {shortened(missing)}")
        # Float32, but the small checkpoint keeps its weights in half precision.
        halves = {t for t, e in header.items() if e.dtype == "F16" and t.startswith(("backbone.", "head.out."))}
        for kind, names in (("F32", set(header) - halves), ("F16", halves)):
            self.check_tensors(name, {t: expected.get(t) for t in header if t in names}, kind)

    def check_tokenizers(self) -> None:
        tts = self.config.get("tts_config") or {}
        ids = self.token_ids("tokenizer.json", self.config.get("vocab_size"), "vocab_size")
        if ids is not None and (lost := [t for t in LANGUAGE_TOKENS if t not in ids]):
            self.problem("tokenizer.json", f"has no token {shortened(lost)}; is it of another model?")
        ids = self.token_ids(SPEECH_TOKENIZER, tts.get("num_text_tokens", 21178), "tts_config.num_text_tokens")
        for token, wanted in SPEECH_TOKENS.items() if ids is not None else ():
            if token not in ids:
                self.problem(SPEECH_TOKENIZER, f"has no token {token}; is it of another model?")
            elif wanted and ids[token] != tts.get(*wanted):
                self.problem(SPEECH_TOKENIZER, f"token {token} is {ids[token]}, tts_config.{wanted[0]} of config.json is "
                                               f"{tts.get(*wanted)}")

    def token_ids(self, name: str, limit: int | None, key: str) -> dict[str, int] | None:
        root = self.read_json(name)
        if root is None:
            return None
        try:
            ids = dict(root["model"]["vocab"]) | {t["content"]: t["id"] for t in root.get("added_tokens") or []}
            highest = max(ids.values())
        except (KeyError, TypeError, ValueError):
            return self.problem(name, "is not a tokenizer with model.vocab and added_tokens")
        if isinstance(limit, int) and highest >= limit:
            self.problem(name, f"has ids up to {highest}, but {key} of config.json is {limit}")
        return ids

    def scan(self) -> None:
        """Looks for NaN and infinity in every value of the files that could be read."""
        import numpy as np
        exponents = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00),
                     "F64": ("<u8", 0x7FF0000000000000)}
        readable = {file: header for file, header in self._headers.items() if header is not None}
        total = sum(e.end - e.begin for header in readable.values() for e in header.values())
        progress = Progress("values", total, self.quiet)
        for file, header in readable.items():
            with (self.folder / file).open("rb") as data:
                for name, entry in header.items():
                    if entry.dtype not in exponents:
                        continue
                    kind, mask = exponents[entry.dtype]
                    bad, left = 0, entry.end - entry.begin
                    data.seek(entry.begin)
                    while left > 0 and (block := data.read(min(left, 1 << 24))):
                        bits = np.frombuffer(block, kind)
                        bad += int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))
                        left -= len(block)
                        progress.add(len(block))
                    if bad:
                        self.problem(file, f"{name} holds {bad} values of {math.prod(entry.shape)} that are not finite")
        progress.finish()


def check(folder: pathlib.Path, write_manifest: bool, finite: bool, quick: bool, quiet: bool) -> int:
    """Prints the problems; 0 if there are none, else 1."""
    if not folder.is_dir():
        print(f"{folder}: no such directory")
        return 1
    inspection = Check(folder, quiet)
    inspection.run()
    if finite:
        inspection.scan()
    if not write_manifest and not quick and (folder / manifest.NAME).exists():
        inspection.problems += manifest.verify(folder, quiet)
    for line in inspection.problems:
        print(line)
    if inspection.problems:
        print(f"{folder}: {len(inspection.problems)} problem{'s' if len(inspection.problems) > 1 else ''}")
        return 1
    if write_manifest:
        print(f"{folder}/{manifest.NAME}: {manifest.write(folder, quiet)} files")
    print(f"{folder}: ok, {inspection.tensors} tensors, {inspection.bytes / 1e9:.2f} GB")
    return 0
