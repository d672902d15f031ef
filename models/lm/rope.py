"""Rotary positions: the angle by which each pair of a head turns per position, and how checkpoints stretch it.

Transformers' names and formulas, so that its checkpoints mean here what they mean there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from models.errors import ArtifactError

Raw: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rope:
    """Base, part of the head that turns, and the scaling: its name and numbers, as (name, value) pairs.

    RoFormer, arXiv 2104.09864.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str = "default"
    numbers: tuple[tuple[str, Any], ...] = ()

    def size(self, head_size: int) -> int:
        """Numbers of a head that turn."""
        return int(head_size * self.fraction)


def read_rope(raw: Raw, theta: float = 10_000.0, fraction: float = 1.0) -> Rope:
    """What a config.json says, in either of transformers' forms. Raises ArtifactError for a scaling not known here."""
    said = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    scaling = said.pop("rope_type", None) or said.pop("type", None) or "default"
    said.pop("type", None)
    theta = said.pop("rope_theta", None) or raw.get("rope_theta") or theta
    fraction = said.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor") or fraction
    original = raw.get("original_max_position_embeddings") or raw["max_position_embeddings"]
    said.setdefault("original_max_position_embeddings", original)
    if scaling == "su":
        scaling = "longrope"  # its name in the first release of Phi-3
    if scaling not in _FREQUENCIES:
        raise ArtifactError(f"config.json says rope_type = {scaling!r}; known are {sorted(_FREQUENCIES)}")
    said["max_position_embeddings"] = raw["max_position_embeddings"]
    is_plain = scaling == "default"
    numbers = () if is_plain else tuple(sorted((name, _frozen(value)) for name, value in said.items()))
    return Rope(float(theta), float(fraction), scaling, numbers)


def max_positions(rope: Rope, configured: int) -> int:
    """Tokens up to which one set of frequencies is right.

    `dynamic` and `longrope` change them once a sequence outgrows the length it was trained on, for its cached keys,
    too: up to that length they are exact, and no further is served.
    """
    if rope.scaling == "longrope":
        return min(configured, int(dict(rope.numbers)["original_max_position_embeddings"]))
    return configured


def frequencies(rope: Rope, head_size: int) -> tuple[Tensor, float]:
    """Angles per position [R / 2] float32, R numbers of a head turning, and the factor of cosine and sine.

    Raises ArtifactError for a scaling that lacks one of its numbers.
    """
    size = rope.size(head_size)
    # The device is named because a model is built on the meta device, where nothing has a value.
    exponent = torch.arange(0, size, 2, dtype=torch.int64, device="cpu").float() / size
    try:
        return _FREQUENCIES[rope.scaling](rope, 1.0 / rope.theta**exponent, dict(rope.numbers))
    except KeyError as error:
        raise ArtifactError(f"config.json says rope_type = {rope.scaling!r} without {error}; add it") from error


def _unscaled(rope: Rope, plain: Tensor, numbers: Raw) -> tuple[Tensor, float]:
    return plain, 1.0


def _linear(rope: Rope, plain: Tensor, numbers: Raw) -> tuple[Tensor, float]:
    """Position interpolation (arXiv 2306.15595)."""
    return plain / numbers["factor"], 1.0


def _llama3(rope: Rope, plain: Tensor, numbers: Raw) -> tuple[Tensor, float]:
    """Llama 3.1: long waves slowed by the factor, short ones left, smooth between (arXiv 2407.21783, section 3.4)."""
    factor, low, high = numbers["factor"], numbers["low_freq_factor"], numbers["high_freq_factor"]
    length = numbers["original_max_position_embeddings"]
    waves = 2 * math.pi / plain
    smooth = ((length / waves - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * plain / factor + smooth * plain, 1.0


def _yarn(rope: Rope, plain: Tensor, numbers: Raw) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071, section 3.2): a ramp between interpolated and plain frequencies, and a temperature."""
    size = 2 * len(plain)
    length = numbers["original_max_position_embeddings"]
    factor = numbers.get("factor") or numbers["max_position_embeddings"] / length

    def turning(turns: float) -> float:
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = turning(numbers.get("beta_fast") or 32), turning(numbers.get("beta_slow") or 1)
    if numbers.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(len(plain), device="cpu").float() - low) / width).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_temperature(factor, numbers)


def _yarn_temperature(factor: float, numbers: Raw) -> float:
    if numbers.get("attention_factor") is not None:
        return float(numbers["attention_factor"])
    if numbers.get("mscale") and numbers.get("mscale_all_dim"):
        return _mscale(factor, numbers["mscale"]) / _mscale(factor, numbers["mscale_all_dim"])
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(rope: Rope, plain: Tensor, numbers: Raw) -> tuple[Tensor, float]:
    """LongRoPE (arXiv 2402.13753), with the factors of sequences up to the original length."""
    length = numbers["original_max_position_embeddings"]
    factor = numbers.get("factor") or numbers["max_position_embeddings"] / length
    temperature = numbers.get("attention_factor")
    if temperature is None:
        temperature = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    return plain / torch.tensor(numbers["short_factor"], device="cpu"), float(temperature)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_FREQUENCIES: Mapping[str, Callable[[Rope, Tensor, Raw], tuple[Tensor, float]]] = {
    "default": _unscaled,
    "linear": _linear,
    "dynamic": _unscaled,  # it scales nothing up to the length that is served
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
