"""Both clients against a real server: every method, its answer as a record, and every fault as a typed error."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fathom import (
    AsyncClient,
    Client,
    InvalidError,
    ServerError,
    TimeOverError,
    UnavailableError,
    UnknownError,
    UnreachableError,
)
from service.client.results import Health, Tensor
from service.client.retry import Retries

ROWS = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def server(serve: Any) -> Iterator[Any]:
    with serve(backend="onnx") as served:
        yield served


@pytest.fixture
def client(connect: Any, server: Any) -> Any:
    return connect(url(server))


def url(server: Any) -> str:
    return "http://{}:{}".format(*server.address)


def wait_until(holds: Callable[[], object]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_texts(client: Any, server: Any) -> None:
    found = client.predict("tinylm", ["12+7=", "3+4="], chain=["full", "0,2"], max_new_tokens=4, logprobs=2)
    parameters = {"max_new_tokens": 4, "logprobs": 2}
    wanted = server.predict("tinylm", ["12+7=", "3+4="], chain=["full", "0,2"], parameters=parameters)
    assert found.texts == [one["text"] for one in wanted["outputs"]]
    assert (found.model, found.version, len(found.request_id)) == ("tinylm", "1", 32)
    assert found.chains == ((0, 1, 2), (0, 2))
    assert found.layers_executed == sum(one["layers_executed"] for one in wanted["outputs"])
    assert found.usage.completion_tokens == wanted["usage"]["completion_tokens"]
    answer, said = found.answers[0], wanted["outputs"][0]["logprobs"]
    assert answer.logprobs == pytest.approx([one["logprob"] for one in said], abs=1e-4)
    assert [one.token for one in answer.top[0]] == [one["token"] for one in said[0]["top"]]
    assert answer.finish_reason in ("stop", "length")
    (by_ids,) = client.predict("tinylm", [answer.token_ids], depth=2, max_new_tokens=1).chains
    assert by_ids == (0, 2)
    assert client.predict("tinylm", "12+7=", max_new_tokens=4).texts == found.texts[:1]


def test_scores_and_embeddings(client: Any) -> None:
    (answer,) = client.predict("tinylm", ["12+7="], mode="score", targets=["19"]).answers
    assert answer.matches in (True, False)
    assert sum(answer.logprobs) == pytest.approx(answer.logprob)
    vectors = client.predict("tinylm", ["12+7=", "3"], mode="embed").arrays["embedding"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_arrays_travel_as_bytes(client: Any, server: Any) -> None:
    exact = client.predict("tinymlp", ROWS, chain="0,2")
    assert exact.arrays["logits"].dtype == np.float32
    assert exact.arrays["logits"].flags.writeable
    assert exact.chains == ((0, 2),) * 3
    assert (exact.layers_executed, exact.layers_full, exact.usage.layer_evaluations) == (6, 9, 6)
    (name,) = (one.name for one in client.models() if one.name == "tinymlp")
    before = server.metric("fathom_requests_total", route="/v2/models/{model}/infer")
    by_name = client.predict(name, {"features": ROWS.astype(np.float64)}, chain=["0,2", "full", "1"])
    assert server.metric("fathom_requests_total", route="/v2/models/{model}/infer") == before + 1
    np.testing.assert_array_equal(by_name.arrays["logits"][0], exact.arrays["logits"][0])
    assert by_name.chains == ((0, 2), (0, 1, 2), (1,))
    by_rows = client.predict("tinymlp", ROWS.tolist(), chain="0,2")
    np.testing.assert_allclose(by_rows.arrays["logits"], exact.arrays["logits"], atol=1e-6)
    by_depth = client.predict("tinymlp", np.asfortranarray(ROWS), version="1", depth=2)
    np.testing.assert_array_equal(by_depth.arrays["logits"], exact.arrays["logits"])


def test_tokens_come_one_by_one(client: Any) -> None:
    tokens, result = client.tokens("tinylm", "12+7=", max_new_tokens=4)
    assert "".join(token.text for token in tokens) == result.texts[0]
    assert tuple(token.token_id for token in tokens) == result.answers[0].token_ids


def test_search(client: Any) -> None:
    found = client.search("tinylm", "12+7=", budget={"simulations": 20}, max_new_tokens=3, top_k=2, seed=1)
    assert found.best.certified
    assert found.best.length == len(found.best.chain) <= found.full.length == 3
    assert (found.oracle, found.reward, found.stats["simulations"] > 0) == (False, "agreement", True)
    assert len(found.top) <= 2
    aimed = client.search("tinymlp", ROWS[0].tolist(), target=1, budget={"simulations": 10})
    assert aimed.oracle


def test_models_are_loaded_and_unloaded(connect: Any, serve: Any) -> None:
    with serve() as server:
        client = connect(url(server))
        client.unload("tinymlp")
        states = {one.name: one.state for one in client.models()}
        assert states == {"tinylm": "ready", "tinymlp": "available"}
        with pytest.raises(UnavailableError, match="not loaded"):
            connect(url(server), retries=Retries(max_retries=0)).predict("tinymlp", ROWS.tolist())
        loaded = client.load("tinymlp", "1", timeout=20)
        assert (loaded.state, loaded.num_layers, loaded.kind) == ("ready", 3, "tensor")
        assert loaded.inputs == (Tensor("features", "FP32", (-1, 6)),)
        assert client.predict("tinymlp", ROWS).arrays


def test_health_and_metrics(connect: Any, client: Any, serve: Any) -> None:
    assert client.health() == Health(live=True, ready=True)
    assert "fathom_requests_total" in client.metrics()
    with serve() as server:
        late = connect(url(server))
        server.app.state.lifecycle.is_draining = True
        assert late.health() == Health(live=True, ready=False, detail="this server is shutting down")
    gone = late.health()
    assert (gone.live, gone.ready) == (False, False)
    assert "is the server there?" in gone.detail


@pytest.mark.parametrize(
    ("model", "inputs", "said", "error", "status", "told"),
    [
        ("absent", ["1"], {}, UnknownError, 404, "no model 'absent'"),
        ("absent", ROWS, {}, UnknownError, 404, "no model 'absent'"),
        ("a/b?c", ["1"], {}, UnknownError, 404, "no model 'a/b?c'"),
        ("tinylm", ["1+1="], {"chain": "0-9"}, InvalidError, 422, "visit 3 names layer 3"),
        ("tinymlp", ROWS, {"chain": "0-9"}, InvalidError, 422, "visit 3 names layer 3"),
        ("tinymlp", ROWS[:, :5], {}, InvalidError, 422, "dimension 1 is 5"),
        ("tinymlp", ROWS.astype(complex), {}, InvalidError, 422, "is complex128; the model takes FP32"),
        ("tinymlp", {"x": ROWS}, {}, InvalidError, 422, "arrays ['x'] came; the model takes ['features']"),
        ("tinylm", ["1" * 999], {}, InvalidError, 413, "999"),
        ("tinylm", ["1+1="], {"nonsense": 1}, InvalidError, 422, "parameters.nonsense"),
    ],
)
def test_faults_are_typed(client: Any, model: str, inputs: Any, said: Any, error: Any, status: int, told: str) -> None:
    with pytest.raises(error) as raised:
        client.predict(model, inputs, **said)
    assert raised.value.status == status
    assert told in raised.value.detail
    assert raised.value.title
    assert told in str(raised.value)


def test_problem_carries_what_the_log_knows_it_by(client: Any) -> None:
    with pytest.raises(InvalidError) as raised:
        client.predict("tinylm", ["1"], chain=[1.5])
    assert len(raised.value.request_id) == 32
    assert raised.value.title == "The request is malformed"
    assert raised.value.problem.errors[0]["field"] == "chain"


def test_who_stops_listening_stops_the_work(connect: Any, serve: Any, pace: Any) -> None:
    pace.seconds = 0.02
    with serve() as server:
        client = connect(url(server))
        tokens, result = client.tokens("tinylm", "12+7=", num_wanted=2, max_new_tokens=50, seed=3, temperature=5.0)
        assert (len(tokens), result) == (2, None)
        wait_until(lambda: server.metric("fathom_running_sequences", model="tinylm") == 0)
        assert server.metric("fathom_cancelled_total", model="tinylm") == 1
        assert client.predict(
            "tinylm", "1+1=", max_new_tokens=1
        ).answers  # the connection is fit for more, or a new one


def test_cancelled_call_ends_at_the_server(serve: Any, pace: Any) -> None:
    async def leave(address: str) -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.predict("tinylm", "12+7=", max_new_tokens=50, temperature=5.0), 0.2)

    with serve() as server:
        pace.seconds = 0.05
        asyncio.run(leave(url(server)))
        wait_until(lambda: server.metric("fathom_cancelled_total", model="tinylm") == 1)
        wait_until(lambda: server.metric("fathom_running_sequences", model="tinylm") == 0)


def test_arrays_may_hold_texts_or_token_ids(client: Any) -> None:
    wanted = client.predict("tinylm", ["1+1=", "2+2="], max_new_tokens=2).texts
    assert client.predict("tinylm", np.array(["1+1=", "2+2="]), max_new_tokens=2).texts == wanted
    ids = client.predict("tinylm", np.array([[1, 2, 3]]), max_new_tokens=1)
    assert ids.answers == client.predict("tinylm", [[1, 2, 3]], max_new_tokens=1).answers


def test_time_of_a_call_is_over_when_it_is_over(connect: Any, serve: Any, pace: Any) -> None:
    with serve() as server:
        pace.seconds = 0.5
        client, began = connect(url(server), timeout=30), time.monotonic()
        with pytest.raises(TimeOverError):
            client.predict("tinylm", "12+7=", max_new_tokens=40, temperature=5.0, timeout=0.3)
        assert 0.2 < time.monotonic() - began < 5  # all of it would take 20 s
        with pytest.raises(TimeOverError):
            client.tokens("tinylm", "12+7=", max_new_tokens=40, temperature=5.0, timeout=0.2)
        pace.seconds = 0.0
        wait_until(lambda: server.metric("fathom_running_sequences", model="tinylm") == 0)


def test_fault_of_a_model_is_the_servers(connect: Any, serve: Any, pace: Any) -> None:
    with serve() as server:
        pace.fault = "broken"
        with pytest.raises(ServerError) as raised:
            connect(url(server)).predict("tinymlp", ROWS)
        assert raised.value.status == 500


def test_threads_share_a_client(server: Any) -> None:
    with Client(url(server)) as client, ThreadPoolExecutor(16) as pool:
        asked = [(ROWS * n, f"{n % 3}") for n in range(48)]
        found = list(pool.map(lambda one: client.predict("tinymlp", one[0], chain=one[1]).arrays["logits"], asked))
        for (rows, chain), arrays in zip(asked[:6], found, strict=False):
            alone = client.predict("tinymlp", rows, chain=chain).arrays["logits"]
            np.testing.assert_allclose(arrays, alone, atol=1e-5)
    assert not [one for one in threading.enumerate() if "ThreadPool" in one.name]


def test_nobody_there_is_an_error_of_connection(connect: Any) -> None:
    client = connect("http://127.0.0.1:9", retries=Retries(max_retries=1, first_pause_s=0.01))
    with pytest.raises(UnreachableError, match="is the server there"):
        client.predict("tinylm", "1")
    with pytest.raises(ConnectionError):
        client.tokens("tinylm", "1")
