"""Sessions of the language model: templates, turns, bursts of three tokens, interruption. Greedy.

compatibility "upstream" follows upstream's streaming code flaw for flaw, "none" is what this project does
instead:

                         none                                        upstream
  token id 0 ("!")       kept                                        dropped from the text
  max_new                exact                                       counted per burst, so up to 2 more
  interruption           cache cut back to the token that completes  cache keeps all that was generated,
                         what was heard                              except the last sampled token
  no system prompt       the user's turn opens the session           the first chunk becomes a message of its
                                                                     own
"""

from dataclasses import dataclass

import torch

from model import Model

SYSTEM_PROMPT = "You are a helpful assistant. You can accept audio and text input and output voice and text."
CHUNK = 16000  # samples of an encoder chunk
MIN_CHUNK = 321  # a shorter piece makes no embedding
BURST = 3  # tokens per burst
GROUP = 25  # embeddings between <|audio_start|> and <|audio_end|>


@dataclass
class Burst:
    text: str  # what is to be said: nothing from <|tts_eos|> on
    ids: list[int]  # sampled tokens, stop token included
    speaker: torch.Tensor | None = None  # hidden state at <|spk|>; first burst only
    finish: str = ""  # "", "stop" or "length"


def speakable(text: str) -> str:
    return text.split("<|tts_eos|>")[0]


class Conversation:
    def __init__(
        self,
        model: Model,
        compatibility: str = "none",
        system_prompt: str = SYSTEM_PROMPT,
    ):
        self.m, self.upstream, self.system_prompt = model, compatibility == "upstream", system_prompt
        t = model.tokenizer.token_to_id
        self.stop_ids = {t("<|im_end|>"), t("<|endoftext|>")}
        self.audio_start, self.audio_end, self.unk, self.spk = (
            t(s) for s in ("<|audio_start|>", "<|audio_end|>", "<unk>", "<|spk|>")
        )
        self.reset()

    def reset(self):
        self.fed: list[int] = []  # every id in the LLM's cache, in order; audio embeddings appear as <unk>
        self.cache = self.m.llm.empty_cache()
        self.audio_cache = None
        self.first = True  # nothing was read yet
        self.new_turn = True  # the next input opens a user turn
        self.generated = self.completed = False
        self.answer: list[int] = []  # tokens sampled in the running or last answer
        self.answer_begin = 0  # length of the cache where they begin
        self.pending: list[int] = []  # tokens that belong to the context but are not in the cache yet

    # ---------------------------------------------------------------- input
    def encode(self, text: str) -> list[int]:
        return self.m.tokenizer.encode(text, add_special_tokens=False).ids

    def _feed(self, parts: list) -> torch.Tensor:
        """Runs ids (lists) and embeddings (tensors) through the LLM in one pass."""
        x = []
        for p in parts:
            self.fed += p if isinstance(p, list) else [self.unk] * len(p)
            x.append(self.m.embed(p) if isinstance(p, list) else p)
        return self.m.run_llm(torch.cat(x), self.cache)

    def _groups(self, embeddings: torch.Tensor) -> list:
        out = []
        for i in range(0, len(embeddings), GROUP):
            out += [[self.audio_start], embeddings[i : i + GROUP], [self.audio_end]]
        return out

    def _turn_prefix(self) -> str:
        """What stands before the user's content; also reads the system prompt."""
        if not self.new_turn:
            return ""
        if self.first and self.system_prompt:
            self.read_system()
        self.first = self.new_turn = False
        if not self.generated:
            return "<|im_start|>user\n"
        return ("" if self.completed else "<|tts_eos|>") + "<|im_end|>\n<|im_start|>user\n"

    def read_system(self, reference_audio: torch.Tensor | None = None, suffix: str = ""):
        """First message of a session. Its role is "user", as upstream's."""
        parts = [self.encode("<|im_start|>user\n" + self.system_prompt)]
        if reference_audio is not None:
            parts += self._groups(self.m.encode_audio(reference_audio, None)[2])
            parts += [self.encode(suffix + "<|im_end|>\n")]
        else:
            parts = [self.encode("<|im_start|>user\n" + self.system_prompt + suffix + "<|im_end|>\n")]
        self.first = False
        self._feed(parts)

    def read_embeddings(self, embeddings: torch.Tensor):
        """Audio embeddings of one chunk as part of the user's turn."""
        if self.first and not self.system_prompt and self.upstream:  # wrapped as a message of its own
            self.first, self.audio_cache = False, None
            self._feed(
                [self.encode("<|im_start|>user\n"), *self._groups(embeddings), self.encode("<|im_end|>\n")]
            )
            return
        prefix = self.encode(self._turn_prefix())
        prefix, self.pending = self.pending + prefix, []
        self._feed(([prefix] if prefix else []) + self._groups(embeddings))

    def read_audio(self, x: torch.Tensor, trace=None) -> int:
        """PCM at 16 kHz, chunk by chunk; returns the number of chunks. trace(index, mel, encoder states,
        embeddings)
        """
        n = 0
        for i in range(0, len(x), CHUNK):
            chunk = x[i : i + CHUNK]
            if len(chunk) < MIN_CHUNK:
                break
            mel, states, embeddings, self.audio_cache = self.m.encode_audio(chunk, self.audio_cache)
            if trace is not None:
                trace(n, mel, states, embeddings)
            self.read_embeddings(embeddings)
            n += 1
        return n

    def read_text(self, text: str):
        """A typed message, or a part of one."""
        if self.first and not self.system_prompt and self.upstream:
            self.first = False
            self._feed([self.encode("<|im_start|>user\n" + text + "<|im_end|>\n")])
            return
        ids, self.pending = self.pending + self.encode(self._turn_prefix() + text), []
        self._feed([ids])

    # ---------------------------------------------------------------- answer
    def generate(self, max_new: int = 512, trace=None):
        """Greedy answer as Bursts. Lazy: the LLM runs only as far as bursts are taken.

        trace: dict that receives "logits" (list of tensors), one per sampled token.
        """
        self.new_turn, self.generated, self.completed, self.audio_cache = True, True, False, None
        prompt = self.encode("<|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>")
        ids, self.pending = self.pending + prompt, []
        h = self._feed([ids])
        speaker = h[ids.index(self.spk, len(ids) - len(prompt))]
        self.answer, self.answer_begin = [], len(self.fed)
        held, burst, said_all = [], [], False
        while True:
            logits = self.m.text_logits(h[-1])
            if trace is not None:
                trace.setdefault("logits", []).append(logits)
            token = int(logits.argmax())
            burst.append(token)
            self.answer.append(token)
            stop = token in self.stop_ids
            full = not self.upstream and len(self.answer) >= max_new
            if stop or full or len(burst) == BURST:
                text, held = self._burst_text(held + burst)
                said = "" if said_all and not self.upstream else speakable(text)
                said_all = said_all or "<|tts_eos|>" in text
                finish = "stop" if stop else "length" if len(self.answer) >= max_new else ""
                if finish and not self.upstream:
                    self.completed = stop
                yield Burst(said, burst, speaker, finish)
                speaker, burst = None, []
                if finish:
                    self.completed = stop
                    return
            h = self._feed([[token]])

    def _burst_text(self, ids: list[int]) -> tuple[str, list[int]]:
        """Text of the tokens, and the ids of an incomplete character at the end, which wait for the next
        burst.
        """
        end = len(ids)
        while end and self.m.tokenizer.decode(ids[:end], skip_special_tokens=False).endswith("\ufffd"):
            end -= 1
        return self._decode(ids[:end]), ids[end:]

    def _decode(self, ids: list[int]) -> str:
        keep = [i for i in ids if i not in self.stop_ids and (i != 0 or not self.upstream)]
        return self.m.tokenizer.decode(keep, skip_special_tokens=False)

    def interrupt(self, heard_bytes: int = -1):
        """Ends an answer early, wherever its generator stands.

        none: keeps the fewest tokens whose text has at least heard_bytes bytes (UTF-8, without special
        tokens); negative keeps all. Upstream has no such step: it keeps what it generated, less the last
        sampled token.
        """
        if not self.generated or self.upstream:
            return
        n, bare = 0, [i for i in self.answer if i not in self.stop_ids]
        if heard_bytes < 0:
            n = len(bare)
        while n < len(bare) and len(speakable(self._decode(bare[:n])).encode()) < heard_bytes:
            n += 1
        kept = bare[:n]
        if kept and kept[-1] == self.m.tokenizer.token_to_id("<|tts_eos|>"):
            kept.pop()
        in_cache = min(len(kept), len(self.fed) - self.answer_begin)
        length = self.answer_begin + in_cache
        self.fed = self.fed[:length]
        self.cache = [[k[:, :length], v[:, :length]] for k, v in self.cache]
        self.pending, self.answer, self.completed = kept[in_cache:], kept, False
