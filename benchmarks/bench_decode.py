"""Tokens per second over HTTP against `transformers.generate` on the same weights.

Measured: a Llama of random weights (12 layers, width 768, 12 heads, float32, 85 million parameters beside the
embedding), prompts of 32 token ids, greedy, 32 new tokens; Fathom over HTTP with 1 and 16 clients in a closed loop,
and `generate` in a process of its own: prompts one after the other, as a naive server runs them, and 16 at once,
which needs all of them to arrive and to end together. One thread each, one after the other on the same machine; the
tokens must be equal. Left out: GPUs, sampling, ends of text. Fewer tokens per second than 1.5 times `generate` for
one client, or 4 times for 16, would mean that the engine eats what its runtime and its batches gain.
"""

import asyncio
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import orjson
import torch
from report import report
from serving import load, serving

from exporters.export import export_checkpoint
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.weights import save
from service.bench.connection import Connection, written
from service.bench.exchange import Call
from service.bench.summary import summarise
from training.arith import tokenizer

CONFIG = LMConfig(1024, 768, 2048, 12, 12, 12, 128)
PROMPT, TOKENS, SECONDS = 32, 32, 8.0


def prompts() -> list[list[int]]:
    """16 of them."""
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, (16, PROMPT)).tolist()


def checkpoint_in(folder: Path) -> Path:
    """Random weights; the tokenizer is there because a checkpoint has one, the prompts are token ids."""
    torch.manual_seed(0)
    checkpoint = folder / "llama"
    save(LanguageModel(CONFIG), checkpoint)
    tokenizer.save(checkpoint, CONFIG.max_position_embeddings)
    return checkpoint


def generate(checkpoint: Path) -> tuple[list[list[int]], float, float]:
    """New tokens of every prompt; tokens per second one prompt at a time, and 16 at once."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    def run(batch: list[list[int]]) -> tuple[list[list[int]], float]:
        ids, started = torch.tensor(batch), time.perf_counter()
        mask = torch.ones_like(ids)
        found = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
        return found[:, PROMPT:].tolist(), time.perf_counter() - started

    run(prompts()[:1])  # warm
    alone = [run([prompt]) for prompt in prompts()]
    _, together = run(prompts())
    return (
        [tokens[0] for tokens, _ in alone],
        TOKENS / statistics.median(seconds for _, seconds in alone),
        16 * TOKENS / together,
    )


def call(prompt: list[int]) -> Call:
    """A prompt as token ids."""
    body = {"model": "llama", "inputs": [prompt], "parameters": {"max_new_tokens": TOKENS}}
    content = written("POST", "/predict", orjson.dumps(body), content_type="application/json")
    return Call(content, has_tokens=True)


def measure(checkpoint: Path, repository: Path) -> list[dict[str, object]]:
    """One row for each number of clients, and what `generate` gives."""
    calls = [call(prompt) for prompt in prompts()]
    with get_context("spawn").Pool(1) as other:
        expected, alone, together = other.apply(generate, (checkpoint,))
    rows: list[dict[str, object]] = [
        {"what": "transformers, one by one", "tokens per s": alone, "ratio": 1.0},
        {"what": "transformers, 16 at once", "tokens per s": together, "ratio": together / alone},
    ]
    with get_context("spawn").Pool(1) as client, serving("fathom", checkpoint, repository, calls[0]) as server:
        said = client.apply(answers, (server.port, calls))
        for clients in (1, 16):
            rate = summarise(client.apply(load, (server.port, calls, clients, SECONDS))).tokens_per_s
            rows.append({"what": f"fathom, {clients} clients", "tokens per s": rate, "ratio": rate / alone})
    same = sum(ours == theirs for ours, theirs in zip(said, expected, strict=True))
    assert same == len(expected), f"{same} of {len(expected)} answers are equal"
    return rows


def answers(port: int, calls: list[Call]) -> list[list[int]]:
    """The tokens of every call, all of them asked at once."""

    async def ask(call: Call) -> list[int]:
        connection = await Connection.open("127.0.0.1", port)
        reply = await connection.ask(call.content)
        connection.close()
        found: list[int] = orjson.loads(reply.body)["outputs"][0]["token_ids"]
        return found

    async def ask_all() -> list[list[int]]:
        return await asyncio.gather(*(ask(call) for call in calls))

    return asyncio.run(ask_all())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, repository = checkpoint_in(Path(folder)), Path(folder) / "repository"
        export_checkpoint(checkpoint, repository, formats=("onnx",))
        report("Decoding against transformers", measure(checkpoint, repository), tokens=TOKENS, prompt=PROMPT)
