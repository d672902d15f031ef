"""What a rank does in tests: load its part of a model and generate with it as the engine does; one process alike."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.artifact import LanguageSpec
from models.chain import Chain
from models.lm import weights
from models.lm.config import LMConfig
from models.parallel.crossing import Crossing
from models.parallel.group import Group
from models.parallel.staged import Station
from models.parallel.stages import Stages
from models.parallel.stream import Stream
from models.parallel.weights import load_shard
from service.backends.parts import LanguageBackend, Parts
from service.backends.pools import Pooled
from service.backends.protocol import Array
from service.backends.sharded import ShardedArrays, sharded_backend
from service.backends.staged import StagedArrays, StagedBackend, staged_backend
from service.backends.torch_arrays import TorchArrays, module_part
from service.engine.executor import Executor
from service.engine.generate import Generator
from service.engine.queue import Limits
from service.engine.sampling import Sampling
from service.engine.work import GenerateWork

CPU = torch.device("cpu")


class Uncounted:
    """Counts no layer calls."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


class ExactArrays(TorchArrays):
    """Gives out what there is, float64 too."""

    def give_out(self, array: Tensor) -> Array:
        return array.numpy()


class ExactShardedArrays(ShardedArrays):
    """Gives out what there is, float64 too."""

    def give_out(self, array: Tensor | Stream) -> Array:
        return (array.whole(self.group) if isinstance(array, Stream) else array).numpy()


class ExactStagedArrays(ExactShardedArrays, StagedArrays):
    """The same on a stage of a pipeline."""


@dataclass(frozen=True)
class Job:
    """Prompts to continue, each along its own chain, with what room there is."""

    prompts: tuple[tuple[int, ...], ...]
    chains: tuple[Chain, ...]
    num_new: int
    num_pages: int
    max_prefill: int
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Said:
    """Of each prompt the tokens, the logits behind each [tokens, V], and how often it made room."""

    tokens: list[tuple[int, ...]]
    logits: list[Array]
    num_preemptions: int


PAGE_SIZE = 2


def language(config: LMConfig) -> LanguageSpec:
    return LanguageSpec(
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        num_kv_heads=config.num_key_value_heads,
        head_size=config.head_size,
        eos_token_ids=(),
        tokenizer="tokenizer.json",
    )


def sharded(group: Group, directory: Path, num_pages: int, dtype: torch.dtype) -> LanguageBackend:
    shard = load_shard(directory, group, dtype)
    return sharded_backend(shard, language(shard.config), num_pages, PAGE_SIZE, ExactShardedArrays(group, CPU, dtype))


def staged(
    group: Group, crossing: Crossing, directory: Path, stages: Stages, num_pages: int, dtype: torch.dtype
) -> StagedBackend:
    """One rank of a pipeline."""
    shard = load_shard(directory, group, dtype, stages, crossing.stage)
    arrays = ExactStagedArrays(group, CPU, dtype)
    station = Station(shard.config, stages, crossing, group)
    return staged_backend(shard, language(shard.config), station, num_pages, PAGE_SIZE, arrays)


def plain(directory: Path, num_pages: int, dtype: torch.dtype) -> LanguageBackend:
    model = weights.load(directory, dtype)
    parts = Parts(
        module_part(model.embed), tuple(module_part(layer) for layer in model.layers), module_part(model.head)
    )
    arrays, residual = ExactArrays(CPU, dtype), model.config.residual
    return LanguageBackend(parts, language(model.config), arrays, num_pages, PAGE_SIZE, residual)


def continued_by_ranks(group: Group, directory: Path, job: Job) -> Said:
    return generate(sharded(group, directory, job.num_pages, job.dtype), job)


def continued_alone(directory: Path, job: Job) -> Said:
    return generate(plain(directory, job.num_pages, job.dtype), job)


def generate(backend: LanguageBackend, job: Job) -> Said:
    """The engine's own passes, without its thread: the same on every rank."""
    limits = Limits(max_rows=len(job.prompts), max_tokens=1 << 20, max_prefill_tokens=job.max_prefill)
    pools = backend.pools if isinstance(backend, Pooled) else ()
    generator = Generator(Executor(backend, Uncounted()), backend.num_pages, backend.page_size, limits, pools)
    loop = asyncio.new_event_loop()
    works = [_work(loop, prompt, chain, job.num_new) for prompt, chain in zip(job.prompts, job.chains, strict=True)]
    loop.close()
    waiting, sequences = list(works), generator.sequences
    sequences.refuse_oversized(works)
    logits: dict[GenerateWork, list[Array]] = {work: [] for work in works}
    while waiting or len(sequences):
        sequences.resume()
        while waiting and (admitted := sequences.admit_from(waiting)):
            waiting.remove(admitted)
        for batch in generator.next_batches():
            for work, row in zip(batch, generator.logits(batch), strict=True):
                if row is None:
                    continue
                logits[work].append(row)
                if generator.take_token(work, row):
                    sequences.release(work)
    return Said(
        [tuple(choice.token_id for choice in work.choices) for work in works],
        [np.stack(logits[work]) for work in works],
        sum(work.num_preemptions for work in works),
    )


def _work(loop: asyncio.AbstractEventLoop, prompt: Sequence[int], chain: Chain, num_new: int) -> GenerateWork:
    return GenerateWork(
        future=loop.create_future(),
        prompt=tuple(prompt),
        chain=chain,
        sampling=Sampling(max_new_tokens=num_new),
        eos_token_ids=(),
        max_tokens=64,
        text_of=str,
    )
