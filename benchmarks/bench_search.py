"""What sharing prefixes and not decoding buy a chain search, and what two searches cost those who predict.

Measured, side by side on the same chains: token-layers (one layer visit by one token) and wall seconds of a search that
shares prefixes and scores by teacher forcing, against running every chain alone by greedy decoding as the released code
does. Verdicts must be equal, chain for chain. The stacks: `arith`, and 28 random layers of width 512. Then the latency
of predictions alone and while two searches run. Left out: HTTP. A ratio of token-layers below 3 or of seconds below 4
would mean that sharing does not pay; predictions more than three times slower at the 99th percentile, that priority
does not.
"""

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from report import report

from exporters.export import export_checkpoint, find_checkpoint
from models.chain import Chain
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.weights import save
from service.cola.evaluate import LanguageEvaluator
from service.cola.evaluator import Answer, Evaluation
from service.cola.reward import Target
from service.cola.search import find_chain
from service.cola.space import CoLaSpace
from service.cola.task import Budget, Result, Task
from service.engine.language import LanguageEngine
from service.engine.sampling import Sampling
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings
from training.arith import tokenizer

# Problems the full chain gets wrong, with their right answers.
WRONG = (
    ("674946+345000=", "1019946"),
    ("278849-536849=", "-258000"),
    ("728274+371720+881005=", "1099994,1980999"),
)
SIMULATIONS = {"arith": 200, "wide": 40}
MAX_NEW_TOKENS = 24
PREDICTIONS = 300


class Recorder(LanguageEvaluator):
    """An evaluator that notes what it said of each chain."""

    def __init__(self, engine: LanguageEngine, prompt: str) -> None:
        super().__init__(engine, prompt, MAX_NEW_TOKENS, engine.limits.search_bytes)
        self.verdicts: dict[Chain, bool] = {}

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        """As any other."""
        found = await super().evaluate(chains, expected)
        self.verdicts.update((chain, one.matches) for chain, one in zip(chains, found, strict=True))
        return found


async def search(engine: LanguageEngine, prompt: str, target: str, budget: Budget) -> tuple[Result, Recorder, float]:
    """One search, its evaluator, and its wall seconds."""
    recorder = Recorder(engine, prompt)
    task = Task(
        num_layers=engine.num_layers,
        space=CoLaSpace.of(engine.num_layers),
        reward=Target(),
        target=recorder.target(target),
        budget=budget,
    )
    started = time.perf_counter()
    result = await find_chain(task, recorder)
    return result, recorder, time.perf_counter() - started


async def naive(engine: LanguageEngine, prompt: str, target: str, recorder: Recorder) -> tuple[int, float]:
    """Token-layers and seconds of decoding the same chains one by one; asserts the same verdicts."""
    started, spent = time.perf_counter(), 0
    for chain, verdict in recorder.verdicts.items():
        (done,) = await engine.generate([prompt], chain.layers, Sampling(max_new_tokens=MAX_NEW_TOKENS))
        spent += done.layer_evaluations
        assert (done.token_ids == engine.target(target)) == verdict, f"{prompt} along {chain}"
    return spent, time.perf_counter() - started


async def compare(engine: LanguageEngine, name: str) -> dict[str, object]:
    """Sums over the problems: shared against naive, and against a search that stops at the first success."""
    full = Budget(simulations=SIMULATIONS[name])
    shared_cost = shared_s = naive_cost = naive_s = first_cost = 0.0
    for prompt, target in WRONG if name == "arith" else WRONG[:1]:
        result, recorder, seconds = await search(engine, prompt, target, full)
        cost, alone_s = await naive(engine, prompt, target, recorder)
        first, _, _ = await search(engine, prompt, target, Budget(simulations=SIMULATIONS[name], stop="first"))
        shared_cost, shared_s = shared_cost + result.stats.layer_evaluations, shared_s + seconds
        naive_cost, naive_s = naive_cost + cost, naive_s + alone_s
        first_cost += first.stats.layer_evaluations
    return {
        "stack": name,
        "simulations": SIMULATIONS[name],
        "token-layers naive": int(naive_cost),
        "shared": int(shared_cost),
        "ratio": naive_cost / shared_cost,
        "s naive": naive_s,
        "s shared": shared_s,
        "time ratio": naive_s / shared_s,
        "ratio, stop at first": naive_cost / first_cost,
    }


async def predict_ms(engine: LanguageEngine) -> list[float]:
    """Latencies of predictions, one after the other."""
    found = []
    for _ in range(PREDICTIONS):
        started = time.perf_counter()
        await engine.generate([WRONG[0][0]], "full", Sampling(max_new_tokens=MAX_NEW_TOKENS))
        found.append(1000 * (time.perf_counter() - started))
    return found


async def beside(engine: LanguageEngine) -> dict[str, object]:
    """Latency of predictions alone, and while two searches run without a pause."""

    async def forever(prompt: str, target: str) -> None:
        while True:
            await search(engine, prompt, target, Budget(simulations=200))

    gc.collect()
    gc.freeze()  # as the server does when it has started
    alone = await predict_ms(engine)
    searches = [asyncio.ensure_future(forever(*problem)) for problem in WRONG[:2]]
    busy = await predict_ms(engine)
    for one in searches:
        one.cancel()
    await asyncio.gather(*searches, return_exceptions=True)
    p99_alone, p99_busy = (statistics.quantiles(found, n=100)[98] for found in (alone, busy))
    return {
        "p50 alone ms": statistics.median(alone),
        "p50 beside two searches": statistics.median(busy),
        "p99 alone": p99_alone,
        "p99 beside": p99_busy,
        "p99 ratio": p99_busy / p99_alone,
    }


def wide_checkpoint(folder: Path) -> Path:
    """28 random layers of width 512 with the alphabet of `arith`."""
    torch.manual_seed(0)
    config = LMConfig(len(tokenizer.CHARACTERS), 512, 1408, 28, 8, 8, 96, eos_token_id=tokenizer.END_ID)
    checkpoint = folder / "wide"
    save(LanguageModel(config), checkpoint)
    tokenizer.save(checkpoint, config.max_position_embeddings)
    return checkpoint


async def main(repository: Path) -> None:
    """Both stacks, then the latencies."""
    rows = []
    for name, backend, threads in (("arith", "onnx", 1), ("wide", "eager", 2)):
        settings = Settings.model_validate({"repository": repository, "backend": backend, "num_threads": threads})
        registry = Registry(settings, Metrics())
        engine = await registry.load(name)
        assert isinstance(engine, LanguageEngine)
        rows.append(await compare(engine, name))
        if name == "arith":
            latencies = await beside(engine)
        await registry.close()
    report("Predictions beside two searches, arith", [latencies], predictions=PREDICTIONS)
    report("A search against decoding every chain alone", rows, leaf_batch=8)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(find_checkpoint("arith"), Path(folder), formats=("onnx",))
        export_checkpoint(wide_checkpoint(Path(folder) / "checkpoints"), Path(folder), formats=("safetensors",))
        asyncio.run(main(Path(folder)))
