"""A recurrent stack as files: states go in and come out, of other rows and steps than the exporter saw."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporters import onnx
from exporters.export import export_checkpoint
from exporters.parts import Parts, Runs
from exporters.publish import Exported
from exporters.split import split
from exporters.verify import cases, verify
from models import catalogue
from models.artifact import read_manifest
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError
from models.layered import SequenceStack
from models.recurrent.gla import GLA, GLAConfig

CONFIG = GLAConfig(vocab_size=11, num_classes=5, hidden_size=16, num_heads=2, num_layers=2, max_chunk=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "fading"
    torch.manual_seed(0)
    model = GLA(CONFIG)
    for layer in model.layers:  # gates from nearly shut to nearly open
        torch.nn.init.uniform_(layer.attention.gate_up.bias, -20, 20)  # type: ignore[arg-type,union-attr]
    catalogue.save(model, directory)
    return directory


@pytest.fixture(scope="module")
def parts(checkpoint: Path) -> Parts:
    return split(load_checkpoint(checkpoint))


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("repository"), ("onnx",))


def test_manifest_says_what_a_server_needs_of_a_sequence(exported: Exported) -> None:
    manifest = read_manifest(exported.directory)
    assert manifest.kind == "sequence"
    assert manifest.sequence is not None
    assert manifest.sequence.model_dump(mode="json") == {
        "max_chunk": 16,
        "max_trained": 64,
        "vocab_size": 11,
        "state": [{"name": "memory", "datatype": "FP32", "shape": [-1, 2, 4, 8]}],
    }
    assert manifest.layers is not None
    # Of one step: projections, gates and the network behind them, and reading and writing the memory of 2 heads.
    linear = 2 * 16 * 8 + 2 * 16 * 16 + 16 * 16 + 16 * 8 + 16 * 16 + 2 * 16 * 32
    assert all(linear < cost < 1.2 * linear for cost in manifest.layers.cost)


def test_sizes_held_are_one_step_some_and_a_full_pass(exported: Exported) -> None:
    sizes = {(d.batch, d.length) for d in exported.manifest.forms["onnx"].measured}
    assert sizes >= {(batch, length) for batch in (1, 3) for length in (1, 12, 16)}


def test_cases_go_on_from_states_that_are_not_empty(parts: Parts) -> None:
    states = [case.whole[1] for case in cases(parts)]
    assert len(states) == 12
    assert [bool(state.any()) for state in states] == [False, True] * 6


def test_state_that_comes_out_wrong_is_found(parts: Parts) -> None:
    def forgets(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden, memory = parts.layers[1](*inputs)
        return hidden, memory * 0.9

    runs = Runs(parts.embed, (parts.layers[0], forgets), parts.head, parts.whole)
    with pytest.raises(ArtifactError, match="layer_001 at batch 1, length 1 differs"):
        verify(runs, parts)


def test_long_sequence_walks_through_the_written_graph(exported: Exported, checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    assert isinstance(model, SequenceStack)
    run = onnx.open_run(exported.directory / "onnx" / "whole.onnx")
    steps = torch.randint(11, (2, 100), generator=torch.Generator().manual_seed(1))
    states = tuple(torch.stack([tensor] * 2) for tensor in model.empty_state(2))
    found = []
    for piece in steps.split(16, dim=1):
        logits, *after = run(piece, *states)
        states = tuple(after)
        found.append(logits)
    with torch.inference_mode():
        assert torch.allclose(torch.cat(found, dim=1), model(steps), atol=1e-4)


def test_layer_of_numbers_takes_numbers(parts: Parts, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, vocab_size=0, num_features=3)
    numbers = split(GLA(config).eval())
    assert numbers.embed.examples[0].shape == (2, 5, 3)
    assert numbers.inputs[0].shape == (-1, -1, 3)
    assert parts.inputs[0].datatype == "INT64"
