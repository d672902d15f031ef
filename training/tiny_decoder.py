"""A small decoder trained on arithmetic for a minute, to compare activations in the place they were made for."""

from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from models.chain import Chain
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.rope import Rope
from training.arith.batches import Batch, Mixture, collate, parts_of_step
from training.arith.problems import FAMILIES, FAMILY, sample
from training.arith.tokenizer import CHARACTERS

_STEPS, _BATCH, _RATE, _HELD = 250, 64, 3e-3, 512


def heldout_loss(activation: str, seed: int = 0) -> float:
    """Loss a token, in nats, on problems that were held out, of a decoder whose MLPs (no gate) have that activation."""
    torch.manual_seed(seed)
    model = LanguageModel(_config(activation))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    mixture = Mixture(growth_steps=1)
    for step in range(1, _STEPS + 1):
        (batch,) = parts_of_step(mixture, _BATCH, seed, step, 1)
        optimizer.zero_grad()
        _loss(model, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return float(_loss(model, _heldout()))


def _config(activation: str) -> LMConfig:
    return LMConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=96,
        rope=Rope(theta=200.0),
        activation=activation,
        is_gated=False,
    )


def _loss(model: LanguageModel, batch: Batch) -> Tensor:
    logits = model.along({"token_ids": batch.token_ids[:, :-1]}, Chain.full(len(model.layers)))
    each = F.cross_entropy(logits.flatten(0, 1), batch.token_ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (each * weights).sum() / weights.sum()


def _heldout() -> Batch:
    random = Random(0)
    names = random.choices(FAMILIES, k=_HELD)
    return collate([sample(name, random.choice(FAMILY[name].sizes), random, heldout=True) for name in names])
