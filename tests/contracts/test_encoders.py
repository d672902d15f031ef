"""What holds of every encoder read from a Hugging Face directory, against transformers on the same weights."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.encoders.model import EncoderModel
from models.errors import ArtifactError
from tests.contracts.encoders import BASES, ENCODERS, NUM_LAYERS, VOCABULARY, Encoder, make

TOLERANCE = 1e-4
# Of the standard deviation of the hidden states: bfloat16 keeps eight bits, and three layers add up what it drops.
BFLOAT16_TOLERANCE = 0.1
FULL = Chain.full(NUM_LAYERS)
CHAINS = [Chain(chain) for chain in ((0, 2), (1,), (0, 1, 1, 2), (2, 1, 0), (0, 1, 2, 0, 1, 2))]


@dataclass(frozen=True)
class Pair:
    """One model in transformers and in ours."""

    theirs: Any
    ours: EncoderModel
    directory: Path


@pytest.fixture(scope="module", params=ENCODERS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module", params=BASES, ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("encoder"))


def make_pair(encoder: Encoder, directory: Path) -> Pair:
    theirs, ours = make(encoder, directory), load_checkpoint(directory)
    assert isinstance(ours, EncoderModel)
    return Pair(theirs, ours, directory)


def texts(model: EncoderModel, *lengths: int) -> dict[str, Tensor]:
    """Inputs of random tokens, padded on the right; in the second half of each text the other of a pair."""
    random = torch.Generator().manual_seed(0)
    counts = torch.tensor(lengths)
    token_ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=random)
    places = torch.arange(max(lengths))
    token_ids[places >= counts[:, None]] = 0
    inputs = {"token_ids": token_ids, "lengths": counts}
    if model.config.has_token_types:
        inputs["token_types"] = (places >= counts[:, None] // 2).to(torch.int64)
    return inputs


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    length = int(inputs["lengths"][row])
    return {
        name: one[row : row + 1] if name == "lengths" else one[row : row + 1, :length] for name, one in inputs.items()
    }


def to_theirs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    places = torch.arange(inputs["token_ids"].shape[1])
    given = {"input_ids": inputs["token_ids"], "attention_mask": (places < inputs["lengths"][:, None]).to(torch.int64)}
    return given | ({"token_type_ids": inputs["token_types"]} if "token_types" in inputs else {})


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())


@torch.inference_mode()
def test_outputs_are_transformers(pair: Pair) -> None:
    inputs = texts(pair.ours, 20, 31, 1)
    answer = pair.theirs(**to_theirs(inputs))
    is_base = not hasattr(answer, "logits")
    got = pair.ours.states(inputs, FULL) if is_base else pair.ours.along(inputs, FULL)
    wanted = answer.last_hidden_state if is_base else answer.logits
    if pair.ours.config.head.task == "classify":
        assert difference(got, wanted) <= TOLERANCE
        return
    for row, length in enumerate(inputs["lengths"].tolist()):
        assert difference(got[row, :length], wanted[row, :length]) <= TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_any_chain_is_transformers_own_layers_in_that_order(chain: Chain, base: Pair) -> None:
    inputs = texts(base.ours, 20)
    wanted, got = their_layers(base.theirs, to_theirs(inputs), chain), base.ours.states(inputs, chain)
    assert difference(got, wanted) <= TOLERANCE
    assert difference(got, base.ours.states(inputs, FULL)) > 100 * TOLERANCE


def their_layers(model: Any, given: dict[str, Tensor], chain: Chain) -> Tensor:
    """Hidden states of transformers' modules called by hand."""
    kind = model.config.model_type
    types = {} if kind in ("distilbert", "modernbert") else {"token_type_ids": given.get("token_type_ids")}
    hidden = model.embeddings(given["input_ids"], **types)
    masking = {"config": model.config, "inputs_embeds": hidden, "attention_mask": given["attention_mask"]}
    mask = create_bidirectional_mask(**masking)
    if kind != "modernbert":
        layers = model.transformer.layer if kind == "distilbert" else model.encoder.layer
        for layer in chain.layers:
            hidden = layers[layer](hidden, mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden
    near, positions = create_bidirectional_sliding_window_mask(**masking), torch.arange(hidden.shape[1])[None]
    for layer in chain.layers:
        kind = model.config.layer_types[layer]
        turned = model.rotary_emb(hidden, positions, kind)
        sees = near if kind == "sliding_attention" else mask
        hidden = model.layers[layer](hidden, attention_mask=sees, position_embeddings=turned)
    normed: Tensor = model.final_norm(hidden)
    return normed


@torch.inference_mode()
def test_padding_and_neighbours_change_nothing(pair: Pair) -> None:
    chain, inputs = CHAINS[2], texts(pair.ours, 3, 40, 9, 1)
    together = pair.ours.along(inputs, chain)
    for row, length in enumerate(inputs["lengths"].tolist()):
        one = pair.ours.along(alone(inputs, row), chain)[0]
        got = together[row] if together.dim() == 2 else together[row, :length]
        assert difference(got, one) <= TOLERANCE


@torch.inference_mode()
def test_bfloat16_is_as_close_as_bfloat16_can_be(base: Pair) -> None:
    inputs = texts(base.ours, 30)
    wanted = base.ours.states(inputs, FULL)
    model = load_checkpoint(base.directory, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert isinstance(model, EncoderModel)
    got = model.states(inputs, FULL)
    assert got.dtype is torch.bfloat16
    assert ((got.double() - wanted.double()) ** 2).mean().sqrt() / wanted.std() <= BFLOAT16_TOLERANCE


# What a directory says and is not computed is refused by name.


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    make(Encoder("bert", "bert", "classify"), directory)
    return directory


def changed(bert: Path, to: Path, **says: Any) -> Path:
    shutil.copytree(bert, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **says}))
    return to


@pytest.mark.parametrize(
    "says",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"quantization_config": {"bits": 4}},
        {"auto_map": {"AutoModel": "code.Model"}},
        {"hidden_act": "xielu"},
        {"architectures": ["BertForQuestionAnswering"]},
        {"problem_type": "ranking"},
        {"id2label": {"1": "a", "2": "b"}},
        {"num_attention_heads": 5},
        {"hidden_size": "32"},
        {"model_type": "deberta-v2"},
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(says: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as refused:
        load_checkpoint(changed(bert, tmp_path, **says))
    ((name, value),) = says.items()
    said = value[0] if isinstance(value, list) else value
    assert name in str(refused.value) or str(said) in str(refused.value)


def test_tensors_that_lack_or_are_strange_are_named(bert: Path, tmp_path: Path) -> None:
    weights = changed(bert, tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    moved = tensors.pop("bert.encoder.layer.1.output.dense.weight")
    save_file({**tensors, "bert.encoder.layer.9.strange": moved}, weights)
    with pytest.raises(ArtifactError, match=r"layer\.1\.output\.dense\.weight.*layer\.9\.strange"):
        load_checkpoint(tmp_path)


@torch.inference_mode()
def test_names_of_the_first_bert_and_buffers_are_read(tmp_path: Path) -> None:
    made = make_pair(Encoder("bert", "bert", "fill-mask"), tmp_path)
    weights = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(weights).items()
    }
    old |= {"bert.embeddings.position_ids": torch.arange(48)[None], "cls.seq_relationship.bias": torch.zeros(2)}
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    save_file(old, weights)
    inputs = texts(made.ours, 12)
    again = load_checkpoint(tmp_path)
    assert difference(again.along(inputs, FULL), made.ours.along(inputs, FULL)) == 0.0
    old["cls.predictions.decoder.weight"] += 1
    save_file(old, weights)
    with pytest.raises(ArtifactError, match=r"cls\.predictions\.decoder\.weight.*tie_word_embeddings"):
        load_checkpoint(tmp_path)


@torch.inference_mode()
def test_rotary_positions_are_read_in_the_form_of_older_releases(tmp_path: Path) -> None:
    says = {"global_rope_theta": 5000.0, "local_rope_theta": 100.0, "local_attention": 6}
    made = make_pair(Encoder("modernbert", "modernbert", "none", says), tmp_path)
    path, inputs = tmp_path / "config.json", texts(made.ours, 12)
    config = json.loads(path.read_text())
    thetas = {one["rope_theta"] for one in (config.pop("rope_parameters")).values()}
    assert thetas == {5000.0, 100.0}
    config.pop("layer_types")
    path.write_text(json.dumps({**config, **says, "global_attn_every_n_layers": 3}))
    assert difference(load_checkpoint(tmp_path).along(inputs, FULL), made.ours.along(inputs, FULL)) == 0.0
    path.write_text(json.dumps({**config, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}))
    with pytest.raises(ArtifactError, match="rope_type = 'linear'"):
        load_checkpoint(tmp_path)
