"""The passes of continuous generation: newcomers read, everyone else decodes, each row along its own chain."""

from collections.abc import Sequence

import numpy as np

from service.backends.pools import Pool
from service.backends.protocol import Array, Ints
from service.engine.admission import Admission
from service.engine.executor import Batch, Executor, pad
from service.engine.forward import overflow
from service.engine.pools import Pools
from service.engine.queue import Limits
from service.engine.sampling import choose
from service.engine.sequences import Sequences
from service.engine.tables import Tables
from service.engine.work import Generated, GenerateWork


class Generator:
    """The sequences of one backend, and the passes that bring them on."""

    def __init__(
        self, executor: Executor, num_pages: int, page_size: int, limits: Limits, pools: Sequence[Pool] = ()
    ) -> None:
        self._executor = executor
        self.sequences = Sequences(Tables(Pools(num_pages, pools), page_size), limits, Admission())

    def next_batches(self) -> list[list[GenerateWork]]:
        """The batches of one step: some who read, and everyone who decodes."""
        decoding = self.sequences.next_decodes()
        return [works for works in (*self.sequences.next_prefills(), decoding) if works]

    def logits(self, works: Sequence[GenerateWork]) -> list[Array | None]:
        """Next-token logits [V] of each sequence, None where more is left to be read. What failed can be repeated."""
        counts = [self.sequences.num_next(work) for work in works]
        read = [work.tokens[work.num_read : work.num_read + count] for work, count in zip(works, counts, strict=True)]
        token_ids, lengths = pad(read)
        starts = np.asarray([work.num_read for work in works], dtype=np.int64)
        chains = tuple(work.chain for work in works)
        pages = self._pages(works, int((starts + lengths).max()))
        batch = Batch({"token_ids": token_ids}, chains, starts, lengths, lengths[:, None] - 1, pages)
        rows = list(self._executor.run(batch)["logits"][:, 0])
        if len(rows) == len(works):
            for work, count in zip(works, counts, strict=True):
                work.read(count)
        return [None if work.num_left else row for work, row in zip(works, rows, strict=True)]

    def take_token(self, work: GenerateWork, logits: Array) -> Generated | None:
        """Add the next token of one sequence; its answer if that was the last. Raises ChainError on overflow."""
        if not np.isfinite(logits).all():
            raise overflow(work.chain)
        self.sequences.publish(work)
        reason = work.add(choose(logits, work.sampling, work.generator))
        return None if reason is None else work.answer(reason)

    def _pages(self, works: Sequence[GenerateWork], num_tokens: int) -> Ints:
        size = self.sequences.tables.page_size
        count = self.sequences.tables.columns(num_tokens)
        pages = np.full((len(works), max(len(work.chain) for work in works), count), -1, np.int64)
        for row, work in enumerate(works):
            assert work.table
            found = work.table.writable(work.num_read // size, count)
            pages[row, : found.shape[0], : found.shape[1]] = found
        return pages
