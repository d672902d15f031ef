"""The pages of each sequence, by visit and by place in the text. Knows no tensor but page numbers, and no order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.chain import Chain
from service.backends.protocol import Ints
from service.engine.history import Histories, History
from service.engine.pools import Pools


@dataclass(eq=False, slots=True)
class Table:
    """Pages of one sequence: `pages` [visits, columns], of which the first `num_columns` are held, -1 elsewhere.

    A column is page_size tokens. num_shared [visits]: leading columns that were found, which nobody may write; at most
    `max_shared`, and `num_found` by every visit.
    """

    chain: Chain
    pages: Ints
    num_shared: Ints
    num_columns: int
    histories: list[History]
    num_found: int = 0
    max_shared: int = 0
    num_published: int = 0

    def writable(self, column: int, num_columns: int) -> Ints:
        """Pages [visits, num_columns] of a pass whose first new token is in `column`; -1 where others hold the page."""
        pages: Ints = self.pages[:, :num_columns]
        if self.max_shared <= column:
            return pages
        places = np.arange(pages.shape[1])
        return np.where((places >= column) & (places < self.num_shared[:, None]), -1, pages)


class Tables:
    """Opens, grows and closes tables over pools of pages."""

    def __init__(self, pages: Pools, page_size: int) -> None:
        self.pages, self.page_size = pages, page_size
        self._histories = Histories()

    def columns(self, num_tokens: int) -> int:
        """Columns that many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.page_size)

    def counts(self, chain: Chain, columns: int) -> list[int]:
        """Pages of every pool that so many columns of a chain take."""
        return self.pages.counts(chain.layers, [columns] * len(chain))

    def open(self, tokens: Sequence[int], chain: Chain, max_tokens: int, running: Iterable[Chain] = ()) -> Table | None:
        """A table with room for `tokens`, never more than `max_tokens`; None if the pages are not there.

        Nor if one more column of each chain that is `running` were not there any more.
        Pages that hold the same are shared, but none that holds the last token, which must be read for its logits.
        """
        table = Table(
            chain=chain,
            pages=np.full((len(chain), self.columns(max_tokens)), -1, np.int64),
            num_shared=np.zeros(len(chain), np.int64),
            num_columns=0,
            histories=self._read(tokens, (len(tokens) - 1) // self.page_size),
        )
        for visit in range(len(chain)):
            self._find(table, visit)
        columns = self.columns(len(tokens))
        new = self.pages.counts(chain.layers, (columns - table.num_shared).tolist())
        spare = (self.counts(one, 1) for one in running)
        asked = [sum(counts) for counts in zip(new, *spare, strict=True)]
        if not self.pages.are_available(asked) or not self._fill(table, columns):
            self.close(table)
            return None
        table.num_found, table.max_shared = int(table.num_shared.min()), int(table.num_shared.max())
        table.num_published = table.num_found
        return table

    def grow(self, table: Table, num_tokens: int) -> bool:
        """Make room for `num_tokens`, if there are pages left for all visits."""
        columns = self.columns(num_tokens)
        return columns <= table.num_columns or self._fill(table, columns)

    def publish(self, table: Table, tokens: Sequence[int], num_read: int) -> None:
        """Let others find the pages that the first `num_read` tokens filled. Only for tokens read without a fault."""
        full = num_read // self.page_size
        for column in range(len(table.histories), full):
            before = table.histories[-1] if table.histories else None
            table.histories.append(self._histories.after(before, self._item(tokens, column)))
        for column in range(table.num_published, full):
            for visit in range(len(table.chain)):
                if column >= table.num_shared[visit]:
                    key = self._key(table, visit, column)
                    table.pages[visit, column] = self.pages.publish(int(table.pages[visit, column]), key)
        table.num_published = max(table.num_published, full)

    def close(self, table: Table) -> None:
        """Give every page back, those of the text's end first: what many share is at its beginning."""
        backwards = table.pages[::-1, ::-1].T
        self.pages.give_back(backwards[backwards >= 0].tolist())
        table.pages[:] = -1
        table.num_columns = 0

    def _find(self, table: Table, visit: int) -> None:
        for column in range(len(table.histories)):
            page = self.pages.find(self._key(table, visit, column))
            if page is None:
                return
            table.pages[visit, column] = page
            table.num_shared[visit] += 1

    def _fill(self, table: Table, columns: int) -> bool:
        places = [
            (visit, column)
            for column in range(table.num_columns, columns)
            for visit in range(len(table.chain))
            if table.pages[visit, column] < 0
        ]
        taken = self.pages.take([table.chain.layers[visit] for visit, _ in places])
        if taken is None:
            return False
        for place, page in zip(places, taken, strict=True):
            table.pages[place] = page
        table.num_columns = columns
        return True

    def _read(self, tokens: Sequence[int], columns: int) -> list[History]:
        histories: list[History] = []
        for column in range(columns):
            before = histories[-1] if histories else None
            histories.append(self._histories.after(before, self._item(tokens, column)))
        return histories

    def _item(self, tokens: Sequence[int], column: int) -> tuple[int, ...]:
        return tuple(tokens[column * self.page_size : (column + 1) * self.page_size])

    @staticmethod
    def _key(table: Table, visit: int, column: int) -> tuple[History, tuple[int, ...]]:
        return table.histories[column], table.chain.layers[: visit + 1]
