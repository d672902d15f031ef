"""Tensor inputs as they come from outside, and rows along their chains."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import numpy as np
import pytest

from models.artifact import TensorSpec
from models.chain import Chain
from models.datatype import Datatype
from models.errors import ChainError, InputError
from service.engine.engine import EngineLimits
from service.engine.queue import Limits, QueueLimits
from service.engine.tensor import TensorEngine, read_inputs

OpenTensor = Callable[..., AbstractAsyncContextManager[TensorEngine]]
BIG = 10**400  # no float either


def spec(datatype: Datatype = "FP32", shape: tuple[int, ...] = (-1, 3), name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def named(data: object, **fields: object) -> dict[str, object]:
    return {"x": {"data": data, **fields}}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([[1, 2]], "dimension 1 is 2"),
        ([1, 2, 3], r"shape \[3\]"),
        ([[[1, 2, 3]]], r"shape \[1, 1, 3\]"),
        (7, r"shape \[\]"),
        ("123", r"shape \[\]"),
        (None, r"shape \[\]"),
        ([[1, 2, 3], [1, 2]], "different lengths"),
        ([[1, 2, 3], 4], "different lengths"),
        ([[1, 2, [3]]], "different lengths"),
        ([], r"shape \[0\]"),
        ([[]], "dimension 1 is 0"),
        ([[1, 2, "3"]], "not FP32"),
        ([["a", "b", "c"]], "not FP32"),
        ([[1, 2, None]], "not FP32"),
        ([[1, 2, {}]], "not FP32"),
        ([[True, False, True]], "not FP32"),
        ([[1, 2, float("nan")]], "NaN"),
        ([[1, 2, float("inf")]], "infinity"),
        ([[1, 2, 1e39]], "beyond FP32"),
        ([[1, 2, 2**70]], "not FP32"),
        ([[1, 2, BIG]], "not FP32"),
        ({"y": [[1, 2, 3]]}, r"\['y'\] came; the model takes \['x'\]"),
        ({}, r"takes \['x'\]"),
        ({"x": [[1, 2, 3]], "y": [[1]]}, r"\['x', 'y'\] came"),
        (named([1, 2, 3], shape=[2, 3]), r"3 values do not fill shape \[2, 3\]"),
        (named([1, 2, 3], shape=[1, -3]), "do not fill"),
        (named([1, 2, 3], shape=[1, 2**70]), "do not fill"),
        (named([1, 2, 3], shape="13"), "do not fill"),
        (named([1, 2, 3], shape=3), "do not fill"),
        (named([1, 2, 3], shape=[1.0, 3.0]), "do not fill"),
        (named([1, 2, 3], shape=None), "do not fill"),
        (named([], shape=[0, 3]), "no rows"),
        (named([[1, 2, 3]], datatype="INT64"), "came as 'INT64'; the model takes FP32"),
        (named([[1, 2, 3]], datatype=None), "came as None"),
        (named([[1, 2, 3]], parameters={}), "nothing else"),
        (named("123"), "'data'"),
        ({"x": {"shape": [1, 3]}}, "'data'"),
    ],
)
def test_bad_input_is_named(inputs: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_inputs(inputs, (spec(),))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 9, 8), "dimension 2 is 9"),
        ((1, 1, 8, 16), "dimension 3 is 16"),
        ((1, 3, 8, 8), "dimension 1 is 3"),
        ((1, 8, 8), r"shape \[1, 8, 8\]"),
        ((1, 4, 4, 2, 2), r"shape \[1, 4, 4, 2, 2\]"),
    ],
)
def test_an_image_of_another_grid_is_named(shape: tuple[int, ...], said: str) -> None:
    """A mixer of patches takes one size of image, whatever else its patches would fill."""
    images = spec(shape=(-1, 1, 8, 8))
    with pytest.raises(InputError, match=rf"{said}; the model takes FP32 \['any', 1, 8, 8\]"):
        read_inputs(np.zeros(shape).tolist(), (images,))


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT64", 1.0),
        ("INT64", True),
        ("INT64", 2**63),
        ("INT64", -(2**63) - 1),
        ("INT64", BIG),
        ("INT32", 2**31),
        ("INT32", -(2**31) - 1),
        ("INT32", 2**63),
        ("BOOL", 1),
        ("FP16", 70_000),
        ("FP16", 70_000.0),
        ("FP64", float("nan")),
    ],
)
def test_value_beyond_the_datatype_is_refused(datatype: Datatype, value: object) -> None:
    with pytest.raises(InputError, match=datatype):
        read_inputs([[value]], (spec(datatype, (-1, 1)),))


@pytest.mark.parametrize(
    ("datatype", "value", "dtype"),
    [
        ("INT64", -(2**63), np.int64),
        ("INT32", 2**31 - 1, np.int32),
        ("BOOL", True, np.bool_),
        ("FP16", 65_504, np.float16),
        ("FP32", 0.5, np.float32),
        ("FP32", 3, np.float32),
        ("FP64", 1e300, np.float64),
    ],
)
def test_value_of_the_datatype_arrives_unchanged(datatype: Datatype, value: object, dtype: type[np.generic]) -> None:
    array = read_inputs([[value]], (spec(datatype, (-1, 1)),))["x"]
    assert array.dtype == dtype
    assert array.tolist() == [[value]]


@pytest.mark.parametrize(
    "inputs",
    [
        [[1, 2, 3], [4, 5, 6]],
        {"x": [[1, 2, 3], [4, 5, 6]]},
        named([1, 2, 3, 4, 5, 6], shape=[2, 3], datatype="FP32"),
        named([[1, 2, 3], [4, 5, 6]], shape=[2, 3], datatype="FP32"),
        named([[1, 2, 3], [4, 5, 6]]),
    ],
    ids=["rows", "by-name", "flat", "nested", "data-only"],
)
def test_every_way_to_write_a_tensor_is_the_same(inputs: object) -> None:
    assert read_inputs(inputs, (spec(),))["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_several_inputs_are_named_and_have_equally_many_rows() -> None:
    specs = spec(name="a"), spec("INT64", (-1,), name="b")
    arrays = read_inputs({"b": [7, 8], "a": [[1, 2, 3], [4, 5, 6]]}, specs)
    assert {name: len(array) for name, array in arrays.items()} == {"a": 2, "b": 2}
    with pytest.raises(InputError, match=r"\['a', 'b'\]"):
        read_inputs([[1, 2, 3]], specs)
    with pytest.raises(InputError, match=r"\{'a': 1, 'b': 2\}"):
        read_inputs({"a": [[1, 2, 3]], "b": [7, 8]}, specs)


def test_rows_follow_their_own_chains(open_tensor: OpenTensor) -> None:
    inputs = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    chains: list[str | Sequence[int]] = ["full", [0, 0, 3], "2,1"]

    async def run() -> None:
        async with open_tensor() as engine:
            done = await engine.infer(inputs, chains)
            assert done.chains == (Chain.full(4), Chain((0, 0, 3)), Chain((2, 1)))
            for place, (one, chain) in enumerate(zip(inputs, chains, strict=True)):
                alone = await engine.infer([one], [chain])
                assert {name: array[:1].tolist() for name, array in alone.outputs.items()} == {
                    name: array[place : place + 1].tolist() for name, array in done.outputs.items()
                }

    asyncio.run(run())


def test_large_request_is_split_and_put_together_again(open_tensor: OpenTensor) -> None:
    limits = EngineLimits(Limits(4, 64), QueueLimits(64, 64, 64), max_chain_length=8, search_bytes=0)
    rows = [[i, 0, 0] for i in range(10)]

    async def together() -> list[float]:
        async with open_tensor(limits=limits) as engine:
            (array,) = (await engine.infer(rows, "0-3")).outputs.values()
            return array.tolist()

    async def apart() -> list[float]:
        async with open_tensor() as engine:
            done = [await engine.infer([row], "full") for row in rows]
            return [values for one in done for array in one.outputs.values() for values in array.tolist()]

    assert asyncio.run(together()) == asyncio.run(apart())


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("0-4", "visit 4 names layer 4; the model has layers 0 to 3"),
        ([0, -1], "visit 1 names layer -1"),
        ([], "the chain is empty"),
        ("", "neither a layer nor a run"),
        ("0-3,0-3,0", "9 visits; this model takes at most 8"),
        ([[0], [1]], "2 chains came with 1 inputs"),
        (["full", "0-9"], "2 chains came with 1 inputs"),
        (["9"], "names layer 9"),
        ([[]], "the chain is empty"),
        ("Full", "neither a layer nor a run"),
    ],
)
def test_bad_chain_is_named(chain: object, said: str, open_tensor: OpenTensor) -> None:
    async def run() -> None:
        async with open_tensor() as engine:
            with pytest.raises(ChainError, match=said):
                await engine.infer([[1, 2, 3]], chain)  # type: ignore[arg-type]

    asyncio.run(run())
