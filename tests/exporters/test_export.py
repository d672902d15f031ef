"""One version of a repository, from a checkpoint: complete, hashed and right, or not there."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters import export as exporting
from exporters import onnx as onnx_form
from exporters import pt2
from exporters.export import export_checkpoint, find_checkpoint, parse_formats
from exporters.parts import Part
from exporters.publish import Exported
from models.artifact import list_versions, read_manifest
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, InputError, UnknownModelError
from models.layered import LayeredModel
from service.backends.open import files_of, open_backend
from service.backends.protocol import Rows


def test_manifest_says_what_a_server_needs_of_a_language_model(exported_lm: Exported) -> None:
    manifest = read_manifest(exported_lm.directory)
    assert (manifest.name, manifest.version, manifest.kind) == ("tiny", "1", "causal-lm")
    assert [(t.name, t.datatype, t.shape) for t in manifest.inputs] == [("token_ids", "INT64", (-1, -1))]
    assert [(t.name, t.datatype, t.shape) for t in manifest.outputs] == [("logits", "FP32", (-1, -1, 48))]
    assert manifest.language is not None
    assert manifest.language.model_dump() == {
        "vocab_size": 48,
        "max_length": 64,
        "num_kv_heads": 2,
        "head_size": 8,
        "eos_token_ids": (2, 3),
        "tokenizer": "tokenizer.json",
        "chat_template": None,
        "special_tokens": {},
        "sampling": None,
    }
    assert manifest.layers is not None
    assert manifest.layers.cost == (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 40,) * 3
    assert manifest.provenance["licence"] == "Apache-2.0"
    assert manifest.provenance["recipe"] == "make tiny"


def test_manifest_says_what_a_server_needs_of_a_classifier(exported_mlp: Exported) -> None:
    manifest = read_manifest(exported_mlp.directory)
    assert (manifest.name, manifest.version, manifest.kind) == ("classifier", "7", "tensor")
    assert [(t.name, t.datatype, t.shape) for t in manifest.inputs] == [("features", "FP32", (-1, 6))]
    assert [(t.name, t.datatype, t.shape) for t in manifest.outputs] == [("logits", "FP32", (-1, 3))]
    assert manifest.language is None


def test_every_form_is_listed_with_its_files_and_measured_differences(exported_lm: Exported) -> None:
    manifest = exported_lm.manifest
    assert list(manifest.forms) == ["onnx", "torchscript", "safetensors"]
    assert manifest.forms["safetensors"].measured == ()  # the checkpoint itself
    for form in (manifest.forms["onnx"], manifest.forms["torchscript"]):
        assert {(d.batch, d.length) for d in form.measured} == {(1, 1), (1, 12), (3, 1), (3, 12)}
        assert all(d.max_abs <= form.tolerance for d in form.measured)
    assert manifest.forms["onnx"].layers == tuple(f"onnx/layer_00{i}.onnx" for i in range(3))
    assert manifest.forms["torchscript"].whole == "torchscript/whole.pt"
    assert manifest.forms["safetensors"].whole == "safetensors/model.safetensors"
    assert not manifest.forms["safetensors"].has_parts


def test_corrupted_file_is_refused(exported_mlp: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported_mlp.directory, tmp_path / "copy")
    path = folder / "onnx" / "layer_001.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"layer_001\.onnx is not the exported file"):
        read_manifest(folder)


def test_export_that_dies_half_way_leaves_nothing(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(what: str, done: int, total: int) -> None:
        assert not list_versions(tmp_path)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(mlp_checkpoint, tmp_path, ("torchscript",), report=die)
    assert list(tmp_path.iterdir()) == []


def test_existing_version_is_kept_until_overwriting_is_asked_for(mlp_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(mlp_checkpoint, tmp_path, ("torchscript", "safetensors"))
    with pytest.raises(ArtifactError, match="--overwrite"):
        export_checkpoint(mlp_checkpoint, tmp_path, ("safetensors",))
    assert list(read_manifest(tmp_path / "mlp" / "1").forms) == ["torchscript", "safetensors"]
    export_checkpoint(mlp_checkpoint, tmp_path, ("safetensors",), overwrite=True)
    assert list(read_manifest(tmp_path / "mlp" / "1").forms) == ["safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlp"]


def test_steps_are_reported_to_the_last(mlp_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export_checkpoint(mlp_checkpoint, tmp_path, ("torchscript", "safetensors"), report=lambda *step: seen.append(step))
    assert [done for _, done, _ in seen] == list(range(1, 11))
    assert seen[-1] == ("safetensors verified", 10, 10)


class BranchOnBatch(nn.Module):
    """Adds one for any batch but the exporter's example."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden if hidden.shape[0] == 2 else hidden + 1


class BranchOnLength(nn.Module):
    """Forgets the residual of lengths other than the exporter's example; cannot be scripted."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, key, value = self.layer(*inputs)
        return (hidden, key, value) if hidden.shape[1] == 5 else (hidden - inputs[0], key, value)


def sabotage(monkeypatch: pytest.MonkeyPatch, model: LayeredModel, layer: nn.Module) -> None:
    model.layers[1] = layer
    monkeypatch.setattr(exporting, "load_checkpoint", lambda directory: model)


def test_form_that_is_wrong_on_another_length_is_not_written(
    lm_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_checkpoint(lm_checkpoint)
    sabotage(monkeypatch, model, BranchOnLength(model.layers[1]))
    with pytest.raises(ArtifactError, match="torchscript: layer_001 at batch 1, length 1 differs"):
        export_checkpoint(lm_checkpoint, tmp_path, ("torchscript",))
    assert list(tmp_path.iterdir()) == []


def test_graph_that_is_wrong_on_another_batch_is_not_written(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, load_checkpoint(mlp_checkpoint), BranchOnBatch())
    with pytest.raises(ArtifactError, match="onnx: layer_001 at batch 1, length 1 differs"):
        export_checkpoint(mlp_checkpoint, tmp_path, ("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_graph_whose_axis_was_fixed_is_not_written(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoRows(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + torch.ones(2, 8)

    sabotage(monkeypatch, load_checkpoint(mlp_checkpoint), TwoRows())
    with pytest.raises(ArtifactError, match="onnx: layer_001: the exporter fixed axis 'batch'"):
        export_checkpoint(mlp_checkpoint, tmp_path, ("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_one_refused_format_does_not_take_the_others_with_it(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WrongInTraces(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *hidden: Tensor) -> Tensor:
            outputs: Tensor = self.layer(*hidden)
            return outputs + 1 if torch._C._get_tracing_state() else outputs

    model = load_checkpoint(mlp_checkpoint)
    sabotage(monkeypatch, model, WrongInTraces(model.layers[1]))
    exported = export_checkpoint(mlp_checkpoint, tmp_path, ("torchscript", "safetensors"))
    assert list(exported.refused) == ["torchscript"]
    assert "layer_001" in exported.refused["torchscript"]
    assert list(read_manifest(exported.directory).forms) == ["safetensors"]
    assert not (exported.directory / "torchscript").exists()


def test_layers_that_differ_in_more_than_weights_are_converted_by_themselves(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, hidden: Tensor) -> Tensor:
            moved: Tensor = self.linear(hidden)
            return hidden + 3 * moved

    model = load_checkpoint(mlp_checkpoint)
    model.layers[2].get_submodule("norm").eps = 0.5  # type: ignore[assignment]
    sabotage(monkeypatch, model, Scaled().eval())
    assert not export_checkpoint(mlp_checkpoint, tmp_path, ("onnx", "onnx-scan", "pt2")).refused


def test_layers_of_one_shape_are_traced_once(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []

    def program(part: Part) -> torch.export.ExportedProgram:
        traced.append(part.name)
        return plain(part)

    plain = pt2.program
    monkeypatch.setattr(pt2, "program", program)
    assert not export_checkpoint(mlp_checkpoint, tmp_path, ("pt2",)).refused
    assert traced == ["embed", "layer_000", "head", "whole"]


def test_older_opset_is_taken_where_the_newest_fails(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_form, "OPSETS", (99, 20))
    exported = export_checkpoint(mlp_checkpoint, tmp_path, ("onnx",))
    whole = onnx.load(str(exported.directory / "onnx" / "whole.onnx"))
    assert [entry.version for entry in whole.opset_import] == [20]


def test_module_without_an_onnx_form_is_named(
    mlp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exponential(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            grown: Tensor = torch.linalg.matrix_exp(hidden.T @ hidden)
            return grown[: hidden.shape[0]]

    sabotage(monkeypatch, load_checkpoint(mlp_checkpoint), Exponential())
    with pytest.raises(ArtifactError, match=r"onnx: layer_001 has no ONNX form at opset 23: .*matrix_exp"):
        export_checkpoint(mlp_checkpoint, tmp_path, ("onnx",))


def test_language_model_without_a_tokenizer_is_refused(lm_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lm_checkpoint, tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no tokenizer\.json"):
        export_checkpoint(folder, tmp_path / "repository")


def test_end_tokens_come_from_the_configuration_where_generation_says_nothing(
    lm_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(lm_checkpoint, tmp_path / "plain")
    (folder / "generation_config.json").write_text("{}")
    exported = export_checkpoint(folder, tmp_path / "repository", ("safetensors",))
    assert exported.manifest.language is not None
    assert exported.manifest.language.eos_token_ids == (1,)


@pytest.mark.parametrize("content", [b"", b"{}", b"not safetensors at all"])
def test_unreadable_weights_are_refused(mlp_checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(mlp_checkpoint, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        export_checkpoint(folder, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_incomplete_configuration_is_refused(mlp_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mlp_checkpoint, tmp_path / "broken")
    (folder / "config.json").write_text(json.dumps({"model_type": "residual_mlp"}))
    with pytest.raises(ArtifactError, match="num_features"):
        export_checkpoint(folder, tmp_path / "repository")


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b", "x" * 101])
def test_name_that_makes_no_folder_is_refused(mlp_checkpoint: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="model name"):
        export_checkpoint(mlp_checkpoint, tmp_path, name=name or " ")


def test_shipped_checkpoints_are_found_by_name() -> None:
    assert (find_checkpoint("digits") / "model.safetensors").is_file()


def test_unknown_checkpoint_lists_the_shipped_ones() -> None:
    with pytest.raises(UnknownModelError, match="digits"):
        find_checkpoint("nonsense")


def test_formats_are_read_in_one_order() -> None:
    assert parse_formats("safetensors, onnx") == ("onnx", "safetensors")


def test_unknown_format_is_named() -> None:
    with pytest.raises(InputError, match=r"tensorrt.*choose from onnx"):
        parse_formats("onnx,tensorrt")


@pytest.mark.parametrize("as_file", [False, True])
def test_chat_template_is_copied_and_hashed(as_file: bool, lm_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(lm_checkpoint, tmp_path / "talker")
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = {"bos_token": {"content": "<s>", "special": True}, "eos_token": "$", "pad_token": None}
    if as_file:
        (checkpoint / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    folder = export_checkpoint(checkpoint, tmp_path / "repository", formats=("safetensors",)).directory
    language = read_manifest(folder).language
    assert language is not None
    assert (language.chat_template, language.special_tokens) == (
        "chat_template.jinja",
        {"bos_token": "<s>", "eos_token": "$"},
    )
    assert (folder / "chat_template.jinja").read_text() == template
    (folder / "chat_template.jinja").write_text(template + " ")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja is not the exported file"):
        read_manifest(folder)


def test_chat_template_that_is_none_is_refused(lm_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(lm_checkpoint, tmp_path / "talker")
    (checkpoint / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ArtifactError, match="no Jinja template"):
        export_checkpoint(checkpoint, tmp_path / "repository", formats=("safetensors",))


def test_large_weights_lie_beside_the_parts_and_the_whole_reads_them(
    lm_checkpoint: Path, exported_lm: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_form, "LARGE_BYTES", 20_000)
    exported = export_checkpoint(lm_checkpoint, tmp_path, ("onnx",))
    files = exported.manifest.files
    assert {name for name in files if name.endswith(".data")} == {f"onnx/layer_00{i}.onnx.data" for i in range(3)}
    inside = exported_lm.manifest.files["onnx/whole.onnx"].size_bytes
    outside = sum(files[f"onnx/layer_00{i}.onnx.data"].size_bytes for i in range(3))
    assert files["onnx/whole.onnx"].size_bytes <= inside - outside + 10_000
    for prepack in (True, False):
        backends = [
            open_backend(one.manifest, one.directory, "onnx", num_pages=16, prepack=prepack)
            for one in (exported, exported_lm)
        ]
        rows = Rows(np.zeros(1, np.int64), np.asarray([4]))
        carries = [backend.embed({"token_ids": np.asarray([[1, 2, 3, 4]])}, rows) for backend in backends]
        streams = [
            backend.stream(backend.layer(1, carry, rows)) for backend, carry in zip(backends, carries, strict=True)
        ]
        assert np.array_equal(*streams)
    assert files_of(exported.manifest, "onnx") == {name for name in files if name != "onnx/whole.onnx"}
