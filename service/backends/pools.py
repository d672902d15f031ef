"""Pages of keys and values that are not all in one place: which layers have theirs in which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from models.parallel.stages import Stages


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages, by number, that only visits of some layers use."""

    layers: range
    pages: range


@runtime_checkable
class Pooled(Protocol):
    """What a backend has beside the rest if not every page is for every layer."""

    @property
    def pools(self) -> Sequence[Pool]:
        """All of them, in the order of layers and of pages."""
        ...


def pools_of(stages: Stages, num_pages: int) -> tuple[Pool, ...]:
    """The pools of a pipeline, one for each stage."""
    parts = stages.pages(num_pages)
    return tuple(Pool(stages.layers(stage), part) for stage, part in enumerate(parts))
