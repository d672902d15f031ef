"""The figure of a load test: latency and throughput over the load, the physical limit drawn beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from service.bench.run import Measurement

_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_BLUE, _ORANGE, _RED, _GREY = "#2b6cb0", "#c05621", "#c53030", "#718096"


def draw(found: Sequence[Measurement], title: str, path: Path) -> None:
    """Write the figure; the file's ending chooses PNG, SVG or PDF."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        latency, throughput = figure.subplots(1, 2)
        loads = [one.load for one in found]
        for name, colour in (("p50_ms", _BLUE), ("p90_ms", _ORANGE), ("p99_ms", _RED)):
            values = [getattr(one.summary.latency, name, float("nan")) for one in found]
            latency.plot(loads, values, color=colour, marker=".", label=name.removesuffix("_ms"))
        latency.set_ylabel("latency, ms")
        latency.set_yscale("log")
        _draw_throughput(throughput, found, loads)
        for axes in (latency, throughput):
            axes.set_xlabel("clients" if found[0].kind == "clients" else "requests due per second")
            axes.legend(frameon=False)
        figure.suptitle(title)
        figure.savefig(path, bbox_inches="tight", dpi=150)


def _draw_throughput(axes: Any, found: Sequence[Measurement], loads: list[float]) -> None:
    has_tokens = any(one.summary.tokens_per_s for one in found)
    measured = [one.summary.tokens_per_s if has_tokens else one.summary.requests_per_s for one in found]
    axes.plot(loads, measured, color=_BLUE, marker=".", label="measured")
    limits = [_limit(one, has_tokens) for one in found]
    if any(one is not None for one in limits):
        label = "weights read once a step" if has_tokens else "bare runtime"
        axes.plot(loads, limits, color=_GREY, linestyle="--", label=label)
    axes.set_ylabel("tokens per second" if has_tokens else "requests per second")
    axes.set_yscale("log")  # the limit may be a hundred times what is measured


def _limit(one: Measurement, has_tokens: bool) -> float | None:
    if not has_tokens:
        return one.limit.requests_per_s()
    return one.limit.tokens_per_s(int(one.load)) if one.kind == "clients" else None
