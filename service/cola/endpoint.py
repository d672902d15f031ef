"""The verifier behind an HTTP endpoint from the settings. Imported by the first search that asks it: httpx is large."""

import asyncio
import json
from dataclasses import dataclass

import httpx

from models.errors import VerifierError
from service.cola.verifier import Verifier

_RETRY_AFTER_S = 0.1
_MAX_REPLY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to POST `{"input", "answer"}` and read `{"reward"}`; never taken from a request.

    timeout_s: for all tries of one answer together. max_retries: after a failed connection or a status of 5xx.
    """

    url: str
    timeout_s: float
    max_retries: int
    transport: httpx.AsyncBaseTransport | None = None

    def verifier(self, sample: str) -> Verifier:
        """The reward this endpoint gives."""
        return Verifier(self._ask, sample, "the verifier endpoint", self.timeout_s)

    async def _ask(self, sample: str, answer: str) -> object:
        async with httpx.AsyncClient(timeout=self.timeout_s, transport=self.transport) as client:
            for attempt in range(self.max_retries + 1):
                if attempt:
                    await asyncio.sleep(_RETRY_AFTER_S * 2 ** (attempt - 1))
                said, failure = await self._try(client, {"input": sample, "answer": answer})
                if not failure:
                    return said
        raise VerifierError(f"the verifier endpoint failed {self.max_retries + 1} times, at last with {failure}")

    async def _try(self, client: httpx.AsyncClient, body: dict[str, str]) -> tuple[object, str]:
        """The reward, or why it may be asked for again. Raises VerifierError where asking again is no use."""
        try:
            async with client.stream("POST", self.url, json=body) as response:
                if response.status_code >= 500:
                    return None, f"status {response.status_code}"
                if response.status_code != 200:
                    raise VerifierError(f"the verifier endpoint answered with status {response.status_code}, not 200")
                return await _reward_in(response), ""
        except httpx.TransportError as error:
            return None, type(error).__name__


async def _reward_in(response: httpx.Response) -> object:
    reply = b""
    async for chunk in response.aiter_bytes():
        reply += chunk
        if len(reply) > _MAX_REPLY_BYTES:
            raise VerifierError(f"the verifier endpoint answered with more than {_MAX_REPLY_BYTES} bytes")
    try:
        return json.loads(reply)["reward"]
    except (ValueError, TypeError, KeyError) as error:
        raise VerifierError(f"the verifier endpoint answered without a 'reward': {reply[:80]!r}") from error
