"""What holds of every checkpoint of the catalogue: exported, served, alone as in a batch, along any chain, as told.

A new architecture needs nothing here: its rows come from the cards beside the shipped weights.
"""

import json
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from torch import Tensor

from exporters.export import export_checkpoint
from models import catalogue
from models.artifact import read_manifest
from models.chain import Chain
from models.layered import LayeredModel, SequenceStack, Whole, num_parameters
from service.app import create_app
from service.server import Server, listen
from service.settings import Settings
from training import page
from training.card import CARD, read_card
from training.make import judged
from training.recipe import score, train
from training.recipes import find_recipe, recipes

CHECKPOINTS = Path(__file__).parents[2] / "models" / "checkpoints"
NAMES = sorted(path.parent.name for path in CHECKPOINTS.glob(f"*/{CARD}"))
ARCHITECTURES: dict[str, Any] = {
    name: catalogue.find(json.loads((CHECKPOINTS / name / "config.json").read_text())["model_type"]) for name in NAMES
}
STACKS = [name for name, architecture in ARCHITECTURES.items() if not issubclass(architecture, Whole)]
FORMATS = ("onnx", "torchscript", "safetensors")
# Numbers over HTTP against eager torch: what an export may differ by.
CLOSE = 1e-4
MAX_FILE_BYTES = 300_000
NUM_ROWS = 20


@cache
def loaded(name: str) -> LayeredModel:
    return catalogue.load(CHECKPOINTS / name)


@cache
def rows(name: str) -> Tensor:
    """Inputs that were never trained on."""
    return find_recipe(name).task.heldout().inputs[:NUM_ROWS]


def chains(num_layers: int) -> list[Chain]:
    """Left out, looped, turned round."""
    full = tuple(range(num_layers))
    looped = (full[0], *full)
    return [Chain(full[1:] or looped), Chain((*full, full[-1])), Chain(looped), Chain(tuple(reversed(full)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints are exported to, one after the other."""
    return tmp_path_factory.mktemp("catalogue")


def exported(name: str, folder: Path) -> Path:
    """A checkpoint's version, each format held against torch on other batch sizes and lengths by the exporter."""
    if not (folder / name).exists():
        written = export_checkpoint(CHECKPOINTS / name, folder, FORMATS)
        assert not written.refused, written.refused
    return folder / name / "1"


@pytest.fixture(scope="module")
def repository(folder: Path) -> Path:
    """All of them."""
    for name in NAMES:
        exported(name, folder)
    return folder


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def client(request: pytest.FixtureRequest, repository: Path) -> Iterator[httpx.Client]:
    """A server of all of them on one runtime."""
    app = create_app(Settings(repository=repository, backend=request.param, memory="sqlite://"))
    listener = listen("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, log_config=None, access_log=False), app.state.lifecycle)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url="http://{}:{}".format(*listener.getsockname()), timeout=60) as opened:
            while opened.get("/health/ready").status_code != 200:
                threading.Event().wait(0.05)
            yield opened
    finally:
        server.should_exit = True
        thread.join()


def predicted(client: httpx.Client, name: str, inputs: Tensor, **fields: Any) -> tuple[Any, Any]:
    """The numbers that a server answers to rows, and all that it says of each."""
    response = client.post("/predict", json={"model": name, "inputs": inputs.tolist(), **fields})
    assert response.status_code == 200, response.text
    outputs = response.json()["outputs"]
    return np.asarray([next(iter(row["outputs"].values())) for row in outputs], np.float32), outputs


@pytest.mark.parametrize("name", NAMES)
def test_exports_match_torch_on_sizes_the_exporter_did_not_see(name: str, folder: Path) -> None:
    manifest = read_manifest(exported(name, folder))
    assert set(manifest.forms) == set(FORMATS)
    for format in ("onnx", "torchscript"):
        measured = manifest.forms[format].measured  # type: ignore[index]
        assert {difference.batch for difference in measured} == {1, 3}
        assert all(difference.max_abs <= CLOSE for difference in measured)
        assert manifest.kind != "sequence" or len({difference.length for difference in measured}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_served_numbers_are_those_of_torch(name: str, client: httpx.Client) -> None:
    with torch.inference_mode():
        wanted = loaded(name)(rows(name)).numpy()
    found, _ = predicted(client, name, rows(name))
    np.testing.assert_allclose(found, wanted, atol=CLOSE * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_a_batch_is_the_row_alone(name: str, client: httpx.Client) -> None:
    together, _ = predicted(client, name, rows(name)[:4])
    for row in range(4):
        alone, _ = predicted(client, name, rows(name)[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5 * max(1.0, np.abs(together).max()))


@pytest.mark.parametrize("name", STACKS)
def test_any_chain_is_a_plain_loop_over_its_layers(name: str, client: httpx.Client) -> None:
    model = loaded(name)
    # Rounding adds up with every step: of sequences as much as the model was trained on.
    inputs = rows(name)[:4, : model.max_trained] if isinstance(model, SequenceStack) else rows(name)[:4]
    with torch.inference_mode():
        assert torch.equal(model.along({"inputs": inputs}, Chain.full(len(model.layers))), model(inputs))
    mixed = chains(len(model.layers))
    together, said = predicted(client, name, inputs, chain=[chain.format() for chain in mixed])
    assert [row["chain"] for row in said] == [list(chain.layers) for chain in mixed]
    for row, chain in enumerate(mixed):
        with torch.inference_mode():
            wanted = model.along({"inputs": inputs[row : row + 1]}, chain).numpy()[0]
        np.testing.assert_allclose(together[row], wanted, atol=CLOSE * max(1.0, np.abs(wanted).max()))
        alone, _ = predicted(client, name, inputs[row : row + 1], chain=chain.format())
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", STACKS)
def test_search_with_agreement_finds_chains_that_give_the_same_answer(name: str, client: httpx.Client) -> None:
    body = {"model": name, "inputs": rows(name).tolist(), "reward": "agreement", "budget": {"simulations": 8}}
    response = client.post("/cola/search", json=body)
    assert response.status_code == 200, response.text
    found = response.json()["results"]
    assert len(found) == NUM_ROWS
    for result in found:
        assert result["best"]["certified"]
        assert result["best"]["reward"] == 1.0
        assert result["best"]["length"] <= len(loaded(name).layers)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_as_good_as_their_card_says(name: str) -> None:
    card, recipe = read_card(CHECKPOINTS / name), find_recipe(name)
    assert card.name == name
    assert card.metric == recipe.task.metric
    assert card.model.parameters == num_parameters(loaded(name))
    assert score(loaded(name), recipe.task) == pytest.approx(card.model.score, abs=0.5)
    # An equal budget: the baseline has no fewer weights than nine tenths of the model's, and at most a tenth more.
    assert 0.9 <= card.baseline.parameters / card.model.parameters <= 1.1
    assert (CHECKPOINTS / name / "model.safetensors").stat().st_size <= MAX_FILE_BYTES


@pytest.mark.retrain
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_claims_came_out_as_the_card_says(name: str) -> None:
    """The recipe from the start; minutes."""
    card, recipe = read_card(CHECKPOINTS / name), find_recipe(name)
    started = time.process_time()
    model, _ = train(recipe, recipe.model, name)
    seconds = time.process_time() - started
    baseline, _ = train(recipe, recipe.baseline, recipe.baseline_name)
    assert score(model, recipe.task) == pytest.approx(card.model.score, abs=1.5)
    assert seconds <= 180
    found = {claim.text: claim.held for claim in judged(recipe, model, baseline)}
    assert found == {claim.text: claim.held for claim in card.claims}


def test_every_architecture_has_a_recipe_and_every_recipe_a_checkpoint_with_a_card() -> None:
    assert sorted(recipes()) == NAMES
    made = {read_card(CHECKPOINTS / name).architecture for name in NAMES}
    assert {entry.class_name for entry in catalogue.catalogue()} - made == {"ResidualMLP"}  # that one is `digits`


def test_every_claim_names_a_test_that_is_there() -> None:
    root = Path(__file__).parents[2]
    for entry in catalogue.catalogue():
        for claim in entry.about.claims:
            file, _, test = claim.test.partition("::")
            assert f"def {test}(" in (root / file).read_text(), claim


def test_page_of_all_models_is_what_catalogue_and_cards_say() -> None:
    assert page.PAGE.read_text() == page.page(), "write it again: python -m training.page"
