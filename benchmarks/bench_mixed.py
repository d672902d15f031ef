"""What it costs that every sequence of a batch has its own chain: one decode step of 16 sequences.

Measured: a random-weight Llama of 12 layers, d 768, on ONNX Runtime through the engine; seconds between two tokens of
one sequence, wall and CPU of the device thread, medians over alternating rounds in one process. All on the full chain,
against 16 random chains (up to three skips or repeats of blocks of up to four) and against a menu of 4 chains of mean
length 0.75. Then what finding a plan costs that was found before. Left out: HTTP (bench_http) and prefill. A step of
the random chains above 2.0 of the full chain's, or fewer tokens per second on the menu than on the full chain, would
mean that mixing chains eats what they save.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from report import report

from exporters.export import export_checkpoint
from models.chain import Chain
from models.lm import weights
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from service.engine.engine import new_future
from service.engine.language import LanguageEngine
from service.engine.plan import plan
from service.engine.sampling import Choice, Sampling
from service.engine.work import GenerateWork
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings
from training.arith import tokenizer

NUM_LAYERS, CLIENTS, ROUNDS, TOKENS, PROMPT = 12, 16, 7, 24, 16
MENU = tuple(map(Chain.parse, ("0-8", "0-5,9-11", "0-3,6-10", "0-2,4-5,8-11")))


def edited(random: Random, num_layers: int = NUM_LAYERS) -> Chain:
    """The full chain with up to three skips or repeats of blocks of up to four."""
    chain = Chain.full(num_layers)
    for _ in range(random.randint(0, 3)):
        count = random.randint(1, min(4, len(chain) - 1))
        visit = random.randrange(len(chain) - count + 1)
        chain = chain.skip(visit, count) if random.random() < 0.5 else chain.repeat(visit, count, 1)
    return chain


def export(repository: Path) -> None:
    """Write the model as `llama` into a repository."""
    config = LMConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights.save(LanguageModel(config), Path(folder))
        tokenizer.save(Path(folder), config.max_position_embeddings)
        export_checkpoint(Path(folder), repository, ("onnx",), name="llama")


async def step(engine: LanguageEngine, chains: Sequence[Chain], random: Random) -> tuple[float, float]:
    """Median seconds between two tokens of the first sequence, wall and CPU of the device thread."""
    stamps: list[tuple[float, float]] = []

    def stamp(_: Choice) -> None:
        stamps.append((time.perf_counter(), time.thread_time()))

    works = [
        GenerateWork(
            future=new_future(),
            prompt=tuple(random.randrange(1, 17) for _ in range(PROMPT)),
            chain=chain,
            sampling=Sampling(max_new_tokens=TOKENS),
            eos_token_ids=(),
            max_tokens=engine.language.max_length,
            text_of=str,
        )
        for chain in chains
    ]
    works[0].on_choice = stamp
    await engine.run(works)
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps)]
    return statistics.median(gap[0] for gap in gaps), statistics.median(gap[1] for gap in gaps)


def plan_microseconds(num_rows: int, num_layers: int) -> float:
    """Finding the plan of a batch that was planned before."""
    random = Random(0)
    batches = [tuple(sorted(edited(random, num_layers) for _ in range(num_rows))) for _ in range(8)]
    for batch in batches:
        plan(batch)
    started = time.thread_time()
    for _ in range(250):
        for batch in batches:
            plan(tuple(batch))
    return 1e6 * (time.thread_time() - started) / 2000


async def measure(repository: Path) -> list[dict[str, object]]:
    """One row per mix: medians of the rounds, and their ratio to all on the full chain."""
    registry = Registry(Settings.model_validate({"repository": repository, "backend": "onnx"}), Metrics())
    engine = await registry.load("llama")
    assert isinstance(engine, LanguageEngine)
    random = Random(0)
    mixes = {
        "full chain": [engine.full] * CLIENTS,
        "16 random chains": [edited(random) for _ in range(CLIENTS)],
        "menu of 4, mean 0.75 D": [MENU[i % len(MENU)] for i in range(CLIENTS)],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in mixes}
    for _ in range(ROUNDS):
        for name, chains in mixes.items():
            found[name].append(await step(engine, chains, random))
    await registry.close()
    base_wall, base_cpu = (statistics.median(one) for one in zip(*found["full chain"], strict=True))
    rows: list[dict[str, object]] = []
    for name, chains in mixes.items():
        wall, cpu = (statistics.median(one) for one in zip(*found[name], strict=True))
        rows.append(
            {
                "chains": name,
                "visits per row": sum(map(len, chains)) / CLIENTS,
                "layer calls": len(plan(tuple(chains))),
                "step ms": 1000 * wall,
                "step / full": wall / base_wall,
                "CPU ms": 1000 * cpu,
                "CPU / full": cpu / base_cpu,
                "tokens per s / full": base_wall / wall,
            }
        )
    return rows


async def main(repository: Path) -> None:
    """Measure and report."""
    plans = {
        f"{rows} rows, {layers} layers": plan_microseconds(rows, layers) for rows in (16, 64) for layers in (12, 28)
    }
    rows = await measure(repository)
    report("A decode step of 16 sequences, llama 12 x 768", rows, rounds=ROUNDS, tokens=TOKENS, plan_hit_us=plans)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export(Path(folder))
            asyncio.run(main(Path(folder)))
