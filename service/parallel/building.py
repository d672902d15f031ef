"""How the ranks of one epoch come to be: started, gathered, welcomed, opened; watched from the first moment on."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from models.errors import BackendError, FathomError
from service.parallel.digest import epoch_key
from service.parallel.door import Door
from service.parallel.gathering import Opening, gather, processes_of, store_of, wires_of
from service.parallel.launch import Launcher
from service.parallel.messages import Facts, Welcome
from service.parallel.ranks import LostError, Ranks
from service.parallel.watch import Alarm, Watch

# For all ranks to open their parts; and silence after which one that does is lost: loading may hold up its beats.
_OPENING_S, _SILENCE_S = 600.0, 15.0
# What is said to the ranks of an epoch, from its number, its salt, and where its first rank has the others meet.
Welcoming = Callable[[int, str, str], Welcome]


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds the same `size` ranks again and again. Belongs to one thread."""

    size: int
    launcher: Launcher
    door: Door
    secret: bytes
    welcoming: Welcoming

    def prepare(self) -> None:
        """Do what is needed once. Raises BackendError."""
        self.launcher.prepare()

    def build(self, epoch: int, alarm: Alarm, is_over: Callable[[], bool]) -> tuple[Ranks, Facts]:
        """New ranks, and what they opened, unless it `is_over`; the alarm has it looked at. Raises FathomError."""
        self.launcher.start(self.size)
        salt = os.urandom(16)
        arrivals = gather(self.door.arrivals, self.size, self.launcher.patience_s, is_over)
        welcome = self.welcoming(epoch, salt.hex(), store_of(arrivals))
        ranks = Ranks(epoch, epoch_key(self.secret, epoch, salt), *wires_of(arrivals), processes_of(arrivals))
        opening = Opening(ranks, welcome, _OPENING_S, alarm)
        try:
            watch = Watch(ranks, alarm, _SILENCE_S, lambda: None)
            while not (opening.is_over or is_over()):
                watch.until_alarm()
            if not opening.is_over:
                ranks.cut()
            return ranks, opening.facts()
        except (LostError, FathomError) as error:
            ranks.cut()
            seen = error if isinstance(error, FathomError) else BackendError(f"{error}; the log says why")
            cause = opening.cause(seen)
            ranks.close()
            raise cause from error

    def end(self) -> str:
        """End what is left of all ranks; how those ended that were gone before, for the log."""
        ended = self.launcher.end()
        return "".join(f"; rank {rank} {manner}" for rank, manner in sorted(ended.items()))

    def close(self) -> None:
        """Let nobody in any more, and leave nobody behind."""
        self.launcher.close()
        self.door.close()
