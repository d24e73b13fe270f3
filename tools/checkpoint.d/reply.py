"""The tokens of a planted reply, read with the tokenizer files of the checkpoint that is being made."""
import json
import pathlib
import re

import tokenizer_files

SPEECH_START = 10  # speech tokens that the speech model needs to begin
# What the tokenizers split plain text at: Qwen2's rule for words and signs, BERT's for the same.
LANGUAGE_WORDS = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+|\d| ?[^\s\w]+|\s+")
SPEECH_WORDS = re.compile(r"\w+|[^\w\s]")


class LanguageTokenizer:
    def __init__(self, folder: pathlib.Path) -> None:
        self._ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        self._merges = tokenizer_files.Merges()
        self._merges.rank = {tuple(line.split(" ")): n for n, line in enumerate(lines)}
        tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        self._added = {token["content"]: token["id"] for token in tokens}
        self._letters = {number: letters for letters, number in self._ids.items()}

    def id(self, added_token: str) -> int:
        return self._added[added_token]

    def encode(self, text: str) -> list[int]:
        """Plain text: no added tokens in it."""
        words = LANGUAGE_WORDS.findall(text)
        return [self._ids[piece] for word in words for piece in self._merges.encode(tokenizer_files.in_letters(word))]

    def text(self, ids: list[int]) -> str:
        alphabet = {letter: byte for byte, letter in enumerate(tokenizer_files.byte_alphabet())}
        return bytes(alphabet[letter] for i in ids for letter in self._letters[i]).decode(errors="replace")


class SpeechTokenizer:
    def __init__(self, folder: pathlib.Path) -> None:
        file = folder / "assets/chattts_tokenizer/tokenizer.json"
        self._pieces = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]

    def count(self, text: str) -> int:
        return sum(self._count_word(word) for word in SPEECH_WORDS.findall(text.lower()))

    def _count_word(self, word: str) -> int:
        """WordPiece: the longest piece that fits, again and again; a word that cannot be cut is one unknown token."""
        at = count = 0
        while at < len(word):
            prefix = "##" if at else ""
            end = next((e for e in range(len(word), at, -1) if prefix + word[at:e] in self._pieces), None)
            if end is None:
                return 1
            at, count = end, count + 1
        return count


def describe_start(language: LanguageTokenizer, speech: SpeechTokenizer, ids: list[int]) -> str:
    for n in range(1, len(ids) + 1):
        count = speech.count(language.text(ids[:n]))
        if count >= SPEECH_START:
            return f"the first {n} are {count} tokens of the speech model, which begins with {SPEECH_START}"
    return f"they are {count} tokens of the speech model, which waits for the end of so few"
