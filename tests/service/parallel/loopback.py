"""Ranks without processes: programs are encoded, read and done in this one, and hold the laws of all backends."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from models.artifact import Manifest
from models.errors import GroupLostError
from service.backends.protocol import Array, Backend
from service.backends.remote import RemoteBackend
from service.parallel.execute import Interpreter
from service.parallel.messages import Facts
from service.parallel.probing import find_facts
from service.parallel.program import input_names


@dataclass
class Epoch:
    """What a supervisor says of ranks that are up."""

    epoch: int


class Loopback:
    """A supervisor of one rank in this process. `lose` and `come_back` are what happens to real ones."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.backend, self._names = backend, input_names(manifest)
        self.epoch, self.num_programs = 1, 0
        self.probe: Callable[[Callable[[bytes], object]], None] | None = None
        self.ranks: Epoch | None
        self.come_back(1)

    @property
    def is_up(self) -> bool:
        return self.ranks is not None

    def lost(self) -> GroupLostError:
        return GroupLostError("the ranks are lost", 3.0)

    def run(self, epoch: int, body: bytes) -> dict[str, Array]:
        if self.ranks is None or self.ranks.epoch != epoch:
            raise self.lost()
        return self.execute(body)

    def execute(self, body: bytes) -> dict[str, Array]:
        self.num_programs += 1
        outcome = self.interpreter.run(bytearray(body))
        if outcome.error:
            raise outcome.error
        return outcome.outputs

    def lose(self) -> None:
        self.ranks = None

    def come_back(self, epoch: int) -> None:
        self.epoch, self.ranks = epoch, Epoch(epoch)
        self.interpreter = Interpreter(self.backend, self._names, lambda: 0)

    def close(self) -> None:
        self.lose()
        self.backend.close()


def remote(manifest: Manifest, backend: Backend, facts: Facts | None = None) -> tuple[RemoteBackend, Loopback]:
    """A remote backend whose rank is `backend`; facts: of one like it, for one that counts what is asked of it."""
    loopback = Loopback(manifest, backend)
    supervisor: Any = loopback
    found = facts or find_facts(manifest, backend)
    told = replace(found, num_pages=backend.num_pages, page_size=backend.page_size)
    return RemoteBackend(manifest, supervisor, told, loopback.close), loopback
