"""Both recipes for a handful of steps: they learn, repeat themselves, and resume as if never stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.lm import weights
from training import digits
from training.arith import workers
from training.arith.batches import Batch, Mixture, collate, parts_of_step
from training.arith.muon import orthogonalize
from training.arith.problems import Problem
from training.arith.recipe import CONFIG, Recipe, Trainer
from training.arith.run import Run, work
from training.arith.tokenizer import END_ID, IDS, PAD_ID
from training.tasks.digits import moved, split
from training.tasks.task import Examples

RECIPE = Recipe(steps=4, decay=2, batch_size=8, warmup=2)


def tensors(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


def trained(recipe: Recipe, steps: int) -> tuple[Trainer, list[float]]:
    trainer = Trainer(recipe)
    return trainer, [trainer.step() for _ in range(steps)]


def quick(out: Path, state: Path, resume: bool) -> Run:
    return Run(out, state, resume, log_every=2, watch_every=2, watched_per_cell=1, measured_per_cell=2)


def test_same_seed_gives_same_weights() -> None:
    assert same(trained(RECIPE, 3)[0].model, trained(RECIPE, 3)[0].model)


def test_other_seed_gives_other_weights() -> None:
    other = replace(RECIPE, seed=1)
    assert not same(trained(RECIPE, 1)[0].model, trained(other, 1)[0].model)


def test_loss_falls() -> None:
    _, losses = trained(replace(RECIPE, steps=12, decay=0, batch_size=16), 12)
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])


def test_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    workers.run(work, 1, RECIPE, quick(straight, tmp_path / "a.pt", resume=False))
    stopped = replace(RECIPE, steps=2, decay=0)
    workers.run(work, 1, stopped, quick(tmp_path / "resumed", tmp_path / "b.pt", resume=False))
    workers.run(work, 1, RECIPE, quick(tmp_path / "resumed", tmp_path / "b.pt", resume=True))
    assert same(weights.load(straight), weights.load(tmp_path / "resumed"))


def test_run_writes_the_whole_directory(tmp_path: Path) -> None:
    workers.run(work, 1, RECIPE, quick(tmp_path, tmp_path / "state.pt", resume=False))
    written = {file.name for file in tmp_path.iterdir()}
    assert written >= {"README.md", "config.json", "generation_config.json", "heldout.jsonl", "model.safetensors"}
    assert written >= {"tokenizer.json", "tokenizer_config.json", "training.log.jsonl"}
    assert len((tmp_path / "heldout.jsonl").read_text().splitlines()) == 25 * 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "training.log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == RECIPE.steps


def test_rates_stay_then_fall() -> None:
    recipe = Recipe(steps=100, decay=40, warmup=10, final_rate=0.02)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:61]) == {1.0}
    assert rates[80] == pytest.approx(0.5)
    assert min(rates) == rates[-1] == pytest.approx(0.025)


def rows(parts: list[Batch]) -> list[list[int]]:
    return [[token for token in row if token != PAD_ID] for part in parts for row in part.token_ids.tolist()]


def test_parts_are_the_batch_cut_by_length() -> None:
    whole, cut = (parts_of_step(Mixture(), 64, seed=0, step=5_000, num_parts=count) for count in (1, 3))
    assert rows(cut) == rows(whole)
    assert [part.token_ids.shape[1] for part in cut] == sorted(part.token_ids.shape[1] for part in cut)
    assert max(part.token_ids.numel() for part in cut) < 2 * min(part.token_ids.numel() for part in cut)


def test_batch_depends_on_seed_and_step_alone() -> None:
    def drawn(seed: int, step: int) -> list[list[int]]:
        return rows(parts_of_step(Mixture(), 4, seed, step, num_parts=2))

    assert drawn(0, 9) == drawn(0, 9)
    assert drawn(0, 9) != drawn(1, 9)
    assert drawn(0, 9) != drawn(0, 10)


def test_answer_and_end_weigh_one() -> None:
    batch = collate([Problem("1+2=", "3"), Problem("12+3=", "15")])
    assert batch.token_ids[0].tolist() == [*(IDS[character] for character in "1+2=3"), END_ID, PAD_ID, PAD_ID]
    assert (batch.weights == 1).tolist()[0] == [False, False, False, True, True, False, False]
    assert batch.weights[0, 5:].tolist() == [0, 0]


def test_muon_makes_singular_values_about_one() -> None:
    for shape in [(3, 8, 8), (2, 20, 8), (2, 8, 20)]:
        values = torch.linalg.svdvals(orthogonalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0))))
        assert float(values.min()) > 0.3
        assert float(values.max()) < 1.5


def test_sizes_are_those_of_the_card() -> None:
    assert (CONFIG.num_hidden_layers, CONFIG.hidden_size, CONFIG.head_size) == (12, 64, 16)


def test_digits_same_seed_gives_same_weights() -> None:
    rows, _ = split()
    few = Examples(rows.inputs[:256], rows.targets[:256])
    assert same(digits.train(few, epochs=1, seed=0), digits.train(few, epochs=1, seed=0))


def test_digits_moves_keep_the_pixels() -> None:
    rows, _ = split()
    image = rows.inputs[:1].repeat(50, 1)
    found = moved(image)
    assert found.shape == image.shape
    assert (found.sum(1) <= image.sum(1)).all()
    assert (found == image).all(1).any()


def test_two_workers_give_the_weights_of_one(tmp_path: Path) -> None:
    workers.run(work, 1, RECIPE, quick(tmp_path / "one", tmp_path / "a.pt", resume=False))
    workers.run(work, 2, RECIPE, quick(tmp_path / "two", tmp_path / "b.pt", resume=False))
    assert same(weights.load(tmp_path / "one"), weights.load(tmp_path / "two"))
