"""The language model in torch: cached equals uncached, and a checkpoint is exactly what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError
from models.lm import weights
from models.lm.architectures import read_config
from models.lm.model import LanguageModel
from models.lm.rope import Rope

TOLERANCE = 2e-5  # float32 sums in another order
CHAINS = [Chain((0, 1, 2)), Chain((0, 2)), Chain((1, 1, 0, 1)), Chain((2, 1, 0))]


@pytest.fixture(scope="module")
def model(tiny_lm_checkpoint: Path) -> LanguageModel:
    return weights.load(tiny_lm_checkpoint)


def token_ids(batch: int, length: int) -> Tensor:
    return torch.randint(18, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_token_by_token_with_a_cache_equals_all_at_once(chain: Chain, model: LanguageModel) -> None:
    ids = token_ids(2, 9)
    cache = [(model.empty_cache(2), model.empty_cache(2)) for _ in chain.layers]  # one per visit, never per layer
    with torch.inference_mode():
        wanted = model.along({"token_ids": ids}, chain)
        for start, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
            hidden, *shared = model.embed(ids[:, start:end], torch.full((2,), start), torch.arange(start))
            for visit, layer in enumerate(chain.layers):
                hidden, key, value = model.layers[layer](hidden, *shared, *cache[visit])
                cache[visit] = torch.cat((cache[visit][0], key), dim=2), torch.cat((cache[visit][1], value), dim=2)
            got = model.head(hidden)
            assert (got - wanted[:, start:end]).abs().max() <= TOLERANCE


def test_cache_keyed_by_layer_would_be_another_model(model: LanguageModel) -> None:
    """What the law is about: with a repeated layer, one cache per layer gives other logits."""
    ids, chain = token_ids(1, 4), Chain((1, 1))
    with torch.inference_mode():
        wanted = model.along({"token_ids": ids}, chain)
        hidden, cos, sin, _ = model.embed(ids, torch.zeros(1, dtype=torch.int64), torch.arange(0))
        hidden, key, value = model.layers[1](hidden, cos, sin, causal(4, 0), model.empty_cache(1), model.empty_cache(1))
        hidden, _, _ = model.layers[1](hidden, cos, sin, causal(4, 4), key, value)
        assert (model.head(hidden) - wanted).abs().max() > 0.01


def causal(length: int, past: int) -> Tensor:
    """Mask [1, 1, S, P + S] that sees all of the past."""
    return torch.cat((torch.ones(length, past), torch.ones(length, length).tril()), dim=1).bool()[None, None]


def test_padding_on_the_right_changes_nothing(model: LanguageModel) -> None:
    ids = token_ids(1, 8)
    with torch.inference_mode():
        short = model.along({"token_ids": ids[:, :5]}, CHAINS[2])
        long = model.along({"token_ids": ids}, CHAINS[2])
    assert (long[:, :5] - short).abs().max() <= TOLERANCE


def test_positions_and_mask_follow_what_is_cached(model: LanguageModel) -> None:
    starts = torch.tensor([0, 2])
    _, cos, _, mask = model.embed(token_ids(2, 2), starts, torch.arange(3))
    _, whole, _, _ = model.embed(token_ids(2, 4), torch.zeros(2, dtype=torch.int64), torch.arange(0))
    assert torch.equal(cos[1], whole[0, 2:4])
    assert mask[:, 0].int().tolist() == [
        [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
        [[1, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
    ]


def test_full_chain_is_the_forward_pass(model: LanguageModel) -> None:
    ids = token_ids(2, 5)
    with torch.inference_mode():
        assert torch.equal(model(ids), model.along({"token_ids": ids}, Chain.full(3)))


# Checkpoints.


def test_weights_round_trip(model: LanguageModel, tmp_path: Path) -> None:
    weights.save(model, tmp_path / "again")
    again = weights.load(tmp_path / "again")
    assert again.config == model.config
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_tensors_have_llama_names(tiny_lm_checkpoint: Path) -> None:
    names = load_file(tiny_lm_checkpoint / "model.safetensors").keys()
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= names
    assert "model.layers.2.self_attn.q_proj.weight" in names


def test_half_precision_weights_become_float32(tiny_lm_checkpoint: Path, tmp_path: Path) -> None:
    copy(tiny_lm_checkpoint, tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert {parameter.dtype for parameter in weights.load(tmp_path).parameters()} == {torch.float32}


def copy(checkpoint: Path, directory: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes((checkpoint / name).read_bytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"missing \['model.norm.weight'\]"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), r"unexpected \['extra'\]"),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 3)}),
            r"'head.lm_head.weight' has shape \[3, 3\]",
        ),
    ],
    ids=["missing", "unexpected", "reshaped"],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], said: str, tiny_lm_checkpoint: Path, tmp_path: Path
) -> None:
    copy(tiny_lm_checkpoint, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=said):
        weights.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
def test_unreadable_weights_are_refused(damage: str, tiny_lm_checkpoint: Path, tmp_path: Path) -> None:
    copy(tiny_lm_checkpoint, tmp_path)
    path = tmp_path / "model.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut" else b"garbage" * 50)
    with pytest.raises(ArtifactError, match=r"model.safetensors cannot be read|has neither model.safetensors"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "mish"),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 3),
        ("max_position_embeddings", 0),
        ("vocab_size", "18"),
        ("num_hidden_layers", None),
        ("num_hidden_layers", 10**9),
        ("pretraining_tp", 2),
        ("quantization_config", {"bits": 4}),
        ("rope_scaling", {"rope_type": "spiral", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "linear"}),
    ],
)
def test_config_that_is_not_computed_exactly_is_refused_by_name(
    field: str, value: object, tiny_lm_checkpoint: Path, tmp_path: Path
) -> None:
    copy(tiny_lm_checkpoint, tmp_path)
    rewrite(tiny_lm_checkpoint, tmp_path, {field: value})
    said = {"hidden_act": "activation", "rope_scaling": "rope_type", "num_attention_heads": "must divide 3 heads"}
    with pytest.raises(ArtifactError, match=f"config.json says .*{said.get(field, field)}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("model_type", "said"), [("mamba", "supported are"), ("custom", "run code of its own")])
def test_other_architecture_is_refused(model_type: str, said: str, tiny_lm_checkpoint: Path, tmp_path: Path) -> None:
    code = {"auto_map": {"AutoModel": "modeling.Model"}} if model_type == "custom" else {}
    rewrite(tiny_lm_checkpoint, tmp_path, {"model_type": model_type, **code})
    with pytest.raises(ArtifactError, match=f"holds a '{model_type}' model; .*{said}"):
        load_checkpoint(tmp_path)


def test_config_of_either_generation_of_the_format_is_read(tiny_lm_checkpoint: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny_lm_checkpoint / "config.json").read_text())
    assert read_config(raw, "llama").rope == Rope(theta=200.0)
    del raw["rope_theta"], raw["num_key_value_heads"]
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}, "eos_token_id": [1, 2]}
    config = read_config({**raw, **newer}, "llama")
    assert (config.rope, config.eos_token_id, config.num_key_value_heads) == (Rope(theta=123.0), (1, 2), 4)


def rewrite(checkpoint: Path, directory: Path, changes: dict[str, Any]) -> None:
    raw = {**json.loads((checkpoint / "config.json").read_text()), **changes}
    (directory / "config.json").write_text(json.dumps(raw))
