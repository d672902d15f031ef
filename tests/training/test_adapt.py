"""A converted checkpoint trained on for a few steps: its form is kept, its weights are others, its card is measured."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.errors import ArtifactError, InputError
from models.lm import weights
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.residual import Residual, parse_form
from training.adapt.run import Adaptation, adapt
from training.arith.accuracy import accuracy, heldout_cells

ROOT = Path(__file__).parents[2]
ARITH = ROOT / "models" / "checkpoints" / "arith"
QUICK = Adaptation(steps=2, per_cell=1)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`arith` with its last three layers as a ladder, as `fathom convert` writes it."""
    directory = tmp_path_factory.mktemp("adapt") / "hybrid"
    shutil.copytree(ARITH, directory)
    untrained = replace(parse_form("ladder:9-11"), is_trained=False)
    replace(weights.load(ARITH).config, residual=untrained).write(directory)
    return directory


def test_what_is_written_was_trained_in_its_form_and_measured(hybrid: Path, tmp_path: Path) -> None:
    measured = adapt(hybrid, tmp_path / "out", QUICK)
    before, after = weights.load(hybrid), weights.load(tmp_path / "out")
    assert after.config.residual == parse_form("ladder:9-11")
    assert not torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)
    cells = heldout_cells(QUICK.per_cell, 0)
    assert measured.standard == accuracy(weights.load(ARITH), cells)
    assert measured.converted == accuracy(before, cells)
    assert measured.trained == accuracy(after, cells)
    text = (tmp_path / "out" / "README.md").read_text()
    means = [100 * sum(one.values()) / len(one) for one in (measured.standard, measured.converted, measured.trained)]
    told = re.findall(r"(?m)^\| (?:standard, as|the same|trained on).*\| ([\d.]+) \|$", text)
    assert [float(mean) for mean in told] == pytest.approx(means, abs=0.05)
    assert measured.standard != measured.converted
    log = (tmp_path / "out" / "training.log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2]
    shipped = (tmp_path / "out" / "heldout.jsonl").read_text().splitlines()
    assert shipped == [line for line in (ARITH / "heldout.jsonl").read_text().splitlines()[::50]]


def test_same_seed_gives_the_same_weights_and_the_source_stays(hybrid: Path, tmp_path: Path) -> None:
    source = (hybrid / "model.safetensors").read_bytes()
    for name in ("first", "second"):
        adapt(hybrid, tmp_path / name, QUICK)
    first, second = (weights.load(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert (hybrid / "model.safetensors").read_bytes() == source


def test_what_is_no_converted_arith_is_refused(hybrid: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exists; name another"):
        adapt(hybrid, hybrid, QUICK)
    weights.save(LanguageModel(LMConfig(18, 16, 24, 2, 2, 2, 96)), tmp_path / "small")
    with pytest.raises(InputError, match="other sizes than arith"):
        adapt(tmp_path / "small", tmp_path / "out", QUICK)
    bound = shutil.copytree(hybrid, tmp_path / "bound")
    replace(weights.load(ARITH).config, residual=Residual("upper-bound", is_trained=False)).write(bound)
    with pytest.raises(InputError, match="upper-bound"):
        adapt(bound, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()
