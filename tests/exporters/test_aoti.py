"""Machine code of AOTInductor: written, verified, served along chains; one layer, as each part takes seconds."""

from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from exporters.export import export_checkpoint
from models import catalogue
from models.checkpoint import load_checkpoint
from models.errors import BackendError
from models.mixers.residual_mlp import ResidualMLP
from service.app import create_app
from service.backends.open import open_backend
from service.settings import Settings
from tests.exporters.conftest import MLP


@pytest.mark.slow
def test_compiled_parts_answer_as_eager_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    catalogue.save(ResidualMLP(replace(MLP, num_layers=1)), tmp_path / "one")
    exported = export_checkpoint(tmp_path / "one", tmp_path / "repository", ("aoti",))
    assert all(difference.max_abs <= 1e-4 for difference in exported.manifest.forms["aoti"].measured)
    backend = open_backend(exported.manifest, exported.directory, "aoti")
    model = load_checkpoint(tmp_path / "one")
    turned = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32).T  # columns lie together
    carry = backend.embed({"features": turned})
    for _ in range(3):
        carry = backend.layer(0, carry)
    with torch.inference_mode():
        hidden = model.embed(torch.from_numpy(turned))
        for _ in range(3):
            hidden = model.layers[0](hidden)
        wanted = model.head(hidden).numpy()
    assert np.abs(backend.head(carry)["logits"] - wanted).max() <= 1e-5
    backend.close()

    settings = Settings(repository=tmp_path / "repository", backend="aoti")
    with TestClient(create_app(settings)) as client:
        while client.get("/health/ready").status_code != 200:
            sleep(0.01)
        answer = client.post("/predict", json={"model": "one", "inputs": turned.tolist(), "chain": [0, 0, 0]}).json()
    served = np.array([output["outputs"]["logits"] for output in answer["outputs"]])
    assert np.abs(served - wanted).max() <= 1e-5

    with pytest.raises(BackendError, match="use device cpu"):
        open_backend(exported.manifest, exported.directory, "aoti", device="cuda")
    path = exported.directory / "aoti" / "layer_000.pt2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"layer_000\.pt2 does not load as compiled code"):
        open_backend(exported.manifest, exported.directory, "aoti")
