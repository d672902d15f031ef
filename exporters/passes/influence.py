"""How much each layer, and each half of one, changes the residual stream: what is changed least is missed least."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.samples import Sample
from models.errors import InputError
from models.layered import LayeredModel
from models.lm.block import DesyncLayer, Layer
from models.lm.model import LanguageModel

Unit: TypeAlias = Literal["layer", "attention", "mlp"]


def influence(model: LayeredModel, samples: Iterable[Sample], unit: Unit = "layer") -> list[float]:
    """Per layer, one minus the mean cosine of what the stream is before and after it, over all tokens.

    Of whole layers ShortGPT's block influence (arXiv 2403.03853, section 3.1); of a layer's attention or MLP LLM-Drop's
    (arXiv 2406.15786, section 3.1). Raises InputError for a half of layers that have none.
    """
    if unit != "layer" and not isinstance(model, LanguageModel):
        raise InputError(f"layers of {type(model).__name__} have no {unit} of their own; drop whole layers")
    similar: defaultdict[int, list[Tensor]] = defaultdict(list)
    with _watched(model, unit, similar), torch.inference_mode():
        for sample in samples:
            model(sample.inputs)
    return [1.0 - float(torch.cat(similar[layer]).mean()) for layer in range(len(model.layers))]


@contextmanager
def _watched(model: LayeredModel, unit: Unit, similar: Mapping[int, list[Tensor]]) -> Iterator[None]:
    landed = model.config.residual.landed if isinstance(model, LanguageModel) else _unchanged
    handles = [_watch(layer, unit, similar[i], landed) for i, layer in enumerate(model.layers)]
    try:
        yield
    finally:
        for handle in (handle for several in handles for handle in several):
            handle.remove()


def _watch(layer: nn.Module, unit: Unit, similar: list[Tensor], landed: Callable[[Tensor], Tensor]) -> list[Any]:
    """Hooks that note the cosine of every token's stream before and after, nothing of it pending."""

    def whole(_: nn.Module, inputs: Any, found: Any) -> None:
        similar.append(_cosine(landed(inputs[0]), landed(_first(found))))

    if unit == "layer":
        return [layer.register_forward_hook(whole)]
    if isinstance(layer, DesyncLayer):
        raise InputError(f"each rank of a desync model has a stream of its own, none has an {unit} alone; drop layers")
    assert isinstance(layer, Layer)
    stream: dict[str, Tensor] = {}

    def begin(_: nn.Module, inputs: Any) -> None:
        stream["before"] = landed(inputs[0])

    def attended(_: nn.Module, inputs: Any, added: Tensor) -> None:
        if unit == "attention":
            similar.append(_cosine(stream["before"], stream["before"] + added))
        elif not layer.is_parallel:
            stream["before"] = stream["before"] + added

    def thought(_: nn.Module, inputs: Any, added: Tensor) -> None:
        if unit == "mlp":
            similar.append(_cosine(stream["before"], stream["before"] + added))

    hooks = [
        layer.attention_out_norm.register_forward_hook(attended),
        layer.mlp_out_norm.register_forward_hook(thought),
    ]
    return [layer.register_forward_pre_hook(begin), *hooks]


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """[..., D] twice -> one number for each token"""
    return F.cosine_similarity(before.float(), after.float(), dim=-1).flatten()


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


def _first(outputs: Any) -> Tensor:
    first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return first
