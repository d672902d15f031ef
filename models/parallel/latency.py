"""What one pass costs in each residual form: compute, and the part of every all-reduce that nothing hides.

A closed form for one group of rows and one channel that runs all-reduces in order. Knows no tensor and measures
nothing. Seconds everywhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

from models.lm.residual import Residual

# What can be timed by its name.
FORMS: Mapping[str, Residual] = {
    "standard": Residual("standard"),
    "parallel": Residual("parallel"),
    "ladder": Residual("ladder"),
    "desync-2x": Residual("desync", period=2),
    "desync-4x": Residual("desync", period=4),
    "upper-bound": Residual("upper-bound"),
}
# Those that compute the same whatever the number of ranks.
ANSWERING = ("standard", "parallel", "ladder")


@dataclass(frozen=True, slots=True)
class Costs:
    """What a pass is made of, in seconds.

    attention_s, mlp_s: the compute of one module. all_reduce_s: one all-reduce by itself. overhead_s: what waiting
    later than at once costs. rest_s: embedding, head and sampling, alike in every form.
    """

    attention_s: float
    mlp_s: float
    all_reduce_s: float
    overhead_s: float = 0.0
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """An all-reduce of some bytes takes start_s + bytes * s_per_byte."""

    start_s: float
    s_per_byte: float = 0.0

    def seconds(self, num_bytes: int) -> float:
        return self.start_s + num_bytes * self.s_per_byte


def num_all_reduces(residual: Residual, num_visits: int) -> int:
    """All-reduces of a pass through so many layers, those of embedding and head left out."""
    if residual.form == "desync":  # the last one always makes the streams equal
        return -(-2 * num_visits // residual.period)
    return {"parallel": num_visits, "upper-bound": 0}.get(residual.form, 2 * num_visits)


def predicted(residual: Residual, executed: Sequence[int], costs: Costs) -> float:
    """Seconds of one pass through the layers `executed`, in that order (arXiv 2501.06589, section 3)."""
    compute = len(executed) * (costs.attention_s + costs.mlp_s) + costs.rest_s
    if residual.form != "ladder":
        return compute + num_all_reduces(residual, len(executed)) * costs.all_reduce_s
    waits = _covered(residual, executed, costs)
    return compute + sum(max(0.0, costs.all_reduce_s - covered) + late for covered, late in waits)


def gains(num_layers: int, costs: Costs) -> dict[str, float]:
    """How many times faster than standard each form is predicted to be, over the full chain."""
    base = predicted(FORMS["standard"], range(num_layers), costs)
    return {name: base / predicted(form, range(num_layers), costs) for name, form in FORMS.items()}


def told(num_layers: int, costs: Costs) -> str:
    """A line for a log: what each form that answers is predicted to gain, and which is the fastest here."""
    found = gains(num_layers, costs)
    best = [name for start, name in fastest(num_layers, costs) if start <= costs.all_reduce_s][-1]
    listed = ", ".join(f"{name} {found[name]:.2f}" for name in (*ANSWERING[1:], "upper-bound"))
    return f"predicted times faster than standard: {listed}; fastest: {best}"


def crossings(first: Residual, second: Residual, num_layers: int, costs: Costs) -> tuple[float, ...]:
    """The all-reduce times at which two forms change places, ascending; `costs.all_reduce_s` is not read.

    Every form's time is linear in it between 0, the modules' times and infinity, so that each root is exact.
    """

    def ahead(all_reduce_s: float) -> float:
        at = replace(costs, all_reduce_s=all_reduce_s)
        return predicted(first, range(num_layers), at) - predicted(second, range(num_layers), at)

    found = []
    corners = sorted({0.0, costs.attention_s, costs.mlp_s})
    for low, high in pairwise((*corners, math.inf)):
        other = high if high < math.inf else 2 * low or 1.0
        here, there = ahead(low), ahead(other)
        if math.isclose(here, there, rel_tol=1e-9):
            continue
        root = low - here * (other - low) / (there - here)
        if low < root <= high:
            found.append(root)
    return tuple(found)


def fastest(num_layers: int, costs: Costs, names: Sequence[str] = ANSWERING) -> tuple[tuple[float, str], ...]:
    """From which all-reduce time on which form is the fastest, ascending from 0; among equals the first of `names`."""
    forms = [FORMS[name] for name in names]
    changes = {root for one in forms for other in forms for root in crossings(one, other, num_layers, costs)}
    starts = [0.0, *sorted(changes)]
    found: list[tuple[float, str]] = []
    for start, end in pairwise((*starts, 2 * starts[-1] + 1.0)):
        between = replace(costs, all_reduce_s=(start + end) / 2)
        best = min(names, key=lambda name: predicted(FORMS[name], range(num_layers), between))
        if not found or found[-1][1] != best:
            found.append((start, best))
    return tuple(found)


def lands_before(residual: Residual, layer: int, follower: int) -> bool:
    """Whether what a layer left pending arrives before the layer executed next: under the slot rule, over a skip."""
    return residual.on_skip == "slot" and follower > layer + 1


def _covered(residual: Residual, executed: Sequence[int], costs: Costs) -> Iterator[tuple[float, float]]:
    """For each all-reduce of a ladder or hybrid: the compute it hides under, and what waiting late costs."""
    for layer, follower in zip_longest(executed, executed[1:]):
        is_ladder = residual.is_ladder(layer)
        yield (costs.mlp_s, costs.overhead_s) if is_ladder else (0.0, 0.0)
        is_hidden = (
            follower is not None and residual.is_ladder(follower) and not lands_before(residual, layer, follower)
        )
        yield costs.attention_s if is_hidden else 0.0, costs.overhead_s if is_ladder or is_hidden else 0.0
