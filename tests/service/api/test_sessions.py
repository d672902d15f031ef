"""Recurrent models over HTTP: sequences of any length, and sequences that come in several requests."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from fathom import AsyncClient, Client, UnknownError
from tests.service.sequences import MAX_TRAINED, NUM_LAYERS, STATE_BYTES, manifest, publish, rows, steps

Serve = Callable[..., AbstractContextManager[Any]]
Problem = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model of numbers, another such model, one of tokens, and one that is not recurrent."""
    return publish(
        tmp_path_factory.mktemp("recurrent"),
        manifest("walk"),
        manifest("walk", "2"),
        manifest("other"),
        manifest("wide", max_chunk=256),
        manifest("words", vocab_size=7),
        rows("rows"),
    )


@pytest.fixture(scope="module")
def served(serve: Serve, repository: Path) -> Iterator[Any]:
    with serve(repository=repository) as started:
        assert started.post("/models/walk/load?version=1").status_code == 200
        yield started


def logits(answer: Any, row: int = 0) -> Any:
    return answer["outputs"][row]["outputs"]["logits"]


def whole(served: Any, count: int, model: str = "walk", **fields: Any) -> Any:
    """Answers to so many steps sent at once."""
    return logits(served.predict(model, [steps(count)], **fields))


def go_on(served: Any, first: int, count: int, session: Any, **fields: Any) -> Any:
    return served.predict("walk", [steps(count, first)], session=session, **fields)


def ask(served: Any, count: int, session: Any, first: int = 0, **fields: Any) -> httpx.Response:
    response: httpx.Response = served.post(
        "/predict", **{"model": "walk", "inputs": [steps(count, first)], "session": session, **fields}
    )
    return response


def test_sequences_of_several_lengths_are_answered_together(served: Any) -> None:
    lengths, chains = (3, 1, 17, 4, 9), ["0-2", "1", "2,0,0", "0,2", "0-2"]
    answer = served.predict("walk", [steps(one) for one in lengths], chain=chains)
    for row, (length, chain) in enumerate(zip(lengths, chains, strict=True)):
        assert len(logits(answer, row)) == length
        assert logits(answer, row) == whole(served, length, chain=chain)
        visits = len(answer["outputs"][row]["chain"])
        assert answer["outputs"][row]["layers_executed"] == visits * -(-length // 4)
    assert answer["usage"]["layer_evaluations"] == 3 * 3 + 1 + 3 * 17 + 2 * 4 + 3 * 9
    assert "session" not in answer
    assert "warnings" not in answer


def test_session_reads_on_where_it_stopped(served: Any) -> None:
    expected = whole(served, 20)
    answer = go_on(served, 0, 5, "new")
    session = answer["session"]
    assert session["steps"] == 5
    assert 299 < session["expires_in_s"] <= 300
    read = logits(answer)
    for first, count in ((5, 1), (6, 1), (7, 9), (16, 4)):
        answer = go_on(served, first, count, session["id"])
        assert answer["session"]["id"] == session["id"]
        assert answer["session"]["steps"] == first + count
        assert len(logits(answer)) == count
        read += logits(answer)
    assert read == expected


def test_session_of_ones_own_id_begins_anew_and_ends(served: Any, problem: Problem) -> None:
    for _ in range(2):  # to ask again after an answer was lost does no harm
        assert logits(go_on(served, 0, 6, {"id": "mine", "start": True})) == whole(served, 6)
    shown = served.client.get("/models/walk/sessions/mine").json()
    assert {name: shown[name] for name in ("id", "steps", "model", "version", "chain", "busy")} == {
        "id": "mine", "steps": 6, "model": "walk", "version": "2", "chain": [0, 1, 2], "busy": False,
    }  # fmt: skip
    last = go_on(served, 6, 2, {"id": "mine", "end": True})
    assert last["session"] == {"id": "mine", "steps": 8, "expires_in_s": None}
    assert logits(last) == whole(served, 8)[6:]
    problem(ask(served, 1, "mine"), 410, "'mine' is over", "it was ended", "'new'")


def test_session_is_ended_by_delete(served: Any, problem: Problem) -> None:
    go_on(served, 0, 1, {"id": "gone", "start": True})
    path = "/models/walk/sessions/gone"
    assert served.client.delete(path).status_code == 204
    for response in (served.client.delete(path), served.client.get(path), ask(served, 1, "gone")):
        problem(response, 410, "it was ended")
    problem(served.client.delete("/models/walk/sessions/never"), 404, "no session 'never'")
    problem(served.client.delete("/models/nothing/sessions/never"), 404, "no model 'nothing'")


def test_chain_of_a_session_is_fixed(served: Any, problem: Problem) -> None:
    go_on(served, 0, 3, {"id": "bent", "start": True}, chain="2,0,0")
    problem(ask(served, 2, "bent", 3, chain="0-2"), 422, "begun along chain 2,0,0", "chain 0-2")
    problem(ask(served, 2, "bent", 3, chain="full"), 422, "begun along chain 2,0,0")
    problem(ask(served, 2, "bent", 3, depth=2), 422, "begun along chain 2,0,0")
    problem(ask(served, 2, "bent", 3, chain="9"), 422, "layer 9")
    read = [go_on(served, 3, 2, "bent"), go_on(served, 5, 4, "bent", chain=[2, 0, 0])]
    assert read[0]["outputs"][0]["chain"] == [2, 0, 0]
    assert logits(read[0]) + logits(read[1]) == whole(served, 9, chain="2,0,0")[3:]


def test_length_beyond_training_is_answered_with_a_warning(served: Any) -> None:
    answer = served.predict("walk", [steps(MAX_TRAINED), steps(MAX_TRAINED + 1)])
    (warning,) = answer["warnings"]
    for word in ("sequence 1", f"{MAX_TRAINED + 1} steps", f"at most {MAX_TRAINED}"):
        assert word in warning
    session = go_on(served, 0, MAX_TRAINED, "new")
    assert "warnings" not in session
    beyond = go_on(served, MAX_TRAINED, 1, session["session"]["id"])
    assert f"{MAX_TRAINED + 1} steps" in beyond["warnings"][0]
    assert logits(beyond) == whole(served, MAX_TRAINED + 1)[-1:]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"inputs": [steps(2), []]}, 422, ("sequence 1 is empty", "at least one step")),
        ({"inputs": [[]]}, 422, ("sequence 0 is empty",)),
        ({"inputs": []}, 422, ("at least one",)),
        ({"inputs": {"steps": {"shape": [1, 0, 2], "data": []}}}, 422, ("sequence 0 is empty",)),
        ({"inputs": [[1, 2, 3]]}, 422, ("[1, 3]",)),
        ({"inputs": [steps(1), [[1, 2], [3]]]}, 422, ("sequence 1", "different lengths")),
        ({"inputs": [steps(1), [["x", 2], [3, 1]]]}, 422, ("sequence 1", "plain numbers")),
        ({"inputs": [steps(1), steps(2)], "session": "new"}, 422, ("2 sequences", "a session reads one")),
        ({"inputs": [steps(1)], "session": "no such"}, 422, ("session", "'new'")),
        ({"inputs": [steps(1)], "session": ""}, 422, ("session", "'new'")),
        ({"inputs": [steps(1)], "session": 7}, 422, ("session", "'new'")),
        ({"inputs": [steps(1)], "session": {}}, 422, ("session",)),
        ({"inputs": [steps(1)], "session": {"id": "new"}}, 422, ("session",)),
        ({"inputs": [steps(1)], "session": {"id": "x", "stop": True}}, 422, ("session",)),
        ({"inputs": [steps(1)], "session": "unheard-of"}, 404, ("'unheard-of'", "'walk'", "'new'")),
        ({"inputs": [steps(1)], "parameters": {"mode": "score"}}, 422, ("no text",)),
        ({"inputs": [steps(1)], "stream": True}, 422, ("streamed",)),
        ({"model": "words", "inputs": [[1, 2], [3, 7, 1]]}, 422, ("sequence 1", "token 7", "0 to 6")),
        ({"model": "words", "inputs": [[1, -1]]}, 422, ("token -1",)),
        ({"model": "words", "inputs": [[1, 0.5]]}, 422, ("INT64",)),
    ],
)
def test_bad_input_is_refused_by_name(
    body: dict[str, Any], status: int, words: tuple[str, ...], served: Any, problem: Problem
) -> None:
    problem(served.post("/predict", **{"model": "walk", **body}), status, *words)


def test_model_without_state_takes_no_session(served: Any, problem: Problem) -> None:
    refused = served.post("/predict", model="rows", inputs=[[1, 2]], session="new")
    problem(refused, 422, "'rows' is not recurrent", "leave the session out")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    riding = served.post("/v2/models/rows/infer", inputs=[tensor], parameters={"sequence_id": 1})
    assert (riding.status_code, "'rows' is not recurrent" in riding.json()["error"]) == (422, True)


def test_session_belongs_to_its_client_and_its_model(served: Any, problem: Problem) -> None:
    body = {"model": "walk", "inputs": [steps(2)], "session": {"id": "owned", "start": True}}
    mine, other = {"x-client-id": "me"}, {"authorization": "Bearer somebody"}
    assert served.client.post("/predict", json=body, headers=mine).status_code == 200
    body["session"] = "owned"
    problem(served.client.post("/predict", json=body, headers=other), 404, "of this client")
    strange = served.client.post("/predict", json={**body, "model": "other"}, headers=mine)
    problem(strange, 409, "'owned' reads model 'walk', not 'other'")
    assert served.client.post("/predict", json=body, headers=mine).json()["session"]["steps"] == 4


def test_session_stays_with_its_version(served: Any, problem: Problem) -> None:
    served.predict("walk", [steps(2)], version="1", session={"id": "pinned", "start": True})
    assert go_on(served, 2, 2, "pinned")["version"] == "1"
    assert served.predict("walk", [steps(2)])["version"] == "2"
    problem(ask(served, 1, "pinned", 4, version="2"), 409, "version '1'", "'2'")
    problem(ask(served, 1, "pinned", 4, model="walk@2"), 409, "version '1'", "'2'")


def test_unloading_ends_the_sessions_of_a_model(serve: Serve, repository: Path, problem: Problem) -> None:
    with serve(repository=repository) as served:
        served.predict("other", [steps(2)], session={"id": "x", "start": True})
        assert served.metric("fathom_sessions", model="other") == 1
        assert served.metric("fathom_session_bytes", model="other") == NUM_LAYERS * STATE_BYTES
        for verb in ("unload", "load"):
            assert served.post(f"/models/other/{verb}").status_code == 200
        told = problem(ask(served, 1, "x", model="other"), 410, "version '1' of model 'other' was unloaded", "'new'")
        assert told["title"] == "The session is over"
        assert served.metric("fathom_sessions_ended_total", model="other", reason="unloaded") == 1
        assert served.metric("fathom_sessions", model="other") == 0


def test_idle_sessions_expire(serve: Serve, repository: Path, problem: Problem) -> None:
    with serve(repository=repository, session_idle_s=0.3) as served:
        go_on(served, 0, 2, {"id": "idle", "start": True})
        threading.Event().wait(0.15)
        go_on(served, 2, 2, "idle")
        threading.Event().wait(0.6)
        assert served.metric("fathom_sessions", model="walk") == 0  # although nobody asked for it
        problem(ask(served, 1, "idle"), 410, "idle for more than 0.3 s")
        assert served.metric("fathom_sessions_ended_total", reason="expired") == 1
        assert go_on(served, 0, 2, {"id": "idle", "start": True})["session"]["steps"] == 2


def test_full_house_says_when_to_come_back(serve: Serve, repository: Path, problem: Problem) -> None:
    limits = {"max_client_sessions": 2, "session_bytes": 1024, "session_idle_s": 40}
    with serve(repository=repository, **limits) as served:
        for name in "ab":
            go_on(served, 0, 1, {"id": name, "start": True})
        refused = ask(served, 1, "new")
        told = problem(refused, 429, "2 open sessions of 2", "FATHOM_MAX_CLIENT_SESSIONS")
        assert told["title"] == "Too many sessions"
        assert 38 <= int(refused.headers["retry-after"]) <= 40
        assert served.metric("fathom_rejected_total", reason="sessions") == 1
        go_on(served, 1, 1, "a")  # those who are in go on
        long = {"model": "walk", "inputs": [steps(1)], "session": "new", "chain": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]}
        others = [
            served.client.post("/predict", json=long, headers={"x-client-id": str(i)}).status_code for i in range(4)
        ]
        assert others == [200, 200, 200, 429]


def test_concurrent_requests_of_one_session_are_refused(
    serve: Serve, repository: Path, pace: Any, problem: Problem
) -> None:
    with serve(repository=repository) as served, ThreadPoolExecutor() as pool:
        go_on(served, 0, 1, {"id": "x", "start": True})
        pace.seconds = 0.2
        first = pool.submit(go_on, served, 1, 8, "x")
        _until_busy(served, "x")
        problem(ask(served, 1, "x", 1), 409, "'x' is in use by another request", "wait for its answer")
        problem(served.client.delete("/models/walk/sessions/x"), 409, "in use")
        answer = first.result()
        pace.seconds = 0.0
        assert logits(answer) == whole(served, 9)[1:]
        assert answer["session"]["steps"] == 9


def _until_busy(served: Any, id: str) -> None:
    while not served.client.get(f"/models/walk/sessions/{id}").json()["busy"]:
        threading.Event().wait(0.005)


def _until_free(served: Any, id: str) -> Any:
    while (shown := served.client.get(f"/models/walk/sessions/{id}").json())["busy"]:
        threading.Event().wait(0.005)
    return shown


def test_client_that_leaves_in_the_middle_leaves_its_session_as_it_was(
    serve: Serve, repository: Path, pace: Any
) -> None:
    with serve(repository=repository) as served:
        go_on(served, 0, 3, {"id": "x", "start": True})
        pace.seconds, before = 0.1, pace.num_passes
        for session, first in (("x", 3), ({"id": "x", "start": True}, 0)):  # to begin anew is no different

            async def leave(session: Any = session, first: int = first) -> None:
                body = {"model": "walk", "inputs": [steps(40, first)], "session": session}
                async with httpx.AsyncClient(base_url=served.client.base_url) as client:
                    asking = asyncio.create_task(client.post("/predict", json=body))
                    await asyncio.sleep(0.25)
                    asking.cancel()

            asyncio.run(leave())
            assert _until_free(served, "x")["steps"] == 3
        passes = pace.num_passes - before
        assert 2 <= passes < 20  # some ran, and the rest did not
        pace.seconds = 0.0
        assert logits(go_on(served, 3, 5, "x")) == whole(served, 8)[3:]
        assert served.metric("fathom_running_sequences") == 0


def test_deadline_in_the_middle_leaves_the_session_as_it_was(
    serve: Serve, repository: Path, pace: Any, problem: Problem
) -> None:
    with serve(repository=repository) as served:
        go_on(served, 0, 3, {"id": "x", "start": True})
        pace.seconds = 0.1
        problem(ask(served, 40, "x", 3, parameters={"timeout_s": 0.25}), 504)
        pace.seconds = 0.0
        assert _until_free(served, "x")["steps"] == 3
        assert logits(go_on(served, 3, 5, "x")) == whole(served, 8)[3:]


def test_failure_leaves_the_session_as_it_was(serve: Serve, repository: Path, pace: Any, problem: Problem) -> None:
    with serve(repository=repository) as served:
        go_on(served, 0, 3, {"id": "x", "start": True})
        for count in (2, 11):  # in one pass, and in several
            pace.fault = "a broken head"
            problem(ask(served, count, "x", 3), 500)
            pace.fault = ""
        problem(ask(served, 0, "x", 3), 422, "empty")
        problem(ask(served, 1, "x", 3, chain="1"), 422)
        assert logits(go_on(served, 3, 5, "x")) == whole(served, 8)[3:]


def test_long_sequence_does_not_hold_up_short_ones(serve: Serve, repository: Path, pace: Any) -> None:
    with serve(repository=repository, max_batch_rows=4) as served, ThreadPoolExecutor() as pool:
        pace.seconds = 0.005
        long = [pool.submit(whole, served, 800) for _ in range(5)]  # more than run at once
        while served.metric("fathom_running_sequences") < 4:
            threading.Event().wait(0.005)
        session = go_on(served, 0, 2, "new")["session"]["id"]
        short = [logits(go_on(served, 2, 1, session)), logits(go_on(served, 3, 2, session))]
        assert not any(one.done() for one in long)
        pace.seconds = 0.0
        assert [*short[0], *short[1]] == whole(served, 5)[2:]
        first = whole(served, 800)
        assert all(one.result() == first for one in long)


def test_memory_of_a_session_does_not_grow_with_its_length(serve: Serve, repository: Path) -> None:
    """Of 16k steps what is kept is what was kept of 1k: in the states, and in the whole process."""
    with serve(repository=repository) as served:
        session, read, seen = {"id": "x", "start": True}, 0, {}
        tracemalloc.start()
        try:
            for goal in (1024, 16384):
                while read < goal:
                    served.predict("wide", [steps(512, read)], session=session, chain=[0])
                    session, read = {"id": "x"}, read + 512
                gc.collect()
                seen[goal] = tracemalloc.get_traced_memory()[0]
                assert served.metric("fathom_session_bytes", model="wide") == STATE_BYTES
        finally:
            tracemalloc.stop()
        assert served.client.get("/models/wide/sessions/x").json()["steps"] == 16384
        # A single number kept of each step would be 60 KiB.
        assert seen[16384] - seen[1024] < 32 << 10


def test_response_cache_answers_sequences_and_no_sessions(serve: Serve, repository: Path) -> None:
    with serve(repository=repository, response_cache_bytes=1 << 20) as served:
        first, again = (served.predict("walk", [steps(9), steps(3)]) for _ in range(2))
        assert again["cached"] == 2
        assert [one["outputs"] for one in again["outputs"]] == [one["outputs"] for one in first["outputs"]]
        assert again["usage"]["layer_evaluations"] == 0
        session = go_on(served, 0, 3, "new")["session"]["id"]
        assert "cached" not in go_on(served, 0, 3, session)
        assert go_on(served, 0, 3, session)["session"]["steps"] == 9


def _infer(served: Any, count: int, first: int = 0, **parameters: Any) -> httpx.Response:
    tensor = {"name": "steps", "datatype": "FP32", "shape": [1, count, 2], "data": steps(count, first)}
    response: httpx.Response = served.post("/v2/models/walk/infer", inputs=[tensor], parameters=parameters)
    return response


def test_sequences_of_triton_are_sessions(served: Any) -> None:
    expected = np.asarray(whole(served, 9))
    first = _infer(served, 5, sequence_id=42, sequence_start=True).json()
    second = _infer(served, 4, 5, sequence_id=42, sequence_end=True).json()
    found = [np.reshape(one["outputs"][0]["data"], one["outputs"][0]["shape"][1:]) for one in (first, second)]
    assert (np.concatenate(found) == expected).all()
    assert [one["parameters"]["sequence_steps"] for one in (first, second)] == [5, 9]
    refused = _infer(served, 1, sequence_id=42)
    assert (refused.status_code, "'42' is over" in refused.json()["error"]) == (410, True)
    assert _infer(served, 1, sequence_start=True).status_code == 422
    plain = _infer(served, 9).json()
    assert (np.reshape(plain["outputs"][0]["data"], (9, 5)) == expected).all()
    assert "sequence_steps" not in plain["parameters"]
    assert "warnings" in _infer(served, MAX_TRAINED + 1).json()["parameters"]


def test_client_of_triton_goes_on_with_a_sequence(serve: Serve, repository: Path) -> None:
    with serve(repository=repository, grpc_port=0) as served:
        expected = np.asarray(whole(served, 6))
        ports = (served.address[1], served.app.state.rpc.port)
        for id, (kind, port) in enumerate(zip((triton_http, triton_grpc), ports, strict=True), start=7):
            client, read = kind.InferenceServerClient(f"127.0.0.1:{port}"), []
            for first, count in ((0, 1), (1, 5)):
                tensor = kind.InferInput("steps", [1, count, 2], "FP32")
                tensor.set_data_from_numpy(np.asarray([steps(count, first)], np.float32))
                told = {"sequence_id": id, "sequence_start": first == 0, "sequence_end": first > 0}
                read.append(client.infer("walk", [tensor], **told).as_numpy("logits")[0])
            client.close()
            assert (np.concatenate(read) == expected).all()
        assert served.metric("fathom_sessions_ended_total", reason="ended") == 2


def test_other_dialects_take_sequences_without_sessions(served: Any, problem: Problem) -> None:
    told = served.post("/v1/models/walk:predict", instances=[steps(5), steps(5, 1)]).json()
    assert told["predictions"][0] == whole(served, 5)
    uneven = served.post("/v1/models/walk:predict", instances=[steps(5), steps(6)])
    assert uneven.status_code == 422
    assert "one length" in uneven.json()["error"]
    info = served.client.get("/models/walk").json()[1]
    assert (info["kind"], info["sequence"]["max_trained"]) == ("sequence", MAX_TRAINED)


def test_client_goes_on_with_a_session(served: Any) -> None:
    expected = np.asarray(whole(served, 9))
    with Client(str(served.client.base_url), client_id="python") as client:
        begun = client.predict("walk", np.asarray([steps(5)], np.float32), session="new")
        assert begun.session is not None
        rest = client.predict("walk", [steps(4, 5)], session={"id": begun.session.id, "end": True})
        assert rest.session is not None
        assert (rest.session.steps, rest.session.expires_in_s) == (9, None)
        read = np.concatenate([begun.arrays["logits"][0], rest.arrays["logits"][0]])
        assert (read == expected).all()
        with pytest.raises(UnknownError, match="is over"):
            client.predict("walk", [steps(1)], session=begun.session.id)
        uneven = client.predict("walk", [steps(9), steps(40)])
        assert [len(one) for one in uneven.arrays["logits"]] == [9, 40]
        assert (uneven.arrays["logits"][0] == expected).all()
        assert "sequence 1" in uneven.warnings[0]

    async def concurrent() -> int:
        async with AsyncClient(str(served.client.base_url)) as client:
            answer = await client.predict("walk", [steps(2)], session="new")
            assert answer.session is not None
            return answer.session.steps

    assert asyncio.run(concurrent()) == 2


def test_search_and_memory_take_sequences(served: Any) -> None:
    sample = steps(11)
    found = served.post("/cola/search", model="walk", input=sample, budget={"simulations": 20}, remember=True)
    assert found.status_code == 200, found.text
    assert found.json()["best"]["reward"] >= found.json()["full"]["reward"]
    remembered = served.predict("walk", [sample], chain="memory")
    assert remembered["outputs"][0]["chain"] == found.json()["best"]["chain"]
