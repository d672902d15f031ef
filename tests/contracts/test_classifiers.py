"""What holds of every image classifier read from a directory, against transformers or timm on the same weights."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.artifact import ImageSpec
from models.chain import Chain
from models.checkpoint import load_checkpoint, read_raw
from models.errors import ArtifactError
from models.layered import TensorStack
from models.vision.pixels import image_spec, labels
from models.vision.stages import Stages, longest_run
from tests.contracts.classifiers import CLASSIFIERS, RECORDED, Classifier, make, pixels, save_recorded

TOLERANCE = 1e-4
# Of the standard deviation of the logits: bfloat16 keeps eight bits, and the layers add up what it drops.
BFLOAT16_TOLERANCE = 0.1
TIMM: dict[str, Any] = json.loads(RECORDED.read_text())


@dataclass(frozen=True)
class Pair:
    """One model in transformers and in ours."""

    theirs: Any
    ours: TensorStack
    directory: Path
    classifier: Classifier

    @property
    def pixels(self) -> Tensor:
        return pixels(self.ours.image_shape)  # type: ignore[arg-type]

    @property
    def chains(self) -> list[Chain]:
        """Chains other than the full one: skipped, looped, reversed."""
        last = self.classifier.num_layers - 1
        return [Chain(layers) for layers in ((last,), (0, 0, *range(last + 1)), tuple(range(last, -1, -1)))]


@pytest.fixture(scope="module", params=CLASSIFIERS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("classifier")
    theirs = make(request.param, directory)
    ours = load_checkpoint(directory)
    assert isinstance(ours, TensorStack)
    return Pair(theirs, ours, directory, request.param)


def run(model: TensorStack, inputs: Tensor, chain: Chain | None = None) -> Tensor:
    with torch.inference_mode():
        return model(inputs) if chain is None else model.along({"pixel_values": inputs}, chain)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a part of what is typical where that is more than one."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max()) / max(1.0, float(b.double().std()))


def test_logits_are_transformers(pair: Pair) -> None:
    with torch.inference_mode():
        wanted = pair.theirs(pair.pixels).logits
    assert difference(run(pair.ours, pair.pixels), wanted) <= TOLERANCE
    assert float(wanted.std(0).max()) > 100 * TOLERANCE  # the rows are told apart


def test_any_chain_is_transformers_own_layers_in_that_order(pair: Pair) -> None:
    assert len(pair.ours.layers) == pair.classifier.num_layers
    if not pair.ours.layers:
        assert difference(run(pair.ours, pair.pixels, Chain(())), run(pair.ours, pair.pixels)) == 0.0
        return
    full = run(pair.ours, pair.pixels)
    for chain in pair.chains:
        with torch.inference_mode():
            wanted = their_layers(pair, chain)
        got = run(pair.ours, pair.pixels, chain)
        assert difference(got, wanted) <= TOLERANCE
        assert difference(got, full) > 10 * TOLERANCE


def their_layers(pair: Pair, chain: Chain) -> Tensor:
    """Logits of transformers' modules called by hand."""
    base = pair.theirs.base_model
    if pair.classifier.model_type in ("vit", "deit"):
        hidden = base.embeddings(pair.pixels)
        for layer in chain.layers:
            hidden = base.layers[layer](hidden)
        normed = base.layernorm(hidden)
        if pair.classifier.name == "deit-taught":
            first, second = pair.theirs.cls_classifier, pair.theirs.distillation_classifier
            return (first(normed[:, 0]) + second(normed[:, 1])) / 2
        logits: Tensor = pair.theirs.classifier(normed[:, 0])
        return logits
    assert isinstance(pair.ours, Stages)
    places = [name.split() for name in pair.ours.layer_names]  # stage 2 block 1
    run_of = [base.encoder.stages[int(stage) - 1].layers[int(block) - 1] for _, stage, _, block in places]
    order = [run_of[layer] for layer in chain.layers]
    hidden = base.embedder(pair.pixels) if hasattr(base, "embedder") else base.embeddings(pair.pixels)
    for step in (*_through(base, run_of[0], before=True), *order, *_through(base, run_of[-1], before=False)):
        hidden = step(hidden)
    if hasattr(base, "pooler"):
        logits = pair.theirs.classifier(base.pooler(hidden))
    else:
        logits = pair.theirs.classifier(base.layernorm(hidden.mean([-2, -1])))
    return logits


def _through(base: Any, block: nn.Module, before: bool) -> Iterator[nn.Module]:
    """Transformers' blocks and reductions before or after one of them."""
    steps = [
        step for stage in base.encoder.stages for step in (*getattr(stage, "downsampling_layer", ()), *stage.layers)
    ]
    place = next(i for i, step in enumerate(steps) if step is block)
    yield from steps[:place] if before else steps[place + 1 :]


def test_neighbours_and_mode_change_nothing(pair: Pair) -> None:
    wild = torch.cat((pair.pixels[:1], pair.pixels[1:] * 50 + 9, pair.pixels[1:]))
    together = run(pair.ours, wild)
    assert difference(together[:1], run(pair.ours, wild[:1])) <= TOLERANCE
    assert difference(run(pair.ours.train(), wild), together) == 0.0  # batch norm has no mode of its own
    pair.ours.eval()


def test_bfloat16_is_as_close_as_bfloat16_can_be(pair: Pair) -> None:
    model = load_checkpoint(pair.directory, torch.bfloat16)
    assert isinstance(model, TensorStack)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    got, wanted = run(model, pair.pixels), run(pair.ours, pair.pixels)
    assert got.dtype is torch.bfloat16
    assert float(((got.double() - wanted.double()) ** 2).mean().sqrt() / wanted.std()) <= BFLOAT16_TOLERANCE


@pytest.mark.parametrize("name", TIMM)
def test_logits_are_timms(name: str, tmp_path: Path) -> None:
    save_recorded(TIMM[name], tmp_path)
    model = load_checkpoint(tmp_path)
    assert isinstance(model, TensorStack)
    got, wanted = run(model, pixels(model.image_shape)), torch.tensor(TIMM[name]["logits"])  # type: ignore[arg-type]
    assert difference(got, wanted) <= TOLERANCE
    assert len(model.layers) == (1 if name == "resnet50" else 2)


# What a directory says beside its weights.


def test_labels_and_preparation_are_read(pair: Pair) -> None:
    assert labels(read_raw(pair.directory)) == tuple(f"class {i}" for i in range(5))
    if pair.classifier.model_type in ("vit", "deit"):
        assert image_spec(pair.directory, {}) is None
    else:
        assert image_spec(pair.directory, {}) == ImageSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        assert pair.ours.image_shape == (3, 48, 48)  # what the image processor gives


def test_timm_says_how_pixels_are_prepared(tmp_path: Path) -> None:
    raw = {**TIMM["vit_tiny_patch16_224"]["config"], "label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat"}}
    assert image_spec(tmp_path, raw) == ImageSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert labels(raw) == ("cat", "n2")


# What is refused, by name.


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    make(CLASSIFIERS[0], tmp_path / "vit")
    return tmp_path / "vit"


def say(directory: Path, **says: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **says}))


def test_tensors_that_are_missing_or_unexpected_are_named(vit: Path) -> None:
    tensors = load_file(vit / "model.safetensors")
    tensors["stranger"] = tensors.pop("vit.encoder.layer.1.output.dense.bias")
    save_file(tensors, vit / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"missing \['vit.encoder.layer.1.output.dense.bias'\].*\['stranger'\]"):
        load_checkpoint(vit)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"image_size": 64}, r"'embed.positions' has shape \[1, 17, 24\] and config.json asks for \[1, 65, 24\]"),
        ({"image_size": "large"}, "image_size = 'large'"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers and the checkpoint holds"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0; it must be a whole number from 1 on"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5, which does not divide hidden_size = 24"),
        ({"hidden_act": "snake"}, "the activation is 'snake'"),
        ({"id2label": {"0": "one"}}, "names 1 labels and 'classifier.weight' has 5 rows"),
        ({"model_type": "swin"}, "holds a 'swin' model; supported are .*'convnext'.*'vit'"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(says: dict[str, Any], words: str, vit: Path) -> None:
    say(vit, **says)
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(vit)


def test_model_without_a_classifier_is_refused(vit: Path) -> None:
    tensors = load_file(vit / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "classifier" not in name}, vit / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"no tensor 'classifier\.weight'; save it again, with its classifier"):
        load_checkpoint(vit)


def test_pickles_are_never_read(vit: Path) -> None:
    shutil.move(vit / "model.safetensors", vit / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"\['pytorch_model.bin'\], pickles that run code"):
        load_checkpoint(vit)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"architecture": "resnet50d"}, "holds timm's 'resnet50d'; supported are"),
        ({"architecture": "vit_base_patch16_clip_224"}, "without further words in the name"),
        ({"global_pool": "avg", "model_args": {}}, "global_pool = 'avg'"),
        ({"model_args": {"qk_norm": True}}, r"made with \['qk_norm'\] in its model_args"),
        ({"model_args": {"num_heads": 5}}, "5 attention heads, which do not divide the width 12"),
        ({"pretrained_cfg": {"input_size": [3, 48, 48]}}, "'embed.positions' has shape"),
        ({"pretrained_cfg": {"input_size": [3, 0, 48]}}, r"input_size = \[3, 0, 48\]"),
    ],
)
def test_what_timm_varies_and_is_not_computed_is_refused(says: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_recorded(TIMM["vit_tiny_patch16_224"], tmp_path)
    say(tmp_path, **says)
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"image_mean": "bright", "image_std": [1.0]}, "mean is 'bright'"),
        ({"image_mean": [0.5], "image_std": [1.0], "rescale_factor": 1.0}, "rescale_factor = 1.0"),
    ],
)
def test_preparation_that_cannot_be_told_is_refused(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match=words):
        image_spec(tmp_path, {})


@pytest.mark.parametrize(
    ("equal", "run"),
    [((), (0, 0)), ((False, False), (0, 0)), ((True,), (0, 1)), ((False, True, True, False, True, True), (1, 3))],
)
def test_longest_run_is_the_first_of_several(equal: tuple[bool, ...], run: tuple[int, int]) -> None:
    assert longest_run(equal) == run
