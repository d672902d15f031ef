"""One rank: comes to its leader, opens its part of a model, and does programs until it is told to end, or lost.

Started by the nursery on the leader's machine; or by torchrun on any, as `python -m service.parallel.worker`, with
RANK and WORLD_SIZE in the environment.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import orjson

from models.artifact import Manifest, read_manifest
from models.errors import ArtifactError, BackendError
from models.parallel.stages import Stages
from service.backends.protocol import Array, Backend
from service.parallel.address import Address, parse_address
from service.parallel.digest import DIGEST_BYTES, Trace, epoch_key, equal
from service.parallel.execute import Interpreter, Outcome, look
from service.parallel.greeting import Hello, introduce
from service.parallel.messages import Share, Welcome, told, welcome_of
from service.parallel.probing import find_facts
from service.parallel.program import input_names
from service.parallel.pulse import Pulse, leave
from service.parallel.secret import read_secret
from service.parallel.wire import ALIGNMENT, Wire

if TYPE_CHECKING:
    from service.backends.ranks import Hosted

# How long a leader is looked for, and how long the others may take to come.
_SEEKING_S, _GREETING_S, _WAITING_S = 60.0, 10.0, 600.0
_PAUSE_S = 0.1
FAILED = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank of how many, whom it comes to, and the secret of both. repository: on this node, of its own.

    store: where others can meet this rank, if it is to have them meet.
    """

    rank: int
    size: int
    control: Address
    secret: bytes
    repository: Path | None = None
    store: "Hosted | None" = None


class Counting(Protocol):
    """The group of a rank: collectives so far, seconds spent waiting for them, and whether one has failed."""

    num_collectives: int
    waited_s: float
    has_failed: bool

    def probe(self) -> float:
        """Have all ranks meet; the seconds it took."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A rank's backend, what its group has counted, and how both end; `said` is a line for the log.

    stage: which ranks with the same one do the same collectives. has_outputs: what comes out here means something; of
    the ranks for which this holds the `speaker` tells it.
    """

    manifest: Manifest
    backend: Backend
    group: Counting
    close: Callable[[], None]
    said: str = ""
    stage: int = 0
    has_outputs: bool = True
    speaker: int = 0


Open = Callable[[Place, Share], Opened]


def run(place: Place, open_share: "Open | None" = None) -> int:
    """Be a rank until it is over; the exit code, 0 after an end in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, meant for the leader
    process = f"{os.getpid()}.{os.urandom(4).hex()}"
    plan, beats = (_connect(place, process, role) for role in ("plan", "pulse"))
    try:
        welcome = welcome_of(plan.receive_json(_WAITING_S))
    except OSError as error:
        leave(f"the others did not come: {error}")
    pulse = Pulse(beats, welcome.silence_s)
    try:
        opened = (open_share or open_part)(place, welcome.share)
        plan.send_json({"facts": find_facts(opened.manifest, opened.backend).document(), "said": opened.said})
    except Exception as error:
        plan.send_json({"failed": told(error)})
        return FAILED
    try:
        code = Rank(place, welcome, plan, opened).serve()
    except OSError as error:
        leave(f"the leader is gone: {error}")
    pulse.stop()
    beats.cut()
    opened.close()
    return code


class Rank:
    """One rank's work in one epoch."""

    def __init__(self, place: Place, welcome: Welcome, plan: Wire, opened: Opened) -> None:
        key = epoch_key(place.secret, welcome.epoch, bytes.fromhex(welcome.salt))
        self._asked, self._done = Trace(key), Trace(key)
        self._plan, self._opened, self._speaks = plan, opened, place.rank == opened.speaker
        self._probe_s = 0.0
        self._interpreter = Interpreter(opened.backend, input_names(opened.manifest), self._probe)

    def serve(self) -> int:
        """Do what comes. An empty frame is the end; what was altered or comes out of turn is never begun."""
        while frame := self._plan.receive():
            digest, body = frame[:DIGEST_BYTES], frame[DIGEST_BYTES:]
            if not equal(self._asked.extend(body), digest):
                self._plan.send(*_packed({"diverged": "a program is not the one that was sent next"}, Outcome()))
                return FAILED
            self._answer(body)
        return 0

    def _answer(self, body: bytearray) -> None:
        group = self._opened.group
        started, waited_s = time.perf_counter(), group.waited_s
        outcome = self._interpreter.run(body)
        trace = ",".join(map(str, outcome.trace)).encode()
        report: dict[str, object] = {
            "digest": self._done.extend(self._asked.digest, trace).hex(),
            "collectives": (self._opened.stage, group.num_collectives),
            "looked": look(outcome.outputs) if self._opened.has_outputs else None,
            "num_carries": self._interpreter.num_carries,
            "busy_s": time.perf_counter() - started,
            "waited_s": group.waited_s - waited_s,
            "has_failed": group.has_failed,
            "probe_s": self._probe_s,
            "error": told(outcome.error) if outcome.error else None,
        }
        self._plan.send(*_packed(report, outcome if self._speaks else Outcome()))

    def _probe(self) -> int:
        self._probe_s = self._opened.group.probe()
        return 0


def open_part(place: Place, share: Share) -> Opened:
    """This rank's part of the model. Raises ArtifactError if it is not the leader's model, BackendError."""
    from service.backends.ranks import RankOpening, open_rank

    if not share.directory and place.repository is None:
        raise BackendError("the leader is on another machine; start the rank with --repository")
    directory = Path(share.directory or (place.repository or Path()) / share.name / share.version)
    manifest = read_manifest(directory)
    if manifest.artifact_hash != share.artifact:
        raise ArtifactError(f"{directory} is not the model of the leader; copy that one here")
    stages = Stages(tuple(share.bounds or (0, manifest.num_layers)))
    opening = RankOpening(
        manifest,
        directory,
        share.store,
        place.store,
        share.group_timeout_s,
        share.device,
        share.dtype,
        share.num_threads,
        share.num_pages,
        share.page_size,
        stages,
    )
    found = open_rank(place.rank, place.size, opening)

    def close() -> None:
        found.backend.close()
        found.group.leave()

    stage = place.rank * stages.count // place.size
    return Opened(manifest, found.backend, found.group, close, found.said, stage, found.has_outputs, found.speaker)


def _connect(place: Place, process: str, role: Literal["plan", "pulse"]) -> Wire:
    """A connection to the leader, which may not be there yet; without one the process ends."""
    ends = time.monotonic() + _SEEKING_S
    hello = Hello(place.rank, place.size, process, role, place.store.port if place.store else 0)
    while True:
        try:
            return introduce(place.control.connect(_GREETING_S), place.secret, hello, _GREETING_S)
        except OSError as error:
            if time.monotonic() > ends:
                leave(f"no leader at {place.control}: {error}")
            time.sleep(_PAUSE_S)


def _packed(report: dict[str, object], outcome: Outcome) -> list[bytes]:
    """A report as JSON behind its length, then the outputs' numbers, from where they can be read in place."""
    arrays: dict[str, Array] = outcome.outputs
    outputs = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    head = orjson.dumps({**report, "outputs": outputs})
    head += b" " * (-(len(head) + 4) % ALIGNMENT)
    return [len(head).to_bytes(4, "little"), head, *(array.tobytes() for array in arrays.values())]


def place_of_environment(arguments: argparse.Namespace) -> Place:
    """The place that torchrun has given this process. Raises BackendError."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise BackendError("RANK and WORLD_SIZE are not in the environment; start ranks with torchrun") from error
    from service.backends.ranks import host_store, prepare  # before anybody waits for signs of life: it takes seconds

    prepare()
    store = None if rank else host_store(size)
    secret = read_secret(arguments.secret)
    return Place(rank, size, parse_address(arguments.control), secret, arguments.repository, store)


def main() -> None:
    """The command line of a rank that torchrun starts."""
    parser = argparse.ArgumentParser(prog="python -m service.parallel.worker", description=__doc__)
    parser.add_argument("--control", required=True, help="address of the server, tcp://host:port")
    parser.add_argument("--secret", required=True, type=Path, help="file with the secret that it shares with ranks")
    parser.add_argument("--repository", type=Path, help="folder of models on this node")
    try:
        sys.exit(run(place_of_environment(parser.parse_args())))
    except BackendError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
