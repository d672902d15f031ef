"""Forms of fewer bits: what they keep, what they lose, and that a row's answer is its own."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from exporters import forms, precision, pt2
from exporters import onnx as onnx_form
from exporters.export import export_checkpoint
from exporters.heldout import read_heldout
from exporters.publish import Exported
from exporters.samples import accuracy
from exporters.split import split
from models.artifact import Format, read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, InputError
from service.backends.open import open_backend
from service.backends.protocol import Rows

GRAPHS: tuple[Format, ...] = ("onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int4")
LOSSY: tuple[Format, ...] = (*GRAPHS, "pt2-int8", "pt2-int4")
ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def classified(mlp_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier with held-out samples: its own clearest answers, but for one that is wrong."""
    directory = shutil.copytree(mlp_checkpoint, tmp_path_factory.mktemp("heldout") / "mlp")
    model = load_checkpoint(directory)
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(3)) * 3
    with torch.inference_mode():
        best = model(rows).topk(2)
    clearest = (best.values[:, 0] - best.values[:, 1]).topk(5).indices.tolist()
    answers = best.indices[clearest, 0].tolist()
    answers[0] = (answers[0] + 1) % 3
    lines = [{"inputs": rows[i].tolist(), "target": answer} for i, answer in zip(clearest, answers, strict=True)]
    (directory / "heldout.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


@pytest.fixture(scope="module")
def reduced(classified: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_checkpoint(classified, tmp_path_factory.mktemp("reduced"), ("onnx", *LOSSY))


@pytest.fixture(scope="module")
def spoken(lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_checkpoint(lm_checkpoint, tmp_path_factory.mktemp("reduced"), ("onnx", *GRAPHS))


def test_manifest_says_what_each_form_differs_by_and_loses(reduced: Exported) -> None:
    forms = read_manifest(reduced.directory).forms
    assert reduced.refused == {}
    assert list(forms) == ["onnx", *LOSSY]
    assert forms["onnx"].loss is None
    for format in LOSSY:
        loss = forms[format].loss
        assert loss is not None
        assert (loss.metric, loss.samples, loss.full, loss.form) == ("accuracy", 5, 0.8, 0.8)
        assert forms[format].is_relative
        assert max(d.max_abs for d in forms[format].measured) > 1e-6
    assert not forms["onnx"].is_relative


def test_weights_are_stored_in_fewer_bits_and_tensors_between_parts_are_not(spoken: Exported) -> None:
    sizes = {}
    for format in ("onnx", *GRAPHS):
        graph = onnx.load(str(spoken.directory / format / "layer_001.onnx")).graph
        sizes[format] = sum(len(tensor.raw_data) for tensor in graph.initializer)
        floats = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        assert floats <= {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL}
    assert sizes["onnx-fp16"] < 0.6 * sizes["onnx"]
    assert sizes["onnx-bf16"] < 0.6 * sizes["onnx"]
    assert sizes["onnx-int8"] < 0.4 * sizes["onnx"]
    assert sizes["onnx-int4"] < 0.3 * sizes["onnx"]


@pytest.mark.parametrize("format", GRAPHS)
def test_any_chain_of_a_row_is_the_same_whatever_is_in_its_batch(format: Format, spoken: Exported) -> None:
    manifest = spoken.manifest
    backend = open_backend(manifest, spoken.directory, format)  # type: ignore[arg-type]
    token_ids = torch.randint(48, (3, 7), generator=torch.Generator().manual_seed(0)).numpy()

    def logits(rows: slice) -> np.ndarray:
        taken = token_ids[rows]
        count = len(taken)
        where = Rows(np.zeros(count, np.int64), np.full(count, 7))
        carry = backend.embed({"token_ids": taken}, where)
        for layer in (0, 2, 2, 1):
            carry = backend.layer(layer, carry, where)
        found: np.ndarray = backend.head(carry, np.tile(np.arange(7), (count, 1)))["logits"]
        return found

    assert np.abs(logits(slice(0, 3))[1] - logits(slice(1, 2))[0]).max() <= 1e-5
    backend.close()


@pytest.mark.parametrize("format", LOSSY)
def test_chained_parts_are_the_whole(format: Format, reduced: Exported) -> None:
    runs = (onnx_form if format in GRAPHS else pt2).load(reduced.directory / format, 3)
    assert runs.whole is not None
    (hidden,) = runs.embed(ROWS)
    for layer in runs.layers:
        (hidden,) = layer(hidden)
    assert torch.allclose(runs.head(hidden)[0], runs.whole(ROWS)[0], atol=5e-3)


def test_matrices_are_rounded_as_torch_rounds_to_bfloat16_and_vectors_are_not(
    lm_checkpoint: Path, spoken: Exported
) -> None:
    model = load_checkpoint(lm_checkpoint)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(torch.bfloat16).float()
    token_ids, starts = torch.arange(21).view(3, 7), torch.zeros(3, dtype=torch.int64)
    nothing = torch.zeros(3, 3, 2, 0, 8)
    found = onnx_form.open_run(spoken.directory / "onnx-bf16" / "whole.onnx")(token_ids, starts, nothing, nothing)[0]
    with torch.inference_mode():
        torch.testing.assert_close(found, model(token_ids), atol=1e-5, rtol=0)


def test_form_that_loses_too_much_is_refused_unless_it_is_wanted(
    classified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruined(graph: onnx.ModelProto, bits: int) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        for tensor in copy.graph.initializer:
            if len(tensor.dims) == 2 and tensor.dims[0] == 3:  # the classifier turned round
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return copy

    monkeypatch.setattr(precision, "_in_blocks", ruined)
    monkeypatch.setattr(forms, "LOSSY", {"onnx-int8": 99.0})
    with pytest.raises(ArtifactError, match=r"onnx-int8 answers \d+.0% of 5 held-out samples.*80.0%.*--allow-loss"):
        export_checkpoint(classified, tmp_path, ("onnx-int8",))
    exported = export_checkpoint(classified, tmp_path, ("onnx-int8",), allow_loss=True)
    assert exported.manifest.forms["onnx-int8"].loss is not None
    assert list(exported.manifest.forms) == ["onnx-int8"]
    assert sorted(path.name for path in exported.directory.iterdir()) == ["manifest.json", "onnx-int8"]


def test_form_that_is_broken_is_refused_however_much_may_be_lost(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "LOSSY", {"onnx-int4": 1e-6})
    with pytest.raises(ArtifactError, match=r"onnx-int4: .* differs from eager torch"):
        export_checkpoint(mlp_checkpoint, tmp_path, ("onnx-int4",), allow_loss=True)


def test_greedy_answers_are_counted_with_their_end(lm_checkpoint: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(lm_checkpoint, tmp_path / "lm")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    words = {token_id: word for word, token_id in tokenizer["model"]["vocab"].items()}
    model = load_checkpoint(directory)
    prompt = [5, 9]
    with torch.inference_mode():
        first = int(model.along({"token_ids": torch.tensor([prompt])}, Chain.full(3))[0, -1].argmax())
    # What generation goes by is the end, whatever the configuration says.
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [first, 3]}))
    lines = [{"prompt": "".join(words[i] for i in prompt), "target": ""}, {"prompt": words[7], "target": words[7]}]
    (directory / "heldout.jsonl").write_text("\n".join(map(json.dumps, lines)))
    heldout = read_heldout(directory, model, split(model))
    assert heldout is not None
    assert [sample.answer for sample in heldout.samples] == [(first,), (7, first)]
    assert heldout.full == accuracy(model, heldout.samples) == 0.5
    loss = heldout.loss(heldout.parts.whole)
    assert (loss.metric, loss.samples, loss.form) == ("exact_match", 2, 0.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"line 1 of .*heldout\.jsonl is no JSON"),
        ("[1]", r"line 1 of .*heldout\.jsonl is no JSON object"),
        ('{"inputs": 3, "target": 1}', r"line 1 of .*heldout\.jsonl: inputs = 3 is no list"),
        ('{"inputs": [1.0], "target": 1}', r"heldout\.jsonl has rows of 1 numbers and the model takes 6"),
        ('{"inputs": [1.0], "target": 1}\n{"inputs": [1.0, 2.0]}', r"heldout\.jsonl has rows of several sizes"),
        ('{"inputs": [1.0, 2.0]}', "no sample has a target"),
    ],
)
def test_samples_of_another_kind_are_refused(content: str, said: str, mlp_checkpoint: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(mlp_checkpoint, tmp_path / "mlp")
    (directory / "heldout.jsonl").write_text(content)
    with pytest.raises(InputError, match=said):
        export_checkpoint(directory, tmp_path / "repository", ("onnx-int8",))


def test_converting_leaves_the_log_as_it_was(reduced: Exported) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    precision._in_blocks(onnx.load(str(reduced.directory / "onnx" / "head.onnx")), 8)
    assert (list(root.handlers), root.level) == before
