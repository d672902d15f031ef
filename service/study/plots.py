"""The figures of a report, drawn by matplotlib as SVG. Draws numbers; computes none."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from service.study.numbers import Numbers

# Text stays text and ids are fixed: small files, the same bytes every time.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fathom",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_BLUE, _ORANGE, _GREEN, _GREY = "#2b6cb0", "#c05621", "#2f855a", "#718096"


def draw(numbers: Numbers, folder: Path) -> list[str]:
    """Write the figures into `folder` and return their names."""
    figures = {"accuracy": _accuracy, "corrected": _corrected, "layers": _layers}
    with rc_context(_STYLE):
        for name, make in figures.items():
            make(numbers).savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    return [f"{name}.svg" for name in figures]


def _accuracy(numbers: Numbers) -> Figure:
    """Bars by family: full chain, search and random chains for the right answer, the same for the decoy."""
    groups = {name: one for name, one in numbers["groups"].items() if " " not in name}
    figure = Figure(figsize=(1.6 + 1.1 * len(groups), 3))
    axes = figure.subplots()
    bars = {
        "full chain": ([one["right"] / one["n"] for one in groups.values()], _GREY, ""),
        "search, right answer": (_shares(groups, "both", "target"), _BLUE, ""),
        "random, right answer": (_shares(groups, "random", "target"), _GREEN, ""),
        "search, decoy": (_shares(groups, "both", "decoy"), _BLUE, "////"),
        "random, decoy": (_shares(groups, "random", "decoy"), _GREEN, "////"),
    }
    for place, (label, (shares, colour, hatch)) in enumerate(bars.items()):
        at = [group + (place - 2) * 0.16 for group in range(len(groups))]
        face = "none" if hatch else colour
        axes.bar(at, [100 * share for share in shares], 0.14, color=face, edgecolor=colour, hatch=hatch, label=label)
    axes.set_xticks(range(len(groups)), [f"{name}\nn={one['n']}" for name, one in groups.items()])
    axes.set_ylabel("samples, %")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _corrected(numbers: Numbers) -> Figure:
    """Wrong samples corrected over the budget; dashed lines are the decoy."""
    figure = Figure(figsize=(4.6, 3))
    axes = figure.subplots()
    curve = numbers["curve"]
    for way, colour in zip(("both", "random", *_sampled(numbers)), (_BLUE, _GREEN, _ORANGE, _GREY), strict=False):
        label = {"both": "search", "random": "random chains"}.get(way, way.replace("samples ", "samples, T="))
        for aim, style in (("target", "-"), ("decoy", "--")):
            shares = [_percent(one["corrected"][way][aim]) for one in curve.values()]
            name = label if aim == "target" else None
            axes.plot([int(n) for n in curve], shares, style, color=colour, marker=".", label=name)
    axes.set_xlabel("simulations, or samples of equal cost (dashed: the decoy)")
    axes.set_ylabel("wrong samples hit, %")
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _layers(numbers: Numbers) -> Figure:
    """Skip and repeat rate of each layer in the winners, the decoy's winners beside them."""
    figure = Figure(figsize=(8, 2.8))
    both = figure.subplots(1, 2, sharey=True)
    for axes, rate in zip(both, ("skip", "repeat"), strict=True):
        for (name, rates), colour in zip(numbers["layers"].items(), (_BLUE, _GREEN, _GREY), strict=True):
            shares = [100 * share for share in rates[rate]]
            axes.plot(
                range(len(shares)), shares, marker=".", color=colour, label=f"{name} ({numbers['usage'][name]['n']})"
            )
        axes.set_xlabel("layer")
        axes.set_title(f"winners that {rate} it, %")
    both[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _shares(groups: Numbers, way: str, aim: str) -> list[float]:
    return [one["accuracy"][way][aim] for one in groups.values()]


def _sampled(numbers: Numbers) -> list[str]:
    return [way for way in numbers["groups"]["all"]["accuracy"] if way.startswith("samples ")]


def _percent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
