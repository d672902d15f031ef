"""Both clients under one face, so that every test holds for both."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from fathom import AsyncClient, Client

Connect: TypeAlias = Callable[..., Any]


class Waited:
    """An AsyncClient whose calls are waited for; a stream is a list of what came, and its result."""

    def __init__(self, runner: asyncio.Runner, *arguments: Any, **options: Any) -> None:
        self._run = runner.run
        self._client = AsyncClient(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._run(method(*arguments, **options))

    def tokens(self, *arguments: Any, num_wanted: int = 1 << 20, **options: Any) -> tuple[list[Any], Any]:
        async def listen() -> tuple[list[Any], Any]:
            found = []
            async with await self._client.stream(*arguments, **options) as stream:
                async for token in stream:
                    found.append(token)
                    if len(found) == num_wanted:
                        break
            return found, stream.result

        return self._run(listen())  # type: ignore[no-any-return]


class Plain(Client):
    """A Client with the same way to listen to a stream."""

    def tokens(self, *arguments: Any, num_wanted: int = 1 << 20, **options: Any) -> tuple[list[Any], Any]:
        found = []
        with self.stream(*arguments, **options) as stream:
            for token in stream:
                found.append(token)
                if len(found) == num_wanted:
                    break
        return found, stream.result


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make a client, closed at the end."""
    with ExitStack() as stack:
        if request.param == "sync":
            yield lambda *arguments, **options: stack.enter_context(Plain(*arguments, **options))
            return
        runner = stack.enter_context(asyncio.Runner())

        def make(*arguments: Any, **options: Any) -> Waited:
            client = Waited(runner, *arguments, **options)
            stack.callback(lambda: client.close())
            return client

        yield make
