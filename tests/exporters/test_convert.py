"""A converted checkpoint: the same weights in another residual form, which nobody takes for a trained model."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from exporters import cli
from exporters.convert import convert
from exporters.export import export_checkpoint, find_checkpoint
from exporters.passes.drop import choose, drop
from exporters.passes.influence import influence
from exporters.samples import Sample
from exporters.sensitivity import sensitivity
from models.chain import Chain
from models.checkpoint import load_checkpoint, read_raw
from models.errors import ArtifactError, InputError
from models.lm import weights
from models.lm.model import LanguageModel
from models.lm.residual import parse_form
from tests.contracts.decoders import DECODERS, NUM_LAYERS, VOCABULARY, make

IDS = {"token_ids": torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))}
NAMES = ("llama-3", "qwen2.5", "gemma-2", "gpt-2", "qwen2-moe")
CHAINS = (Chain.full(NUM_LAYERS), Chain((0, 2)), Chain((2, 1, 1, 0)))


def load(directory: Path) -> LanguageModel:
    model = load_checkpoint(directory)
    assert isinstance(model, LanguageModel)
    return model


def in_form(model: LanguageModel, form: str) -> LanguageModel:
    """The same weights, in a form, without any file."""
    other = LanguageModel(replace(model.config, residual=parse_form(form)))
    other.load_state_dict(model.state_dict())
    return other.eval()


def along(model: LanguageModel, chain: Chain) -> Tensor:
    with torch.inference_mode():
        return model.along(IDS, chain)


@pytest.fixture(scope="module", params=NAMES)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder of random weights, saved by transformers."""
    directory = tmp_path_factory.mktemp("convert") / str(request.param)
    make(next(one for one in DECODERS if one.name == request.param), directory)
    return directory


@pytest.mark.parametrize("form", ["ladder", "ladder:1-2", "ladder(slot):2"])
def test_converted_checkpoint_is_the_same_weights_in_that_form(decoder: Path, form: str, tmp_path: Path) -> None:
    written = convert(decoder, tmp_path / "out", form)
    assert (written.text, written.is_trained) == (form, False)
    standard, converted = load(decoder), load(tmp_path / "out")
    assert converted.config == replace(standard.config, residual=replace(parse_form(form), is_trained=False))
    for chain in CHAINS:
        assert torch.equal(along(converted, chain), along(in_form(standard, form), chain))
    assert (along(converted, CHAINS[0]) - along(standard, CHAINS[0])).abs().max() > 1e-2
    for path in decoder.iterdir():
        if path.name != "config.json":
            assert os.path.samefile(path, tmp_path / "out" / path.name)


def test_arith_becomes_a_hybrid_of_its_upper_half(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command("convert")(cli.convert)
    arguments = ["arith", "--residual", "ladder", "--layers", "6-11", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "ladder:6-11, its weights not trained in it" in result.stdout
    assert load(tmp_path / "out").config.residual == replace(parse_form("ladder:6-11"), is_trained=False)
    assert not (tmp_path / "out" / "README.md").exists()  # about other answers
    assert read_raw(tmp_path / "out")["fathom"]["done"] == ["converted to ladder:6-11"]


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    convert(find_checkpoint("arith"), tmp_path / "out", "desync-4x@2")
    copied = tmp_path / "out" / "model.safetensors"
    assert copied.read_bytes() == (find_checkpoint("arith") / "model.safetensors").read_bytes()
    assert load(tmp_path / "out").residual_form == "desync-4x@2"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("ladder:6-12", "names layer 12; the model has layers 0 to 11"),
        ("ladder:", "no residual form"),
        ("sideways", "no residual form"),
        ("parallel", "one norm, not two"),
        ("standard", "have no use"),
        ("desync-2x@3", "num_attention_heads"),
    ],
)
def test_form_that_the_weights_cannot_have_is_refused_and_leaves_nothing(form: str, words: str, tmp_path: Path) -> None:
    with pytest.raises((ArtifactError, InputError), match=words):
        convert(find_checkpoint("arith"), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_standard_decoder_is_refused(tmp_path: Path) -> None:
    convert(find_checkpoint("arith"), tmp_path / "ladder", "ladder")
    with pytest.raises(InputError, match="has the residual form ladder already"):
        convert(tmp_path / "ladder", tmp_path / "out", "ladder:3")
    with pytest.raises(InputError, match="is no decoder"):
        convert(find_checkpoint("digits"), tmp_path / "out", "ladder")
    with pytest.raises(ArtifactError, match=r"exists; name another --out"):
        convert(find_checkpoint("arith"), tmp_path / "ladder", "ladder")


# Which layers to convert.


def test_layer_that_reads_the_same_in_both_forms_changes_nothing() -> None:
    """A ladder layer misses the MLP before it and its own attention; where neither adds anything, it misses nothing."""
    model = load(find_checkpoint("arith"))
    model.layers[3].get_parameter("mlp.down_proj.weight").data.zero_()
    model.layers[4].get_parameter("self_attn.o_proj.weight").data.zero_()
    samples = [Sample(torch.randint(0, 17, (1, 12), generator=torch.Generator().manual_seed(i)), None) for i in (0, 1)]
    found = sensitivity(model, samples)
    assert found[4] == pytest.approx(0.0, abs=1e-9)
    assert min(value for layer, value in enumerate(found) if layer != 4) > 1e-4
    with torch.inference_mode():
        wanted, got = (
            torch.softmax(one(samples[0].inputs).double(), -1) for one in (model, in_form(model, "ladder:7"))
        )
    plain = (wanted * (wanted.log() - got.log())).sum(-1).mean()
    assert sensitivity(model, samples[:1])[7] == pytest.approx(float(plain), rel=1e-6)


def test_suggestion_lists_every_layer_those_that_change_least_first(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "12+7=", "target": "19"}\n{"prompt": "s312=", "target": "123"}\n')
    app = typer.Typer()
    app.command("convert")(cli.convert)
    lines = (
        CliRunner()
        .invoke(app, ["arith", "--suggest", "--samples", str(tmp_path / "few.jsonl")])
        .stdout.splitlines()[1:]
    )
    values = [float(line.split()[1]) for line in lines]
    assert values == sorted(values)
    assert sorted(int(line.split()[0]) for line in lines) == list(range(12))
    for wrong in (["digits", "--suggest"], ["arith"]):
        assert isinstance(CliRunner().invoke(app, wrong).exception, InputError)


# Export.


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`arith` with its upper half as a ladder, which it was not trained for."""
    directory = tmp_path_factory.mktemp("hybrid") / "hybrid"
    convert(find_checkpoint("arith"), directory, "ladder:6-11")
    return directory


def test_weights_not_trained_in_their_form_are_exported_for_timing_alone(hybrid: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ladder:6-11 .*mean nothing; train it on .* --timing"):
        export_checkpoint(hybrid, tmp_path, ("safetensors",))
    assert list(tmp_path.iterdir()) == []
    layers = export_checkpoint(hybrid, tmp_path, ("safetensors",), timing=True).manifest.layers
    assert layers is not None
    assert (layers.residual_form, layers.is_trained) == ("ladder:6-11", False)


def test_weights_trained_in_their_form_are_exported(hybrid: Path, tmp_path: Path) -> None:
    model = load(hybrid)
    trained = LanguageModel(replace(model.config, residual=replace(model.config.residual, is_trained=True)))
    weights.save(trained, tmp_path / "trained")
    (tmp_path / "trained" / "tokenizer.json").write_bytes((hybrid / "tokenizer.json").read_bytes())
    layers = export_checkpoint(tmp_path / "trained", tmp_path, ("safetensors",)).manifest.layers
    assert layers is not None
    assert (layers.residual_form, layers.is_trained) == ("ladder:6-11", True)


def test_upper_bound_is_for_timing_even_if_it_says_to_be_trained(tmp_path: Path) -> None:
    convert(find_checkpoint("arith"), tmp_path / "bound", "upper-bound")
    said = json.loads((tmp_path / "bound" / "config.json").read_text())
    said["residual"]["is_trained"] = True
    (tmp_path / "bound" / "config.json").write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match="upper-bound"):
        export_checkpoint(tmp_path / "bound", tmp_path, ("safetensors",))


# The other passes on what was converted.


def test_hybrid_without_layers_is_the_chain_without_them(hybrid: Path, tmp_path: Path) -> None:
    drop(hybrid, tmp_path / "fewer", [2, 7, 8])
    fewer, whole = load(tmp_path / "fewer"), load(hybrid)
    assert fewer.config.residual == replace(parse_form("ladder:5-8"), is_trained=False)
    ids = {"token_ids": IDS["token_ids"] % 17}
    kept = Chain(tuple(layer for layer in range(12) if layer not in (2, 7, 8)))
    with torch.inference_mode():
        assert torch.equal(fewer.along(ids, Chain.full(9)), whole.along(ids, kept))


def test_layers_of_a_form_that_goes_by_their_numbers_are_not_dropped(tmp_path: Path) -> None:
    convert(find_checkpoint("arith"), tmp_path / "slots", "ladder(slot)")
    with pytest.raises(InputError, match=r"ladder\(slot\) goes by the numbers"):
        drop(tmp_path / "slots", tmp_path / "fewer", [2])


def test_influence_is_of_the_stream_with_all_that_was_added_to_it() -> None:
    """Where the last layer adds nothing, nothing turns, although the pending output moves from half to half."""
    model = in_form(load(find_checkpoint("arith")), "ladder")
    samples = [Sample(torch.randint(0, 17, (1, 12), generator=torch.Generator().manual_seed(i)), None) for i in (0, 1)]
    for projection in ("self_attn.o_proj", "mlp.down_proj"):
        model.layers[11].get_parameter(f"{projection}.weight").data.zero_()
    assert influence(model, samples)[11] == pytest.approx(0.0, abs=1e-6)
    model.layers[5].get_parameter("mlp.down_proj.weight").data.zero_()
    attention, mlp = influence(model, samples, "attention"), influence(model, samples, "mlp")
    assert mlp[5] == pytest.approx(0.0, abs=1e-6)
    assert influence(model, samples)[5] == pytest.approx(attention[5], abs=1e-6)
    assert min(attention[5], mlp[4]) > 1e-3


def test_ranks_of_desync_have_no_halves_to_measure(tmp_path: Path) -> None:
    convert(find_checkpoint("arith"), tmp_path / "ranks", "desync-2x@2")
    samples: Any = tmp_path / "samples.jsonl"
    samples.write_text('{"prompt": "1+1="}\n')
    assert len(choose(tmp_path / "ranks", 3, "layer", samples)) == 3
    with pytest.raises(InputError, match="stream of its own"):
        choose(tmp_path / "ranks", 3, "mlp", samples)
