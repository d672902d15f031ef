"""Small models with random weights, exported once per run: the files behind every test of serving.

Loading torch is left to the fixtures, so that tests without a model start without it.
"""

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import nn

# The same examples on every machine, however slow it is.
settings.register_profile("fathom", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fathom")

TINY_LM_MAX_LENGTH = 64


@pytest.fixture(scope="session")
def tiny_lm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of three layers over the arithmetic alphabet; its greedy answers differ between chains."""
    import torch

    from models.lm import weights
    from models.lm.config import LMConfig
    from models.lm.model import LanguageModel
    from models.lm.rope import Rope
    from training.arith import tokenizer

    config = LMConfig(
        vocab_size=len(tokenizer.CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_LM_MAX_LENGTH,
        rope=Rope(theta=200.0),
        eos_token_id=tokenizer.END_ID,
        pad_token_id=tokenizer.PAD_ID,
    )
    directory = tmp_path_factory.mktemp("checkpoints") / "tinylm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LanguageModel(config)
    _scale(model.layers, 2.0)
    _scale(model.head, 4.0)  # far from flat: no greedy choice hangs on the last bits
    weights.save(model, directory)
    tokenizer.save(directory, config.max_position_embeddings)
    return directory


@pytest.fixture(scope="session")
def tiny_mlp_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three residual blocks, six features, four classes; its answers differ between chains."""
    import torch

    from models import catalogue
    from models.mixers import residual_mlp

    config = residual_mlp.ResidualMLPConfig(
        num_features=6, num_classes=4, hidden_size=16, expansion=2, num_layers=3, input_shift=0.5, input_scale=2.0
    )
    directory = tmp_path_factory.mktemp("checkpoints") / "tinymlp"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = residual_mlp.ResidualMLP(config)
    _scale(model, 3.0)
    catalogue.save(model, directory)
    return directory


@pytest.fixture(scope="session")
def tiny_repository(
    tiny_lm_checkpoint: Path, tiny_mlp_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model repository with `tinylm` and `tinymlp`, version 1, in every format. To be read, not changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    repository = shared / "repository"
    with (shared / "repository.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers the first exports, the others wait
        for checkpoint in (tiny_lm_checkpoint, tiny_mlp_checkpoint):
            if not (repository / checkpoint.name).exists():
                _export(checkpoint, repository)
    return repository


def _scale(module: "nn.Module", factor: float) -> None:
    """Multiply the matrices: plain initial weights hardly change what they are added to."""
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(factor)


def _export(checkpoint: Path, repository: Path) -> None:
    from exporters.export import export_checkpoint

    assert export_checkpoint(checkpoint, repository).refused == {}
