"""One rank's part of a model, opened: the group joined and timed, weights loaded. Knows no program and no socket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from models.artifact import Manifest
from models.errors import BackendError
from models.parallel.crossing import Crossing, divide
from models.parallel.group import Alone, Group, Handle, join_group
from models.parallel.probe import probe
from models.parallel.staged import Station
from models.parallel.stages import Stages
from service.backends.protocol import Backend, Dtype
from service.backends.sharded import load_part, sharded_backend
from service.backends.staged import staged_backend
from service.backends.torch_arrays import torch_device

# Where ranks of several machines meet: a store that the first of them has.
Hosted: TypeAlias = TCPStore


@dataclass(frozen=True, slots=True)
class RankOpening:
    """What a rank opens, and on what. timeout_s bounds the meeting of ranks, and every collective after it.

    store: the file through which ranks of one machine meet, or tcp://host:port of what the first rank has `hosted`.
    stages: of a pipeline, each of as many consecutive ranks.
    """

    manifest: Manifest
    directory: Path
    store: str
    hosted: Store | None
    timeout_s: float
    device: str
    dtype: Dtype
    num_threads: int
    num_pages: int
    page_size: int
    stages: Stages


@dataclass(frozen=True, slots=True)
class OpenedRank:
    """A rank that is ready. said: a line for the log. speaker: the first of the ranks that have what comes out."""

    backend: Backend
    group: "TimedGroup"
    said: str
    speaker: int = 0
    has_outputs: bool = True


class TimedGroup:
    """A group that counts its collectives, and the seconds that its rank did nothing but wait for them.

    On a GPU waiting is the device's: the host only queues it, and counts next to nothing. everybody: the ranks of all
    stages, where those of `group` are one.
    """

    def __init__(self, group: Group, device: torch.device, everybody: Group | None = None) -> None:
        self._group, self._everybody = group, everybody or group
        self._probed = torch.zeros(1024, device=device)
        self.num_collectives, self.waited_s, self.has_failed = 0, 0.0, False

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def all_reduce(self, tensor: Tensor) -> Handle:
        with self.counting():
            handle = self._group.all_reduce(tensor)
        self.num_collectives += 1
        return _Timed(self, handle)

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        self.num_collectives += 1
        with self.counting():
            return self._group.all_gather(tensor, dim)

    def leave(self) -> None:
        self._everybody.leave()

    def probe(self) -> float:
        """Seconds of one all-reduce of everybody that nothing hides: of its latency, for it is of few bytes."""
        started = time.perf_counter()
        with self.counting():
            self._everybody.all_reduce(self._probed).wait()
            if self._probed.is_cuda:
                torch.cuda.synchronize()
        return time.perf_counter() - started

    @contextmanager
    def counting(self) -> Iterator[None]:
        """What is done within is waiting; if it fails the group is of no use any more."""
        started = time.perf_counter()
        try:
            yield
        except BackendError:
            self.has_failed = True
            raise
        finally:
            self.waited_s += time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class _Timed:
    group: TimedGroup
    handle: Handle

    def wait(self) -> None:
        with self.group.counting():
            self.handle.wait()


@dataclass(frozen=True, slots=True)
class TimedCrossing:
    """A way to other stages on which waiting counts, and every message as a collective."""

    crossing: Crossing
    group: TimedGroup

    @property
    def stage(self) -> int:
        return self.crossing.stage

    def send(self, tensor: Tensor, stage: int) -> None:
        self.group.num_collectives += 1
        with self.group.counting():
            self.crossing.send(tensor, stage)

    def receive(self, tensor: Tensor, stage: int) -> None:
        self.group.num_collectives += 1
        with self.group.counting():
            self.crossing.receive(tensor, stage)


def open_rank(rank: int, size: int, opening: RankOpening) -> OpenedRank:
    """Meet the other ranks, load this one's part, and time it with those of its stage. Raises BackendError."""
    torch.set_num_threads(opening.num_threads)
    device = torch_device(opening.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if size == 1:
        return _on_all_layers(TimedGroup(Alone(), device), opening)
    joined = join_group(rank, size, opening.hosted or _store(opening, size), opening.timeout_s, device.type)
    if opening.stages.count == 1:
        return _on_all_layers(TimedGroup(joined, device), opening)
    own, crossing = divide(joined, opening.stages.count, opening.timeout_s)
    group = TimedGroup(own, device, joined)
    return _on_stage(group, TimedCrossing(crossing, group), opening)


def _on_all_layers(group: TimedGroup, opening: RankOpening) -> OpenedRank:
    shard = load_part(opening.manifest, opening.directory, group, opening.dtype, opening.device)
    assert opening.manifest.language is not None
    said = probe(shard).text
    backend = sharded_backend(shard, opening.manifest.language, opening.num_pages, opening.page_size)
    return OpenedRank(backend, group, said)


def _on_stage(group: TimedGroup, crossing: Crossing, opening: RankOpening) -> OpenedRank:
    stages, language = opening.stages, opening.manifest.language
    found = (opening.manifest, opening.directory, group, opening.dtype, opening.device)
    shard = load_part(*found, stages, crossing.stage)
    assert language is not None
    said = f"{stages.told(group.size, shard.config.is_tied)}; on stage {crossing.stage} {probe(shard).text}"
    station = Station(shard.config, stages, crossing, group)
    backend = staged_backend(shard, language, station, opening.num_pages, opening.page_size)
    return OpenedRank(backend, group, said, station.head * group.size, backend.has_outputs)


def prepare() -> None:
    """Have torch import what it would import when the first model is built, which takes as long as torch itself."""
    with torch.device("meta"):
        torch.nn.Embedding(1, 1)


def host_store(size: int) -> Hosted:
    """Where ranks can meet that have no files in common; on a free port of this machine."""
    return TCPStore("localhost", 0, size, is_master=True, wait_for_workers=False)


def _store(opening: RankOpening, size: int) -> Store:
    if not opening.store.startswith("tcp://"):
        return FileStore(opening.store, size)
    place = urlsplit(opening.store)
    assert place.hostname is not None
    assert place.port is not None
    timeout = timedelta(seconds=opening.timeout_s)
    return TCPStore(place.hostname, place.port, size, timeout=timeout, wait_for_workers=False)
