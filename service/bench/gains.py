"""The figure of a timing of residual forms: gain over the standard form, measured beside predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from models.parallel.trial import Measured
from service.bench.forms import by_load, gain

_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_COLOURS = {
    "standard": "#718096",
    "parallel": "#c05621",
    "ladder": "#2b6cb0",
    "desync-2x": "#2f855a",
    "desync-4x": "#68d391",
    "upper-bound": "#1a202c",
}
_HYBRID = "#63b3ed"


def draw(found: Sequence[Measured], title: str, path: Path) -> None:
    """Write the figure: over the all-reduce's time where several were made, else over the batch sizes."""
    is_sweep = len({one.latency_s for one in found}) > 1
    panels = sorted({(one.phase, one.has_p2p, one.rows if is_sweep else 0) for one in found}, key=str)
    with rc_context(_STYLE):
        figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.2), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            phase, has_p2p, rows = panel
            chosen = [one for one in found if (one.phase, one.has_p2p) == (phase, has_p2p) and rows in (0, one.rows)]
            _draw(axes, chosen, is_sweep)
            axes.set_title(f"{phase}{f', {rows} rows' if rows else ''}{', no P2P' if has_p2p is False else ''}")
        lines, names = axes.get_legend_handles_labels()
        figure.legend(lines, names, frameon=False, loc="outside right center")
        figure.suptitle(title)
        figure.savefig(path, bbox_inches="tight", dpi=150)


def _draw(axes: Any, found: Sequence[Measured], is_sweep: bool) -> None:
    loads = by_load(found).values()
    for name in dict.fromkeys(one.form for one in found):
        points = [
            (1000 * (one.latency_s or 0.0) if is_sweep else one.rows, *both)
            for together in loads
            for one in together
            if one.form == name and (both := gain(one, together))
        ]
        at, measured, predicted = zip(*points, strict=True) if points else ((), (), ())
        colour = _COLOURS.get(name, _HYBRID)
        axes.plot(at, predicted, color=colour, linestyle="--", linewidth=1)
        axes.plot(at, measured, color=colour, marker=".", linestyle="", label=name)
    axes.set_xlabel("all-reduce, ms" if is_sweep else "rows")
    axes.set_ylabel("times faster than standard")
