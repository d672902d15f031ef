"""Models in another residual form over HTTP: served if they were trained in it, else only for timing, by name."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.chain import Chain

CHAIN = [0, 2, 2, 1]


@pytest.fixture(scope="module")
def ladder(tiny_lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny language model as a ladder that skips by slots, as if trained so; its repository has one model."""
    from exporters.export import export_checkpoint
    from models.lm import weights
    from models.lm.model import LanguageModel
    from models.lm.residual import parse_form

    standard = weights.load(tiny_lm_checkpoint)
    model = LanguageModel(replace(standard.config, residual=parse_form("ladder(slot)")))
    model.load_state_dict(standard.state_dict())
    folder = tmp_path_factory.mktemp("ladder")
    weights.save(model, folder / "tinylm")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_lm_checkpoint / file, folder / "tinylm" / file)
    export_checkpoint(folder / "tinylm", folder / "repository", ("safetensors",))
    return model.eval(), folder / "repository"


def test_ladder_answers_with_its_own_function(serve: Any, ladder: Any) -> None:
    model, repository = ladder
    with serve(repository=repository, backend="eager") as server:
        (told,) = server.client.get("/models").json()
        assert (told["residual_form"], told["is_trained"]) == ("ladder(slot)", True)
        for chain in ("full", CHAIN):
            (answer,) = server.predict("tinylm", ["12+7="], chain=chain, parameters={"max_new_tokens": 12})["outputs"]
            ids = answer["token_ids"]
            prompt = prompt_ids(server)
            layers = Chain((0, 1, 2) if chain == "full" else tuple(CHAIN))
            with torch.inference_mode():
                logits = model.along({"token_ids": torch.tensor([prompt + ids[:-1]])}, layers)[0]
            assert logits[len(prompt) - 1 :].argmax(-1).tolist() == ids
            (embedded,) = server.predict("tinylm", ["12+7="], chain=chain, parameters={"mode": "embed"})["outputs"]
            assert embedded["embedding"] == pytest.approx(plain_embedding(model, prompt, layers), abs=1e-5)


def prompt_ids(server: Any) -> list[int]:
    scored = server.predict("tinylm", ["1"], parameters={"mode": "score"}, targets=["12+7="])
    ids: list[int] = scored["outputs"][0]["token_ids"][:-1]
    return ids


def plain_embedding(model: Any, ids: list[int], chain: Chain) -> list[float]:
    start = torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        hidden, *seen = model.embed(torch.tensor([ids]), start, start[:0])
        for layer in chain.layers:
            hidden, *_ = model.layers[layer](hidden, *seen, model.empty_cache(1), model.empty_cache(1))
        mean = model.config.residual.landed(hidden)[0].mean(0).numpy()
    return list(mean / np.linalg.norm(mean))


def test_search_on_a_ladder_certifies_and_its_chain_is_another_hybrids_no_more(
    serve: Any, ladder: Any, tmp_path: Path
) -> None:
    _, repository = ladder
    place = str(tmp_path / "chains.db")
    chain = [0, 0, 2, 1]
    with serve(repository=repository, backend="eager", memory=place) as server:
        (output,) = server.predict("tinylm", ["12+7="], chain=chain)["outputs"]
        menu = {"space": {"name": "menu", "chains": [chain]}, "target": output["token_ids"][:-1]}
        body = {"model": "tinylm", "input": "12+7=", "remember": True, "budget": {"simulations": 9}, **menu}
        found = server.post("/cola/search", **body).json()
        assert (found["best"]["chain"], found["best"]["certified"]) == (chain, True)
        assert recalled(server) == chain
    for form, is_found in (("ladder(slot):0-1", False), ("ladder(slot):0", False), ("ladder(slot)", True)):
        changed = tmp_path / "changed"
        shutil.rmtree(changed, ignore_errors=True)
        edit(Path(shutil.copytree(repository, changed)), residual_form=form)
        with serve(repository=changed, memory=place) as server:  # the fake backend: what is remembered runs on it
            assert recalled(server) == (chain if is_found else [0, 1, 2])


def recalled(server: Any) -> list[int]:
    (output,) = server.predict("tinylm", ["12+7="], chain="memory")["outputs"]
    chain: list[int] = output["chain"]
    return chain


def edit(repository: Path, **layers: Any) -> None:
    """Change what the manifest of the tiny language model says of its layers."""
    path = repository / "tinylm" / "1" / "manifest.json"
    said = json.loads(path.read_text())
    said["layers"].update(layers)
    path.write_text(json.dumps(said))


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_repository, tmp_path / "repository"))


def test_weights_not_trained_in_their_form_are_served_only_by_name_for_timing(
    serve: Any, repository: Path, problem: Callable[..., Any]
) -> None:
    edit(repository, residual_form="ladder:1-2", is_trained=False)
    for timing in ((), ("tinymlp", "tinylm2")):
        with serve(repository=repository, wait=False, timing=timing) as server:
            wait_until_settled(server)
            words = ("tinylm", "ladder:1-2", "mean nothing", "FATHOM_TIMING=tinylm")
            problem(server.post("/predict", model="tinylm", inputs=["1+1="]), 503, "tinylm")
            problem(server.client.post("/models/tinylm/load"), 409, *words)
            (told,) = server.client.get("/models/tinylm").json()
            assert all(word in told["reason"] for word in words)
    with serve(repository=repository, timing=("tinylm",)) as server:
        assert server.predict("tinylm", ["1+1="])["outputs"]
        (told,) = server.client.get("/models/tinylm").json()
        assert (told["residual_form"], told["is_trained"]) == ("ladder:1-2", False)


def test_upper_bound_has_no_answers_whoever_asks(serve: Any, repository: Path, problem: Callable[..., Any]) -> None:
    edit(repository, residual_form="upper-bound")
    with serve(repository=repository, wait=False, timing=("tinylm",)) as server:
        wait_until_settled(server)
        problem(server.client.post("/models/tinylm/load"), 409, "upper-bound", "fathom bench tp")
        assert server.post("/predict", model="tinylm", inputs=["1+1="]).status_code == 503


def test_form_that_is_none_is_refused(serve: Any, repository: Path, problem: Callable[..., Any]) -> None:
    edit(repository, residual_form="sideways")
    with serve(repository=repository, wait=False) as server:
        wait_until_settled(server)
        problem(server.client.post("/models/tinylm/load"), 409, "'sideways' is no residual form")


def wait_until_settled(server: Any) -> None:
    """Until the other model, which loads after this one, serves."""
    while {one["state"] for one in server.client.get("/models/tinymlp").json()} != {"ready"}:
        threading.Event().wait(0.02)
