"""What goes over the wire, and answers no healthy server gives."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fathom import BusyError, ClientError, ProblemError, ServerError, UnreachableError
from service.client import concurrent, sync
from service.client.retry import Retries

TOKEN = 'event: token\ndata: {"text": "1", "token_id": 2, "logprob": -0.5}\n\n'
PROBLEM = 'event: problem\ndata: {"title": "The queue is full", "status": 429, "detail": "too much"}\n\n'
BUSY = httpx.Response(429, headers={"retry-after": "2"}, json={"title": "The queue is full", "detail": "4 wait"})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes any time."""
    made: list[float] = []

    async def rest(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(sync.time, "sleep", made.append)  # type: ignore[attr-defined]
    monkeypatch.setattr(concurrent.asyncio, "sleep", rest)  # type: ignore[attr-defined]
    return made


def answering(*responses: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A server that answers with these in turn, the last one for ever; and what it was asked."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        response = responses[min(len(seen), len(responses)) - 1]
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    return httpx.MockTransport(handle), seen


def test_terms_ride_in_headers(connect: Callable[..., Any]) -> None:
    transport, seen = answering(httpx.Response(200, json=[]))
    client = connect("http://x/prefix", client_id="me", headers={"authorization": "Bearer k"}, transport=transport)
    client.models(timeout=10, priority=1)
    headers = seen[0].headers
    assert 9.8 < float(headers["x-request-timeout"]) <= 9.9
    assert (headers["x-request-priority"], headers["x-client-id"]) == ("1", "me")
    assert headers["authorization"] == "Bearer k"
    assert seen[0].url == "http://x/prefix/models"
    for timeout in (None, float("inf")):
        client.models(timeout=timeout)
        assert "x-request-timeout" not in seen[-1].headers
    connect("x:80", transport=transport).models()
    assert seen[-1].url == "http://x:80/models"


def test_busy_server_is_asked_again_after_what_it_said(connect: Callable[..., Any], pauses: list[float]) -> None:
    transport, seen = answering(BUSY, BUSY, httpx.Response(200, json=[]))
    assert connect("http://x", transport=transport).models() == ()
    assert len(seen) == 3
    assert 2.05 <= pauses[0] <= 2.1
    assert 2.1 <= pauses[1] <= 2.2


def test_patience_ends(connect: Callable[..., Any], pauses: list[float]) -> None:
    transport, seen = answering(BUSY)
    with pytest.raises(BusyError, match="429 The queue is full: 4 wait") as raised:
        connect("http://x", transport=transport, retries=Retries(max_retries=2)).models()
    assert (len(seen), len(pauses), raised.value.retry_after_s) == (3, 2, 2.0)
    with pytest.raises(BusyError):
        connect("http://x", transport=transport, timeout=1.0).models()
    assert (len(seen), len(pauses)) == (4, 2)  # two seconds are more than there are


def test_broken_connection_is_tried_again_where_that_does_no_harm(
    connect: Callable[..., Any], pauses: list[float]
) -> None:
    transport, seen = answering(httpx.ReadError("reset"), httpx.Response(200, json=[]))
    assert connect("http://x", transport=transport).models() == ()
    transport, seen = answering(httpx.ReadError("reset"))
    with pytest.raises(UnreachableError, match="ReadError: reset"):
        connect("http://x", transport=transport).search("m", "1", remember=True)
    assert len(seen) == 1


def test_stream_is_tried_again_before_its_first_token(connect: Callable[..., Any], pauses: list[float]) -> None:
    transport, seen = answering(BUSY, httpx.Response(200, text=TOKEN))
    with pytest.raises(UnreachableError, match="broke off before its last event"):
        connect("http://x", transport=transport).tokens("m", "1")
    assert (len(seen), len(pauses)) == (2, 1)


def test_problem_after_the_first_token_is_raised(connect: Callable[..., Any]) -> None:
    transport, _ = answering(httpx.Response(200, text=TOKEN + PROBLEM, headers={"x-request-id": "abc"}))
    with pytest.raises(BusyError, match="too much") as raised:
        connect("http://x", transport=transport).tokens("m", "1")
    assert raised.value.request_id == "abc"


@pytest.mark.parametrize(
    ("response", "kind", "told"),
    [
        (httpx.Response(502, text="<html>bad gateway</html>"), ServerError, "502 Bad Gateway: <html>bad gateway"),
        (httpx.Response(500, json=["odd"]), ServerError, "500 Internal Server Error"),
        (httpx.Response(418, json={"error": "a pot"}), ProblemError, "418 I'm a Teapot: a pot"),
        (httpx.Response(799), ProblemError, "799 Unknown status"),
        (httpx.Response(200, text="<html>hello</html>"), ClientError, "answered 200 with no JSON"),
    ],
)
def test_what_is_no_answer_of_this_server_is_told(
    connect: Callable[..., Any], response: Any, kind: Any, told: str
) -> None:
    transport, _ = answering(response)
    with pytest.raises(kind) as raised:
        connect("http://x", transport=transport).models()
    assert told in str(raised.value)
