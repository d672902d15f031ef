"""Networks whose blocks change shape from stage to stage, as a stack: its layers are the longest run of equal blocks.

What comes before that run is the embedding, what comes after it the head, so that any chain over the layers is sound
and the full chain is the plain network. A network without such a run is served whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from models.layered import TensorStack


@dataclass(frozen=True, slots=True)
class Step:
    """One of a network's modules in order, and its name; `is_equal` says it is a residual block of one shape."""

    name: str
    module: nn.Module
    is_equal: bool = False


class Stages(TensorStack):
    """An image classifier of stages.

    image_shape: channels, height and width. layers: a run of residual blocks, none in a network that is served whole.
    layer_names: what these blocks are called in the network.
    """

    def __init__(
        self, steps: Sequence[Step], image_shape: tuple[int, int, int], num_classes: int, residual_form: str
    ) -> None:
        super().__init__()
        self.image_shape, self.num_classes, self.residual_form = image_shape, num_classes, residual_form
        first, last = longest_run([step.is_equal for step in steps])
        modules = [step.module for step in steps]
        self.layer_names = tuple(step.name for step in steps[first:last])
        self.embed = nn.Sequential(*modules[:first])
        self.layers = nn.ModuleList(modules[first:last])
        self.head = nn.Sequential(*modules[last:])


def longest_run(equal: Sequence[bool]) -> tuple[int, int]:
    """Where the longest run of true begins and ends, the first of several; (0, 0) if there is none."""
    best, first = (0, 0), 0
    for i, is_equal in enumerate((*equal, False)):
        if is_equal:
            continue
        if i - first > best[1] - best[0]:
            best = first, i
        first = i + 1
    return best
