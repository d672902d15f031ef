"""A backend whose work is done by ranks: calls are recorded, and sent when somebody wants to see numbers.

So one pass of a batch is one message and one answer, whatever its chains. Knows the number of every carry and what it
would hold, never what it holds.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from models.artifact import Manifest
from models.errors import UnavailableError
from models.parallel.stages import Stages
from service.backends.pools import Pool, pools_of
from service.backends.protocol import Array, Carry, Ints, Rows, Selection
from service.parallel.messages import Facts
from service.parallel.program import NOTHING, Op, Program, input_names, named
from service.parallel.supervisor import Supervisor


@dataclass(eq=False, slots=True)
class RemoteCarry:
    """A carry that ranks hold under a number, as long as somebody holds this.

    It has num_rows rows of num_tokens new tokens after num_columns columns; `dropped` hears of its end.
    """

    number: int
    epoch: int
    num_rows: int
    num_tokens: int
    num_columns: int
    is_visited: bool
    is_kept: bool
    dropped: "deque[int]" = field(repr=False)

    def __del__(self) -> None:
        self.dropped.append(self.number)


class RemoteBackend:
    """The ranks of a supervisor as one backend. What an epoch held is gone with it: `renew` begins with the next."""

    def __init__(
        self,
        manifest: Manifest,
        supervisor: Supervisor,
        facts: Facts,
        close: Callable[[], None],
        stages: Stages | None = None,
    ) -> None:
        """stages: of a pipeline, whose ranks have pages for their own layers alone."""
        self.supervisor, self._facts, self.close = supervisor, facts, close
        self._stages = stages or Stages((0, facts.num_layers))
        self._names = input_names(manifest)
        self._lock = threading.Lock()  # the supervisor's thread probes between two calls
        self._begin(supervisor.epoch)
        supervisor.probe = self._probe

    @property
    def num_layers(self) -> int:
        return self._facts.num_layers

    @property
    def num_pages(self) -> int:
        return self._facts.num_pages

    @property
    def page_size(self) -> int:
        return self._facts.page_size

    @property
    def pools(self) -> tuple[Pool, ...]:
        """For each stage of the ranks the layers and the pages it has."""
        return pools_of(self._stages, self.num_pages)

    @property
    def is_lost(self) -> bool:
        """Whether everything that was kept in carries and pages is gone."""
        ranks = self.supervisor.ranks
        return ranks is None or ranks.epoch != self._epoch

    def check(self) -> None:
        """Raise GroupLostError while there are no ranks."""
        if not self.supervisor.is_up:
            raise self.supervisor.lost()

    def renew(self) -> None:
        """Begin with the ranks there are now. Only for who has forgotten every page. Raises GroupLostError."""
        ranks = self.supervisor.ranks
        if ranks is None:
            raise self.supervisor.lost()
        with self._lock:
            self._begin(ranks.epoch)

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        tokens = inputs.get("token_ids")
        length = 0 if tokens is None else tokens.shape[1]
        with self._lock:
            program = self._open()
            carry = self._new(len(next(iter(inputs.values()))), length, self._num_columns(rows))
            given = named(inputs, self._names)
            program.add(Op.EMBED, carry.number, len(given))
            for name, array in given:
                program.add(name, program.place(array))
            self._add_rows(rows, ())
        return carry

    def layer(self, index: int, carry: RemoteCarry, rows: Rows | None = None) -> Carry:
        with self._lock:
            program, given = self._open(), self._number(carry)
            past = [(self._number(one.carry), one.length) for one in rows.past] if rows else []
            made = self._like(carry, carry.num_rows)
            made.is_visited, made.is_kept = True, rows is not None and rows.keep
            program.add(Op.LAYER, made.number, given, index)
            self._add_rows(rows, past)
        return made

    def head(self, carry: RemoteCarry, tokens: Ints | None = None) -> dict[str, Array]:
        with self._lock:
            program, given = self._open(), self._number(carry)
            program.add(Op.HEAD, given, program.place(tokens))
            return self._flush()

    def select(self, carry: RemoteCarry, rows: Selection) -> Carry:
        count = len(range(*rows.indices(carry.num_rows))) if isinstance(rows, slice) else len(rows)
        with self._lock:
            program, given = self._open(), self._number(carry)
            made = self._like(carry, count)
            program.add(Op.SELECT, made.number, given)
            program.add_selection(rows, carry.num_rows)
        return made

    def merge(self, carry: RemoteCarry, rows: Selection, part: RemoteCarry) -> Carry:
        with self._lock:
            program, given, added = self._open(), self._number(carry), self._number(part)
            program.add(Op.MERGE, given, added)
            program.add_selection(rows, carry.num_rows)
            carry.is_visited |= part.is_visited
        return carry

    def join(self, carries: Sequence[RemoteCarry]) -> Carry:
        with self._lock:
            program, given = self._open(), [self._number(carry) for carry in carries]
            made = self._like(carries[0], sum(carry.num_rows for carry in carries))
            made.is_visited = any(carry.is_visited for carry in carries)
            made.is_kept = all(carry.is_kept for carry in carries)
            program.add(Op.JOIN, made.number, len(given), *given)
        return made

    def stream(self, carry: RemoteCarry) -> Array:
        with self._lock:
            self._open().add(Op.STREAM, self._number(carry))
            return self._flush()["stream"]

    def num_bytes(self, carry: RemoteCarry) -> int:
        facts = self._facts
        sizes = facts.kept if carry.is_kept else facts.visited if carry.is_visited else facts.embedded
        return sizes.num_bytes(carry.num_rows, carry.num_tokens, carry.num_columns)

    def _begin(self, epoch: int) -> None:
        self._epoch, self._program = epoch, Program()
        self._dropped: deque[int] = deque()
        self._unused: list[int] = []
        self._num_numbers = 0

    def _probe(self, run: Callable[[bytes], object]) -> None:
        """Have the ranks meet, and forget what nobody holds any more, unless a pass is under way."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            program = self._open() if not (self._program or self.is_lost) else Program()
            program.add(Op.PROBE)
            run(program.encode())
            if program is self._program:
                self._program = Program()
        finally:
            self._lock.release()

    def _open(self) -> Program:
        """The program, to be gone on with; what was dropped by now is freed first, and its numbers given out again."""
        count = len(self._dropped)
        if count:
            freed = [self._dropped.popleft() for _ in range(count)]
            self._program.add(Op.FREE, count, *freed)
            self._unused += freed
        return self._program

    def _flush(self) -> dict[str, Array]:
        body, self._program = self._program.encode(), Program()
        return self.supervisor.run(self._epoch, body)

    def _new(self, num_rows: int, num_tokens: int, num_columns: int) -> RemoteCarry:
        if self._unused:
            number = self._unused.pop()
        else:
            number, self._num_numbers = self._num_numbers, self._num_numbers + 1
        return RemoteCarry(number, self._epoch, num_rows, num_tokens, num_columns, False, False, self._dropped)

    def _like(self, carry: RemoteCarry, num_rows: int) -> RemoteCarry:
        made = self._new(num_rows, carry.num_tokens, carry.num_columns)
        made.is_visited, made.is_kept = carry.is_visited, carry.is_kept
        return made

    def _number(self, carry: RemoteCarry) -> int:
        if carry.epoch != self._epoch:
            raise UnavailableError(
                "what was computed for this request was lost with the ranks that held it; send it again"
            )
        return carry.number

    def _add_rows(self, rows: Rows | None, past: Sequence[tuple[int, int]]) -> None:
        program = self._program
        if rows is None:
            program.add(NOTHING)
            return
        arrays = (program.place(array) for array in (rows.starts, rows.lengths, rows.pages))
        program.add(*arrays, int(rows.keep), len(past), *(number for one in past for number in one))

    def _num_columns(self, rows: Rows | None) -> int:
        """Columns of earlier tokens that a pass sees: whole pages, or exactly those there are."""
        if rows is None:
            return 0
        longest = int(rows.starts.max())
        return longest if rows.pages is None else -(-longest // self.page_size) * self.page_size
