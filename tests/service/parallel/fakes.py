"""Ranks as real processes over arithmetic instead of weights; they misbehave when a token says so."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import MANIFEST, Manifest
from models.errors import ChainError
from service.backends.arrays import HostArrays
from service.backends.fake import open_fake
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array, Carry, Ints, Rows
from service.backends.remote import RemoteBackend
from service.parallel.address import Address
from service.parallel.building import Builder
from service.parallel.door import Door
from service.parallel.messages import Share, Welcome
from service.parallel.supervisor import Group, Supervisor
from service.parallel.worker import Opened, Place, run

SECRET = b"what all ranks of tests know"
# Tokens that make ranks do what they should not.
ALL_FAIL, ONE_FAILS, ONE_HANGS, ONE_DIES, ONE_STRAYS, ONE_DRIFTS, ONE_LOSES_IT = 11, 12, 13, 14, 15, 16, 17
# The rank that does it alone.
CULPRIT = 1
# What the server's own setting is.
SILENCE_S = 1.5


@dataclass
class Counts:
    """A group that is none: nobody has to meet anybody."""

    num_collectives: int = 0
    waited_s: float = 0.0
    has_failed: bool = False

    def probe(self) -> float:
        return 1e-3


class Misbehaving(LanguageBackend):
    """A fake language model on one rank."""

    def __init__(self, rank: int, counts: Counts, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rank, self._counts, self._drift = rank, counts, 0.0

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        tokens = set(inputs["token_ids"].ravel().tolist())
        if ALL_FAIL in tokens:
            raise ChainError("token 11 is too much for every rank")
        if self._rank == CULPRIT:
            self._misbehave(tokens)
        return super().embed(inputs, rows)

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        return {name: array + np.float32(self._drift) for name, array in super().head(carry, tokens).items()}

    def _misbehave(self, tokens: set[int]) -> None:
        if ONE_FAILS in tokens:
            raise RuntimeError("one rank fails")
        if ONE_HANGS in tokens:
            time.sleep(600)
        if ONE_DIES in tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        self._counts.num_collectives += ONE_STRAYS in tokens
        self._counts.has_failed |= ONE_LOSES_IT in tokens
        self._drift += 100.0 * (ONE_DRIFTS in tokens)


def open_share(place: Place, share: Share) -> Opened:
    """A rank of a fake model."""
    manifest = Manifest.model_validate_json((Path(share.directory) / MANIFEST).read_bytes())
    counts = Counts()
    assert manifest.language is not None
    parts = open_fake(manifest)
    backend = Misbehaving(place.rank, counts, parts, manifest.language, HostArrays(), share.num_pages, share.page_size)
    return Opened(manifest, backend, counts, backend.close)


def open_stage(place: Place, share: Share) -> Opened:
    """A rank that is a stage by itself: the culprit has the head, and what the others say of it means nothing."""
    opened = open_share(place, share)
    return replace(opened, stage=place.rank, has_outputs=place.rank == CULPRIT, speaker=CULPRIT)


def open_never(place: Place, share: Share) -> Opened:
    """A rank that cannot open its part, once a file says so."""
    if place.rank == CULPRIT and (Path(share.directory) / "broken").exists():
        os._exit(3)
    return open_share(place, share)


def serve(place: Place, opening: Callable[[Place, Share], Opened]) -> None:
    """The whole life of a rank; what it says to nobody goes nowhere."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.exit(run(place, opening))


class Forked:
    """Ranks forked from a process that has imported what they need."""

    patience_s = 20.0

    def __init__(self, control: Address, opening: Callable[[Place, Share], Opened]) -> None:
        self._control, self._opening = control, opening
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["service.parallel.worker", "service.backends.remote"])
        self.processes: list[BaseProcess] = []
        self.codes: list[int | None] = []

    def prepare(self) -> None:
        """The context does it with the first process."""

    def start(self, size: int) -> None:
        places = [Place(rank, size, self._control, SECRET) for rank in range(size)]
        self.processes = [self._context.Process(target=serve, args=(place, self._opening)) for place in places]
        for process in self.processes:
            process.start()

    def end(self) -> dict[int, str]:
        for process in self.processes:
            process.kill()
        self.close()
        return {}

    def close(self) -> None:
        for process in self.processes:
            process.join(20)
        self.codes = [process.exitcode for process in self.processes]
        self.processes = []


@dataclass
class Led:
    """Ranks that are up, and what leads them."""

    backend: RemoteBackend
    supervisor: Supervisor
    launcher: Forked
    address: Address

    def wait_until_up(self, epoch: int, seconds: float = 10.0) -> None:
        """Until ranks of that epoch or a later one serve."""
        ends = time.monotonic() + seconds
        while (ranks := self.supervisor.ranks) is None or ranks.epoch < epoch:
            assert time.monotonic() < ends, "the ranks did not come back"
            time.sleep(0.01)


@contextmanager
def led(
    manifest: Manifest,
    folder: Path,
    size: int = 2,
    step_deadline_s: float = 5.0,
    opening: Callable[[Place, Share], Opened] = open_share,
    num_pages: int = 64,
) -> Iterator[Led]:
    """Fake ranks of a model, ended in order afterwards."""
    manifest.write(folder)
    address = Address(path=str(folder / "control"))
    door, launcher = Door(address, SECRET), Forked(address, opening)
    share = Share(
        manifest.name, manifest.version, "", str(folder), "", "cpu", "auto", 1, num_pages, 4, group_timeout_s=60.0
    )
    builder = Builder(size, launcher, door, SECRET, partial(_welcome, share))
    supervisor = Supervisor(Group(manifest.name, size, step_deadline_s, SILENCE_S), builder)
    try:
        facts = supervisor.open(threading.Event())
        yield Led(RemoteBackend(manifest, supervisor, facts, supervisor.close), supervisor, launcher, address)
    finally:
        supervisor.close()


def _welcome(share: Share, epoch: int, salt: str, store: str) -> Welcome:
    return Welcome(epoch, salt, 10.0, share)
