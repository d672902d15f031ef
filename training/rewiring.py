"""Which edges of a sparse network are there: the weakest go while it learns, and as many others come.

Pruned are the smallest weights. Regrown, from zero, are edges between neurons whose activity goes together (Hebbian),
or any. Knows no task: it is given inputs to watch the network on.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from models.mixers.g2gnet import SparseLinear

Regrow: TypeAlias = Literal["hebbian", "random"]


@torch.no_grad()
def rewire(model: nn.Module, inputs: Tensor, part: float, regrow: Regrow, random: Generator) -> None:
    """Replace `part` of the edges of every sparse map; how many there are stays the same.

    An edge that goes does not come back at once. A map without absent edges stays as it is.
    """
    for module, score in scores(model, inputs, regrow, random).items():
        wanted = score.flatten().index_fill(0, module.places, -torch.inf)
        count = min(round(part * len(module.places)), wanted.numel() - len(module.places))
        weak = module.values.abs().topk(count, largest=False).indices
        module.places[weak] = wanted.topk(count).indices
        module.values[weak] = 0


def scores(model: nn.Module, inputs: Tensor, regrow: Regrow, random: Generator) -> Mapping[SparseLinear, Tensor]:
    """How much each edge [out, in] of each sparse map is wanted: |correlation| of its two neurons, or at random."""
    maps = [module for module in model.modules() if isinstance(module, SparseLinear)]
    if regrow == "random":
        return {module: torch.rand(module.shape, generator=random) for module in maps}
    seen: dict[SparseLinear, Tensor] = {}

    def watch(module: SparseLinear, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen[module] = (_standard(made).T @ _standard(given[0])).abs() / len(made)

    hooks = [module.register_forward_hook(watch) for module in maps]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return seen


def _standard(activity: Tensor) -> Tensor:
    """[N, D] with mean 0 and deviation 1 over the examples; a neuron that never changes is 0."""
    centred = activity - activity.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp_min(1e-6)
