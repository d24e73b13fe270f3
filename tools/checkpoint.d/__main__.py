"""Checkpoints in the layout of openbmb/MiniCPM-o-2_6: make random ones, check, convert, fetch."""
import argparse
import os
import pathlib
import sys

import presets
from fetch import REPOSITORY, REVISION


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("make", help="write a random checkpoint: right in every size, its answers are noise")
    make.add_argument("--preset", choices=presets.PRESETS, required=True,
                      help="; ".join(f"{k}: {v}" for k, v in presets.PRESETS.items()))
    make.add_argument("--seed", type=int, default=1, help="the same seed gives the same bytes (default 1)")
    for part in ("llm", "audio", "tts", "vision"):
        make.add_argument(f"--{part}-layers", type=positive, metavar="N", help=f"other depth of {part}")
    make.add_argument("--endings", choices=("chance", "never", "soon"),
                      help="how likely the end tokens of words and speech are: like any other token (default without a "
                      "reply), never (default with one), or after some 3 to 100 words, for tests")
    make.add_argument("--reply", metavar="TEXT",
                      help="what the language model answers to everything, the layers being random all the same: words of "
                      "which each token comes once; the speech goes on until max-codes of minicpmotts. '': it answers with "
                      "noise (default of the small presets; of 2.6 it is a sentence of 23 words)")
    make.add_argument("--processes", type=positive, default=os.cpu_count() or 1, metavar="N",
                      help="that draw at the same time (default: one for each processor); the bytes are the same")

    check = commands.add_parser("check", help="say what is wrong and what is missing; exit status 1 if anything is")
    check.add_argument("--write-manifest", action="store_true", help="write SHA256SUMS if all is well")
    check.add_argument("--finite", action="store_true", help="also look for NaN and infinity in every value")
    check.add_argument("--quick", action="store_true", help="do not compare with SHA256SUMS")

    convert = commands.add_parser("convert", help="assets/Vocos.pt to assets/Vocos.safetensors, offline")
    convert.add_argument("--source", type=pathlib.Path, help="the pickle (default DIR/assets/Vocos.pt)")
    convert.add_argument("--force", action="store_true", help="replace assets/Vocos.safetensors")

    fetch = commands.add_parser("fetch", help="download from Hugging Face; goes on where it was cut")
    fetch.add_argument("--revision", default=REVISION, metavar="COMMIT",
                       help=f"40 hex digits, or the beginning of a commit that is looked up (default {REVISION})")
    fetch.add_argument("--repository", default=REPOSITORY)
    for command in (make, check, convert, fetch):
        command.add_argument("folder", type=pathlib.Path, metavar="DIR")
        command.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args()


def positive(text: str) -> int:
    if not 0 < int(text) <= 1024:
        raise ValueError(text)
    return int(text)


def main() -> int:
    a = arguments()
    if a.command == "make":
        import make
        layers = dict(llm=a.llm_layers, audio=a.audio_layers, tts=a.tts_layers, vision=a.vision_layers)
        reply = presets.REPLIES.get(a.preset, "") if a.reply is None else a.reply
        make.make(a.folder, a.preset, a.seed, layers, a.endings, reply, a.processes, a.quiet)
        return 0
    if a.command == "check":
        import check
        return check.check(a.folder, a.write_manifest, a.finite, a.quick, a.quiet)
    if a.command == "convert":
        import convert
        return convert.convert(a.folder, a.source, a.force)
    import fetch
    return fetch.fetch(a.folder, a.repository, a.revision, a.quiet)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
