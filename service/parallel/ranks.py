"""The ranks of one epoch as their leader has them: programs out, reports in, all of them compared. Starts nobody."""

import contextlib
import logging
import math
import selectors
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from models.errors import BackendError, FathomError
from service.backends.protocol import Array
from service.parallel.digest import Trace
from service.parallel.execute import agree
from service.parallel.messages import Facts, Welcome, error_of, facts_of
from service.parallel.wire import Wire

_log = logging.getLogger("fathom.ranks")
# Once one rank has failed at an operation all others do so at the same one, or never will.
_AFTER_FAILURE_S = 2.0
_LEAST_S = 1e-3


class LostError(Exception):
    """A rank that is gone, silent, or not where the others are: the group is of no use any more."""


@dataclass(slots=True)
class Told:
    """What ranks told of the last program, one number for each."""

    step_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)
    probe_s: list[float] = field(default_factory=list)
    num_carries: int = 0


@dataclass(frozen=True, slots=True)
class _Report:
    told: dict[str, Any]
    outputs: dict[str, Array]


class Ranks:
    """Connections to all ranks of one epoch, in the order of ranks; and their processes, each on its machine."""

    def __init__(
        self, epoch: int, key: bytes, plans: Sequence[Wire], pulses: Sequence[Wire], processes: Sequence[int]
    ) -> None:
        self.epoch, self.plans, self.pulses, self.processes = epoch, plans, pulses, processes
        self.told = Told()
        self.num_answered = 0
        self.used_at = time.monotonic()
        self._trace, self._turn = Trace(key), threading.Lock()

    def open(self, welcome: Welcome, timeout_s: float) -> Facts:
        """Have every rank open its part. Raises FathomError, with what a rank says of why it cannot."""
        found: dict[int, Facts] = {}
        said = ""
        ends = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for rank, plan in enumerate(self.plans):
                selector.register(plan, selectors.EVENT_READ, rank)
            try:
                for plan in self.plans:
                    plan.send_json(welcome.document(), timeout_s=timeout_s)
                while len(found) < len(self.plans):
                    for key, _ in selector.select(max(ends - time.monotonic(), _LEAST_S)):
                        answer = self.plans[key.data].receive_json(ends - time.monotonic())
                        found[key.data] = _facts(answer)
                        said = answer["said"] if key.data == 0 else said
                    if time.monotonic() > ends:
                        raise TimeoutError(f"ranks did not open their parts within {timeout_s:g} s")
            except OSError as error:
                raise BackendError(f"the ranks did not open their parts: {error}; the log says why") from error
        if any(facts != found[0] for facts in found.values()):
            raise BackendError(f"the ranks have opened different models: {found}; give all nodes the same files")
        if said:
            _log.info("%s", said)
        return found[0]

    def run(self, body: bytes, timeout_s: float) -> dict[str, Array]:
        """Have all ranks do a program; the outputs of the one that tells them.

        Raises LostError, or what the program raised on every rank alike.
        """
        with self._turn:
            started = self.used_at = time.monotonic()
            digest = self._trace.extend(body)
            reports = self._exchange(digest, body, started + timeout_s)
            self.told.step_s = time.monotonic() - started
        self._compare(reports)
        self._note(reports)
        if error := reports[0].told["error"]:
            raise error_of(error)
        return next((report.outputs for report in reports if report.outputs), {})

    def end(self, timeout_s: float) -> None:
        """Tell every rank to end in order, and wait until they have."""
        ends = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            for plan in self.plans:
                plan.send(b"", timeout_s=timeout_s)
        for plan in self.plans:
            with contextlib.suppress(OSError):  # which is how a connection ends
                plan.receive(ends - time.monotonic())

    def cut(self) -> None:
        """Wake whoever waits for a rank."""
        for wire in (*self.plans, *self.pulses):
            wire.cut()

    def close(self) -> None:
        """Give the connections back, once whoever waited has left."""
        self.cut()
        with self._turn:
            for wire in (*self.plans, *self.pulses):
                wire.close()

    def _exchange(self, digest: bytes, body: bytes, ends: float) -> list[_Report]:
        reports: list[_Report] = []
        try:
            for plan in self.plans:
                plan.send(digest, body, timeout_s=max(ends - time.monotonic(), _LEAST_S))
            for plan in self.plans:
                reports.append(_report(plan.receive(ends - time.monotonic())))
                if reports[-1].told.get("error"):
                    ends = min(ends, time.monotonic() + _AFTER_FAILURE_S)
        except TimeoutError as error:
            raise LostError(f"rank {len(reports)} did not finish a step in time") from error
        except OSError as error:
            raise LostError(f"rank {len(reports)} is gone: {error}") from error
        return reports

    def _compare(self, reports: Sequence[_Report]) -> None:
        first, collectives = reports[0].told, dict[int, int]()  # of the ranks of a stage as many
        looked = {rank: found for rank, report in enumerate(reports) if (found := report.told.get("looked"))}
        speaker = min(looked, default=0)
        for rank, report in enumerate(reports):
            if "diverged" in report.told:
                raise LostError(f"rank {rank} diverged: {report.told['diverged']}")
            if report.told["has_failed"]:
                error = report.told["error"] or {"text": "a collective failed"}
                raise LostError(f"rank {rank} lost the others: {error['text']}")
            stage, count = report.told["collectives"]
            if report.told["digest"] != first["digest"] or collectives.setdefault(stage, count) != count:
                raise LostError(f"rank {rank} diverged: it did something else than rank 0")
            if rank in looked and not agree(looked[rank], looked[speaker]):
                raise LostError(f"rank {rank} diverged: its outputs are not those of rank {speaker}")

    def _note(self, reports: Sequence[_Report]) -> None:
        told = self.told
        told.waited_s = [report.told["waited_s"] for report in reports]
        told.probe_s = [report.told["probe_s"] for report in reports]
        told.num_carries = reports[0].told["num_carries"]
        self.num_answered += 1


def _facts(answer: dict[str, Any]) -> Facts:
    if "failed" in answer:
        error: FathomError = error_of(answer["failed"])
        raise error
    return facts_of(answer["facts"])


def _report(frame: bytearray) -> _Report:
    """A report, and the outputs behind it, in the memory of the frame."""
    start = 4 + int.from_bytes(frame[:4], "little")
    told, outputs = orjson.loads(frame[4:start]), {}
    for name, dtype, shape in told["outputs"]:
        outputs[name] = np.frombuffer(frame, np.dtype(dtype), math.prod(shape), start).reshape(shape)
        start += outputs[name].nbytes
    return _Report(told, outputs)
