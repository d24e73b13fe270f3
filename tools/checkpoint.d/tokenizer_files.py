"""Synthetic tokenizers with the published vocabulary sizes and ids of special tokens.

The published tokenizers are not ours to copy. These read English in about as many tokens: byte-level BPE with merges for the
words of words.txt, and WordPiece with the same words. What is left of the vocabularies is filled with made-up words of two
syllables ("bami", "BaMi"); the fillers of the first are words of the second, so that random words from the language model
become about as many tokens of the speech model as English does.
"""
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator

LANGUAGE_TOKENS = 151643  # of the model; the added tokens follow
SPEECH_TOKENS = 21128
FIXED_IDS = {"user": 872, "assistant": 77091, "<unk>": 128244}

ADDED = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> "
    "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <image> </image> <ref> </ref> <box> "
    "</box> <quad> </quad> <point> </point> <slice> </slice> <image_id> </image_id> <unit> </unit> <asr> </asr> <query> "
    "</query> <|audio_start|> <|audio|> <|audio_end|> <|spk_bos|> <|spk|> <|spk_eos|> <|tts_bos|> <|tts_eos|> <|listen|> "
    "<|speak|> <|interrupt|> <|vad_start|> <|vad_end|> <reserved_43> <reserved_53>").split()
NOT_SPECIAL = {"<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
               "<|repo_name|>", "<|file_sep|>"}
BERT_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
SPEECH_ADDED = (
    "[Sasr] [Pasr] [Easr] [Stts] [Ptts] [Etts] [Sbreak] [Pbreak] [Ebreak] [uv_break] [v_break] [lbreak] [llbreak] [undefine] "
    "[laugh] [spk_emb] [empty_spk] [music] [pure]").split() + [
        f"[{kind}_{n}]" for kind, count in (("break", 8), ("laugh", 3), ("oral", 10), ("speed", 10)) for n in range(count)]

# Qwen2's: contractions, words with what stands before them, single digits, runs of signs, line ends, white space.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PAIRS = ("th he in er an re on at en nd es or te ed is it al ar st to nt ng se as ou le ve co me de ri ro ic ne ea ra ce "
         "li").split()
ENDINGS = "ing ion tion ent ment ness able ally ight ers est ful less ous ity ist ish".split()
SIGNS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", " '", "...", "--", '."', ' "', "?\"", "\n\n", "  ", "    "]


def words() -> list[str]:
    text = (pathlib.Path(__file__).parent / "words.txt").read_text(encoding="utf-8")
    return list(dict.fromkeys(text.split()))


def syllables() -> list[str]:
    return [a + b for a in "bdfghjklmnprstvwz" for b in "aeiou"]


def made_up() -> Iterator[str]:
    """All words of two syllables, then of three."""
    for length in (2, 3):
        yield from map("".join, itertools.product(syllables(), repeat=length))


@functools.cache
def byte_alphabet() -> list[str]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the other 68 for U+0100 onwards."""
    printable = [b for b in range(256) if 0x21 <= b <= 0x7E or (b >= 0xA1 and b != 0xAD)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in set(printable) else chr(next(others)) for b in range(256)]


def in_letters(text: str) -> str:
    return "".join(byte_alphabet()[b] for b in text.encode())


class Merges:
    """Byte-pair merges so that each text that is added becomes one token, in the order added."""

    def __init__(self) -> None:
        self.rank: dict[tuple[str, str], int] = {}

    def encode(self, letters: str) -> list[str]:
        pieces = list(letters)
        while True:
            ranks = [(self.rank[pair], i) for i, pair in enumerate(zip(pieces, pieces[1:])) if pair in self.rank]
            if not ranks:
                return pieces
            at = min(ranks)[1]
            pieces[at:at + 2] = [pieces[at] + pieces[at + 1]]

    def add(self, text: str) -> None:
        pieces = self.encode(in_letters(text))
        while len(pieces) > 1:
            self.rank[(pieces[0], pieces[1])] = len(self.rank)
            pieces[:2] = [pieces[0] + pieces[1]]


def language_merges() -> list[tuple[str, str]]:
    merges = Merges()
    for text in [*PAIRS, *(" " + chr(c) for c in range(ord("a"), ord("z") + 1)), *ENDINGS, *SIGNS]:
        merges.add(text)
    for word in words():
        capital = word[0].upper() + word[1:]
        for text in dict.fromkeys((" " + word, word, " " + capital, capital)):
            merges.add(text)
    return list(merges.rank)


def language_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    alphabet = byte_alphabet()
    # In the order of the letters, not of the bytes: "!" is 0, a line end 198.
    ids = {letter: n for n, letter in enumerate(sorted(alphabet))}
    taken = set(FIXED_IDS.values())
    free = (n for n in itertools.count(len(ids)) if n not in taken)
    for token in dict.fromkeys(a + b for a, b in merges):
        ids[token] = FIXED_IDS[token] if token in FIXED_IDS else next(free)
    for token, number in FIXED_IDS.items():
        ids.setdefault(token, number)
    for token in language_fillers():
        if len(ids) == LANGUAGE_TOKENS:
            break
        if token not in ids:
            ids[token] = next(free)
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def language_fillers() -> Iterator[str]:
    two = list(itertools.islice(made_up(), len(syllables()) ** 2))
    for capitals in range(16):
        for word in two:
            yield "Ġ" + "".join(c.upper() if capitals >> n & 1 else c for n, c in enumerate(word))
    for ending in ENDINGS:
        yield from ("Ġ" + word + ending for word in two)


def added_token(content: str, number: int, special: bool) -> dict:
    return dict(id=number, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=special)


def tokens_decoder(added: list[dict]) -> dict:
    return {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}


def write_json(path: pathlib.Path, value: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def language_tokenizer(merges: list[tuple[str, str]], vocabulary: dict[str, int], added: list[dict]) -> dict:
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    split = dict(type="Split", pattern={"Regex": SPLIT}, behavior="Isolated", invert=False)
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=dict(type="NFC"),
        pre_tokenizer=dict(type="Sequence", pretokenizers=[split, byte_level]),
        post_processor=byte_level, decoder=byte_level,
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix="", end_of_word_suffix="",
                   fuse_unk=False, byte_fallback=False, ignore_merges=False, vocab=vocabulary,
                   merges=[f"{a} {b}" for a, b in merges]))


def write_language(folder: pathlib.Path) -> None:
    merges = language_merges()
    vocabulary = language_vocabulary(merges)
    added = [added_token("<unk>", FIXED_IDS["<unk>"], True)]
    added += [added_token(token, LANGUAGE_TOKENS + n, token not in NOT_SPECIAL) for n, token in enumerate(ADDED)]
    write_json(folder / "tokenizer.json", language_tokenizer(merges, vocabulary, added))
    write_json(folder / "vocab.json", vocabulary, indent=None)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    write_json(folder / "added_tokens.json", {t["content"]: t["id"] for t in added[1:]})
    special = dict(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>")
    more = [t["content"] for t in added if t["special"] and t["content"] not in special.values()]
    write_json(folder / "special_tokens_map.json", special | dict(additional_special_tokens=more))
    write_json(folder / "tokenizer_config.json", special | dict(
        add_prefix_space=False, additional_special_tokens=more, added_tokens_decoder=tokens_decoder(added),
        clean_up_tokenization_spaces=False, errors="replace", model_max_length=131072, split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer"))


def speech_pieces() -> Iterator[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    signs = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡¿–—‘’“”…、。！，：；？"
    yield from signs
    yield from "0123456789" + letters
    yield from ("##" + c for c in letters + "0123456789")
    yield from (word.lower() for word in words())
    yield from ("##" + piece for piece in [*PAIRS, *ENDINGS, *syllables()])
    yield from PAIRS + syllables()
    yield from map(chr, range(0x4E00, 0x4E00 + 3000))
    yield from made_up()


def speech_vocabulary() -> dict[str, int]:
    ids = dict(BERT_SPECIAL) | {f"[unused{n}]": n for n in range(1, 100)}
    for piece in speech_pieces():
        if len(ids) == SPEECH_TOKENS:
            break
        ids.setdefault(piece, len(ids))
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def write_speech(folder: pathlib.Path) -> None:
    added = [added_token(token, number, True) for token, number in BERT_SPECIAL.items()]
    added += [added_token(token, SPEECH_TOKENS + n, True) for n, token in enumerate(SPEECH_ADDED)]
    write_json(folder / "tokenizer.json", dict(
        version="1.0", truncation=None, padding=None, added_tokens=added,
        normalizer=dict(type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
        pre_tokenizer=dict(type="BertPreTokenizer"), post_processor=None,
        decoder=dict(type="WordPiece", prefix="##", cleanup=True),
        model=dict(type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100,
                   vocab=speech_vocabulary())))
    special = dict(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
                   additional_special_tokens=SPEECH_ADDED)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | dict(
        added_tokens_decoder=tokens_decoder(added), do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True,
        model_max_length=1000000, tokenizer_class="BertTokenizer"))
