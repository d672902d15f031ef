"""An image classifier from a directory of transformers to an answer: exported, served, asked along chains."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.export import export_checkpoint
from models.artifact import Format
from models.chain import Chain
from models.checkpoint import load_checkpoint
from tests.contracts.classifiers import CLASSIFIERS, make, pixels
from tests.service.conftest import Serve, Served

# With layers, with layers in one of its stages, without any; and the formats they are served from.
FORMATS: dict[str, tuple[Format, ...]] = {
    "vit": ("onnx", "safetensors"),
    "resnet-50": ("safetensors",),
    "resnet-without-a-run": ("onnx", "safetensors"),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    rows = {classifier.name: classifier for classifier in CLASSIFIERS}
    for name in FORMATS:
        make(rows[name], folder / name)
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    for name, directory in checkpoints.items():
        exported = export_checkpoint(directory, repository, FORMATS[name])
        assert exported.refused == {}
        assert all(d.max_abs <= form.tolerance for form in exported.manifest.forms.values() for d in form.measured)
    return repository


@pytest.fixture(scope="module", params=["auto", "eager"])
def images(request: pytest.FixtureRequest, serve: Serve, repository: Path) -> Iterator[Served]:
    with serve(backend=request.param, repository=repository) as served:
        yield served


@pytest.mark.parametrize("chain", [(0, 1, 2), (0, 2), (1, 1, 0)], ids=str)
def test_images_are_answered_along_their_chain(
    images: Served, checkpoints: dict[str, Path], chain: tuple[int, ...]
) -> None:
    model, rows = load_checkpoint(checkpoints["vit"]), pixels((3, 32, 32))
    answer = images.predict("vit", rows.tolist(), chain=[list(chain), "full"])["outputs"]
    with torch.inference_mode():
        wanted = [model.along({"pixel_values": rows[:1]}, Chain(chain)), model(rows[1:])]
    for row, logits in zip(answer, wanted, strict=True):
        assert np.abs(np.array(row["outputs"]["logits"]) - logits[0].numpy()).max() <= TOLERANCE
    assert answer[0]["chain"] == list(chain)


@pytest.mark.parametrize("name", ["resnet-50", "resnet-without-a-run"])
def test_networks_of_stages_are_served_with_what_layers_they_have(
    images: Served, checkpoints: dict[str, Path], name: str
) -> None:
    model, rows = load_checkpoint(checkpoints[name]), pixels((3, 48, 48))
    with torch.inference_mode():
        wanted = model(rows).numpy()
    answer = images.predict(name, rows.tolist())["outputs"]
    got = np.array([row["outputs"]["logits"] for row in answer])
    assert np.abs(got - wanted).max() <= TOLERANCE * max(1.0, wanted.std())
    assert images.client.get(f"/models/{name}").json()[0]["num_layers"] == len(model.layers)


def test_clients_see_how_pixels_are_prepared_and_what_classes_are_called(images: Served) -> None:
    told = images.client.get("/models/resnet-50").json()[0]
    assert told["image"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    assert told["classes"] == [f"class {i}" for i in range(5)]
    assert told["inputs"] == [{"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, 48, 48]}]
    assert told["provenance"]["layers"] == "stage 2 block 2 to stage 2 block 3"


@pytest.mark.parametrize(
    ("name", "shape", "chain", "words"),
    [
        ("vit", (3, 16, 32), "full", "dimension 2 is 16; the model takes FP32 ['any', 3, 32, 32]"),
        ("vit", (1, 32, 32), "full", "dimension 1 is 1; the model takes FP32 ['any', 3, 32, 32]"),
        ("resnet-without-a-run", (3, 48, 48), [0], "layers"),
    ],
)
def test_images_of_another_size_and_chains_of_no_layers_are_refused(
    images: Served, problem: Callable[..., Any], name: str, shape: tuple[int, ...], chain: Any, words: str
) -> None:
    problem(images.post("/predict", model=name, inputs=pixels(shape).tolist(), chain=chain), 422, words)
