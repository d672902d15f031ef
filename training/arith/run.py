"""A training run: steps, progress on the terminal, a log, states to resume from, and the checkpoint directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.lm import weights
from models.lm.model import LanguageModel
from training.arith import tokenizer
from training.arith.accuracy import accuracy, heldout_cells
from training.arith.card import card, table
from training.arith.problems import Problem
from training.arith.recipe import Recipe, Trainer

WATCHED_SEED = 1  # Held-out problems looked at during the run.
MEASURED_SEED = 0  # Those of the card.
SHIPPED_PER_CELL = 50  # The first of the measured ones.


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run writes, and how often."""

    out: Path
    state: Path | None
    resume: bool
    log_every: int = 100
    watch_every: int = 500
    watched_per_cell: int = 40
    measured_per_cell: int = 400

    @property
    def log(self) -> Path:
        return self.out / "training.log.jsonl"


def work(rank: int, world_size: int, recipe: Recipe, run: Run) -> None:
    """Train to the last step; the first process also watches, logs and writes."""
    trainer = Trainer(recipe, rank, world_size)
    seconds = 0.0
    if run.resume and run.state:
        state = torch.load(run.state, weights_only=True)
        trainer.restore(state)
        seconds = state["seconds"]
    if rank == 0:
        _lead(trainer, run, seconds)
    else:
        _follow(trainer)


def _follow(trainer: Trainer) -> None:
    while trainer.next_step < trainer.recipe.steps:
        trainer.step()


def _lead(trainer: Trainer, run: Run, seconds: float) -> None:
    run.out.mkdir(parents=True, exist_ok=True)
    _cut_log(run, trainer.next_step)
    started = monotonic() - seconds
    watched = heldout_cells(run.watched_per_cell, WATCHED_SEED)
    with _progress() as progress:
        task = progress.add_task("loss -", total=trainer.recipe.steps, completed=trainer.next_step)
        while trainer.next_step < trainer.recipe.steps:
            loss = trainer.step()
            done, last = trainer.next_step, trainer.next_step == trainer.recipe.steps
            progress.update(task, completed=done, description=f"loss {loss:.3f}")
            if done % run.log_every == 0 or last:
                seconds = monotonic() - started
                _log(run, step=done, loss=round(loss, 4), tokens=trainer.tokens, seconds=round(seconds, 1))
            if done % run.watch_every == 0 or last:
                cells = accuracy(trainer.model, watched)
                _log(run, step=done, accuracy=table(cells))
                progress.console.print_json(data=table(cells), indent=None)
                _keep(trainer, run, monotonic() - started)
    _finish(trainer, run, monotonic() - started)


def _progress() -> Progress:
    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


def _cut_log(run: Run, step: int) -> None:
    """Drop what an earlier run logged beyond the step where this one starts."""
    logged = run.log.read_text().splitlines() if run.log.exists() else []
    kept = [line for line in logged if json.loads(line)["step"] <= step] if step else []
    run.log.write_text("".join(f"{line}\n" for line in kept))


def _log(run: Run, **entry: Any) -> None:
    with run.log.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _keep(trainer: Trainer, run: Run, seconds: float) -> None:
    """Write the checkpoint as it is, and the state to resume from."""
    write_model(trainer.model, run.out)
    if run.state:
        partial = run.state.with_suffix(".partial")
        torch.save({**trainer.state(), "seconds": seconds}, partial)
        partial.replace(run.state)


def write_model(model: LanguageModel, out: Path) -> None:
    """Write a directory in the form of `transformers`: weights, config, generation config, tokenizer."""
    weights.save(model, out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(out, model.config.max_position_embeddings)
    generation = {"do_sample": False, "eos_token_id": tokenizer.END_ID, "pad_token_id": tokenizer.PAD_ID}
    (out / "generation_config.json").write_text(json.dumps({**generation, "max_new_tokens": 48}, indent=2) + "\n")


def _finish(trainer: Trainer, run: Run, seconds: float) -> None:
    """Measure, and write checkpoint, held-out problems and card."""
    write_model(trainer.model, run.out)
    cells = heldout_cells(run.measured_per_cell, MEASURED_SEED)
    shipped = {cell: problems[:SHIPPED_PER_CELL] for cell, problems in cells.items()}
    write_heldout(shipped, run.out / "heldout.jsonl")
    measured, on_shipped = accuracy(trainer.model, cells), accuracy(trainer.model, shipped)
    _log(run, step=trainer.next_step, per_cell=run.measured_per_cell, measured=table(measured))
    text = card(trainer, seconds, measured, run.measured_per_cell, on_shipped, SHIPPED_PER_CELL)
    (run.out / "README.md").write_text(text)


def write_heldout(cells: dict[tuple[str, int], list[Problem]], file: Path) -> None:
    """One JSON line for each held-out problem."""
    lines = [
        json.dumps({"prompt": problem.prompt, "target": problem.target, "family": family, "level": level})
        for (family, level), problems in cells.items()
        for problem in problems
    ]
    file.write_text("\n".join(lines) + "\n")
