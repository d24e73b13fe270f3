"""Upstream's way of answering, as a program: eager PyTorch with Hugging Face's modules, for comparison with the elements
on the same machine, checkpoint and questions.

    python tools/baseline/baseline.py --model DIR [--device cuda:0] --text "Hi, how are you?" --text ... [QUESTION.wav...]

Each question is a session of its own; the first one warms up and says so ("warm_up": true). Prints one JSON array with
the fields of minicpmo-ask --json.

What is upstream's: the algorithm, in the order and with the waiting that it has.
    - system prompt, question and answer prompt are three passes of the language model, the first two computing
      logits that nobody reads; a spoken question is encoded and read second by second;
    - the answer comes from generate(max_new_tokens=3), again and again, with temperature, top-k, top-p and repetition
      penalty of transformers;
    - the speech model runs in eager steps with a new mask each, weight-normed heads, top-p and top-k of transformers,
      and the host looks for the end of speech after every step; 25 steps for each 10 tokens of text;
    - codec and vocoder decode 29 rows again for each 25 new ones, one chunk at a time;
    - all of it takes turns in one thread, and the first chunk of sound waits for the second (--early: it does not).
What is not: the code, which is ours and shares the text handling with tools/tiny/reference; transformers 5.17.0 (4.44.2
runs too: upstream's); the key-value caches stay DynamicCache objects between calls where upstream converts tuples; the
audio encoder's layers are called from here; the sound is cross-faded on the host; --max-codes ends speech exactly.
In bfloat16 the vocoder stays float32, as upstream; the speech model follows --speech-precision (upstream's server:
bfloat16; its examples: float32).

    ttfb_ms        from the question handed in (typed: all of it; spoken: its last chunk, the ones before being read
                   already) to the first samples on the host
    first_word_ms  to the first text of the answer
    rtf            time to the last samples / seconds of speech; below 1 is faster than speech
    steady_rtf     time from the first samples to the last / seconds of speech
"""

import argparse
import json
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tiny/reference")]

import torch  # noqa: E402
import transformers  # noqa: E402
from networks import Networks  # noqa: E402
from streaming import CHUNK, MAX_CODES, MIN_CHUNK, Answer, Clock, Session  # noqa: E402
from tinyomni import read_wav, write_wav  # noqa: E402

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RATE = 24000


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hand_in(session: Session, question: str, typed: bool) -> float:
    """Reads the question; returns when the last of it was handed in."""
    if typed:
        synchronize(session.n.device)
        begin = time.perf_counter()
        session.read_text(question)
        return begin
    sound = read_wav(question)
    last = max(0, (len(sound) - MIN_CHUNK) // CHUNK * CHUNK)  # begin of the last chunk that is long enough
    session.read_audio(sound[:last])
    synchronize(session.n.device)
    begin = time.perf_counter()
    session.read_audio(sound[last:])
    return begin


def ask(networks: Networks, question: str, typed: bool, options: argparse.Namespace) -> dict:
    clock = Clock()
    session = Session(networks, options.temperature, clock)
    session.read_system(options.system_prompt) if options.system_prompt is not None else session.read_system()
    begin = hand_in(session, question, typed)
    answer, times, sound = Answer(session, options.temperature, options.max_codes, options.early), [], []
    for piece in answer.pieces(options.max_new_tokens):
        times.append(time.perf_counter())
        sound.append(piece)
    samples = sum(len(p) for p in sound)
    seconds = samples / RATE
    result = dict(
        question=question,
        text=answer.text,
        first_word_ms=(answer.first_word - begin) * 1000 if answer.first_word else -1,
        ttfb_ms=(times[0] - begin) * 1000 if times else -1,
        audio_seconds=seconds,
        rtf=(times[-1] - begin) / seconds if times else -1,
        steady_rtf=(times[-1] - times[0]) / seconds if times else -1,
        codes=len(answer.codes),
        **clock.milliseconds_each(),
    )
    if options.output_dir:
        name = "typed" if typed else pathlib.Path(question).stem
        result["wav"] = os.path.join(options.output_dir, name + ".wav")
        write_wav(result["wav"], torch.cat(sound) if sound else torch.zeros(0), RATE)
        rows = torch.tensor(answer.codes, dtype=torch.int16)  # codes are below 626
        pathlib.Path(result["wav"] + ".codes").write_bytes(rows.numpy().astype("<u2").tobytes())
    return result


def command_line() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=str(HERE.parent / "tiny/model"), help="checkpoint (default: the small one)")
    p.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    p.add_argument("--precision", choices=PRECISIONS, help="default: bfloat16 on CUDA, float32 on the CPU")
    p.add_argument("--speech-precision", choices=PRECISIONS, help="of the speech model (default: as --precision)")
    p.add_argument("--text", action="append", default=[], help="a typed question; may be given several times")
    p.add_argument("--system-prompt", help="what the model is told first")
    p.add_argument("--max-codes", type=int, default=MAX_CODES, help=f"of an answer (default {MAX_CODES})")
    p.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (default 512)")
    p.add_argument(
        "--temperature", type=float, default=-1,
        help="of the language model, and a factor on those of the speech model; 0: greedy; default: as the checkpoint says",
    )
    p.add_argument("--early", action="store_true", help="send what is final of the first chunk at once")
    p.add_argument("--no-warm-up", action="store_true", help="do not mark the first question as the warm-up")
    p.add_argument("--runs", type=int, default=1, help="times that all questions are asked (default 1)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    p.add_argument("--output-dir", help="write answers (WAV) and codes (uint16, rows of 4) here")
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
    default = "bfloat16" if options.device.startswith("cuda") else "float32"
    precision = options.precision or default
    begin = time.perf_counter()
    networks = Networks(
        options.model, options.device, PRECISIONS[precision], PRECISIONS[options.speech_precision or precision]
    )
    synchronize(networks.device)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {options.device} {precision}, "
        f"loaded in {time.perf_counter() - begin:.1f} s",
        file=sys.stderr,
    )
    asked = [(t, True) for t in options.text] + [(q, False) for q in options.questions]
    results = []
    for question, typed in asked * options.runs:
        results.append(ask(networks, question, typed, options))
        if len(results) == 1 and not options.no_warm_up:
            results[0]["warm_up"] = True
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
