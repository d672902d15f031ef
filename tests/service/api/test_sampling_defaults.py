"""What a model's authors say of sampling holds where an OpenAI request is silent, and nowhere else."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters.export import export_checkpoint

OWN = {"temperature": 5.0, "top_p": 0.9, "top_k": 7}
PLAIN = {"temperature": 1, "top_p": 1, "top_k": 0}
CHAT = [{"role": "user", "content": "12+7"}]


@pytest.fixture(scope="module")
def server(serve: Any, tiny_lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Models of the same weights: one draws, one is greedy by its authors' word, one is silent."""
    folder = tmp_path_factory.mktemp("defaults")
    said = {
        "drawn": {"do_sample": True, **OWN, "max_new_tokens": 5},
        "greedy": {"do_sample": False, "temperature": 0.7},
        "silent": {"eos_token_id": 0},
    }
    for name, own in said.items():
        checkpoint = shutil.copytree(tiny_lm_checkpoint, folder / name)
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **own}))
        (checkpoint / "chat_template.jinja").write_text("{{ messages[0].content }}=")
        export_checkpoint(checkpoint, folder / "repository", formats=("onnx",))
    with serve(repository=folder / "repository", backend="onnx") as served:
        yield served


def _texts(server: Any, model: str, **fields: Any) -> list[str]:
    body = {"model": model, "prompt": "12+7=", "seed": 3, "n": 4, "max_tokens": 12, **fields}
    response = server.post("/v1/completions", **body)
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_silent_request_draws_as_the_model_says(server: Any) -> None:
    own = _texts(server, "silent", **OWN)
    assert _texts(server, "drawn") == own
    assert _texts(server, "silent") == _texts(server, "silent", **PLAIN)
    assert own != _texts(server, "silent")
    chat = server.post("/v1/chat/completions", model="drawn", messages=CHAT, seed=3, max_tokens=12, n=4).json()
    assert [choice["message"]["content"] for choice in chat["choices"]] == own


@pytest.mark.parametrize("said", [{"temperature": 1}, {"top_p": 1}, {"top_k": 0}, PLAIN], ids=str)
def test_what_the_request_says_wins_one_by_one(server: Any, said: dict[str, Any]) -> None:
    assert _texts(server, "drawn", **said) == _texts(server, "silent", **{**OWN, **said})


def test_null_is_silence(server: Any) -> None:
    assert _texts(server, "drawn", **dict.fromkeys(OWN)) == _texts(server, "drawn")


def test_model_that_does_not_sample_is_greedy_until_asked(server: Any) -> None:
    assert _texts(server, "greedy") == _texts(server, "silent", temperature=0)
    assert _texts(server, "greedy", temperature=1) == _texts(server, "silent")
    body = {"model": "greedy", "prompt": "12+7=", "max_tokens": 12}
    assert server.post("/v1/completions", **body).json()["choices"][0]["fathom"]["seed"] == 0


def test_length_is_the_models_only_where_the_dialect_has_none(server: Any) -> None:
    def count(path: str, **fields: Any) -> int:
        answer = server.post(path, model="drawn", temperature=0, **fields).json()
        return int(answer["usage"]["completion_tokens"])

    chat = "/v1/chat/completions"
    assert count(chat, messages=CHAT) == 5
    assert count(chat, messages=CHAT, max_tokens=9) == count("/v1/completions", prompt="12+7=", max_tokens=9) > 5
    assert count("/v1/completions", prompt="12+7=") == count(chat, messages=CHAT, max_completion_tokens=16) > 5


def test_streams_draw_alike(server: Any) -> None:
    body = {"model": "drawn", "prompt": "12+7=", "seed": 3, "max_tokens": 12, "stream": True}
    *events, _ = server.post("/v1/completions", **body).text.removesuffix("\n\n").split("\n\n")
    pieces = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(pieces) == _texts(server, "drawn")[0]


def test_other_dialects_stay_greedy(server: Any) -> None:
    told = [
        server.predict(model, ["12+7="], parameters={"max_new_tokens": 12})["outputs"][0]["text"]
        for model in ("drawn", "silent")
    ]
    told += [
        server.post(f"/v2/models/{model}/generate", text_input="12+7=", parameters={"max_new_tokens": 12}).json()[
            "text_output"
        ]
        for model in ("drawn", "silent")
    ]
    assert set(told) == {_texts(server, "silent", temperature=0)[0]}


def test_defaults_are_told(server: Any) -> None:
    (drawn,), (silent,) = (server.client.get(f"/models/{name}").json() for name in ("drawn", "silent"))
    assert drawn["sampling"] == {**OWN, "max_new_tokens": 5, "not_served": []}
    assert silent["sampling"] is None
