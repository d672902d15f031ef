"""Search work under way on the device thread, one slice at a time. Decides nothing about whose turn it is."""

import logging
from collections import deque
from collections.abc import Sequence

from models.errors import GroupLostError
from service.engine.shared import SharedWork, Slices
from service.engine.shared_runner import SharedRunner

_log = logging.getLogger("fathom.engine")


class Background:
    """One batch of search work; if it fails, each unit runs alone, so that only the one at fault gets the error."""

    def __init__(self, runner: SharedRunner) -> None:
        self._runner = runner
        self._batches: deque[tuple[Sequence[SharedWork], Slices[list[object]]]] = deque()

    def __len__(self) -> int:
        return sum(len(works) for works, _ in self._batches)

    @property
    def works(self) -> list[SharedWork]:
        """All that is not answered yet."""
        return [work for works, _ in self._batches for work in works]

    def begin(self, works: Sequence[SharedWork]) -> None:
        """Take a batch in; nothing runs yet."""
        if works:
            self._batches.append((works, self._runner.run(works)))

    def advance(self) -> Sequence[tuple[SharedWork, object]]:
        """Run one slice: a layer call. Returns what it answers, with results or errors. Raises GroupLostError."""
        works, slices = self._batches[0]
        try:
            next(slices)
        except StopIteration as ended:
            self._batches.popleft()
            return list(zip(works, ended.value, strict=True))
        except GroupLostError:
            raise
        except Exception as error:
            self._batches.popleft()
            if len(works) == 1:
                _log.exception("a sample failed")
                return [(works[0], error)]
            for work in works:
                self.begin([work])
        return []

    def drop_abandoned(self) -> None:
        """Forget batches whose clients all left."""
        kept = [batch for batch in self._batches if not all(work.future.done() for work in batch[0])]
        self._batches = deque(kept)

    def clear(self) -> None:
        """Forget everything."""
        self._batches.clear()
