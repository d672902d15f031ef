"""Trains the weights of a converted checkpoint in its residual form, and measures them before and after.

The mixture is that of `training.arith`, all of its sizes from the first step on, with other problems of the training
side; the optimizers are the same, at a quarter of the rates, which fall from the end of the warm-up on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from rich.progress import track

from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, InputError
from models.lm.model import LanguageModel
from models.lm.residual import Residual
from training.adapt.card import Measured, card
from training.arith.accuracy import accuracy, heldout_cells
from training.arith.batches import Mixture
from training.arith.problems import Problem
from training.arith.recipe import CONFIG, Recipe, Trainer
from training.arith.run import MEASURED_SEED, SHIPPED_PER_CELL, write_heldout, write_model

_LOG_EVERY = 50


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How long, on which problems, and how many of each cell it is measured on."""

    steps: int = 800
    seed: int = 1
    per_cell: int = 400

    @property
    def recipe(self) -> Recipe:
        """The steps as those of the recipe of `arith`."""
        return Recipe(
            steps=self.steps,
            decay=self.steps,
            seed=self.seed,
            muon_lr=0.002,
            adamw_lr=0.00075,
            mixture=Mixture(growth_steps=1, first_sizes=1.0),
        )


def adapt(checkpoint: Path, out: Path, adaptation: Adaptation) -> Measured:
    """Write `out`: weights trained in the checkpoint's form, and a card of what that did. Raises ArtifactError."""
    if out.exists():
        raise ArtifactError(f"{out} exists; name another --out")
    model = _load(checkpoint)
    cells = heldout_cells(adaptation.per_cell, MEASURED_SEED)
    standard = accuracy(_in_form(model, Residual()), cells)
    converted = accuracy(model, cells)
    started = monotonic()
    trainer, log = _train(model, adaptation)
    seconds = monotonic() - started
    trained = _in_form(trainer.model, replace(model.config.residual, is_trained=True))
    measured = Measured(standard, converted, accuracy(trained, cells))
    out.mkdir(parents=True)
    write_model(trained, out)
    _write_texts(out, cells, log)
    text = card(checkpoint.name, trained, adaptation.recipe, trainer.tokens, seconds, measured, adaptation.per_cell)
    (out / "README.md").write_text(text)
    return measured


def _load(checkpoint: Path) -> LanguageModel:
    """The model of a checkpoint that is `arith` but for its residual form. Raises InputError for any other."""
    model = load_checkpoint(checkpoint)
    if not isinstance(model, LanguageModel) or not _is_arith(model):
        raise InputError(f"{checkpoint} has other sizes than arith, whose problems this trains on; convert arith")
    if model.config.residual.form == "upper-bound":
        raise InputError(f"{checkpoint} has the residual form upper-bound, which nothing can be trained in")
    return model


def _is_arith(model: LanguageModel) -> bool:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope")
    return all(getattr(model.config, name) == getattr(CONFIG, name) for name in sizes)


def _in_form(model: LanguageModel, residual: Residual) -> LanguageModel:
    """The same weights in a residual form."""
    other = LanguageModel(replace(model.config, residual=residual))
    other.load_state_dict(model.state_dict())
    return other.eval()


def _train(model: LanguageModel, adaptation: Adaptation) -> tuple[Trainer, list[dict[str, float]]]:
    trainer = Trainer(adaptation.recipe, model=_in_form(model, model.config.residual).train())
    log = []
    for step in track(range(1, adaptation.steps + 1), description=model.residual_form):
        loss = trainer.step()
        if step % _LOG_EVERY == 0 or step == adaptation.steps:
            log.append({"step": step, "loss": round(loss, 4), "tokens": trainer.tokens})
    return trainer, log


def _write_texts(out: Path, cells: Mapping[tuple[str, int], list[Problem]], log: list[dict[str, float]]) -> None:
    write_heldout({cell: problems[:SHIPPED_PER_CELL] for cell, problems in cells.items()}, out / "heldout.jsonl")
    (out / "training.log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in log))
