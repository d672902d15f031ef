"""Residual forms: which stream each module of a layer reads, and when what it adds arrives there.

Ladder Residual is arXiv 2501.06589, section 3; the parallel block PaLM's (arXiv 2204.02311, section 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from models.errors import ArtifactError

Form: TypeAlias = Literal["standard", "parallel", "ladder", "desync", "upper-bound"]
OnSkip: TypeAlias = Literal["executed", "slot"]


@dataclass(frozen=True, slots=True)
class Residual:
    """How the outputs of attention and MLP reach the stream. A form is part of a trained model, never a switch.

    standard: every module reads all that came before it. parallel: attention and MLP read the same stream, through one
    norm. ladder: every module misses the output of the module executed just before it. desync: the ranks of tensor
    parallelism have streams of their own, made equal by every `period`-th all-reduce. upper-bound: nothing is ever
    made equal; good for timing only.

    layers: the ladder layers of a hybrid, whose others are standard; None are all. on_skip: whether what is missed is
    the output of the module executed before ("executed"), or arrives while a layer is skipped ("slot").
    num_ranks: streams of desync. is_trained: whether the weights were trained in this form.
    """

    form: Form = "standard"
    layers: tuple[int, ...] | None = None
    on_skip: OnSkip = "executed"
    period: int = 2
    num_ranks: int = 1
    is_trained: bool = True

    @property
    def has_pending(self) -> bool:
        """Whether a visit hands on the output of its MLP beside the stream: hidden is [B, S, 2 D] then."""
        return self.form == "ladder"

    def is_ladder(self, layer: int) -> bool:
        """Whether a layer's modules miss the output of the module before."""
        return self.form == "ladder" and (self.layers is None or layer in self.layers)


def read_residual(said: Mapping[str, Any] | None) -> Residual:
    """The form that a config.json says under "residual"; standard where it says nothing. Raises ArtifactError."""
    try:
        fields = dict(said or {})
        layers = fields.pop("layers", None)
        return Residual(layers=None if layers is None else tuple(layers), **fields)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"config.json says residual = {said!r}: {error}") from error
