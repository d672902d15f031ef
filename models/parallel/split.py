"""What each rank has of a decoder's parameters: one table, and the heads, neurons and words it deals out.

A projection is split by its outputs or by its inputs (columns and rows of Megatron-LM, arXiv 1909.08053, section 3): of
a torch weight these are dimensions 0 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from models.errors import BackendError
from models.lm.config import LMConfig
from models.shards import Cut

Side: TypeAlias = Literal["outputs", "inputs", "both-outputs"]
Unit: TypeAlias = Literal["words", "heads", "kv-heads", "neurons"]

# Of the modules of a decoder, which side is dealt out and in what; what is not here, every rank has whole.
#
# Experts are split inside: a rank has some neurons of each. So all ranks are as busy as each other whatever the router
# likes, and what they add up is one tensor as after an MLP; with whole experts a decode step would wait for the rank
# that has the favourites. The price is thin matrices.
RULES: Mapping[str, tuple[Side, Unit]] = {
    "embed_tokens": ("outputs", "words"),
    "lm_head": ("outputs", "words"),
    "q_proj": ("outputs", "heads"),
    "k_proj": ("outputs", "kv-heads"),
    "v_proj": ("outputs", "kv-heads"),
    "o_proj": ("inputs", "heads"),
    "q_norm": ("outputs", "heads"),
    "k_norm": ("outputs", "kv-heads"),
    "gate_proj": ("outputs", "neurons"),
    "up_proj": ("outputs", "neurons"),
    "gate_up_proj": ("both-outputs", "neurons"),
    "down_proj": ("inputs", "neurons"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A rank among `size`."""

    rank: int
    size: int

    def deal(self, count: int) -> tuple[int, int]:
        """This rank's share of `count` things, from start to stop: as even as they go."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def words(self, count: int) -> tuple[int, int]:
        """This rank's rows of a vocabulary: equal shares, of which the last ones may be short or empty."""
        each = self.most_words(count)
        return min(self.rank * each, count), min((self.rank + 1) * each, count)

    def most_words(self, count: int) -> int:
        """Rows of the largest share of a vocabulary."""
        return -(-count // self.size)

    def kv_heads(self, count: int) -> tuple[int, int]:
        """This rank's keys and values, which it may share with its neighbours."""
        if count >= self.size:
            return self.deal(count)
        head = self.rank * count // self.size
        return head, head + 1


def cut_of(name: str, shape: tuple[int, ...], config: LMConfig, place: Place) -> Cut | None:
    """What a rank reads of the parameter `name` of this whole shape: None for all of it; without runs for nothing."""
    path = name.split(".")
    module = next((part for part in path if part in RULES), None)
    if module is None or (module in ("q_norm", "k_norm") and config.qk_norm == "head"):
        return None
    side, unit = RULES[module]
    if side == "inputs":
        return _of_inputs(path, shape, config, place, unit)
    if path[-2] == "first":  # into the thin middle, which every rank computes whole
        return None
    if side == "both-outputs":
        half = shape[1] // 2
        start, stop = place.deal(half)
        return Cut(1, ((start, stop), (half + start, half + stop)))
    return Cut(0, (_run(shape[0], config, place, unit),))


def bias_share(name: str, config: LMConfig, place: Place) -> float:
    """The part of a parameter that each rank adds to its own stream: of a projection's bias, where that is desync."""
    is_added_up = any(part in RULES and RULES[part][0] == "inputs" for part in name.split("."))
    return 1 / place.size if config.residual.has_streams and is_added_up and name.endswith("bias") else 1.0


def _of_inputs(path: list[str], shape: tuple[int, ...], config: LMConfig, place: Place, unit: Unit) -> Cut | None:
    """Of a projection whose outputs are added up: its inputs' weights; its bias on one rank, to be added once.

    Of desync every rank has a part of the bias (`bias_share`).
    """
    if path[-1] == "bias":
        return None if place.rank == 0 or config.residual.has_streams else Cut(0, ())
    if path[-2] == "second":
        return None
    last = len(shape) - 1
    return Cut(last, (_run(shape[last], config, place, unit),))


def _run(size: int, config: LMConfig, place: Place, unit: Unit) -> tuple[int, int]:
    if unit == "words":
        return place.words(size)
    if unit == "neurons":
        return place.deal(size)
    count = size // config.head_size
    start, stop = place.kv_heads(count) if unit == "kv-heads" else place.deal(count)
    return start * config.head_size, stop * config.head_size


def local_config(config: LMConfig, place: Place) -> LMConfig:
    """What attention on one rank is configured as: its own heads. Raises BackendError if they cannot be dealt out."""
    refuse(config, place.size)
    start, stop = place.kv_heads(config.num_key_value_heads)
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // place.size,
        num_key_value_heads=stop - start,
        head_dim=config.head_size,
    )


def refuse(config: LMConfig, size: int) -> None:
    """Raise BackendError if this model cannot be spread over so many ranks."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % size:
        raise BackendError(
            f"{size} ranks do not divide the model's {heads} attention heads; "
            f"use one of {[count for count in range(1, heads + 1) if _fits(heads, kv_heads, count)]}"
        )
    if kv_heads % size and size % kv_heads:
        raise BackendError(
            f"{size} ranks and the model's {kv_heads} heads of keys and values do not divide each other; "
            f"use one of {[one for one in range(1, heads + 1) if _fits(heads, kv_heads, one)]}"
        )
    if config.residual.has_streams and config.residual.num_ranks != size:
        raise BackendError(
            f"the model's residual form {config.residual.text} is a function of its {config.residual.num_ranks} ranks "
            f"and {size} were asked for; use {config.residual.num_ranks}"
        )
    if config.activation == "poly_norm" and size > 1:
        raise BackendError(
            f"activation 'poly_norm' norms all neurons of a token together and is not computed on {size} ranks; use 1"
        )
    if config.qk_norm == "all" and config.norm != "rms" and size > 1:
        raise BackendError(
            f"queries and keys normed over all heads by {config.norm!r} are not computed on {size} ranks; use 1"
        )


def _fits(heads: int, kv_heads: int, size: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
