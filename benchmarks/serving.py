"""Servers for the benchmarks that go over HTTP, the load on them, and what they cost. Measures nothing by itself.

CPU and memory are those of the server's process and of all its children: some peers do their work there.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from peers import dtype_of, session_of

from service.bench.connection import written
from service.bench.exchange import Call, Exchange, Wire
from service.bench.loop import closed_loop

FATHOM = Path(sysconfig.get_path("scripts")) / "fathom"
_TICKS, _PAGE_MIB = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Served:
    """A server that has answered once; start_s: from starting the process to that answer."""

    pid: int
    port: int
    start_s: float

    def cpu_s(self) -> float:
        """CPU seconds used so far, all threads."""
        found = (_stat(pid) for pid in _family(self.pid))
        return sum((int(fields[11]) + int(fields[12])) / _TICKS for fields in found)

    def rss_mib(self) -> float:
        """Resident memory; pages that processes share count for each."""
        return sum(int(_stat(pid)[21]) * _PAGE_MIB for pid in _family(self.pid))


@contextmanager
def serving(kind: str, file: Path, repository: Path, first: Call) -> Iterator[Served]:
    """Start `fathom` or a peer and ask `first` until it is answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    peer = [sys.executable, str(Path(__file__).parent / "peers.py"), kind, str(file), str(port)]
    ours = [str(FATHOM), "serve", "--repository", str(repository), "--host", "127.0.0.1", "--port", str(port)]
    started = time.perf_counter()
    with subprocess.Popen(
        ours if kind == "fathom" else peer,
        stdout=-3,
        stderr=-3,
        start_new_session=True,
        cwd=repository.parent,
        # As the peers: one thread, no line for each request.
        env={**os.environ, "FATHOM_NUM_THREADS": "1", "FATHOM_ACCESS_LOG": "false"},
    ) as process:
        try:
            asyncio.run(_until_answered(port, first))
            yield Served(process.pid, port, time.perf_counter() - started)
        finally:
            process.terminate()
            try:
                process.wait(10)
            finally:
                _end_group(process.pid)


def load(port: int, calls: Sequence[Call], clients: int, seconds: float) -> list[Exchange]:
    """What `clients` that each ask again as soon as they are answered got in `seconds`; none may be refused."""

    async def all_clients() -> list[Exchange]:
        wires = [Wire("127.0.0.1", port) for _ in range(clients)]
        found = await closed_loop(wires, cycle(calls), seconds)
        for wire in wires:
            wire.close()
        return found

    found = asyncio.run(all_clients())
    assert all(one.is_answered for one in found), {one.status for one in found}
    return found


def json_call(model: str, inputs: NDArray[np.generic]) -> Call:
    """Rows as JSON; `model` is ignored by the peers."""
    body = orjson.dumps({"model": model, "inputs": inputs.round(4).tolist()})
    return Call(written("POST", "/predict", body, content_type="application/json"), num_rows=len(inputs))


def binary_call(model: str, name: str, inputs: NDArray[np.float32]) -> Call:
    """Rows as a binary tensor of the Open Inference Protocol, answered as one."""
    size = {"binary_data_size": inputs.nbytes}
    tensor = {"name": name, "shape": inputs.shape, "datatype": "FP32", "parameters": size}
    document = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    head = {"content_type": "application/octet-stream", "inference_header_content_length": str(len(document))}
    path = f"/v2/models/{model}/infer"
    return Call(written("POST", path, document + inputs.tobytes(), **head), num_rows=len(inputs))


def raw_ms(file: Path, inputs: NDArray[np.generic], seconds: float = 0.5) -> float:
    """CPU milliseconds of the bare runtime for these rows, in this process."""
    session = session_of(str(file))
    feed = {session.get_inputs()[0].name: inputs.astype(dtype_of(session))}
    session.run(None, feed)
    started, count = time.process_time(), 0
    while (spent := time.process_time() - started) < seconds:
        session.run(None, feed)
        count += 1
    return 1000 * spent / count


async def _until_answered(port: int, first: Call) -> None:
    ends = time.monotonic() + 60
    wire = Wire("127.0.0.1", port)
    while not (await wire.send(first)).is_answered:
        if time.monotonic() > ends:
            raise TimeoutError(f"nothing answers on port {port}")
        await asyncio.sleep(0.01)
    wire.close()


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _family(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents.setdefault(int(_stat(int(path.name))[1]), []).append(int(path.name))
        except OSError:
            continue  # it ended meanwhile
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _end_group(pid: int) -> None:
    """End the children a peer left behind."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
