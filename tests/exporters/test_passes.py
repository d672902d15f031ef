"""What a pass writes is the model it says: the chain without the layers, the mean, the product of thin matrices."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from exporters.export import export_checkpoint, find_checkpoint
from exporters.passes import cli
from exporters.passes.drop import choose, drop
from exporters.passes.influence import influence
from exporters.passes.low_rank import low_rank
from exporters.passes.soup import greedy, uniform
from exporters.samples import Sample, accuracy, read_samples
from models import catalogue
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, InputError
from models.layered import LayeredModel
from models.lm.model import LanguageModel
from tests.contracts.decoders import DECODERS, VOCABULARY, make

TOLERANCE = 1e-5
IDS = {"token_ids": torch.randint(1, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))}
# Windows of every second layer; fused projections; one tensor per expert, dense layers between; stored the other way.
NAMES = ("gemma-2", "phi-3", "qwen2-moe", "qwen2-windowed", "pythia", "gpt-2")


@pytest.fixture(scope="module", params=NAMES)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("passes") / str(request.param)
    make(next(one for one in DECODERS if one.name == request.param), directory)
    return directory


def along(model: LayeredModel, chain: Chain) -> Tensor:
    with torch.inference_mode():
        return model.along(IDS, chain)


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def test_fewer_layers_are_the_chain_without_them(decoder: Path, tmp_path: Path) -> None:
    drop(decoder, tmp_path / "fewer", [1])
    fewer = load_checkpoint(tmp_path / "fewer")
    assert len(fewer.layers) == 2
    assert difference(along(fewer, Chain.full(2)), along(load_checkpoint(decoder), Chain((0, 2)))) <= TOLERANCE


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_half_a_layer_less_is_the_model_where_it_adds_nothing(unit: str, decoder: Path, tmp_path: Path) -> None:
    drop(decoder, tmp_path / "half", [0, 2], unit)  # type: ignore[arg-type]
    whole, half = load_checkpoint(decoder), load_checkpoint(tmp_path / "half")
    assert sum(p.numel() for p in half.parameters()) < sum(p.numel() for p in whole.parameters())
    for layer in (0, 2):
        norm = whole.layers[layer].get_submodule("attention_out_norm" if unit == "attention" else "mlp_out_norm")
        norm.register_forward_hook(lambda module, inputs, added: torch.zeros_like(added))
    chain = Chain((0, 1, 2, 2))
    assert difference(along(half, chain), along(whole, chain)) <= TOLERANCE


def test_passes_follow_one_another_and_are_told(decoder: Path, tmp_path: Path) -> None:
    drop(decoder, tmp_path / "half", [2], "attention")
    drop(tmp_path / "half", tmp_path / "fewer", [0])
    fewer, half = load_checkpoint(tmp_path / "fewer"), load_checkpoint(tmp_path / "half")
    assert isinstance(fewer, LanguageModel)
    assert fewer.config.without_attention == (1,)
    assert difference(along(fewer, Chain.full(2)), along(half, Chain((1, 2)))) <= TOLERANCE
    exported = export_checkpoint(tmp_path / "fewer", tmp_path / "repository", ("safetensors",))
    assert exported.manifest.provenance["passes"] == "dropped attention 2; dropped layer 0"


def test_lower_rank_is_the_closest_of_that_rank(decoder: Path, tmp_path: Path) -> None:
    low_rank(decoder, tmp_path / "low", 0.6)
    whole, low = load_checkpoint(decoder), load_checkpoint(tmp_path / "low")
    before, after = (sum(p.numel() for n, p in model.named_parameters() if "_proj." in n) for model in (whole, low))
    assert 0.5 * before <= after <= 0.66 * before
    with torch.no_grad():
        for name, module in whole.named_modules():
            if name.startswith("layers.") and name.endswith("_proj") and isinstance(module, torch.nn.Linear):
                pieces = low.get_submodule(name)
                product = pieces.get_parameter("second.weight") @ pieces.get_parameter("first.weight")
                rank = pieces.get_parameter("first.weight").shape[0]
                left_out = torch.linalg.svdvals(module.weight)[rank:]
                error = torch.linalg.norm(module.weight - product)
                assert error <= torch.linalg.norm(left_out) * 1.001 + TOLERANCE
                module.weight.copy_(product)
    assert difference(along(low, Chain((0, 1, 1, 2))), along(whole, Chain((0, 1, 1, 2)))) <= 20 * TOLERANCE


def test_what_passes_write_is_exported(tmp_path: Path) -> None:
    make(next(one for one in DECODERS if one.name == "qwen3"), tmp_path / "whole")
    drop(tmp_path / "whole", tmp_path / "half", [1], "mlp")
    drop(tmp_path / "half", tmp_path / "less", [0], "attention")
    low_rank(tmp_path / "less", tmp_path / "low", 0.7)
    exported = export_checkpoint(tmp_path / "low", tmp_path / "repository", ("onnx", "safetensors"))
    assert exported.refused == {}


# Influence.


def test_layer_that_changes_little_has_little_influence(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    model = catalogue.load(tiny_mlp_checkpoint)
    model.layers[1].get_parameter("down.weight").data *= 1e-3
    model.layers[1].get_parameter("down.bias").data *= 1e-3
    catalogue.save(model, tmp_path / "weak")
    lines = [json.dumps({"inputs": [float(i), 1.0, 2.0, 3.0, 4.0, 5.0]}) for i in range(9)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    assert choose(tmp_path / "weak", 1, "layer", tmp_path / "samples.jsonl") == [1]
    found = influence(model, read_samples(tmp_path / "samples.jsonl", model, tmp_path / "weak"))
    assert found[1] < 0.01 < min(found[0], found[2])


def test_halves_have_the_influence_of_what_they_add(tiny_lm_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_lm_checkpoint)
    samples = [
        Sample(torch.randint(0, 17, (1, 12), generator=torch.Generator().manual_seed(i)), None) for i in range(4)
    ]
    model.layers[2].get_parameter("self_attn.o_proj.weight").data.zero_()
    model.layers[0].get_parameter("mlp.down_proj.weight").data.zero_()
    attention, mlp = influence(model, samples, "attention"), influence(model, samples, "mlp")
    assert attention[2] == pytest.approx(0.0, abs=1e-6)
    assert mlp[0] == pytest.approx(0.0, abs=1e-6)
    assert min(attention[:2]) > 1e-3
    assert min(mlp[1:]) > 1e-3


def test_shipped_model_misses_what_has_influence_more(tmp_path: Path) -> None:
    digits = find_checkpoint("digits")
    samples = digits / "heldout.jsonl"
    least = choose(digits, 4, "layer", samples)
    model = load_checkpoint(digits)
    read = read_samples(samples, model, digits)
    found = influence(model, read[:256])
    most = sorted(sorted(range(12), key=lambda layer: -found[layer])[:4])
    for name, dropped in (("least", least), ("most", most)):
        drop(digits, tmp_path / name, dropped)
    kept, lost = (accuracy(load_checkpoint(tmp_path / name), read) for name in ("least", "most"))
    assert accuracy(model, read) > 0.9
    assert kept > lost


# Soups.


def noisy(checkpoint: Path, target: Path, scale: float, seed: int) -> Path:
    target.mkdir(parents=True)
    (target / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    random = torch.Generator().manual_seed(seed)
    tensors = load_file(checkpoint / "model.safetensors")
    changed = {name: t + scale * torch.randn(t.shape, generator=random) for name, t in tensors.items()}
    save_file(changed, target / "model.safetensors")
    return target


def test_uniform_soup_is_the_mean(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    others = [noisy(tiny_mlp_checkpoint, tmp_path / f"other{i}", 0.5, i) for i in range(2)]
    uniform([tiny_mlp_checkpoint, *others], tmp_path / "soup")
    models = [load_checkpoint(one) for one in (tiny_mlp_checkpoint, *others)]
    for name, parameter in load_checkpoint(tmp_path / "soup").named_parameters():
        assert torch.allclose(parameter, sum(m.get_parameter(name) for m in models) / 3, atol=1e-6)
    exported = export_checkpoint(tmp_path / "soup", tmp_path / "repository", ("safetensors",))
    assert exported.manifest.provenance["passes"] == "uniform soup of tinymlp, other0, other1"


def test_greedy_soup_leaves_out_what_spoils_it(tmp_path: Path) -> None:
    digits = find_checkpoint("digits")
    good, spoiled = noisy(digits, tmp_path / "good", 0.001, 1), noisy(digits, tmp_path / "spoiled", 2.0, 2)
    told = greedy([spoiled, digits, good], tmp_path / "soup", digits / "heldout.jsonl")
    assert spoiled not in [checkpoint for checkpoint, _ in told]
    accuracies = [found for _, found in told]
    assert accuracies == sorted(accuracies)
    model = load_checkpoint(tmp_path / "soup")
    assert accuracy(model, read_samples(digits / "heldout.jsonl", model, digits)) == accuracies[-1] > 0.9


# Bad input.


def test_layers_that_cannot_go_are_refused(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    for dropped in ([3], [-1], [], [0, 1, 2]):
        with pytest.raises(InputError, match="cannot be dropped"):
            drop(tiny_mlp_checkpoint, tmp_path / "out", dropped)
    with pytest.raises(InputError, match="have no attention of their own"):
        drop(tiny_mlp_checkpoint, tmp_path / "out", [0], "attention")
    with pytest.raises(InputError, match="is no decoder"):
        low_rank(tiny_mlp_checkpoint, tmp_path / "out", 0.5)
    assert not list(tmp_path.iterdir())


def test_depth_that_the_weights_know_of_is_kept(tmp_path: Path) -> None:
    make(next(one for one in DECODERS if one.name == "gpt-2-scaled-by-depth"), tmp_path / "gpt")
    with pytest.raises(InputError, match="keep them all"):
        drop(tmp_path / "gpt", tmp_path / "out", [1])


def test_soup_of_unlike_checkpoints_is_refused(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not of the shape"):
        uniform([tiny_mlp_checkpoint, find_checkpoint("digits")], tmp_path / "soup")
    with pytest.raises(InputError, match="two or more"):
        uniform([tiny_mlp_checkpoint], tmp_path / "soup")


def test_nothing_is_written_over(tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="exists"):
        drop(tiny_mlp_checkpoint, tmp_path / "out", [1])


@pytest.mark.parametrize(
    ("line", "said"), [("{", "no JSON"), ("3", "no JSON object"), ('{"prompt": "1"}', "no 'inputs'"), ("", "no lines")]
)
def test_bad_samples_are_told_by_line(line: str, said: str, tiny_mlp_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(line)
    model = load_checkpoint(tiny_mlp_checkpoint)
    with pytest.raises(InputError, match=said):
        read_samples(tmp_path / "samples.jsonl", model, tiny_mlp_checkpoint)


@pytest.fixture
def app() -> Any:
    import typer

    app = typer.Typer()
    for command in (cli.drop, cli.soup, cli.low_rank):
        app.command()(command)
    return app


def test_commands_write_checkpoints(app: Any, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "digits without layer" in run("drop", "digits", "--count", "2", "--out", str(tmp_path / "a"))
    run("drop", "digits", "--layers", "3,5", "--out", str(tmp_path / "b"))
    assert len(load_checkpoint(tmp_path / "a").layers) == len(load_checkpoint(tmp_path / "b").layers) == 10
    assert "mean of 2" in run("soup", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c"))
    run("low-rank", "arith", "--keep", "0.8", "--out", str(tmp_path / "d"))
    assert isinstance(load_checkpoint(tmp_path / "d"), LanguageModel)
    for wrong in (["--unit", "head", "--count", "1"], [], ["--count", "1", "--layers", "3"]):
        result = CliRunner().invoke(app, ["drop", "digits", "--out", str(tmp_path / "e"), *wrong])
        assert isinstance(result.exception, InputError)
