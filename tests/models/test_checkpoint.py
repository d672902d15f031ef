"""From a directory to a model, whatever its family."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import catalogue
from models.artifact import Format
from models.chain import Chain
from models.checkpoint import load_checkpoint, model_types
from models.errors import ArtifactError
from models.layered import num_parameters
from models.lm.model import LanguageModel
from models.mixers.residual_mlp import ResidualMLP


def test_family_is_the_one_config_names(tiny_lm_checkpoint: Path, tiny_mlp_checkpoint: Path) -> None:
    lm, mlp = load_checkpoint(tiny_lm_checkpoint), load_checkpoint(tiny_mlp_checkpoint)
    assert isinstance(lm, LanguageModel)
    assert isinstance(mlp, ResidualMLP)
    assert (lm.kind, mlp.kind) == ("causal-lm", "tensor")
    assert not lm.training
    assert not mlp.training
    assert num_parameters(lm) == sum(len(parameter.flatten()) for parameter in lm.parameters())


def test_mlp_round_trips_and_scales_its_inputs(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    model = catalogue.load(tiny_mlp_checkpoint)
    catalogue.save(model, tmp_path)
    inputs = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(catalogue.load(tmp_path)(inputs), model(inputs))
        hidden = model.embed.get_submodule("linear")((inputs - 0.5) * 2.0)
        for layer in (2, 0, 2):
            hidden = model.layers[layer](hidden)
        assert torch.equal(model.along({"features": inputs}, Chain((2, 0, 2))), model.head(hidden))


@pytest.mark.parametrize("content", [None, "", "{", '{"model_type": "swin"}', "{}"])
def test_directory_of_no_known_family_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"cannot be read|supported are \[.*'gemma2'.*'llama'.*'residual_mlp'.*\]"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"llama"'])
def test_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "max_position_embeddings"])
@pytest.mark.parametrize("value", [None, "many", 0], ids=["missing", "text", "zero"])
def test_config_with_a_bad_size_is_refused(field: str, value: object, tiny_lm_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_lm_checkpoint, tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw[field] = value
    if value is None:
        del raw[field]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError):
        load_checkpoint(tmp_path)


def test_mlp_without_a_size_is_refused_by_name(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_mlp_checkpoint, tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match="hidden_size"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone", "missing", "reshaped"])
def test_mlp_with_damaged_weights_is_refused(damage: str, tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_mlp_checkpoint, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "gone":
        path.unlink()
    elif damage == "missing":
        save_file({name: tensor for name, tensor in tensors.items() if name != "head.norm.bias"}, path)
    else:
        save_file({**tensors, "head.norm.bias": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match=r"cannot be read|has neither|missing|has shape"):
        load_checkpoint(tmp_path)


def test_page_names_everything_that_is_read_and_written() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = "".join((docs / name).read_text() for name in ("checkpoints.md", "models.md"))
    assert [name for name in model_types() if name != "timm" and f"`{name}`" not in page] == []
    assert [format for format in get_args(Format) if f"`{format}`" not in page] == []
