"""Parts whose linear layers have weights of fewer bits, by torchao, as graphs of torch.export. Knows no manifest.

Weights alone are rounded: to 8 bits with a scale for each row, or to 4 bits with a scale and a zero for each block, two
in a byte.
What they are multiplied with stays float32, so that a row's answer is its own. The graphs have plain operators on plain
tensors: whoever opens one needs no torchao and unpickles none of its classes.

torchao's own packing of 4 bits for CPUs (`_convert_weight_to_int4pack_for_cpu`) is not used: it is laid out for the
instructions of the machine that wrote it, and another machine computes other numbers from it without an error.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exporters import pt2
from exporters.parts import Part, Parts
from models.artifact import Format
from models.errors import ArtifactError

BITS: Mapping[Format, int] = {"pt2-int8": 8, "pt2-int4": 4}
# Numbers that share a scale where there are 4 bits: so many, or fewer where so many do not divide a row. Rows that
# blocks of the fewest do not divide stay as they are.
_BLOCK, _MIN_BLOCK = 32, 8
# What these say while torchao is imported: that its libraries for GPUs do not load on this machine.
_LOGGERS = ("torchao", "torch.utils._pytree")


def write(parts: Parts, folder: Path, format: Format) -> Iterator[str]:
    """Write every part and the whole into `folder`, yielding each file's name.

    Raises ArtifactError naming the part, or if torchao is not there or has nothing to round.
    """
    bits = BITS[format]
    if not any(True for _ in _linears(parts.whole.module, bits)):
        raise ArtifactError(f"no part has a linear layer whose weights {format} could hold in {bits} bits")
    yield from pt2.write((_rounded(part, bits) for part in parts), folder)


def _rounded(part: Part, bits: int) -> Part:
    """The part with other weights; the one it was made of keeps its own."""
    module = deepcopy(part.module)
    for linear in list(_linears(module, bits)):
        _round_to_int8(linear) if bits == 8 else _round_to_int4(linear)
    return replace(part, module=module)


def _linears(module: nn.Module, bits: int) -> Iterator[nn.Linear]:
    """Layers that are no more than a product: a subclass may read its weights in ways of its own."""
    for one in module.modules():
        if type(one) is nn.Linear and (bits == 8 or _block(one) >= _MIN_BLOCK):
            yield one


def _block(linear: nn.Linear) -> int:
    return math.gcd(linear.in_features, _BLOCK)


def _round_to_int8(linear: nn.Linear) -> None:
    quantization, utils = _torchao()
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig(set_inductor_config=False))
    utils.unwrap_tensor_subclass(nn.Sequential(linear))  # looks at the children of what it is given


def _round_to_int4(linear: nn.Linear) -> None:
    quantization, _ = _torchao()
    blocks = quantization.PerGroup(_block(linear))
    config = quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        granularity=blocks,
        mapping_type=quantization.MappingType.ASYMMETRIC,
    )
    quantization.quantize_(linear, config)
    parametrize.register_parametrization(linear, "weight", _TwoInAByte())


class _TwoInAByte(nn.Module):
    """Weights of torchao's 4 bits, which has a byte for each: the second half of a row beside the first."""

    def right_inverse(self, weight: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers from -8 to 7 [O, I] to bytes [O, I / 2]; scales and zeros [O, I / block] as they are."""
        first, second = (weight.qdata + 8).to(torch.uint8).chunk(2, dim=1)
        return first | second << 4, weight.scale, weight.zero_point

    def forward(self, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Weights [O, I] float32."""
        numbers = torch.cat((packed & 15, packed >> 4), dim=1).to(torch.int8) - 8
        blocks = numbers.view(*scale.shape, -1) - zero.unsqueeze(-1)  # [O, I / block, block], -15 to 15
        return (blocks * scale.unsqueeze(-1)).flatten(1)


def _torchao() -> tuple[Any, Any]:
    """Quantisation and utilities of torchao. Raises ArtifactError if it is not installed."""
    try:
        with _quiet():
            from torchao import quantization, utils
    except ImportError as error:
        raise ArtifactError("torchao rounds the weights and is not installed; install the extra quantized") from error
    return quantization, utils


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torchao lacks on a CPU, and remarks on its own source, from the user."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
