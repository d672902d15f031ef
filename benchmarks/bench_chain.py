"""What a shorter chain saves: compute time along half of the layers against the full chain, on `arith`.

Measured: seconds from leaving the queue to the answer, 16 tokens generated per prompt, greedy, one thread, medians over
alternating rounds in one process. Left out: HTTP and JSON (bench_http). A ratio above 0.65 at one prompt would mean
that overhead outside the layers eats what skipping them saves.
"""

import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from report import report

from exporters.export import export_checkpoint, find_checkpoint
from service.engine.engine import new_future
from service.engine.language import LanguageEngine
from service.engine.sampling import Sampling
from service.engine.work import Generated, GenerateWork
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings

ROUNDS, TOKENS = 30, 16
PROMPT = "48213+97705="
CHAINS = {"full": "full", "half": "0-1,3,5,8,11", "quarter": "0,4,11", "looped": "0-5,3-5,6-11"}


async def seconds(engine: LanguageEngine, chain: str, batch: int) -> float:
    """Compute seconds per pass of `batch` equal prompts; no token ends them, so that every chain makes all passes."""
    works = [
        GenerateWork(
            future=new_future(),
            prompt=engine.encode(PROMPT),
            chain=one,
            sampling=Sampling(max_new_tokens=TOKENS),
            eos_token_ids=(),
            max_tokens=engine.language.max_length,
            text_of=engine.tokenizer.decode,
        )
        for one in engine.chains(chain, batch)
    ]
    done: list[Generated] = await engine.run(works)
    assert all(one.num_passes == TOKENS for one in done)
    return max(one.timing.compute_s for one in done) / TOKENS


async def measure(repository: Path, backend: str, batch: int) -> list[dict[str, object]]:
    """One row per chain: median seconds per pass, and the ratio to the full chain."""
    registry = Registry(Settings.model_validate({"repository": repository, "backend": backend}), Metrics())
    engine = await registry.load("arith")
    assert isinstance(engine, LanguageEngine)
    samples: dict[str, list[float]] = {name: [] for name in CHAINS}
    for _ in range(ROUNDS):
        for name, chain in CHAINS.items():
            samples[name].append(await seconds(engine, chain, batch))
    await registry.close()
    medians = {name: statistics.median(found) for name, found in samples.items()}
    return [
        {
            "backend": backend,
            "prompts": batch,
            "chain": name,
            "visits": len(engine.chains(chain, 1)[0]),
            "ms per pass": 1000 * medians[name],
            "ratio to full": medians[name] / medians["full"],
        }
        for name, chain in CHAINS.items()
    ]


async def main(repository: Path) -> None:
    """Every backend, one prompt and sixteen."""
    rows = [
        row
        for backend in ("onnx", "torchscript", "eager")
        for batch in (1, 16)
        for row in await measure(repository, backend, batch)
    ]
    report("Time along a chain, arith", rows, rounds=ROUNDS, tokens=TOKENS)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export_checkpoint(find_checkpoint("arith"), Path(folder))
            asyncio.run(main(Path(folder)))
