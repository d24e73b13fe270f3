#!/usr/bin/env python3
"""Looks at the sound of answers: limits, and a spectrogram of each.

    python sound_report.py [--out DIR] [--joins N,N,...] ANSWER.wav...

Writes DIR/sound_report.json and DIR/NAME.png. Exit code 1, and a line for each, when a limit is broken:

    energy below 30 Hz and above 11.5 kHz   each < -30 dB of the whole
    sample step at chunk joins              <= 1.2 times the largest inside chunks
    clipping                                no two neighbouring samples at full scale
    mean                                    |mean| < 0.01
    peak                                    > 0.1

Joins are where the stream of a 24 kHz answer is put together: chunks of 12800 samples, each cross-faded with
the one before over 2048 samples, so both borders of each fade: 10752 + 12800 k and 12800 (k + 1). For an
answer of several segments, of which not all chunks are full, give the positions with --joins. Needs numpy,
scipy, matplotlib.
"""

import argparse
import json
import os
import sys

import matplotlib
import numpy as np
from scipy.io import wavfile

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

CHUNK, OVERLAP = 12800, 2048
LIMITS = dict(below_30_hz_db=-30.0, above_11500_hz_db=-30.0, join_step_ratio=1.2, mean=0.01, peak=0.1)


def read(path: str) -> tuple[int, np.ndarray]:
    """Mono float in [-1, 1]."""
    rate, x = wavfile.read(path)
    if x.ndim > 1:
        raise ValueError("not mono")
    if x.dtype == np.int16:
        return rate, x / 32768.0
    if x.dtype == np.int32:
        return rate, x / 2147483648.0
    if x.dtype.kind == "f":
        return rate, x.astype(np.float64)
    raise ValueError(f"samples are {x.dtype}; need 16 or 32 bit or float")


def band_db(x: np.ndarray, rate: int, low: float, high: float) -> float:
    """Energy of [low, high) Hz relative to the whole, in dB."""
    power = np.abs(np.fft.rfft(x)) ** 2
    freq = np.fft.rfftfreq(len(x), 1 / rate)
    band, whole = power[(freq >= low) & (freq < high)].sum(), power.sum()
    return float(10 * np.log10(max(band / whole, 1e-20))) if whole > 0 else -200.0


def join_steps(x: np.ndarray, joins: list[int]) -> tuple[float, float, int, float]:
    """(largest step within one sample of a join, largest step elsewhere, position of the former, largest ratio of a
    join's step to the largest step within 1024 samples of it: a click in a quiet place shows only there)."""
    steps = np.abs(np.diff(x))  # steps[i] is between samples i and i + 1
    at_join = np.zeros(len(steps), bool)
    for j in joins:
        at_join[max(j - 2, 0) : j + 1] = True
    if not at_join.any():
        return 0.0, float(steps.max(initial=0)), -1, 0.0
    local = 0.0
    for j in joins:
        near = slice(max(j - 1024, 0), j + 1024)
        around = steps[near][~at_join[near]].max(initial=0)
        local = max(local, steps[max(j - 2, 0) : j + 1].max(initial=0) / max(around, 1e-4))
    where = int(np.argmax(np.where(at_join, steps, -1)))
    return float(steps[where]), float(steps[~at_join].max(initial=0)), where, float(local)


def examine(path: str, joins: list[int] | None) -> dict:
    rate, x = read(path)
    if len(x) == 0:
        return dict(file=path, broken=["holds no samples"])
    if not np.isfinite(x).all():
        return dict(file=path, broken=["has samples that are not finite"])
    if joins is None:
        joins = [
            p for k in range(len(x) // CHUNK + 1) for p in (CHUNK - OVERLAP + k * CHUNK, CHUNK * (k + 1))
        ]
    at_join, inside, where, local = join_steps(x, [j for j in joins if 0 < j < len(x)])
    full = np.abs(x) >= 32767 / 32768
    r = dict(
        file=path,
        rate=rate,
        seconds=round(len(x) / rate, 3),
        below_30_hz_db=round(band_db(x, rate, 0, 30), 1),
        above_11500_hz_db=round(band_db(x, rate, 11500, rate), 1),
        join_step=round(at_join, 5),
        inside_step=round(inside, 5),
        join_step_ratio=round(at_join / max(inside, 1e-9), 3),
        join_at=where,
        join_step_local_ratio=round(local, 3),
        mean=round(float(x.mean()), 6),
        peak=round(float(np.abs(x).max()), 4),
        clipped=int((full[1:] & full[:-1]).sum()),
    )
    broken = []
    if rate != 24000:
        broken.append(f"sampling rate is {rate}, not 24000")
    if r["below_30_hz_db"] >= LIMITS["below_30_hz_db"]:
        broken.append(f"energy below 30 Hz is {r['below_30_hz_db']} dB of the whole (limit -30)")
    if r["above_11500_hz_db"] >= LIMITS["above_11500_hz_db"]:
        broken.append(f"energy above 11.5 kHz is {r['above_11500_hz_db']} dB of the whole (limit -30)")
    if r["join_step_ratio"] > LIMITS["join_step_ratio"]:
        broken.append(
            f"step of {at_join:.4f} at the join at sample {where}, {r['join_step_ratio']} times the "
            "largest inside chunks (limit 1.2)"
        )
    if r["clipped"]:
        broken.append(f"{r['clipped']} pairs of clipped samples")
    if abs(r["mean"]) >= LIMITS["mean"]:
        broken.append(f"mean is {r['mean']} (limit 0.01)")
    if r["peak"] <= LIMITS["peak"]:
        broken.append(f"peak is {r['peak']} (limit 0.1)")
    return r | dict(broken=broken)


def draw(path: str, joins: list[int] | None, out: str):
    rate, x = read(path)
    if len(x) < 512 or not np.isfinite(x).all():
        return
    figure, (wave, spectrum) = pyplot.subplots(
        2, 1, figsize=(10, 6), sharex=True, height_ratios=(1, 2), layout="constrained"
    )
    t = np.arange(len(x)) / rate
    wave.plot(t, x, linewidth=0.4)
    wave.set_ylabel("amplitude")
    wave.set_title(os.path.basename(path))
    x = x + np.random.default_rng(0).normal(0, 1e-6, len(x))  # digital silence has no logarithm
    _, _, _, image = spectrum.specgram(x, NFFT=512, Fs=rate, noverlap=384, vmin=-140, vmax=-30, cmap="magma")
    spectrum.set_xlabel("s")
    spectrum.set_ylabel("Hz")
    figure.colorbar(image, ax=spectrum, label="dB/Hz")
    for j in joins if joins is not None else range(CHUNK - OVERLAP, len(x), CHUNK):
        wave.axvline(j / rate, color="gray", linewidth=0.5, linestyle=":")
    figure.savefig(out, dpi=90)
    pyplot.close(figure)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("wav", nargs="+")
    p.add_argument("--out", default=".", help="folder of the report (default: here)")
    p.add_argument(
        "--joins",
        type=lambda s: [int(n) for n in s.split(",")],
        help="sample positions, instead of the usual ones",
    )
    p.add_argument("--no-pictures", action="store_true")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    rows = []
    for path in a.wav:
        try:
            row = examine(path, a.joins)
            if not a.no_pictures:
                draw(path, a.joins, os.path.join(a.out, os.path.splitext(os.path.basename(path))[0] + ".png"))
        except (OSError, ValueError) as e:
            row = dict(file=path, broken=[f"cannot be read: {e}"])
        rows.append(row)
        for b in row["broken"]:
            print(f"FAILED {path}: {b}")
    good = [r for r in rows if "peak" in r]
    if good:
        worst = dict(
            below_30_hz_db=max(r["below_30_hz_db"] for r in good),
            above_11500_hz_db=max(r["above_11500_hz_db"] for r in good),
            join_step_ratio=max(r["join_step_ratio"] for r in good),
            join_step_local_ratio=max(r["join_step_local_ratio"] for r in good),
            mean=max((r["mean"] for r in good), key=abs),
            lowest_peak=min(r["peak"] for r in good),
            highest_peak=max(r["peak"] for r in good),
        )
        print(f"{len(rows)} answers; worst: " + ", ".join(f"{k} {v}" for k, v in worst.items()))
    else:
        worst = {}
    with open(os.path.join(a.out, "sound_report.json"), "w") as f:
        json.dump(dict(limits=LIMITS, worst=worst, answers=rows), f, indent=1)
    sys.exit(any(r["broken"] for r in rows))


if __name__ == "__main__":
    main()
