"""Which chains the requests of a load ask for, and how often each. Knows no server; same seed, same requests."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from models.chain import Chain
from models.errors import InputError

_MAX_EDITS = 3
_MAX_BLOCK = 3


@dataclass(frozen=True, slots=True)
class ChainMix:
    """Chains in text form, 'full' among them perhaps, with weights above 0."""

    chains: tuple[str, ...] = ("full",)
    weights: tuple[float, ...] = (1.0,)

    @classmethod
    def parse(cls, text: str) -> "ChainMix":
        """Read `full:0.5;0-3,6-11:0.3`; a weight left out is 1. Raises InputError or ChainError naming the part."""
        chains, weights = [], []
        for part in text.split(";"):
            chain, _, weight = part.strip().partition(":")
            if chain != "full":
                chain = Chain.parse(chain).format()
            chains.append(chain)
            weights.append(_weight(weight or "1", part))
        return cls(tuple(chains), tuple(weights))

    @classmethod
    def draw(cls, count: int, num_layers: int, seed: int) -> "ChainMix":
        """`count` chains, each the full chain with one to three blocks of up to three visits skipped or repeated."""
        if num_layers < 2:
            raise InputError(f"the model has {num_layers} layers, too few to skip or repeat some; leave the chains out")
        rng = random.Random(seed)
        chains = tuple(_edited(num_layers, rng).format() for _ in range(count))
        return cls(chains, (1.0,) * count)

    def check(self, num_layers: int, max_length: int) -> None:
        """Raise ChainError if the model cannot run one of them."""
        for chain in self.chains:
            if chain != "full":
                Chain.parse(chain).check(num_layers, max_length)

    def endless(self, seed: int) -> Iterator[str]:
        """Chains at random, in these proportions."""
        rng = random.Random(seed)
        while True:
            yield rng.choices(self.chains, self.weights)[0]

    def layers(self, num_layers: int) -> list[tuple[Chain, float]]:
        """Each chain with its share; the shares sum up to 1."""
        total = sum(self.weights)
        return [
            (Chain.full(num_layers) if text == "full" else Chain.parse(text), weight / total)
            for text, weight in zip(self.chains, self.weights, strict=True)
        ]


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise InputError(
            f"{part.strip()!r} has the weight {text!r}; write a chain and a number above 0, like 'full:0.5'"
        )
    return weight


def _edited(num_layers: int, rng: random.Random) -> Chain:
    chain = Chain.full(num_layers)
    for _ in range(rng.randint(1, _MAX_EDITS)):
        count = rng.randint(1, min(_MAX_BLOCK, len(chain)))
        visit = rng.randrange(len(chain) - count + 1)
        skips = rng.random() < 0.5 and count < len(chain)
        chain = chain.skip(visit, count) if skips else chain.repeat(visit, count, 1)
    return chain
