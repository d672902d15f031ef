"""One pass of a sharded model under one load, and what its parts took. Knows no form and no process."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from models.parallel.model import ShardedModel
from models.parallel.recorded import Recorded
from models.parallel.timeline import Module
from models.parallel.trial import Device, Phase


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a pass: all of it, its attentions, its MLPs, and standing in waits; the embedding's is not counted.

    On a GPU the first three are the device's, and the last says nothing.
    """

    total_s: float
    attention_s: float
    mlp_s: float
    exposed_s: float
    num_all_reduces: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Seconds of one all-reduce by itself, and what is left of it for compute if it is done when it is waited for.

    On a GPU that is otherwise idle the latter is the time of the calls, more than what a busy one loses.
    """

    all_reduce_s: float
    overhead_s: float


class Stopwatch:
    """Moments as the device comes by them."""

    def __init__(self, device: Device) -> None:
        self._is_cuda = device == "cuda"
        self._moments: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        if self._is_cuda:
            self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._events[-1].record()
        else:
            self._moments.append(time.perf_counter())

    def take(self) -> list[float]:
        """Seconds between each mark and the next; none are left."""
        if self._is_cuda:
            torch.cuda.synchronize()
            first = self._events[0]
            self._moments = [first.elapsed_time(event) / 1000 for event in self._events]
        spans = [later - sooner for sooner, later in zip(self._moments, self._moments[1:], strict=False)]
        self._moments, self._events = [], []
        return spans


class Watched:
    """A model whose modules tell when they begin, and sleep once they are done if they are to take longer.

    least_s: what attention and the MLP are to take at least. Asleep they leave the core to others, as they would if
    they computed elsewhere.
    """

    def __init__(
        self, model: ShardedModel, group: Recorded, device: Device, least_s: tuple[float, float] | None
    ) -> None:
        self.model, self.group, self.watch = model, group, Stopwatch(device)
        attention_s, mlp_s = least_s or (0.0, 0.0)
        for layer in model.layers:
            self._watch(layer.get_submodule("self_attn"), "attention", attention_s)
            self._watch(layer.get_submodule("mlp"), "mlp", mlp_s)

    def _watch(self, module: nn.Module, name: Module, least_s: float) -> None:
        end = 0.0

        def begin(*_: object) -> None:
            nonlocal end
            end = time.monotonic() + least_s
            self.watch.mark()
            self.group.ran(name)

        def rest(*_: object) -> None:
            time.sleep(max(0.0, end - time.monotonic()))

        module.register_forward_pre_hook(begin)
        if least_s:
            module.register_forward_hook(rest)


class Pass:
    """Prefill of `tokens` for each row, or the decode step behind them, over the full chain."""

    def __init__(self, watched: Watched, phase: Phase, rows: int, tokens: int) -> None:
        self._watched = watched
        model = watched.model
        weight = model.embed.embed_tokens.weight
        new, cached = (tokens, 0) if phase == "prefill" else (1, tokens)
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (rows, new), generator=random)
        self._token_ids = ids.to(weight.device)  # [B, S], the same on every rank
        self._starts = self._token_ids.new_full((rows,), cached)
        self._columns = torch.arange(cached, device=weight.device)
        empty = model.empty_cache(rows)  # [B, G, 0, K]
        self._past = empty.new_zeros(*empty.shape[:2], cached, empty.shape[3])  # every layer's
        self._last = torch.arange(rows)[:, None], torch.full((rows, 1), new - 1)
        self._shape = (rows, new, model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self._token_ids.device

    def run(self) -> Spent:
        """One pass; the ranks should begin together."""
        model, group, watch = self._watched.model, self._watched.group, self._watched.watch
        watch.mark()
        stream, *shared = model.embed(self._token_ids, self._starts, self._columns)
        group.forget()
        bytes_before = group.num_bytes
        for layer in model.layers:
            stream, _, _ = layer(stream, *shared, self._past, self._past)
        watch.mark()
        model.head(stream[self._last])
        watch.mark()
        spans = watch.take()
        return Spent(
            total_s=sum(spans),
            attention_s=sum(spans[1:-1:2]),
            mlp_s=sum(spans[2:-1:2]),
            exposed_s=sum(group.exposed_s),
            num_all_reduces=len(group.exposed_s),
            num_bytes=group.num_bytes - bytes_before,
        )

    def all_reduce_alone(self) -> AllReduce:
        """Add up what one module of this pass adds, with nothing else to do."""
        watch, group = self._watched.watch, self._watched.group
        tensor = self._past.new_zeros(self._shape)
        watch.mark()
        group.all_reduce(tensor).wait()
        watch.mark()
        (all_reduce_s,) = watch.take()
        watch.mark()
        handle = group.all_reduce(tensor)
        watch.mark()
        time.sleep(2 * all_reduce_s)
        watch.mark()
        handle.wait()
        watch.mark()
        launch_s, _, wait_s = watch.take()
        return AllReduce(all_reduce_s, launch_s + wait_s)
