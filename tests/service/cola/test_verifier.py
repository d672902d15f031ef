"""Verifiers that answer, hang, raise and lie."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import httpx
import pytest

from models.chain import Chain
from models.errors import VerifierError
from service.cola import verifier as module
from service.cola.endpoint import Endpoint
from service.cola.evaluator import Answer
from service.cola.verifier import Callables, Verifier

URL = "http://verifier.test/check"


class Says:
    """An evaluator whose chain n says n."""

    async def answers(self, chains: Sequence[Chain]) -> list[Answer]:
        return [Answer(chain.format(), chain.layers, 1) for chain in chains]


def rewards(verifier: Verifier, *layers: int) -> list[float]:
    chains = [Chain((layer,) if layer >= 0 else ()) for layer in layers]

    async def judge() -> list[float]:
        expected = Answer("", ())
        return [one.reward for one in await verifier.judge(Says(), chains, expected)]  # type: ignore[arg-type]

    return asyncio.run(judge())


def calling(check: Callable[[str, str], object], timeout_s: float = 5.0) -> Verifier:
    callables = Callables()
    callables.register("mine", check)  # type: ignore[arg-type]
    return callables.verifier("mine", "what?", timeout_s)


def posting(
    handler: Callable[[httpx.Request], httpx.Response], max_retries: int = 2, timeout_s: float = 5.0
) -> Verifier:
    return Endpoint(URL, timeout_s, max_retries, httpx.MockTransport(handler)).verifier("what?")


def test_it_declares_what_it_needs() -> None:
    assert (Verifier.oracle, Verifier.needs_target, Verifier.needs_decode) == (False, False, True)
    assert (Verifier.deterministic, Verifier.ceiling) == (False, 1.0)


def test_a_callable_judges_sample_and_answer_in_threads_of_its_own() -> None:
    threads = []

    def check(sample: str, answer: str) -> float:
        threads.append(threading.current_thread())
        return float((sample, answer) == ("what?", "2"))

    assert rewards(calling(check), 1, 2) == [0.0, 1.0]
    assert threading.main_thread() not in threads


def test_an_answer_is_asked_about_once_and_silence_never() -> None:
    asked: list[str] = []

    def check(sample: str, answer: str) -> bool:
        asked.append(answer)
        return True

    assert rewards(calling(check), 3, 3, -1, 4) == [1.0, 1.0, 0.0, 1.0]
    assert sorted(asked) == ["3", "4"]


def test_a_callable_that_hangs_is_named_in_time() -> None:
    hanging = threading.Event()
    started = time.monotonic()
    with pytest.raises(VerifierError, match=r"'mine' gave no answer within 0\.05 s"):
        rewards(calling(lambda *_: float(hanging.wait(30)), timeout_s=0.05), 1)
    assert time.monotonic() - started < 10
    hanging.set()


def test_a_callable_that_hangs_too_often_is_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_RUNNING", 2)
    hanging, callables = threading.Event(), Callables()
    callables.register("mine", lambda *_: float(hanging.wait(30)))

    def ask() -> None:
        rewards(callables.verifier("mine", "what?", 0.02), 1)

    for words in ("gave no answer", "gave no answer", "2 calls that have not come back"):
        with pytest.raises(VerifierError, match=words):
            ask()
    hanging.set()


def test_a_callable_that_raises_is_named() -> None:
    with pytest.raises(VerifierError, match="'mine' raised ZeroDivisionError: division by zero"):
        rewards(calling(lambda *_: 1 / 0), 1)


@pytest.mark.parametrize("lie", [float("nan"), float("inf"), 1.5, -0.1, "yes", None])
def test_a_verifier_that_lies_is_named(lie: object) -> None:
    with pytest.raises(VerifierError, match=r"said .*; rewards are numbers from 0 to 1"):
        rewards(calling(lambda *_: lie), 1)


def test_a_verifier_that_is_not_registered_is_refused() -> None:
    with pytest.raises(VerifierError, match=r"'yours' is not registered; there are \[\]"):
        Callables().verifier("yours", "what?", 1.0)


def test_an_endpoint_is_posted_sample_and_answer() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, str(request.url)) == ("POST", URL)
        assert request.read() == b'{"input":"what?","answer":"7"}'
        return httpx.Response(200, json={"reward": 0.5})

    assert rewards(posting(handler), 7) == [0.5]


def test_an_endpoint_that_fails_now_and_then_is_asked_again() -> None:
    replies = iter([httpx.Response(503), httpx.ConnectError("refused"), httpx.Response(200, json={"reward": 1})])

    def handler(request: httpx.Request) -> httpx.Response:
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    assert rewards(posting(handler), 1) == [1.0]


@pytest.mark.parametrize(
    ("reply", "times", "words"),
    [
        (httpx.Response(500), 2, "failed 2 times, at last with status 500"),
        (httpx.Response(404), 1, "status 404, not 200"),
        (httpx.Response(302, headers={"location": "http://elsewhere.test"}), 1, "status 302, not 200"),
        (httpx.Response(200, content=b"<html>"), 1, "without a 'reward': b'<html>'"),
        (httpx.Response(200, json=[1]), 1, "without a 'reward'"),
        (httpx.Response(200, content=b" " * (1 << 17)), 1, "more than 65536 bytes"),
        (httpx.Response(200, content=b'{"reward": NaN}'), 1, "said nan"),
    ],
)
def test_an_endpoint_that_fails_or_lies_is_not_asked_for_ever(reply: httpx.Response, times: int, words: str) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    with pytest.raises(VerifierError, match=words):
        rewards(posting(handler, max_retries=1), 1)
    assert len(asked) == times


def test_an_endpoint_that_hangs_is_named_in_time() -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(30)
        raise AssertionError

    with pytest.raises(VerifierError, match=r"the verifier endpoint gave no answer within 0\.05 s"):
        rewards(posting(handler, timeout_s=0.05), 1)  # type: ignore[arg-type]
