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

from exporters import scan
from exporters.export import export_checkpoint
from exporters.parts import Tensors
from exporters.split import split
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError
from models.layered import LayeredModel
from models.recurrent.gla import GLA, GLAConfig
from tests.contracts.decoders import DECODERS, make

TOLERANCE = 1e-4
LONG = Chain(tuple(Random(0).choices(range(3), k=9)))
CHAINS = [Chain((0, 1, 2)), Chain((1,)), Chain((2, 0)), Chain((1, 1, 1, 0, 2)), LONG]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def lm_scan(lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    exported = export_checkpoint(lm_checkpoint, tmp_path_factory.mktemp("scan"), ("onnx-scan",))
    return onnx.load(str(exported.directory / str(exported.manifest.forms["onnx-scan"].whole)))


@pytest.fixture(scope="module")
def lm_session(lm_scan: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(lm_scan.SerializeToString(), providers=["CPUExecutionProvider"])


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


def test_layers_of_two_kinds_are_two_branches(tmp_path: Path) -> None:
    """The first and the third layer have experts, the second has none."""
    make(next(decoder for decoder in DECODERS if decoder.name == "qwen3-moe"), tmp_path / "moe")
    model = load_checkpoint(tmp_path / "moe")
    exported = export_checkpoint(tmp_path / "moe", tmp_path / "repository", ("onnx-scan",))
    path = exported.directory / str(exported.manifest.forms["onnx-scan"].whole)
    (loop,) = (node for node in onnx.load(str(path)).graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert [node.op_type for node in body.node].count("If") == 1
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, 99, (2, 7), generator=torch.Generator().manual_seed(0)).tolist()
    for chain in CHAINS:
        with torch.inference_mode():
            wanted = model.along({"token_ids": torch.tensor(ids)}, chain).numpy()
        logits, *_ = run(session, ids, chain, [np.zeros((len(chain), 2, 2, 0, 8), np.float32)] * 2)
        assert np.abs(logits - wanted).max() <= TOLERANCE


def test_weights_are_stored_once(lm_checkpoint: Path, lm_scan: onnx.ModelProto) -> None:
    stored = sum(len(tensor.raw_data) for tensor in lm_scan.graph.initializer)
    weights = sum(parameter.numel() * 4 for parameter in load_checkpoint(lm_checkpoint).parameters())
    assert abs(stored - weights) < 1_000  # some axes and shapes more; norms that are alike once


def test_wrong_state_of_a_visit_is_found() -> None:
    parts = split(GLA(GLAConfig(vocab_size=11, num_classes=5, hidden_size=16, num_heads=2, num_layers=2)).eval())

    def forgets(*inputs: torch.Tensor) -> Tensors:
        *plain, chain = inputs
        hidden = parts.embed(plain[0])[0]
        after = []
        for visit, layer in enumerate(chain.tolist()):
            hidden, memory = parts.layers[layer](hidden, plain[1][visit])
            after.append(memory * 0.9)
        return *parts.head(hidden), torch.stack(after)

    with pytest.raises(ArtifactError, match=r"scan.onnx along 0,1 at batch 1, length 1 differs"):
        scan.verify(forgets, parts, TOLERANCE)
