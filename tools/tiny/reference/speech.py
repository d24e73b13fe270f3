"""Streaming speech: text bursts -> codes (SpeechDecoder) -> sound (Stitcher). Greedy.

compatibility "upstream" follows upstream's streaming code flaw for flaw, "none" is what this project does
instead:

                         none                                          upstream
  digits and "*"         every burst; words stay apart                 not the first; "2" | "5" -> "twofive"
  empty reply            nothing is said                               [Stts][spk][Etts] is spoken
  continuation prefix    carries the last five ids                     decodes and tokenises them again
  rest after a cut       always spoken                                 lost when nothing speakable follows it
  300 tokens and more    cut before, at a word border                  truncated to 300
  end of speech while    what was not given to the decoder yet is      ends the reply
  text still arrives     spoken in a continuation segment
  segment join           cross-faded like any other window             2048 samples are heard twice
"""

import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Iterable, Iterator

import torch

from model import Model

SLICE = 10  # text tokens per prefill
CALL = 25  # code rows per call
MIN_NEW = 10  # no end of speech in the first steps of a call
CUT_FROM = 120  # text tokens from which a sentence end starts a new segment
KEEP_TEXT = 5  # text tokens and
KEEP_CODES = 50  # code rows that a continuation segment starts with
MAX_CODES = 2048
OVERLAP = 2048  # samples
WINDOW_BACK = 4  # code rows that are decoded again with the next window
SENTENCE_ENDS = ".。!?！？"
ENGLISH = "zero one two three four five six seven eight nine".split()
CHINESE = "零一二三四五六七八九"


def language(text: str) -> str:
    chinese = len(re.findall("[\u4e00-\u9fff]", text))
    return "zh" if chinese >= len(re.findall("[a-zA-Z]", text)) else "en"


def sentence_end(burst: str) -> str:
    """The character at which a segment may be cut, or "". A full stop after a digit ("1.") does not count."""
    for c in SENTENCE_ENDS:
        i = burst.find(c)
        if i < 0 or (c == "." and i > 0 and burst[i - 1].isdigit()):
            continue
        return c
    return ""


class TextNormalizer:
    """Digits become words and "*" disappears, burst by burst.

    The language is decided from the text so far at the first two bursts after the one that brings the speaker
    vector (none: at that one too). Upstream starts anew in a continuation segment, with the text the segment
    begins with.
    """

    def __init__(self, upstream: bool, segment_text: str | None = None, knows_chinese: bool = True):
        """knows_chinese: whether the speech tokenizer has Chinese digits; none says English ones if not."""
        self.upstream, self.knows_chinese, self.raw = upstream, knows_chinese, segment_text or ""
        self.bursts = 0 if segment_text is None else 1
        self.lang, self.last = "zh", "other"  # last: what the raw text ends with

    def __call__(self, burst: str) -> str:
        self.raw += burst
        if self.bursts <= 2 and not (self.upstream and self.bursts == 0):
            self.lang = language(self.raw)
            if not self.upstream and not self.knows_chinese:
                self.lang = "en"
        self.bursts += 1
        if not self.upstream:
            return self._ours(burst.replace("*", ""))
        if self.bursts == 1:
            return burst
        return re.sub(r"\d+", self._upstream_digits, burst).replace("*", "")

    def _upstream_digits(self, match) -> str:
        digits = [int(c) for c in match[0] if c in "0123456789"]
        return (
            "".join(CHINESE[d] for d in digits) if self.lang == "zh" else " ".join(ENGLISH[d] for d in digits)
        )

    def _ours(self, burst: str) -> str:
        """English words for digits are set off by one space from letters and digits beside them, also across
        bursts.
        """
        out, self.sentence_end = (
            "",
            0,
        )  # sentence_end: length of the output up to the burst's last sentence end
        for c in burst:
            english = c.isdecimal() and self.lang == "en"
            if (english and self.last != "other") or (c.isalpha() and self.last == "english digit"):
                out += " "
            if c.isdecimal():
                out += ENGLISH[int(c)] if english else CHINESE[int(c)]
                self.last = "english digit" if english else "digit"
            else:
                out += c
                if c in SENTENCE_ENDS and not (c == "." and "digit" in self.last):
                    self.sentence_end = len(out)
                self.last = "letter" if c.isalpha() else "other"
        return out


@dataclass
class Prefill:
    """One pass over text slots. before: code rows in the segment's cache by then (prefix included)."""

    segment: int
    begin: int
    ids: list[int]
    before: int


@dataclass
class Chunk:
    """One call of the decoder. rows: new code rows; burst: index of the burst that allowed it, -1 once all
    text is there.
    """

    segment: int
    rows: list[list[int]]
    burst: int
    text_tokens: int
    segment_start: bool


@dataclass
class Trace:
    prefills: list[Prefill] = field(default_factory=list)
    logits: list[list[torch.Tensor]] = field(default_factory=list)  # per segment, per step: (books, codes)
    prefix: list[torch.Tensor] = field(default_factory=list)  # states of each continuation's audio prefix
    speaker: torch.Tensor | None = None
    texts: list[str] = field(default_factory=list)  # normalised text per segment
    text_ids: list[list[int]] = field(default_factory=list)  # final text ids per segment


class SpeechDecoder:
    """One answer: take() the bursts, then iterate finish(). Each yields Chunks."""

    def __init__(
        self, model: Model, speaker: torch.Tensor, compatibility: str = "none", trace: Trace | None = None
    ):
        self.m, self.speaker, self.upstream = model, speaker, compatibility == "upstream"
        self.trace = trace or Trace()
        token = model.tts_tokenizer.token_to_id
        self.start_ids = [token("[Stts]"), token("[spk_emb]")]
        self.end_id = token("[Etts]")
        self.segment = 0

    def encode(self, text: str) -> list[int]:
        return self.m.tts_tokenizer.encode(text, add_special_tokens=False).ids

    # ---------------------------------------------------------------- network steps
    def prefill(self, begin: int, ids: list[int]):
        """Writes text slots [begin, begin + len(ids)); sees the slots before it and no audio."""
        self.trace.prefills.append(
            Prefill(self.segment, begin, ids, self.cache[0][0].shape[1] - self.m.text_slots - 2)
        )
        x = self.m.text_embedding(ids)
        if begin == 0:
            x[1] = self.m.speaker_embedding(self.speaker)
            self.trace.speaker = x[1:2].clone()
        part = [[k[:, :begin], v[:, :begin]] for k, v in self.cache]
        end = begin + len(ids)
        self.m.tts.run(x, torch.arange(begin, end), part)
        for whole, new in zip(self.cache, part):
            whole[0][:, begin:end], whole[1][:, begin:end] = new[0][:, begin:], new[1][:, begin:]

    def mask(self, past: int, new: int, text_tokens: int) -> torch.Tensor:
        """One row for all new positions: which text slots are visible depends on `past` alone."""
        slots = self.m.text_slots
        mask = torch.zeros(1, past + new)
        mask[0, min(math.ceil((past - slots) / 50) * SLICE, slots) + 2 : slots + 3] = float("-inf")
        mask[0, 2 + text_tokens + 1 : slots + 3] = float("-inf")
        return mask

    def read_prefix(self, rows: list[list[int]], text_tokens: int):
        """BOS and the code rows of the segment before, but the last, in one pass that is not causal."""
        x = torch.cat([self.m.bos_embedding(), self.m.code_embedding(rows[:-1])])
        past = self.cache[0][0].shape[1]
        positions = torch.arange(past, past + len(x))
        h = self.m.tts.run(x, positions, self.cache, self.mask(past, len(x), text_tokens))
        self.trace.prefix.append(h)

    def call(self, text_tokens: int, count: int) -> bool:
        """Up to `count` greedy code rows. Returns True at the end of speech."""
        for i in range(count):
            past = self.cache[0][0].shape[1]
            x = (
                self.m.bos_embedding()
                if past == self.m.text_slots + 2
                else self.m.code_embedding(self.codes[-1:])
            )
            h = self.m.tts.run(x, torch.tensor([past]), self.cache, self.mask(past, 1, text_tokens))
            logits = self.m.code_logits(h[0])
            if i < MIN_NEW:
                logits[:, self.m.end_of_speech] = float("-inf")
            self.trace.logits[-1].append(logits)
            row = logits.argmax(-1).tolist()
            if self.m.end_of_speech in row:
                return True
            self.codes.append(row)
        return False

    # ---------------------------------------------------------------- text of a segment
    def _ids(self) -> list[int]:
        """Text ids of the segment as its text stands now; upstream truncates."""
        ids = self.carried + self.encode(self.text)
        return ids[: self.m.text_slots] if self.upstream else ids

    def _slots(self, ids: list[int]) -> list[int]:
        """The ids of all slots up to [Etts]. A truncated text is decoded and tokenised again, and has no
        [Etts].
        """
        if len(ids) < self.m.text_slots:
            return self.start_ids + ids + [self.end_id]
        text = self.m.tts_tokenizer.decode(ids, skip_special_tokens=False)
        return self.encode("[Stts][spk_emb]" + text + "[Ptts]")

    def _add(self, burst: str):
        """Appends a burst and cuts the segment's text where it has to end."""
        before = len(self.text)
        self.text += self.normalize(burst)
        if len(self._ids()) >= CUT_FROM:
            if self.upstream:
                end = sentence_end(burst)
                at = self.text.rindex(end) + 1 if end else 0
            else:
                at = self.normalize.sentence_end and before + self.normalize.sentence_end
            if at:
                self._cut(at)
        if not self.upstream and len(self._ids()) >= self.m.text_slots:
            self._cut(self._last_border())

    def _cut(self, at: int):
        self.text, self.rest = self.text[:at], self.text[at:] + (self.rest or "")

    def _last_border(self) -> int:
        """Length of the longest text that ends with a word and fits with [Etts]."""

        def fits(at):
            return len(self.carried) + len(self.encode(self.text[:at])) < self.m.text_slots

        borders = [i for i, c in enumerate(self.text) if i and c.isspace()]
        return max(filter(fits, borders), default=0) or max(filter(fits, range(len(self.text))))

    def _speakable(self, text: str) -> bool:
        """Whether there is a word, or a part of one, that the tokenizer knows."""
        if self.upstream:
            return True
        return any(
            c.isalnum()
            for t in self.m.tts_tokenizer.encode(text, add_special_tokens=False).tokens
            if not t.startswith("[")
            for c in t
        )

    # ---------------------------------------------------------------- driver
    def speak(self, bursts: Iterable[str]) -> Iterator[Chunk]:
        """All chunks of an answer. Bursts are taken one at a time, only when they are needed."""
        stream = iter(enumerate(bursts))
        knows_chinese = self.m.tts_tokenizer.token_to_id(CHINESE[1]) is not None
        self.normalize = TextNormalizer(self.upstream, None, knows_chinese)
        self._begin([], "", [])
        self.text = self.normalize(next(stream, (0, ""))[1])  # this burst brings the speaker vector
        yield from self._run(stream)
        while self.follow is not None:
            carried, rest = self.follow
            if self.upstream:
                item = next(stream, None)
                if item is None or not item[1]:
                    return  # the rest is lost
                stream = itertools.chain([item], stream)
                rest = self.m.tts_tokenizer.decode(carried, skip_special_tokens=False) + rest
                self.normalize = TextNormalizer(True, rest)
            self.segment += 1
            self._begin(carried, rest, self.codes[-KEEP_CODES:])
            yield from self._run(stream)

    def _begin(self, carried: list[int], text: str, rows: list[list[int]]):
        self.carried, self.text, self.rest = [] if self.upstream else carried, text, None
        self.codes, self.slices, self.prefix_rows = list(rows), 0, len(rows)
        self.prefix_ids, self.cache = carried, None

    def _open(self):
        """The network's part of a segment's begin, once it is certain that there is something to say."""
        self.cache = self.m.tts.empty_cache(self.m.text_slots + 2)
        self.trace.logits.append([])
        if self.prefix_rows:
            self.prefill(0, self.start_ids + self.prefix_ids)
            self.read_prefix(self.codes, len(self.prefix_ids))

    def _chunk(self, begin: int, ids: list[int], text_tokens: int, burst: int) -> Chunk:
        """Prefills ids, if any, and makes the next code rows."""
        first = self.cache is None
        if first:
            self._open()
        if ids:
            self.prefill(begin, ids)
        known, room = len(self.codes), CALL
        if not self.upstream:
            room = min(CALL, MAX_CODES - (known - self.prefix_rows))
        self.ended = self.call(text_tokens, room)
        return Chunk(self.segment, self.codes[known:], burst, text_tokens, first and self.segment > 0)

    def _full(self) -> bool:
        """Upstream counts the carried rows, and looks only after a call."""
        return (
            len(self.codes) > MAX_CODES if self.upstream else len(self.codes) - self.prefix_rows >= MAX_CODES
        )

    def _run(self, stream) -> Iterator[Chunk]:
        """One segment. self.follow: what a continuation starts with, (last text ids, rest), or None."""
        self.follow = None
        for burst, text in stream:
            self._add(text)
            if self.rest is not None:
                break
            ids = self._ids()
            if len(ids) >= (self.slices + 1) * SLICE and self._speakable(self.text):
                begin = self.slices * SLICE + 2 if self.slices else 0
                end = min((self.slices + 1) * SLICE + 2, self.m.text_slots + 2)
                self.slices += 1
                yield self._chunk(begin, self._slots(ids)[begin:end], len(ids), burst)
                if self.ended:
                    self._end_early()
                    return
        ids = self._ids()
        if not self._speakable(self.text):
            return
        self._note(ids)
        begin, slots = self.slices * SLICE + 2 if self.slices else 0, self._slots(ids)
        yield self._chunk(begin, slots[begin : len(ids) + 3], len(ids), -1)
        while not self.ended and not self._full():
            yield self._chunk(0, [], len(ids), -1)
        if self.rest is not None and (self.ended or not self.upstream):
            self.follow = slots[len(ids) + 2 - KEEP_TEXT : len(ids) + 2], self.rest

    def _end_early(self):
        """End of speech while text still arrives. none: the text that the decoder was not given is said
        afterwards.
        """
        given, ids = self.slices * SLICE, self._ids()
        if not self.upstream and len(ids) > given:

            def fits(at):
                return len(self.carried) + len(self.encode(self.text[:at])) <= given

            self._cut(max(filter(fits, [m.start() for m in re.finditer(r"\b|$", self.text)]), default=0))
            ids = self._ids()
        self._note(ids)
        if not self.upstream:
            self.follow = ids[-KEEP_TEXT:], self.rest or ""

    def _note(self, ids: list[int]):
        self.trace.texts.append(self.text)
        self.trace.text_ids.append(ids)


class Stitcher:
    """Codes to sound: windows of new code rows and the four before them, cross-faded over 2048 samples."""

    def __init__(self, model: Model, compatibility: str = "none", trace=None, early: bool = False):
        """trace(first row, end row, mel, wave) of every window; rows count from the start of the answer.

        early: give samples out as soon as they are final; the sound is the same.
        """
        self.m, self.upstream, self.trace, self.early = model, compatibility == "upstream", trace, early
        self.codes: list[list[int]] = []
        self.held: torch.Tensor | None = (
            None  # samples not given out yet; upstream holds back the whole first window
        )

    def add(self, rows: list[list[int]], segment_start: bool = False) -> torch.Tensor:
        """The samples that are given out after this chunk; may be none."""
        begin = max(len(self.codes) - WINDOW_BACK, 0)
        self.codes += rows
        mel = self.m.codes_to_mel(self.codes[begin:])
        wave = self.m.mel_to_audio(mel)
        if self.trace is not None:
            self.trace(begin, len(self.codes), mel, wave)
        if self.held is None or (segment_start and self.upstream):
            out, self.held = self.flush(), wave
            return torch.cat([out, self._final()])
        n = min(OVERLAP, len(self.held), len(wave))
        i = torch.arange(n)
        faded = (self.held[len(self.held) - n :] * (n - i) + wave[:n] * (i + 1)) / (n + 1)
        out = torch.cat([self.held[: len(self.held) - n], faded])
        self.held = wave[n:]
        return torch.cat([out, self._final()])

    def _final(self) -> torch.Tensor:
        """Held samples that no cross-fade will touch, if they are wanted early."""
        if not self.early:
            return torch.zeros(0)
        n = max(len(self.held) - OVERLAP, 0)
        out, self.held = self.held[:n], self.held[n:]
        return out

    def flush(self) -> torch.Tensor:
        out, self.held = self.held, None
        return torch.zeros(0) if out is None else out
