"""Rows of arrays through a tensor model, arrays out."""

from collections.abc import Sequence

import numpy as np

from models.chain import Chain
from service.api.v2.tensors import Array
from service.engine.engine import new_future
from service.engine.forward import overflow
from service.engine.tensor import TensorEngine
from service.engine.work import Tensors, TensorWork


async def run(engine: TensorEngine, arrays: dict[str, Array], chains: tuple[Chain, ...]) -> dict[str, Array]:
    """Outputs by name, [B, ...] each, of rows that `read` has checked, [B, ...] each, along their chains.

    Raises ChainError if a chain's numbers overflow, LengthError or OverloadError if the queue has no room.
    """
    answers: list[Tensors] = await engine.run(_split(arrays, chains, engine.limits.batch.max_rows))
    outputs = {name: _joined([answer.outputs[name] for answer in answers]) for name in answers[0].outputs}
    if engine.num_layers:
        _check_finite(outputs, chains)
    engine.metrics.observe_samples(chains, [1] * len(chains), engine.num_layers, answers[-1].timing)
    return outputs


def _split(arrays: dict[str, Array], chains: tuple[Chain, ...], max_rows: int) -> list[TensorWork]:
    return [
        TensorWork(
            future=new_future(),
            inputs={name: array[start : start + max_rows] for name, array in arrays.items()},
            chains=chains[start : start + max_rows],
        )
        for start in range(0, len(chains), max_rows)
    ]


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_finite(outputs: dict[str, Array], chains: tuple[Chain, ...]) -> None:
    for array in outputs.values():
        is_finite = np.isfinite(array).reshape(len(chains), -1).all(axis=1)
        if not is_finite.all():
            raise overflow(chains[int(is_finite.argmin())])
