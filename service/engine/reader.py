"""The passes of recurrent models: each takes steps in from the states that the pass before left. Knows no queue."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from models.errors import ChainError
from service.backends.protocol import Array, State
from service.engine.executor import Batch, Executor
from service.engine.forward import overflow
from service.engine.queue import Limits
from service.engine.work import SequenceWork, Tensors


class Reader:
    """Sequences of several passes that are being read: one pass of one batch at a time, in turn."""

    def __init__(self, executor: Executor, limits: Limits) -> None:
        self._executor, self._limits = executor, limits
        self._works: deque[SequenceWork] = deque()  # whose turn it is comes first

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[SequenceWork]:
        return iter(list(self._works))

    @property
    def num_free(self) -> int:
        """How many more may join."""
        return self._limits.max_rows - len(self._works)

    def add(self, works: Sequence[SequenceWork]) -> None:
        """Let sequences join."""
        self._works.extend(works)

    def release(self, works: Sequence[SequenceWork]) -> None:
        """Let sequences go, finished or not."""
        gone = set(map(id, works))
        self._works = deque(work for work in self._works if id(work) not in gone)

    def next_batch(self) -> list[SequenceWork]:
        """Those whose turn it is, for one pass of as many steps each; they stand last from now on."""
        if not self._works:
            return []
        count = self._works[0].num_next
        most = max(min(self._limits.max_rows, self._limits.max_tokens // count), 1)
        batch = [work for work in self._works if work.num_next == count][:most]
        self.release(batch)
        self._works.extend(batch)
        return sorted(batch, key=lambda work: work.chain)

    def advance(self, works: Sequence[SequenceWork]) -> list[Tensors | ChainError | None]:
        """One pass of works that take as many steps next; the answers of those that end with it, else None.

        What failed can be repeated.
        """
        return [_noted(work, *told) for work, told in zip(works, _pass(self._executor, works), strict=True)]


def run_reads(executor: Executor, works: Sequence[SequenceWork]) -> list[Tensors | ChainError | None]:
    """Answer sequences of one pass, those of one length together. What failed can be repeated."""
    alike: dict[int, list[int]] = {}
    for place, work in enumerate(works):
        alike.setdefault(work.num_next, []).append(place)
    told: dict[int, tuple[dict[str, Array], list[State]]] = {}
    for places in alike.values():
        told.update(zip(places, _pass(executor, [works[place] for place in places]), strict=True))
    return [_noted(work, *told[place]) for place, work in enumerate(works)]


def _pass(executor: Executor, works: Sequence[SequenceWork]) -> list[tuple[dict[str, Array], list[State]]]:
    """Outputs [T, ...] of the next steps of each, and the states [visits] after them; the works stay as they are."""
    count = works[0].num_next
    steps = np.stack([work.steps[work.num_read : work.num_read + count] for work in works])  # [B, T, ...]
    states = [list(work.states) for work in works]
    batch = Batch(
        {"steps": steps},
        tuple(work.chain for work in works),
        starts=np.asarray([work.num_read for work in works], np.int64),
        lengths=np.full(len(works), count, np.int64),
        states=states,
        keep=any(work.keeps and work.num_left == count for work in works),
    )
    outputs = executor.run(batch)
    return [({name: array[row] for name, array in outputs.items()}, after) for row, after in enumerate(states)]


def _noted(work: SequenceWork, outputs: dict[str, Array], states: list[State]) -> Tensors | ChainError | None:
    if not all(np.isfinite(array).all() for array in outputs.values()):
        return overflow(work.chain)
    return work.read(outputs, states)
