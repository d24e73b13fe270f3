"""A result of tools/bench as a picture."""
import figures
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

PANELS = [("ttfb_ms", "time to first sound (ms)"), ("rtf", "time / seconds of speech")]


def spread(axes, report: dict, key: str, title: str) -> None:
    """Each turn a point; the median with its 95 % interval beside them."""
    names = [name for name in report["turns"] if key in report["summary"][name]]
    for x, name in enumerate(names):
        values = [v for turn in report["turns"][name] if (v := figures.value(turn, key)) is not None]
        offsets = [x + 0.24 * ((i % 9) / 8 - 0.5) for i in range(len(values))]
        axes.plot(offsets, values, "o", markersize=3, alpha=0.4, color=f"C{x}")
        s = report["summary"][name][key]
        axes.errorbar(x + 0.26, s["median"], [[s["median"] - s["low"]], [s["high"] - s["median"]]], fmt="s", capsize=4,
                      color=f"C{x}")
        axes.annotate(f"{s['median']:.4g}", (x + 0.32, s["median"]), va="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.2)
    axes.set_ylim(bottom=0)
    axes.set_title(title)


def parts(axes, found: dict) -> None:
    """Where the elements' time to the first sound goes: medians."""
    left = 0.0
    for n, part in enumerate(figures.PARTS):
        if s := found.get(f"parts_ms.{part}"):
            axes.barh(0, s["median"], left=left, label=f"{part} {s['median']:.1f} ms", color=f"C{n}")
            left += s["median"]
    axes.set_yticks([])
    axes.set_title("elements: parts of the time to first sound")
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def draw(report: dict, path: str) -> None:
    figure = pyplot.figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, len(PANELS), height_ratios=[4, 1])
    for n, (key, title) in enumerate(PANELS):
        spread(figure.add_subplot(grid[0, n]), report, key, title)
    parts(figure.add_subplot(grid[1, :]), report["summary"].get("elements", {}))
    m = report["machine"]
    figure.suptitle(f"{m['gpu'] or m['cpu']}, commit {m['commit']}", fontsize=9)
    figure.savefig(path, dpi=110)
