"""One file, any chain: what the graph answers is the plain loop, keys and values by visit."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from exporters.export import export_checkpoint
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError
from models.layered import LayeredModel
from tests.contracts.decoders import DECODERS, make

TOLERANCE = 1e-4
LONG = Chain(tuple(Random(0).choices(range(3), k=9)))
CHAINS = [Chain((0, 1, 2)), Chain((1,)), Chain((2, 0)), Chain((1, 1, 1, 0, 2)), LONG]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def lm_session(lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    exported = export_checkpoint(lm_checkpoint, tmp_path_factory.mktemp("scan"), ("onnx-scan",))
    path = exported.directory / str(exported.manifest.forms["onnx-scan"].whole)
    assert {node.op_type for node in onnx.load(str(path)).graph.node} >= {"Scan"}
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model(lm_checkpoint: Path) -> LayeredModel:
    return load_checkpoint(lm_checkpoint)


def run(
    session: ort.InferenceSession, token_ids: Sequence[Sequence[int]], chain: Chain, past: list[Array]
) -> list[Array]:
    starts = np.full(len(token_ids), past[0].shape[3])
    inputs = (np.asarray(token_ids), starts, *past, np.asarray(chain.layers))
    names = (entry.name for entry in session.get_inputs())
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_reading_and_decoding_along_any_chain_is_the_plain_loop(
    chain: Chain, lm_session: ort.InferenceSession, model: LayeredModel
) -> None:
    ids = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(len(chain))).tolist()
    with torch.inference_mode():
        wanted = model.along({"token_ids": torch.tensor(ids)}, chain).numpy()
    past = [np.zeros((len(chain), 2, 2, 0, 8), np.float32)] * 2
    for start, end in ((0, 4), (4, 5), (5, 9)):
        logits, *new = run(lm_session, [row[start:end] for row in ids], chain, past)
        assert np.abs(logits - wanted[:, start:end]).max() <= TOLERANCE
        past = [np.concatenate(both, axis=3) for both in zip(past, new, strict=True)]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_rows_of_a_classifier_along_any_chain_are_the_plain_loop(
    chain: Chain, mlp_checkpoint: Path, tmp_path: Path
) -> None:
    exported = export_checkpoint(mlp_checkpoint, tmp_path, ("onnx-scan",))
    path = exported.directory / str(exported.manifest.forms["onnx-scan"].whole)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    features = np.random.default_rng(0).uniform(0, 9, (5, 6)).astype(np.float32)
    with torch.inference_mode():
        wanted = load_checkpoint(mlp_checkpoint).along({"features": torch.from_numpy(features)}, chain).numpy()
    (got,) = session.run(None, {"features": features, "chain": np.asarray(chain.layers)})
    assert np.abs(got - wanted).max() <= TOLERANCE


def test_layers_that_differ_in_more_than_weights_are_refused(tmp_path: Path) -> None:
    make(next(decoder for decoder in DECODERS if decoder.name == "gemma-2"), tmp_path / "gemma")
    with pytest.raises(ArtifactError, match="layer_001 differs from layer_000 in more than its weights"):
        export_checkpoint(tmp_path / "gemma", tmp_path / "repository", ("onnx-scan",))
