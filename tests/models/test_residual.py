"""Residual forms: their text, what a config.json may say of them, and every form held against its definition.

The definitions are written here once more, plainly, module by module, so that the layers of `models.lm.block` have
something to be equal to. Modules are u_1, u_2, ... in the order of the chain; S_t is the stream after t of them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.chain import Chain
from models.checkpoint import load_checkpoint, read_raw
from models.errors import ArtifactError
from models.lm import weights
from models.lm.architectures import read_config
from models.lm.block import Layer
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.residual import Residual, checked_for, parse_form, read_residual
from models.lm.rope import Rope

LAYERS = 6
# float64: sums in another order.
EXACT = 1e-12
CONFIG = LMConfig(
    vocab_size=24,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rope=Rope(theta=200.0),
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)
CHAINS = {
    "full": Chain.full(LAYERS),
    "skip": Chain((0, 1, 3, 5)),
    "skip-first": Chain((2, 3, 4, 5)),
    "skip-last": Chain((0, 1, 2, 3)),
    "loop": Chain((0, 1, 2, 2, 2, 3, 4, 5)),
    "block-loop": Chain((0, 1, 2, 1, 2, 3)),
    "skip-and-back": Chain((0, 3, 1, 5, 5)),
    "reorder": Chain((4, 2, 5, 0)),
    "one": Chain((3,)),
    "none": Chain(()),
}
LADDERS = [
    "ladder",
    "ladder:3-5",
    "ladder:0,2,4",
    "ladder(slot)",
    "ladder(slot):1-3,5",
]
DESYNCS = ["desync-2x@2", "desync-2x@4", "desync-4x@2", "desync-4x@4", "desync-6x@2"]


def build(form: str) -> LanguageModel:
    """Random weights in float64, the same for every form; far from small, so that forms differ."""
    torch.manual_seed(0)
    model = LanguageModel(replace(CONFIG, residual=parse_form(form)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if "norm" in name else 0.3) + ("norm" in name))
    return model.double().eval()


def tokens(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def run(model: LanguageModel, chain: Chain, ids: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return model.along({"token_ids": tokens() if ids is None else ids}, chain)


def plain(model: LanguageModel) -> tuple[Tensor, Callable[[int, Tensor], Tensor], Callable[[int, Tensor], Tensor]]:
    """The embedding of the tokens, and attention and MLP of a layer with their norms, from the stream each reads."""
    starts = torch.zeros(2, dtype=torch.int64)
    _, *seen = model.embed(tokens(), starts, starts[:0])
    nothing = model.empty_cache(2)

    def attention(layer: int, stream: Tensor) -> Tensor:
        block = model.layers[layer]
        mixed: Tensor = block.self_attn(block.input_layernorm(stream), *seen, nothing, nothing)[0]
        return mixed

    def mlp(layer: int, stream: Tensor) -> Tensor:
        block = model.layers[layer]
        added: Tensor = block.mlp(block.post_attention_layernorm(stream))
        return added

    return model.embed.embed_tokens(tokens()), attention, mlp


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


# Ladder, its hybrids and its two rules.


def ladder_by_modules(model: LanguageModel, residual: Residual, chain: Chain) -> Tensor:
    """S_{-1} = S_0 = x, y_t = u_t(S_{t-2}), S_t = S_{t-1} + y_t; a standard layer's modules read S_{t-1}.

    Under the rule "slot" a layer that is skipped executes two modules whose output is zero.
    """
    stream, attention, mlp = plain(model)
    before = stream  # S_{t-2} where `stream` is S_{t-1}
    last = -1
    for layer in chain.layers:
        for _ in range(2 if residual.on_skip == "slot" and layer > last + 1 else 0):
            before = stream
        last = layer
        for module in (attention, mlp):
            added = module(layer, before if residual.is_ladder(layer) else stream)
            before, stream = stream, stream + added
    head: Tensor = model.head.lm_head(model.head.norm(stream))
    return head


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("form", LADDERS)
def test_ladder_layers_are_the_definition_by_modules(form: str, chain: Chain) -> None:
    model = build(form)
    with torch.inference_mode():
        wanted = ladder_by_modules(build("standard"), parse_form(form), chain)
    assert relative(run(model, chain), wanted) <= EXACT


def test_the_definition_without_ladder_layers_is_the_standard_form() -> None:
    model = build("standard")
    with torch.inference_mode():
        assert relative(ladder_by_modules(model, Residual(), CHAINS["loop"]), run(model, CHAINS["loop"])) <= EXACT


def test_forms_of_the_same_weights_are_different_functions() -> None:
    for chain in (CHAINS["skip"], CHAINS["skip-and-back"]):
        found = {form: run(build(form), chain) for form in ("standard", *LADDERS, *DESYNCS)}
        for one, other in combinations(found, 2):
            assert relative(found[one], found[other]) > 1e-3, (one, other)


@pytest.mark.parametrize("name", ["full", "skip-first", "skip-last", "loop", "block-loop", "one"])
def test_executed_and_slot_agree_where_nothing_is_skipped_in_between(name: str) -> None:
    assert torch.equal(run(build("ladder"), CHAINS[name]), run(build("ladder(slot)"), CHAINS[name]))


def test_slot_is_the_full_ladder_with_a_layer_that_adds_nothing() -> None:
    model, chain = build("ladder"), Chain((0, 1, 4, 5))
    with torch.no_grad():
        for layer in (2, 3):
            for projection in (model.layers[layer].self_attn.o_proj, model.layers[layer].mlp.down_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    assert relative(run(build("ladder(slot)"), chain), run(model, Chain.full(LAYERS))) <= EXACT


def test_empty_chain_is_the_head_of_the_embedding() -> None:
    found = [run(build(form), CHAINS["none"]) for form in ("standard", *LADDERS, *DESYNCS)]
    assert all(torch.equal(one, found[0]) for one in found)


# Desync: one stream for each rank.


def desync_by_ranks(model: LanguageModel, residual: Residual, chain: Chain) -> Tensor:
    """Each rank reads and writes a stream of its own, with its heads and its columns of the MLP.

    Every `period / 2`-th MLP executed, and the last, is synchronised: x = sum over ranks of (y_w + x_w / W).
    """
    embedded, _, _ = plain(model)
    starts = torch.zeros(2, dtype=torch.int64)
    _, *seen = model.embed(tokens(), starts, starts[:0])
    count = residual.num_ranks
    streams = [embedded] * count
    for visit, layer in enumerate(chain.layers, start=1):
        block = model.layers[layer]
        streams = [x + attention_of_rank(block, x, seen, rank, count) for rank, x in enumerate(streams)]
        added = [mlp_of_rank(block, x, rank, count) for rank, x in enumerate(streams)]
        if 2 * visit % residual.period == 0 or visit == len(chain):
            streams = [sum((y + x / count for x, y in zip(streams, added, strict=True)), torch.zeros(()))] * count
        else:
            streams = [x + y for x, y in zip(streams, added, strict=True)]
    head: Tensor = model.head.lm_head(model.head.norm(streams[0]))
    return head


def attention_of_rank(block: Layer, stream: Tensor, seen: Sequence[Tensor], rank: int, count: int) -> Tensor:
    """The rank's heads: those of the others are cut out of what the output projection sums; its part of the bias."""
    whole: Any = block.self_attn
    kept = torch.zeros(whole.o_proj.in_features, dtype=stream.dtype)
    size = len(kept) // count
    kept[rank * size : (rank + 1) * size] = 1.0
    mixed: list[Tensor] = []
    handle = whole.o_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    nothing = stream.new_zeros(2, CONFIG.num_key_value_heads, 0, CONFIG.head_size)
    whole(block.input_layernorm(stream), *seen, nothing, nothing)
    handle.remove()
    return (mixed[0] * kept) @ whole.o_proj.weight.T + whole.o_proj.bias / count


def mlp_of_rank(block: Layer, stream: Tensor, rank: int, count: int) -> Tensor:
    whole: Any = block.mlp
    normed = block.post_attention_layernorm(stream)
    inner = whole.act(whole.gate_proj(normed)) * whole.up_proj(normed)
    size = inner.shape[-1] // count
    own = slice(rank * size, (rank + 1) * size)
    return inner[..., own] @ whole.down_proj.weight[:, own].T + whole.down_proj.bias / count


@pytest.mark.parametrize("name", ["full", "skip", "loop", "skip-and-back", "one", "none"])
@pytest.mark.parametrize("form", DESYNCS)
def test_desync_layers_are_the_ranks_side_by_side(form: str, name: str) -> None:
    with torch.inference_mode():
        wanted = desync_by_ranks(build("standard"), parse_form(form), CHAINS[name])
    assert relative(run(build(form), CHAINS[name]), wanted) <= EXACT


def test_one_rank_has_nothing_to_make_equal() -> None:
    assert torch.equal(run(build("desync-4x@1"), CHAINS["loop"]), run(build("standard"), CHAINS["loop"]))


def test_parallel_blocks_read_the_same_stream_through_one_norm() -> None:
    model = build("parallel")
    with torch.inference_mode():
        stream, attention, _ = plain(model)
        for layer in CHAINS["skip-and-back"].layers:
            block = model.layers[layer]
            stream = stream + attention(layer, stream) + block.mlp(block.input_layernorm(stream))
        wanted = model.head.lm_head(model.head.norm(stream))
    assert relative(run(model, CHAINS["skip-and-back"]), wanted) <= EXACT


# What holds of every form.

EVERY = ("parallel", *LADDERS, *DESYNCS)


@pytest.mark.parametrize("form", EVERY)
def test_token_by_token_with_a_cache_equals_all_at_once(form: str) -> None:
    model, ids, chain = build(form), tokens(2, 9), Chain((0, 1, 3, 3, 5))
    cache = [(model.empty_cache(2), model.empty_cache(2)) for _ in chain.layers]
    wanted = run(model, chain, ids)
    with torch.inference_mode():
        for start, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
            hidden, *shared = model.embed(ids[:, start:end], torch.full((2,), start), torch.arange(start))
            for visit, layer in enumerate(chain.layers):
                hidden, key, value = model.layers[layer](hidden, *shared, *cache[visit])
                cache[visit] = torch.cat((cache[visit][0], key), dim=2), torch.cat((cache[visit][1], value), dim=2)
            assert relative(model.head(hidden), wanted[:, start:end]) <= EXACT


@pytest.mark.parametrize("form", EVERY)
def test_hidden_is_as_wide_as_told_and_the_stream_is_what_the_head_reads(form: str) -> None:
    model, residual = build(form), parse_form(form)
    starts = torch.zeros(2, dtype=torch.int64)
    with torch.inference_mode():
        hidden, *seen = model.embed(tokens(), starts, starts[:0])
        nothing = model.empty_cache(2)
        for layer in (0, 2, 2):
            assert hidden.shape[-1] == residual.width(CONFIG.hidden_size)
            stream = residual.landed(hidden)
            assert stream.shape == (2, 7, CONFIG.hidden_size)
            assert torch.equal(model.head(hidden), model.head.lm_head(model.head.norm(stream)))
            assert torch.equal(torch.from_numpy(residual.landed(hidden.numpy())), stream)
            hidden, *_ = model.layers[layer](hidden, *seen, nothing, nothing)


# Texts.

FORMS = st.one_of(
    st.sampled_from([Residual("standard"), Residual("parallel"), Residual("upper-bound")]),
    st.builds(
        Residual,
        st.just("ladder"),
        st.none() | st.sets(st.integers(0, 99), min_size=1).map(lambda layers: tuple(sorted(layers))),
        st.sampled_from(["executed", "slot"]),
    ),
    st.builds(
        Residual, st.just("desync"), period=st.integers(1, 50).map(lambda n: 2 * n), num_ranks=st.integers(1, 64)
    ),
)


@given(FORMS, FORMS)
def test_text_says_the_whole_form(one: Residual, other: Residual) -> None:
    assert parse_form(one.text) == one
    assert (one.text == other.text) == (one == other)
    assert replace(one, is_trained=False).text == one.text


@given(FORMS)
def test_config_says_the_whole_form(form: Residual) -> None:
    untrained = replace(form, is_trained=False)
    assert read_residual(json.loads(json.dumps(untrained.said())), 200) == untrained


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ladder",
        "ladder:",
        "ladder:5-3",
        "ladder:3,3",
        "ladder:4,2",
        "ladder(executed)",
        "desync-3x@2",
        "desync-2x",
        "desync-0x@2",
        "desync-2x@0",
        "parallel:1",
        "ladder:1-2;",
    ],
)
def test_other_texts_are_no_forms(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"no residual form|must be"):
        parse_form(text)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"form": "lader"}, "forms are"),
        ({"form": "ladder", "on_skip": "land"}, "on_skip is one of"),
        ({"form": "ladder", "ladder_layers": [1]}, "ladder_layers"),
        ({"form": "ladder", "layers": []}, "one or more"),
        ({"form": "ladder", "layers": [2, 1]}, "in order"),
        ({"form": "ladder", "layers": [True]}, "whole numbers"),
        ({"form": "ladder", "layers": 3}, "not iterable"),
        ({"form": "ladder", "layers": [1, 6]}, "names layer 6; the model has layers 0 to 5"),
        ({"form": "standard", "layers": [1]}, "are ladder's"),
        ({"form": "ladder", "num_ranks": 2}, "are desync's"),
        ({"form": "desync", "period": 3}, "must be even"),
        ({"form": "ladder", "is_trained": 1}, "true or false"),
    ],
)
def test_config_that_says_what_means_nothing_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_residual(said, LAYERS)


def test_hybrid_of_all_layers_is_none() -> None:
    assert checked_for(parse_form("ladder(slot):0-5"), LAYERS) == parse_form("ladder(slot)")
    with pytest.raises(ArtifactError, match="at most 256 layers"):
        checked_for(parse_form("ladder(slot)"), 257)


# Checkpoints.


def llama(form: str) -> LanguageModel:
    config = replace(CONFIG, qkv_bias=False, output_bias=False, mlp_bias=False, head_dim=4, residual=parse_form(form))
    torch.manual_seed(0)
    return LanguageModel(replace(config, residual=replace(config.residual, is_trained=False)))


@pytest.mark.parametrize("form", ["parallel", "ladder", "ladder(slot):1,3", "desync-4x@2", "upper-bound"])
def test_form_goes_with_the_checkpoint(form: str, tmp_path: Path) -> None:
    model = llama(form)
    weights.save(model, tmp_path)
    again = load_checkpoint(tmp_path)
    assert isinstance(again, LanguageModel)
    assert again.config.residual == replace(parse_form(form), is_trained=False)
    assert again.residual_form == form
    assert torch.equal(again(tokens()), model.eval()(tokens()))


def test_transformers_takes_no_other_form_for_one_of_its_own(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM

    weights.save(llama("ladder"), tmp_path)
    for loader in (AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM):
        with pytest.raises(Exception, match=r"type `fathom`|num_hidden_layers"):
            loader.from_pretrained(tmp_path)


def test_standard_form_is_written_as_before(tmp_path: Path) -> None:
    weights.save(llama("standard"), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["model_type"] == "llama"
    assert "residual" not in said
    assert read_raw(tmp_path) == said


def test_wrapped_config_without_what_it_wraps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fathom", "base_model_type": "llama"}))
    with pytest.raises(ArtifactError, match="without base and residual"):
        load_checkpoint(tmp_path)


NEOX = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("model_type", "raw", "form", "words"),
    [
        ("gpt_neox", {"rotary_pct": 1.0}, "ladder", "read the same stream"),
        ("gpt_neox", {"rotary_pct": 1.0}, "parallel", "read the same stream"),
        ("llama", {"num_key_value_heads": 2}, "desync-2x@4", "num_key_value_heads"),
        ("gemma2", {}, "desync-2x@2", "norms behind"),
        ("olmo2", {}, "desync-4x@2", "a norm over all heads"),
        ("llama", {"fathom": {"kept_weights": 0.5}}, "desync-4x@2", "low rank"),
    ],
)
def test_form_that_the_blocks_leave_open_is_refused(
    model_type: str, raw: dict[str, Any], form: str, words: str
) -> None:
    said = {**NEOX, **raw}
    read_config(said, model_type)
    with pytest.raises(ArtifactError, match=words):
        read_config({**said, "residual": parse_form(form).said()}, model_type)
