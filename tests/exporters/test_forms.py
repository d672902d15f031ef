"""Every exported form against the plain model, on sizes neither the exporter nor its verification has seen."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from exporters import onnx as onnx_form
from exporters import torchscript
from exporters.parts import Runs, Tensors
from exporters.publish import Exported
from exporters.split import split
from models.artifact import Format
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.lm.model import LanguageModel


def read(folder: Path) -> Runs:
    """The checkpoint in an artifact as a server reads it."""
    parts = split(load_checkpoint(folder))
    return Runs(parts.embed, parts.layers, parts.head, None)


Loader = Callable[[Path], Runs]
LOADERS: dict[Format, Loader] = {
    "onnx": lambda folder: onnx_form.load(folder, 3),
    "torchscript": lambda folder: torchscript.load(folder, 3),
    "safetensors": read,
}
every_form = pytest.mark.parametrize("form", LOADERS)
CLOSE = 1e-5


@pytest.fixture(scope="module")
def lm(lm_checkpoint: Path) -> LanguageModel:
    model = load_checkpoint(lm_checkpoint)
    assert isinstance(model, LanguageModel)
    return model


def open_form(exported: Exported, form: str) -> Runs:
    return LOADERS[form](exported.directory / form)  # type: ignore[index]


def token_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(48, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


def no_past(batch: int) -> Tensors:
    return torch.zeros(batch, 2, 0, 8), torch.zeros(batch, 2, 0, 8)


def run_chain(runs: Runs, first: Tensors, chain: Chain, pasts: list[Tensors]) -> tuple[torch.Tensor, list[Tensors]]:
    """Logits, and keys and values of every visit."""
    hidden, *shared = runs.embed(*first)
    new = []
    for layer, past in zip(chain.layers, pasts, strict=True):
        hidden, *cached = runs.layers[layer](hidden, *shared, *past)
        new.append(tuple(cached))
    return runs.head(hidden)[0], new


@every_form
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 17), (4, 1), (4, 9)])
@pytest.mark.parametrize("text", ["0-2", "0,2", "0-1,1,1-2", "2,0,1"])
def test_any_chain_through_parts_gives_what_the_plain_loop_gives(
    exported_lm: Exported, lm: LanguageModel, form: str, batch: int, length: int, text: str
) -> None:
    chain, ids = Chain.parse(text), token_ids(batch, length)
    first = (ids, torch.zeros(batch, dtype=torch.int64), torch.arange(0))
    logits, _ = run_chain(open_form(exported_lm, form), first, chain, [no_past(batch)] * len(chain.layers))
    with torch.no_grad():
        torch.testing.assert_close(logits, lm.along({"token_ids": ids}, chain), atol=CLOSE, rtol=0)


@every_form
def test_decoding_unevenly_cached_rows_gives_what_recomputation_gives(
    exported_lm: Exported, lm: LanguageModel, form: str
) -> None:
    chain, lengths, ids = Chain.parse("0,1,1,2"), torch.tensor([2, 7, 5]), token_ids(3, 9)
    runs = open_form(exported_lm, form)
    first = (ids[:, :7], torch.zeros(3, dtype=torch.int64), torch.arange(0))
    _, cached = run_chain(runs, first, chain, [no_past(3)] * 4)  # columns past a row's length hold padding
    following = torch.stack([ids[row, start : start + 2] for row, start in enumerate(lengths)])
    logits, _ = run_chain(runs, (following, lengths, torch.arange(7)), chain, cached)
    for row, start in enumerate(lengths):
        with torch.no_grad():
            wanted = lm.along({"token_ids": ids[row : row + 1, : start + 2]}, chain)[0, start:]
        torch.testing.assert_close(logits[row], wanted, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 40), (5, 3), (16, 11)])
def test_parts_one_by_one_are_bit_equal_to_the_whole_graph(
    exported_lm: Exported, form: str, batch: int, length: int
) -> None:
    runs, ids = open_form(exported_lm, form), token_ids(batch, length)
    assert runs.whole is not None
    starts, nothing = torch.zeros(batch, dtype=torch.int64), torch.zeros(3, batch, 2, 0, 8)
    chained, cached = run_chain(runs, (ids, starts, torch.arange(0)), Chain.full(3), [no_past(batch)] * 3)
    logits, keys, values = runs.whole(ids, starts, nothing, nothing)
    assert torch.equal(chained, logits)
    assert torch.equal(torch.stack([key for key, _ in cached]), keys)

    starts = torch.full((batch,), length)
    chained, _ = run_chain(runs, (ids[:, :1], starts, torch.arange(length)), Chain.full(3), cached)
    assert torch.equal(chained, runs.whole(ids[:, :1], starts, keys, values)[0])


@every_form
@pytest.mark.parametrize("batch", [1, 5])
def test_classifier_parts_give_what_the_plain_loop_gives(
    exported_mlp: Exported, mlp_checkpoint: Path, form: str, batch: int
) -> None:
    runs, chain = open_form(exported_mlp, form), Chain.parse("0,2,1,1")
    features = torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch))
    (hidden,) = runs.embed(features)
    for layer in chain.layers:
        (hidden,) = runs.layers[layer](hidden)
    with torch.no_grad():
        wanted = load_checkpoint(mlp_checkpoint).along({"features": features}, chain)
    torch.testing.assert_close(runs.head(hidden)[0], wanted, atol=CLOSE, rtol=0)


def test_classifier_parts_are_bit_equal_to_the_whole_graph(exported_mlp: Exported) -> None:
    runs, features = open_form(exported_mlp, "onnx"), torch.ones(5, 6)
    assert runs.whole is not None
    (hidden,) = runs.embed(features)
    for layer in runs.layers:
        (hidden,) = layer(hidden)
    assert torch.equal(runs.head(hidden)[0], runs.whole(features)[0])


def test_graphs_have_the_agreed_names_and_readable_axes(exported_lm: Exported) -> None:
    cache, new = ["batch", 2, "past", 8], ["batch", 2, "length", 8]
    hidden, angles = ["batch", "length", 32], ["batch", "length", 8]
    mask, logits = ["batch", 1, "length", "total"], ["batch", "length", 48]
    shared = {"cosine": angles, "sine": angles, "mask": mask}
    tokens = {"token_ids": ["batch", "length"], "starts": ["batch"]}
    layer = (
        {"hidden": hidden, **shared, "past_key": cache, "past_value": cache},
        {"hidden_out": hidden, "key": new, "value": new},
    )
    wanted = {
        "embed": ({**tokens, "columns": ["past"]}, {"hidden": hidden, **shared}),
        "layer_000": layer,
        "layer_002": layer,
        "head": ({"hidden": hidden}, {"logits": logits}),
        "whole": (
            {**tokens, "past_keys": [3, *cache], "past_values": [3, *cache]},
            {"logits": logits, "keys": [3, *new], "values": [3, *new]},
        ),
    }
    found = {name: axes(exported_lm.directory / "onnx" / f"{name}.onnx") for name in wanted}
    assert found == wanted


def test_queries_and_keys_are_turned_by_one_operator_each(exported_lm: Exported) -> None:
    graph = onnx.load(str(exported_lm.directory / "onnx" / "layer_001.onnx")).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["RotaryEmbedding"], kinds["Neg"], kinds["Attention"]) == (2, 0, 1)


def test_graphs_hold_no_notes_of_the_exporter(exported_lm: Exported) -> None:
    for path in (exported_lm.directory / "onnx").iterdir():
        assert b"stack_trace" not in path.read_bytes()
        assert b".py" not in path.read_bytes()


def axes(path: Path) -> tuple[dict[str, list[str | int]], dict[str, list[str | int]]]:
    graph = onnx.load(str(path)).graph

    def named(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    return named(list(graph.input)), named(list(graph.output))
