"""Ranks for tests: processes that joined one gloo group and run whatever they are sent, all the same thing."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from models.parallel.group import ProcessGroup

P = ParamSpec("P")
T = TypeVar("T")
# Longer than anything a test waits for, shorter than anybody's patience.
TIMEOUT_S = 60.0


class Ranks:
    """A group of processes, one rank each."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    @property
    def size(self) -> int:
        return len(self._pipes)

    def run(self, work: Callable[Concatenate[ProcessGroup, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """What `work(group, ...)` of a module returns on each rank. Raises what the first that failed raised."""
        for pipe in self._pipes:
            pipe.send((work, args, kwargs))
        answers = [pipe.recv() for pipe in self._pipes]
        for error in (error for _, error in answers if error is not None):
            raise error
        return [answer for answer, _ in answers]


@contextmanager
def ranks(size: int, store: Path) -> Iterator[Ranks]:
    """`size` processes that met at the file `store`; forked from one that imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tests.contracts.test_backend", "tests.parallel.served"])
    both = [context.Pipe() for _ in range(size)]
    started = [
        context.Process(target=_serve, args=(rank, size, str(store), inner), daemon=True)
        for rank, (_, inner) in enumerate(both)
    ]
    for process in started:
        process.start()
    try:
        yield Ranks([outer for outer, _ in both])
    finally:
        for outer, _ in both:
            outer.close()
        for process in started:
            process.join(TIMEOUT_S)
            process.kill()


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    from models.parallel.group import join_group

    torch.set_num_threads(1)
    group = join_group(rank, size, dist.FileStore(store, size), TIMEOUT_S)
    while True:
        try:
            work, args, kwargs = pipe.recv()
        except EOFError:
            break
        pipe.send(_answer(work, group, args, kwargs))
    group.leave()


def _answer(work: Callable[..., Any], group: ProcessGroup, args: Any, kwargs: Any) -> tuple[Any, Exception | None]:
    try:
        return work(group, *args, **kwargs), None
    except Exception as error:
        error.add_note(f"on rank {group.rank} of {group.size}")
        return None, error
