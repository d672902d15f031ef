"""One ONNX graph that runs any chain: the chain is an input, and every visit takes its layer's weights from a stack.

For other runtimes than ours, which runs chains part by part. Keys and values of a language model go in and come out
stacked by visit. The loop is an ONNX Scan, so that a chain may have any length.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from exporters import onnx as parts_onnx
from exporters.parts import Part, Parts, Port, Run, Tensors, as_tuple
from exporters.verify import Case, cases, largest
from models.artifact import Difference
from models.errors import ArtifactError

NAME = f"scan{parts_onnx.SUFFIX}"
# Longest first, so that no exporter takes the number of visits for another axis; loops, skips and another order.
_EXAMPLE = (0, 1, 1, 0, 1, 0, 0)


class AnyChain(nn.Module):
    """Embed, the layers of a chain one after the other, head."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.embed, self.layer, self.head = parts.embed.module, parts.layers[0].module, parts.head.module
        self.is_cached, self.num_kept = parts.cached, parts.num_kept
        self.names = [name for name, _ in self.layer.named_parameters()]
        stacks = (
            torch.stack([part.module.get_parameter(name).detach() for part in parts.layers]) for name in self.names
        )
        self.stacks = nn.ParameterList(nn.Parameter(stack, requires_grad=False) for stack in stacks)  # [L, ...]

    def forward(self, *inputs: Tensor) -> Tensors:
        """Inputs of the whole graph, with keys and values [V, B, G, P, K] or states [V, B, ...], then chain [V] int64.

        Returns the outputs of the whole graph, new keys and values [V, B, G, S, K] or states.
        """
        from torch._higher_order_ops.scan import scan

        *first, chain = inputs
        plain, past = _cut(tuple(first), self.num_kept)
        columns = (torch.arange(past[0].shape[3], device=past[0].device),) if self.is_cached else ()
        hidden, *shared = as_tuple(self.embed(*plain, *columns))

        def visit(hidden: Tensor, visited: Tensors) -> tuple[Tensor, Tensors]:
            layer, *own = visited
            weights = {
                name: stack.index_select(0, layer.view(1)).squeeze(0)
                for name, stack in zip(self.names, self.stacks, strict=True)
            }
            after, *new = as_tuple(functional_call(self.layer, weights, (hidden, *shared, *own)))
            # A scan's outputs must be tensors of their own, and there must be one.
            return after.clone(), tuple(tensor.clone() for tensor in new) or (layer.clone(),)

        hidden, new = scan(visit, hidden, (chain, *past))
        return (*as_tuple(self.head(hidden)), *(new if past else ()))


def write(parts: Parts, folder: Path) -> Iterator[str]:
    """Write the graph into `folder`, yielding its name.

    Raises ArtifactError if the layers differ in more than their weights, or the exporter cannot write the loop.
    """
    if not parts.layers:
        raise ArtifactError("a network without layers has no chain; export it as onnx")
    if parts.text_sizes:
        raise ArtifactError("layers of an encoder are told what is padding, which no loop here does; export it as onnx")
    _check_alike(parts)
    part = _part(parts)
    yield parts_onnx.save(parts_onnx.convert(part), folder / NAME)


def load(folder: Path) -> Run:
    """The graph as a callable. Raises the runtime's own errors."""
    return parts_onnx.open_run(folder / NAME)


def verify(run: Run, parts: Parts, tolerance: float) -> tuple[Difference, ...]:
    """Largest differences to the plain loop along several chains, for each size.

    Raises ArtifactError naming chain and size beyond `tolerance`.
    """
    measured: dict[tuple[int, int], float] = {}
    for case in cases(parts):
        for chain in _chains(len(parts.layers)):
            size = case.batch, case.length
            found = _difference(run, parts, case, chain)
            if not found <= tolerance:  # written so that NaN fails
                raise ArtifactError(f"{NAME} differs from eager torch by {found:.3g} along {chain} at {size}")
            measured[size] = max(measured.get(size, 0.0), found)
    return tuple(Difference(batch=b, length=s, max_abs=found) for (b, s), found in measured.items())


def _chains(num_layers: int) -> tuple[tuple[int, ...], ...]:
    last = num_layers - 1
    return tuple(range(num_layers)), (last,), (last, 0, 0, last), tuple(range(num_layers)) * 2


def _difference(run: Run, parts: Parts, case: Case, chain: tuple[int, ...]) -> float:
    pasts = [case.past[layer] for layer in chain]
    stacked = tuple(torch.stack(tensors) for tensors in zip(*pasts, strict=True))
    plain = case.whole[: len(case.whole) - len(stacked)]
    got = run(*plain, *stacked, torch.tensor(chain))[0]
    hidden, *shared = parts.embed(*case.first)
    for layer, past in zip(chain, pasts, strict=True):
        hidden, *_ = parts.layers[layer](hidden, *shared, *past)
    return largest(got.double() - parts.head(hidden)[0].double())


def _part(parts: Parts) -> Part:
    visits = len(_EXAMPLE)
    plain, past = _cut(parts.whole.inputs, parts.num_kept)
    outputs, new = _cut(parts.whole.outputs, parts.num_kept)
    examples, cached = _cut(parts.whole.examples, parts.num_kept)
    chain = torch.tensor([layer % len(parts.layers) for layer in _EXAMPLE])
    taken = tuple(tensor[torch.arange(visits) % len(tensor)] for tensor in cached)
    return Part(
        "scan",
        AnyChain(parts).eval(),
        (*plain, *(_by_visit(port) for port in past), Port("chain", ("visits",), "INT64")),
        (*outputs, *(_by_visit(port) for port in new)),
        (*examples, *taken, chain),
    )


def _cut(row: tuple, count: int) -> tuple[tuple, tuple]:  # type: ignore[type-arg]
    """All but the last `count`, and these."""
    return row[: len(row) - count], row[len(row) - count :]


def _by_visit(port: Port) -> Port:
    return Port(port.name, ("visits", *port.dims[1:]), port.datatype)


def _check_alike(parts: Parts) -> None:
    """Every layer must be the first one with other weights."""
    first = parts.layers[0]
    for part in parts.layers[1:]:
        weights: dict[str, Tensor] = dict(part.module.named_parameters())
        try:
            with torch.no_grad():
                outputs = as_tuple(functional_call(first.module, weights, part.examples))
            is_alike = weights.keys() == dict(first.module.named_parameters()).keys()
        except RuntimeError:  # other shapes
            is_alike = False
        if not is_alike or not all(torch.equal(a, b) for a, b in zip(outputs, part(*part.examples), strict=True)):
            raise ArtifactError(f"{part.name} differs from {first.name} in more than its weights; export it as onnx")
