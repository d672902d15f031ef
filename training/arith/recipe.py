"""The hyper-parameters of a run, and the trainer that takes its steps. Knows no file and no clock."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.residual import Form, Residual
from models.lm.rope import Rope
from training.arith.batches import Batch, Mixture, parts_of_step
from training.arith.muon import Muon
from training.arith.tokenizer import CHARACTERS, END_ID, PAD_ID
from training.arith.workers import add_up

CONFIG = LMConfig(
    vocab_size=len(CHARACTERS),
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=96,
    rope=Rope(theta=200.0),
    eos_token_id=END_ID,
    pad_token_id=PAD_ID,
)
INIT_STD = 0.02
NUM_PARTS = 2  # Parts of a batch, also with one worker: the number of workers changes no weight.


@dataclass(frozen=True, slots=True)
class Recipe:
    """Rates rise for `warmup` steps, stay, and fall in the last `decay` steps linearly to `final_rate` of themselves.

    Until the rates fall, a run does not depend on where it ends.
    """

    steps: int = 9000
    decay: int = 5500
    seed: int = 0
    batch_size: int = 128
    warmup: int = 50
    final_rate: float = 0.02
    muon_lr: float = 0.008
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.05
    adamw_lr: float = 0.003
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    residual: Form = "standard"
    mixture: Mixture = field(default_factory=Mixture)

    def rate(self, step: int) -> float:
        """Multiplier of the learning rates at `step`."""
        left = (self.steps - step) / self.decay if self.decay else 1.0
        return min(1.0, (step + 1) / self.warmup, max(left, self.final_rate))


class Trainer:
    """Model and optimizers at a step. Every process of a run holds an equal one."""

    def __init__(self, recipe: Recipe, rank: int = 0, world_size: int = 1, model: LanguageModel | None = None) -> None:
        self.recipe, self.rank, self.world_size = recipe, rank, world_size
        self.model = model or initial_model(recipe.seed, recipe.residual)
        self.parameters = list(self.model.parameters())
        matrices = [parameter for parameter in self.model.layers.parameters() if parameter.ndim == 2]
        chosen = set(map(id, matrices))
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        self.muon = Muon(matrices, recipe.muon_momentum, recipe.muon_weight_decay)
        self.adamw = torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=recipe.adamw_betas, weight_decay=0.0)
        self.next_step, self.tokens = 0, 0

    def step(self) -> float:
        """Take one optimizer step, this process working on its parts of the batch; returns the loss of all parts."""
        recipe = self.recipe
        parts = parts_of_step(recipe.mixture, recipe.batch_size, recipe.seed, self.next_step, NUM_PARTS)
        total = torch.stack([part.weights.sum() for part in parts]).sum()
        self.model.zero_grad()
        loss = torch.zeros(())
        for part in parts[self.rank :: self.world_size]:
            share = weighted_loss(self.model, part) / total
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        add_up([*gradients, loss], self.world_size)
        self._update(recipe.rate(self.next_step))
        self.next_step += 1
        self.tokens += sum(int((part.weights > 0).sum()) for part in parts)
        return loss.item()

    def _update(self, rate: float) -> None:
        self.muon.step(self.recipe.muon_lr * rate)
        for group in self.adamw.param_groups:
            group["lr"] = self.recipe.adamw_lr * rate
        self.adamw.step()

    def state(self) -> dict[str, Any]:
        """All a run needs to go on exactly as if it had not stopped."""
        return {
            "next_step": self.next_step,
            "tokens": self.tokens,
            "model": self.model.state_dict(),
            "muon": self.muon.velocities,
            "adamw": self.adamw.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state()`."""
        self.next_step, self.tokens = state["next_step"], state["tokens"]
        self.model.load_state_dict(state["model"])
        for velocity, saved in zip(self.muon.velocities, state["muon"], strict=True):
            velocity.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])


def weighted_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Weighted sum of the next-token losses, a scalar."""
    logits = model(batch.token_ids[:, :-1])  # [B, S - 1, V]
    losses = F.cross_entropy(logits.flatten(0, 1), batch.token_ids[:, 1:].flatten(), reduction="none")
    return (losses * batch.weights.flatten()).sum()


def initial_model(seed: int, residual: Form = "standard") -> LanguageModel:
    """Untrained model: matrices from a normal distribution, norms at one; equal matrices in every residual form."""
    torch.manual_seed(seed)
    model = LanguageModel(replace(CONFIG, residual=Residual(residual)))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=INIT_STD)
    return model
