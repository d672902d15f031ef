"""Loops against a server of known service times: what they send, when, and what they count as latency."""

import asyncio
import contextlib
import itertools
import time
from typing import Any

import pytest

from service.bench.connection import written
from service.bench.exchange import NO_ANSWER, Call, Exchange, Wire
from service.bench.loop import closed_loop, constant, open_loop, poisson
from service.bench.summary import summarise

CALL = Call(written("GET", "/"), num_rows=3)
SERVICE_S = 0.02
STALL_S = 1.0


async def closed(port: int, clients: int, seconds: float) -> list[Exchange]:
    wires = [Wire("127.0.0.1", port) for _ in range(clients)]
    try:
        return await closed_loop(wires, itertools.repeat(CALL), seconds)
    finally:
        for wire in wires:
            wire.close()


async def opened(port: int, times: Any, connections: int = 256) -> list[Exchange]:
    wires = [Wire("127.0.0.1", port) for _ in range(connections)]
    try:
        return await open_loop(wires, itertools.repeat(CALL), times)
    finally:
        for wire in wires:
            wire.close()


def test_closed_loop_gives_clients_over_service_time(fake: Any) -> None:
    async def run() -> list[Exchange]:
        async with fake(lambda number: SERVICE_S) as port:
            return await closed(port, 4, 1.0)

    found = summarise(asyncio.run(run()))
    # Never faster than the server, and not much slower, on a machine that may be busy.
    assert 0.4 * 4 / SERVICE_S < found.requests_per_s <= 1.02 * 4 / SERVICE_S
    assert found.rows_per_s == pytest.approx(3 * found.requests_per_s)
    assert found.latency is not None
    assert found.latency.p50_ms >= 0.95 * 1000 * SERVICE_S
    assert found.status == {200: found.num_requests}
    assert found.num_late == 0


def test_open_loop_shows_a_stall_to_everybody_who_came_meanwhile(fake: Any) -> None:
    async def run() -> tuple[list[Exchange], list[Exchange]]:
        async def stall(gate: asyncio.Event) -> None:
            await asyncio.sleep(1.0)
            gate.clear()
            await asyncio.sleep(STALL_S)
            gate.set()

        both = []
        for load in ("open", "closed"):
            gate = asyncio.Event()
            gate.set()
            async with fake(lambda number: 0.0, gate=gate) as port:
                stalling = asyncio.ensure_future(stall(gate))
                both.append(await (opened(port, constant(100, 4.0)) if load == "open" else closed(port, 1, 4.0)))
                await stalling
        return both[0], both[1]

    by_rate, by_client = (summarise(found) for found in asyncio.run(run()))
    assert by_rate.latency is not None
    assert by_client.latency is not None
    assert by_rate.num_requests == 400
    assert by_rate.latency.max_ms > 0.8 * 1000 * STALL_S
    assert by_rate.latency.p99_ms > 0.7 * 1000 * STALL_S
    assert by_client.latency.p99_ms < 0.5 * 1000 * STALL_S, "one client asked once in the stall, and hides it"


def test_latency_counts_from_when_a_request_was_due_however_late_it_is_sent(fake: Any) -> None:
    async def run() -> list[Exchange]:
        async with fake(lambda number: 0.05) as port:
            return await opened(port, constant(100, 0.5), connections=1)

    found = asyncio.run(run())
    summary = summarise(found)
    assert len(found) == 50
    assert summary.num_late >= 45
    # The last waits for 49 answers of 50 ms, less the 490 ms it came after the first.
    assert found[-1].latency_s >= 50 * 0.05 - 0.5
    assert found[-1].done_s - found[-1].sent_s < found[-1].latency_s


def test_open_loop_sends_on_time(fake: Any) -> None:
    async def run() -> list[Exchange]:
        async with fake(lambda number: 0.0) as port:
            return await opened(port, constant(50, 1.0))

    found = asyncio.run(run())
    gaps = [late.due_s - early.due_s for early, late in itertools.pairwise(found)]
    assert all(gap == pytest.approx(0.02, abs=1e-6) for gap in gaps)
    assert all(one.sent_s >= one.due_s for one in found)


def test_poisson_times_have_the_rate_and_the_spread_and_repeat() -> None:
    times = poisson(200, 100, seed=3)
    assert list(times) == list(poisson(200, 100, seed=3)) != list(poisson(200, 100, seed=4))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = [late - early for early, late in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)
    assert max(times) < 100


def test_refusals_and_lost_connections_are_counted_and_no_answer_is_no_throughput(fake: Any) -> None:
    async def run(answer: bytes) -> list[Exchange]:
        async with fake(lambda number: 0.01, answer) as port:
            return await closed(port, 2, 0.2)

    refused = summarise(asyncio.run(run(b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n")))
    assert refused.status.keys() == {429}
    assert refused.requests_per_s == 0
    assert refused.latency is None
    broken = summarise(asyncio.run(run(b"garbage")))
    assert broken.status.keys() == {NO_ANSWER}
    closing = summarise(asyncio.run(run(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")))
    assert closing.status.keys() == {200}
    assert closing.num_requests > 2


def test_tokens_of_a_stream_are_timed_as_they_come() -> None:
    event = b'event: token\ndata: {"text":"1"}\n\n'
    whole = event * 3 + b"event: done\ndata: {}\n\n"
    # Cut where it hurts: within the word that is looked for.
    pieces = [whole[:5], whole[5:40], whole[40:70], whole[70:]]

    async def run() -> Exchange:
        left = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in pieces:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await asyncio.sleep(0.03)
            writer.write(b"0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            left.set()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            wire = Wire("127.0.0.1", server.sockets[0].getsockname()[1])
            found = await wire.send(Call(written("POST", "/"), is_stream=True, has_tokens=True))
            wire.close()
            await left.wait()
            return found

    found = asyncio.run(run())
    assert found.status == 200
    assert found.num_tokens == len(found.token_times_s) == 3
    assert found.sent_s < found.token_times_s[0] < found.token_times_s[-1] <= found.done_s
    assert found.first_token_s is not None
    assert found.first_token_s >= 0.025
    assert summarise([found]).inter_token is not None


def test_nobody_listening_is_no_answer() -> None:
    async def run() -> Exchange:
        return await Wire("127.0.0.1", 1).send(CALL)

    started = time.monotonic()
    assert asyncio.run(run()).status == NO_ANSWER
    assert time.monotonic() - started < 5
