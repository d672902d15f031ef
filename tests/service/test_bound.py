"""What can be bound, what is found out about it, and what it is told when it breaks its word."""

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.errors import ArtifactError, FathomError, InputError, ModelError
from service.bound import Bound, bind

X = {"x": ("FP32", [-1, 3])}
ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def ran(bound: Bound, *arrays: Any) -> dict[str, Any]:
    """Outputs of a batch through the backend."""
    backend = bound.open("mine")
    names = [spec.name for spec in bound.inputs]
    return backend.head(backend.embed(dict(zip(names, arrays, strict=True))))


def test_outputs_are_found_by_running() -> None:
    bound = bind(lambda x: x.sum(axis=1) > 0, X)
    assert [spec.model_dump() for spec in bound.outputs] == [{"name": "output", "datatype": "BOOL", "shape": (-1,)}]
    np.testing.assert_array_equal(ran(bound, ROWS)["output"], [True, True])


def test_sizes_that_follow_the_inputs_are_found() -> None:
    bound = bind(lambda a, b: (a * 2, b.mean(axis=1)), {"a": ("FP32", [-1, -1]), "b": ("FP64", [-1, 4])})
    shapes = {spec.name: (spec.datatype, spec.shape) for spec in bound.outputs}
    assert shapes == {"output_0": ("FP32", (-1, -1)), "output_1": ("FP64", (-1,))}


def test_dict_names_its_outputs_in_any_order() -> None:
    turn = iter(range(9))

    def split(x: Any) -> dict[str, Any]:
        parts = {"low": x[:, :1], "high": x[:, 1:]}
        return dict(reversed(parts.items())) if next(turn) % 2 else parts

    bound = bind(split, X)
    assert [spec.name for spec in bound.outputs] == ["low", "high"]
    found = ran(bound, ROWS)
    np.testing.assert_array_equal(found["low"], ROWS[:, :1])
    np.testing.assert_array_equal(found["high"], ROWS[:, 1:])


def test_declared_outputs_spare_the_runs() -> None:
    calls = []
    bind(lambda x: calls.append(x), X, {"y": ("FP32", [-1, 3])})
    assert not calls


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        ("text", X, "no plain function or module"),
        (int, X, "no plain function or module"),
        (lambda x: x, {}, "no inputs were named"),
        (lambda x: x, {"x": "FP32"}, r"write a datatype and a shape, like \('FP32', \[-1, 3\]\)"),
        (lambda x: x, {"x": ("FP32", [0, 3])}, "write a datatype and a shape"),
        (lambda x: x, {"x": ("FLOAT", [-1])}, "is of type FLOAT; served are tensors of BOOL, UINT8"),
        (lambda x: x, {"x": ("FP32", [])}, "the first axis of every input and output must be the batch"),
        (lambda x: x.nothing, X, "does not run on zeros of x .*declare the outputs"),
        (lambda x: x.tolist(), X, "an output is of type list; return a numpy array"),
        (lambda x: x.sum(axis=0), X, "the first axis of every output must be the batch"),
        (lambda x: x.astype("U9"), X, "is of type <U9"),
    ],
)
def test_what_cannot_be_served_is_refused(model: Any, inputs: Any, told: str) -> None:
    with pytest.raises((InputError, ArtifactError), match=told):
        bind(model, inputs)


def test_async_function_is_refused() -> None:
    async def later(x: Any) -> Any:
        return x

    with pytest.raises(InputError, match="no plain function"):
        bind(later, X)


def test_name_that_makes_no_name_is_refused() -> None:
    with pytest.raises(InputError, match="model '<lambda>', name"):
        bind(lambda x: x, X).manifest("<lambda>")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda x: x[:1], "output 'y' has shape [1, 3] for 2 rows; return one row for each row"),
        (lambda x: x[:, :2], "output 'y' is float32 [2, 2]; declared is FP32 [-1, 3]"),
        (lambda x: x.astype(np.float64), "output 'y' is float64 [2, 3]; declared is FP32"),
        (lambda x: (x, x), "returned 2 outputs; ['y'] are declared"),
        (lambda x: np.float32(1), "an output is of type float32"),
        (lambda x: None, "an output is of type NoneType"),
        (lambda x: {"z": x}, "outputs ['z'] were returned and ['y'] are declared"),
        (lambda x: 1 / 0, "model 'mine' raised ZeroDivisionError: division by zero"),
        (lambda x: sys.exit(3), "model 'mine' raised SystemExit: 3"),
    ],
)
def test_broken_word_is_told(returned: Callable[..., Any], told: str) -> None:
    bound = bind(returned, X, {"y": ("FP32", [-1, 3])})
    with pytest.raises(ModelError, match=re.escape(told)):
        ran(bound, ROWS)


def test_errors_of_ours_pass() -> None:
    def refuse(x: Any) -> Any:
        raise InputError("x is odd; send an even one")

    with pytest.raises(FathomError, match="x is odd") as raised:
        ran(bind(refuse, X, X), ROWS)
    assert isinstance(raised.value, InputError)


def test_module_is_served_whole_without_its_dropout() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.9), torch.nn.ReLU())
    bound = bind(module, X)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(ROWS)).numpy()
    np.testing.assert_array_equal(ran(bound, ROWS)["output"], wanted)
    assert bound.layers is None


def test_module_may_return_several_by_name() -> None:
    import torch

    class Two(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return {"sum": x.sum(dim=1), "kept": (x,)[0]}

    assert [(spec.name, spec.shape) for spec in bind(Two(), X).outputs] == [("sum", (-1,)), ("kept", (-1, 3))]


def test_network_without_layers_is_served_whole() -> None:
    import torch

    from models.kan.s_kan import SKan, SKanConfig

    model = SKan(SKanConfig(num_features=3, num_outputs=2)).eval()
    bound = bind(model, X)
    with torch.inference_mode():
        np.testing.assert_array_equal(ran(bound, ROWS)["output"], model(torch.from_numpy(ROWS)).numpy())
    assert bound.layers is None


def test_language_model_is_sent_to_export(tiny_lm_checkpoint: Any) -> None:
    from models.checkpoint import load_checkpoint

    with pytest.raises(InputError, match="fathom export"):
        bind(load_checkpoint(tiny_lm_checkpoint), {"token_ids": ("INT64", [-1, -1])})
