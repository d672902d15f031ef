"""Equal training processes on one machine that add up tensors. Knows no model and no data."""

import tempfile
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def run(work: Callable[..., None], world_size: int, *arguments: object) -> None:
    """Call `work(rank, world_size, *arguments)` here, or in `world_size` processes of one thread each."""
    if world_size == 1:
        work(0, 1, *arguments)
        return
    with tempfile.TemporaryDirectory() as directory:
        shared = (world_size, f"{directory}/rendezvous", work, arguments)
        spawn(_enter, args=shared, nprocs=world_size)  # type: ignore[no-untyped-call]


def _enter(rank: int, world_size: int, file: str, work: Callable[..., None], arguments: Sequence[object]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    try:
        work(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()


def add_up(tensors: Sequence[Tensor], world_size: int) -> None:
    """Replace every tensor by its sum over the processes. All-reduce of one flat vector; blocks."""
    if world_size > 1:
        flat = parameters_to_vector(tensors)
        dist.all_reduce(flat)
        vector_to_parameters(flat, tensors)
