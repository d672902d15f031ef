"""What we promise, asked of a real server process with the shipped models."""

import asyncio
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import models

pytestmark = pytest.mark.xdist_group("acceptance")  # one server, one export

CHECKPOINTS = Path(models.__file__).parent / "checkpoints"
NUM_LAYERS = 12
END = 0
SHORT = {"max_new_tokens": 24}
# Logits closer than this are a tie: float32 sums in another order may decide it the other way.
TIE = 1e-4

Ids = Sequence[int]
# Logits [B, S, V] of token ids [B, S], padded on the right.
LogitsOf = Callable[[Any], Any]


@pytest.fixture(scope="session")
def problems() -> list[dict[str, Any]]:
    """The held-out problems, in an order that mixes families and levels."""
    lines = (CHECKPOINTS / "arith" / "heldout.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    random.Random(0).shuffle(found)
    return found


@pytest.fixture(scope="session")
def prompts(problems: list[dict[str, Any]]) -> list[str]:
    return [problem["prompt"] for problem in problems]


@pytest.fixture(scope="session")
def chained(prompts: list[str]) -> list[tuple[str, list[int]]]:
    """Prompts with chains: two named in advance on 200 prompts, and 20 random ones on 10 each."""
    draw = random.Random(1)
    named = [[*range(4), *range(3, 12)], [*range(5), *range(6, 12)]]
    drawn = [[draw.randrange(NUM_LAYERS) for _ in range(draw.randint(1, 2 * NUM_LAYERS))] for _ in range(20)]
    return [(prompt, chain) for chain in named for prompt in prompts[:200]] + [
        (prompts[place % 200], chain) for place, chain in enumerate(drawn * 10)
    ]


@pytest.fixture(scope="session")
def alone(server: Any, chained: list[tuple[str, list[int]]]) -> list[list[int]]:
    """The tokens each of them gets when nothing else runs."""
    return [ids for prompt, chain in chained for ids in _generate(server, [prompt], [chain], SHORT)]


def _generate(
    server: Any, prompts: Sequence[str], chains: Sequence[Any], parameters: dict[str, Any]
) -> list[list[int]]:
    answer = server.post("/predict", model="arith", inputs=prompts, chain=chains, parameters=parameters)
    return [output["token_ids"] for output in answer["outputs"]]


def _assert_greedy(logits_of: LogitsOf, prompts: Sequence[Ids], answers: Sequence[Ids], limit: int) -> None:
    """Each answer is what greedy decoding gives: every token the likeliest after those before it, up to the end."""
    import torch

    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    with torch.inference_mode():
        logits = logits_of(torch.tensor([row + [END] * (longest - len(row)) for row in rows]))
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        judged = logits[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]  # [T, V]
        short_of = judged.max(dim=1).values - judged[range(len(answer)), list(answer)]
        assert short_of.max() < TIE, (row, prompt, answer)
        assert END not in answer[:-1]
        assert answer[-1] == END or len(answer) == limit


def test_full_chain_is_what_transformers_says(server: Any, prompts: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "arith", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "arith")
    asked = prompts[:200]
    answers = _generate(server, asked, ["full"] * 200, {})
    _assert_greedy(lambda ids: model(ids).logits, [tokenizer(one)["input_ids"] for one in asked], answers, limit=64)
    for prompt, answer in zip(asked[:5], answers, strict=False):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            said = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64)
        assert said[0, ids.shape[1] :].tolist() == answer


def test_any_chain_is_what_a_plain_loop_says(chained: list[tuple[str, list[int]]], alone: list[list[int]]) -> None:
    from models.chain import Chain
    from models.checkpoint import load_checkpoint
    from models.lm.tokenizer import Tokenizer

    model = load_checkpoint(CHECKPOINTS / "arith")
    tokenizer = Tokenizer(CHECKPOINTS / "arith" / "tokenizer.json")
    answers: dict[tuple[int, ...], list[tuple[Ids, Ids]]] = {}
    for (prompt, chain), answer in zip(chained, alone, strict=True):
        answers.setdefault(tuple(chain), []).append((tokenizer.encode(prompt), answer))
    assert len(answers) == 22
    for layers, pairs in answers.items():
        along = _along(model, Chain(layers))
        _assert_greedy(along, [prompt for prompt, _ in pairs], [answer for _, answer in pairs], limit=24)


def _along(model: Any, chain: Any) -> LogitsOf:
    return lambda ids: model.along({"token_ids": ids}, chain)


def test_together_and_at_once_are_the_same_as_alone(
    server: Any, chained: list[tuple[str, list[int]]], alone: list[list[int]]
) -> None:
    together = _generate(server, [prompt for prompt, _ in chained], [chain for _, chain in chained], SHORT)
    assert together == alone

    async def ask(client: httpx.AsyncClient, prompt: str, chain: list[int]) -> list[int]:
        body = {"model": "arith", "inputs": [prompt], "chain": chain, "parameters": SHORT}
        response = await client.post("/predict", json=body)
        ids: list[int] = response.json()["outputs"][0]["token_ids"]
        return ids

    async def ask_all() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            return await asyncio.gather(*(ask(client, *one) for one in chained))

    assert asyncio.run(ask_all()) == alone


@pytest.mark.parametrize("backend", ["torchscript", "eager"])
def test_backends_say_the_same(
    start: Any, chained: list[tuple[str, list[int]]], alone: list[list[int]], backend: str
) -> None:
    with start("--backend", backend) as other:
        assert _generate(other, [prompt for prompt, _ in chained], [chain for _, chain in chained], SHORT) == alone


def test_responses_and_counters_agree(server: Any, chained: list[tuple[str, list[int]]]) -> None:
    def counted() -> Counter[int]:
        return Counter(
            {layer: int(server.metric("fathom_layers_executed_total", layer=str(layer))) for layer in range(NUM_LAYERS)}
        )

    before, told = counted(), Counter[int]()
    for start in range(0, len(chained), 7):
        some = chained[start : start + 7]
        answer = server.post(
            "/predict", model="arith", inputs=[one for one, _ in some], chain=[one for _, one in some], parameters=SHORT
        )
        for output in answer["outputs"]:
            told.update(output["chain"] * (output["layers_executed"] // len(output["chain"])))
            assert output["layers_executed"] == len(output["chain"]) * len(output["token_ids"])
    assert counted() - before == told


@pytest.fixture(scope="session")
def judged(server: Any, problems: list[dict[str, Any]]) -> dict[bool, list[dict[str, Any]]]:
    """Problems of the hardest levels, by whether the full chain gets them right."""
    hard = [problem for problem in problems if problem["level"] >= 4][:200]
    answers = server.post("/predict", model="arith", inputs=[problem["prompt"] for problem in hard])["outputs"]
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for problem, answer in zip(hard, answers, strict=True):
        found[answer["text"] == problem["target"] and answer["finish_reason"] == "stop"].append(problem)
    return found


def test_certified_chain_gives_the_target(server: Any, judged: dict[bool, list[dict[str, Any]]]) -> None:
    assert len(judged[False]) >= 4
    for problem in judged[False][:4]:
        found = server.post("/cola/search", model="arith", input=problem["prompt"], target=problem["target"])
        assert found["oracle"]
        assert found["stats"]["simulations"] <= 200
        best = found["best"]
        (said,) = server.post("/predict", model="arith", inputs=[problem["prompt"]], chain=best["chain"])["outputs"]
        assert said["text"] == best["text"]
        assert (said["text"] == problem["target"]) == best["certified"]
        assert best["certified"] or best["chain"] == list(range(NUM_LAYERS))


def test_agreement_keeps_the_answer_with_fewer_layers(server: Any, judged: dict[bool, list[dict[str, Any]]]) -> None:
    for problem in [*judged[True][:2], *judged[False][:2]]:
        found = server.post("/cola/search", model="arith", input=problem["prompt"], reward="agreement")
        (full,) = server.post("/predict", model="arith", inputs=[problem["prompt"]])["outputs"]
        (best,) = server.post("/predict", model="arith", inputs=[problem["prompt"]], chain=found["best"]["chain"])[
            "outputs"
        ]
        assert found["best"]["certified"]
        assert best["token_ids"] == full["token_ids"]
        assert found["best"]["length"] < NUM_LAYERS or found["best"]["chain"] == list(range(NUM_LAYERS))


def test_same_seed_finds_the_same_whatever_else_runs(server: Any, judged: dict[bool, list[dict[str, Any]]]) -> None:
    problem = judged[False][0]
    body = {"model": "arith", "input": problem["prompt"], "target": problem["target"], "seed": 5}

    def found() -> dict[str, Any]:
        result = server.post("/cola/search", **body)
        result["stats"].pop("seconds")
        return {name: result[name] for name in ("full", "best", "pareto", "stats", "stopped_by")}

    quiet = found()
    with _hammered(server.url, 32, [one["prompt"] for one in judged[True]]) as statuses:
        assert found() == quiet
    assert statuses.keys() == {200}


@contextmanager
def _hammered(url: str, num_clients: int, prompts: list[str]) -> Any:
    """Keep so many clients predicting in the background; yields their statuses."""
    statuses: Counter[int] = Counter()
    is_over = threading.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        draw = random.Random(number)
        while not is_over.is_set():
            chain = [draw.randrange(NUM_LAYERS) for _ in range(6)]
            body = {"model": "arith", "inputs": [draw.choice(prompts)], "chain": chain, "parameters": SHORT}
            statuses[(await client.post("/predict", json=body)).status_code] += 1

    async def ask_all() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            await asyncio.gather(*(ask(client, number) for number in range(num_clients)))

    thread = threading.Thread(target=asyncio.run, args=(ask_all(),))
    thread.start()
    try:
        while not statuses:
            time.sleep(0.01)
        yield statuses
    finally:
        is_over.set()
        thread.join()


def test_a_thousand_good_and_bad_requests_at_once_are_each_answered_once(server: Any, prompts: list[str]) -> None:
    rows = [json.loads(line) for line in (CHECKPOINTS / "digits" / "heldout.jsonl").read_text().splitlines()[:20]]
    texts = [one["text"] for one in server.post("/predict", model="arith", inputs=prompts[:50])["outputs"]]
    halves = server.post("/predict", model="arith", inputs=prompts[:50], chain="0-5", parameters=SHORT)["outputs"]
    logits = server.post("/predict", model="digits", inputs=[row["inputs"] for row in rows])["outputs"]
    predicted = [max(range(10), key=one["outputs"]["logits"].__getitem__) for one in logits]
    before = server.metric("fathom_requests_total", route="/predict")

    def kind(number: int) -> tuple[dict[str, Any], Callable[[int, Any], bool]]:
        place = number % 50
        text, row = {"model": "arith", "inputs": [prompts[place]]}, rows[number % 20]["inputs"]
        kinds: list[tuple[dict[str, Any], Callable[[int, Any], bool]]] = [
            (text, lambda status, answer: status == 200 and answer["outputs"][0]["text"] == texts[place]),
            (
                {**text, "chain": "0-5", "parameters": SHORT},
                lambda status, answer: status == 200 and answer["outputs"][0]["text"] == halves[place]["text"],
            ),
            (
                {"model": "digits", "inputs": [row]},
                lambda status, answer: (
                    status == 200
                    and max(range(10), key=answer["outputs"][0]["outputs"]["logits"].__getitem__)
                    == predicted[number % 20]
                ),
            ),
            ({**text, "chain": "0-12"}, lambda status, answer: status == 422 and "layer 12" in answer["detail"]),
            ({**text, "model": "absent"}, lambda status, answer: status == 404 and "arith/1" in answer["detail"]),
            ({**text, "inputs": ["?"]}, lambda status, answer: status == 422 and "alphabet" in answer["detail"]),
            ({**text, "chian": "0"}, lambda status, answer: status == 422 and "chian" in answer["detail"]),
            ({"model": "digits", "inputs": [row[:9]]}, lambda status, answer: status == 422),
        ]
        return kinds[number % len(kinds)]

    async def ask(client: httpx.AsyncClient, number: int) -> bool:
        body, is_right = kind(number)
        response = await client.post("/predict", json=body, headers={"x-request-id": f"mixed-{number}"})
        return response.headers["x-request-id"] == f"mixed-{number}" and is_right(response.status_code, response.json())

    async def ask_all() -> list[bool]:
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(1000)))

    wrong = [number for number, is_right in enumerate(asyncio.run(ask_all())) if not is_right]
    assert wrong == []
    assert server.metric("fathom_requests_total", route="/predict") - before == 1000
    assert server.metric("fathom_running_sequences") == server.metric("fathom_kv_pages_used") == 0


def _raw(body: dict[str, Any], path: str = "/predict") -> bytes:
    content = json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}")
    return "\r\n".join((*head, "", "")).encode() + content


def test_what_was_accepted_is_answered_when_the_server_is_told_to_stop(start: Any, prompts: list[str]) -> None:
    with start("--backend", "onnx") as server:

        async def ask(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(_raw({"model": "arith", "inputs": [prompts[number % 50]]}))
            await writer.drain()
            return reader, writer

        async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            json.loads(await reader.readexactly(length))
            writer.close()
            await writer.wait_closed()
            return int(head.split()[1])

        async def stop_under_load() -> list[int]:
            connections = [await ask(number) for number in range(300)]
            server.process.terminate()
            return list(await asyncio.gather(*(status(*one) for one in connections)))

        statuses = Counter(asyncio.run(stop_under_load()))
        assert statuses.keys() <= {200, 503}
        assert statuses[200] > 0
        assert server.process.wait(timeout=60) == 0
        with pytest.raises(httpx.TransportError):
            server.client.get("/health/live")


def test_draining_server_says_so_and_finishes_its_streams(start: Any, prompts: list[str]) -> None:
    with start("--backend", "onnx") as server:
        body = {"model": "arith", "input": prompts[0], "target": "1", "budget": {"simulations": None, "seconds": 3}}
        with server.client.stream("POST", "/cola/search", json={**body, "stream": True}) as response:
            chunks = response.iter_raw()
            next(chunks)
            with httpx.Client(base_url=server.url, timeout=60) as other:
                other.get("/health/live")
                server.process.terminate()
                _wait_until(lambda: _is_refused(other))
            assert b"event: result" in b"".join(chunks)
        assert server.process.wait(timeout=60) == 0


def _is_refused(client: httpx.Client) -> bool:
    try:
        return client.get("/models").status_code == 503
    except httpx.TransportError:
        return True


def test_second_signal_ends_the_server_at_once(start: Any, prompts: list[str]) -> None:
    with start("--backend", "onnx") as server, socket.create_connection(server.address) as connection:
        body = {"model": "arith", "input": prompts[0], "target": "1", "budget": {"simulations": None, "seconds": 60}}
        connection.sendall(_raw(body, "/cola/search"))
        _wait_until(lambda: server.metric("fathom_layer_calls_total") > 0)
        server.process.terminate()
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.terminate()
        assert connection.recv(12) == b"HTTP/1.1 503"
        assert server.process.wait(timeout=20) == 0


def test_requests_past_the_time_to_drain_are_told(start: Any, prompts: list[str]) -> None:
    with start("--backend", "onnx", FATHOM_DRAIN_S="1") as server:
        with socket.create_connection(server.address) as connection, connection.makefile("rb") as answer:
            body = {
                "model": "arith",
                "input": prompts[0],
                "target": "1",
                "budget": {"simulations": None, "seconds": 60},
            }
            connection.sendall(_raw(body, "/cola/search"))
            _wait_until(lambda: server.metric("fathom_layer_calls_total") > 0)
            server.process.terminate()
            assert answer.readline().split()[1] == b"503"
        assert server.process.wait(timeout=20) == 0


@pytest.mark.parametrize("is_reset", [True, False])
def test_client_that_dies_in_the_middle_of_a_stream_frees_its_slots(
    server: Any, prompts: list[str], is_reset: bool
) -> None:
    for _ in range(10):
        with socket.create_connection(server.address) as connection:
            body = {"model": "arith", "inputs": [prompts[0]], "chain": [0, 1] * 20, "stream": True}
            connection.sendall(_raw(body))
            assert connection.recv(12) == b"HTTP/1.1 200"
            if is_reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    _wait_until(lambda: server.metric("fathom_running_sequences") == server.metric("fathom_kv_pages_used") == 0)
    server.post("/predict", model="arith", inputs=[prompts[0]])


def _wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)
