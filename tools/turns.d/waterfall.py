"""The waterfall of turns as a picture: a bar for each turn, a colour for each part, in the order in which they happened."""
import pathlib

import matplotlib
import records

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

MOST = 40  # turns of a run that are drawn: the last ones
# Narrower ones are not labelled.
LABELLED = 0.05


def colour(name: str):
    known = records.ORDER.index(name) if name in records.ORDER else len(records.ORDER)
    return pyplot.get_cmap("tab20")(known % 20)


def bars(axes, turns: list[dict], longest: float) -> None:
    for y, turn in enumerate(turns):
        left = 0.0
        for part in turn["parts"]:
            axes.barh(y, part["ms"], left=left, color=colour(part["part"]), height=0.75)
            if part["ms"] > LABELLED * longest:
                axes.annotate(f"{part['ms']:.0f}", (left + part["ms"] / 2, y), ha="center", va="center", fontsize=7)
            left += part["ms"]
        note = f" {left:.0f} ms" if turn["complete"] else " not heard"
        if turn["finish"] not in ("stop", "length"):
            note += f", {turn['finish']}"
        axes.annotate(note, (left, y), va="center", fontsize=8)
    axes.set_yticks(range(len(turns)), records.labels(turns), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * longest)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(runs: dict[str, list[dict]], path: str) -> None:
    shown = {name: turns[-MOST:] for name, turns in runs.items()}
    longest = max(sum(p["ms"] for p in t["parts"]) for turns in shown.values() for t in turns) or 1.0
    rows = [len(turns) for turns in shown.values()]
    figure, panels = pyplot.subplots(len(shown), 1, squeeze=False, figsize=(11, 1.6 + 0.9 * len(rows) + 0.32 * sum(rows)),
                                     height_ratios=[n + 1 for n in rows], layout="constrained")
    for axes, (name, turns) in zip(panels[:, 0], shown.items()):
        bars(axes, turns, longest)
        axes.set_title(pathlib.Path(name).name, fontsize=9, loc="left")
    panels[-1, 0].set_xlabel("ms after the user's last voiced sample")
    names = records.part_names([t for turns in shown.values() for t in turns])
    figure.legend(handles=[Patch(color=colour(n), label=n) for n in names], ncols=9, loc="outside lower center", frameon=False,
                  fontsize=8)
    figure.savefig(path, dpi=110)
