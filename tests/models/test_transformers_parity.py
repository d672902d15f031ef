"""A checkpoint of ours is an ordinary Llama directory: `transformers` loads it unchanged and computes the same."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import models
from models.checkpoint import load_checkpoint
from models.layered import LayeredModel
from models.lm.tokenizer import Tokenizer
from training.arith.problems import FAMILIES, LEVELS, sample_level

SHIPPED = Path(models.__file__).parent / "checkpoints" / "arith"
TOLERANCE = 1e-4
NUM_PROMPTS = 50


@pytest.fixture(params=["tiny", "arith"])
def checkpoint(request: pytest.FixtureRequest, tiny_lm_checkpoint: Path) -> Path:
    return tiny_lm_checkpoint if request.param == "tiny" else SHIPPED


def heldout_prompts(checkpoint: Path) -> list[str]:
    """Prompts of all families and levels; the shipped ones where there are any."""
    path = checkpoint / "heldout.jsonl"
    if path.exists():
        lines = path.read_text().splitlines()
        return [json.loads(line)["prompt"] for line in lines[:: len(lines) // NUM_PROMPTS]][:NUM_PROMPTS]
    rng = Random(0)
    cells = [(family, level) for family in FAMILIES for level in LEVELS] * 2
    return [sample_level(family, level, rng, heldout=True).prompt for family, level in cells][:NUM_PROMPTS]


def greedy(model: LayeredModel, prompt: list[int], max_new_tokens: int, eos: int) -> list[int]:
    """Continue without any cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens and eos not in ids[len(prompt) :]:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


def test_transformers_computes_the_same(checkpoint: Path) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    ours, tokenizer = load_checkpoint(checkpoint), Tokenizer(checkpoint / "tokenizer.json")
    reader = AutoTokenizer.from_pretrained(checkpoint)
    prompts = heldout_prompts(checkpoint)
    assert len(set(prompts)) == NUM_PROMPTS
    with torch.inference_mode():
        for prompt in prompts:
            ids = reader(prompt).input_ids
            assert tuple(ids) == tokenizer.encode(prompt)
            batch = torch.tensor([ids])
            assert (theirs(batch).logits - ours(batch)).abs().max() <= TOLERANCE
            answer = theirs.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=20, pad_token_id=17
            )
            assert answer[0].tolist() == greedy(ours, ids, 20, theirs.config.eos_token_id)
