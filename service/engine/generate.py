"""Continuous generation: each step prefills newcomers and decodes everyone else, each row along its own chain."""

from collections.abc import Sequence

import numpy as np

from service.backends.protocol import Array
from service.engine.executor import Batch, Executor, pad
from service.engine.forward import overflow
from service.engine.queue import Limits
from service.engine.sampling import choose
from service.engine.slots import Slots
from service.engine.work import Generated, GenerateWork


class Generator:
    """The sequences that are being generated, and their KV slots."""

    def __init__(self, executor: Executor, num_slots: int, limits: Limits) -> None:
        self._executor, self._limits = executor, limits
        self.slots = Slots(num_slots)
        self.running: list[GenerateWork] = []

    def admit(self, work: GenerateWork) -> bool:
        """Start a sequence if a row and its KV slots are free."""
        slots = self.slots.take(len(work.chain)) if len(self.running) < self._limits.max_rows else None
        if slots is None:
            return False
        work.slots = slots
        self.running.append(work)
        return True

    def release(self, work: GenerateWork) -> None:
        """Let a sequence go, finished or not, and free its slots."""
        self.running.remove(work)
        self.slots.give_back(work.slots)

    def next_batches(self) -> list[list[GenerateWork]]:
        """The batches of one step: newcomers to prefill, as many as fit, and everyone who decodes."""
        newcomers = self._within_tokens([work for work in self.running if not work.choices])
        decoding = [work for work in self.running if work.choices]
        return [works for works in (newcomers, decoding) if works]

    def logits(self, works: Sequence[GenerateWork]) -> list[Array]:
        """Next-token logits [V] of each sequence; its new tokens are in the cache afterwards."""
        token_ids, lengths = pad([work.newest for work in works])
        starts = np.asarray([work.num_cached for work in works], dtype=np.int64)
        slots, _ = pad([work.slots for work in works])
        chains = tuple(work.chain for work in works)
        batch = Batch({"token_ids": token_ids}, chains, starts, lengths, lengths[:, None] - 1, slots)
        return list(self._executor.run(batch)["logits"][:, 0])

    def _within_tokens(self, works: list[GenerateWork]) -> list[GenerateWork]:
        longest = 0
        for count, work in enumerate(works):
            longest = max(longest, len(work.prompt))
            if count and longest * (count + 1) > self._limits.max_tokens:
                return works[:count]
        return works


def take_token(work: GenerateWork, logits: Array) -> Generated | None:
    """Add the next token of one sequence; its answer if that was the last. Raises ChainError on overflow."""
    if not np.isfinite(logits).all():
        raise overflow(work.chain)
    reason = work.add(choose(logits, work.sampling, work.generator))
    return None if reason is None else work.answer(reason)
