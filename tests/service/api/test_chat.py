"""Conversations in the OpenAI dialect: the completion of the rendered prompt, in the shape of messages."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from exporters.export import export_checkpoint

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}{{ raise_exception('no tools here') }}{%- endif -%}"
    "{{ message.content }}{%- if not loop.last -%},{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}={%- endif -%}"
)
PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "12+7"}]


@pytest.fixture(scope="module")
def server(serve: Any, tiny_lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("talker")
    checkpoint = shutil.copytree(tiny_lm_checkpoint, folder / "talker")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    export_checkpoint(checkpoint, folder / "repository", formats=("onnx",))
    with serve(repository=folder / "repository", backend="onnx") as served:
        yield served


def _chat(server: Any, messages: Any = MESSAGES, **fields: Any) -> Any:
    response = server.post(PATH, **{"model": "talker", "temperature": 0, "messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def _chunks(server: Any, **fields: Any) -> list[Any]:
    body = {"model": "talker", "messages": MESSAGES, "temperature": 0, "stream": True, **fields}
    *events, done = server.post(PATH, **body).text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _complete(server: Any, prompt: str, **fields: Any) -> Any:
    body = {"model": "talker", "temperature": 0, "prompt": prompt, "max_tokens": 60, **fields}
    return server.post("/v1/completions", **body).json()


@pytest.mark.parametrize("fields", [{}, {"chain": "0,0,2"}, {"depth": 2}, {"n": 3, "temperature": 5, "seed": 7}])
def test_answer_completes_the_rendered_prompt(server: Any, fields: dict[str, Any]) -> None:
    answer, completed = _chat(server, **fields), _complete(server, "12+7=", **fields)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["usage"] == completed["usage"]
    for choice, wanted in zip(answer["choices"], completed["choices"], strict=True):
        assert choice["message"] == {"role": "assistant", "content": wanted["text"], "refusal": None}
        assert {name: choice[name] for name in ("index", "finish_reason", "fathom")} == {
            name: wanted[name] for name in ("index", "finish_reason", "fathom")
        }


def test_turns_and_parts_are_rendered_in_order(server: Any) -> None:
    messages = [
        {"role": "system", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "2+2"}], "name": "me"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3"},
    ]
    said = _chat(server, messages)["choices"][0]["message"]["content"]
    assert said == _complete(server, "1,2+2,4,3+3=")["choices"][0]["text"]


def test_limits_and_stops_end_the_answer(server: Any) -> None:
    whole = _chat(server)["choices"][0]["message"]["content"]
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}, {"max_tokens": 2, "max_completion_tokens": 2}):
        answer = _chat(server, **limit)
        assert answer["usage"]["completion_tokens"] == 2
        assert answer["choices"][0]["finish_reason"] == "length"
    stopped = _chat(server, stop=whole[2])["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (whole.partition(whole[2])[0], "stop")


@pytest.mark.parametrize("count", [None, 0, 3])
def test_logprobs_are_those_of_the_completion(server: Any, count: int | None) -> None:
    counted = {} if count is None else {"top_logprobs": count}
    told = _chat(server, logprobs=True, max_tokens=6, **counted)["choices"][0]["logprobs"]["content"]
    wanted = _complete(server, "12+7=", logprobs=count or 0, max_tokens=6)["choices"][0]["logprobs"]
    assert [one["token"] for one in told] == wanted["tokens"]
    assert [one["logprob"] for one in told] == wanted["token_logprobs"]
    for one, top in zip(told, wanted["top_logprobs"], strict=True):
        assert bytes(one["bytes"]).decode() == one["token"]
        assert len(one["top_logprobs"]) == (count or 0)
        assert {other["token"]: other["logprob"] for other in one["top_logprobs"]}.items() <= top.items()
    assert _chat(server)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 3, "temperature": 5, "seed": 2}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["1"]}, {"depth": 0.7}],
)
def test_stream_is_the_answer_in_pieces(server: Any, fields: dict[str, Any]) -> None:
    whole = _chat(server, **fields)
    *chunks, last = _chunks(server, **fields, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {chunk["object"] for chunk in (*chunks, last)} == {"chat.completion.chunk"}
    for wanted in whole["choices"]:
        pieces = [one for chunk in chunks for one in chunk["choices"] if one["index"] == wanted["index"]]
        assert [one["delta"]["role"] for one in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
        assert "".join(one["delta"]["content"] for one in pieces) == wanted["message"]["content"]
        assert (pieces[-1]["finish_reason"], pieces[-1]["fathom"]) == (wanted["finish_reason"], wanted["fathom"])
        if wanted["logprobs"]:
            told = [token for one in pieces[:-1] for token in one["logprobs"]["content"]]
            assert told == wanted["logprobs"]["content"]


def test_fields_of_clients_that_ask_for_text_are_taken(server: Any) -> None:
    neutral = {"response_format": {"type": "text"}, "modalities": ["text"], "tools": [], "store": False, "stop": None}
    assert _chat(server, **neutral)["choices"] == _chat(server)["choices"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", ("at least 1",)),
        ({"messages": [{"role": "poet", "content": "1"}]}, "messages.0.role", ("'system'", "'poet' came")),
        ({"messages": [{"role": "user"}]}, "messages.0.content", ("required",)),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
            ("type 'text'",),
        ),
        (
            {"messages": [{"role": "user", "content": "1", "tool_calls": []}]},
            "messages.0.tool_calls",
            ("no such field",),
        ),
        ({"messages": [{"role": "tool", "content": "1"}]}, None, ("no tools here",)),
        ({"messages": [{"role": "user", "content": "\u00e9"}]}, None, ("alphabet",)),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", ("max_tokens",)),
        ({"top_logprobs": 3}, "top_logprobs", ("logprobs true",)),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ("20",)),
        ({"response_format": {"type": "json_object"}}, "response_format", ("Not served",)),
        ({"tools": [{"type": "function"}]}, "tools", ("Not served",)),
        ({"functions": []}, "functions", ("no such field",)),
        ({"chain": "0,3"}, None, ("layer 3",)),
        ({"depth": 2, "chain": "0"}, "depth", ("Not with chain",)),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_bad_conversations_are_refused_by_name(
    server: Any, fields: dict[str, Any], param: str | None, words: tuple[str, ...], streams: bool
) -> None:
    response: httpx.Response = server.post(
        PATH, **{"model": "talker", "messages": MESSAGES, "stream": streams, **fields}
    )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    for word in words:
        assert word in error["message"]


def test_long_conversation_is_refused(server: Any) -> None:
    response = server.post(PATH, model="talker", messages=MESSAGES * 30)
    assert response.status_code == 413
    assert "at most 63" in response.json()["error"]["message"]
