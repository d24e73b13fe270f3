"""Upstream's way of answering, as a program: eager PyTorch with Hugging Face's modules, for comparison with the elements
on the same machine, checkpoint and questions.

    python tools/baseline/baseline.py --model DIR [--device cuda:0] --text "Hi, how are you?" --text ... [QUESTION.wav...]

Takes the questions of minicpmo-ask and prints the fields of minicpmo-ask --json, as one JSON array: typed questions are one
conversation, each sound file is a conversation of its own. The first turn warms up and should not count.

What is upstream's: the algorithm, in the order and with the waiting that it has.
    - system prompt, question and answer prompt are separate passes of the language model, the first two computing logits
      that nobody reads; a spoken question is encoded and read second by second;
    - the answer comes from generate(max_new_tokens=3), again and again, with temperature, top-k, top-p and repetition
      penalty of transformers;
    - the speech model runs 25 eager steps for each 10 tokens of text, with a new mask for every step, weight-normed heads,
      top-p and top-k of transformers, and the host looking for the end of speech after every step;
    - codec and vocoder decode 29 rows for each 25 new ones, and the first chunk of sound waits for the second (--early: it
      does not);
    - all of it takes turns in one thread.
What is not: the code, which is ours and shares the text handling with tools/tiny/reference; transformers 5.17.0 (upstream's
4.44.2 runs too); the caches stay DynamicCache objects where upstream converts tuples in every call; the audio encoder's
layers are called from here; sound is cross-faded on the host; --max-codes ends speech at exactly so many codes.
In bfloat16 the vocoder stays float32, as upstream; the speech model follows --speech-precision (bfloat16 in upstream's
server, float32 in its examples).

    ttfb_ms        from the question handed in (spoken: its last chunk, the ones before being read already) to the first
                   samples on the host
    first_word_ms  to the first text of the answer
    rtf            time to the last samples / seconds of speech; below 1 is faster than speech
    steady_rtf     time from the first samples to the last / seconds of speech
    worst_chunk, underrun_ms, token_ms   as minicpmo-ask
    mean_ms        host time of each: first_burst (answer prompt and three tokens), token, speech_step, vocoder_chunk
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tiny/reference")]

import torch  # noqa: E402
import transformers  # noqa: E402
from conversation import CHUNK, MIN_CHUNK, SYSTEM_PROMPT  # noqa: E402
from networks import Networks  # noqa: E402
from speech import MAX_CODES  # noqa: E402
from streaming import Answer, Clock, Session  # noqa: E402
from tinyomni import read_wav, write_wav  # noqa: E402

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RATE = 24000


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hand_in_text(session: Session, text: str) -> float:
    """Reads the question; returns when the last of it was handed in."""
    synchronize(session.n.device)
    begin = time.perf_counter()
    session.read_text(text)
    return begin


def hand_in_sound(session: Session, path: str) -> float:
    sound = read_wav(path)
    last = max(0, (len(sound) - MIN_CHUNK) // CHUNK * CHUNK)  # begin of the last chunk that is long enough
    session.read_audio(sound[:last])
    synchronize(session.n.device)
    begin = time.perf_counter()
    session.read_audio(sound[last:])
    return begin


def gaps(times: list[float], samples: list[int]) -> dict[str, float]:
    """How evenly the sound comes: the longest wait for a chunk in its own durations, and how long playing stops."""
    worst = max(((b - a) * RATE / n for a, b, n in zip(times, times[1:], samples[1:])), default=0.0)
    stopped, before = 0.0, 0
    for ready, n in zip(times, samples):
        stopped += max(0.0, ready - times[0] - before / RATE - stopped)
        before += n
    return dict(worst_chunk=worst, underrun_ms=stopped * 1000)


def memory(device: torch.device) -> dict[str, int]:
    used = dict(host_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used["gpu_memory_mib"] = (total - free) >> 20
    return used


class Program:
    def __init__(self, options: argparse.Namespace):
        self.options, begin = options, time.perf_counter()
        precision = options.precision or ("bfloat16" if options.device.startswith("cuda") else "float32")
        speech = options.speech_precision or precision
        self.networks = Networks(options.model, options.device, PRECISIONS[precision], PRECISIONS[speech])
        synchronize(self.networks.device)
        self.load_ms = (time.perf_counter() - begin) * 1000
        print(
            f"torch {torch.__version__}, transformers {transformers.__version__}, {options.device}, {precision}, "
            f"speech model {speech}, loaded in {self.load_ms / 1000:.1f} s",
            file=sys.stderr,
        )

    def session(self) -> Session:
        session = Session(self.networks, self.options.temperature)
        if self.options.system_prompt:
            session.read_system(self.options.system_prompt)
        return session

    def turn(self, session: Session, question: str, hand_in: Callable[[Session, str], float], wav: str | None) -> dict:
        o, times, sound = self.options, [], []
        session.clock = Clock()
        begin = hand_in(session, question)
        answer = Answer(session, o.temperature, o.max_codes, o.early)
        for piece in answer.pieces(o.max_new_tokens):
            times.append(time.perf_counter())
            sound.append(piece)
        samples = [len(piece) for piece in sound]
        result = dict(question=question, text=answer.text, first_word_ms=-1.0, ttfb_ms=-1.0, rtf=-1.0)
        result |= dict(audio_seconds=sum(samples) / RATE, chunks=len(sound), codes=len(answer.codes))
        if answer.first_word is not None:
            result["first_word_ms"] = (answer.first_word - begin) * 1000
        if times:
            seconds = result["audio_seconds"]
            result |= dict(ttfb_ms=(times[0] - begin) * 1000, rtf=(times[-1] - begin) / seconds)
            result |= dict(steady_rtf=(times[-1] - times[0]) / seconds, **gaps(times, samples))
        result |= dict(token_ms=session.clock.token_ms(), mean_ms=session.clock.mean_ms(), load_ms=self.load_ms)
        if wav:
            write_wav(wav, torch.cat(sound) if sound else torch.zeros(0), RATE)
            rows = torch.tensor(answer.codes, dtype=torch.int16)  # below 626
            pathlib.Path(wav + ".codes").write_bytes(rows.numpy().astype("<u2").tobytes())
            result["wav"] = wav
        return result | memory(self.networks.device)

    def turns(self) -> Iterator[dict]:
        o = self.options
        session = self.session() if o.text else None
        for n, text in enumerate(o.text):
            wav = os.path.join(o.output_dir, f"typed_{n}.wav") if o.output_dir else None
            yield self.turn(session, text, hand_in_text, wav)
        for path in o.questions:
            wav = os.path.join(o.output_dir, pathlib.Path(path).stem + ".wav") if o.output_dir else None
            yield self.turn(self.session(), path, hand_in_sound, wav)


def command_line() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=str(HERE.parent / "tiny/model"), help="checkpoint (default: the small one)")
    p.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="cpu or cuda:N")
    p.add_argument("--precision", choices=PRECISIONS, help="default: bfloat16 on CUDA, float32 on the CPU")
    p.add_argument("--speech-precision", choices=PRECISIONS, help="of the speech model (default: as --precision)")
    p.add_argument("--text", action="append", default=[], help="a typed question; several are one conversation")
    p.add_argument("--system-prompt", default=SYSTEM_PROMPT, help="what the model is told first")
    p.add_argument("--max-codes", type=int, default=MAX_CODES, help=f"of a segment (default {MAX_CODES})")
    p.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (default 512)")
    p.add_argument(
        "--temperature",
        type=float,
        default=-1,
        help="of the language model, and a factor on the speech model's; 0 is greedy, -1 as the checkpoint says (default)",
    )
    p.add_argument("--early", action="store_true", help="send what is final of the first chunk at once")
    p.add_argument("--runs", type=int, default=1, help="ask everything so many times (default 1)")
    p.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    p.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    p.add_argument("--output-dir", help="write sound (WAV) and codes (WAV.codes, uint16, rows of 4) here")
    p.add_argument("questions", nargs="*", help="16 kHz mono WAV files")
    options = p.parse_args()
    if not options.text and not options.questions:
        p.error("name a sound file, or use --text")
    return options


@torch.inference_mode()
def main():
    options = command_line()
    transformers.logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    program = Program(options)
    results = [turn for _ in range(options.runs) for turn in program.turns()]
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
