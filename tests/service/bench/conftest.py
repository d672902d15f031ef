"""A server whose service times are known, to hold the load tool against."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

Fake = Callable[..., AbstractAsyncContextManager[int]]


@pytest.fixture
def fake() -> Fake:
    """Serve: the answer to request number n comes after `delay_s(n)`; none while `gate` is shut."""

    @asynccontextmanager
    async def serve(
        delay_s: Callable[[int], float],
        answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        gate: asyncio.Event | None = None,
    ) -> AsyncIterator[int]:
        count = 0
        handling = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            handling.add(asyncio.current_task())
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    number, count = count, count + 1
                    if gate is not None:
                        await gate.wait()
                    await asyncio.sleep(delay_s(number))
                    writer.write(answer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in handling:
                task.cancel()
            await asyncio.gather(*handling, return_exceptions=True)

    return serve
