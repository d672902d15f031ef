"""Weights of fewer bits by torchao: how they are rounded, and what a file of them is made of."""

import json
import logging
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporters import pt2, quantized
from exporters.export import export_checkpoint
from exporters.parts import Part, Parts, Port
from exporters.publish import Exported
from models.artifact import Format
from models.errors import ArtifactError
from models.lm import weights
from models.lm.linear import RowsByRank
from models.lm.model import LanguageModel
from service.backends.open import BackendName, open_backend
from service.backends.protocol import Array, Backend, Rows
from tests.exporters.conftest import LM

FORMATS: tuple[Format, ...] = tuple(quantized.BITS)


@pytest.fixture(scope="module")
def spoken(lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A language model of one layer, as tracing each takes seconds."""
    directory = shutil.copytree(lm_checkpoint, tmp_path_factory.mktemp("one") / "tiny")
    torch.manual_seed(0)
    weights.save(LanguageModel(replace(LM, num_hidden_layers=1)), directory)
    return export_checkpoint(directory, tmp_path_factory.mktemp("quantized"), FORMATS)


def part(module: nn.Module, width: int) -> Part:
    ports = (Port("x", ("batch", width)),), (Port("y", ("batch", width)),)
    return Part("whole", module.eval(), *ports, (torch.randn(2, width, generator=torch.Generator().manual_seed(0)),))


def whole(module: nn.Module, width: int) -> Parts:
    one = part(module, width)
    return Parts(one, (), one, one, inputs=(), outputs=())


@pytest.mark.parametrize("width", [64, 48, 8])
def test_no_weight_is_further_off_than_half_a_step(width: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(width, 40, bias=False)
    weight = linear.weight.detach().clone()
    step = {8: weight.abs().amax(dim=1, keepdim=True) / 127}
    blocks = weight.unflatten(1, (-1, min(width & -width, 32)))
    # Zero is among the numbers of every block, and the ends of a block may lie half a step beside the grid.
    spread = blocks.amax(-1, keepdim=True).clamp(min=0) - blocks.amin(-1, keepdim=True).clamp(max=0)
    step[4] = (spread / 15).expand_as(blocks).flatten(1)
    for bits, allowed in ((8, 0.5), (4, 1.0)):
        rounded = quantized._rounded(part(nn.Sequential(linear), width), bits).module
        with torch.inference_mode():
            error = (rounded(torch.eye(width)).T - weight).abs() / step[bits]
        assert 0.4 < float(error.max()) <= allowed + 1e-3
        assert float(error.mean()) < 0.3
    assert torch.equal(linear.weight, weight)  # the model itself keeps its weights


@pytest.mark.parametrize(("format", "bytes_per_weight"), [("pt2-int8", 1.1), ("pt2-int4", 0.7)])
def test_files_hold_plain_operators_and_plain_tensors(
    format: Format, bytes_per_weight: float, spoken: Exported
) -> None:
    assert spoken.manifest.provenance["torchao"]
    path = spoken.directory / format / "layer_000.pt2"
    with zipfile.ZipFile(path) as archive:
        (listed,) = (name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        stored = json.loads(archive.read(listed))["config"]
        sizes = [entry.file_size for entry in archive.infolist() if "/data/weights/weight_" in entry.filename]
        assert not any(b".py" in archive.read(name) for name in archive.namelist())
        assert [entry.file_size for entry in archive.infolist() if "sample_inputs" in entry.filename] == [0]
    assert not any(entry["use_pickle"] for entry in stored.values())
    num_weights = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 40
    assert sum(sizes) < bytes_per_weight * num_weights + 4 * (2 * 32 + 300)  # norms, and scales of rows
    program = torch.export.load(path)
    called = {node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")}
    assert called == {"aten"}


@pytest.mark.parametrize("format", FORMATS)
def test_any_chain_of_a_row_is_the_same_whatever_is_in_its_batch(format: BackendName, spoken: Exported) -> None:
    backend = open_backend(spoken.manifest, spoken.directory, format)
    token_ids = torch.randint(48, (3, 7), generator=torch.Generator().manual_seed(0)).numpy()
    together, alone = (chain_logits(backend, token_ids[rows]) for rows in (slice(0, 3), slice(1, 2)))
    assert np.abs(together[1] - alone[0]).max() <= 1e-5
    assert np.abs(together[1] - together[0]).max() > 1e-2
    backend.close()


def chain_logits(backend: Backend, token_ids: Array) -> Array:
    """Logits [B, S, V] after three visits of the one layer."""
    count, length = token_ids.shape
    where = Rows(np.zeros(count, np.int64), np.full(count, length))
    carry = backend.embed({"token_ids": token_ids}, where)
    for _ in range(3):
        carry = backend.layer(0, carry, where)
    return backend.head(carry, np.tile(np.arange(length), (count, 1)))["logits"]


def test_layers_of_another_kind_keep_their_weights() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(16, 16), RowsByRank(16, 16))
    assert [layer.in_features for layer in quantized._linears(module, 8)] == [6, 16]
    assert [layer.in_features for layer in quantized._linears(module, 4)] == [16]


@pytest.mark.parametrize("format", FORMATS)
def test_model_without_linear_layers_is_refused(format: Format, tmp_path: Path) -> None:
    parts = whole(nn.Tanh(), 4)
    with pytest.raises(ArtifactError, match=f"no part has a linear layer whose weights {format} could hold"):
        next(quantized.write(parts, tmp_path, format))


def test_missing_torchao_is_told_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ArtifactError, match="not installed; install the extra quantized"):
        next(quantized.write(whole(nn.Sequential(nn.Linear(8, 8)), 8), tmp_path, "pt2-int8"))


def test_rounding_leaves_settings_and_logs_as_they_were() -> None:
    loggers = [logging.getLogger(name) for name in quantized._LOGGERS]
    before = torch.get_float32_matmul_precision(), [logger.level for logger in loggers]
    with pt2.quiet():
        quantized._rounded(part(nn.Sequential(nn.Linear(8, 8)), 8), 8)
    assert (torch.get_float32_matmul_precision(), [logger.level for logger in loggers]) == before
