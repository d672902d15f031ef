"""When requests are sent: each client again when it is answered (closed loop), or at given times (open loop).

Knows no model and computes no statistics.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from service.bench.exchange import Call, Exchange, Wire

# A loop's timers are a millisecond coarse, as long as a small model's answer: the last bit is waited for awake.
_AWAKE_S = 0.002

# Hears how many seconds of the plan have passed.
OnProgress = Callable[[float], None]


def constant(rate: float, seconds: float) -> Sequence[float]:
    """Times from 0 on, `rate` a second, one as far from the next as any."""
    return [number / rate for number in range(int(rate * seconds))]


def poisson(rate: float, seconds: float, seed: int) -> Sequence[float]:
    """Times from 0 on, `rate` a second on average, as many users who know nothing of each other would send."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 64)
    times = np.cumsum(gaps)
    return [float(at) for at in times[times < seconds]]


async def closed_loop(
    wires: Sequence[Wire], calls: Iterator[Call], seconds: float, on_progress: OnProgress = lambda passed: None
) -> list[Exchange]:
    """Each wire sends, waits for the answer and sends again, for `seconds`; what was sent by then is waited for."""
    started = time.perf_counter()
    found: list[Exchange] = []

    async def client(wire: Wire) -> None:
        while time.perf_counter() < started + seconds:
            found.append(await wire.send(next(calls)))
            if not found[-1].status:
                await asyncio.sleep(0.01)  # a server that is gone is not asked in a spin

    reporting = asyncio.ensure_future(_report(started, on_progress))
    try:
        await asyncio.gather(*(client(wire) for wire in wires))
    finally:
        reporting.cancel()
    return found


async def open_loop(
    wires: Sequence[Wire], calls: Iterator[Call], times: Sequence[float], on_progress: OnProgress = lambda passed: None
) -> list[Exchange]:
    """Send at `times`, whether or not earlier requests were answered; latency counts from these times.

    When every wire waits for an answer the request is sent late, and its wait is part of its latency.
    """
    free: asyncio.Queue[Wire] = asyncio.LifoQueue()  # the connection used last is open
    for wire in wires:
        free.put_nowait(wire)
    started = time.perf_counter()

    async def send(due_s: float) -> Exchange:
        wire = await free.get()
        try:
            return await wire.send(next(calls), due_s)
        finally:
            free.put_nowait(wire)

    reporting = asyncio.ensure_future(_report(started, on_progress))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for at in times:
                await _until(started + at)
                tasks.append(group.create_task(send(started + at)))
    finally:
        reporting.cancel()
    return [task.result() for task in tasks]


async def _until(due_s: float) -> None:
    if (ahead := due_s - time.perf_counter()) > _AWAKE_S:
        await asyncio.sleep(ahead - _AWAKE_S)
    while time.perf_counter() < due_s:
        await asyncio.sleep(0)


async def _report(started: float, on_progress: OnProgress) -> None:
    while True:
        await asyncio.sleep(0.2)
        on_progress(time.perf_counter() - started)
