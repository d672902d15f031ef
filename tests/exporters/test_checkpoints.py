"""Checkpoints somebody else trained: imported as they are, exported in every form, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from exporters.export import export_checkpoint
from models.artifact import read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError
from models.shards import INDEX, WEIGHTS, Shards
from tests.contracts.decoders import DECODERS, VOCABULARY, make
from tests.exporters.test_cli import composed

# Two reaches of attention and bounded scores; both blocks reading the same stream; experts, and layers without.
EXPORTED = ("gemma-2", "pythia", "qwen2-moe")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5 of random weights, in one file."""
    directory = tmp_path_factory.mktemp("checkpoints") / "qwen"
    make(next(decoder for decoder in DECODERS if decoder.name == "qwen2.5"), directory)
    return directory


@pytest.fixture
def damaged(qwen: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(qwen, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def sharded(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, in several files of half precision."""
    directory = tmp_path_factory.mktemp("checkpoints") / "sharded"
    shutil.copytree(qwen, directory, ignore=shutil.ignore_patterns(WEIGHTS))
    model = AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="15KB")
    return directory


@pytest.mark.parametrize("name", EXPORTED)
def test_other_architectures_have_every_form(name: str, tmp_path: Path) -> None:
    make(next(decoder for decoder in DECODERS if decoder.name == name), tmp_path / name)
    exported = export_checkpoint(tmp_path / name, tmp_path / "repository")
    assert exported.refused == {}
    assert list(exported.manifest.forms) == ["onnx", "torchscript", "safetensors"]
    assert exported.manifest.layers is not None
    assert exported.manifest.layers.residual_form == ("parallel" if name == "pythia" else "standard")


def test_shards_are_imported_and_are_one_model(qwen: Path, sharded: Path, tmp_path: Path) -> None:
    assert len(Shards(sharded).files) > 2
    arguments = ["import", str(sharded), "--name", "mine", "--repository", str(tmp_path)]
    result = CliRunner().invoke(composed(), arguments)
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "mine" / "1")
    assert list(manifest.forms) == ["safetensors"]
    assert manifest.forms["safetensors"].whole == f"safetensors/{INDEX}"
    served, whole = load_checkpoint(tmp_path / "mine" / "1" / "safetensors"), load_checkpoint(qwen, torch.bfloat16)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter.float(), served.get_parameter(name))


def test_weights_that_need_no_conversion_stay_in_their_file(qwen: Path) -> None:
    ranges = mapped(load_checkpoint(qwen), qwen / WEIGHTS)
    assert all(ranges.values()), ranges
    converted = mapped(load_checkpoint(qwen, torch.bfloat16), qwen / WEIGHTS)
    assert not any(converted.values())


def mapped(model: torch.nn.Module, file: Path) -> dict[str, bool]:
    """Whether each parameter lies in a map of the file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    ends = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    return {
        name: any(first <= parameter.data_ptr() < last for first, last in ends)
        for name, parameter in model.named_parameters()
    }


def test_shapes_are_known_without_reading(sharded: Path) -> None:
    shards = Shards(sharded)
    assert shards.shape("model.embed_tokens.weight") == (VOCABULARY, 32)
    assert shards.read("model.embed_tokens.weight").dtype is torch.bfloat16


def test_input_is_not_said_of_a_directory(qwen: Path, tmp_path: Path) -> None:
    arguments = ["import", str(qwen), "--name", "mine", "--repository", str(tmp_path), "--input", "x:FP32:-1,3"]
    result = CliRunner().invoke(composed(), arguments)
    assert "leave --input out" in str(result.exception)


# Bad checkpoints. Whatever is wrong with one is told by name, and nothing of it is left in the repository.


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        raw = {**json.loads((directory / "config.json").read_text()), **changes}
        (directory / "config.json").write_text(json.dumps(raw))

    return apply


def cut(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickled(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


def without_a_shard(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model-00001-of-00002.safetensors")
    files = {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (directory / INDEX).write_text(json.dumps({"weight_map": files}))


def lying_index(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model-00001-of-00001.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"strange": "model-00001-of-00001.safetensors"}}))


def index_of(file: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / WEIGHTS).rename(directory.parent / "outside.safetensors")
        (directory / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))

    return apply


def with_tensors(**changes: torch.Tensor) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        save_file({**load_file(directory / WEIGHTS), **named}, directory / WEIGHTS)

    return apply


def other_tokenizer(directory: Path) -> None:
    raw = json.loads((directory / "tokenizer.json").read_text())
    raw["model"]["vocab"]["another"] = 5000
    (directory / "tokenizer.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "cannot be read as safetensors"),
        (pickled, "pickles that run code"),
        (without_a_shard, r"lacks the shards \['model-00002-of-00002"),
        (lying_index, r"lists tensors that are not in the file it names: \['strange'\]"),
        (index_of("../outside.safetensors"), "only safetensors files beside it"),
        (index_of("weights.bin"), "only safetensors files beside it"),
        (index_of(3), "only safetensors files beside it"),
        (with_tensors(model__norm__weight=torch.ones(31)), r"has shape \[31\] and config.json asks for \[32\]"),
        (with_tensors(model__norm__weight=torch.full((32,), torch.nan)), "NaN or infinity"),
        (with_tensors(model__layers__3__mlp__up_proj__weight=torch.ones(2, 2)), r"unexpected \['model.layers.3"),
        (edit(num_hidden_layers=2, layer_types=None), r"unexpected \['model.layers.2"),
        (edit(num_hidden_layers=4, layer_types=None), r"missing \['model.layers.3"),
        (edit(num_hidden_layers=1_000_000_000, layer_types=None), "num_hidden_layers = 1000000000"),
        (edit(vocab_size=50), r"asks for \[50, 32\]"),
        (edit(model_type="brand_new", auto_map={"AutoModel": "modeling.Model"}), "run code of its own"),
        (edit(quantization_config={"quant_method": "gptq"}), "quantization_config"),
        (edit(tie_word_embeddings=True), "say false there"),
        (edit(layer_types=["full_attention"]), "1 layer_types for 3 layers"),
        (edit(layer_types=["chunked_attention"] * 3), "layer_types = "),
        (other_tokenizer, "another model's tokenizer"),
        (lambda directory: (directory / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda directory: (directory / "tokenizer.json").write_text("{}"), "not a tokenizer file"),
    ],
)
def test_bad_checkpoint_is_refused_and_leaves_nothing(
    damage: Callable[[Path], object], said: str, damaged: Path, tmp_path: Path
) -> None:
    damage(damaged)
    with pytest.raises(ArtifactError, match=said):
        export_checkpoint(damaged, tmp_path / "repository", ("safetensors",))
    assert not list((tmp_path / "repository").glob("*"))


def test_same_head_stored_twice_is_one(damaged: Path) -> None:
    tensors = load_file(damaged / WEIGHTS)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, damaged / WEIGHTS)
    edit(tie_word_embeddings=True)(damaged)
    model = load_checkpoint(damaged)
    assert model.head.get_parameter("lm_head.weight") is model.embed.get_parameter("embed_tokens.weight")


def test_base_model_without_its_prefix_is_read(qwen: Path, damaged: Path) -> None:
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(damaged / WEIGHTS).items()}
    save_file(tensors, damaged / WEIGHTS)
    ids = {"token_ids": torch.tensor([[5, 6, 7]])}
    with torch.inference_mode():
        bare, whole = (load_checkpoint(folder).along(ids, Chain((0, 2))) for folder in (damaged, qwen))
    assert torch.equal(bare, whole)
