"""OpenAI's own client talks to the arithmetic model, given a chat template."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import models
from exporters.export import export_checkpoint

TEMPLATE = (
    "{%- if messages[-1].role != 'user' -%}{{ raise_exception('ask something') }}{%- endif -%}"
    "{{ messages[-1].content }}{%- if add_generation_prompt -%}={%- endif -%}"
)
QUESTION, ANSWER = {"role": "user", "content": "72915-4821"}, "68094"


@pytest.fixture(scope="module")
def client(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("talker")
    checkpoint = shutil.copytree(Path(models.__file__).parent / "checkpoints" / "arith", folder / "talker")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    export_checkpoint(checkpoint, folder / "repository", formats=("safetensors",))
    with (
        start("--repository", str(folder / "repository"), "--backend", "eager") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


def _ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "talker", "messages": [QUESTION], "temperature": 0, **fields})


@pytest.mark.parametrize("chain", ["full", "0-1,3-10"])
def test_question_is_answered_along_a_chain(client: openai.OpenAI, chain: str) -> None:
    turns = [{"role": "system", "content": "-"}, QUESTION, {"role": "assistant", "content": ANSWER}, QUESTION]
    answer = _ask(client, messages=turns, extra_body={"chain": chain}, n=2)
    assert [choice.message.content for choice in answer.choices] == [ANSWER, ANSWER]
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert len(answer.choices[0].fathom["chain"]) == (12 if chain == "full" else 10)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 12, 23)


def test_answer_is_streamed_with_logprobs_and_usage(client: openai.OpenAI) -> None:
    whole = _ask(client, logprobs=True, top_logprobs=2, n=2)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = _ask(client, logprobs=True, top_logprobs=2, n=2, **options)
    assert (last.choices, last.usage) == ([], whole.usage)
    for wanted in whole.choices:
        pieces = [choice for chunk in chunks for choice in chunk.choices if choice.index == wanted.index]
        assert pieces[0].delta.role == "assistant"
        assert "".join(piece.delta.content for piece in pieces) == wanted.message.content == ANSWER
        told = [token for piece in pieces[:-1] for token in piece.logprobs.content]
        assert [token.token for token in told] == [token.token for token in wanted.logprobs.content]
        assert [len(token.top_logprobs) for token in told] == [2] * 6
        assert pieces[-1].finish_reason == "stop"


def test_helper_that_reads_streams_puts_the_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="talker", messages=[QUESTION], temperature=0) as stream:  # type: ignore[list-item]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


def test_limits_stops_and_seeds_are_heeded(client: openai.OpenAI) -> None:
    (short,) = _ask(client, max_completion_tokens=2).choices
    (stopped,) = _ask(client, stop=["09"]).choices
    assert (short.message.content, short.finish_reason) == ("68", "length")
    assert (stopped.message.content, stopped.finish_reason) == ("68", "stop")
    drawn = [
        [choice.message.content for choice in _ask(client, temperature=10, seed=seed, n=4, max_tokens=8).choices]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_clients_own(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="ask something"):
        _ask(client, messages=[{"role": "assistant", "content": "1"}], stream=stream)
    with pytest.raises(openai.BadRequestError, match="tools") as refused:
        _ask(client, tools=[{"type": "function", "function": {"name": "f"}}], stream=stream)
    assert refused.value.param == "tools"
