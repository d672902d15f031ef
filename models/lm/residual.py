"""Residual forms: which stream each module of a layer reads, and when what it adds arrives there.

Ladder Residual is arXiv 2501.06589, section 3; the parallel block PaLM's (arXiv 2204.02311, section 2). Desync is in
the first version of the former and in the code released with it. Knows how wide a form makes what a visit hands the
next, and where in it the stream lies; computes nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from models.chain import Chain
from models.errors import ArtifactError, FathomError

Form: TypeAlias = Literal["standard", "parallel", "ladder", "desync", "upper-bound"]
OnSkip: TypeAlias = Literal["executed", "slot"]

_LADDER = re.compile(r"ladder(\(slot\))?(?::([0-9,-]+))?")
_DESYNC = re.compile(r"desync-([0-9]{1,4})x@([0-9]{1,4})")
# Indices that a stream of bfloat16 tells apart: under the rule "slot" every visit hands on which layer it was.
_MAX_SLOT_LAYERS = 256


@dataclass(frozen=True, slots=True)
class Residual:
    """How the outputs of attention and MLP reach the stream. A form is part of a trained model, never a switch.

    standard: every module reads all that came before it. parallel: attention and MLP read the same stream, through one
    norm. ladder: every module misses the output of the module executed just before it. desync: the ranks of tensor
    parallelism have streams of their own, made equal by the all-reduce of every `period`-th module executed, and of the
    last one. upper-bound: nothing is ever made equal; good for timing only.

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
    def text(self) -> str:
        """The whole form in one word, `parse_form`'s inverse: ladder, ladder:16-31, ladder(slot):3, desync-2x@4."""
        if self.form == "ladder":
            rule = "(slot)" if self.on_skip == "slot" else ""
            return f"ladder{rule}" + (f":{Chain(self.layers).format()}" if self.layers is not None else "")
        return f"desync-{self.period}x@{self.num_ranks}" if self.form == "desync" else self.form

    @property
    def has_pending(self) -> bool:
        """Whether a visit hands on the output of its MLP beside the stream that lacks it."""
        return self.form == "ladder"

    @property
    def has_slots(self) -> bool:
        """Whether a visit has to know which layer was visited before it."""
        return self.form == "ladder" and self.on_skip == "slot"

    @property
    def has_streams(self) -> bool:
        """Whether there is a stream for each rank."""
        return self.form == "desync" and self.num_ranks > 1

    @property
    def can_answer(self) -> bool:
        """Whether what comes out is what the weights were trained for."""
        return self.is_trained and self.form != "upper-bound"

    def is_ladder(self, layer: int) -> bool:
        """Whether a layer's modules miss the output of the module before."""
        return self.form == "ladder" and (self.layers is None or layer in self.layers)

    def width(self, size: int) -> int:
        """Numbers a token that one visit hands the next, where the stream has `size`.

        Ladder [.., 2 D]: the stream without the last MLP's output, and that output; under the rule "slot" also the
        layer visited last. Desync [.., P D + D + 1]: the ranks' streams, what they would be if they were made equal
        now, and the visits since they were.
        """
        if self.has_streams:
            return (self.num_ranks + 1) * size + 1
        return (2 * size if self.has_pending else size) + (1 if self.has_slots else 0)

    def landed(self, hidden: Any) -> Any:
        """The stream [..., D] in what a visit hands the next [..., `width`], nothing pending: numpy's or torch's."""
        if self.has_streams:
            size = hidden.shape[-1] // (self.num_ranks + 1)
            return hidden[..., self.num_ranks * size : -1]
        if self.has_pending:
            size = hidden.shape[-1] // 2
            return hidden[..., :size] + hidden[..., size : 2 * size]
        return hidden

    def said(self) -> dict[str, Any]:
        """What a config.json says under "residual"."""
        return asdict(self)


def parse_form(text: str) -> Residual:
    """The form with that `text`. Raises ArtifactError."""
    if text in ("standard", "parallel", "upper-bound"):
        return Residual(text)  # type: ignore[arg-type]
    if found := _LADDER.fullmatch(text):
        layers = None if found[2] is None else _listed(text, found[2])
        return _checked(Residual("ladder", layers, "slot" if found[1] else "executed"), repr(text))
    if found := _DESYNC.fullmatch(text):
        return _checked(Residual("desync", period=int(found[1]), num_ranks=int(found[2])), repr(text))
    raise ArtifactError(
        f"{text!r} is no residual form; there are standard, parallel, ladder, hybrids such as ladder:16-31, "
        "ladder(slot), desync-2x@4 for 4 ranks, upper-bound"
    )


def read_residual(said: Mapping[str, Any] | None, num_layers: int) -> Residual:
    """The form that a config.json says under "residual"; standard where it says nothing. Raises ArtifactError."""
    where = f"config.json says residual = {said!r}:"
    try:
        fields = dict(said or {})
        layers = fields.pop("layers", None)
        read = Residual(layers=None if layers is None else tuple(layers), **fields)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where} {error}") from error
    _check_kinds(read, where)
    return checked_for(_checked(read, where), num_layers)


def checked_for(residual: Residual, num_layers: int) -> Residual:
    """The form of a model of `num_layers`; a hybrid of all layers is none. Raises ArtifactError."""
    if residual.has_slots and num_layers > _MAX_SLOT_LAYERS:
        raise ArtifactError(f"{residual.text} is for at most {_MAX_SLOT_LAYERS} layers; the model has {num_layers}")
    if residual.layers is None:
        return residual
    if residual.layers[-1] >= num_layers:
        raise ArtifactError(
            f"{residual.text} names layer {residual.layers[-1]}; the model has layers 0 to {num_layers - 1}"
        )
    is_all = len(residual.layers) == num_layers
    return Residual("ladder", None, residual.on_skip, is_trained=residual.is_trained) if is_all else residual


def _listed(text: str, layers: str) -> tuple[int, ...]:
    try:
        return Chain.parse(layers).layers
    except FathomError as error:
        raise ArtifactError(f"{text!r} is no residual form: {error}") from error


def _check_kinds(read: Residual, where: str) -> None:
    """Raise ArtifactError for values of another kind than the fields have."""
    if read.form not in get_args(Form) or read.on_skip not in get_args(OnSkip):
        raise ArtifactError(f"{where} forms are {get_args(Form)}, on_skip is one of {get_args(OnSkip)}")
    if type(read.is_trained) is not bool:
        raise ArtifactError(f"{where} is_trained must be true or false")
    if any(type(number) is not int for number in (read.period, read.num_ranks, *(read.layers or ()))):
        raise ArtifactError(f"{where} period, num_ranks and layers must be whole numbers")


def _checked(read: Residual, where: str) -> Residual:
    """The form itself. Raises ArtifactError if it says what means nothing."""
    layers = read.layers
    if layers is not None and (not layers or list(layers) != sorted(set(layers)) or layers[0] < 0):
        raise ArtifactError(f"{where} layers must be one or more, each once, in order; leave them out for all")
    if read.period < 2 or read.period % 2 or read.num_ranks < 1:
        raise ArtifactError(f"{where} the period must be even, from 2 on, and the ranks 1 or more")
    plain = Residual()
    has_layers = layers is not None or read.on_skip != plain.on_skip
    has_ranks = (read.period, read.num_ranks) != (plain.period, plain.num_ranks)
    if (has_layers and read.form != "ladder") or (has_ranks and read.form != "desync"):
        raise ArtifactError(f"{where} layers and on_skip are ladder's, period and num_ranks are desync's")
    return read
