"""OpenAI's own Python client against a server process: nothing of this dialect is taken on our word alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

PROMPT, ANSWER = "72915-4821=", "68094"
SAMPLED = {"model": "arith", "prompt": "4821+977=", "temperature": 10.0}


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def _ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "arith", "prompt": PROMPT, "temperature": 0, **fields})


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["arith"]
    model = client.models.retrieve("arith")
    assert (model.id, model.object, model.owned_by) == ("arith", "model", "fathom")
    assert model.fathom["num_layers"] == 12  # type: ignore[attr-defined]


@pytest.mark.parametrize("chain", ["full", "0-1,3-10"])
def test_completion_says_what_ran(client: openai.OpenAI, server: Any, chain: str) -> None:
    answer = _ask(client, extra_body={"chain": chain})
    (output,) = server.post("/predict", model="arith", inputs=[PROMPT], chain=chain)["outputs"]
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (output["text"], output["finish_reason"]) == (ANSWER, "stop")
    assert choice.fathom["chain"] == output["chain"]
    assert choice.fathom["layers_executed"] == output["layers_executed"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 6, 17)
    assert answer.id == f"cmpl-{answer._request_id}"


def test_stream_gives_the_text_and_then_the_usage(client: openai.OpenAI) -> None:
    whole = _ask(client, n=2, logprobs=2)
    *chunks, last = _ask(client, n=2, logprobs=2, stream=True, stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ([], whole.usage)
    for wanted in whole.choices:
        pieces = [choice for chunk in chunks for choice in chunk.choices if choice.index == wanted.index]
        assert "".join(piece.text for piece in pieces) == wanted.text == ANSWER
        assert [token for piece in pieces[:-1] for token in piece.logprobs.tokens] == wanted.logprobs.tokens
        assert (pieces[-1].finish_reason, pieces[-1].fathom) == (wanted.finish_reason, wanted.fathom)


def test_stream_can_be_left(client: openai.OpenAI, server: Any) -> None:
    with _ask(client, stream=True, n=8) as stream:
        next(iter(stream))
    assert _ask(client).choices[0].text == ANSWER


def test_logprobs_are_those_of_predict(client: openai.OpenAI, server: Any) -> None:
    (choice,) = _ask(client, logprobs=3).choices
    (output,) = server.post("/predict", model="arith", inputs=[PROMPT], parameters={"logprobs": 3})["outputs"]
    assert choice.logprobs.tokens == [token["token"] for token in output["logprobs"]]
    assert choice.logprobs.token_logprobs == pytest.approx([token["logprob"] for token in output["logprobs"]], abs=1e-4)
    assert [len(top) for top in choice.logprobs.top_logprobs] == [3] * 6
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4, 5]


def test_seed_decides_every_choice(client: openai.OpenAI) -> None:
    def texts(**fields: Any) -> list[str]:
        return [choice.text for choice in _ask(client, **SAMPLED, n=6, **fields).choices]

    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)
    assert len(set(texts(seed=1))) > 1


def test_stop_and_max_tokens_end_the_text(client: openai.OpenAI) -> None:
    (stopped,) = _ask(client, stop=["09"]).choices
    (short,) = _ask(client, max_tokens=2).choices
    (echoed,) = _ask(client, echo=True).choices
    assert (stopped.text, stopped.finish_reason) == ("68", "stop")
    assert (short.text, short.finish_reason) == ("68", "length")
    assert echoed.text == PROMPT + ANSWER


def test_several_prompts_in_text_or_token_ids(client: openai.OpenAI, server: Any) -> None:
    answer = _ask(client, prompt=[PROMPT, "1+1="], extra_body={"chain": ["0-1,3-10", "full"]})
    assert [choice.text for choice in answer.choices] == [ANSWER, "2"]
    assert [len(choice.fathom["chain"]) for choice in answer.choices] == [10, 12]
    scored = {"model": "arith", "inputs": ["1"], "parameters": {"mode": "score"}, "targets": [PROMPT]}
    *ids, _ = server.post("/predict", **scored)["outputs"][0]["token_ids"]
    assert [_ask(client, prompt=prompt).choices[0].text for prompt in (ids, [ids])] == [ANSWER, ANSWER]


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match="absent") as unknown:
        _ask(client, model="absent", stream=stream)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="frequency_penalty") as refused:
        _ask(client, frequency_penalty=1, stream=stream)
    assert (refused.value.param, refused.value.type) == ("frequency_penalty", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="layers 0 to 11"):
        _ask(client, extra_body={"chain": [12]}, stream=stream)
    with pytest.raises(openai.APIStatusError, match="at most 95") as long:
        _ask(client, prompt="1" * 96, stream=stream)
    assert long.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="arith", messages=[{"role": "user", "content": "1+1="}], stream=stream)


def test_full_queue_is_a_rate_limit_and_an_unloaded_model_unavailable(start: Any) -> None:
    with (
        start("--backend", "onnx", FATHOM_MAX_QUEUE_REQUESTS="2") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        with ThreadPoolExecutor(16) as threads:
            asked = [threads.submit(_ask, client, n=2) for _ in range(64)]
        refused = [error for one in asked if (error := one.exception())]
        assert 0 < len(refused) < len(asked)
        for error in refused:
            assert isinstance(error, openai.RateLimitError)
            assert int(error.response.headers["retry-after"]) >= 1
        server.client.post("/models/arith/unload")
        with pytest.raises(openai.InternalServerError, match="/models/arith/load") as unloaded:
            _ask(client)
        assert unloaded.value.status_code == 503


def test_embeddings_are_the_mean_of_the_stream(client: openai.OpenAI, server: Any) -> None:
    for chain in ("full", "0-1,3-10"):
        answer = client.embeddings.create(model="arith", input=[PROMPT, "1+1="], extra_body={"chain": chain})
        floats = client.embeddings.create(
            model="arith", input=[PROMPT, "1+1="], encoding_format="float", extra_body={"chain": chain}
        )
        outputs = server.post(
            "/predict", model="arith", inputs=[PROMPT, "1+1="], chain=chain, parameters={"mode": "embed"}
        )
        for one, other, output in zip(answer.data, floats.data, outputs["outputs"], strict=True):
            assert one.embedding == pytest.approx(output["embedding"], abs=1e-5)
            assert other.embedding == pytest.approx(output["embedding"], abs=1e-5)
            assert sum(value * value for value in one.embedding) == pytest.approx(1.0, abs=1e-5)
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (15, 15)
    with pytest.raises(openai.BadRequestError, match="dimensions is 3"):
        client.embeddings.create(model="arith", input="1", dimensions=3)
