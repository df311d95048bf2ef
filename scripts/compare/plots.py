"""Plots of a comparison, as SVG: rates and latencies of each case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scripts.compare.ratios import OURS, spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scripts.compare.cases import Case
    from scripts.compare.rounds import Sample

COLOURS: Final = {
    OURS: "#0b6e99",
    "redis": "#d1495b",
    "redis + WAIT 1": "#8d2f3c",
    "redis MSET/MGET": "#edae49",
    "etcd": "#66717e",
    "memcached": "#b8c0c8",
}
BAR: Final = 0.8
MISSING: Final = "plots: not drawn, they need the Python package matplotlib: make bench installs it"


def draw(samples: Sequence[Sample], cases: Sequence[Case], out: Path, stem: str) -> list[str]:
    """Write two plots; their file names.

    Raises:
        ImportError: there is no matplotlib here.
    """
    import matplotlib.figure
    import matplotlib.style

    matplotlib.rcParams["svg.hashsalt"] = "ringkv"  # the same figures give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    measured = {sample.case for sample in samples}
    shown = [case.name for case in cases if case.name in measured][::-1]
    names = [name for name in COLOURS if any(sample.entrant == name for sample in samples)]
    by = {(case, name): of(samples, case, name) for case in shown for name in names}
    files = []
    for title, drawer in (("rates", points), ("latencies", spans)):
        size = (9, 1.2 + 0.62 * len(shown))
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for place, case in enumerate(shown):
            there = [name for name in names if by[case, name]]
            for number, name in enumerate(there):
                height = BAR / len(there)
                middle = place + BAR / 2 - height * (number + 0.5)
                drawer(axes, middle, height, COLOURS[name], by[case, name])
        axes.set_yticks(range(len(shown)), shown)
        axes.set_xscale("log")
        axes.grid(axis="x", which="both", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        handles = [axes.barh(0, 0, color=COLOURS[name], label=name) for name in names]
        figure.legend(handles=handles, ncols=len(names), loc="outside upper center", frameon=False)
        axes.set_xlabel(
            "operations (keys) a second: median of the rounds, line from the least to the most"
            if drawer is points
            else "ms: from p50 to p99 (medians of the rounds)"
        )
        file = f"{stem}-{title}.svg"
        figure.savefig(out / file, metadata={"Date": None})
        files.append(file)
    return files


def of(samples: Sequence[Sample], case: str, name: str) -> list[Sample]:
    """One entrant's of one case."""
    return [sample for sample in samples if sample.case == case and sample.entrant == name]


def points(axes: Any, middle: float, height: float, colour: str, samples: list[Sample]) -> None:
    """The rate, with its spread."""
    rate = spread(sample.per_second for sample in samples)
    axes.hlines(middle, rate.least, rate.most, color=colour, linewidth=2)
    axes.plot(rate.median, middle, "o", color=colour, markersize=6)


def spans(axes: Any, middle: float, height: float, colour: str, samples: list[Sample]) -> None:
    """From the median to the 99th percentile."""
    p50_ms = spread(sample.p50_ms for sample in samples).median
    p99_ms = spread(sample.p99_ms for sample in samples).median
    axes.barh(middle, p99_ms - p50_ms, height * 0.7, left=p50_ms, color=colour)
