"""What a step of a recurrent model costs after a long context, and what chunks save over a loop.

Measured, in eager torch on one thread, one sequence: a step of GLA, Aaren and LSSL (shipped sizes, random weights)
after 1,024 and after 16,384 steps, in alternation, and the bytes of state it carries; and gated linear attention over
4,096 steps as a loop, and in chunks. Medians. Left out: the runtimes that serve exported graphs, and batches. A step
that is more than 10 % dearer after sixteen times the context would mean that something grows; chunks less than 5
times as fast as the loop, that the parallel form is not worth its code.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from report import report
from torch import Tensor

from models.layered import SequenceStack
from models.recurrent.aaren import Aaren, AarenConfig
from models.recurrent.gla import GLA, GLAConfig, chunked, recurrent
from models.recurrent.lssl import LSSL, LSSLConfig

CONTEXTS, ROUNDS, STEPS = (1_024, 16_384), 60, 20
TOKENS, CHUNK = 4_096, 8

States = list[tuple[Tensor, ...]]


def walk(model: SequenceStack, steps: Tensor, states: States) -> States:
    """The states of all layers after some steps [1, T, F]."""
    for piece in steps.split(model.max_chunk, dim=1):
        hidden, after = model.embed(piece), []
        for layer, state in zip(model.layers, states, strict=True):
            hidden, *new = layer(hidden, *state)
            after.append(tuple(new))
        model.head(hidden)
        states = after
    return states


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def after_contexts(model: SequenceStack) -> list[dict[str, object]]:
    """One row for each context."""
    steps = 16 * torch.rand(1, max(CONTEXTS), 1, generator=torch.Generator().manual_seed(0))
    states, reached = [model.empty_state(1) for _ in model.layers], []
    for first, last in pairwise((0, *CONTEXTS)):
        states = walk(model, steps[:, first:last], states)
        reached.append(states)
    single = steps[:, :1]

    def some(states: States) -> None:
        for _ in range(STEPS):
            states = walk(model, single, states)

    times: list[list[float]] = [[] for _ in CONTEXTS]
    for _ in range(ROUNDS):
        for found, states in zip(times, reached, strict=True):
            found.append(seconds(lambda states=states: some(states)) / STEPS)  # type: ignore[misc]
    medians = [statistics.median(found) for found in times]
    return [
        {
            "what": f"{type(model).__name__}, a step after {context}",
            "ms": 1000 * median,
            "ratio": median / medians[0],
            "state, bytes": sum(tensor.nbytes for state in states for tensor in state),
        }
        for context, median, states in zip(CONTEXTS, medians, reached, strict=True)
    ]


def forms() -> list[dict[str, object]]:
    """Gated linear attention of one layer, as a loop and in chunks."""
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 4, TOKENS, 4), (1, 4, TOKENS, 4), (1, 4, TOKENS, 8), (1, 4, TOKENS, 4))
    q, k, v, gates = (torch.randn(*shape, generator=random) for shape in shapes)
    log_decay, empty = torch.nn.functional.logsigmoid(gates) / 16, torch.zeros(1, 4, 4, 8)
    wanted, found = recurrent(q, k, v, log_decay, empty)[0], chunked(q, k, v, log_decay, empty, CHUNK)[0]
    assert torch.allclose(wanted, found, atol=1e-4), float((wanted - found).abs().max())
    loop, chunks = [], []
    for _ in range(ROUNDS // 5):
        loop.append(seconds(lambda: recurrent(q, k, v, log_decay, empty)))
        chunks.append(seconds(lambda: chunked(q, k, v, log_decay, empty, CHUNK)))
    slow, fast = statistics.median(loop), statistics.median(chunks)
    return [
        {"what": f"loop over {TOKENS} steps", "ms": 1000 * slow, "times as fast": 1.0},
        {"what": f"chunks of {CHUNK}", "ms": 1000 * fast, "times as fast": slow / fast},
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models: tuple[SequenceStack, ...] = (GLA(GLAConfig()), Aaren(AarenConfig()), LSSL(LSSLConfig()))
    with torch.inference_mode():
        rows = [row for model in models for row in after_contexts(model.eval())]
        report("A step after a context", rows, rounds=ROUNDS)
        report("Gated linear attention over many steps", forms())
