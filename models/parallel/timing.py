"""Ranks of their own that time a model in every residual form, each pass beside what the latency model predicts.

Sharded layers with random weights over a real group; where there is only one machine, over one whose all-reduces are
made as slow as another network's, and with modules that sleep instead of computing longer.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing.spawn import ProcessException, start_processes

from models.errors import BackendError, InputError
from models.lm.residual import Residual
from models.parallel.delayed import Delayed
from models.parallel.group import Group, join_group
from models.parallel.latency import Costs, Link, predicted
from models.parallel.model import ShardedModel
from models.parallel.passes import AllReduce, Pass, Spent, Watched
from models.parallel.recorded import Recorded
from models.parallel.trial import Device, Measured, Trial

# The form whose passes say what compute alone takes.
_BARE = "upper-bound"
_START = "forkserver"
_TIMEOUT_S = 600.0
_POLL_S = 0.1


def measure(trial: Trial) -> Iterator[Measured]:
    """Start the ranks and give what they find, load by load. Raises BackendError if one of them fails."""
    for has_p2p in trial.has_p2p if trial.device == "cuda" else (None,):
        with tempfile.TemporaryDirectory() as folder:
            yield from _spawned(trial, has_p2p, Path(folder) / "store")


def devices(wanted: str | None = None) -> tuple[Device, int]:
    """What ranks run on, and how many of them this machine is good for. Raises InputError."""
    if wanted not in (None, "cpu", "cuda"):
        raise InputError(f"device {wanted!r} is not known; take cpu or cuda")
    count = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and count == 0:
        raise InputError("there is no GPU that torch can use; take --device cpu")
    return ("cuda", count) if count else ("cpu", 2)


def _spawned(trial: Trial, has_p2p: bool | None, store: Path) -> Iterator[Measured]:
    context = get_context(_START)
    context.set_forkserver_preload([__name__])  # torch is imported once and not by every rank
    reader, writer = context.Pipe(duplex=False)
    shared = (trial, has_p2p, store, writer)
    ranks: Any = start_processes(  # type: ignore[no-untyped-call]
        _enter, shared, trial.num_ranks, join=False, daemon=True, start_method=_START
    )
    try:
        is_over = False
        while not is_over:
            is_over = ranks.join(timeout=_POLL_S)
            while reader.poll():
                yield reader.recv()
    except ProcessException as error:
        raise BackendError(
            f"a rank failed: {str(error).strip().splitlines()[-1]}; see whether the sizes fit"
        ) from error
    finally:
        for process in ranks.processes:
            process.kill()


def _enter(rank: int, trial: Trial, has_p2p: bool | None, store: Path, writer: Connection) -> None:
    if has_p2p is False:
        os.environ["NCCL_P2P_DISABLE"] = "1"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // trial.num_ranks))
    if trial.device == "cuda":
        torch.cuda.set_device(rank)
    torch.manual_seed(trial.seed)
    group = join_group(rank, trial.num_ranks, FileStore(str(store)), _TIMEOUT_S, trial.device)
    try:
        with torch.inference_mode():
            for one in _measured(group, trial, has_p2p):
                if rank == 0:
                    writer.send(one)
    finally:
        group.leave()


def _measured(group: Group, trial: Trial, has_p2p: bool | None) -> Iterator[Measured]:
    channel = Delayed(group, Link(0.0))
    models = _models(trial, Recorded(channel))
    for latency_s, phase, rows in product(trial.latencies_s, trial.phases, trial.rows):
        channel.link = Link(latency_s or 0.0)
        passes = {name: Pass(model, phase, rows, trial.prompt_tokens) for name, model in models.items()}
        spent, alone = _in_turns(passes, group, trial.repeats)
        costs = _costs(spent[_BARE], alone, trial.config.num_hidden_layers)
        for name in trial.forms:
            best = min(spent[name], key=_total)
            yield Measured(
                form=name,
                phase=phase,
                rows=rows,
                tokens=trial.prompt_tokens,
                latency_s=latency_s,
                has_p2p=has_p2p,
                best_s=best.total_s,
                median_s=median(map(_total, spent[name])),
                predicted_s=predicted(trial.residual(name), range(trial.config.num_hidden_layers), costs),
                costs=costs,
                num_all_reduces=best.num_all_reduces,
                num_bytes=best.num_bytes,
                exposed_s=best.exposed_s if trial.device == "cpu" else None,
            )


def _in_turns(passes: Mapping[str, Pass], group: Group, repeats: int) -> tuple[dict[str, list[Spent]], list[AllReduce]]:
    """Every pass once for nothing, then all of them in turn: what else the machine does meets all forms alike."""
    spent: dict[str, list[Spent]] = {name: [] for name in passes}
    alone: list[AllReduce] = []
    for turn in range(repeats + 1):
        for name, one in passes.items():
            group.all_reduce(torch.zeros(1, device=one.device)).wait()
            found = one.run()
            if turn:
                spent[name].append(found)
        alone.append(passes[_BARE].all_reduce_alone())
    return spent, alone


def _costs(spent: Sequence[Spent], alone: Sequence[AllReduce], num_layers: int) -> Costs:
    """What passes without all-reduces took at best, part by part, and an all-reduce by itself."""
    return Costs(
        attention_s=min(one.attention_s for one in spent) / num_layers,
        mlp_s=min(one.mlp_s for one in spent) / num_layers,
        all_reduce_s=min(one.all_reduce_s for one in alone),
        overhead_s=min(one.overhead_s for one in alone),
        rest_s=min(one.total_s - one.attention_s - one.mlp_s for one in spent),
    )


def _models(trial: Trial, group: Recorded) -> dict[str, Watched]:
    """The model in every form that is timed, all with the same weights; the form without all-reduces is the first."""
    dtype = torch.float32 if trial.device == "cpu" else torch.bfloat16
    weights = ShardedModel(replace(trial.config, residual=Residual()), group).to(trial.device, dtype).state_dict()
    models = {}
    for name in dict.fromkeys((_BARE, *trial.forms)):
        with torch.device("meta"):
            model = ShardedModel(replace(trial.config, residual=trial.residual(name)), group)
        model.load_state_dict(weights, strict=False, assign=True)
        models[name] = Watched(model.to(trial.device).eval(), group, trial.device, trial.module_s)
    return models


def _total(spent: Spent) -> float:
    return spent.total_s
