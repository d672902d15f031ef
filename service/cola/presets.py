"""Named sets of constants: what a search does when the request does not say otherwise.

A preset's name promises its semantics; each states what its source says, and what is ours where that is silent.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.errors import InputError
from service.cola.mcts import MctsConfig
from service.cola.task import Budget


@dataclass(frozen=True, slots=True)
class Preset:
    """space: its name; knobs: what is set on it, apart from lengths. leaf_batch: chains judged together.

    lengths: from the number of layers to the shortest and the longest chain, None for the space's own bounds.
    """

    space: str = "cola"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    lengths: Callable[[int], tuple[int, int]] | None = None
    mcts: MctsConfig = field(default_factory=MctsConfig)
    budget: Budget = field(default_factory=Budget)
    leaf_batch: int = 8
    seed: int = 0

    def space_knobs(self, num_layers: int) -> dict[str, Any]:
        """All that is set on the space of a model of so many layers."""
        if self.lengths is None:
            return dict(self.knobs)
        shortest, longest = self.lengths(num_layers)
        return {**self.knobs, "min_length": shortest, "max_length": longest}


# The lengths in the released code, by depth: tianyi-lab/PoLar at c86d76e, mcts_discovery/run_mcts.py.
_RELEASED_LENGTHS = {24: (16, 28), 28: (16, 32), 36: (24, 44), 48: (36, 54)}


def released_lengths(num_layers: int) -> tuple[int, int]:
    """The released code's bounds; for depths it does not list, 2/3 and 7/6 of the depth, the middle of its ranges."""
    listed = _RELEASED_LENGTHS.get(num_layers)
    return listed or (max(1, round(num_layers * 2 / 3)), max(num_layers + 1, round(num_layers * 7 / 6)))


def _up_to_twice(num_layers: int) -> tuple[int, int]:
    return 1, 2 * num_layers


PRESETS: Mapping[str, Preset] = {
    # Ours. Most chains that help are one edit away, so a node opens many children before the search goes deeper: at 200
    # simulations on 24 wrong and 24 right problems of arith, widening 8 corrected 18 and shortened 20, widening 2 with
    # the same constants 12 and 12, with the paper's 8 and 12. The prior is off: it changed at most one of them.
    "default": Preset(),
    # arXiv 2507.07996, section 3 and algorithm 1: 200 simulations, lambda 5, a random child with probability 0.1, every
    # edit a child at once, one chain after the other. Silent on c and on the lengths: sqrt(2) and 1 to 2 D are ours.
    "cola-paper": Preset(
        knobs={"max_block": 4, "max_repeats": 4},
        lengths=_up_to_twice,
        mcts=MctsConfig(exploration=math.sqrt(2), length_penalty=5.0, random_child=0.1, widening=None),
        budget=Budget(simulations=200),
        leaf_batch=1,
    ),
    # The code released with arXiv 2606.06574: from the full chain skip 1-4 or repeat 1-4 once, from others blocks of 1,
    # no layer three times, and the walk of `ReleasedSearch`. Seed 42 for every sample.
    "polar-code": Preset(
        knobs={"max_block": 4, "max_repeats": 1, "deep_block": 1, "max_visits": 2},
        lengths=released_lengths,
        mcts=MctsConfig(exploration=math.sqrt(2), length_penalty=5.0, random_child=0.1, widening=None, walk="released"),
        budget=Budget(simulations=100),
        leaf_batch=1,
        seed=42,
    ),
    # arXiv 2510.12773: c 1.8, lambda 3, 50 simulations, early stop, lengths up to 2 D. Which children a node
    # gets is not stated: all, as in CoLa.
    "drllm": Preset(
        space="drllm",
        lengths=_up_to_twice,
        mcts=MctsConfig(exploration=1.8, length_penalty=3.0, random_child=0.1, widening=None),
        budget=Budget(simulations=50, stop="first"),
        leaf_batch=1,
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises InputError listing the names there are."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; use one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
