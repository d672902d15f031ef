"""The same client for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self, TypeVar, Unpack

import httpx

from service.client import calls
from service.client.asking import Asking, Inputs, Sampling, Searching, Terms, arrays_of
from service.client.binary import DTYPES
from service.client.calls import Call
from service.client.errors import InvalidError, ProblemError, TimeOverError, UnavailableError, UnreachableError
from service.client.events import Tokens
from service.client.results import Health, ModelInfo, Prediction, Search, Tensor, Token
from service.client.retry import Attempts, Retries
from service.client.sync import LIMITS, TIMEOUT_S, URL, address, broken, headers_of

T = TypeVar("T")


class AsyncClient:
    """A server, called over HTTP and awaited; the methods and errors of `Client`. A cancelled call ends at the server.

    One event loop's own. Close it, or leave its `async with` block.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        timeout: float | None = TIMEOUT_S,
        retries: Retries | None = None,
        client_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        named = headers_of(client_id, headers)
        self._http = httpx.AsyncClient(base_url=address(url), headers=named, limits=LIMITS, transport=transport)
        self._timeout_s, self._retries = timeout, retries or Retries()
        self._takes: dict[tuple[str, str | None], tuple[Tensor, ...]] = {}

    async def predict(self, model: str, inputs: Inputs, **asked: Unpack[Asking]) -> Prediction:
        """Run every input along its chain: texts, token ids, rows, or arrays [B, ...], which travel as bytes."""
        arrays = None if asked.get("session") else arrays_of(inputs)
        attempts = self._begin(asked)
        takes = None if arrays is None else await self._inputs_of(model, asked, attempts)
        if arrays is None or takes is None:
            return await self._call(calls.predict(model, inputs, asked), attempts)
        try:
            return await self._call(calls.infer(model, arrays, takes, asked), attempts)
        except InvalidError:
            self._takes.clear()  # a model may be another by now
            raise

    async def stream(self, model: str, prompt: Inputs, **asked: Unpack[Sampling]) -> "AsyncStream":
        """Tokens of one text as they come; who stops listening stops the work."""
        call, attempts = calls.stream(model, prompt, asked), self._begin(asked)
        while True:
            try:
                return AsyncStream(await self._open(call, attempts))
            except (httpx.TransportError, ProblemError) as error:
                pause_s = attempts.pause_s(error, call.is_repeatable)
            await asyncio.sleep(pause_s)

    async def search(self, model: str, sample: Any, **asked: Unpack[Searching]) -> Search:
        """Search the chain of one sample: a text, token ids or a row."""
        return await self._call(calls.search(model, sample, asked), self._begin(asked))

    async def models(self, **asked: Unpack[Terms]) -> tuple[ModelInfo, ...]:
        """Every version there is, loaded or not."""
        return await self._call(calls.models(asked), self._begin(asked))

    async def load(self, model: str, version: str | None = None, **asked: Unpack[Terms]) -> ModelInfo:
        """Load a version, the latest by default; returns when it serves."""
        return await self._call(calls.load(model, version, asked), self._begin(asked))

    async def unload(self, model: str, version: str | None = None, **asked: Unpack[Terms]) -> None:
        """Unload a version, or all of a model, once they have answered what they accepted."""
        await self._call(calls.unload(model, version, asked), self._begin(asked))

    async def health(self, **asked: Unpack[Terms]) -> Health:
        """How the server is, asked once; that it is not there is an answer too."""
        attempts = Attempts(Retries(0), asked.get("timeout", self._timeout_s))
        try:
            return await self._call(calls.ready(), attempts)
        except UnavailableError as error:
            return Health(live=True, ready=False, detail=error.detail)
        except (UnreachableError, TimeOverError) as error:
            return Health(live=False, ready=False, detail=str(error))

    async def metrics(self, **asked: Unpack[Terms]) -> str:
        """Everything the server counts, in Prometheus text format."""
        return await self._call(calls.metrics(), self._begin(asked))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def _begin(self, asked: Mapping[str, Any]) -> Attempts:
        return Attempts(self._retries, asked.get("timeout", self._timeout_s))

    async def _inputs_of(self, model: str, asked: Asking, attempts: Attempts) -> tuple[Tensor, ...] | None:
        """What the model takes as bytes, asked for once; None for a language model, which takes texts."""
        key = model, asked.get("version")
        if key not in self._takes:
            self._takes[key] = await self._call(calls.takes(model, asked), attempts)
        found = self._takes[key]
        return found if all(one.datatype in DTYPES for one in found) else None

    async def _call(self, call: Call[T], attempts: Attempts) -> T:
        while True:
            try:
                response = await self._open(call, attempts)
                await response.aread()
                return call.read(response)
            except (httpx.TransportError, ProblemError) as error:
                pause_s = attempts.pause_s(error, call.is_repeatable)
            await asyncio.sleep(pause_s)

    async def _open(self, call: Call[Any], attempts: Attempts) -> httpx.Response:
        """Send; the response's body is still to be read. Raises ProblemError or httpx.TransportError."""
        headers, left_s = call.request_headers(attempts), attempts.left_s()
        request = self._http.build_request(
            call.method, call.path, content=call.content, headers=headers, timeout=left_s
        )
        response = await self._http.send(request, stream=True)
        if not response.is_success:
            await response.aread()
            calls.check(response)
        return response


class AsyncStream:
    """Tokens as they come; `result` is the whole prediction once they ended. To close it is to cancel it."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._tokens = Tokens(response.headers.get("x-request-id", ""))

    @property
    def result(self) -> Prediction | None:
        return self._tokens.result

    async def __aiter__(self) -> AsyncIterator[Token]:
        try:
            async for line in self._response.aiter_lines():
                if (token := self._tokens.take(line)) is not None:
                    yield token
            self._tokens.finish()
        except httpx.TransportError as error:
            raise broken(error) from error
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop listening; the server stops too."""
        await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()
