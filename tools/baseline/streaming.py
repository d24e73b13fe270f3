"""Upstream's streaming scheme over the networks: turns and bursts of three tokens, slices of text and calls of 25 code
rows, windows of sound. Text handling and stitching are those of tools/tiny/reference, in its mode "upstream".
"""

import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from conversation import BURST, CHUNK, GROUP, MIN_CHUNK, SYSTEM_PROMPT, Burst, speakable
from networks import Networks, layer_tensors
from sampling import TTS_TEMPERATURES
from speech import MAX_CODES, MIN_NEW, SLICE, SpeechDecoder, Stitcher
from transformers import DynamicCache
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

PROMPT = "<|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>"


class Clock:
    """Host time by part. Every part ends in a copy to the host, so the device's work is in it; only what prefill
    leaves running on the device counts for the first burst.
    """

    def __init__(self):
        self.times: dict[str, list[tuple[float, int]]] = {}  # (seconds, how many of the part)

    def add(self, part: str, begin: float, count: int):
        self.times.setdefault(part, []).append((time.perf_counter() - begin, count))

    def mean_ms(self) -> dict[str, float]:
        return {k: 1000 * sum(s for s, _ in t) / max(1, sum(n for _, n in t)) for k, t in self.times.items()}

    def token_ms(self) -> float:
        """Time per token of the fastest burst after the first; 0 if there is none."""
        return 1000 * min((s / n for s, n in self.times.get("token", [])), default=0)


class Session:
    """The language model's side of a conversation."""

    def __init__(self, networks: Networks, temperature: float = -1):
        self.n, self.clock = networks, Clock()
        token = networks.tokenizer.token_to_id
        self.stop_ids = [token("<|im_end|>"), token("<|endoftext|>")]
        self.audio_start, self.audio_end, self.unk = (
            token(t) for t in ("<|audio_start|>", "<|audio_end|>", "<unk>")
        )
        self.spk = token("<|spk|>")
        self.sampling = dict(networks.generation)
        if temperature == 0 or (temperature < 0 and not self.sampling["do_sample"]):
            self.sampling = dict(do_sample=False, repetition_penalty=self.sampling["repetition_penalty"])
        elif temperature > 0:
            self.sampling |= dict(do_sample=True, temperature=temperature)
        self.cache, self.audio_cache = DynamicCache(), None
        self.new_turn, self.generated, self.completed = True, False, False

    def encode(self, text: str) -> list[int]:
        return self.n.tokenizer.encode(text, add_special_tokens=False).ids

    def tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.n.device)

    # ---------------------------------------------------------------- input
    def prefill(self, ids: list[int], audio: torch.Tensor | None = None):
        """Reads ids; the places of <unk> take the audio embeddings. As upstream, logits are computed and left."""
        ids = self.tensor(ids)
        x = self.n.llm.model.embed_tokens(ids)
        if audio is not None:
            x[0, (ids[0] == self.unk).nonzero()[:, 0]] = audio.to(x.dtype)
        self.cache = self.n.llm(inputs_embeds=x, past_key_values=self.cache, use_cache=True).past_key_values

    def read_system(self, prompt: str = SYSTEM_PROMPT):
        self.prefill(self.encode("<|im_start|>user\n" + prompt + "<|im_end|>\n"))

    def _turn_prefix(self) -> str:
        if not self.new_turn:
            return ""
        self.new_turn = False
        if not self.generated:
            return "<|im_start|>user\n"
        return ("" if self.completed else "<|tts_eos|>") + "<|im_end|>\n<|im_start|>user\n"

    def read_text(self, text: str):
        self.prefill(self.encode(self._turn_prefix() + text))

    def read_audio(self, x: torch.Tensor):
        """PCM at 16 kHz on the host, chunk by chunk: encoded, then read by the language model."""
        for i in range(0, len(x), CHUNK):
            chunk = x[i : i + CHUNK]
            if len(chunk) < MIN_CHUNK:
                return
            embeddings, self.audio_cache = self.n.encoder(self.n.log_mel(chunk), self.audio_cache)
            ids = self.encode(self._turn_prefix())
            for row in range(0, len(embeddings), GROUP):
                count = min(GROUP, len(embeddings) - row)
                ids += [self.audio_start, *[self.unk] * count, self.audio_end]
            self.prefill(ids, embeddings)

    # ---------------------------------------------------------------- answer
    def _burst(self, ids: list[int], hidden: bool):
        """One call of generate(). ids: what is not in the cache yet.

        Before them stand stand-ins for what is, which generate() cuts off by the cache's length; they repeat the first
        of the ids, so that the repetition penalty covers this call's ids and no others, as upstream's.
        """
        past = self.cache.get_seq_length()
        given = self.tensor([ids[0]] * past + ids)
        out = self.n.llm.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            past_key_values=self.cache,
            max_new_tokens=BURST,
            use_cache=True,
            return_dict_in_generate=True,
            output_hidden_states=hidden,
            eos_token_id=self.stop_ids,
            pad_token_id=0,
            **self.sampling,
        )
        self.cache = out.past_key_values
        return out.sequences[0, given.shape[1] :].tolist(), out.hidden_states[0][-1] if hidden else None

    def generate(self, max_new: int = 512) -> Iterator[Burst]:
        """The answer, lazily: the language model runs only as far as bursts are taken."""
        self.new_turn, self.generated, self.completed, self.audio_cache = True, True, False, None
        ids, held, count = self.encode(PROMPT), [], 0
        speaker_at = ids.index(self.spk) - len(ids)
        while True:
            begin = time.perf_counter()
            new, hidden = self._burst(ids, count == 0)
            self.clock.add("token" if count else "first_burst", begin, len(new) if count else 1)
            speaker = hidden[0, speaker_at] if hidden is not None else None
            count += len(new)
            stop = new[-1] in self.stop_ids
            text, held = self._text(held + new)
            finish = "stop" if stop else "length" if count >= max_new else ""
            yield Burst(speakable(text), new, speaker, finish)
            if finish:
                self.completed = stop
                return
            ids = new[-1:]

    def _text(self, ids: list[int]) -> tuple[str, list[int]]:
        """Text of the tokens, and the ids of an incomplete character at the end, which wait for the next burst."""
        end = len(ids)
        while end and self.n.tokenizer.decode(ids[:end], skip_special_tokens=False).endswith("\ufffd"):
            end -= 1
        shown = [i for i in ids[:end] if i not in self.stop_ids and i != 0]
        return self.n.tokenizer.decode(shown, skip_special_tokens=False), ids[end:]


class EagerSpeechDecoder(SpeechDecoder):
    """The reference's driver of the speech model over Llama of transformers, one eager step after the other."""

    def __init__(self, networks: Networks, speaker: torch.Tensor, temperature: float, max_codes: int, clock: Clock):
        super().__init__(networks, speaker, "upstream")
        self.speech, self.max_codes, self.clock = networks.speech, max_codes, clock
        self.greedy = temperature == 0 or (temperature < 0 and not networks.generation["do_sample"])
        factor = temperature if temperature > 0 else 1.0
        self.temperatures = torch.tensor(TTS_TEMPERATURES, device=networks.device)[:, None] * factor
        self.warpers = (TopPLogitsWarper(0.7, min_tokens_to_keep=3), TopKLogitsWarper(20, min_tokens_to_keep=3))

    def _tensor(self, values) -> torch.Tensor:
        return torch.tensor(values, device=self.m.device)

    def _bos(self) -> torch.Tensor:
        return self.speech.emb_text(self._tensor([[self.m.audio_bos]]))

    def _run(self, stream):
        self.text_mask = None
        return super()._run(stream)

    def prefill(self, begin: int, ids: list[int]):
        """Runs the slots over a cache of those before them, and copies the new rows back."""
        x = self.speech.emb_text(self._tensor([ids]))
        if begin == 0:
            x[0, 1] = self.speech.speaker(self.speaker)
        end, part = begin + len(ids), DynamicCache()
        layers = range(self.speech.model.config.num_hidden_layers)
        if begin:
            for i in layers:
                part.update(*(t[:, :, :begin] for t in layer_tensors(self.cache, i)), i)
        positions = torch.arange(begin, end, device=self.m.device)[None]
        self.speech.model(inputs_embeds=x, position_ids=positions, past_key_values=part, use_cache=True)
        for i in layers:
            for whole, new in zip(layer_tensors(self.cache, i), layer_tensors(part, i)):
                whole[:, :, begin:end] = new[:, :, begin:end]

    def mask(self, past: int, new: int, text_tokens: int) -> torch.Tensor:
        """Additive, one row for all new positions; made anew for every step, as upstream does."""
        slots, weight = self.m.text_slots, self.speech.emb_text.weight
        lowest = torch.finfo(weight.dtype).min
        mask = torch.zeros(1, 1, 1, past + new, dtype=weight.dtype, device=weight.device)
        mask[..., min(math.ceil((past - slots) / 50) * SLICE, slots) + 2 : slots + 3] = lowest
        mask[..., 2 + text_tokens + 1 : slots + 2] = lowest
        return mask

    def _step(self, x: torch.Tensor, text_tokens: int) -> torch.Tensor:
        past, new = self.cache.get_seq_length(), x.shape[1]
        out = self.speech.model(
            inputs_embeds=x,
            position_ids=torch.arange(past, past + new, device=self.m.device)[None],
            past_key_values=self.cache,
            attention_mask=self.mask(past, new, text_tokens).expand(-1, -1, new, -1),
            use_cache=True,
        )
        return out.last_hidden_state[0]

    def read_prefix(self, rows: list[list[int]], text_tokens: int):
        self._step(torch.cat([self._bos(), self.speech.embed_codes(self._tensor(rows[:-1]))], 1), text_tokens)

    def _sample(self, logits: torch.Tensor, i: int, first: bool) -> torch.Tensor:
        """(4, codes) -> (1, 4)"""
        if not self.greedy:
            logits = logits / self.temperatures
            if not first:
                for warper in self.warpers:
                    logits = warper(None, logits)
        if i < MIN_NEW:
            logits[:, self.m.end_of_speech] = -torch.inf
        if self.greedy:
            return logits.argmax(-1)[None]
        return torch.multinomial(F.softmax(logits, -1), 1).T

    def call(self, text_tokens: int, count: int) -> bool:
        """Up to `count` code rows. Returns True at the end of speech, or when there are enough."""
        begin, rows = time.perf_counter(), []
        count = min(count, self.max_codes - (len(self.codes) - self.prefix_rows))
        row, ended = self._tensor(self.codes[-1:]), False
        for i in range(count):
            first = self.cache.get_seq_length() == self.m.text_slots + 2
            x = self._bos() if first else self.speech.embed_codes(row)
            hidden = self._step(x, text_tokens)[-1]
            logits = torch.stack([head(hidden).float() for head in self.speech.head_code])
            row = self._sample(logits, i, first)
            ended = (row == self.m.end_of_speech).any().item()  # the host waits for every step, as upstream
            if ended:
                break
            rows.append(row)
        self.codes += torch.cat(rows).tolist() if rows else []
        self.clock.add("speech_step", begin, len(rows) + ended)
        return ended or self._full()

    def _full(self) -> bool:
        return len(self.codes) - self.prefix_rows >= self.max_codes


class Answer:
    """One answer: iterate pieces(); afterwards text and codes tell what was said."""

    def __init__(self, session: Session, temperature: float, max_codes: int, early: bool):
        self.session, self.temperature, self.max_codes, self.early = session, temperature, max_codes, early
        self.text, self.codes, self.first_word = "", [], None

    def _texts(self, bursts: Iterator[Burst]) -> Iterator[str]:
        for burst in bursts:
            if burst.text and self.first_word is None:
                self.first_word = time.perf_counter()
            self.text += burst.text
            yield burst.text

    def pieces(self, max_new: int = 512) -> Iterator[torch.Tensor]:
        """Sound at 24 kHz on the host. Upstream holds the first window back until there is a second."""
        session, clock, speakers = self.session, self.session.clock, []

        def bursts():
            for burst in session.generate(max_new):
                speakers.append(burst.speaker)
                yield burst

        texts = self._texts(bursts())
        first = next(texts)
        decoder = EagerSpeechDecoder(session.n, speakers[0], self.temperature, self.max_codes, clock)
        stitcher = Stitcher(session.n, "upstream", early=self.early)

        def all_texts():
            yield first
            yield from texts

        for chunk in decoder.speak(all_texts()):
            if not chunk.rows:
                continue
            self.codes += chunk.rows
            begin = time.perf_counter()
            piece = stitcher.add(chunk.rows, chunk.segment_start)
            clock.add("vocoder_chunk", begin, 1)
            if len(piece):
                yield piece
        if len(piece := stitcher.flush()):
            yield piece
